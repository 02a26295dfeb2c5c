"""What changed between two trees: of two images, each as one directory (joey.images.layers)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec

from joey.model.errors import from_os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE = 1 << 20


class Change(msgspec.Struct, frozen=True):
    """kind: A (added), C (changed: content, kind, mode, owner, link target, attributes), D (deleted). size: bytes of
    the file that is there now. Times alone are no change.
    """

    kind: str
    path: str
    size: int = 0


def compare(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Iterator[Change]:
    """In order of path; what lies below an added or deleted directory is not listed again. Raises HostFailed …"""
    opened: list[int] = []
    try:
        for path in (old, new):
            opened.append(os.open(path, _DIRECTORY))
        yield from _walk(opened[0], opened[1], "/")
    except OSError as error:
        raise from_os("compare images", error) from error
    finally:
        for fd in opened:
            os.close(fd)


def _walk(old: int, new: int, prefix: str) -> Iterator[Change]:
    before, after = set(os.listdir(old)), set(os.listdir(new))
    for name in sorted(before | after):
        path = prefix + name
        if name not in after:
            yield Change("D", path)
            continue
        now = os.stat(name, dir_fd=new, follow_symlinks=False)
        size = now.st_size if stat.S_ISREG(now.st_mode) else 0
        if name not in before:
            yield Change("A", path, size)
            continue
        then = os.stat(name, dir_fd=old, follow_symlinks=False)
        if (then.st_dev, then.st_ino) == (now.st_dev, now.st_ino):
            continue
        if not stat.S_ISDIR(then.st_mode) or not stat.S_ISDIR(now.st_mode):
            if _differs(old, new, name, then, now):
                yield Change("C", path, size)
            continue
        inner = [os.open(name, _DIRECTORY, dir_fd=old)]
        try:
            inner.append(os.open(name, _DIRECTORY, dir_fd=new))
            if _owner(then) != _owner(now) or _attributes(inner[0]) != _attributes(inner[1]):
                yield Change("C", path)
            yield from _walk(inner[0], inner[1], f"{path}/")
        finally:
            for fd in inner:
                os.close(fd)


def _owner(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid


def _differs(old: int, new: int, name: str, then: os.stat_result, now: os.stat_result) -> bool:
    if _owner(then) != _owner(now) or then.st_rdev != now.st_rdev:
        return True
    if stat.S_ISLNK(now.st_mode):
        return os.readlink(name, dir_fd=old) != os.readlink(name, dir_fd=new)
    if not stat.S_ISREG(now.st_mode):
        return False
    if then.st_size != now.st_size:
        return True
    with (
        os.fdopen(os.open(name, _FILE, dir_fd=old), "rb") as one,
        os.fdopen(os.open(name, _FILE, dir_fd=new), "rb") as two,
    ):
        if _attributes(one.fileno()) != _attributes(two.fileno()):
            return True
        while data := one.read(_PIECE):
            if data != two.read(_PIECE):
                return True
    return False


def _attributes(fd: int) -> dict[str, bytes]:
    names = [name for name in os.listxattr(fd) if not name.startswith("trusted.overlay.")]
    return {name: os.getxattr(fd, name) for name in names}
