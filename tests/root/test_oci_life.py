"""joey-oci: the operations in their order and out of it (runtime.md), hooks, exec, terminals, and what is left when
something is killed half-way.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from joey.client import jsontext
from joey.native import binary
from root.oci_lab import Json, OciLab, reap_until

pytestmark = pytest.mark.leak_scope("module")


def state(oci: OciLab, name: str) -> Json:
    done = oci.call("state", name)
    assert done.code == 0, done
    found: Json = jsontext.loads(done.out)
    return found


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def stopped(oci: OciLab, name: str) -> Callable[[], bool]:
    return lambda: state(oci, name)["status"] == "stopped"


def test_the_life_of_a_container(oci: OciLab) -> None:
    oci.write(oci.config("sh", "-c", "touch /started; sleep 60", noNewPrivileges=False))
    pid_file = oci.home / "pid"
    (oci.rootfs / "started").unlink(missing_ok=True)
    assert oci.call("create", "--pid-file", str(pid_file), "c").code == 0
    found = state(oci, "c")
    assert found["status"] == "created"
    assert found["ociVersion"] == "1.2.0"
    assert found["id"] == "c"
    assert found["bundle"] == str(oci.bundle)
    assert found["pid"] == int(pid_file.read_text())
    assert not (oci.rootfs / "started").exists()
    assert "already exists" in oci.call("create", "c").err
    assert state(oci, "c") == found
    oci.write(oci.config("false"))  # a change of the file has no effect any more
    assert oci.call("start", "c").code == 0
    until((oci.rootfs / "started").exists)
    assert state(oci, "c")["status"] == "running"
    again = oci.call("start", "c")
    assert again.code == 1
    assert "already running" in again.err
    assert "not stopped" in oci.call("delete", "c").err
    assert state(oci, "c")["status"] == "running"
    assert oci.call("kill", "c", "KILL").code == 0
    until(stopped(oci, "c"))
    assert "not running" in oci.call("kill", "c", "TERM").err
    assert oci.call("start", "c").code == 1
    assert oci.call("delete", "c").code == 0
    assert oci.left() == []


@pytest.mark.parametrize(
    "verb", ["state", "start", "kill", "delete", "exec", "pause", "resume", "update", "ps", "events"]
)
def test_no_such_container_and_no_id(oci: OciLab, verb: str) -> None:
    failed = 255 if verb == "exec" else 1
    done = oci.call(verb, "nobody", *(["true"] if verb == "exec" else []))
    assert done.code == failed
    assert "container does not exist" in done.err
    done = oci.call(verb)
    assert done.code == failed
    assert "requires" in done.err


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 300, "a b", "ä", ".hidden"])
def test_ids(oci: OciLab, name: str) -> None:
    oci.write(oci.config("true"))
    assert oci.call("create", name).code == 1
    assert oci.left() == []


def test_exit_status_and_signals(oci: OciLab) -> None:
    assert oci.sh("exit 42").code == 42
    config = oci.config("sh", "-c", "trap 'exit 9' TERM; echo up; while true; do sleep 0.05; done")
    oci.write(config)
    with subprocess.Popen(
        [binary("joey-oci"), "--root", oci.root, "run", "c"], cwd=oci.bundle, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 9
    assert oci.left() == []


def test_delete_of_a_created_one_and_force(oci: OciLab) -> None:
    oci.write(oci.config("sleep", "60"))
    assert oci.call("create", "c").code == 0
    refused = oci.call("delete", "c")
    assert refused.code == 1
    assert "not stopped: created" in refused.err
    assert oci.call("start", "c").code == 0
    assert oci.call("delete", "-f", "c").code == 0
    assert oci.call("run", "-d", "c").code == 0
    assert oci.call("delete", "--force", "c").code == 0
    assert oci.call("delete", "--force", "c").code == 0
    assert oci.left() == []


def test_exec(oci: OciLab, sleeper: str) -> None:
    done = oci.call("exec", "-e", "A=1", "--cwd", "/tmp", "-u", "5:6", sleeper, "sh", "-c", "id; echo $A; pwd; exit 7")
    assert done.code == 7
    assert done.out.split("\n")[:3] == ["uid=5 gid=6", "1", "/tmp"]
    names = oci.call(
        "exec", sleeper, "sh", "-c", "for n in pid net mnt ipc uts cgroup; do readlink /proc/self/ns/$n; done"
    )
    own = [
        os.readlink(f"/proc/{state(oci, sleeper)['pid']}/ns/{n}") for n in ("pid", "net", "mnt", "ipc", "uts", "cgroup")
    ]
    assert names.out.split() == own
    assert oci.call("exec", sleeper, "nosuch").code == 255
    process = oci.config("cat", "/proc/self/cgroup", "/proc/self/status")["process"]
    (oci.home / "process.json").write_text(json.dumps(process))
    by_file = oci.call("exec", "--process", str(oci.home / "process.json"), sleeper)
    assert "NoNewPrivs:\t1" in by_file.out
    pid_file = oci.home / "exec.pid"
    assert oci.call("exec", "-d", "--pid-file", str(pid_file), sleeper, "sleep", "50").code == 0
    assert jsontext.loads(oci.call("ps", "-f", "json", sleeper).out) == sorted(
        [state(oci, sleeper)["pid"], int(pid_file.read_text())]
    )


def test_pause_update_events_list(oci: OciLab, sleeper: str) -> None:
    assert oci.call("pause", sleeper).code == 0
    assert state(oci, sleeper)["status"] == "paused"
    assert "paused" in oci.call("exec", sleeper, "true").err
    assert oci.call("pause", sleeper).code == 1
    assert oci.call("resume", sleeper).code == 0
    assert oci.call("resume", sleeper).code == 1
    assert oci.call("update", "--pids-limit", "33", "--memory", "64M", sleeper).code == 0
    figures = jsontext.loads(oci.call("events", "--stats", sleeper).out)["data"]
    assert figures["pids"] == {"current": 1, "limit": 33}
    assert figures["memory"]["usage"]["limit"] == 64 << 20
    rows = jsontext.loads(oci.call("list", "-f", "json").out)
    assert [(row["id"], row["status"]) for row in rows] == [("s", "running")]
    assert oci.call("list", "-q").out == "s\n"
    refused = oci.call("update", "--resources", str(oci.rootfs / "etc/passwd"), sleeper)
    assert "not JSON" in refused.err


def test_kill_of_a_paused_one(oci: OciLab, sleeper: str) -> None:
    assert oci.call("pause", sleeper).code == 0
    assert oci.call("kill", sleeper, "9").code == 0
    until(stopped(oci, sleeper))


def test_descriptors_are_passed_on_request_only(oci: OciLab) -> None:
    (oci.home / "through").write_text("through\n")
    oci.write(oci.config("sh", "-c", "ls /proc/self/fd; cat <&3"))

    def run(*options: str) -> tuple[str, str]:
        words = [binary("joey-oci"), "--root", oci.root, "run", *options, "c"]
        shell = ["sh", "-c", 'exec "$@" 3<../through', "sh", *map(str, words)]
        done = subprocess.run(
            shell, cwd=oci.bundle, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
        return done.stdout, done.stderr

    assert "through" in run("--preserve-fds", "1")[0]
    assert run()[0].split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
    for count in range(1, 9):  # none of the runtime's own is taken for one of the caller's
        assert "file descriptor 3 is not open" in oci.call("create", "--preserve-fds", str(count), "c").err
    assert "file descriptor 4 is not open" in run("--preserve-fds", "2")[1]


def test_closed_standard_streams_are_no_descriptors_of_the_runtime(oci: OciLab) -> None:
    oci.write(oci.config("sh", "-c", "for n in 0 1 2 3 4; do readlink /proc/self/fd/$n; done > /links; true"))
    words = [binary("joey-oci"), "--root", oci.root, "run", "c"]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *map(str, words)]
    assert subprocess.run(shell, cwd=oci.bundle, timeout=20).returncode == 0
    links = (oci.rootfs / "links").read_text().split()
    assert links[0] == links[2] == "/dev/null"
    assert links[1] == "/links"
    assert all("state" not in link and "socket" not in link for link in links)
    (oci.rootfs / "links").unlink()


def test_console_socket(oci: OciLab) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(oci.home / "console"))
        server.listen()
        config = oci.config("sh", "-c", "read line; tty; echo got $line; ls -l /dev/console; exit 4", terminal=True)
        config["process"]["consoleSize"] = {"height": 33, "width": 77}
        oci.write(config)
        assert oci.call("create", "--console-socket", str(oci.home / "console"), "c").code == 0
        with server.accept()[0] as client:
            _, control, _, _ = client.recvmsg(64, socket.CMSG_LEN(4))
    (oci.home / "console").unlink()
    master = array.array("i", control[0][2])[0]
    assert os.get_terminal_size(master) == (77, 33)
    assert oci.call("start", "c").code == 0
    os.write(master, b"hello\n")
    out = b""
    try:
        while piece := os.read(master, 4096):
            out += piece
    except OSError:
        pass
    os.close(master)
    assert b"/dev/pts/0" in out
    assert b"got hello" in out
    assert oci.call("delete", "-f", "c").code == 0


# --- hooks ----------------------------------------------------------------------------------------------------------


def hook_script(oci: OciLab) -> Path:
    path = oci.rootfs / "hook"  # inside too: startContainer's is looked up there
    path.write_text(
        '#!/bin/sh\nprintf "%s " "$1" "$X" $(readlink /proc/self/ns/mnt) "$(cat)" >> "$2"\n'
        'echo >> "$2"\n[ "$1" != "$3" ]\n'
    )
    path.chmod(0o755)
    return path


KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def with_hooks(oci: OciLab, config: Json, fail: str = "") -> tuple[Json, Path]:
    script, log = hook_script(oci), oci.rootfs / "hooks.log"
    log.write_text("")
    config["hooks"] = {}
    for kind in KINDS:
        inside = kind == "startContainer"
        path, target = ("/hook", "/hooks.log") if inside else (str(script), str(log))
        hook = {
            "path": path,
            "args": ["hook", kind, target, fail],
            "env": ["X=value", "PATH=/bin:/usr/bin"],
            "timeout": 10,
        }
        config["hooks"][kind] = [hook]
    return config, log


def test_hooks_run_in_order_in_their_places_with_the_state(oci: OciLab) -> None:
    config, log = with_hooks(oci, oci.config("sh", "-c", "echo program >> /hooks.log"))
    config["annotations"] = {"some.key": "some value"}
    assert oci.run(config).code == 0
    lines = log.read_text().splitlines()
    ours = os.readlink("/proc/self/ns/mnt")
    words = [line.split(" ", 3) for line in lines]
    assert sorted(w[0] for w in words) == sorted([*KINDS, "program"])
    assert [w[0] for w in words if w[0] not in ("program", "poststart")] == [k for k in KINDS if k != "poststart"]
    wanted = dict.fromkeys(("prestart", "createRuntime", "createContainer", "startContainer"), "created")
    wanted |= {"poststart": "running", "poststop": "stopped"}
    for name, variable, namespace, text in (w for w in words if w[0] != "program"):
        assert variable == "value"
        assert (namespace == ours) == (name not in ("createContainer", "startContainer")), name
        said = json.loads(text)
        assert said["status"] == wanted[name]
        assert said["id"] == "c"
        assert said["bundle"] == str(oci.bundle)
        assert said["annotations"] == {"some.key": "some value"}
        assert ("pid" in said) == (name != "poststop")
        if name != "poststop":  # as whoever is told sees it
            assert (said["pid"] == 1) == (name in ("createContainer", "startContainer"))


@pytest.mark.parametrize("kind", KINDS[:5])
def test_a_hook_that_fails_ends_the_container(oci: OciLab, kind: str) -> None:
    config, log = with_hooks(oci, oci.config("sleep", "60"), fail=kind)
    oci.write(config)
    done = oci.call("run", "c")
    assert done.code == 1
    assert f"error running {kind} hook #0" in done.err
    assert "poststop" in log.read_text()
    assert oci.left() == []


def test_a_poststop_hook_that_fails_is_a_warning(oci: OciLab) -> None:
    config, log = with_hooks(oci, oci.config("true"), fail="poststop")
    config["hooks"]["poststop"] *= 2
    done = oci.run(config)
    assert done.code == 0
    assert "warning" in done.err
    assert log.read_text().count("poststop") == 2


def test_a_hook_that_hangs(oci: OciLab) -> None:
    config = oci.config("true")
    config["hooks"] = {"createContainer": [{"path": "/bin/sleep", "args": ["sleep", "50"], "timeout": 1}]}
    done = oci.run(config)
    assert done.code == 1
    assert "timeout of 1s" in done.err
    assert oci.left() == []


# --- somebody else, and the worst moment ----------------------------------------------------------------------------


def test_two_creates_with_one_id(oci: OciLab) -> None:
    oci.write(oci.config("sleep", "60"))

    def create(_: int) -> int:
        argv = [binary("joey-oci"), "--root", oci.root, "create", "c"]
        return subprocess.run(
            argv, cwd=oci.bundle, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(create, range(6))) == [0, 1, 1, 1, 1, 1]
    assert oci.call("delete", "-f", "c").code == 0
    assert oci.left() == []


def test_a_create_that_is_killed_leaves_nothing_behind_for_long(oci: OciLab) -> None:
    config = oci.config("sleep", "60")
    config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {oci.home}/here; sleep 3"]}]}
    for next_call in (("create", "c"), ("delete", "c")):
        oci.write(config)
        (oci.home / "here").unlink(missing_ok=True)
        with subprocess.Popen([binary("joey-oci"), "--root", oci.root, "create", "c"], cwd=oci.bundle) as creating:
            until((oci.home / "here").exists)
            creating.kill()
        assert state_or_none(oci) in (None, "creating")
        oci.write(oci.config("sleep", "60"))
        done = oci.call(*next_call)
        assert done.code == 0, done
        oci.call("delete", "-f", "c")
        assert oci.left() == []


def state_or_none(oci: OciLab) -> str | None:
    done = oci.call("state", "c")
    return jsontext.loads(done.out)["status"] if done.code == 0 else None


def test_what_the_caller_may_not_ask(oci: OciLab) -> None:
    for words in (
        ("checkpoint", "c"),
        ("restore", "c"),
        ("nonsense",),
        ("run", "--nonsense", "c"),
        ("run", "--bundle"),
    ):
        done = oci.call(*words)
        assert done.code == 1
        assert done.err.count("\n") == 1


def test_log_in_json(oci: OciLab) -> None:
    path = oci.home / "log"
    assert oci.call("--log", str(path), "--log-format", "json", "start", "nobody").code == 1
    line = json.loads(path.read_text().splitlines()[-1])
    assert line["level"] == "error"
    assert line["msg"] == "container does not exist"


def test_systemd_paths_are_understood(oci: OciLab) -> None:
    config = oci.config("cat", "/proc/self/cgroup")
    config["linux"]["cgroupsPath"] = "joeytest.slice:joey:c"
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
    oci.write(config)
    done = oci.call("--systemd-cgroup", "run", "c")
    assert "/joeytest.slice/joey-c.scope" in done.out
    for path in Path("/sys/fs/cgroup").glob("*/joeytest.slice"):
        path.rmdir()


V2 = """
umount -l /sys/fs/cgroup/* 2>/dev/null; umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup || exit 9
set -e; "$@" run -d c < /dev/null
"$@" exec c sh -c 'mount | grep " /sys/fs/cgroup "; ! head -c 1 /tmp/kmsg && echo denied'
cat "/sys/fs/cgroup$GROUP/c/cgroup.max.depth"; "$@" pause c; cat "/sys/fs/cgroup$GROUP/c/cgroup.freeze"; "$@" resume c
"$@" events --stats c | grep -c '"usage"'; "$@" kill c KILL
while "$@" state c | grep -q running; do :; done; "$@" delete c
rmdir "/sys/fs/cgroup$GROUP"
"""


def test_cgroup_v2_alone(oci: OciLab) -> None:
    """As much of it as a host has whose controllers are v1's: devices by eBPF, freezing, unified files, figures."""
    config = oci.config("sh", "-c", "mknod /tmp/kmsg c 1 11; sleep 60")
    config["process"]["capabilities"] = {kind: ["CAP_MKNOD"] for kind in ("bounding", "effective", "permitted")}
    config["linux"]["resources"]["unified"] = {"cgroup.max.depth": "7"}
    oci.write(config)
    argv = ["unshare", "-m", "sh", "-c", V2, "sh", str(binary("joey-oci")), "--root", str(oci.root)]
    with (oci.home / "v2").open("wb+") as out:
        env = {**os.environ, "GROUP": oci.cgroup}
        with subprocess.Popen(argv, cwd=oci.bundle, env=env, stdout=out, stderr=out) as running:
            reap_until(running, 30)
        out.seek(0)
        text = out.read().decode()
    assert running.returncode == 0, text
    assert "type cgroup2" in text
    assert "denied" in text
    assert text.splitlines()[-3:] == ["7", "1", "1"], text
    assert oci.left() == []


def test_features_tells_what_is_there(oci: OciLab) -> None:
    found = jsontext.loads(oci.call("features").out)
    assert found["ociVersionMin"] == "1.0.0"
    assert "rro" in found["mountOptions"]
    assert found["linux"]["intelRdt"] == {"enabled": False}
    assert found["linux"]["namespaces"] == ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
    assert len(found["linux"]["capabilities"]) == 41  # whatever this host has: features.md


def test_nothing_stays_beside_a_container(oci: OciLab, sleeper: str) -> None:
    """The issue's figure: memory beyond the container itself. There is no process of ours any more."""
    pid = state(oci, sleeper)["pid"]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent in (os.getpid(), 1)  # whoever is the subreaper
