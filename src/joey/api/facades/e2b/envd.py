"""envd's plain HTTP: health and files; users and paths as envd sees them, and what all of it shares.

Here envd is not a program in the sandbox but the engine's own means (exec, files), so it works with every image.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import posixpath
import re
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from joey.api.facades.e2b.call import EnvdCall
from joey.api.facades.e2b.errors import Failure
from joey.api.facades.e2b.kinds import BUILD
from joey.api.light import web
from joey.api.routes import BINARY, Route
from joey.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from joey.api.facades.e2b.entry import E2B
    from joey.api.facades.e2b.filesystem import Watcher
    from joey.engine.interface import Engine

VERSION = "0.5.7"
"""Of envd, as far as SDKs ask for it: files as octet streams, yes; metadata of files, no."""
DEFAULT_USER = "user"
RESUME = "joey.e2b.resume"
"""Label of a sandbox that a request thaws."""
_PASSWD_BYTES = 1 << 18
_KEPT = 4096
_PIECE = 1 << 18
_FILENAME = re.compile(r'\bfilename="((?:[^"\\]|\\.)*)"')


class State:
    """What the façade remembers of sandboxes: home directories by user of each, and watchers."""

    def __init__(self) -> None:
        self.homes: dict[str, dict[str, str]] = {}
        self.watchers: dict[str, Watcher] = {}


async def awake(call: EnvdCall) -> None:
    """A paused sandbox answers nothing, unless it was made with autoResume. Raises Failure."""
    if call.detail.sandbox.state != "paused":
        return
    if RESUME not in call.detail.sandbox.labels:
        raise Failure(502, "The sandbox was not found: it is paused (connect to it first)")
    await call.whole(call.engine.resume(call.ref))


# --- users and paths -------------------------------------------------------------------------------------------------


async def user_of(call: EnvdCall, named: str = "") -> tuple[str, str]:
    """(name, home directory) of the user a request is for: named, else of the Authorization header, else the default:
    what its template was built with, else `user` where the sandbox has one, else its main program's. Raises Failure
    (unauthenticated).
    """
    name = named or _basic(call.request.headers.get("Authorization", ""))
    homes = await _homes(call)
    if name and name not in homes:
        homes = await _homes(call, anew=True)  # it may have been added meanwhile
    if name and name not in homes:
        raise Failure(401, f"invalid username: '{name}' (the sandbox has {', '.join(sorted(homes)[:8]) or 'none'})")
    if not name:
        own = call.detail.spec.process.user
        name = own if own and BUILD in call.detail.sandbox.labels else DEFAULT_USER if DEFAULT_USER in homes else own
    return name, homes.get(name or "root", "/")


def _basic(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise Failure(401, "Authorization is not HTTP Basic") from None


async def _homes(call: EnvdCall, anew: bool = False) -> dict[str, str]:
    """Of the sandbox's /etc/passwd; of several sandboxes of one image the first one's, until a name is missing."""
    kept, image = call.state.homes, call.detail.sandbox.image
    for key in (call.ref, image):
        if not anew and key in kept:
            return kept[key]
    held = bytearray()
    try:
        async for piece in call.engine.files(call.ref).read("/etc/passwd", 0, _PASSWD_BYTES):
            held += piece
    except (NotFound, Invalid):
        pass
    found = {}
    for line in held.decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 7:
            found[fields[0]] = fields[5] or "/"
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[call.ref if anew else image] = found
    return found


def absolute(path: str, home: str) -> str:
    """A path as envd takes it: relative to the user's home. Raises Invalid."""
    if "\0" in path:
        raise Invalid("path", "holds a NUL character")
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return posixpath.normpath("/" + posixpath.join(home, path).lstrip("/"))


# --- links with a signature ------------------------------------------------------------------------------------------


