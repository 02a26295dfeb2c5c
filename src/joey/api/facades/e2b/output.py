"""E2B's logs of a sandbox: here what its template's start command has printed, which is its main process."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from joey.api.facades.e2b.call import Owned
from joey.api.facades.e2b.control import living, timestamp
from joey.api.routes import Route
from joey.engine.interface import LogQuery
from joey.model.errors import Invalid

_LINES, _LINE = 1000, 65536

Message = dict[str, Any]


async def logs_v1(call: Owned) -> Message:
    """Oldest first."""
    found = [one async for one in _forward(call, "start")]
    lines = [{"timestamp": one["timestamp"], "line": one["message"]} for one in found]
    return {"logs": lines, "logEntries": found}


async def logs(call: Owned) -> Message:
    """From a moment (`cursor`, milliseconds) on, forward or backward."""
    direction = call.request.query.get("direction", "forward")
    if direction not in ("forward", "backward"):
        raise Invalid("direction", "is forward or backward")
    if direction == "forward":
        return {"logs": [one async for one in _forward(call, "cursor")]}
    end = _number(call, "cursor", 0) / 1000 or None
    last: deque[Message] = deque(maxlen=_limit(call))
    async for one in _lines(call, LogQuery(until=end)):
        last.append(one)
    return {"logs": list(last)[::-1]}


async def _forward(call: Owned, begin: str) -> AsyncIterator[Message]:
    limit, since = _limit(call), _number(call, begin, 0) / 1000 or None
    lines = _lines(call, LogQuery(since=since))
    for _ in itertools.repeat(None, limit):
        try:
            yield await anext(lines)
        except StopAsyncIteration:
            return


async def _lines(call: Owned, query: LogQuery) -> AsyncIterator[Message]:
    """Pieces of output as lines."""
    await living(call)
    rest = {1: b"", 2: b""}
    at = 0.0
    async for entry in call.engine.logs(call.ref, query):
        at = entry.at
        *whole, rest[entry.stream] = (rest[entry.stream] + entry.data).split(b"\n")
        if len(rest[entry.stream]) > _LINE:
            whole, rest[entry.stream] = [*whole, rest[entry.stream]], b""
        for line in whole:
            yield _entry(at, entry.stream, line)
    for stream, line in rest.items():
        if line:
            yield _entry(at, stream, line)


def _entry(at: float, stream: int, line: bytes) -> Message:
    level = "info" if stream == 1 else "error"
    return {"timestamp": timestamp(at), "level": level, "message": line.decode(errors="replace"), "fields": {}}


def _limit(call: Owned) -> int:
    return min(_number(call, "limit", _LINES), _LINES)


def _number(call: Owned, name: str, default: int) -> int:
    text = call.request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid(name, "is a whole number")
    return int(text)


_ONE = "/sandboxes/{ref}/logs"
ROUTES = (
    Route("GET", _ONE, logs_v1, "What its start command has printed"),
    Route("GET", "/v2" + _ONE, logs, "What its start command has printed"),
)
