"""Requests that cannot be fulfilled: each is refused with the field or step that is wrong and the exit code of
`joey run`, and leaves nothing, not even its name.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from joey.model import codec
from joey.model.errors import Invalid, JoeyError
from joey.model.resources import Resources
from joey.model.spec import Device, Mount, Process, Rlimit, SandboxSpec, Tmpfs
from joey.native import binary
from machine_state import nothing_new, rows, settled

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def slots() -> int:
    return 0


def host(*argv: str, **more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=argv or ("true",)), **more)


def process(**more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=("true",), **more))


def limits(**more: object) -> SandboxSpec:
    return host(resources=Resources(**more))


# spec, where of the error, words of it, exit code
TABLE: dict[str, tuple[SandboxSpec, str, str, int]] = {
    "unknown image": (SandboxSpec(image="nope", pull="never"), "image", "nope", 125),
    "no image": (SandboxSpec(process=Process(argv=("true",))), "image", "give either", 125),
    "two images": (SandboxSpec(image="host", rootfs="/x"), "image", "not both", 125),
    "rootfs that is not there": (SandboxSpec(rootfs="/nowhere"), "rootfs", "No such file", 125),
    "rootfs that is a file": (SandboxSpec(rootfs="/etc/passwd"), "rootfs", "not a directory", 125),
    "rootfs that is relative": (SandboxSpec(rootfs="here"), "rootfs", "not an absolute path", 125),
    "rootfs with our state in it": (SandboxSpec(rootfs="/"), "rootfs", "holds Joey's own state", 125),
    "rootfs that cannot carry ids": (SandboxSpec(rootfs="/proc/self"), "", "", 125),
    "missing program": (host("nonesuch"), "argv", "'nonesuch': not found in PATH", 127),
    "missing program by path": (host("/bin/nonesuch"), "argv", "'/bin/nonesuch': not found", 127),
    "missing directory of a program": (host("/nowhere/sh"), "argv", "not found", 127),
    "program that is a file": (host("/etc/passwd"), "argv", "cannot be executed", 126),
    "program that is a directory": (host("/etc"), "argv", "cannot be executed", 126),
    "no program": (
        SandboxSpec(image="host", process=Process(tty=True), entrypoint=()), "argv", "names no program", 125,
    ),
    "name that is none": (host(name="a b"), "name", "not a name", 125),
    "name too long": (host(name="n" * 129), "name", "not a name", 125),
    "name taken": (host(name="taken"), "name", "'taken' is taken", 125),
    "hostname too long": (host(hostname="h" * 65), "hostname", "", 125),
    "unknown user": (process(user="nobody-here"), "user", "nobody-here", 125),
    "unknown group": (process(user="0:no-group"), "user", "no-group", 125),
    "user out of range": (process(user="65536"), "user", "only the ids 0 to 65535", 125),
    "group out of range": (process(groups=(70000,)), "user", "outside", 125),
    "cwd that is a file": (process(cwd="/etc/passwd"), "cwd", "/etc/passwd", 125),
    "cwd that is relative": (process(cwd="etc"), "cwd", "", 125),
    "unknown capability": (process(capabilities=("CAP_FLY",)), "capabilities", "CAP_FLY", 125),
    "capability without effect": (process(capabilities=("CAP_SYS_TIME",)), "capabilities", "sys_time", 125),
    "unknown rlimit": (process(rlimits=(Rlimit(name="FOO", soft=1, hard=1),)), "rlimits", "FOO", 125),
    "rlimit upside down": (process(rlimits=(Rlimit(name="CORE", soft=2, hard=1),)), "rlimits", "above hard", 125),
    "umask too large": (process(umask=0o10000), "umask", "", 125),
    "NUL in an argument": (host("true", "a\0b"), "argv", "NUL", 125),
    "NUL in the environment": (process(env={"A": "x\0y"}), "env", "NUL", 125),
    "equals sign in a variable": (process(env={"A=B": "x"}), "env", "A=B", 125),
    "unknown signal": (host(stop_signal="SIGFOO"), "stop_signal", "SIGFOO", 125),
    "mount source that is not there": (
        host(mounts=(Mount(source="/nowhere", target="/m"),)), "mounts[0].source", "/nowhere", 125,
    ),
    "mount source that is relative": (
        host(mounts=(Mount(source="x", target="/m"),)), "mounts[0].source", "not an absolute path", 125,
    ),
    "mount target that is relative": (host(mounts=(Mount(source="/usr", target="m"),)), "mounts", "'m'", 125),
    "mount over /": (host(mounts=(Mount(source="/usr", target="/"),)), "mounts", "other than /", 125),
    "file mounted on a directory": (
        host(mounts=(Mount(source="/etc/hostname", target="/usr", idmap=False),)), "mounts", "/usr", 125,
    ),
    "directory mounted on a file": (
        host(mounts=(Mount(source="/usr/share", target="/etc/passwd", idmap=False),)), "mounts", "/etc/passwd", 125,
    ),
    "mount that cannot carry ids": (host(mounts=(Mount(source="/proc", target="/m"),)), "", "noidmap", 125),
    "tmpfs target that is relative": (host(tmpfs=(Tmpfs(target="t"),)), "tmpfs", "'t'", 125),
    "tmpfs target of dots": (host(tmpfs=(Tmpfs(target="/../t"),)), "", "", 125),
    "too many mounts": (
        host(mounts=tuple(Mount(source="/usr", target=f"/m{i}", idmap=False) for i in range(40))), "mounts", "40", 125,
    ),
    "device that is not there": (host(devices=(Device(path="/dev/nope"),)), "devices[0].path", "/dev/nope", 125),
    "device that is none": (host(devices=(Device(path="/etc/passwd"),)), "devices[0].path", "not a device", 125),
    "device access": (host(devices=(Device(path="/dev/null", access="x"),)), "devices[0].access", "", 125),
    "memory below what the kernel takes": (limits(memory=1), "resources.memory", "", 125),
    "no processes": (limits(pids=0), "resources.pids", "", 125),
    "cpus below what the kernel takes": (limits(cpus=0.000001), "resources.cpus", "", 125),
    "processors that are not there": (limits(cpuset_cpus="900"), "resources.cpuset_cpus", "900", 125),
    "list of processors that is none": (limits(cpuset_cpus="a-b"), "resources.cpuset_cpus", "", 125),
    "disk too small for a file system": (
        host(storage="disk", resources=Resources(disk=4096)), "resources.disk", "", 125,
    ),
    "shm of nothing": (host(shm_size=-1), "shm_size", "", 125),
    "sysctl of the machine": (host(sysctls={"vm.swappiness": "1"}), "sysctls.vm.swappiness", "whole machine", 125),
    "sysctl with a path": (host(sysctls={"net/../../x": "1"}), "sysctls.net/../../x", "not the name", 125),
    "sysctl that is not there": (host(sysctls={"net.core.nope": "1"}), "sysctls.net.core.nope", "No such file", 125),
    "sysctl with a bad value": (
        host(sysctls={"net.core.somaxconn": "x"}), "sysctls.net.core.somaxconn", "Invalid argument", 125,
    ),
    "oom_score_adj out of range": (host(oom_score_adj=2000), "oom_score_adj", "", 125),
    "masked path that is relative": (host(masked_paths=("proc",)), "masked_paths", "", 125),
}  # fmt: skip


@pytest.fixture(scope="module")
def before(lab) -> dict[str, object]:
    """What the engine holds besides one sandbox that has its name taken."""

    lab.do(lab.engine.run(host("sleep", "1000", name="taken")))
    return lab.do(settled(lab, host()))


@pytest.mark.parametrize("case", TABLE)
def test_refused(lab, before, case):
    spec, where, words, code = TABLE[case]
    if not spec.name:
        spec = replace(spec, name="refused")

    async def ask() -> JoeyError:
        with pytest.raises(JoeyError) as failed:
            await lab.engine.run(spec)
        await nothing_new(lab.engine, before)
        await lab.engine.store.flush()
        assert rows(lab.engine) == 1
        return failed.value

    error = lab.do(ask())
    assert error.exit_code == code, repr(error)
    assert error.where.startswith(where) and words in f"{error} {error.remedy}", f"{error} ({error.remedy})"
    assert error.message and "\n" not in str(error)


def test_a_system_call_that_is_none():
    """Policies refuse it where they are made: in a request, with the field."""
    rule = {"names": ["fly_away"], "action": {"kind": 0x80000000}}
    policy = {"default_action": {"kind": 0x7FFF0000}, "rules": [rule]}
    with pytest.raises(Invalid, match="unknown system call 'fly_away'") as failed:
        codec.decode(SandboxSpec, codec.encode({"image": "host", "seccomp": policy}))
    assert failed.value.where.startswith("seccomp")


def test_a_program_of_another_format(lab, before, tmp_path):
    """Not a program at all, and one whose interpreter is missing (execve(2): ENOEXEC, ENOENT)."""
    (tmp_path / "none").write_bytes(b"\x7fNOT")
    (tmp_path / "script").write_text("#!/nowhere/interpreter\n")
    (tmp_path / "plain").write_bytes(binary("joey-probe").read_bytes())
    for path in tmp_path.iterdir():
        path.chmod(0o755 if path.name != "plain" else 0o644)
    codes = {}
    for name in ("none", "script", "plain"):
        with pytest.raises(JoeyError) as failed:
            lab.do(lab.engine.run(SandboxSpec(rootfs=str(tmp_path), process=Process(argv=(f"/{name}",)))))
        codes[name] = failed.value.exit_code
        assert f"/{name}" in str(failed.value)
    assert codes == {"none": 126, "script": 127, "plain": 126}


def test_a_root_file_system_whose_parts_are_links_or_files(lab, tmp_path):
    """Mount points that lead elsewhere are refused, not followed."""
    for place, make in (("proc", "link"), ("dev", "link"), ("sys", "file"), ("proc", "file")):
        root = tmp_path / f"{place}-{make}"
        root.mkdir()
        (root / "true").write_bytes(binary("joey-probe").read_bytes())
        (root / "true").chmod(0o755)
        if make == "link":
            (root / "elsewhere").mkdir()
            (root / place).symlink_to("elsewhere")
        else:
            (root / place).write_text("")
        with pytest.raises(JoeyError) as failed:
            lab.do(lab.engine.run(SandboxSpec(rootfs=str(root), process=Process(argv=("/true",)))))
        assert f"/{place}" in str(failed.value), str(failed.value)


def test_a_root_file_system_without_anything(lab, tmp_path):
    with pytest.raises(JoeyError) as failed:
        lab.do(lab.engine.run(SandboxSpec(rootfs=str(tmp_path))))
    assert failed.value.exit_code == 127 and "/bin/sh" in str(failed.value)
    assert not list(Path(tmp_path).iterdir()) and os.path.isdir(tmp_path)
