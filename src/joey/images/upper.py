"""The writable layer of a sandbox, an overlay's upper directory, copied into a directory that can be a layer.

Upper directories come from hostile programs and carry the ids of the sandbox's own range: every step is relative to an
open directory and follows no link, ids go back to 0 to 65535, holes stay holes, hard links stay links. Whiteouts (0:0
devices) and opaque directories stay as overlayfs has them; what else overlayfs notes for itself is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from joey.images.overlay import OPAQUE
from joey.images.pack import attribute, capability, data_parts
from joey.images.unpack import NORMAL
from joey.model.errors import Exhausted, ImageError, from_os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ELSEWHERE = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_NAMED = (0x02, 0x08)
_NOBODY = 65534
_PIECE = 1 << 24
_DEPTH = 1000
_ASK_ROOM = 64 << 20
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Copied(NamedTuple):
    """size: bytes of the files' content, without holes; entries: names."""

    size: int
    entries: int


class Level(NamedTuple):
    """A directory under way. path: of it, with a slash at the end unless it is the top."""

    source: int
    into: int
    path: str
    names: Iterator[str]


def copy(
    upper: Path | int, target: Path, *, base: int = 0, epoch: int | None = None, reserve: int = NORMAL.reserve,
    without: Collection[str] = (),
) -> Copied:  # fmt: skip
    """Copy the tree `upper` (a path or a descriptor) as the new directory `target`. Blocks.

    base: the host's id of the sandbox's id 0; ids that are not its own become nobody. epoch: no time is later than
    this, seconds. reserve: bytes that stay free on the disk. without: files
    to leave out, paths without a slash in front. Raises ImageError naming what no layer can hold,
    Exhausted and its kin; what was written is the caller's to remove then.
    """
    try:
        top = os.dup(upper) if isinstance(upper, int) else os.open(upper, _DIRECTORY)
        try:
            os.mkdir(target, 0o700)
            into = os.open(target, _DIRECTORY)
            try:
                return Copier(base, epoch, reserve, into=into, without=without).tree(top)
            finally:
                os.close(into)
        finally:
            os.close(top)
    except OSError as error:
        raise from_os("copy the writable layer", error) from error


