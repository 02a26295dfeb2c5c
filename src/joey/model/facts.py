"""What a host can do, as one value: found by joey.host.probe, explained by joey.host.doctor."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from joey.model.cgroup import CgroupLayout
from joey.model.resources import HostLimits
from joey.model.value import Value

MASKED_PROC = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
"""What a sandbox does not see of /proc: Docker's list (moby/profiles, `MaskedPaths`)."""

READONLY_PROC = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What it cannot write to: Docker's list (`ReadonlyPaths`)."""

QuotaMethod = Literal["project", "loop"]


class HostFacts(Value, frozen=True, kw_only=True):
    """One host at one time. Every ability was tried, not asked for; False or empty is the careful answer.

    arch                  machine of uname(2)
    kernel, release       (major, minor), and the whole string
    boot_id               /proc/sys/kernel/random/boot_id
    cpus, mems            numbers of what is online;  mem_total, swap_total: bytes
    cgroups               hierarchies usable by this process; cgroup_problems: what is there and cannot be used, and why
    proc_masked, proc_readonly   which of MASKED_PROC and READONLY_PROC exist here
    mount_api             fsopen, fsmount, move_mount, open_tree (Linux 5.2) work
    mount_setattr         (5.12) works
    overlay               overlay can be mounted with an upper directory on tmpfs
    idmap                 id-mapped mounts of the engine's file system work, also as overlay's lower layer (5.19)
    idmap_tmpfs           a tmpfs can be id-mapped itself (6.3)
    user_namespaces, net_namespaces, cgroup_namespaces   can be made
    clone3, pidfd, openat2, close_range   the system calls are there and not filtered
    seccomp               filters can be installed; seccomp_actions: names of kernel.seccomp.actions_avail
    devpts, mqueue        file systems that can be mounted
    quota                 how the size of a writable layer on disk can be bounded: project quotas of the file system it
                          is on, else an ext4 image of its own on a loop device (5.8, with mke2fs), else None
    capabilities_missing  capabilities this process has not in its effective set, of those the kernel knows
    rlimit_hard           RLIMIT name without prefix -> hard limit that cannot be exceeded; None is infinity. Where
                          CAP_SYS_RESOURCE lets limits be raised, only NOFILE is here: fs.nr_open bounds it
    lsm                   active security modules; selinux, apparmor: enforcing ones that need labels of their own
    sysctls               dotted name -> number, those that bound how many sandboxes fit
    python                why the Python that Joey runs on cannot be shown inside; "" when it can
    """

    arch: str
    kernel: tuple[int, int]
    release: str
    boot_id: str
    cpus: frozenset[int]
    mems: frozenset[int] = frozenset({0})
    mem_total: int
    swap_total: int = 0
    page_size: int = 4096
    cgroups: CgroupLayout
    cgroup_problems: tuple[str, ...] = ()
    proc_masked: tuple[str, ...] = ()
    proc_readonly: tuple[str, ...] = ()
    mount_api: bool = False
    mount_setattr: bool = False
    overlay: bool = False
    idmap: bool = False
    idmap_tmpfs: bool = False
    user_namespaces: bool = False
    net_namespaces: bool = False
    cgroup_namespaces: bool = False
    clone3: bool = False
    pidfd: bool = False
    openat2: bool = False
    close_range: bool = False
    seccomp: bool = False
    seccomp_actions: tuple[str, ...] = ()
    devpts: bool = False
    mqueue: bool = False
    quota: QuotaMethod | None = None
    capabilities_missing: tuple[str, ...] = ()
    rlimit_hard: dict[str, int | None] = field(default_factory=dict)
    lsm: tuple[str, ...] = ()
    selinux: bool = False
    apparmor: bool = False
    sysctls: dict[str, int] = field(default_factory=dict)
    python: str = ""

    @property
    def limits(self) -> HostLimits:
        """What Resources.validate checks a request against."""
        return HostLimits(cpus=self.cpus, mems=self.mems)
