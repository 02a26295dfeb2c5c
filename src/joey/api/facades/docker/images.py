"""/images: list, inspect, pull, push, load, save, import, tag, remove, history, prune."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fnmatch
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from typing import Any

from joey.api import archives
from joey.api.facades.docker.base import Refused, Req, Route, said_as
from joey.api.light import web
from joey.images import archive, archive_write, auth, index, instructions, reference
from joey.images.store import StoredImage
from joey.model import codec
from joey.model.errors import ImageError, Invalid, JoeyError
from joey.model.image import Image, Layer

_EVERY = 0.1


def _seconds(text: str) -> int:
    """RFC 3339 → seconds since the epoch."""
    with contextlib.suppress(ValueError):
        return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    return 0


def _row(r: Req, one: StoredImage) -> dict[str, Any]:
    found = r.images.summary(one)
    config = codec.decode(dict[str, Any], r.images.store.read_blob(one.config.digest))
    return {
        "Id": found["config"], "ParentId": "", "RepoTags": found["names"], "RepoDigests": found["digests"],
        "Created": _seconds(found["created"]), "Size": found["size"], "SharedSize": -1,
        "Labels": (config.get("config") or {}).get("Labels") or {}, "Containers": found["sandboxes"],
    }  # fmt: skip


async def all_of(r: Req) -> list[dict[str, Any]]:
    """A row for each image."""
    own = r.images
    if not own.exists:
        return []
    return [_row(r, one) for one in own.store.all() if not one.source.startswith("fork:")]


async def listed(r: Req) -> Any:
    filters = r.filters("reference", "label", "dangling", "before", "since")
    own, rows = r.images, await all_of(r)
    for name in ("before", "since"):
        for ref in filters.get(name, ()):
            at = _seconds(own.store.find(ref).created)
            rows = [row for row in rows if (row["Created"] < at) == (name == "before") and row["Created"] != at]
    rows = [row for row in rows if _chosen(row, filters)]
    for row in rows if filters.get("reference") else ():  # of an image with several names only those asked for
        row["RepoTags"] = [one for one in row["RepoTags"] if _named(one, filters["reference"])]
        kept = {one.rpartition(":")[0] for one in row["RepoTags"]}
        row["RepoDigests"] = [one for one in row["RepoDigests"] if one.partition("@")[0] in kept]
    return rows


def _named(tag: str, patterns: list[str]) -> bool:
    """Whether NAME:TAG fits one of the patterns, with or without the tag."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in (tag, tag.rpartition(":")[0]) for pattern in patterns)


def _chosen(row: dict[str, Any], filters: dict[str, list[str]]) -> bool:
    if patterns := filters.get("reference"):
        if not any(_named(one, patterns) for one in row["RepoTags"]):
            return False
    if dangling := filters.get("dangling"):
        if (not row["RepoTags"]) != (dangling[0] in ("true", "1")):
            return False
    for text in filters.get("label", ()):
        key, equals, value = text.partition("=")
        if key not in row["Labels"] or (equals and row["Labels"][key] != value):
            return False
    return True


_CONFIG = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None,
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip
"""What templates of --format find in every image of Docker's."""


async def inspect(r: Req) -> Any:
    name = r.path["name"]
    with said_as("image", name):
        found = r.images.detail(name)
    config = found["oci"]
    return {
        "Id": found["config"], "RepoTags": list(found["names"]), "RepoDigests": list(found["digests"]), "Parent": "",
        "Comment": "", "Created": config.get("created") or "", "DockerVersion": "", "Author": config.get("author", ""),
        "Config": {**_CONFIG, **(config.get("config") or {})}, "Architecture": config.get("architecture", ""),
        "Os": config.get("os", ""),
        "Size": found["size"], "GraphDriver": {"Name": "overlay", "Data": None},
        "RootFS": {"Type": "layers", "Layers": [layer["diff_id"] for layer in found["layers"]]},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    }  # fmt: skip


async def history(r: Req) -> Any:
    name = r.path["name"]
    with said_as("image", name):
        steps, image = r.images.history(name), r.images.store.find(name)
    rows = [
        {"Id": "<missing>", "Created": _seconds(step["created"]), "CreatedBy": step["created_by"], "Tags": None,
         "Size": step["size"], "Comment": step["comment"]}
        for step in steps
    ]  # fmt: skip
    if rows:
        rows[0]["Id"] = image.config.digest
        rows[0]["Tags"] = [reference.parse(one).familiar for one in image.names] or None
    return rows


async def tag(r: Req) -> web.Response:
    repo, name = r.query.get("repo", ""), r.path["name"]
    if not repo:
        raise Invalid("repo", "repository name must have at least one component")
    with said_as("image", name):
        full = f"{repo}:{r.query['tag']}" if r.query.get("tag") else repo
        r.images.tag(name, full)
    _tell(r, "tag", full)
    return web.Response(status=201)


