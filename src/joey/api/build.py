"""POST /v1/images/build: an image from a Dockerfile and a context. The answer is NDJSON, a line an event:

    {"step": 2, "total": 5, "stage": "base", "instruction": "RUN …", "line": 3}   a step begins
    {"pull": "debian:12", "id": …, "status": …, "done": …, "total": …}            of an image it starts from
    {"output": "…", "stream": 1}                                                  what a RUN prints; 2 is stderr
    {"done": 2, "cached": false, "seconds": 1.25}                                 that step is done
    {"warning": "…"}
    {"image": …} or {"error": problem}                                            the last line

When the client leaves, the build stops and its step's sandbox is removed; layers that are done stay for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from joey.api import params, problem
from joey.api.images import ImageView, library_of
from joey.api.light import web
from joey.api.routes import NDJSON, TAR, Call, Route
from joey.api.transfer import Incoming, received
from joey.build import session
from joey.build.workshop import NETWORKS, Options, Workshop
from joey.images import library
from joey.model.errors import Invalid, JoeyError

Write = Callable[[dict[str, Any]], Awaitable[None]]
Flush = Callable[[], Awaitable[None]]
_WAITING = 256


class BuildLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a build's answer."""

    step: int = 0
    total: int = 0
    stage: str = ""
    instruction: str = ""
    line: int = 0
    pull: str = ""
    id: str = ""
    status: str = ""
    output: str = ""
    stream: int = 0
    done: int = 0
    cached: bool = False
    seconds: float = 0.0
    warning: str = ""
    image: ImageView | None = None
    error: dict[str, Any] | None = None


class News:
    """Lines on their way to the client; what produces many of them waits for it."""

    def __init__(self) -> None:
        self.lines: deque[dict[str, Any]] = deque()
        self.changed, self.drained = asyncio.Event(), asyncio.Event()

    def tell(self, event: dict[str, Any]) -> None:
        """What the builder says."""
        if "pull" in event:  # only the newest of each layer counts
            for old in [one for one in self.lines if one.get("pull") == event["pull"] and one["id"] == event["id"]]:
                self.lines.remove(old)
        self.add(event)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.changed.set()

    async def room(self) -> None:
        while len(self.lines) > _WAITING:
            self.drained.clear()
            await self.drained.wait()

    async def follow(self, task: asyncio.Future[Any], write: Write, flush: Flush | None = None) -> None:
        """Write all there is until `task` is done, whose end is a change, too."""
        while not task.done():
            await self.changed.wait()
            await self._send(write, flush)
        await self._send(write, flush)

    async def _send(self, write: Write, flush: Flush | None) -> None:
        self.changed.clear()
        while self.lines:
            await write(self.lines.popleft())
            self.drained.set()
        if flush:
            await flush()


@contextlib.asynccontextmanager
async def carried_out(
    engine: Any, own: library.Library, place: Path, name: str, options: Options, extras: session.Extras, news: News
) -> AsyncIterator[asyncio.Future[Any]]:
    """The build of the Dockerfile `name` of the context in `place`, as it runs; cancelled if it still does at the end.
    Raises Invalid for a Dockerfile that is none.
    """
    file = await asyncio.to_thread(session.read, place, name, extras.dockerfile)
    plan = session.plan(file, options)
    shop = Workshop(engine, own, place, options, news.tell, news.room)
    task = asyncio.ensure_future(session.carry_out(shop, file, plan))
    task.add_done_callback(lambda _: news.changed.set())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def tidy(engine: Any) -> None:
    """At the engine's start: what a killed engine's builds have left. Nothing for an engine without images."""
    instance = getattr(engine, "instance", None)
    if instance is not None:
        await session.tidy(engine, library.of(instance))


async def build_image(call: Call) -> web.StreamResponse:
    """Build an image."""
    own = library_of(call)
    async with session.folder(own.store) as place:
        extras = await receive(call, place)
        options = _options(call.query, extras)
        name, news = call.query.get("file", "Dockerfile"), News()
        async with carried_out(call.engine, own, place, name, options, extras, news) as task:
            lines = await call.lines()
            await news.follow(task, lines.add, lines.flush)
            await session.remove(place)  # who has the answer finds nothing left
            await lines.write(_outcome(task, own))
            return await lines.end()


def _outcome(task: asyncio.Future[Any], own: Any) -> dict[str, Any]:
    error = task.exception()
    if isinstance(error, JoeyError):
        return {"error": problem.document(error)}
    if error is not None:
        return {"error": problem.unexpected(error)}
    own.changed()
    return {"image": own.summary(own.store.find(task.result().digest))}


async def receive(call: Incoming, place: Path) -> session.Extras:
    """The context, unpacked into a build's directory; → what came beside it."""
    return await received(call, place, "context", lambda file: session.receive(file, place))


def _options(query: dict[str, Any], extras: session.Extras) -> Options:
    arguments = dict(_pair(text, "build-arg") for text in query.get("build-arg", ()))
    epoch = arguments.get("SOURCE_DATE_EPOCH", "")
    if epoch and not (epoch.isdecimal() and len(epoch) < 12):
        raise Invalid("build-arg", f"SOURCE_DATE_EPOCH={epoch} is no number of seconds")
    return Options(
        tags=tuple(query.get("tag", ())), target=query.get("target", ""), arguments=arguments,
        labels=dict(_pair(text, "label") for text in query.get("label", ())),
        no_cache=query.get("no-cache", False), pull=query.get("pull", False), network=query.get("network", "default"),
        platform=query.get("platform", ""), epoch=int(epoch) if epoch else None, secrets=extras.secrets,
    )  # fmt: skip


def _pair(text: str, field: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise Invalid(field, f"{text!r} has no name", "NAME=VALUE")
    return name, value


_BUILD = (
    params.text("tag", "A name for the image", empty=False).times(),
    params.text("file", "The Dockerfile, a path of the context; Dockerfile by default", empty=False),
    params.text("target", "The stage to build, the last by default"),
    params.text("build-arg", "NAME=VALUE of an ARG", longest=65536).times(),
    params.text("label", "NAME=VALUE", longest=65536).times(),
    params.flag("no-cache", "Do every step again"),
    params.flag("pull", "Ask the registry for a newer image of every FROM"),
    params.choice("network", "The network of RUN steps", NETWORKS, "default"),
    params.text("platform", "Refused unless it is this machine's own"),
)

ROUTES = (
    Route(
        "POST", "/v1/images/build", build_image, "Build an image from a Dockerfile", tag="images",
        description=(
            "The body is the context, a tar archive, perhaps compressed. A member `.joey-build.json` of it is no file "
            "of the context but a JSON object: `dockerfile` (base64: the text, if it is no file of the context) and "
            "`secrets` (id: base64)."
        ),
        query=_BUILD, body=bytes, body_media=TAR, answer=BuildLine, media=NDJSON, stream=True, admin=True,
    ),
)  # fmt: skip
