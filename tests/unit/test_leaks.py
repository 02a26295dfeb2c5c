"""The leak finder finds leaks: each test makes one on purpose (those that need root are in tests/root)."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from joey.testing import leaks
from joey.testing.leaks import LeakError, Scope, compare, no_leaks

EMPTY = {kind: {} for kind, _ in leaks.FACILITIES}


@pytest.fixture(autouse=True)
def only_certain(monkeypatch):
    """What other programs do to this machine meanwhile is not these tests' business."""
    certain = [item for item in leaks.FACILITIES if item[0] in ("process", "descriptor", "file")]
    kept = {kind for kind, _ in certain}
    looks = tuple((kind, look if kind in kept else lambda scope: {}) for kind, look in leaks.FACILITIES)
    monkeypatch.setattr(leaks, "FACILITIES", looks)


def found(scope, action, seconds=0.05):
    """The leaks that `action` leaves."""
    with pytest.raises(LeakError) as caught, no_leaks(scope, seconds):
        action()
    return caught.value.leaks


def test_nothing_left_is_no_error(tmp_path):
    with no_leaks(Scope(root=tmp_path)):
        (tmp_path / "a").mkdir()
        (tmp_path / "a").rmdir()
        with socket.socket():
            pass
        subprocess.run(["true"], check=True)


def test_a_process(tmp_path):
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    child.communicate()
    started = []

    def leave():
        started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))

    left = found(Scope(root=tmp_path), leave)
    started[0].communicate()
    processes = [leak for leak in left if leak.kind == "process"]
    assert len(processes) == 1 and processes[0].certain
    assert f"pid {started[0].pid} cat" in processes[0].text
    assert [leak.kind for leak in left if leak.kind != "process"] == ["descriptor"]  # its stdin


