"""Archives on their way: other names for their members, their contents untouched and never all in memory."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator

from joey.model.errors import Broken

_BLOCK = 512
_PIECE = 1 << 18
_EXTENDED = (b"x", b"g", b"L", b"K")
_LONGEST = 1 << 20


class _Source:
    """Exactly so many bytes of a stream of pieces."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    async def take(self, size: int) -> bytes:
        """Fewer bytes only at the end."""
        while len(self._held) < size:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._held += piece
        found = bytes(self._held[:size])
        del self._held[:size]
        return found


async def prefixed(pieces: AsyncIterator[bytes], prefix: str) -> AsyncIterator[bytes]:
    """The archive with `prefix`/ before every name and the target of every hard link. Raises Broken for no archive."""
    source = _Source(pieces)
    head = b""
    while True:
        block = await source.take(_BLOCK)
        if len(block) < _BLOCK or not any(block):
            break
        head += block
        try:
            size = tarfile.nti(block[124:136])  # type: ignore[attr-defined]
        except tarfile.HeaderError as error:
            raise Broken("archive", str(error)) from None
        whole = -(-size // _BLOCK) * _BLOCK
        if block[156:157] in _EXTENDED:
            if size > _LONGEST:
                raise Broken("archive", "a header of it is too long")
            head += await source.take(whole)
            continue
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape") if len(head) == _BLOCK else _member(head)
        head = b""
        name = member.name.removeprefix("./").rstrip("/")
        member.name = f"{prefix}/{name}" if name not in ("", ".") else prefix
        if member.islnk():
            member.linkname = f"{prefix}/{member.linkname.removeprefix('./')}"
        member.pax_headers = {
            key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath")
        }
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        left = whole if member.isreg() else 0
        while left:
            piece = await source.take(min(left, _PIECE))
            if not piece:
                raise Broken("archive", "it ends within a file")
            left -= len(piece)
            yield piece
    yield bytes(2 * _BLOCK)


def _member(head: bytes) -> tarfile.TarInfo:
    """A member of its extended headers and its own."""
    import io

    try:
        with tarfile.open(fileobj=io.BytesIO(head + bytes(2 * _BLOCK)), mode="r:", errorlevel=0) as archive:
            found = archive.next()
    except tarfile.TarError as error:
        raise Broken("archive", str(error)) from None
    if found is None:
        raise Broken("archive", "a header of it says nothing")
    return found
