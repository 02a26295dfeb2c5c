"""docker cp and export: archives of a container's files. One that does not run: stopped.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator

from joey.api import archives
from joey.api.facades.docker import stopped, views
from joey.api.facades.docker.base import Refused, Req, Route
from joey.api.light import web
from joey.api.routes import TAR
from joey.api.transfer import cut_off
from joey.model.errors import Invalid, NotFound
from joey.model.views import FileInfo

# Go's os.FileMode: permission bits as they are, kinds above them.
_KINDS = {"directory": 1 << 31, "link": 1 << 27, "fifo": 1 << 25, "socket": 1 << 24, "block": 1 << 26,
          "char": (1 << 26) | (1 << 21), "file": 0}  # fmt: skip


async def _at(r: Req) -> tuple[str, str, bool]:
    """(id, path, whether it runs)."""
    id, path = r.id, r.query.get("path", "")
    if not path:
        raise Invalid("", "missing query parameter: path")
    state = (await r.engine.inspect(id)).sandbox.state
    return id, posixpath.normpath("/" + path), state in ("running", "paused")


@contextlib.asynccontextmanager
async def _there(r: Req) -> AsyncIterator[tuple[FileInfo, Callable[[], AsyncIterator[bytes]]]]:
    """(what is at the path, what packs it). A link is followed if the path ends with a slash. Raises NotFound."""
    id, path, runs = await _at(r)
    follow = r.query["path"].endswith(("/", "/."))
    top = "." if r.query["path"].endswith(".") else ""  # of "/" the client expects names that begin with a slash
    try:
        if runs:
            yield await r.engine.files(id).stat(path, follow=follow), lambda: r.engine.files(id).pack(path, root=top)
            return
        async with stopped.tree_of(r, id) as tree:
            real, info = await asyncio.to_thread(stopped.info, tree, path, follow=follow)
            yield info, lambda: _in_thread(stopped.packed(tree, real, info.name or top or "/"))
    except NotFound:
        raise NotFound("", f"Could not find the file {path} in container {r.path['id']}") from None


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(archives.some, pieces):
        yield piece


def _header(info: FileInfo) -> dict[str, str]:
    mode = info.mode & 0o777 | _KINDS[info.type]
    for bit, go in ((0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)):
        mode |= go if info.mode & bit else 0
    told = {
        "name": info.name or "/", "size": info.size, "mode": mode, "mtime": views.stamp(info.modified),
        "linkTarget": info.target,
    }  # fmt: skip
    return {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(told).encode()).decode()}


async def stat(r: Req) -> web.Response:
    async with _there(r) as (info, _):
        return web.Response(headers=_header(info))


async def read(r: Req) -> web.StreamResponse:
    """A tree or a file as an archive whose first name is the last of the path."""
    async with _there(r) as (info, pack):
        if info.type in ("socket", "block", "char"):
            raise Invalid("", f"{r.query['path']} is no file, directory or link ({info.type}): it cannot be copied")
        response = web.StreamResponse(headers={"Content-Type": TAR, **_header(info)})
        await response.prepare(r.request)
        with cut_off(r.request):
            async for piece in pack():
                await response.write(piece)
        await response.write_eof()
        return response


async def write(r: Req) -> web.Response:
    """Unpack an archive, plain or compressed, into a directory. noOverwriteDirNonDir is always so."""
    id, path, runs = await _at(r)
    user = (await r.engine.inspect(id)).spec.process.user.partition(":")[0]
    if r.flag("copyUIDGID") and user not in ("", "0", "root"):
        raise Refused("copyUIDGID", "files are not given to the container's user: docker exec chown")
    if r.request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("Content-Encoding", "send the archive as it is")
    if not runs:
        await stopped.write(r, id, path)
        return web.Response(status=200)
    try:
        info = await r.engine.files(id).stat(path, follow=True)
    except NotFound:
        raise NotFound("", f"Could not find the file {path} in container {r.path['id']}") from None
    if info.type != "directory":
        raise Invalid("", f"extraction point is not a directory: {path}")
    await r.whole(r.engine.files(id).unpack(path, r.chunks()))
    return web.Response(status=200)


async def export(r: Req) -> web.StreamResponse:
    """The whole file system."""
    id = r.id
    snapshots = getattr(r.engine, "snapshots", None)
    if snapshots is None:
        raise Refused("export", "this engine keeps no images")
    own = r.images
    image = await r.whole(snapshots.for_forks(r.engine.find(id)))  # type: ignore[attr-defined]
    try:
        return await archives.send_tree(r, own, image)  # type: ignore[arg-type]
    finally:
        snapshots.drop(image)


ROUTES = (
    Route("HEAD", "/containers/{id}/archive", stat, "path"),
    Route("GET", "/containers/{id}/archive", read, "path"),
    Route("PUT", "/containers/{id}/archive", write, "path noOverwriteDirNonDir copyUIDGID"),
    Route("GET", "/containers/{id}/export", export),
)