def _tell(r: Req, action: str, name: str) -> None:
    r.tell("image", action, r.images.store.find(name).config.digest, name=reference.parse(name).familiar)


async def remove(r: Req) -> Any:
    name = r.path["name"]
    with said_as("image", name):
        found = r.images.store.find(name)
        names, gone = await r.whole(r.images.remove(name, force=r.flag("force")))
    for one in names:
        r.tell("image", "untag", found.config.digest, name=reference.parse(one).familiar)
    if gone:
        r.tell("image", "delete", found.config.digest, name=found.config.digest)
    rows = [{"Untagged": reference.parse(one).familiar} for one in names]
    return rows + ([{"Deleted": found.config.digest}] if gone else [])


async def prune(r: Req) -> Any:
    filters = r.filters("dangling")
    everything = filters.get("dangling", ["true"])[0] in ("false", "0")
    swept = await r.whole(r.images.prune(all=everything)) if r.images.exists else None
    gone = [{"Untagged": name} for name in swept.names] + [{"Deleted": id} for id in swept.images] if swept else []
    return {"ImagesDeleted": gone, "SpaceReclaimed": swept.bytes if swept else 0}


def _brought(r: Req, name: str) -> contextlib.AbstractContextManager[None]:
    """Inside, the credentials that came with the request hold for the registry of an image. Raises Invalid."""
    known = credentials_of(r.request.headers.get("X-Registry-Auth", ""))
    return _using(reference.parse(name).registry, known)


@contextlib.contextmanager
def _using(registry: str, known: auth.Credentials | None) -> Iterator[None]:
    token = auth.given.set((registry, known)) if known is not None else None
    try:
        yield
    finally:
        if token is not None:
            auth.given.reset(token)


