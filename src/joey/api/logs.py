"""`GET /v1/sandboxes/{ref}/logs`: kept output as frames, or as plain text for people with curl."""

from __future__ import annotations

import time

from joey.api import params, problem
from joey.api.light import web
from joey.api.routes import Call, Route
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


async def logs(call: Call) -> web.StreamResponse:
    """Follows until the sandbox ends or the client leaves."""
    asked = dict(call.query)
    stamped = asked.pop("timestamps", False)
    wanted = LogQuery(**asked)
    if not wanted.stdout and not wanted.stderr:
        raise Invalid("stdout", "stdout and stderr are both left out: nothing would come")
    plain = "text/plain" in call.request.headers.get("Accept", "")
    stamp = Stamper()
    entries = call.engine.logs(call.ref, wanted)
    try:
        # Whether the answer is a stream or a problem cannot wait for the first entry: it may be long in coming.
        await call.engine.inspect(call.ref)
        response = web.StreamResponse(headers={"Content-Type": "text/plain" if plain else frames.MEDIA_TYPE})
        await response.prepare(call.request)
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


ROUTES = (
    Route(
        "GET", "/v1/sandboxes/{ref}/logs", logs, "Output kept, as frames or, with Accept: text/plain, as text",
        tag="sandboxes", stream=True, answer=bytes, media=(frames.MEDIA_TYPE, "text/plain"),
        query=(
            params.flag("follow", "Go on with what comes, until the sandbox ends"),
            params.seconds("since", "Only what was printed from this instant on (seconds since the epoch)"),
            params.seconds("until", "Only what was printed before this instant"),
            params.integer("tail", "The last so many lines"),
            params.flag("timestamps", "Put the time before every line"),
            params.flag("stdout", "Standard output", default=True),
            params.flag("stderr", "Standard error", default=True),
        ),
    ),
)  # fmt: skip
