"""System calls that Python lacks: one thin function each, under the kernel's name, arguments as in its manual page.

All raise OSError with the call's name in its text and, where there is one, the path. Numbers are the kernel's
(arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h for aarch64), because the libraries of the
systems Joey runs on know few of these calls. What is newer than 5.0 has the same number everywhere.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_MACHINE = os.uname().machine
# x86_64, aarch64; those below are the same on both.
_OLD = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "unshare": (272, 97),
    "sethostname": (161, 161),
    "syncfs": (306, 267),
    "renameat2": (316, 276),
    "statx": (332, 291),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "capget": (125, 90),
}
_NEW = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}
_COLUMN = {"x86_64": 0, "aarch64": 1}

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_MOVE, MS_REC = 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_BINARY, FSCONFIG_SET_PATH = 0, 1, 2, 3
FSCONFIG_SET_PATH_EMPTY, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE = 4, 5, 6, 7
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOSYMFOLLOW = 0x10, 0x100000, 0x200000

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_CACHED = 8, 0x10, 0x20
STATX_BTIME, STATX_ATTR_MOUNT_ROOT = 0x800, 0x2000
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def number(name: str) -> int:
    """The number of a system call on this machine. Raises OSError ENOSYS on an architecture Joey does not know."""
    if name in _NEW:
        return _NEW[name]
    if _MACHINE not in _COLUMN:
        raise OSError(38, f"{name}: Joey does not know the system calls of {_MACHINE}")
    return _OLD[name][_COLUMN[_MACHINE]]


def call(name: str, *args: object, path: str | bytes | os.PathLike[str] | None = None) -> int:
    """System call `name`. Integers go as long, bytes as char *, None as NULL. Raises OSError naming call and `path`."""
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _syscall(ctypes.c_long(number(name)), *converted)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", *(() if path is None else (path,)))
    return result


def _bytes(path: str | os.PathLike[str]) -> bytes:
    return os.fsencode(path)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)"""
    texts = [None if text is None else _bytes(text) for text in (source, target, kind, data)]
    call("mount", *texts[:3], flags, texts[3], path=target)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2); symbolic links are not followed."""
    call("umount2", _bytes(target), flags | UMOUNT_NOFOLLOW, path=target)


def open_tree(dirfd: int, path: str | os.PathLike[str], flags: int) -> int:
    """open_tree(2); → descriptor, close-on-exec."""
    return call("open_tree", dirfd, _bytes(path), flags | OPEN_TREE_CLOEXEC, path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """move_mount(2)"""
    call("move_mount", from_fd, _bytes(from_path), to_fd, _bytes(to_path), flags, path=to_path or from_path)


def fsopen(kind: str) -> int:
    """fsopen(2); → descriptor of a configuration, close-on-exec."""
    return call("fsopen", _bytes(kind), FSOPEN_CLOEXEC, path=kind)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """fsconfig(2)"""
    texts = [None if text is None else _bytes(text) for text in (key, value)]
    call("fsconfig", fd, command, *texts, aux, path=key)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2); → descriptor of a detached mount, close-on-exec."""
    return call("fsmount", fd, FSMOUNT_CLOEXEC, attributes)


def mount_setattr(
    dirfd: int, path: str, flags: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    """mount_setattr(2)"""
    attr = (ctypes.c_uint64 * 4)(set_, clear, propagation, userns_fd)
    call("mount_setattr", dirfd, _bytes(path), flags, ctypes.byref(attr), ctypes.sizeof(attr), path=path)


def openat2(dirfd: int, path: str | os.PathLike[str], flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); → descriptor, close-on-exec. `resolve`: RESOLVE_*."""
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, mode, resolve)
    return call("openat2", dirfd, _bytes(path), ctypes.byref(how), ctypes.sizeof(how), path=path)


def setns(fd: int, kind: int) -> None:
    """setns(2)"""
    call("setns", fd, kind)


def unshare(flags: int) -> None:
    """unshare(2)"""
    call("unshare", flags)


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2); → descriptor, close-on-exec."""
    return call("pidfd_open", pid, flags)


def pidfd_send_signal(fd: int, signal: int) -> None:
    """pidfd_send_signal(2)"""
    call("pidfd_send_signal", fd, signal, None, 0)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2)"""
    call("close_range", first, last, flags)


def syncfs(fd: int) -> None:
    """syncfs(2): everything written to the file system that holds `fd` is on disk."""
    call("syncfs", fd)


def renameat2(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int = 0) -> None:
    """rename(2), with RENAME_*."""
    call("renameat2", from_fd, _bytes(from_path), to_fd, _bytes(to_path), flags, path=to_path)


def statx(path: str | os.PathLike[str], flags: int, mask: int) -> bytes:
    """statx(2); → struct statx."""
    block = ctypes.create_string_buffer(256)
    call("statx", AT_FDCWD, _bytes(path), flags | AT_NO_AUTOMOUNT, mask, block, path=path)
    return block.raw


def birth_time(path: str | os.PathLike[str]) -> int | None:
    """When the inode was made, nanoseconds since the epoch; None where that is not kept."""
    block = statx(path, 0, STATX_BTIME)
    if not int.from_bytes(block[0:4], "little") & STATX_BTIME:
        return None
    return int.from_bytes(block[80:88], "little") * 10**9 + int.from_bytes(block[88:92], "little")


def is_mount_root(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is the root of a mount, also of a bind within one file system (Linux 5.8)."""
    attributes, known = struct.unpack_from("=Q40xQ", statx(path, AT_SYMLINK_NOFOLLOW, 0), 8)
    return bool(attributes & known & STATX_ATTR_MOUNT_ROOT)


def quotactl_fd(fd: int, command: int, identity: int, block: ctypes.Array[ctypes.c_char]) -> None:
    """quotactl_fd(2) (Linux 5.14): `block` is read or filled according to `command`."""
    call("quotactl_fd", fd, command, identity, block)
