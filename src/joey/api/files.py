"""/v1/sandboxes/{ref}/files: files of a sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from joey.api import params
from joey.api.light import web
from joey.api.params import Param
from joey.api.routes import BINARY, NDJSON, TAR, Answer, Call, Route
from joey.api.transfer import cut_off
from joey.engine.interface import Files
from joey.model.errors import Invalid, JoeyError
from joey.model.views import FileEvent, FileInfo

_WHOLE = 1 << 20
"""A file up to this size is answered in one piece."""
_PIECE = 1 << 18


def _files(call: Call) -> Files:
    return call.engine.files(call.ref)


# --- bytes -----------------------------------------------------------------------------------------------------------


async def read(call: Call) -> web.StreamResponse:
    """The bytes of a regular file; of a part of it with `Range: bytes=FIRST-LAST` (RFC 9110, 14.1.2; one range)."""
    files, path = _files(call), call.query["path"]
    first, last = _range(call.request.headers.get("Range", ""))
    if first is None and last is not None:  # the last so many
        first, last = max(0, (await files.stat(path, follow=True)).size - last), None
    length = None if last is None else last - (first or 0) + 1
    async with files.reading(path, first or 0, length) as reading:
        size = reading.info.size
        status, headers = 200, {"Content-Type": BINARY, "Accept-Ranges": "bytes"}
        if first is not None:
            if first >= size:
                raise web.HTTPRequestRangeNotSatisfiable(
                    headers={"Content-Range": f"bytes */{size}"}, text=f"Range: the file has {size} bytes"
                )
            end = size - 1 if last is None else min(last, size - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{end}/{size}"
            size = end - first + 1
        return await _send(call.request, reading.chunks, size, status, headers)


async def _send(
    request: web.Request, chunks: AsyncIterator[bytes], size: int, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    """`size` bytes; of a file without a size (of /proc) what there is."""
    if size <= _WHOLE:
        held = bytearray()
        async for piece in chunks:
            held += piece
            if size and len(held) > size:
                del held[size:]  # it has grown meanwhile
            if len(held) > _WHOLE:
                break
        else:
            return web.Response(status=status, body=bytes(held), headers=headers)
        if size:
            return web.Response(status=status, body=bytes(held), headers=headers)
    else:
        held = bytearray()
    response = web.StreamResponse(status=status, headers=headers)
    if size:
        response.content_length = size
    await response.prepare(request)
    try:
        left = await _stream(response, chunks, held, size)
    except JoeyError:
        left = 1
    if left and request.transport is not None:
        request.transport.abort()  # it has shrunk: a body that is cut off says so
        raise ConnectionResetError("the file has changed while it was read")
    await response.write_eof()
    return response


async def _stream(response: web.StreamResponse, chunks: AsyncIterator[bytes], held: bytearray, size: int) -> int:
    """→ bytes missing of `size`; 0 if that is not known."""
    left = size
    async for piece in chunks:
        held += piece
        if size and len(held) >= left:
            break
        if len(held) >= _PIECE:
            left -= len(held)
            await response.write(bytes(held))
            held = bytearray()
    rest = bytes(held[:left]) if size else bytes(held)
    if rest:
        await response.write(rest)
    return max(0, left - len(rest)) if size else 0


def _range(text: str) -> tuple[int | None, int | None]:
    """(first, last) of a Range header; (None, n): the last n bytes. Raises Invalid; other units are ignored."""
    unit, _, spec = text.partition("=")
    if unit.strip().lower() != "bytes":
        return None, None
    first, dash, last = spec.strip().partition("-")
    good = dash and all(not part or (part.isascii() and part.isdigit() and len(part) < 16) for part in (first, last))
    if not good or not (first or last) or (first and last and int(last) < int(first)):
        raise Invalid("Range", f"{text!r} is not one range of bytes", "bytes=FIRST-LAST")
    return (int(first) if first else None), (int(last) if last else None)


async def write(call: Call) -> FileInfo:
    """The body becomes the file, all or nothing: who reads meanwhile sees the old one. A file that is there keeps mode
    and owner unless they are given; a link is followed.
    """
    query = call.query
    return await _files(call).write(
        query["path"], call.chunks(), mode=query.get("mode"), user=query.get("user", ""),
        parents=query.get("parents", False),
    )  # fmt: skip


async def read_archive(call: Call) -> web.StreamResponse:
    """A file or tree as a tar archive (pax); names in it begin with the last one of `path`."""
    archive = _files(call).pack(call.query["path"])
    try:
        first = await anext(archive)  # what is wrong is said before the answer begins
        response = web.StreamResponse(headers={"Content-Type": TAR})
        await response.prepare(call.request)
        held = bytearray(first)
        with cut_off(call.request):
            async for piece in archive:
                held += piece
                if len(held) >= _PIECE:
                    await response.write(bytes(held))
                    held = bytearray()
        await response.write(bytes(held))
        await response.write_eof()
        return response
    finally:
        await archive.aclose()  # type: ignore[attr-defined]


async def write_archive(call: Call) -> None:
    """Unpack a tar archive (not compressed) into a directory: owners, modes, times and links as it says. Files that are
    there are replaced. If it fails half-way, what was unpacked stays.
    """
    await _files(call).unpack(call.query["path"], call.chunks())


# --- names -----------------------------------------------------------------------------------------------------------


async def stat(call: Call) -> FileInfo:
    """Of a link, of the link itself unless `follow`."""
    return await _files(call).stat(call.query["path"], follow=call.query.get("follow", False))


async def index(call: Call) -> Any:
    """What is in a directory, in order of path; with `depth` also what is below."""
    return await _files(call).list(call.query["path"], call.query.get("depth", 1))


async def mkdir(call: Call) -> FileInfo:
    """Conflict if something is there; with `parents` a directory may be, and missing ones above are made."""
    query = call.query
    return await call.whole(
        _files(call).mkdir(
            query["path"], mode=query.get("mode", 0o755), user=query.get("user", ""),
            parents=query.get("parents", False),
        )
    )  # fmt: skip


async def move(call: Call) -> FileInfo:
    """As rename(2): a file at `to` is replaced, both are on one file system."""
    return await call.whole(_files(call).move(call.query["path"], call.query["to"]))


async def remove(call: Call) -> None:
    """A file or link or, with `recursive`, all below a directory; without, only an empty one."""
    await call.whole(_files(call).remove(call.query["path"], recursive=call.query.get("recursive", False)))


async def chmod(call: Call) -> FileInfo:
    """Set permission bits; a link is followed."""
    return await call.whole(_files(call).chmod(call.query["path"], call.query["mode"]))


async def chown(call: Call) -> FileInfo:
    """Give it to another user of the sandbox; a link is followed."""
    return await call.whole(_files(call).chown(call.query["path"], call.query["user"]))


async def watch(call: Call) -> web.StreamResponse:
    """What changes, a line each, until the client leaves or the sandbox ends. The answer begins once it is watched;
    `overflow`: some changes were too many to be told.
    """
    async with contextlib.AsyncExitStack() as stack:
        events = await stack.enter_async_context(
            _files(call).watching(call.query["path"], recursive=call.query.get("recursive", False))
        )
        lines = await call.lines()
        with contextlib.suppress(JoeyError):
            async for event in events:
                await lines.write(event)
        return await lines.end()


_PATH = params.text("path", "Absolute path inside the sandbox", longest=4095, empty=False).needed()
_PARENTS = params.flag("parents", "Make missing directories above")
_USER = params.text("user", "Owner: name or uid, with :group or :gid; root if it is new", longest=256)


def _octal(text: str) -> int:
    if not (0 < len(text) <= 5 and all(char in "01234567" for char in text)) or int(text, 8) > 0o7777:
        raise ValueError(f"{text!r} is not an octal mode")
    return int(text, 8)


def _mode(doc: str) -> Param:
    return Param("mode", doc, {"type": "string", "pattern": "^0?[0-7]{1,4}$", "examples": ["644"]}, _octal)


_BASE = "/v1/sandboxes/{ref}/files"
ROUTES = (
    Route(
        "GET", _BASE, read, "Read a file", tag="files", query=(_PATH,), answer=bytes, media=BINARY, stream=True,
        also={206: Answer(bytes, BINARY, "A part of it")},
    ),
    Route(
        "PUT", _BASE, write, "Write a file", tag="files", body=bytes, body_media=BINARY, body_optional=True,
        query=(_PATH, _mode("Permission bits, octal; 644 for a new file"), _USER, _PARENTS), answer=FileInfo,
        stream=True,
    ),
    Route(
        "DELETE", _BASE, remove, "Remove a file or directory", tag="files", status=204,
        query=(_PATH, params.flag("recursive", "A directory with all below it")),
    ),
    Route(
        "GET", _BASE + "/stat", stat, "Look at one file", tag="files", answer=FileInfo,
        query=(_PATH, params.flag("follow", "What a link points to")),
    ),
    Route(
        "GET", _BASE + "/list", index, "List a directory", tag="files", answer=list[FileInfo],
        query=(_PATH, params.integer("depth", "Levels to go down", low=1, high=400, default=1)),
    ),
    Route(
        "POST", _BASE + "/mkdir", mkdir, "Make a directory", tag="files", answer=FileInfo,
        query=(_PATH, _mode("Permission bits, octal (755)"), _USER, _PARENTS),
    ),
    Route(
        "POST", _BASE + "/move", move, "Move or rename", tag="files", answer=FileInfo,
        query=(_PATH, params.text("to", "Its new absolute path", longest=4095, empty=False).needed()),
    ),
    Route(
        "POST", _BASE + "/chmod", chmod, "Change permissions", tag="files", answer=FileInfo,
        query=(_PATH, _mode("Permission bits, octal").needed()),
    ),
    Route(
        "POST", _BASE + "/chown", chown, "Change the owner", tag="files", answer=FileInfo,
        query=(_PATH, params.text("user", "Name or uid, with :group or :gid", longest=256, empty=False).needed()),
    ),
    Route(
        "GET", _BASE + "/archive", read_archive, "Download a tree", tag="files", query=(_PATH,), answer=bytes,
        media=TAR, stream=True,
    ),
    Route(
        "PUT", _BASE + "/archive", write_archive, "Upload a tree", tag="files", query=(_PATH,), body=bytes,
        body_media=TAR, status=204, stream=True,
    ),
    Route(
        "GET", _BASE + "/watch", watch, "Follow changes", tag="files", stream=True, answer=FileEvent, media=NDJSON,
        query=(_PATH, params.flag("recursive", "Also in directories below, at most 8,192 of them")),
    ),
)  # fmt: skip
