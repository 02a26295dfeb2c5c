"""`interface.Files` of one sandbox: what is asked is checked, said to joey-files (native/files.c), and its answer told.

Nothing here opens a path of a sandbox: the helper inside does, with the sandbox's own ids, mounts and limits, below its
root and through no magic link. What is only read works in a paused sandbox, too, by a helper outside its frozen cgroup;
changes do not (Conflict), and of one that does not run nothing does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from joey.engine import files_wire as wire
from joey.engine.files_tar import Packer, Unpacker
from joey.engine.files_users import MOST, Names
from joey.model.errors import Broken, Conflict, Exhausted, Invalid, JoeyError, NotFound
from joey.model.views import FileEvent, FileInfo

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.files_helper import Helper, Helpers

MAX_ENTRIES = 100_000
"""Of one list; a larger directory can be had as an archive."""
MAX_LIST_BYTES = 32 << 20
MAX_DEPTH = 400
_NAMES_SECONDS = 1.0
_ANY = 1 << 62

_EVENTS: tuple[tuple[int, Literal["created", "modified", "removed", "moved", "attributes", "overflow"]], ...] = (
    (0x4000, "overflow"), (0x100 | 0x80, "created"), (0x2 | 0x8, "modified"), (0x200 | 0x400, "removed"),
    (0x40 | 0x800, "moved"), (0x4, "attributes"),
)  # fmt: skip
"""inotify(7): Q_OVERFLOW; CREATE, MOVED_TO; MODIFY, CLOSE_WRITE; DELETE, DELETE_SELF; MOVED_FROM, MOVE_SELF; ATTRIB."""


def checked(path: str, field: str = "path") -> bytes:
    """A path as the helper takes it. Raises Invalid."""
    if not path.startswith("/"):
        raise Invalid(field, f"{path!r} is not absolute", "begin it with /")
    if "\0" in path:
        raise Invalid(field, "holds a NUL character")
    data = path.encode("utf-8", "surrogateescape")
    if len(data) >= wire.PATH:
        raise Invalid(field, f"has {len(data)} bytes, at most {wire.PATH - 1} are possible")
    return data


def failure(number: int, path: str) -> JoeyError:
    """What an errno of the helper means for who asked."""
    said = f"{path}: {os.strerror(number)}"
    if number == errno.ENOENT:
        return NotFound("path", said)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return Exhausted("path", said, "free space in the sandbox, or raise its limit", errno=number)
    if number in (errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
        return Conflict("path", said)
    if number == errno.EINVAL:
        return Invalid("path", f"{path}: is not a regular file", "only regular files are read and written")
    if number == errno.EXDEV:
        return Invalid("path", f"{path}: is on another file system", "copy it, then remove it")
    if number == errno.ELOOP:
        return Invalid("path", f"{path}: too many links or directories within each other, or a link of /proc")
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.EOVERFLOW):
        return Invalid("path", said)
    return Broken("files", said)


@dataclass(frozen=True, slots=True)
class Opened:
    """`interface.Reading`."""

    info: FileInfo
    chunks: AsyncIterator[bytes]


class BoxFiles:
    """The files of one sandbox."""

    def __init__(self, box: Box, helpers: Helpers) -> None:
        self._box = box
        self._helpers = helpers

    # --- reading -----------------------------------------------------------------------------------------------------

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """Of the thing itself; with follow, of what a link points to."""
        async with self._helpers.helper(self._box, reading=True) as helper:
            return await self._one(
                helper, wire.request(wire.STAT, checked(path), flags=wire.FOLLOW if follow else 0), path
            )

    async def list(self, path: str, depth: int = 1) -> Sequence[FileInfo]:
        if not 1 <= depth <= MAX_DEPTH:
            raise Invalid("depth", f"{depth} is not within 1 and {MAX_DEPTH}")
        found: list[wire.Entry] = []
        size = 0
        async with self._helpers.helper(self._box, reading=True) as helper:
            await helper.send(wire.request(wire.LIST, checked(path), a=depth))
            while (payload := await self._next(helper, path, wire.ENTRY)) is not None:
                found.append(wire.entry(payload))
                size += len(payload)
                if len(found) > MAX_ENTRIES or size > MAX_LIST_BYTES:
                    raise Invalid("path", f"{path}: more than {MAX_ENTRIES} entries", "ask for an archive of it")
            names = await self._names(helper)
        base = _normal(path).rstrip("/")
        infos = [one.info(f"{base}/{wire.text(one.path)}", names.users, names.groups) for one in found]
        return sorted(infos, key=lambda info: info.path)

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        async with self.reading(path, offset, length) as reading:
            async for piece in reading.chunks:
                yield piece

    @contextlib.asynccontextmanager
    async def reading(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[Opened]:
        """An open file for the block. Raises as `read` does, before the block begins."""
        if not 0 <= offset < _ANY or (length is not None and not 0 <= length < _ANY):
            raise Invalid("offset", "must be a number of bytes that is not negative")
        request = wire.request(wire.READ, checked(path), a=offset, b=_ANY if length is None else length)
        async with self._helpers.helper(self._box, reading=True) as helper:
            await helper.send(request)
            payload = await self._next(helper, path, wire.ENTRY)
            if payload is None:
                raise wire.Garbled
            yield Opened(wire.entry(payload).info(_normal(path), {}, {}), self._data(helper, path))

    async def _data(self, helper: Helper, path: str) -> AsyncIterator[bytes]:
        while (payload := await self._next(helper, path, wire.DATA)) is not None:
            yield payload

    def pack(self, path: str, *, root: str = ".") -> AsyncIterator[bytes]:
        return self._pack(path, root)

    async def _pack(self, path: str, root: str) -> AsyncIterator[bytes]:
        """Names in the archive begin with the last one of `path`, those of the root with `root`."""
        async with self._helpers.helper(self._box, reading=True) as helper:
            names = await self._names(helper)
            await helper.send(wire.request(wire.PACK, checked(path)))
            packer = Packer(names, root)
            while True:
                kind, payload = await helper.frame()
                if kind == wire.DONE:
                    if number := wire.error_number(payload):
                        raise failure(number, path)
                    break
                if kind == wire.ENTRY:
                    piece = packer.entry(wire.entry(payload))
                elif kind == wire.DATA:
                    piece = packer.data(payload)
                else:
                    raise wire.Garbled
                if piece:
                    yield piece
            yield packer.end()

    def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[FileEvent]:
        return self._watch(path, recursive)

    async def _watch(self, path: str, recursive: bool) -> AsyncIterator[FileEvent]:
        async with self.watching(path, recursive=recursive) as events:
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def watching(self, path: str, *, recursive: bool = False) -> AsyncIterator[AsyncIterator[FileEvent]]:
        """Events from the block's beginning on. Raises as `watch` does, before it begins."""
        request = wire.request(wire.WATCH, checked(path), flags=wire.RECURSIVE if recursive else 0)
        async with self._helpers.helper(self._box, watching=True) as helper:
            await helper.send(request)
            if await self._next(helper, path, wire.ENTRY) is None:
                raise wire.Garbled
            helper.clean = False  # it ends with this
            yield self._events(helper, _normal(path))

    async def _events(self, helper: Helper, path: str) -> AsyncIterator[FileEvent]:
        from joey.engine.files_helper import Gone

        while True:
            try:
                kind, payload = await helper.frame(patient=True)
            except Gone:
                return  # the sandbox has ended, or what is watched is gone
            if kind == wire.DONE:
                number = wire.error_number(payload)
                if number not in (0, errno.ENOENT):
                    raise failure(number, path)
                return
            if kind != wire.EVENT:
                raise wire.Garbled
            mask, name = wire.event(payload)
            whole = f"{path.rstrip('/')}/{wire.text(name)}" if name else path
            for bits, type in _EVENTS:
                if mask & bits:
                    yield FileEvent(type=type, path=whole)
                    break

    # --- changing ----------------------------------------------------------------------------------------------------

    async def write(
        self, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None, user: str = "", parents: bool = False
    ) -> FileInfo:
        where, flags = checked(path), wire.PARENTS if parents else 0
        if mode is not None:
            flags |= wire.MODE
        async with self._helpers.helper(self._box) as helper:
            uid, gid, owner = await self._owner(helper, user)
            head = wire.request(wire.WRITE, where, flags=flags | owner, mode=_mode(mode or 0), uid=uid, gid=gid)
            return await self._put(helper, head, chunks, path)

    async def _put(self, helper: Helper, head: bytes, chunks: AsyncIterator[bytes], path: str) -> FileInfo:
        held = bytearray(head)  # small files go in one piece
        early = False
        async for chunk in chunks:
            if not chunk:
                continue
            held += wire.length(len(chunk))
            if len(chunk) < 1 << 16:
                held += chunk
                if len(held) < 1 << 16:
                    continue
            else:
                early = not await helper.send(bytes(held))
                held = bytearray()
                early = early or not await helper.send(chunk)
            if not early and held:
                early = not await helper.send(bytes(held))
                held = bytearray()
            if early or helper.answered:
                early = True  # it has failed; the rest need not be sent
                break
        if early:
            kind, payload = await helper.frame()
            helper.clean = False  # a piece may be left half-way
            if kind == wire.DONE and (number := wire.error_number(payload)):
                raise failure(number, path)
            raise wire.Garbled
        held += wire.END
        return await self._one(helper, bytes(held), path)

    async def mkdir(self, path: str, *, mode: int = 0o755, user: str = "", parents: bool = False) -> FileInfo:
        flags = wire.MODE | (wire.PARENTS if parents else 0)
        async with self._helpers.helper(self._box) as helper:
            uid, gid, owner = await self._owner(helper, user)
            request = wire.request(wire.MKDIR, checked(path), flags=flags | owner, mode=_mode(mode), uid=uid, gid=gid)
            return await self._one(helper, request, path)

    async def move(self, source: str, target: str) -> FileInfo:
        request = wire.request(wire.MOVE, checked(source, "source"), checked(target, "target"))
        async with self._helpers.helper(self._box) as helper:
            return await self._one(helper, request, source, _normal(target))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        request = wire.request(wire.REMOVE, checked(path), flags=wire.RECURSIVE if recursive else 0)
        async with self._helpers.helper(self._box) as helper:
            await helper.send(request)
            while await self._next(helper, path, wire.ENTRY) is not None:
                pass

    async def chmod(self, path: str, mode: int) -> FileInfo:
        request = wire.request(wire.CHANGE, checked(path), flags=wire.FOLLOW | wire.MODE, mode=_mode(mode))
        async with self._helpers.helper(self._box) as helper:
            return await self._one(helper, request, path)

    async def chown(self, path: str, user: str) -> FileInfo:
        async with self._helpers.helper(self._box) as helper:
            uid, gid, owner = await self._owner(helper, user or "0")
            request = wire.request(wire.CHANGE, checked(path), flags=wire.FOLLOW | owner, uid=uid, gid=gid)
            return await self._one(helper, request, path)

    async def unpack(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        base = checked(path)
        async with self._helpers.helper(self._box) as helper:
            found = await self._one(helper, wire.request(wire.STAT, base, flags=wire.FOLLOW), path)
            if found.type != "directory":
                raise Invalid("path", f"{path}: is no directory")
            unpacker = Unpacker(chunks, base)
            async for member in unpacker.members():
                await helper.send(member.request)
                if member.has_data:
                    async for piece in unpacker.data():
                        if not await helper.send(wire.length(len(piece))) or not await helper.send(piece):
                            helper.clean = False
                            break
                    else:
                        await helper.send(wire.END)
                while await self._next(helper, member.name, wire.ENTRY) is not None:
                    pass

    # --- the helper's answers ----------------------------------------------------------------------------------------

    async def _next(self, helper: Helper, path: str, wanted: int) -> bytes | None:
        """The payload of the next frame, None at the end of the answer. Raises what the helper reports."""
        kind, payload = await helper.frame()
        if kind == wire.DONE:
            if number := wire.error_number(payload):
                raise failure(number, path)
            return None
        if kind != wanted:
            raise wire.Garbled
        return payload

    async def _one(self, helper: Helper, request: bytes, path: str, told: str = "") -> FileInfo:
        """Send, and take an answer of exactly one entry."""
        await helper.send(request)
        payload = await self._next(helper, path, wire.ENTRY)
        if payload is None or await self._next(helper, path, wire.ENTRY) is not None:
            raise wire.Garbled
        names = await self._names(helper)
        return wire.entry(payload).info(told or _normal(path), names.users, names.groups)

    async def _owner(self, helper: Helper, user: str) -> tuple[int, int, int]:
        if not user:
            return 0, 0, 0
        uid, gid = (await self._names(helper)).resolve(user)
        return uid, gid, wire.OWNER

    async def _names(self, helper: Helper) -> Names:
        """Names may be a second old."""
        now, known = time.monotonic(), self._helpers.names.get(self._box.id)
        if known is not None and now - known[0] < _NAMES_SECONDS:
            return known[1]
        names = Names(await self._small(helper, b"/etc/passwd"), await self._small(helper, b"/etc/group"))
        self._helpers.names[self._box.id] = (now, names)
        return names

    async def _small(self, helper: Helper, path: bytes) -> bytes:
        await helper.send(wire.request(wire.READ, path, b=MOST))
        found = bytearray()
        try:
            if await self._next(helper, "", wire.ENTRY) is not None:
                while (payload := await self._next(helper, "", wire.DATA)) is not None:
                    found += payload
                    if len(found) > MOST:
                        raise wire.Garbled
        except JoeyError:
            if not helper.clean:
                raise
        return bytes(found)


def _normal(path: str) -> str:
    """Without double and final slashes; `.` and `..` stay, for links come before them."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _mode(mode: int) -> int:
    if not 0 <= mode <= 0o7777:
        raise Invalid("mode", f"{mode:o} is not within 0 and 7777")
    return mode
