"""`GET /v1/sandboxes/{ref}/logs`: kept output as frames, or as plain text for people with curl."""

from __future__ import annotations

import time

from joey.api import problem
from joey.api.keys import ENGINE
from joey.api.light import web
from joey.api.requests import boolean, count, query, seconds
from joey.engine.interface import LogQuery
from joey.model import codec, frames
from joey.model.errors import Invalid, JoeyError
from joey.model.views import LogEntry


def timestamp(at: float) -> str:
    """RFC 3339 in UTC with microseconds, as every line of `logs -t` begins."""
    whole = int(at)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at - whole) * 1e6):06d}Z "


class Stamper:
    """Puts the time before every line, although entries are not whole lines. One for each answer."""

    def __init__(self) -> None:
        self._in_line = {1: False, 2: False}

    def __call__(self, entry: LogEntry) -> bytes:
        stamp = timestamp(entry.at).encode()
        lines = entry.data.split(b"\n")
        last = lines.pop()  # what follows the last newline: part of a line, or nothing
        out = [line + b"\n" for line in lines] + ([last] if last else [])
        begun = self._in_line[entry.stream]
        self._in_line[entry.stream] = bool(last) or (begun and not out)
        return b"".join(piece if begun and not index else stamp + piece for index, piece in enumerate(out))


async def logs(request: web.Request) -> web.StreamResponse:
    """Follows until the sandbox ends or the client leaves."""
    engine = request.app[ENGINE]
    asked = query(
        request,
        follow=boolean,
        since=seconds,
        until=seconds,
        tail=count,
        timestamps=boolean,
        stdout=boolean,
        stderr=boolean,
    )
    stamped = asked.pop("timestamps", False)
    wanted = LogQuery(**asked)
    if not wanted.stdout and not wanted.stderr:
        raise Invalid("stdout", "stdout and stderr are both left out: nothing would come")
    plain = "text/plain" in request.headers.get("Accept", "")
    stamp = Stamper()
    entries = engine.logs(request.match_info["ref"], wanted)
    try:
        # Whether the answer is a stream or a problem cannot wait for the first entry: it may be long in coming.
        await engine.inspect(request.match_info["ref"])
        response = web.StreamResponse(headers={"Content-Type": "text/plain" if plain else frames.MEDIA_TYPE})
        await response.prepare(request)
        try:
            async for entry in entries:
                data = stamp(entry) if stamped else entry.data
                if data:
                    await response.write(data if plain else frames.frame(entry.stream, data))
        except JoeyError as error:
            await response.write(
                f"\njoey: {error}\n".encode()
                if plain
                else frames.frame(frames.ERROR, codec.encode(problem.document(error)))
            )
        await response.write_eof()
        return response
    finally:
        close = getattr(entries, "aclose", None)
        if close is not None:
            await close()
