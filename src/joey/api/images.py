"""/v1/images: what sandboxes are made from. Long work answers line by line (NDJSON): progress, then what came of it.

A line is {"id", "status", "done", "total"} (of one layer; bytes), the last one {"image": …} or {"error": problem}.
What fails before anything was transferred is an ordinary problem document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from joey.api import params, problem
from joey.api.light import web
from joey.api.routes import NDJSON, Call, Route
from joey.images import index, library, reference, store_gc
from joey.images.store_gc import Damage, Swept
from joey.model.errors import Broken, Invalid, JoeyError
from joey.model.value import Value

_EVERY = 0.1
"""Seconds between two reports of progress."""


class PullBody(Value, frozen=True, kw_only=True):
    """An image to fetch. platform: such as linux/arm64, this machine's own by default. policy: when to ask for it."""

    reference: str
    platform: str = ""
    policy: library.Policy = "always"


class PushBody(Value, frozen=True, kw_only=True):
    """An image to send. target: the name to send it as, its own by default. chunk: bytes of a request, 0 for whole
    blobs.
    """

    name: str
    target: str = ""
    chunk: int = 0


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `joey image ls`. id: the manifest's digest. size: bytes, unpacked. layers: how many. sandboxes: that
    use it. digests: NAME@DIGEST, as its registries know it.
    """

    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    config: str
    platform: str
    created: str
    added: float
    size: int
    layers: int
    sandboxes: int


class LayerView(msgspec.Struct, frozen=True, kw_only=True):
    """blob: as a registry has it, `compressed` bytes; diff_id: the archive's digest; size: bytes unpacked."""

    diff_id: str
    blob: str
    media_type: str
    compressed: int
    size: int


class ImageDetail(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to know. oci: its configuration as it is (OCI image-spec config.md)."""

    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    config: str
    platform: str
    created: str
    added: float
    size: int
    sandboxes: int
    media_type: str
    layers: tuple[LayerView, ...]
    oci: dict[str, Any]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One of those an image was made in. size: bytes of its layer, unpacked."""

    created: str
    created_by: str
    size: int
    comment: str
    empty_layer: bool


class Removed(msgspec.Struct, frozen=True):
    """Names, and ids of images that had no other name."""

    names: tuple[str, ...]
    images: tuple[str, ...]


class Tagged(msgspec.Struct, frozen=True):
    """The new name in full."""

    name: str


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Progress of one layer, and at the end what came of it."""

    id: str = ""
    status: str = ""
    done: int = 0
    total: int = 0
    image: ImageView | None = None
    digest: str = ""
    error: dict[str, Any] | None = None


def library_of(call: Call) -> library.Library:
    """The images of the engine's instance. Raises Broken for an engine without any (a fake)."""
    instance = getattr(call.engine, "instance", None)
    if instance is None:
        raise Broken("images", "this engine keeps no images")
    return library.of(instance)


def seen(call: Call, name: str) -> str:
    """What the caller means by the name of an image. Raises ImageError for a snapshot of somebody else's sandbox."""
    own = library_of(call)
    return own.seen_as(name, call.owner) if call.owner and own.exists else name


async def images(call: Call) -> Any:
    """Every image, the newest first; of snapshots the caller's."""
    own = library_of(call)
    if not own.exists:
        return []
    shown = (one for one in own.store.all() if library.visible(one, call.owner))
    return [own.summary(one) for one in shown if not one.source.startswith("fork:")]


async def image(call: Call) -> Any:
    """One image, by name, id or unique beginning of an id."""
    return library_of(call).detail(seen(call, call.path["name"]))


async def history(call: Call) -> Any:
    """How it was made, the newest step first."""
    return library_of(call).history(seen(call, call.path["name"]))


async def remove_image(call: Call) -> Removed:
    """Remove a name; with its last name the image goes."""
    work = library_of(call).remove(call.path["name"], force=call.query.get("force", False))
    names, gone = await call.whole(work)
    return Removed(tuple(names), tuple(gone))


async def tag_image(call: Call) -> Tagged:
    """Another name for an image."""
    return Tagged(library_of(call).tag(call.path["name"], call.query["name"]))


async def prune_images(call: Call) -> Swept:
    """Remove images without a name that no sandbox uses, and what is left of interrupted pulls."""
    return await call.whole(library_of(call).prune(all=call.query.get("all", False)))


async def verify_images(call: Call) -> list[Damage]:
    """Hash everything again; what is damaged, an empty list if nothing is."""
    store = library_of(call).store
    chosen = [store.find(name) for name in call.query["name"]] if "name" in call.query else None
    repair, full = call.query.get("repair", False), call.query.get("full", False)
    found = await call.whole(asyncio.to_thread(store_gc.verify, store, chosen, repair=repair, full=full))
    library_of(call).changed()
    return found


async def pull_image(call: Call) -> web.StreamResponse:
    """Fetch an image."""
    body: PullBody = await call.body()
    own = library_of(call)
    reference.parse(body.reference, "reference")
    platform = index.parse_platform(body.platform) if body.platform else None

    async def work(listener: Callable[[Any], None]) -> dict[str, Any]:
        found = await own.obtain(body.reference, body.policy, platform, listener)
        return {"image": own.summary(found)}

    return await _reported(call, work)


async def push_image(call: Call) -> web.StreamResponse:
    """Send an image to a registry."""
    body: PushBody = await call.body()
    own = library_of(call)
    if body.chunk < 0:
        raise Invalid("chunk", "is negative")

    async def work(listener: Callable[[Any], None]) -> dict[str, Any]:
        digest = await own.push(body.name, body.target, listener, chunk=body.chunk)
        return {"digest": digest}

    return await _reported(call, work)


async def _reported(
    call: Call, work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, dict[str, Any]]]
) -> web.StreamResponse:
    """Do `work`, telling of its progress. It ends when the client leaves; what was transferred is kept for the next."""
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
        if task.done() and not task.cancelled() and (error := task.exception()) is not None and not news:
            raise error
        lines = await call.lines()
        while not task.done() or news:
            await changed.wait()
            changed.clear()
            told = list(news.values())
            news.clear()
            for progress in told:
                await lines.add(progress)
            await lines.flush()
            if not task.done():
                await _pause(task)
        await lines.write(_outcome(task))
        return await lines.end()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _pause(task: Awaitable[Any]) -> None:
    """A tenth of a second, or until it is done."""
    await asyncio.wait([asyncio.ensure_future(task)], timeout=_EVERY)


