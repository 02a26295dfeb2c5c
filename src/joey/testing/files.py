"""The files of a sandbox of the fake engine: a tree in memory, which its programs (of this machine) do not see."""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.views import FileEvent, FileInfo

_PIECE = 1 << 20
_BEGIN = ("/", "/etc", "/home", "/root", "/tmp", "/usr")

Change = Literal["created", "modified", "removed", "moved", "attributes", "overflow"]


@dataclass
class _Node:
    type: Literal["file", "directory"]
    data: bytes = b""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    modified: float = field(default_factory=time.time)


@dataclass
class FakeReading:
    """A file that is open: what it is, and its bytes."""

    info: FileInfo
    chunks: AsyncIterator[bytes]


class FakeFiles:
    """Fulfils `joey.engine.interface.Files`. There are no links in it."""

    def __init__(self) -> None:
        self._nodes = {path: _Node("directory") for path in _BEGIN}
        self._changes: list[FileEvent] = []
        self._changed = asyncio.Event()

    def close(self) -> None:
        """The sandbox has ended: who watches is told."""
        self._changes.append(FileEvent(type="overflow", path=""))
        self._changed.set()

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """See the interface; likewise all below."""
        return self._info(_clean(path))

    async def list(self, path: str, depth: int = 1) -> Sequence[FileInfo]:
        if not 1 <= depth <= 64:
            raise Invalid("depth", f"{depth} is not within 1 and 64")
        path = self._directory(path)
        above = 0 if path == "/" else path.count("/")
        return [self._info(one) for one in sorted(self._below(path)) if one.count("/") - above <= depth]

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        async with self.reading(path, offset, length) as reading:
            async for piece in reading.chunks:
                yield piece

    @contextlib.asynccontextmanager
    async def reading(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[FakeReading]:
        """An open file for the block."""
        data = self._file(path).data
        yield FakeReading(self._info(_clean(path)), self._pieces(data, offset, length))

    async def _pieces(self, data: bytes, offset: int, length: int | None) -> AsyncIterator[bytes]:
        data = data[offset : len(data) if length is None else offset + length]
        for begin in range(0, len(data), _PIECE):
            yield data[begin : begin + _PIECE]

    async def write(
        self, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None, user: str = "", parents: bool = False
    ) -> FileInfo:
        path = _clean(path)
        before = self._nodes.get(path)
        if before is not None and before.type == "directory":
            raise Invalid("path", f"{path}: is not a regular file")
        self._parent(path, parents)
        data = b"".join([piece async for piece in chunks])
        uid, gid = _ids(user) if user or before is None else (before.uid, before.gid)
        kept = before.mode if before else 0o644
        self._nodes[path] = _Node("file", data, _mode(mode) if mode is not None else kept, uid, gid)
        return self._tell("modified" if before else "created", path)

    async def mkdir(self, path: str, *, mode: int = 0o755, user: str = "", parents: bool = False) -> FileInfo:
        path = _clean(path)
        if path in self._nodes:
            if parents and self._nodes[path].type == "directory":
                return self._info(path)
            raise Conflict("path", f"{path}: is there already")
        self._parent(path, parents)
        uid, gid = _ids(user)
        self._nodes[path] = _Node("directory", b"", _mode(mode), uid, gid)
        return self._tell("created", path)

    async def move(self, source: str, target: str) -> FileInfo:
        source, target = _clean(source), _clean(target)
        self._node(source)
        if source == "/" or target == source or target.startswith(source + "/"):
            raise Invalid("path", f"{source}: cannot be moved there")
        self._parent(target, False)
        if target in self._nodes and (self._nodes[target].type == "directory" or self._below(target)):
            raise Conflict("path", f"{target}: is a directory")
        for path in [source, *self._below(source)]:
            self._nodes[target + path[len(source) :]] = self._nodes.pop(path)
        return self._tell("moved", target)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        path = _clean(path)
        self._node(path)
        below = self._below(path)
        if path == "/" or (below and not recursive):
            raise Conflict("path", f"{path}: is not empty" if below else "/: cannot be removed")
        for one in [path, *below]:
            del self._nodes[one]
        self._changes.append(FileEvent(type="removed", path=path))
        self._changed.set()

    async def chmod(self, path: str, mode: int) -> FileInfo:
        path = _clean(path)
        self._node(path).mode = _mode(mode)
        return self._tell("attributes", path)

    async def chown(self, path: str, user: str) -> FileInfo:
        path = _clean(path)
        node = self._node(path)
        node.uid, node.gid = _ids(user)
        return self._tell("attributes", path)

    async def pack(self, path: str) -> AsyncIterator[bytes]:
        path = _clean(path)
        self._node(path)
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for one in sorted([path, *self._below(path)]):
                node, entry = self._nodes[one], tarfile.TarInfo(posixpath.relpath(one, posixpath.dirname(path)))
                entry.type = tarfile.DIRTYPE if node.type == "directory" else tarfile.REGTYPE
                entry.mode, entry.uid, entry.gid, entry.size = node.mode, node.uid, node.gid, len(node.data)
                entry.mtime = int(node.modified)
                archive.addfile(entry, io.BytesIO(node.data))
        yield held.getvalue()

    async def unpack(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._directory(path)
        data = b"".join([piece async for piece in chunks])
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for entry in archive:
                    one = posixpath.normpath(posixpath.join("/", path, entry.name.lstrip("/")))
                    if one != path and not one.startswith(path.rstrip("/") + "/"):
                        raise Invalid("path", f"{entry.name}: leads out of the directory")
                    source = archive.extractfile(entry) if entry.isreg() else None
                    content = source.read() if source else b""
                    kind: Literal["file", "directory"] = "directory" if entry.isdir() else "file"
                    self._parent(one, True)
                    self._nodes[one] = _Node(kind, content, entry.mode & 0o7777, entry.uid, entry.gid)
        except (tarfile.TarError, UnicodeError) as error:
            raise Invalid("body", f"is no tar archive: {error}") from None

    async def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[FileEvent]:
        async with self.watching(path, recursive=recursive) as events:
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def watching(self, path: str, *, recursive: bool = False) -> AsyncIterator[AsyncIterator[FileEvent]]:
        """Events from the block's beginning on."""
        path = _clean(path)
        self._node(path)
        yield self._events(path, recursive, len(self._changes))

    async def _events(self, path: str, recursive: bool, at: int) -> AsyncIterator[FileEvent]:
        while True:
            for event in self._changes[at:]:
                at += 1
                if not event.path:
                    return
                above = posixpath.dirname(event.path)
                if path in (event.path, above) or (recursive and above.startswith(path.rstrip("/") + "/")):
                    yield event
            self._changed.clear()
            await self._changed.wait()

    # ---- parts

    def _node(self, path: str) -> _Node:
        if path not in self._nodes:
            raise NotFound("path", f"{path}: no such file or directory")
        return self._nodes[path]

    def _file(self, path: str) -> _Node:
        node = self._node(_clean(path))
        if node.type != "file":
            raise Invalid("path", f"{path}: is not a regular file")
        return node

    def _directory(self, path: str) -> str:
        path = _clean(path)
        if self._node(path).type != "directory":
            raise Invalid("path", f"{path}: is no directory")
        return path

    def _below(self, path: str) -> Sequence[str]:
        start = path.rstrip("/") + "/"
        return [one for one in self._nodes if one.startswith(start) and one != path]

    def _parent(self, path: str, make: bool) -> None:
        above = posixpath.dirname(path)
        if above not in self._nodes and make:
            self._parent(above, True)
            self._nodes[above] = _Node("directory")
        if self._node(above).type != "directory":
            raise Invalid("path", f"{above}: is no directory")

    def _info(self, path: str) -> FileInfo:
        node = self._node(path)
        return FileInfo(
            name=posixpath.basename(path), path=path, type=node.type, size=len(node.data), mode=node.mode, uid=node.uid,
            gid=node.gid, user="root" if not node.uid else "", group="root" if not node.gid else "",
            modified=node.modified,
        )  # fmt: skip

    def _tell(self, change: Change, path: str) -> FileInfo:
        self._changes.append(FileEvent(type=change, path=path))
        self._changed.set()
        return self._info(path)


def _clean(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid("path", f"{path!r} is not absolute", "begin it with /")
    if "\0" in path:
        raise Invalid("path", "holds a NUL character")
    return posixpath.normpath("/" + path.lstrip("/"))


def _mode(mode: int) -> int:
    if not 0 <= mode <= 0o7777:
        raise Invalid("mode", f"{mode:o} is not within 0 and 7777")
    return mode


def _ids(user: str) -> tuple[int, int]:
    name, _, group = user.partition(":")
    found = []
    for one in (name, group or name):
        if not (one in ("", "root") or one.isdecimal()):
            raise Invalid("user", f"the sandbox knows no user or group {one!r}")
        found.append(int(one) if one.isdecimal() else 0)
    return found[0], found[1]