def credentials_of(text: str) -> auth.Credentials | None:
    """Of a header: base64url of JSON (AuthConfig); None if there are none in it. Raises Invalid."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))) if text else {}
        identity, name, word = (found.get(key) or "" for key in ("identitytoken", "username", "password"))
    except (ValueError, AttributeError):
        raise Invalid("X-Registry-Auth", "is no base64 of an object of JSON") from None
    if not all(isinstance(one, str) for one in (identity, name, word)):
        raise Invalid("X-Registry-Auth", "has what is no text")
    return auth.Credentials(name, word, identity) if identity or name else None


async def create(r: Req) -> web.StreamResponse:
    """Pull (fromImage) or import (fromSrc=-)."""
    if r.query.get("fromSrc"):
        return await _import(r)
    name = r.query.get("fromImage", "")
    if not name:
        raise Invalid("fromImage", "no image is given")
    if not r.query.get("tag") and not (":" in name.rpartition("/")[2] or "@" in name):
        raise Refused("tag", "one image at a time: name its tag")  # to Docker no tag means all of them
    if r.query.get("tag"):
        name += ("@" if ":" in r.query["tag"] else ":") + r.query["tag"]
    if name.partition(":")[0] == "host":
        raise Invalid("fromImage", "host is this machine's own files: it is always there, and cannot be pulled")
    platform = index.parse_platform(r.query["platform"]) if r.query.get("platform") else None
    reference.parse(name, "fromImage")
    own, brought = r.images, _brought(r, name)

    async def work(listener: Callable[[Any], None]) -> list[dict[str, Any]]:
        before = own.store.find(name).digest if own.exists and _is_here(r, name) else ""
        with brought:
            found = await own.obtain(name, "always", platform, listener)
        familiar = reference.parse(name).familiar
        r.tell("image", "pull", familiar, name=familiar)
        said = "Image is up to date" if found.digest == before else "Downloaded newer image"
        return [{"status": f"Digest: {found.digest}"}, {"status": f"Status: {said} for {name}"}]

    return await _reported(r, work)


def _tags(r: Req, name: str) -> list[str]:
    """All names of a repository: what a push without a tag is of. Raises ImageError."""
    repository = reference.parse(name).repository
    names = (reference.parse(text) for one in r.images.store.all() for text in one.names)
    found = sorted(one.familiar for one in names if one.repository == repository and one.tag)
    if not found:
        raise ImageError("image", f"{name!r} is not here")
    return found


def _is_here(r: Req, name: str) -> bool:
    with contextlib.suppress(JoeyError):
        r.images.store.find(name)
        return True
    return False


async def push(r: Req) -> web.StreamResponse:
    name, own = r.path["name"], r.images
    brought = _brought(r, name)
    tagged = bool(r.query.get("tag")) or ":" in name.rpartition("/")[2]
    target = f"{name}:{r.query['tag']}" if r.query.get("tag") else name
    with said_as("image", target):
        targets = [target] if tagged else _tags(r, name)
        own.store.find(targets[0])

    async def work(listener: Callable[[Any], None]) -> list[dict[str, Any]]:
        lines = []
        with brought:
            for one in targets:
                digest = await own.push(one, one, listener)
                familiar = reference.parse(one).familiar
                r.tell("image", "push", familiar, name=familiar)
                lines.append({"status": f"{one}: digest: {digest}"})
        return lines

    return await _reported(r, work)


async def _reported(
    r: Req, work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, list[dict[str, Any]]]]
) -> web.StreamResponse:
    """Lines of progress, then what came of it. What fails before anything was transferred is an ordinary error."""
    news: dict[str, Any] = {}
    changed = asyncio.Event()

    def listen(progress: Any) -> None:
        if progress.id:
            news[progress.id] = progress
            changed.set()

    task = asyncio.ensure_future(work(listen))
    task.add_done_callback(lambda _: changed.set())
    try:
        await changed.wait()
        if task.done() and not news:
            task.result()
        response = await r.stream()
        while not task.done() or news:
            await changed.wait()
            changed.clear()
            for one in [news.pop(id) for id in list(news)]:
                await response.write(_line(_progress(one)))
            if not task.done():
                await asyncio.wait([task], timeout=_EVERY)
        try:
            for line in task.result():
                await response.write(_line(line))
        except JoeyError as failure:
            await response.write(_line({"errorDetail": {"message": str(failure)}, "error": str(failure)}))
        await response.write_eof()
        return response
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


_WORDS = {"downloading": "Downloading", "unpacking": "Extracting", "done": "Pull complete", "exists": "Already exists",
          "waiting": "Waiting", "resolving": "Pulling fs layer"}  # fmt: skip


def _progress(one: Any) -> dict[str, Any]:
    return {
        "id": one.id, "status": _WORDS.get(one.status, one.status.capitalize()),
        "progressDetail": {"current": one.done, "total": one.total} if one.total else {},
    }  # fmt: skip


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


async def _import(r: Req) -> web.StreamResponse:
    if r.query["fromSrc"] != "-":
        raise Refused("fromSrc", "Joey fetches no URL here: send the archive")
    repo = r.query.get("repo", "")
    if not repo:
        raise Refused("repo", "an image that is imported needs a name: docker import FILE NAME")
    name = f"{repo}:{r.query['tag']}" if r.query.get("tag") else repo
    reference.parse(name, "repo")
    empty = Image(name=name, layers=(Layer("x", "/"),))
    settings = instructions.change(empty, r.changes())
    platform = index.parse_platform(r.query["platform"]) if r.query.get("platform") else None
    comment, own = r.query.get("message", "") or "imported", r.images
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found = await archives.received(
        r, own, lambda file: archive.import_(
            own.store, file, name, settings=settings, platform=platform, comment=comment, created=created
        ),
    )  # fmt: skip
    r.tell("image", "import", found.config.digest, name=name)
    response = await r.stream()
    await response.write(_line({"status": found.config.digest}))
    await response.write_eof()
    return response


async def load(r: Req) -> web.StreamResponse:
    """Every image of an archive."""
    own = r.images
    platform = index.parse_platform(r.query["platform"]) if r.query.get("platform") else None
    try:
        found = await archives.received(r, own, lambda file: archive.load(own.store, file, platform=platform))
    except ImageError as failure:  # 404 would be an image that is missing
        raise Invalid("", str(failure)) from None
    response = await r.stream()
    for one in found:
        r.tell("image", "load", one.config.digest, name=one.config.digest)
        names = [f"Loaded image: {reference.parse(name).familiar}\n" for name in one.names]
        for text in names or [f"Loaded image ID: {one.config.digest}\n"]:
            await response.write(_line({"stream": text}))
    await response.write_eof()
    return response


async def save(r: Req) -> web.StreamResponse:
    """An archive of one image, or of those given by `names`."""
    names = r.many("names") if "name" not in r.path else [r.path["name"]]
    for name in names:
        with said_as("image", name):
            r.images.store.find(name)
    return await archives.send(r, archive_write.save(r.images.store, names, "docker"))


async def search(r: Req) -> Any:
    raise Refused("search", "registries are not searched: docker pull NAME")


ROUTES = (
    Route("GET", "/images/json", listed, "all filters digests"),
    Route("POST", "/images/create", create, "fromImage fromSrc repo tag message changes platform"),
    Route("POST", "/images/load", load, "quiet platform"),
    Route("GET", "/images/get", save, "names"),
    Route("GET", "/images/search", search, "term limit filters"),
    Route("POST", "/images/prune", prune, "filters"),
    Route("GET", "/images/{name}/json", inspect),
    Route("GET", "/images/{name}/history", history),
    Route("GET", "/images/{name}/get", save),
    Route("POST", "/images/{name}/tag", tag, "repo tag"),
    Route("POST", "/images/{name}/push", push, "tag"),
    Route("DELETE", "/images/{name}", remove, "force noprune"),
)
