"""joey-oci: sentences of runtime-spec 1.2 that no other test shows, and what runtime-tools' validation programs ask in
their own way: a bundle that is its own root, mode 0700, with the configuration their generator begins with.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joey.client import jsontext
from joey.native import binary
from root.oci_lab import Json, OciLab, Result

pytestmark = pytest.mark.leak_scope("module")
CAPS = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL"
    " AUDIT_WRITE"
).split()


@pytest.fixture(scope="module")
def oci(homes: Path) -> Iterator[OciLab]:
    lab = OciLab(Path(tempfile.mkdtemp(prefix="oci", dir=homes)))
    lab.bundle = lab.rootfs
    lab.rootfs.chmod(0o700)
    lab.base["root"]["path"] = "."
    process, linux = lab.base["process"], lab.base["linux"]
    process["noNewPrivileges"] = False
    names = [f"CAP_{name}" for name in CAPS]
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), names)
    for name in ("maskedPaths", "readonlyPaths"):
        del linux[name]
    linux["namespaces"] = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    lab.base["mounts"] = [mount for mount in lab.base["mounts"] if mount["type"] != "cgroup"]
    yield lab
    lab.close()


def status(oci: OciLab) -> str:
    found: str = jsontext.loads(oci.call("state", "c").out)["status"]
    return found


def lives(oci: OciLab, config: Json) -> Result:
    """create, start, wait, delete; the result of start."""
    oci.write(config)
    created = oci.call("create", "c")
    assert created.code == 0, created
    started = oci.call("start", "c")
    while status(oci) == "running":
        os.sched_yield()
    assert oci.call("delete", "c").code == 0
    assert oci.left() == []
    return started


def hook(oci: OciLab, words: str) -> Json:
    return {"path": str(oci.rootfs / "bin/sh"), "args": ["sh", "-c", words]}


# --- runtime.md -----------------------------------------------------------------------------------------------------


def test_a_container_without_process_is_created_and_cannot_be_started(oci: OciLab) -> None:
    config = oci.config()
    del config["process"]
    oci.write(config)
    assert oci.call("create", "c").code == 0
    refused = oci.call("start", "c")
    assert refused.code == 1
    assert "no process" in refused.err
    assert status(oci) == "created"
    assert oci.call("exec", "c", "echo", "others may").out == "others may\n"
    assert oci.call("kill", "c", "KILL").code == 0
    while status(oci) != "stopped":
        os.sched_yield()
    assert oci.call("delete", "c").code == 0
    assert oci.left() == []


@pytest.mark.parametrize(("version", "ends"), [("1.0.2-dev", False), ("1.2.1", False), ("1.3.0", True)])
def test_a_poststart_hook_that_fails(oci: OciLab, version: str, *, ends: bool) -> None:
    """A warning up to 1.2, an error from 1.3 on (runtime.md, "Lifecycle", step 9)."""
    said = oci.rootfs / "said"
    said.write_text("")
    config = oci.config("sh", "-c", "sleep 0.2; echo program >> /said")
    config["ociVersion"] = version
    config["hooks"] = {"poststart": [hook(oci, "exit 3"), hook(oci, f"echo hook >> {said}")]}
    started = lives(oci, config)
    assert started.code == int(ends)
    assert "error running poststart hook #0" in started.err
    assert said.read_text() == ("" if ends else "hook\nprogram\n")


def test_hooks_of_a_start_come_after_the_program_and_before_its_return(oci: OciLab) -> None:
    said = oci.rootfs / "said"
    said.write_text("")
    config = oci.config("sh", "-c", "echo program >> /said")
    config["hooks"] = {"poststart": [hook(oci, f"until grep -q p {said}; do sleep 0.01; done; echo hook >> {said}")]}
    assert lives(oci, config).code == 0
    assert said.read_text() == "program\nhook\n"


def test_a_stopped_one_is_not_changed_by_kill_and_start(oci: OciLab) -> None:
    oci.write(oci.config("true"))
    assert oci.call("create", "c").code == oci.call("start", "c").code == 0
    while status(oci) != "stopped":
        os.sched_yield()
    before = oci.call("state", "c").out
    assert oci.call("kill", "c", "KILL").code == oci.call("start", "c").code == 1
    assert oci.call("state", "c").out == before
    assert oci.call("delete", "c").code == 0


def test_every_signal_arrives(oci: OciLab) -> None:
    names = ("TERM", "USR1", "USR2")
    traps = "; ".join(f"trap 'echo {name} >> /said' {name}" for name in names)
    said = oci.rootfs / "said"
    said.write_text("")
    oci.write(oci.config("sh", "-c", f"{traps}; echo up >> /said; while true; do sleep 0.01; done"))
    assert oci.call("create", "c").code == oci.call("start", "c").code == 0
    for lines, name in enumerate(names, 1):
        while len(said.read_text().split()) < lines:
            os.sched_yield()
        assert oci.call("kill", "c", name).code == 0
    while len(said.read_text().split()) < 4:
        os.sched_yield()
    assert said.read_text().split() == ["up", *names]
    assert oci.call("delete", "-f", "c").code == 0


# --- config.md, config-linux.md -------------------------------------------------------------------------------------


def test_what_the_generator_begins_with(oci: OciLab) -> None:
    config = oci.config(
        "sh", "-c", "id; grep -E 'Cap|NoNew' /proc/self/status; ulimit -n; cat /proc/self/mounts; cat /proc/1/cmdline"
    )
    config["annotations"] = {"org.empty": ""}
    config["unknown"] = "unknown"
    config["process"]["user"] = {"uid": 10, "gid": 10, "additionalGids": [5]}
    # without a terminal its size means nothing, whatever it says
    config["process"]["consoleSize"] = {"height": 0, "width": 0}
    done = oci.run(config)
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "uid=10 gid=10 groups=5"
    assert [line.split()[1] for line in lines[1:6]] == ["00000000a80425fb"] * 5
    assert lines[6:8] == ["NoNewPrivs:\t0", "1024"]
    mounts = [line.split() for line in lines[8:] if line.count(" ") == 5]
    found = [(source, place, kind) for source, place, kind, *_ in mounts[1:]]
    assert found[: len(config["mounts"])] == [(m["source"], m["destination"], m["type"]) for m in config["mounts"]]


def masked(paths: Json, lab: OciLab) -> None:
    for name in ("d/e", "f"):
        path = lab.rootfs / "hidden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret\n")
    for number, kind in enumerate((stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO)):
        if not (lab.rootfs / f"node{number}").exists():
            os.mknod(lab.rootfs / f"node{number}", kind | 0o666, 0)


NODES = ["/node0", "/node1", "/node2"]
INNER = ["/hidden", "/hidden/d", "/hidden/d/e", "/hidden/f", "/not/there"]


@pytest.mark.parametrize("name", ["maskedPaths", "readonlyPaths"])
def test_paths_below_paths_and_nodes(oci: OciLab, name: str) -> None:
    masked({}, oci)
    config = oci.config("sh", "-c", "cat /node* /hidden/* 2>/dev/null; ls /hidden; touch /hidden/x /hidden/d/x; true")
    if name == "readonlyPaths":
        config["process"]["args"][2] = "touch /hidden/x; touch /hidden/d/x; echo x > /hidden/f; cat /hidden/f; true"
    config["linux"][name] = [*INNER, *NODES]
    done = oci.run(config)
    assert done.out == ("secret\n" if name == "readonlyPaths" else "")
    assert done.err.count("Read-only") == (3 if name == "readonlyPaths" else 1), done


CASES: dict[str, tuple[Callable[[Json], object], str, str]] = {
    "a relative destination is below the root": (
        lambda c: c["mounts"].append({"destination": "tmp", "type": "tmpfs", "source": "tmpfs"}),
        "grep -c ' /tmp tmpfs' /proc/mounts", "1\n",
    ),
    "oom_score_adj is not touched": (lambda c: None, "cat /proc/self/oom_score_adj", "OWN\n"),
    "a default error number": (
        lambda c: c["linux"].update(seccomp={
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}),
        "/bin/busybox pwd 2>&1 | grep -c 'Operation not permitted'", "1\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sentence(oci: OciLab, name: str) -> None:
    edit, script, wanted = CASES[name]
    config = oci.config("sh", "-c", script)
    edit(config)
    done = oci.run(config)
    assert done.out == wanted.replace("OWN", Path("/proc/self/oom_score_adj").read_text().strip()), done


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"personality": {"domain": "LINUX", "flags": ["X"]}}, "personality.flags"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}}, "defaultErrnoRet"),
        (
            {"seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_KILL", "errnoRet": 1}],
            }},
            "errnoRet",
        ),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]}},
         "names"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}}, "listenerMetadata"),
        ({"rootfsPropagation": "sideways"}, "rootfsPropagation"),
        ({"readonlyPaths": ["proc"]}, "readonlyPaths"),
        ({"cgroupsPath": "/"}, "cgroupsPath"),
    ],
)  # fmt: skip
def test_what_must_be_an_error(oci: OciLab, change: Json, named: str) -> None:
    config = oci.config("true")
    config["linux"].update(change)
    oci.write(config)
    refused = oci.call("create", "c")
    assert refused.code == 1
    assert named in refused.err
    assert oci.left() == []


def test_idmap_without_a_user_namespace_or_mappings_is_an_error(oci: OciLab) -> None:
    config = oci.config("true")
    config["mounts"].append({"destination": "/m", "source": "/etc", "type": "bind", "options": ["bind", "idmap"]})
    refused = oci.run(config)
    assert refused.code == 1
    assert "needs both uidMappings and gidMappings" in refused.err


def test_a_listener_nobody_asks_gets_no_question(oci: OciLab) -> None:
    """Its path is ignored then, there or not; who waits there is not kept waiting."""
    path = oci.home / "listener"
    config = oci.config("true")
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(path)}
    assert oci.run(config).code == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(5)
        assert oci.run(config).code == 0
        with server.accept()[0] as client:
            assert client.recvmsg(100, 100)[:2] == (b"", [])


# --- features.md ----------------------------------------------------------------------------------------------------


def test_what_features_says_is_accepted(oci: OciLab) -> None:
    """Both versions, each namespace, capability, action, operator, architecture and flag; the options of mounts are
    tests/unit/test_oci.py's.
    """
    said = json.loads(oci.call("features").out)
    linux = said["linux"]
    seccomp = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": linux["seccomp"]["archs"],
        "flags": linux["seccomp"]["supportedFlags"],
        "syscalls": [
            *(
                {"names": [name], "action": action}
                for name, action in zip(
                    "acct swapon swapoff reboot kexec_load nfsservctl quotactl setns".split(),
                    (a for a in linux["seccomp"]["actions"] if a != "SCMP_ACT_NOTIFY"), strict=True,
                )
            ),
            *(
                {"names": ["bpf"], "action": "SCMP_ACT_LOG", "args": [{"index": n, "value": 9, "op": op}]}
                for n, op in zip((0, 1, 2, 3, 4, 5, 0), linux["seccomp"]["operators"], strict=True)
            ),
        ],
    }  # fmt: skip
    for version in (said["ociVersionMin"], said["ociVersionMax"]):
        config = oci.config("true")
        config["ociVersion"] = version
        config["process"]["capabilities"] = {"bounding": linux["capabilities"]}
        config["linux"]["namespaces"] = [{"type": kind} for kind in linux["namespaces"]]
        ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
        config["linux"].update(uidMappings=ids, gidMappings=ids, seccomp=seccomp)
        done = oci.run(config)
        assert done.code == 0, done
        assert "unknown" not in done.err or "CAP_SYS_RESOURCE" in done.err, done


# --- as runc ---------------------------------------------------------------------------------------------------------


def test_events_tell_of_who_was_killed_for_want_of_memory(oci: OciLab) -> None:
    config = oci.config("sleep", "60")
    config["linux"]["resources"]["memory"] = {"limit": 8 << 20, "swap": 8 << 20}
    oci.write(config)
    assert oci.call("run", "-d", "c").code == 0
    argv = [binary("joey-oci"), "--root", oci.root, "events", "--interval", "1m", "c"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        assert json.loads(events.stdout.readline())["type"] == "stats"
        assert oci.call("exec", "c", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1").code == 137
        assert json.loads(events.stdout.readline()) == {"type": "oom", "id": "c"}
        assert oci.call("delete", "-f", "c").code == 0
        assert events.wait(10) == 0
