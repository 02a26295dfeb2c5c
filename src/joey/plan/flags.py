"""Numbers of the kernel's ABI that plans use, and their names for people. The same on x86_64 and aarch64 unless noted;
sources: linux/mount.h, linux/sched.h, linux/openat2.h, asm-generic/fcntl.h, linux/prctl.h, asm-generic/resource.h."""

from __future__ import annotations

from joey.model.capabilities import CAPABILITIES

O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_NOCTTY = 0, 1, 2, 0o100, 0o200, 0o400
O_NONBLOCK, O_CLOEXEC, O_PATH = 0o4000, 0o2000000, 0o10000000
OPEN_FLAGS = {"wronly": O_WRONLY, "rdwr": O_RDWR, "creat": O_CREAT, "nonblock": O_NONBLOCK, "path": O_PATH}

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16
RESOLVE = {
    "no-xdev": RESOLVE_NO_XDEV, "no-magiclinks": RESOLVE_NO_MAGICLINKS, "no-symlinks": RESOLVE_NO_SYMLINKS,
    "beneath": RESOLVE_BENEATH, "in-root": RESOLVE_IN_ROOT,
}  # fmt: skip

AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, O_CLOEXEC
OPEN_TREE = {"clone": OPEN_TREE_CLONE, "recursive": AT_RECURSIVE}

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_IDMAP = 1, 2, 4, 8, 0x100000
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR = {
    "ro": MOUNT_ATTR_RDONLY, "nosuid": MOUNT_ATTR_NOSUID, "nodev": MOUNT_ATTR_NODEV, "noexec": MOUNT_ATTR_NOEXEC,
    "noatime": MOUNT_ATTR_NOATIME,
}  # fmt: skip

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 2, 4, 8, 32, 4096, 8192, 16384
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MOUNT_FLAGS = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "remount": MS_REMOUNT, "bind":
    MS_BIND, "move": MS_MOVE, "recursive": MS_REC, "private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED,
}  # fmt: skip
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
UMOUNT_FLAGS = {"detach": MNT_DETACH, "nofollow": UMOUNT_NOFOLLOW}

FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_VFORK, CLONE_PARENT = 0x100, 0x200, 0x400, 0x4000, 0x8000
CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x80, 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE = {
    "mount": CLONE_NEWNS, "pid": CLONE_NEWPID, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP, "user": CLONE_NEWUSER, "time": CLONE_NEWTIME, "vm": CLONE_VM, "vfork": CLONE_VFORK,
    "files": CLONE_FILES, "parent": CLONE_PARENT,
}  # fmt: skip

RLIMITS = (
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
    "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip
"""Indexed by number (getrlimit(2))."""
RLIM_INFINITY = (1 << 64) - 1

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 28, 38
PRCTL = {
    PR_SET_PDEATHSIG: "pdeathsig", PR_SET_DUMPABLE: "dumpable", PR_SET_KEEPCAPS: "keepcaps", PR_SET_SECUREBITS:
    "securebits", PR_SET_NO_NEW_PRIVS: "no_new_privs",
}  # fmt: skip

ROLE_STDIN, ROLE_STDOUT, ROLE_STDERR, ROLE_TERMINAL, ROLE_USERNS, ROLE_NETNS, ROLE_MNTNS = range(7)
ROLES = ("stdin", "stdout", "stderr", "terminal", "userns", "netns", "mntns", "7")


def names(bits: int, table: dict[str, int]) -> list[str]:
    """The names of the bits set, and what is left over as one hexadecimal number."""
    found = [name for name, bit in table.items() if bits & bit]
    for name in found:
        bits &= ~table[name]
    return [*found, hex(bits)] if bits else found


def join(*groups: list[str]) -> str:
    """All names behind one space each."""
    return "".join(f" {name}" for group in groups for name in group)


def limit(value: int) -> str:
    return "unlimited" if value == RLIM_INFINITY else str(value)


def capabilities(mask: int) -> str:
    """`chown,kill` for a mask; "none" and "all" for the extremes."""
    found = [name[4:].lower() for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
    return "none" if not found else "all" if len(found) == len(CAPABILITIES) else ",".join(found)


JOIN_V1 = "tasks"
"""A v1 cgroup is joined by its `tasks`, which moves the writing thread and nobody else (a child has no others): no lock
that keeps whole thread groups together is taken. By `cgroup.procs` one is (cgroup_threadgroup_rwsem), and who takes it
first for a while waits for a grace period of RCU, 10 ms and more (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
"""