class Copier:
    """Copies into the directory `into`."""

    def __init__(
        self, base: int, epoch: int | None, reserve: int = NORMAL.reserve, *, into: int, without: Collection[str] = ()
    ) -> None:
        self.without = without
        self.base, self.epoch, self.reserve, self.top = base, epoch, reserve, into
        self.links: dict[tuple[int, int], str] = {}
        self.size = self.entries = self.asked = 0

    def tree(self, top: int) -> Copied:
        stack = [Level(os.dup(top), os.dup(self.top), "", iter(os.listdir(top)))]
        try:
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    self._finish(level.source, level.into)
                    stack.pop()
                    os.close(level.source)
                    os.close(level.into)
                    continue
                try:
                    found = os.stat(name, dir_fd=level.source, follow_symlinks=False)
                except FileNotFoundError:  # it runs, and has removed it
                    continue
                if level.path + name in self.without and stat.S_ISREG(found.st_mode):
                    continue
                self.entries += 1
                if self.entries > NORMAL.entries:
                    raise ImageError("layer", f"it has more than {NORMAL.entries} files")
                if stat.S_ISDIR(found.st_mode):
                    stack.append(self._enter(level, name, len(stack)))
                else:
                    self.member(level, name, found)
        finally:
            for level in stack:
                os.close(level.source)
                os.close(level.into)
        return Copied(self.size, self.entries)

    def _enter(self, level: Level, name: str, depth: int) -> Level:
        path = f"{level.path}{name}/"
        if depth > _DEPTH:
            raise ImageError("layer", f"directories are nested deeper than {_DEPTH}: {_short(path)}")
        source = os.open(name, _DIRECTORY, dir_fd=level.source)
        try:
            os.mkdir(name, 0o700, dir_fd=level.into)
            return Level(source, os.open(name, _DIRECTORY, dir_fd=level.into), path, iter(os.listdir(source)))
        except BaseException:
            os.close(source)
            raise

    def member(self, level: Level, name: str, found: os.stat_result) -> None:
        mode, path = found.st_mode, level.path + name
        if name.startswith(".wh."):
            raise ImageError(
                "layer", f"{_short(path)}: names that begin with .wh. mean deletions in a layer", "rename it"
            )
        if stat.S_ISSOCK(mode):  # lives with its process; no layer holds one
            self.entries -= 1
            return
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and not stat.S_ISCHR(mode):  # overlayfs links its whiteouts
            if key in self.links:
                self._link(self.links[key], level.into, name, path)
                return
            self.links[key] = path
        if stat.S_ISREG(mode):
            self._file(level, name, path, key)
            return
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=level.source), name, dir_fd=level.into)
        else:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, found.st_rdev, dir_fd=level.into)
        os.chown(name, *self._ids(found), dir_fd=level.into, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode), dir_fd=level.into)
        os.utime(name, ns=self._times(found), dir_fd=level.into, follow_symlinks=False)

    def _link(self, first: str, into: int, name: str, path: str) -> None:
        try:
            os.link(first, name, src_dir_fd=self.top, dst_dir_fd=into, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EMLINK):
                raise
            raise ImageError(
                "layer", f"{_short(path)} cannot be linked to {_short(first)}: {error.strerror}"
            ) from error

    def _file(self, level: Level, name: str, path: str, key: tuple[int, int]) -> None:
        source = os.open(name, _FILE, dir_fd=level.source)
        try:
            now = os.fstat(source)
            if (now.st_dev, now.st_ino) != key or not stat.S_ISREG(now.st_mode):
                raise ImageError(
                    "layer", f"{_short(path)} changed while it was read", "pause or stop the sandbox first"
                )
            target = os.open(name, _NEW, 0o600, dir_fd=level.into)
            try:
                self._content(source, target, now.st_size)
                self.settle(source, target, now)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _content(self, source: int, target: int, size: int) -> None:
        """What is not a hole. A file that grows or shrinks meanwhile is cut or padded to `size`."""
        os.ftruncate(target, size)
        for start, end in data_parts(source, size):
            while start < end:
                count = min(end - start, _PIECE)
                self._room(target, count)
                done = _piece(source, target, start, count)
                if not done:
                    return
                start += done

    def _room(self, target: int, count: int) -> None:
        self.size += count
        if self.size < self.asked:
            return
        self.asked = self.size + _ASK_ROOM
        if not self.reserve:
            return
        found = os.fstatvfs(target)
        if found.f_bavail * found.f_frsize < self.reserve + _ASK_ROOM:
            raise Exhausted(
                "copy the writable layer",
                f"less than {self.reserve >> 20} MiB would stay free",
                "free space on the disk",
            )

    def _finish(self, source: int, into: int) -> None:
        self.settle(source, into, os.fstat(source))
        if attribute(source, OPAQUE) == b"y":
            os.setxattr(into, OPAQUE, b"y")

    def settle(self, source: int, target: int, found: os.stat_result) -> None:
        """Owner, attributes, mode, times: in this order, for each undoes what comes after it."""
        os.fchown(target, *self._ids(found))
        for name in _names(source):
            if name in _ELSEWHERE:
                raise ImageError("layer", "overlayfs of this host keeps parts of files elsewhere", "redirect_dir=off")
            value = self._attribute(name, source)
            if value:
                try:
                    os.setxattr(target, name, value)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                        raise
                    raise ImageError(
                        "layer", "attributes of a file are larger than the disk's file system holds"
                    ) from error
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=self._times(found))

    def _attribute(self, name: str, source: int) -> bytes:
        """The value to keep, empty for none."""
        if name == "security.capability":
            return capability(attribute(source, name))
        if name in _ACLS:
            return self._acl(attribute(source, name))
        return attribute(source, name) if name.startswith("user.") and not name.startswith("user.overlay.") else b""

    def _acl(self, value: bytes) -> bytes:
        """acl(5), posix_acl_xattr.h: a version, then entries of tag, permissions, id."""
        found = bytearray(value[:4])
        for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[4 : len(value) - len(value[4:]) % 8]):
            found += _ACL_ENTRY.pack(tag, permissions, self._id(number) if tag in _ACL_NAMED else number)
        return bytes(found)

    def _ids(self, found: os.stat_result) -> tuple[int, int]:
        return self._id(found.st_uid), self._id(found.st_gid)

    def _id(self, number: int) -> int:
        number -= self.base
        return number if 0 <= number <= 0xFFFF else _NOBODY

    def _times(self, found: os.stat_result) -> tuple[int, int]:
        changed = found.st_mtime_ns
        if self.epoch is not None and changed > self.epoch * 10**9:
            changed = self.epoch * 10**9
        return changed, changed


def _piece(source: int, target: int, start: int, count: int) -> int:
    """Copy within the kernel where it can."""
    try:
        return os.copy_file_range(source, target, count, start, start)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    os.lseek(target, start, os.SEEK_SET)
    return os.sendfile(target, source, start, count)


def _names(fd: int) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listxattr(fd))
    return []


def _short(path: str) -> str:
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 200 else f"{text[:197]}…"
