"""What `joey doctor` says: every ability of a host, what it costs to lack it, and how to get it. Pure.

missing: no sandbox can be started, or a barrier that Joey promises would not stand. limited: some requests are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from joey.model.cgroup import CgroupLayout
from joey.model.facts import HostFacts
from joey.model.units import format_size
from joey.model.views import Check

NEEDED_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_SETFCAP",
    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",
)  # fmt: skip
"""Without these the engine cannot do its work."""

_DESCRIPTORS_PER_SANDBOX = 3
_ENOUGH = 5000
"""Sandboxes on one machine that a default system should not be the limit for."""

# field of HostFacts -> (what it is, what is lost, how to get it)
_NEEDED = {
    "user_namespaces": (
        "user namespaces", "sandboxes cannot have ids of their own",
        "a kernel with CONFIG_USER_NS, and user.max_user_namespaces above 0",
    ),
    "net_namespaces": ("network namespaces", "sandboxes cannot be cut off the network", "a kernel with CONFIG_NET_NS"),
    "cgroup_namespaces": (
        "cgroup namespaces", "sandboxes would see the host's cgroups", "a kernel with CONFIG_CGROUPS (4.6 or newer)",
    ),
    "mount_api": ("the mount API", "no root file system can be built", "Linux 5.2 or newer"),
    "mount_setattr": ("mount_setattr", "mounts cannot be made read-only and id-mapped", "Linux 5.12 or newer"),
    "overlay": ("overlay file system", "no root file system can be built", "modprobe overlay (CONFIG_OVERLAY_FS)"),
    "idmap": (
        "id-mapped layers", "images cannot be shared between sandboxes with ids of their own",
        "Linux 5.19 or newer, and a file system for JOEY_HOME that supports it (ext4, xfs, btrfs)",
    ),
    "clone3": (
        "clone3", "the launcher cannot start processes", "Linux 5.5; a seccomp filter around Joey must let it pass",
    ),
    "pidfd": ("pidfd_open", "processes cannot be watched without races", "Linux 5.3 or newer"),
    "openat2": ("openat2", "paths of an image cannot be opened safely", "Linux 5.6 or newer"),
    "close_range": ("close_range", "descriptors cannot be kept out of sandboxes", "Linux 5.9 or newer"),
    "seccomp": ("seccomp filters", "system calls cannot be restricted", "a kernel with CONFIG_SECCOMP_FILTER"),
    "devpts": ("pseudo-terminals", "-t does not work", "a kernel with CONFIG_UNIX98_PTYS"),
}  # fmt: skip
_USEFUL = {
    "mqueue": ("POSIX message queues", "programs that use them fail", "a kernel with CONFIG_POSIX_MQUEUE"),
}  # fmt: skip

# ability of a CgroupLayout -> (needed, what is lost, how to get it)
_ENABLE = "enable it in cgroup.subtree_control (v2) or mount its hierarchy (v1)"
_CONTROLLERS = {
    "memory": (True, "a sandbox could take all memory", f"{_ENABLE}; some kernels want cgroup_enable=memory at boot"),
    "cpu": (True, "a sandbox could take all CPU time", _ENABLE),
    "pids": (True, "a fork bomb could fill the process table", _ENABLE),
    "freezer": (True, "sandboxes cannot be paused, nor killed without a race", _ENABLE),
    "devices": (False, "device rules are refused", "a kernel with CONFIG_CGROUP_BPF, or mount v1 devices"),
    "cpuset": (False, "cpuset_cpus and cpuset_mems are refused", _ENABLE),
    "io": (False, "io_weight and io_limits are refused", f"{_ENABLE}; CONFIG_BLK_CGROUP"),
    "usage": (False, "stats show no CPU time", "mount the v1 cpuacct hierarchy"),
}  # fmt: skip

# sysctl -> (how many a sandbox takes, what is counted)
_COUNTED = {
    "kernel.pid_max": (2, "processes"),
    "kernel.threads-max": (2, "threads"),
    "user.max_user_namespaces": (1, "user namespaces"),
    "user.max_net_namespaces": (1, "network namespaces"),
    "user.max_mnt_namespaces": (1, "mount namespaces"),
    "user.max_pid_namespaces": (1, "pid namespaces"),
    "user.max_ipc_namespaces": (1, "ipc namespaces"),
    "user.max_uts_namespaces": (1, "uts namespaces"),
    "user.max_cgroup_namespaces": (1, "cgroup namespaces"),
}


def examine(facts: HostFacts) -> tuple[Check, ...]:
    """Every check, in the order in which they are worth reading."""
    return (
        *_machine(facts),
        *_abilities(facts),
        *_controllers(facts.cgroups),
        *_swap(facts),
        *(
            Check(name="cgroup", state="limited", found=problem, remedy="make it writable for the engine")
            for problem in facts.cgroup_problems
        ),
        *_disk(facts),
        *_room(facts),
        *_surroundings(facts),
    )


def usable(checks: tuple[Check, ...]) -> bool:
    """Whether sandboxes can be started at all."""
    return all(check.state != "missing" for check in checks)


def _machine(facts: HostFacts) -> Iterator[Check]:
    text = f"Linux {facts.release} on {facts.arch}, {len(facts.cpus)} CPUs, {format_size(facts.mem_total)}"
    if facts.arch not in ("x86_64", "aarch64"):
        yield Check(name="machine", state="missing", found=f"{text}: no system call tables", remedy="x86_64 or aarch64")
    elif facts.kernel < (5, 19):
        yield Check(name="machine", state="missing", found=f"{text}: too old", remedy="Linux 5.19 or newer")
    else:
        yield Check(name="machine", state="ok", found=text)
    lost = [name for name in NEEDED_CAPABILITIES if name in facts.capabilities_missing]
    if lost:
        remedy = "run the engine as root; in a container give it these capabilities"
        yield Check(name="privilege", state="missing", found=f"without {', '.join(lost)}", remedy=remedy)
    elif facts.capabilities_missing:
        found = f"root without {', '.join(facts.capabilities_missing)}"
        if "CAP_SYS_RESOURCE" in facts.capabilities_missing:
            found += ": rlimits above the engine's own hard limits are refused"
        yield Check(name="privilege", state="limited", found=found, remedy="give the engine all capabilities")
    else:
        yield Check(name="privilege", state="ok", found="all capabilities")


def _abilities(facts: HostFacts) -> Iterator[Check]:
    for field, (name, cost, remedy) in _NEEDED.items():
        yield _ability(name, getattr(facts, field), "missing", cost, remedy)
    for field, (name, cost, remedy) in _USEFUL.items():
        yield _ability(name, getattr(facts, field), "limited", cost, remedy)
    if facts.seccomp and "user_notif" not in facts.seccomp_actions:
        yield Check(
            name="seccomp notify", state="limited", found="policies with NOTIFY are refused", remedy="Linux 5.0"
        )


def _ability(name: str, there: bool, otherwise: str, cost: str, remedy: str) -> Check:
    if there:
        return Check(name=name, state="ok", found="works")
    return Check(name=name, state="missing" if otherwise == "missing" else "limited", found=cost, remedy=remedy)


def _controllers(layout: CgroupLayout) -> Iterator[Check]:
    for ability, (needed, cost, remedy) in _CONTROLLERS.items():
        hierarchy = layout.of(ability)
        if hierarchy is None:
            yield _ability(f"cgroup {ability}", False, "missing" if needed else "limited", cost, remedy)
        else:
            yield Check(name=f"cgroup {ability}", state="ok", found=f"v{hierarchy.version} {hierarchy.mount}")
    if layout.into is None:
        yield Check(
            name="cgroup v2", state="limited", found="children join their cgroups one by one, which is slower",
            remedy="mount -t cgroup2 none /sys/fs/cgroup/unified",
        )  # fmt: skip


def _swap(facts: HostFacts) -> Iterator[Check]:
    memory = facts.cgroups.of("memory")
    if facts.swap_total == 0:
        yield Check(name="swap", state="ok", found="none: memory limits are hard")
    elif memory is not None and (memory.has("memory.swap.max") or memory.has("memory.memsw.limit_in_bytes")):
        yield Check(name="swap", state="ok", found=f"{format_size(facts.swap_total)}, accounted")
    else:
        yield Check(
            name="swap", state="missing", found=f"{format_size(facts.swap_total)}, not accounted: a limit of swap, also"
            " the default one, is refused", remedy="boot with swapaccount=1, or swapoff -a",
        )  # fmt: skip


def _disk(facts: HostFacts) -> Iterator[Check]:
    if facts.quota == "project":
        yield Check(name="disk limits", state="ok", found="project quotas")
    elif facts.quota == "loop":
        yield Check(
            name="disk limits", state="ok", found="an ext4 image on a loop device for each sandbox with a disk limit;"
            " project quotas would be cheaper",
        )  # fmt: skip
    else:
        yield Check(
            name="disk limits", state="limited", found="resources.disk with storage disk is refused",
            remedy="mount JOEY_HOME's file system with prjquota (ext4, xfs); or install e2fsprogs and modprobe loop",
        )  # fmt: skip


def _room(facts: HostFacts) -> Iterator[Check]:
    """What of the host's tables would be full first."""
    least, why, name = min(
        ((facts.sysctls[name] // each, what, name) for name, (each, what) in _COUNTED.items() if name in facts.sysctls),
        default=(_ENOUGH, "", ""),
    )
    if least < _ENOUGH:
        cost = f"about {least} sandboxes, then there are no more {why} ({name})"
        yield Check(name="room", state="limited", found=cost, remedy=f"raise {name}")
    else:
        yield Check(name="room", state="ok", found=f"tables for {least} sandboxes" if name else "not limited")
    descriptors = facts.rlimit_hard.get("NOFILE")
    if descriptors is not None:
        found = f"{descriptors}: about {descriptors // _DESCRIPTORS_PER_SANDBOX} sandboxes a launcher"
        enough = descriptors // _DESCRIPTORS_PER_SANDBOX >= _ENOUGH
        remedy = "" if enough else "raise the hard limit of open files of the engine (ulimit -Hn, LimitNOFILE=)"
        yield Check(name="descriptors", state="ok" if enough else "limited", found=found, remedy=remedy)


def _surroundings(facts: HostFacts) -> Iterator[Check]:
    active = [name for name, there in (("selinux", facts.selinux), ("apparmor", facts.apparmor)) if there]
    if active:
        found = f"{' and '.join(active)} active: sandboxes run under the engine's own label and profile"
        yield Check(name="security modules", state="ok", found=found)
    if facts.python:
        yield Check(
            name="image host", state="limited", found=f"shows only the Python in /usr: {facts.python}",
            remedy="make its files readable for everybody (chmod -R a+rX), or run Joey on another Python",
        )  # fmt: skip
    else:
        yield Check(name="image host", state="ok", found="this machine's own userland, with the Python Joey runs on")