def test_a_grandchild_that_daemonized_away(tmp_path):
    """Run in a process of its own, which becomes the subreaper."""
    code = """if True:
        import os, subprocess, sys
        from pathlib import Path
        from joey.testing import leaks
        leaks.adopt_orphans()
        dead = leaks.zombies()
        before = leaks.snapshot(leaks.Scope())
        # The shell ends at once; the background process closes its output, so that nothing but its parent connects us.
        read, write = os.pipe()
        subprocess.run(["sh", "-c", "cat <&%d >/dev/null &" % read], pass_fds=[read], check=True)
        os.close(read)
        left = leaks.wait_clean(before, leaks.Scope(), 0)
        # Seen before its exec it is still called sh.
        print([leak.certain and f"parent {os.getpid()}" in leak.text for leak in left if leak.kind == "process"])
        os.close(write)
        left = leaks.wait_clean(before, leaks.Scope(), 10)
        print([str(leak) for leak in left if leak.certain], leaks.reap_orphans(dead), leaks.zombies() - dead)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines() == ["[True]", "[] 1 set()"]


def test_a_descriptor(tmp_path):
    ends = []
    left = found(Scope(root=tmp_path), lambda: ends.extend(os.pipe()))
    for end in ends:
        os.close(end)
    assert sorted(leak.text.split()[1] for leak in left) == sorted(str(end) for end in ends)
    assert all("pipe:" in leak.text for leak in left)


def test_an_unreachable_socket_is_collected_first(tmp_path):
    with pytest.warns(ResourceWarning), no_leaks(Scope(root=tmp_path)):
        ring = [socket.socket()]
        ring.append(ring)
        del ring


def test_files_are_told_by_their_top(tmp_path):
    (tmp_path / "old").mkdir()
    left = found(Scope(root=tmp_path), lambda: (tmp_path / "old" / "box" / "upper" / "deep").mkdir(parents=True))
    assert [leak.text for leak in left] == [f"{tmp_path}/old/box (and 2 below)"]


def test_late_removal_is_waited_for(tmp_path):
    late = tmp_path / "late"

    def leave():
        late.mkdir()
        threading.Timer(0.03, late.rmdir).start()

    with no_leaks(Scope(root=tmp_path), seconds=10):
        leave()
    assert not late.exists()


def test_an_error_inside_is_not_hidden(tmp_path):
    with pytest.raises(KeyError), no_leaks(Scope(root=tmp_path)):
        (tmp_path / "left").mkdir()
        raise KeyError("the real one")


def test_mountinfo():
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        r"40 36 0:33 / /tmp/a\040b rw - overlay joey rw,lowerdir=/x"
        "\n"
    )
    assert leaks.parse_mountinfo(text) == {
        ("36", "/mnt2", "ext3"): "/mnt2 (ext3 of /dev/root, root /mnt1)",
        ("40", "/tmp/a b", "overlay"): "/tmp/a b (overlay of joey, root /)",
    }


def test_what_was_not_ours_may_not_go(tmp_path):
    before = {**EMPTY, "mount": {("1", "/data", "ext4"): "/data (ext4)"}, "link": {("7", "joey1"): "joey1 (index 7)"}}
    left = compare(before, EMPTY, Scope(root=tmp_path))
    assert [str(leak) for leak in left] == ["mount      - /data (ext4) is gone"]


def test_a_mount_below_our_folder_is_certainly_ours(tmp_path):
    now = {**EMPTY, "mount": {("1", "/x", "tmpfs"): "/x (tmpfs)", ("2", "/y", "tmpfs"): f"{tmp_path}/h1 (tmpfs)"}}
    assert [leak.certain for leak in compare(EMPTY, now, Scope(root=tmp_path))] == [False, True]


def test_a_cgroup_of_our_instance_is_certainly_ours():
    scope = Scope(instances=(leaks.instance_name(Path("/tmp/h1")),))
    names = [leaks.instance_name(Path(home)) for home in ("/tmp/h1", "/tmp/h2")]
    now = {**EMPTY, "cgroup": {(f"/cg/{name}",): f"/cg/{name}" for name in names}}
    assert {leak.text: leak.certain for leak in compare(EMPTY, now, scope)} == {
        f"/cg/{names[0]}": True,
        f"/cg/{names[1]}": False,
    }


def test_a_process_that_moved_is_the_same(tmp_path):
    before = {**EMPTY, "process": {("9", "100", "below"): "pid 9 cat"}}
    assert compare(before, {**EMPTY, "process": {("9", "100", "cgroup"): "pid 9 cat"}}, Scope()) == []
    assert len(compare(before, {**EMPTY, "process": {("9", "200", "below"): "pid 9 cat"}}, Scope())) == 1


@pytest.mark.parametrize(
    ("path", "ours"),
    [("/joey-1/box", True), ("/system.slice/joey/x", True), ("/user/notjoey", False), ("/", False)],
)
def test_cgroup_names(path, ours):
    assert leaks.cgroup_component(path, "joey") is ours


def test_cgroups_and_nested_ones_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "mounts", lambda scope: {("1", str(tmp_path), "cgroup2"): ""})
    (tmp_path / "system.slice" / "joey-a" / "box1").mkdir(parents=True)
    (tmp_path / "user.slice").mkdir()
    now = {**EMPTY, "cgroup": leaks.cgroups(Scope())}
    assert [leak.text for leak in compare(EMPTY, now, Scope())] == [f"{tmp_path}/system.slice/joey-a (and 1 below)"]


def test_the_report_is_bounded():
    text = leaks.report([leaks.Leak("link", f"v{n}") for n in range(50)], 1.0)
    assert text.splitlines()[0].startswith("50 left behind")
    assert text.splitlines()[-1] == "  … and 10 more"


def test_strangers_are_seen(tmp_path):
    launcher = tmp_path / "joey-launcher"
    launcher.symlink_to("/bin/cat")
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(subprocess.Popen([str(launcher)], stdin=subprocess.PIPE))
        mine = f"pid {child.pid} joey-launcher"
        assert mine not in leaks.strangers(Scope())
        other = Scope(pid=child.pid)
        assert mine not in leaks.strangers(other)
        bystander = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        assert mine in leaks.strangers(Scope(pid=bystander.pid))
        for process in (child, bystander):
            process.communicate()


def test_this_process_is_described():
    scope = Scope(pid=os.getppid())
    assert any(key[0] == str(os.getpid()) for key in leaks.processes(scope))
    assert not any(key[0] == str(os.getpid()) for key in leaks.processes(Scope()))
    assert ("1", "lo") in leaks.links(scope)
    assert Path("/proc/self/mountinfo").read_text().count("\n") == len(leaks.mounts(Scope()))
