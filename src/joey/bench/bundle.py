"""The same sandbox for other runtimes: Joey's defaults as an OCI bundle and as a seccomp profile of Docker's format."""

from __future__ import annotations

from typing import Any

from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.facts import MASKED_PROC, READONLY_PROC
from joey.model.profiles import default_policy
from joey.model.resources import CPU_PERIOD_US, Resources
from joey.model.seccomp import ActionKind, SeccompPolicy
from joey.model.slot import IDS_PER_SLOT
from joey.model.syscalls import SCMP_ARCHES

NAMESPACES = ("mount", "pid", "uts", "ipc", "network", "user", "cgroup")
_SAFE = ["nosuid", "noexec", "nodev"]


def default_seccomp() -> SeccompPolicy:
    """The policy of a sandbox that asks for nothing."""
    return default_policy(frozenset(DEFAULT_CAPABILITIES))


def seccomp_profile(policy: SeccompPolicy, arch: str) -> dict[str, Any]:
    """`policy` as `linux.seccomp` of the OCI runtime specification (config-linux.md), for architecture `arch`.

    libseccomp cannot hold a rule with conditions and one without for the same call. Of such a pair the laxer is kept,
    so the filter is never stricter, nor longer, than ours. The answer to calls newer than the profile is left to the
    runtime.
    """
    lax = [rule for rule in policy.rules if rule.action.permits]
    always = {name for rule in lax if not rule.args for name in rule.names}
    sometimes = {name for rule in lax if rule.args for name in rule.names}
    calls = []
    for rule in policy.rules:
        if rule.action == policy.default_action:
            continue
        dropped = always if rule.args else (set() if rule.action.permits else sometimes)
        names = [name for name in rule.names if name not in dropped]
        if not names:
            continue
        entry: dict[str, Any] = {"names": names, "action": f"SCMP_ACT_{rule.action.kind.name}"}
        if rule.action.kind is ActionKind.ERRNO:
            entry["errnoRet"] = rule.action.data
        if rule.args:
            entry["args"] = [
                {"index": t.index, "op": f"SCMP_CMP_{t.op.name}", "value": t.value, "valueTwo": t.value_two}
                for t in rule.args
            ]
        calls.append(entry)
    return {
        "defaultAction": f"SCMP_ACT_{policy.default_action.kind.name}",
        "defaultErrnoRet": policy.default_action.data,
        "architectures": [name for name, known in SCMP_ARCHES.items() if known == arch],
        "syscalls": calls,
    }


def config(rootfs: str, argv: list[str], cgroup: str, base: int, arch: str) -> dict[str, Any]:
    """config.json of a bundle: the same namespaces, ids, limits, capabilities, seccomp policy and mounts as a sandbox
    with Joey's defaults.

    base: the host's id of id 0 inside. The root is read-only where Joey's is a writable overlay.
    """
    ids = [{"containerID": 0, "hostID": base, "size": IDS_PER_SLOT}]
    capabilities = sorted(DEFAULT_CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "root": {"path": rootfs, "readonly": True},
        "hostname": "bench",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": _mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in NAMESPACES],
            "uidMappings": ids,
            "gidMappings": ids,
            "resources": _resources(Resources.default()),
            "seccomp": seccomp_profile(default_seccomp(), arch),
            "maskedPaths": list(MASKED_PROC),
            "readonlyPaths": list(READONLY_PROC),
        },
    }


def _mounts() -> list[dict[str, Any]]:
    def one(target: str, kind: str, options: list[str]) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": kind, "options": options}

    return [
        one("/proc", "proc", _SAFE),
        one("/dev", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
        one("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        one("/dev/shm", "tmpfs", [*_SAFE, "mode=1777", "size=65536k"]),
        one("/sys", "sysfs", [*_SAFE, "ro"]),
    ]


def _resources(limits: Resources) -> dict[str, Any]:
    assert limits.memory is not None and limits.cpus is not None
    return {
        "memory": {"limit": limits.memory, "swap": limits.memory + (limits.swap or 0)},
        "cpu": {"quota": round(limits.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US},
        "pids": {"limit": limits.pids},
        "devices": [{"allow": False, "access": "rwm"}],
    }