def signature_holds(request: web.Request, token: str, signature: str) -> bool:
    """Of `download_url` and `upload_url`: a hash of path, operation, user, the sandbox's token and the last moment."""
    query = request.query
    operation = "read" if request.method == "GET" else "write"
    parts = [query.get("path", ""), operation, query.get("username", ""), token]
    if last := query.get("signature_expiration"):
        if not (last.isascii() and last.isdigit() and len(last) < 16) or int(last) < time.time():
            return False
        parts.append(last)
    digest = hashlib.sha256(":".join(parts).encode()).digest()
    wanted = "v1_" + base64.b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(wanted.encode(), signature.encode())


async def signed_for(engine: Engine, e2b: E2B, request: web.Request, signature: str) -> str:
    """The sandbox a link is for: it does not say, where all are reached by one address. Raises Failure."""
    from joey.engine.interface import Filter

    for sandbox in await engine.list(Filter()):
        if signature_holds(request, e2b.token(sandbox.id), signature):
            return sandbox.id
    raise Failure(401, "the signature is wrong or has expired")


# --- routes ----------------------------------------------------------------------------------------------------------


async def health(call: EnvdCall) -> None:
    """204 while the sandbox runs."""


async def read(call: EnvdCall) -> web.StreamResponse:
    """A file's bytes."""
    _, home = await user_of(call, call.request.query.get("username", ""))
    path = absolute(call.request.query.get("path", ""), home)
    async with call.engine.files(call.ref).reading(path) as reading:
        size = reading.info.size
        response = web.StreamResponse(headers={"Content-Type": BINARY})
        response.headers["Content-Disposition"] = "inline"
        if size:
            response.content_length = size
        await response.prepare(call.request)
        left = size
        async for piece in reading.chunks:
            if size:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                await response.write(piece)
            if size and not left:
                break
        if left and call.request.transport is not None:
            call.request.transport.abort()  # it has shrunk: a body that is cut off says so
            raise ConnectionResetError("the file has changed while it was read")
        await response.write_eof()
        return response


async def write(call: EnvdCall) -> Any:
    """One file of an octet stream, or those of a form: of one the name is `path`, of several their file names."""
    query = call.request.query
    user, home = await user_of(call, query.get("username", ""))
    files = call.engine.files(call.ref)
    if any(name.lower().startswith("x-metadata-") for name in call.request.headers):
        raise Failure(501, "metadata of files is not supported by Joey")
    written = []

    async def store(path: str, chunks: AsyncIterator[bytes]) -> None:
        info = await files.write(absolute(path, home), chunks, user=user, parents=True)
        written.append({"name": info.name, "type": "file", "path": info.path})

    if call.request.content_type == "multipart/form-data":
        try:
            form = await call.request.multipart()
            async for part in form:
                if part is None or not hasattr(part, "read_chunk"):
                    raise Invalid("body", "is a form within a form")
                name = query.get("path") or _filename(part.headers.get("Content-Disposition", ""))
                if not name:
                    raise Invalid("path", "is missing")
                await store(name, _part(part))
        except ValueError as error:
            if isinstance(error, Invalid):
                raise
            raise Invalid("body", f"is no form: {error}") from None
        if not written:
            raise Invalid("body", "holds no file")
    elif call.request.content_type == BINARY:
        if not query.get("path"):
            raise Invalid("path", "is missing")
        await store(query["path"], call.chunks())
    else:
        raise Failure(415, f"{call.request.content_type}: send multipart/form-data or {BINARY}")
    return written


def _filename(header: str) -> str:
    """Of a part of a form, whole: as browsers and SDKs escape it (HTML, multipart/form-data encoding algorithm)."""
    match = _FILENAME.search(header)
    name = match[1] if match else ""
    for escaped, character in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"), ('\\"', '"')):
        name = name.replace(escaped, character)
    return name


async def _part(part: Any) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(_PIECE):
        yield piece


ROUTES = (
    Route("GET", "/health", health, "Whether the sandbox runs", status=204),
    Route("GET", "/files", read, "Read a file"),
    Route("POST", "/files", write, "Write files"),
)
