"""Archives as they come and go (tar(5): ustar, GNU and pax headers), member by member; nothing is held but headers.

What comes is untrusted: a member becomes one request to the helper, which looks its path up below the sandbox's root.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import AsyncIterator
from typing import NamedTuple

from joey.engine import files_wire as wire
from joey.engine.files_users import Names
from joey.model.errors import Invalid

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 1 << 20
"""Of what a pax or GNU header may say about one member (long names, mostly)."""
_TYPES = {
    "file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE,
}  # fmt: skip
_LONG = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Packer:
    """Entries and their bytes → an archive (pax)."""

    def __init__(self, names: Names, root: str = ".") -> None:
        self._names, self._root = names, root
        self._left = 0
        self._padding = 0

    def entry(self, one: wire.Entry) -> bytes:
        """Its header; b"" for what no archive holds (sockets, devices). Raises Garbled."""
        if self._left:
            raise wire.Garbled
        if one.path.startswith(b"/") or b".." in one.path.split(b"/") or not one.path:
            raise wire.Garbled
        type = _TYPES.get(one.kind)
        if type is None:
            return b""
        name = one.path.decode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(self._root + name[1:] or "/" if name == "." or name.startswith("./") else name)
        info.type, info.mode, info.mtime = type, one.mode & 0o7777, one.modified / 1e9
        info.uid, info.gid = one.uid, one.gid
        info.uname, info.gname = self._names.users.get(one.uid, ""), self._names.groups.get(one.gid, "")
        if one.kind == "link":
            info.linkname = one.target.decode("utf-8", "surrogateescape")
        elif one.kind == "file":
            info.size = self._left = one.size
            self._padding = -one.size % _BLOCK
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def data(self, piece: bytes) -> bytes:
        """Some bytes of the last entry. Raises Garbled if it has no more."""
        self._left -= len(piece)
        if self._left < 0:
            raise wire.Garbled
        return piece if self._left else piece + b"\0" * self._padding

    def end(self) -> bytes:
        if self._left:
            raise wire.Garbled
        return b"\0" * (2 * _BLOCK)


class Member(NamedTuple):
    """What to ask the helper for. name: for messages."""

    request: bytes
    name: str
    has_data: bool


class Unpacker:
    """An archive → requests."""

    def __init__(self, chunks: AsyncIterator[bytes], base: bytes) -> None:
        self._chunks = chunks
        self._base = base.rstrip(b"/")
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    async def members(self) -> AsyncIterator[Member]:
        """After each that has data, `data` is to be read to its end. Raises Invalid for what is no archive."""
        while (info := await self._header()) is not None:
            self._left = info.size if info.isreg() else 0
            self._padding = -self._left % _BLOCK
            if (member := self._member(info)) is not None:
                yield member
            elif info.size:
                async for _ in self.data():
                    pass
        async for _ in self._chunks:  # what follows the end: padding of the blocking factor
            pass

    async def data(self) -> AsyncIterator[bytes]:
        while self._left:
            if not self._buffer:
                await self._more(1)
            take = min(self._left, len(self._buffer), wire.PIECE)
            piece = bytes(memoryview(self._buffer)[:take])
            del self._buffer[:take]
            self._left -= take
            yield piece
        if self._padding:
            await self._take(self._padding)
            self._padding = 0

    async def _header(self) -> tarfile.TarInfo | None:
        """The next member's: what long headers say is joined to it by the standard library."""
        held = b""
        while True:
            if not self._buffer and not held and not await self._any():
                return None  # an archive without its end is accepted, as tar does, if it ends between members
            block = await self._take(_BLOCK)
            if not held and not any(block):
                return None
            held += block
            try:
                plain = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise Invalid("body", f"is not a tar archive: {error}", "send it without compression") from None
            if plain.type not in _LONG:
                break
            if plain.size < 0 or plain.size + len(held) > _MAX_HEADER:
                raise Invalid("body", "a header of the archive is too large")
            held += await self._take(plain.size + -plain.size % _BLOCK)
        if len(held) == _BLOCK:
            return plain
        return _joined(held)

    def _member(self, info: tarfile.TarInfo) -> Member | None:
        name = info.name.encode("utf-8", "surrogateescape")
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        told = info.name
        if b".." in parts or b"\0" in name:
            raise Invalid("body", f"the archive's {told!a} leads out of the directory")
        if not parts:
            return None  # the directory itself
        path = b"/".join((self._base, *parts))
        target = info.linkname.encode("utf-8", "surrogateescape")
        if info.islnk():
            inner = [part for part in target.split(b"/") if part not in (b"", b".")]
            if b".." in inner or not inner:
                raise Invalid("body", f"the archive's {told!a} links to {info.linkname!a}, which is not in it")
            target = b"/".join((self._base, *inner))
        if len(path) >= wire.PATH or len(target) >= wire.PATH or b"\0" in target:
            raise Invalid("body", f"the archive's {told[:80]!a} has too long a name")
        flags = wire.PARENTS | wire.OWNER | wire.MODE | wire.REPLACE | wire.NOFOLLOW
        if not (0 <= info.uid <= 0xFFFF and 0 <= info.gid <= 0xFFFF):
            raise Invalid("body", f"the archive's {told!a} belongs to {info.uid}:{info.gid}: ids go up to 65535")
        number = wire.WRITE if info.isreg() else wire.MKDIR if info.isdir() else wire.SYMLINK if info.issym() else 0
        number = number or (wire.LINK if info.islnk() else wire.FIFO if info.isfifo() else 0)
        if not number:
            raise Invalid("body", f"the archive's {told!a} is a device: nobody inside can make one")
        modified = int(max(0.0, min(float(info.mtime), 1e10)) * 1e9)
        request = wire.request(
            number, path, target if number in (wire.SYMLINK, wire.LINK) else b"", flags=flags, b=modified,
            mode=stat.S_IMODE(info.mode), uid=info.uid, gid=info.gid,
        )  # fmt: skip
        return Member(request, "/".join(("", *(wire.text(part) for part in path.split(b"/")[1:]))), info.isreg())

    async def _take(self, size: int) -> bytes:
        await self._more(size)
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    async def _more(self, size: int) -> None:
        while len(self._buffer) < size:
            if not await self._any():
                raise Invalid("body", "the archive is cut off")

    async def _any(self) -> bool:
        async for chunk in self._chunks:
            if chunk:
                self._buffer += chunk
                return True
        return False


class _Held:
    """Bytes as the file `tarfile` reads headers from."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at


def _joined(held: bytes) -> tarfile.TarInfo:
    try:
        with tarfile.TarFile(fileobj=_Held(held), encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[arg-type]
            found = archive.next()
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise Invalid("body", f"is not a tar archive: {error}") from None
    if found is None or found.size < 0 or found.issparse():
        raise Invalid("body", "the archive has a header that cannot be read, or a sparse file")
    return found
