"""File systems in files: an ext4 image of a given size on a loop device, for disk limits where there are no quotas.

A formatted image is made once for every size asked for and copied, holes and all. The device frees itself when the last
mount goes (LO_FLAGS_AUTOCLEAR), also when Joey is killed. Sources: loop(4), linux/loop.h, mke2fs(8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from joey.host import sys as kernel

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LO_FLAGS_AUTOCLEAR = 4
_TRIES = 64
SMALLEST = 2 << 20
"""Bytes; below that mke2fs has no room for its tables."""
# No journal: the content does not outlive a crash of the machine anyway. No reserved blocks: root could use them.
_MKE2FS = ("-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-I", "256", "-O", "^has_journal,^resize_inode")
_MKE2FS_JOURNAL = (*_MKE2FS[:-1], "^resize_inode")
_MKE2FS_FAST = ("-E", "lazy_itable_init=1,nodiscard,root_owner=0:0")


def supported() -> bool:
    """Whether loop devices can be had: one is asked for and given back unused, and mke2fs is there."""
    if mke2fs() is None:
        return False
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        os.close(os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC))
        return True
    except OSError:
        return False
    finally:
        os.close(control)


def mke2fs() -> str | None:
    """Path of mke2fs, which is seldom in an ordinary user's PATH; None if e2fsprogs is not installed."""
    for directory in (*os.get_exec_path(), "/usr/sbin", "/sbin"):
        if os.access(f"{directory}/mke2fs", os.X_OK):
            return f"{directory}/mke2fs"
    return None


def make_image(path: Path, size: int, templates: Path, *, journal: bool = False) -> None:
    """Write an empty ext4 image of `size` bytes to `path`. journal: what is in it shall outlive a crash of the machine.
    Raises OSError.
    """
    template = templates / f"{size}{'.journal' if journal else ''}.ext4"
    if not template.exists():
        _format(template, size, journal)
    _copy_sparse(template, path)


def _format(template: Path, size: int, journal: bool) -> None:
    import subprocess  # costs the start of every engine some milliseconds, and is seldom needed

    program = mke2fs()
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "mke2fs is not installed: install e2fsprogs", "mke2fs")
    fresh = template.with_name(f"{template.name}.{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            file.truncate(size)
        done = subprocess.run(
            [program, *(_MKE2FS_JOURNAL if journal else _MKE2FS), *_MKE2FS_FAST, str(fresh)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise OSError(errno.EIO, f"mke2fs failed: {done.stderr.strip()}", str(template))
        fresh.rename(template)
    finally:
        fresh.unlink(missing_ok=True)


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy what is not a hole; a fresh ext4 image is nearly all hole."""
    with open(source, "rb", buffering=0) as old, open(target, "xb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        os.truncate(new.fileno(), size)
        position = 0
        while position < size:
            try:
                start = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            position = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            while start < position:
                start += os.copy_file_range(old.fileno(), new.fileno(), position - start, start, start)


def mount_image(path: Path, *, journal: bool = False) -> int:
    """→ descriptor of a detached mount of the ext4 image at `path`: nosuid, nodev, noexec. Raises OSError."""
    image = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, name = _attach(image)
    finally:
        os.close(image)
    try:
        context = kernel.fsopen("ext4")
        try:
            kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, "source", name)
            # discard: what is deleted inside is freed on the host. noinit_itable: the tables are holes, that is zeros.
            for flag in ("discard", "noinit_itable", *(() if journal else ("nobarrier",))):
                kernel.fsconfig(context, kernel.FSCONFIG_SET_FLAG, flag)
            kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, "errors", "remount-ro")
            kernel.fsconfig(context, kernel.FSCONFIG_CMD_CREATE)
            attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
            return kernel.fsmount(context, attributes)
        finally:
            os.close(context)
    finally:
        os.close(device)  # the mount keeps it, or autoclear frees it


def _attach(image: int) -> tuple[int, str]:
    """(descriptor, path) of a loop device over the open file `image`. Raises OSError."""
    config = struct.pack("=II", image, 4096) + _info64() + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return device, name
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it first
                    raise OSError(error.errno, f"LOOP_CONFIGURE: {error.strerror}", name) from error
        raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")
    finally:
        os.close(control)


def _info64() -> bytes:
    """struct loop_info64: only the flags are set."""
    return struct.pack("=QQQQQIIII", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR) + bytes(64 + 64 + 32 + 16)
