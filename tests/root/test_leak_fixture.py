"""The leak finder sees what only root can leave behind; it would be blind without these tests."""

import subprocess
from pathlib import Path

import pytest

from joey.testing import leaks
from joey.testing.leaks import Scope

NAME = "joeyleak0"


def run(*argv):
    subprocess.run(argv, check=True, capture_output=True)


def seen(kind, make, undo, tmp_path):
    """What `make` adds to the leaks of one kind, and that nothing of it is left after `undo`."""
    scope = Scope(root=tmp_path)
    before = leaks.snapshot(scope)
    make()
    try:
        left = leaks.compare(before, leaks.snapshot(scope), scope)
    finally:
        undo()
    return [leak for leak in left if leak.kind == kind]


def test_a_mount(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    left = seen(
        "mount",
        lambda: run("mount", "-t", "tmpfs", "joey-test", str(target)),
        lambda: run("umount", str(target)),
        tmp_path,
    )
    assert [leak.text for leak in left if leak.certain] == [f"{target} (tmpfs of joey-test, root /)"]


def test_a_link(tmp_path):
    left = seen(
        "link",
        lambda: run("ip", "link", "add", NAME, "type", "veth", "peer", "name", "joeyleak1"),
        lambda: run("ip", "link", "del", NAME),
        tmp_path,
    )
    assert {NAME, "joeyleak1"} <= {leak.text.split()[0] for leak in left}


def test_a_named_network_namespace(tmp_path):
    # ip-netns(8) also turns /run/netns into a mount point and leaves it so; that stays in a mount namespace of its own.
    left = seen(
        "netns",
        lambda: run("unshare", "--mount", "ip", "netns", "add", NAME),
        lambda: Path("/run/netns", NAME).unlink(),
        tmp_path,
    )
    assert f"/run/netns/{NAME}" in {leak.text for leak in left}


def test_an_nft_table(tmp_path):
    table = ("table", "inet", NAME)
    left = seen("nft table", lambda: run("nft", "add", *table), lambda: run("nft", "delete", *table), tmp_path)
    assert " ".join(table) in {leak.text for leak in left}


def test_a_cgroup_and_the_process_in_it(tmp_path):
    tops = [key[1] for key in leaks.mounts(Scope()) if key[2] in ("cgroup", "cgroup2")]
    top = next((Path(top) for top in tops if "pids" in top), Path(tops[0]))
    group = top / NAME
    children = []

    def make():
        group.mkdir()
        children.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        (group / "cgroup.procs").write_text(str(children[0].pid))

    def undo():
        children[0].communicate()
        group.rmdir()

    scope = Scope(root=tmp_path)
    before = leaks.snapshot(scope)
    make()
    try:
        left = leaks.compare(before, leaks.snapshot(scope), scope)
    finally:
        undo()
    assert str(group) in {leak.text for leak in left if leak.kind == "cgroup"}
    (process,) = [leak for leak in left if leak.kind == "process" and f"pid {children[0].pid} " in leak.text]
    assert process.certain and f"cgroup /{NAME}]" in process.text


@pytest.mark.may_skip("loop devices are not available in every container")
def test_a_loop_device(tmp_path):
    file = tmp_path / "disk"
    file.write_bytes(b"\0" * 4096)
    tried = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"losetup: {tried.stderr.strip()}")
    try:
        assert f"{tried.stdout.strip()} of {file}" in leaks.loops(Scope()).values()
    finally:
        run("losetup", "-d", tried.stdout.strip())


def test_the_machines_own_link_going_away_is_told(tmp_path):
    run("ip", "link", "add", "tstveth0", "type", "veth", "peer", "name", "tstveth1")
    scope = Scope(root=tmp_path)
    before = leaks.snapshot(scope)
    run("ip", "link", "del", "tstveth0")
    left = leaks.compare(before, leaks.snapshot(scope), scope)
    assert any(leak.gone and leak.text.startswith("tstveth0 ") for leak in left)
