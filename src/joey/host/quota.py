"""Project quotas: a limit on what a directory tree of a shared file system may hold (ext4, xfs with prjquota).

Overlay writes with the credentials of whoever mounted it. A process with CAP_SYS_RESOURCE may exceed ext4's quotas, but
overlayfs takes that capability out of the credentials it keeps ("Never override disk quota limits or use reserved
space", ovl_fill_super in fs/overlayfs/super.c), so the limit holds for sandboxes. Sources: quotactl(2), ioctl_xfs
(FS_IOC_FSSETXATTR in linux/fs.h), linux/dqblk_xfs.h. One interface for both file systems: the generic quotactl_fd(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from joey.host import sys as kernel

_PRJQUOTA = 2
_Q_GETQUOTA, _Q_SETQUOTA = 0x800007, 0x800008
_Q_XGETQSTATV = (ord("X") << 8) + 8
_FS_QUOTA_PDQ_ENFD = 1 << 5
_QIF_BLIMITS = 1
_BLOCK = 1024  # unit of limits, QIF_DQBLKSIZE
_DQBLK = struct.Struct("=QQQQQQQQI4x")
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=IIIII8x")
_FS_XFLAG_PROJINHERIT = 0x200
_FIRST_ID = 0x4A000000  # "J"; far from what administrators number by hand
_IDS = 1 << 20


def enforced(directory: Path) -> bool:
    """Whether the file system of `directory` enforces project quotas."""
    block = ctypes.create_string_buffer(1024)
    block[0] = b"\x01"  # FS_QSTATV_VERSION1
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        kernel.quotactl_fd(fd, _command(_Q_XGETQSTATV), 0, block)
        return bool(int.from_bytes(block.raw[2:4], "little") & _FS_QUOTA_PDQ_ENFD)
    except OSError:
        return False
    finally:
        os.close(fd)


def limit(directory: Path, size: int) -> None:
    """Bound what will be below the empty `directory` to `size` bytes, under a project of its own. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        project = _project(fd) or _free_project(fd)
        block = ctypes.create_string_buffer(_DQBLK.size)
        blocks = max(1, size // _BLOCK)
        block.raw = _DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS)
        kernel.quotactl_fd(fd, _command(_Q_SETQUOTA), project, block)
        _set_project(fd, project)
    finally:
        os.close(fd)


def usage(directory: Path) -> int | None:
    """Bytes that the project of `directory` occupies, None if it has none."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        project = _project(fd)
        return None if project == 0 else _get(fd, project)[2]
    finally:
        os.close(fd)


def forget(directory: Path) -> None:
    """Take the limit of `directory`'s project away, so that its number can be used again. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        project = _project(fd)
        if project:
            block = ctypes.create_string_buffer(_DQBLK.size)
            block.raw = _DQBLK.pack(0, 0, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS)
            kernel.quotactl_fd(fd, _command(_Q_SETQUOTA), project, block)
    finally:
        os.close(fd)


def _command(number: int) -> int:
    return number << 8 | _PRJQUOTA


def _get(fd: int, project: int) -> tuple[int, int, int]:
    """(hard limit, soft limit, bytes used)."""
    block = ctypes.create_string_buffer(_DQBLK.size)
    try:
        kernel.quotactl_fd(fd, _command(_Q_GETQUOTA), project, block)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):  # never used
            return 0, 0, 0
        raise
    hard, soft, used, *_ = _DQBLK.unpack(block.raw)
    return hard, soft, used


def _free_project(fd: int) -> int:
    """A number without limits and files, found from the directory's inode number on, which is unique here."""
    start = os.fstat(fd).st_ino
    for step in range(1000):
        project = _FIRST_ID + (start + step) % _IDS
        if _get(fd, project) == (0, 0, 0):
            return project
    raise OSError(errno.ENOSPC, "no free project number for a disk quota")


def _project(fd: int) -> int:
    raw = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
    return int(_FSXATTR.unpack(raw)[3])


def _set_project(fd: int, project: int) -> None:
    raw = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
    flags, extent, extents, _, cow = _FSXATTR.unpack(raw)
    new = _FSXATTR.pack(flags | _FS_XFLAG_PROJINHERIT, extent, extents, project, cow)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, new)
