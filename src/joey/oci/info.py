"""spec and features: what a configuration looks like, and what this runtime knows (features.md, features-linux.md)."""

from __future__ import annotations

from joey.client import jsontext
from joey.model.capabilities import CAPABILITIES
from joey.oci import seccomp, state
from joey.oci import system as os
from joey.plan import oci
from joey.plan.oci_options import KNOWN

_CAPS = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_SAFE = ["nosuid", "noexec", "nodev"]


def spec(rootless=False, unified=None):
    """The text of a config.json to begin with, as `runc spec` writes it: with a cgroup namespace where cgroup v2 is
    alone. unified: whether it is; None: this host's.
    """
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *([] if rootless else ["gid=5"])]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*_SAFE, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _SAFE},
    ]  # fmt: skip
    if rootless:
        mounts.append({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", *_SAFE, "ro"]})
    else:
        mounts.append({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_SAFE, "ro"]})
        mounts.append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                       "options": [*_SAFE, "relatime", "ro"]})  # fmt: skip
    kinds = ["pid", "ipc", "uts", "mount", "user" if rootless else "network"]
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers") if unified is None else unified:
        kinds.insert(4, "cgroup")
    linux = {"resources": {"devices": [{"allow": False, "access": "rwm"}]}} if not rootless else {}
    if rootless:
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    linux["maskedPaths"] = [
        "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
        "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
    ]  # fmt: skip
    linux["readonlyPaths"] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    config = {
        "ociVersion": state.SPEC,
        "process": {
            "terminal": True, "user": {"uid": 0, "gid": 0}, "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": {"bounding": _CAPS, "effective": _CAPS, "permitted": _CAPS},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}], "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "joey",
        "mounts": mounts,
        "linux": linux,
    }  # fmt: skip
    return jsontext.pretty(config) + "\n"


def features():
    """What this runtime knows, whatever the host has of it (features.md: "determined on the compilation time")."""
    flags = sorted(seccomp.FLAGS)
    found = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": state.SPEC,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": list(KNOWN),
        "linux": {
            "namespaces": sorted(oci.NAMESPACES),
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": _archs(),
                "knownFlags": flags, "supportedFlags": flags,
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"io.joey.version": _version()},
        "potentiallyUnsafeConfigAnnotations": ["run.oci.keep_original_groups"],
    }  # fmt: skip
    return jsontext.pretty(found)


def _archs():
    if os.uname().machine == "aarch64":
        return ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    return ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]


def _version():
    from joey import __version__

    return __version__


def version():
    return f"joey-oci version {_version()}\nspec: {state.SPEC}"
