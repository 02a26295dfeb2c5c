"""What COPY, ADD and WORKDIR change, as the archive of a layer. Blocks: to be called in a thread.

An archive names, besides what is new, the directories above it, with what the image says of them: a layer's directory
covers the one below it. Targets follow the image's links (/lib is usr/lib), never out of it.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from joey.build.trees import Item, Tree
from joey.images import pack
from joey.model.errors import Invalid

_PIECE = 1 << 20


@dataclass(frozen=True)
class How:
    """owner: (uid, gid), None for as they are. mode: permission bits, None for as they are. now: seconds, the time of
    what is made. epoch: no time is later, None for no bound.
    """

    owner: tuple[int, int] | None = (0, 0)
    mode: int | None = None
    now: int = 0
    epoch: int | None = None

    def time(self, nanoseconds: int) -> tuple[int, int]:
        seconds, rest = divmod(nanoseconds, 10**9)
        return (self.epoch, 0) if self.epoch is not None and seconds >= self.epoch else (seconds, rest)


class Writer:
    """An archive under way. base: the files below the layer; None where there are none, or they do not count."""

    def __init__(self, base: Tree | None, how: How) -> None:
        self.base, self.how = base, how
        self.made: set[str] = set()
        self.files: set[str] = set()

    def target(self, path: str) -> str:
        """Where a path of the image leads."""
        if self.base is None:
            return "/".join(part for part in posixpath.normpath(f"/{path}").split("/") if part)
        return self.base.real(path)

    def is_directory(self, path: str) -> bool:
        return path in self.made or path == "" or (self.base is not None and self.base.is_directory(path))

    def above(self, path: str) -> Iterator[bytes]:
        """The directories above `path`."""
        parts = path.split("/")[:-1]
        for count in range(len(parts) + 1):
            yield from self.directory("/".join(parts[:count]))

    def directory(
        self, path: str, like: os.stat_result | None = None, extra: Mapping[bytes, bytes] = {}
    ) -> Iterator[bytes]:
        """One directory, once. like: what it is copied from, if it is; one that is there stays as it is."""
        if path in self.made:
            return
        there = self.base.stat(path) if self.base is not None else None
        if path in self.files or (there is not None and not stat.S_ISDIR(there.st_mode)):
            raise Invalid("COPY", f"/{path} is no directory, and cannot become one")
        self.made.add(path)
        if there is not None:
            assert self.base is not None
            time = self.how.time(there.st_mtime_ns)
            yield _header(
                path, b"5", there, (there.st_uid, there.st_gid), None, time, 0, b"", self.base.attributes(path, there)
            )
        elif path:
            if like is None:
                owner = self.how.owner or (0, 0)
                time = self.how.time(self.how.now * 10**9)
                yield pack.header(os.fsencode(path) + b"/", b"5", 0o755, *owner, 0, *time, b"", (0, 0), {})
            else:
                time = self.how.time(like.st_mtime_ns)
                yield _header(path, b"5", like, self._owner(like), self.how.mode, time, 0, b"", dict(extra))

    def _owner(self, found: os.stat_result) -> tuple[int, int]:
        return self.how.owner if self.how.owner is not None else (found.st_uid, found.st_gid)

    def item(self, one: Item, target: str, directory: bool) -> Iterator[bytes]:
        """Copy an item to `target`, in it if that is a directory and the item is none."""
        found = os.lstat(one.tree.place(one.path))
        if stat.S_ISDIR(found.st_mode):
            yield from self.above(target)
            yield from self.directory(target, found, one.tree.attributes(one.path, found))
            for below, inner in one.tree.walk(one.path):
                path = f"{target}/{below}" if target else below
                source = f"{one.path}/{below}" if one.path else below
                if stat.S_ISDIR(inner.st_mode):
                    yield from self.directory(path, inner, one.tree.attributes(source, inner))
                else:
                    yield from self.member(one.tree, source, inner, path)
            return
        if directory or self.is_directory(target):
            target = self.target(f"{target}/{one.name}")
        yield from self.above(target)
        yield from self.member(one.tree, one.path, found, target)

    def member(self, tree: Tree, path: str, found: os.stat_result, target: str) -> Iterator[bytes]:
        """A file, link or device."""
        self._new(target)
        owner, time = self._owner(found), self.how.time(found.st_mtime_ns)
        if stat.S_ISLNK(found.st_mode):
            yield _header(target, b"2", found, owner, 0o777, time, 0, os.readlink(os.fsencode(tree.place(path))), {})
        elif stat.S_ISREG(found.st_mode):
            with os.fdopen(tree.open(path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                extra = pack.attributes(file.fileno())
                yield _header(target, b"0", found, owner, self.how.mode, time, size, b"", extra)
                yield from _content(file, size)
        elif stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            raise Invalid("COPY", f"{path}: names that begin with .wh. mean deletions in a layer", "rename it")
        elif not stat.S_ISSOCK(found.st_mode):
            kind = b"3" if stat.S_ISCHR(found.st_mode) else b"4" if stat.S_ISBLK(found.st_mode) else b"6"
            yield _header(target, kind, found, owner, self.how.mode, time, 0, b"", {})

    def text(self, data: bytes, target: str) -> Iterator[bytes]:
        """A file of ours."""
        yield from self.above(target)
        self._new(target)
        mode = 0o644 if self.how.mode is None else self.how.mode
        owner, time = self.how.owner or (0, 0), self.how.time(self.how.now * 10**9)
        name = os.fsencode(target)
        yield pack.header(name, b"0", mode, *owner, len(data), *time, b"", (0, 0), {})
        yield data + bytes(-len(data) % 512)

    def _new(self, target: str) -> None:
        if not target or self.is_directory(target):
            raise Invalid("COPY", f"/{target} is a directory, and cannot become a file")
        self.files.add(target)

    def extract(self, file: BinaryIO, target: str) -> Iterator[bytes]:
        """ADD of an archive: what is in it, below `target`. Raises Invalid."""
        yield from self.above(f"{target}/x" if target else "x")
        try:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    yield from self._extracted(archive, member, target)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Invalid("ADD", f"the archive cannot be read: {error}") from error

    def _extracted(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> Iterator[bytes]:
        name = posixpath.normpath(member.name.lstrip("/") or ".")
        if name.startswith(".."):
            raise Invalid("ADD", f"the archive holds {member.name!r}, which leads out of the target")
        if name == ".":
            return
        path = f"{target}/{name}" if target else name
        parent = self.target(posixpath.dirname(path))
        path = f"{parent}/{posixpath.basename(path)}".lstrip("/")
        owner = self.how.owner or (min(member.uid, 0xFFFF), min(member.gid, 0xFFFF))
        mode = member.mode & 0o7777 if self.how.mode is None else self.how.mode
        time = self.how.time(int(member.mtime * 10**9))
        extra = {
            key.encode(): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.user.") or key == "SCHILY.xattr.security.capability"
        }
        encoded = os.fsencode(path)
        yield from self.above(path)
        if member.isdir():
            if path not in self.made:
                self.made.add(path)
                yield pack.header(encoded + b"/", b"5", mode, *owner, 0, *time, b"", (0, 0), extra)
            return
        self.files.add(path)
        if member.islnk():
            inner = posixpath.normpath(member.linkname.lstrip("/"))
            if inner.startswith(".."):
                raise Invalid("ADD", f"the archive holds a link to {member.linkname!r}, out of the target")
            link = self.target(f"{target}/{inner}")
            yield pack.header(encoded, b"1", mode, *owner, 0, *time, os.fsencode(link), (0, 0), {})
        elif member.issym():
            yield pack.header(encoded, b"2", 0o777, *owner, 0, *time, os.fsencode(member.linkname), (0, 0), {})
        elif member.isreg():
            yield pack.header(encoded, b"0", mode, *owner, member.size, *time, b"", (0, 0), extra)
            content = archive.extractfile(member)
            assert content is not None
            yield from _content(content, member.size)  # type: ignore[arg-type]
        elif member.isfifo() or member.ischr() or member.isblk():
            kind = b"6" if member.isfifo() else b"3" if member.ischr() else b"4"
            device = (0, 0) if member.isfifo() else (member.devmajor, member.devminor)
            yield pack.header(encoded, kind, mode, *owner, 0, *time, b"", device, {})


def _content(file: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        data = file.read(min(_PIECE, left)) or bytes(min(_PIECE, left))
        left -= len(data)
        yield data
    if size % 512:
        yield bytes(-size % 512)


def _header(
    path: str, kind: bytes, found: os.stat_result, owner: tuple[int, int], mode: int | None, time: tuple[int, int],
    size: int, link: bytes, extra: dict[bytes, bytes],
) -> bytes:  # fmt: skip
    device = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in (b"3", b"4") else (0, 0)
    bits = stat.S_IMODE(found.st_mode) if mode is None else mode
    name = os.fsencode(path or ".") + (b"/" if kind == b"5" else b"")
    return pack.header(name, kind, bits, *owner, size, *time, link, device, extra)


def end() -> bytes:
    """Of an archive."""
    return bytes(1024)
