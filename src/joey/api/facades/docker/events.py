"""/events: what the engine tells of containers, and what is done by this API, merged in order of time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from joey.api.facades.docker.base import Refused, Req, Route
from joey.api.light import web
from joey.engine.interface import Engine
from joey.model.errors import JoeyError
from joey.model.views import Event

_ACTIONS = {
    "created": "create", "started": "start", "exited": "die", "paused": "pause", "resumed": "unpause",
    "updated": "update", "renamed": "rename", "removed": "destroy", "oom": "oom",
}  # fmt: skip
_TYPES = ("container", "image", "network", "volume")


async def events(r: Req) -> web.StreamResponse:
    """As they come; `since` gives first what is newer of the last 10,000 of the engine and of this API."""
    filters = r.filters("container", "event", "type", "label", "image", "network", "volume", "scope")
    if unknown := [kind for kind in filters.get("type", []) if kind not in _TYPES]:
        raise Refused("", f"Joey has no events of type {unknown[0]}: {', '.join(_TYPES)}")
    since, until = r.moment("since"), r.moment("until")
    response = await r.stream()
    found = _all(r, since, until)
    try:
        async for event in found:
            if told := _told(r, event, filters):
                await response.write(json.dumps(told).encode() + b"\n")
    finally:
        await found.aclose()  # type: ignore[attr-defined]
    await response.write_eof()
    return response


async def _all(r: Req, since: float | None, until: float | None) -> AsyncIterator[Event]:
    """Of both sources. Ends at `until`, without it never."""
    sources = (_engine(r.engine), _own(r))
    after: list[int | None] = [None, None]
    if since is not None:
        past: list[Event] = []
        for at, read in enumerate(sources):
            kept = [event async for event in read(0, False)]
            after[at] = kept[-1].id if kept else 0
            past += kept
        for event in sorted(past, key=lambda event: event.at):
            if event.at >= since and (until is None or event.at <= until):
                yield event
    if until is not None and until <= time.time():
        return
    queue: asyncio.Queue[Event] = asyncio.Queue(256)
    tasks = [asyncio.ensure_future(_into(queue, read(last, True))) for read, last in zip(sources, after, strict=True)]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else max(0.0, until - time.time())):
                while True:
                    yield await queue.get()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _engine(engine: Engine) -> Any:
    return lambda after, follow: engine.events(after, follow=follow, types=("sandbox.",))


def _own(r: Req) -> Any:
    return lambda after, follow: r.state.news.read(after, follow=follow, wanted=lambda event: True)


async def _into(queue: asyncio.Queue[Event], found: Any) -> None:
    try:
        async for event in found:
            await queue.put(event)
    finally:
        await found.aclose()


def _told(r: Req, event: Event, filters: dict[str, list[str]]) -> dict[str, Any] | None:
    """In Docker's words; None for what it has no word for, and what is not asked for."""
    kind, _, action = event.type.partition(".")
    attributes = {**event.labels, "name": event.name or event.sandbox}
    if kind == "sandbox":
        kind = "container"
        attributes["image"] = image = _image(r, event)
        action = _action(event, action)
        attributes |= _extra(event, action)
    else:
        attributes |= {key: str(value) for key, value in event.data.items()}
        image = attributes.get("image" if kind == "container" else "name", "")
    if not action or not _wanted(event, kind, action, image, filters):
        return None
    if kind == "container":
        r.state.image(event.sandbox, image)
    shown: dict[str, Any] = {
        "Type": kind, "Action": action, "scope": "local", "Actor": {"ID": event.sandbox, "Attributes": attributes},
        "time": int(event.at), "timeNano": int(event.at * 1e9),
    }  # fmt: skip
    if kind in ("container", "image"):
        shown |= {"status": action, "id": event.sandbox}
        if kind == "container":
            shown["from"] = image
    return shown


def _action(event: Event, name: str) -> str:
    if name == "health" and event.data.get("health") != "starting":
        return f"health_status: {event.data.get('health')}"
    return _ACTIONS.get(name, "")


def _extra(event: Event, action: str) -> dict[str, str]:
    if action == "die":
        return {"exitCode": str(event.data.get("code", ""))}
    if action == "rename":
        return {"oldName": "/" + str(event.data.get("before", ""))}
    return {}


def _image(r: Req, event: Event) -> str:
    if known := r.state.image(event.sandbox):
        return known
    with contextlib.suppress(JoeyError):
        found: str = r.engine.find(event.sandbox).spec.image  # type: ignore[attr-defined]
        return r.state.image(event.sandbox, found)
    return ""


def _wanted(event: Event, kind: str, action: str, image: str, filters: dict[str, list[str]]) -> bool:
    """All filters hold; of one filter's values any."""

    def label(value: str) -> bool:
        key, equals, text = value.partition("=")
        return key in event.labels and (not equals or event.labels[key] == text)

    def named(wanted: str) -> Any:
        return lambda v: kind == wanted and bool(v) and (event.sandbox.startswith(v) or v == event.name)

    tests = {
        "container": lambda v: kind == "container" and bool(v) and (v == event.name or event.sandbox.startswith(v)),
        "event": lambda v: v in (action, action.partition(":")[0]),
        "type": lambda v: v == kind,
        "label": label,
        "image": lambda v: kind in ("container", "image") and v in (image, image.rpartition(":")[0], event.sandbox),
        "network": named("network"), "volume": named("volume"),
        "scope": lambda v: v == "local",
    }  # fmt: skip
    return all(any(tests[name](value) for value in values) for name, values in filters.items())


ROUTES = (Route("GET", "/events", events, "since until filters"),)