def _outcome(task: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
    error = task.exception()
    if isinstance(error, JoeyError):
        return {"error": problem.document(error)}
    if error is not None:
        return {"error": problem.unexpected(error)}
    return task.result()


_EXAMPLE = {"reference": "debian:12"}
_FORCE = params.flag("force", "Also if a sandbox uses it (its content then stays until that is gone)")
_ALL = params.flag("all", "Also images that have a name")
_FULL = params.flag("full", "Compare unpacked layers with their archives, too")
_REPAIR = params.flag("repair", "Forget what is damaged, so that a pull fetches it anew")

ROUTES = (
    Route("GET", "/v1/images", images, "List images", tag="images", answer=tuple[ImageView, ...]),
    Route(
        "POST", "/v1/images/pull", pull_image, "Fetch an image from a registry", tag="images", body=PullBody,
        answer=Line, media=NDJSON, stream=True, admin=True, example=_EXAMPLE,
    ),
    Route(
        "POST", "/v1/images/push", push_image, "Send an image to a registry", tag="images", body=PushBody,
        answer=Line, media=NDJSON, stream=True, admin=True, example={"name": "registry.example.com/team/app:1"},
    ),
    Route(
        "POST", "/v1/images/prune", prune_images, "Remove images that nothing uses", tag="images", query=(_ALL,),
        answer=Swept, admin=True,
    ),
    Route(
        "POST", "/v1/images/verify", verify_images, "Hash every blob again", tag="images", admin=True,
        query=(params.text("name", "Only these images").times(), _REPAIR, _FULL), answer=tuple[Damage, ...],
        stream=True,
    ),
    Route("GET", "/v1/images/{name}", image, "Everything about an image", tag="images", answer=ImageDetail),
    Route(
        "DELETE", "/v1/images/{name}", remove_image, "Remove a name, and with the last one the image", tag="images",
        query=(_FORCE,), answer=Removed, admin=True,
    ),
    Route(
        "POST", "/v1/images/{name}/tag", tag_image, "Give an image another name", tag="images",
        query=(params.text("name", "The new name", empty=False).needed(),), answer=Tagged, admin=True,
    ),
    Route(
        "GET", "/v1/images/{name}/history", history, "The steps an image was made in", tag="images",
        answer=tuple[Step, ...],
    ),
)  # fmt: skip
