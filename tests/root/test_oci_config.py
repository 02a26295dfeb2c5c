"""joey-oci: each property of config.json seen from inside a container. docs/oci.md names these cases by their names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from root.oci_lab import Json, OciLab

pytestmark = pytest.mark.leak_scope("module")


Edit = Callable[[Json, OciLab], object]
CAPS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def caps(config: Json, *names: str) -> None:
    config["process"]["capabilities"] = {kind: list(names) for kind in CAPS}


def ns(config: Json, kind: str, path: str | None = None) -> None:
    linux = config["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != kind]
    linux["namespaces"].append({"type": kind, **({"path": path} if path else {})})


def user_ns(config: Json, base: int = 200_000) -> None:
    ns(config, "user")
    ids = [{"containerID": 0, "hostID": base, "size": 65536}]
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = ids


def bind(config: Json, source: Path | str, target: str, *options: str, **more: Any) -> None:
    config["mounts"].append(
        {"destination": target, "source": str(source), "type": "none", "options": ["bind", *options], **more}
    )


def seccomp(config: Json, *rules: Json, **more: Any) -> None:
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(rules), **more}


def deny(name: str, **more: Any) -> Json:
    return {"names": [name], "action": "SCMP_ACT_ERRNO", **more}


def idmapped(config: Json, lab: OciLab) -> None:
    (lab.home / "mine").write_text("x")
    ids = [{"containerID": 0, "hostID": 4242, "size": 1}]
    bind(config, lab.home, "/m", uidMappings=ids, gidMappings=ids)


def limit(config: Json, **resources: Any) -> None:
    config["linux"]["resources"].update(resources)


# name: (what to change, what to run, what must be in the output: all of them; "!x": must not)
CASES: dict[str, tuple[Edit, str, tuple[str, ...]]] = {
    # config.md
    "hostname": (lambda c, _: c.update(hostname="box"), "hostname", ("box",)),
    "domainname": (lambda c, _: c.update(domainname="dom.ain"), "cat /proc/sys/kernel/domainname", ("dom.ain",)),
    "root-readonly": (lambda c, _: c["root"].update(readonly=True), "touch /x", ("Read-only",)),
    "cwd": (lambda c, _: c["process"].update(cwd="/made/here"), "readlink /proc/self/cwd", ("/made/here",)),
    "env": (lambda c, _: c["process"].update(env=["PATH=/bin", "A=1", "A=2"]), "env", ("A=2", "HOME=/root", "!A=1")),
    "home": (lambda c, _: c["process"].update(user={"uid": 1000}), "env", ("HOME=/home/user",)),
    "user": (
        lambda c, _: c["process"].update(user={"uid": 5, "gid": 6, "umask": 0o77, "additionalGids": [7, 8]}),
        "id; umask",
        ("uid=5 gid=6 groups=7,8", "0077"),
    ),
    "capabilities": (
        lambda c, _: caps(c, "CAP_CHOWN", "CAP_KILL"),
        "grep Cap /proc/self/status",
        tuple(f"Cap{kind}:\t0000000000000021" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
    ),
    "capabilities-none": (
        lambda c, _: c["process"].pop("capabilities"),
        "grep Cap /proc/self/status",
        ("CapBnd:\t0000000000000000",),
    ),
    "capabilities-unknown": (lambda c, _: caps(c, "CAP_NOSUCH"), "echo runs", ("runs",)),
    "rlimits": (
        lambda c, _: c["process"].update(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]),
        "ulimit -n; ulimit -Hn",
        ("77", "99"),
    ),
    "no-new-privileges": (lambda c, _: None, "grep NoNew /proc/self/status", ("NoNewPrivs:\t1",)),
    "new-privileges": (
        lambda c, _: c["process"].update(noNewPrivileges=False),
        "grep NoNew /proc/self/status",
        ("NoNewPrivs:\t0",),
    ),
    "oom-score-adj": (lambda c, _: c["process"].update(oomScoreAdj=123), "cat /proc/self/oom_score_adj", ("123",)),
    "scheduler": (
        lambda c, _: c["process"].update(scheduler={"policy": "SCHED_BATCH", "nice": 7}),
        "cut -d' ' -f19,41 /proc/self/stat",
        ("7 3",),
    ),
    "mount-options": (
        lambda c, _: c["mounts"].append(
            {
                "destination": "/t",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "noexec", "size=64k", "mode=1770", "ro"],
            }
        ),
        "mount | grep ' /t '",
        ("ro,nosuid,noexec", "size=64k", "mode=1770"),
    ),
    "mount-bind-file": (
        lambda c, lab: bind(c, lab.bundle / "config.json", "/a/b/c"),
        "head -c 20 /a/b/c",
        ("ociVersion",),
    ),
    "mount-bind-ro": (lambda c, lab: bind(c, lab.home, "/m", "ro"), "touch /m/x", ("Read-only",)),
    "mount-recursive-ro": (
        lambda c, _: bind(c, "/sys", "/m", "rbind", "rro"),
        "grep ' /m' /proc/mounts",
        ("ro", "! rw,"),
    ),
    "mount-relative-source": (lambda c, _: bind(c, "config.json", "/c"), "head -c 20 /c", ("ociVersion",)),
    "mount-order": (
        lambda c, lab: (
            bind(c, lab.home, "/m"),
            c["mounts"].append({"destination": "/m", "type": "tmpfs", "source": "tmpfs"}),
        ),
        "ls /m | wc -l",
        ("0",),
    ),
    "mount-idmap": (idmapped, "stat -c %u:%g /m/mine", ("4242:4242",)),
    "mount-propagation": (
        lambda c, lab: bind(c, lab.home, "/m", "rprivate"),
        "grep ' /m ' /proc/self/mountinfo",
        ("!shared:", "!master:"),
    ),
    # config-linux.md
    "default-devices": (
        lambda c, _: None,
        "ls -l /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; readlink /dev/ptmx",
        ("1,   3", "1,   5", "1,   7", "1,   8", "1,   9", "5,   0", "pts/ptmx"),
    ),
    "default-links": (
        lambda c, _: None,
        "for l in fd stdin stdout stderr; do readlink /dev/$l; done",
        ("/proc/self/fd\n", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"),
    ),
    "default-filesystems": (
        lambda c, _: None,
        "mount",
        (" /proc type proc", " /sys type sysfs", " /dev/pts type devpts", " /dev/shm type tmpfs"),
    ),
    "devices": (
        lambda c, _: c["linux"].update(
            devices=[{"type": "c", "path": "/dev/own", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}]
        ),
        "stat -c '%a %u %g %t:%T' /dev/own",
        ("640 3 4 1:5",),
    ),
    "devices-fifo": (
        lambda c, _: c["linux"].update(devices=[{"type": "p", "path": "/run/pipe"}]),
        "stat -c %F /run/pipe",
        ("fifo",),
    ),
    "device-cgroup": (lambda c, _: caps(c, "CAP_MKNOD"), "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg", ("not permitted",)),
    "masked-paths": (
        lambda c, _: None,
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; ls /proc/acpi 2>/dev/null | wc -l",
        ("0\n0\n0",),
    ),
    "readonly-paths": (lambda c, _: caps(c, "CAP_SYS_ADMIN"), "echo 1 > /proc/sys/kernel/printk", ("Read-only",)),
    "sysctl": (
        lambda c, _: c["linux"].update(sysctl={"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096000"}),
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax",
        ("1\n4096000",),
    ),
    "seccomp-errno": (
        lambda c, _: seccomp(c, deny("mkdir", errnoRet=38)),
        "mkdir /tmp/d",
        ("Function not implemented",),
    ),
    "seccomp-args": (
        lambda c, _: seccomp(c, deny("kill", args=[{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}])),
        "kill -10 1; trap '' USR2; kill -12 $$ && echo other",
        ("not permitted", "other"),
    ),
    "seccomp-with-new-privileges": (
        lambda c, _: (seccomp(c, deny("mkdir")), c["process"].update(noNewPrivileges=False, user={"uid": 9})),
        "mkdir /tmp/d; grep Seccomp: /proc/self/status",
        ("not permitted", "Seccomp:\t2"),
    ),
    "personality": (
        lambda c, _: c["linux"].update(personality={"domain": "LINUX32"}),
        "uname -m",
        ("i686",) if os.uname().machine == "x86_64" else ("armv8l",),
    ),
    "namespaces-new": (
        lambda c, _: None,
        "for n in pid net mnt ipc uts cgroup; do readlink /proc/self/ns/$n; done",
        tuple(f"!{os.readlink(f'/proc/self/ns/{n}')}" for n in ("pid", "net", "mnt", "ipc", "uts", "cgroup")),
    ),
    "namespace-path": (
        lambda c, _: (ns(c, "ipc", "/proc/self/ns/ipc"), ns(c, "uts", "/proc/self/ns/uts"), c.pop("hostname")),
        "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts",
        (os.readlink("/proc/self/ns/ipc"), os.readlink("/proc/self/ns/uts")),
    ),
    "namespace-absent": (
        lambda c, _: c["linux"].update(namespaces=[n for n in c["linux"]["namespaces"] if n["type"] != "ipc"]),
        "readlink /proc/self/ns/ipc",
        (os.readlink("/proc/self/ns/ipc"),),
    ),
    "user-namespace": (
        lambda c, _: user_ns(c),
        "id -u; cat /proc/self/uid_map; hostname other && hostname",
        ("0\n", "200000      65536"),
    ),
    "user-namespace-owns": (
        lambda c, _: (user_ns(c), caps(c, "CAP_SYS_ADMIN")),
        "hostname other && hostname; mount -t tmpfs x /tmp && echo mounted",
        ("other", "mounted"),
    ),
    "time-namespace": (
        lambda c, _: (ns(c, "time"), c["linux"].update(timeOffsets={"boottime": {"secs": 4_000_000_000}})),
        "cut -d. -f1 /proc/uptime | cut -c1-3",
        ("400",),  # whatever the machine's own uptime is
    ),
    "rootfs-propagation": (
        lambda c, _: c["linux"].update(rootfsPropagation="shared"),
        "grep ' / / \\| / ' /proc/self/mountinfo",
        ("shared:",),
    ),
    "cgroup-mount": (
        lambda c, _: None,
        "ls /sys/fs/cgroup/* | grep -c cgroup.procs; touch /sys/fs/cgroup/x",
        ("Read-only",),
    ),
    "resources-pids": (lambda c, _: limit(c, pids={"limit": 12}), "cat /sys/fs/cgroup/pids*/pids.max", ("12",)),
    "resources-memory": (
        lambda c, _: limit(c, memory={"limit": 50 << 20, "reservation": 20 << 20}),
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null",
        (str(50 << 20),),
    ),
    "resources-cpu": (
        lambda c, _: limit(c, cpu={"shares": 512, "quota": 20000, "period": 50000}),
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.max 2>/dev/null",
        ("20000",),
    ),
    "resources-cpuset": (
        lambda c, _: limit(c, cpu={"cpus": "0", "mems": "0"}),
        "grep Cpus_allowed_list /proc/self/status",
        (":\t0\n",),
    ),
    "annotations": (lambda c, _: c.update(annotations={"a.b": "c"}), "echo runs", ("runs",)),
    "version-1.0": (lambda c, _: c.update(ociVersion="1.0.2-dev"), "echo runs", ("runs",)),
    "unknown-property": (lambda c, _: c.update(someday={"x": 1}), "echo runs", ("runs",)),
}


@pytest.mark.parametrize("name", CASES)
def test_property(oci: OciLab, name: str) -> None:
    edit, script, expected = CASES[name]
    config = oci.config("sh", "-c", f"({script}) 2>&1")
    edit(config, oci)
    done = oci.run(config)
    for wanted in expected:
        if wanted.startswith("!"):
            assert wanted[1:] not in done.out, done
        else:
            assert wanted in done.out, done
    assert done.code in (0, 1), done
    assert oci.left() == []


# name: (what to change, what the error names)
REFUSED: dict[str, tuple[Edit, str]] = {
    "version 2": (lambda c, _: c.update(ociVersion="2.0.0"), "ociVersion"),
    "no version": (lambda c, _: c.pop("ociVersion"), "ociVersion: is missing"),
    "no root": (lambda c, _: c.pop("root"), "root"),
    "no args": (lambda c, _: c["process"].update(args=[]), "process.args"),
    "relative cwd": (lambda c, _: c["process"].update(cwd="x"), "process.cwd"),
    "wrong type": (lambda c, _: c["process"].update(terminal="yes"), "process.terminal: must be true or false"),
    "uid too large": (lambda c, _: c["process"].update(user={"uid": 1 << 32}), "process.user.uid"),
    "rootfs missing": (lambda c, _: c["root"].update(path="nowhere"), "nowhere is not a directory"),
    "namespace twice": (lambda c, _: c["linux"]["namespaces"].append({"type": "pid"}), "pid is given twice"),
    "namespace unknown": (lambda c, _: c["linux"]["namespaces"].append({"type": "moon"}), "'moon'"),
    "namespace path missing": (lambda c, _: ns(c, "ipc", "/run/nowhere"), "/run/nowhere: no such file"),
    "namespace path relative": (lambda c, _: ns(c, "ipc", "x"), "is not absolute"),
    "namespace of another kind": (lambda c, _: ns(c, "ipc", "/proc/self/ns/uts"), "is not a ipc namespace"),
    "namespace path a file": (lambda c, _: ns(c, "ipc", "/etc/passwd"), "is not a ipc namespace"),
    "no mount namespace": (
        lambda c, _: c["linux"].update(namespaces=[{"type": "pid"}]),
        "a mount namespace is needed",
    ),
    "mappings without namespace": (
        lambda c, _: c["linux"].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}]),
        "uidMappings",
    ),
    "user namespace without mappings": (lambda c, _: ns(c, "user"), "uidMappings"),
    "hostname without uts": (
        lambda c, _: c["linux"].update(namespaces=[n for n in c["linux"]["namespaces"] if n["type"] != "uts"]),
        "hostname",
    ),
    "rlimit unknown": (
        lambda c, _: c["process"].update(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
        "RLIMIT_X",
    ),
    "rlimit twice": (
        lambda c, _: c["process"].update(rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}] * 2),
        "given twice",
    ),
    "sysctl of the machine": (lambda c, _: c["linux"].update(sysctl={"kernel.core_pattern": "|/x"}), "whole machine"),
    "sysctl smuggled": (lambda c, _: c["linux"].update(sysctl={"net/../kernel/core_pattern": "|/x"}), "sysctl"),
    "sysctl with a value after +": (
        lambda c, _: c["linux"].update(sysctl={"kernel.shm_rmid_forced=1+kernel.x": "1"}),
        "sysctl",
    ),
    "bind source missing": (lambda c, _: bind(c, "/run/nowhere", "/m"), "/run/nowhere"),
    "mount of unknown type": (
        lambda c, _: c["mounts"].append({"destination": "/m", "type": "nosuchfs", "source": "x"}),
        "nosuchfs",
    ),
    "masked path through a link": (
        lambda c, lab: (
            (lab.rootfs / "link").unlink(True),
            (lab.rootfs / "link").symlink_to("etc"),
            c["linux"]["maskedPaths"].append("/link/passwd"),
        ),
        "link/passwd",
    ),
    "masked path relative": (lambda c, _: c["linux"]["maskedPaths"].append("proc/keys"), "maskedPaths"),
    "seccomp action": (lambda c, _: seccomp(c, defaultAction="SCMP_ACT_MAYBE"), "SCMP_ACT_MAYBE"),
    "seccomp notify by default": (lambda c, _: seccomp(c, defaultAction="SCMP_ACT_NOTIFY"), "default action"),
    "seccomp notify for write": (
        lambda c, _: seccomp(c, {"names": ["write"], "action": "SCMP_ACT_NOTIFY"}, listenerPath="/x"),
        "cannot be used for the write syscall",
    ),
    "seccomp flag": (lambda c, _: seccomp(c, flags=["X"]), "linux.seccomp.flags"),
    "apparmor": (lambda c, _: c["process"].update(apparmorProfile="nosuch-profile"), "nosuch-profile"),
    "selinux": (lambda c, _: c["process"].update(selinuxLabel="u:r:t:s0"), "u:r:t:s0"),
    "intel rdt": (lambda c, _: c["linux"].update(intelRdt={"closID": "x"}), "intelRdt"),
    "personality": (lambda c, _: c["linux"].update(personality={"domain": "BSD"}), "BSD"),
    "io priority": (lambda c, _: c["process"].update(ioPriority={"class": "X", "priority": 1}), "ioPriority"),
    "scheduler": (lambda c, _: c["process"].update(scheduler={"policy": "X"}), "scheduler"),
    "hook not absolute": (lambda c, _: c.update(hooks={"prestart": [{"path": "x"}]}), "hooks.prestart[0].path"),
    "hook timeout": (
        lambda c, _: c.update(hooks={"prestart": [{"path": "/x", "timeout": 0}]}),
        "hooks.prestart[0].timeout",
    ),
    "hook missing": (lambda c, _: c.update(hooks={"createRuntime": [{"path": "/run/nowhere"}]}), "/run/nowhere"),
    "pids limit of a device": (
        lambda c, _: limit(c, devices=[{"allow": True, "type": "z"}]),
        "linux.resources.devices[0].type",
    ),
    "program missing": (lambda c, _: c["process"].update(args=["nosuch"]), "executable file not found in $PATH"),
    "program path missing": (lambda c, _: c["process"].update(args=["/nosuch"]), "no such file or directory"),
    "program a directory": (lambda c, _: c["process"].update(args=["/etc"]), "is a directory"),
    "program not executable": (lambda c, _: c["process"].update(args=["/etc/passwd"]), "permission denied"),
    "terminal without socket": (lambda c, _: c["process"].update(terminal=True), "console-socket"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_left(oci: OciLab, name: str) -> None:
    edit, named = REFUSED[name]
    config = oci.config("true")
    edit(config, oci)
    oci.write(config)
    done = oci.call("create", "c")
    assert done.code == 1, done
    assert named in done.err, done
    assert done.err.count("\n") == 1, done
    assert oci.left() == []


def test_recursive_bind_keeps_what_is_mounted_below(oci: OciLab) -> None:
    config = oci.config("sh", "-c", "grep -c ' /m/' /proc/mounts")
    bind(config, "/sys", "/m", "rbind")
    assert int(oci.run(config).out) > 0


def test_tools_of_this_test_are_there() -> None:
    assert shutil.which("busybox")
