"""/v1/sandboxes/{ref}/processes, /run and /attach: programs inside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
from msgspec import field

from joey.api import params, streams
from joey.api.bodies import ExecBody
from joey.api.budget import SMALL
from joey.api.light import web
from joey.api.requests import checked_process, process
from joey.api.routes import BINARY, Call, Route
from joey.api.tenant import restrict_process
from joey.engine.interface import Attachment
from joey.model.errors import Invalid
from joey.model.spec import Process
from joey.model.views import Exit, ProcessView

RUN_LIMIT = 64 << 20
_MAX_INPUT = 3 << 20
_COUNTED = 1 << 20


class RunBody(Process, frozen=True, kw_only=True):
    """A process to run to its end. What is not mentioned is as in the sandbox's main process.

    input: standard input (base64), None for none. timeout: seconds after which it is killed. limit: bytes of output
    (both streams together) that are kept; the rest is read and dropped.
    """

    input: bytes | None = None
    timeout: float | None = None
    limit: int = RUN_LIMIT

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < 1e9:
            raise ValueError("timeout: must be above 0")
        if not 0 <= self.limit <= RUN_LIMIT:
            raise ValueError(f"limit: is not within 0 and {RUN_LIMIT}")


class Ran(msgspec.Struct, frozen=True):
    """How it ended, and its output (base64). truncated: there was more than `limit`. timed_out: it was killed for that,
    what it started may run on.
    """

    exit: Exit
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False
    timed_out: bool = field(default=False)


async def attach(call: Call) -> web.StreamResponse:
    """With Upgrade: the main process's output from now on, and its input."""
    streams.require_stream(call.request)
    await call.data()
    attachment = await call.engine.attach(call.ref)
    return await _serve(call.request, attachment)


async def _serve(request: web.Request, attachment: Any, **headers: str) -> web.StreamResponse:
    try:
        connection = streams.take_over(request, **headers)
    except BaseException:
        await attachment.close()
        raise
    await streams.serve(connection, attachment)
    return streams.Taken()


async def execute(call: Call) -> Any:
    """With Upgrade it belongs to this connection (whose answer's header Joey-Process has its id): when that ends, its
    pipes are closed; with `keep` or a tag it goes on. Without Upgrade it runs in the background: what it prints is
    kept, 1 MiB at most, until somebody attaches; with `detach: true` it goes nowhere.
    """
    body = await call.json_object()
    detach = body.pop("detach", False)
    if not isinstance(detach, bool):
        raise Invalid("detach", "is true or false")
    upgrade = not detach and streams.wants_stream(call.request)
    tag = call.query.get("tag", "")
    more: dict[str, Any] = {"tag": tag} if tag else {}
    if not detach and (not upgrade or call.query.get("keep", False)):
        more["keep"] = True
    detail = await call.engine.inspect(call.ref)
    wanted = process(body, detail.spec.process)
    restrict_process(call, wanted)
    started = await call.whole(call.engine.exec(call.ref, wanted, detach=detach, **more))
    id = getattr(started, "id", "")
    if upgrade:
        return await _serve(call.request, started, **({"Joey_Process": id} if id else {}))
    await started.close()
    return ProcessView(
        id=id, sandbox=detail.sandbox.id, pid=started.pid, argv=wanted.argv, cwd=wanted.cwd, user=wanted.user,
        tty=wanted.tty, tag=tag, started=time.time(),
    )  # fmt: skip


async def run(call: Call) -> Ran:
    """Run a program to its end in one round trip: nothing is answered before. A client that leaves ends it."""
    body: RunBody = await call.body()
    if not body.argv:
        raise Invalid("argv", "the program to run is missing")
    if body.tty:
        raise Invalid("tty", "a terminal needs a stream", "POST …/processes with Upgrade")
    if body.input is not None and len(body.input) > _MAX_INPUT:
        raise Invalid("input", f"has {len(body.input)} bytes, at most {_MAX_INPUT} are possible", "use a stream")
    wanted = checked_process(Process(**{name: getattr(body, name) for name in Process.__struct_fields__}))
    restrict_process(call, wanted)
    if body.input is not None:
        wanted = msgspec.structs.replace(wanted, stdin=True)
    attachment = await call.engine.exec(call.ref, wanted)
    ended = False
    try:
        ran = await _ran(call, attachment, body)
        ended = True
        return ran
    finally:
        if not ended:
            with contextlib.suppress(Exception):
                await asyncio.shield(attachment.signal(9))
        await attachment.close()


async def _ran(call: Call, attachment: Attachment, body: RunBody) -> Ran:
    kept: dict[int, list[bytes]] = {1: [], 2: []}
    room, counted = body.limit, body.limit - SMALL
    truncated = timed_out = False
    feeder = asyncio.ensure_future(_feed(attachment, body.input)) if body.input or body.stdin else None
    loop, timer = asyncio.get_running_loop(), None
    if feeder is None and body.input is not None:
        await attachment.close_stdin()

    def expire() -> None:
        nonlocal timed_out
        timed_out = True
        killing.append(asyncio.ensure_future(attachment.signal(9)))

    killing: list[asyncio.Future[None]] = []
    if body.timeout is not None:
        timer = loop.call_later(body.timeout, expire)
    try:
        while (piece := await attachment.read()) is not None:
            number, data = piece
            if len(data) > room:
                truncated, data = True, data[:room]
            if data:
                room -= len(data)
                if room < counted:
                    call.hold(_COUNTED)
                    counted -= _COUNTED
                kept[number].append(data)
        end = await attachment.wait()
    finally:
        if timer is not None:
            timer.cancel()
        if feeder is not None:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
        if killing:
            await asyncio.gather(*killing, return_exceptions=True)
    return Ran(end, b"".join(kept[1]), b"".join(kept[2]), truncated, timed_out)


async def _feed(attachment: Attachment, data: bytes | None) -> None:
    if data:
        await attachment.write(data)
    await attachment.close_stdin()


async def index(call: Call) -> Any:
    """Those that exec started, oldest first: all that run, and the last 32 that ended."""
    return await call.engine.processes(call.ref)


async def inspect(call: Call) -> ProcessView:
    """One of them."""
    return await call.engine.process(call.ref, call.path["id"])


async def signal(call: Call) -> None:
    """Conflict if it has ended."""
    await call.whole(call.engine.signal_process(call.ref, call.path["id"], call.query.get("signal", 15)))


async def wait(call: Call) -> Exit:
    """Its end; at once if it has ended."""
    return await call.engine.wait_process(call.ref, call.path["id"])


async def resize(call: Call) -> None:
    """Conflict if it has none."""
    await call.engine.resize_process(call.ref, call.path["id"], call.query["rows"], call.query["cols"])


async def stdin(call: Call) -> None:
    """Answers when the program can have taken it all: a client waits for a program that does not read."""
    id = call.path["id"]
    await call.engine.process(call.ref, id)
    async for piece in call.chunks():
        await call.engine.feed_process(call.ref, id, piece)
    await call.engine.feed_process(call.ref, id, b"", close=call.query.get("close", False))


async def reattach(call: Call) -> web.StreamResponse:
    """With Upgrade: what nobody has read yet, then what comes, then its end; and its input. It goes on when this
    connection ends.
    """
    streams.require_stream(call.request)
    await call.data()
    attachment = await call.engine.connect(call.ref, call.path["id"])
    return await _serve(call.request, attachment, Joey_Process=call.path["id"])


_BASE = "/v1/sandboxes/{ref}/processes"
ROUTES = (
    Route(
        "POST", "/v1/sandboxes/{ref}/attach", attach, "Attach to the main process", tag="processes",
        upgrade=True, stream=True, status=101,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/run", run, "Run a program and wait for its end", tag="processes", body=RunBody,
        answer=Ran, example={"argv": ["uname", "-a"], "timeout": 10},
    ),
    Route(
        "POST", _BASE, execute, "Start a program in a running sandbox", tag="processes",
        query=(
            params.text("tag", "A name of your own for it", longest=256),
            params.flag("keep", "With Upgrade: it outlives the connection"),
        ),
        body=ExecBody, answer=ProcessView, status=201, upgrade=True, stream=True,
        example={"argv": ["sleep", "60"]},
    ),
    Route("GET", _BASE, index, "List programs", tag="processes", answer=list[ProcessView]),
    Route("GET", _BASE + "/{id}", inspect, "Look at a program", tag="processes", answer=ProcessView),
    Route(
        "POST", _BASE + "/{id}/signal", signal, "Send a program a signal", tag="processes", status=204,
        query=(params.signal(),),
    ),
    Route("POST", _BASE + "/{id}/wait", wait, "Wait for its end", tag="processes", answer=Exit, stream=True),
    Route(
        "POST", _BASE + "/{id}/resize", resize, "Set its terminal's size", tag="processes", status=204,
        query=(
            params.integer("rows", "Lines", low=1, high=65535).needed(),
            params.integer("cols", "Columns", low=1, high=65535).needed(),
        ),
    ),
    Route(
        "POST", _BASE + "/{id}/stdin", stdin, "Feed its standard input", tag="processes", status=204, stream=True,
        query=(params.flag("close", "End of file after that"),), body=bytes, body_media=BINARY, body_optional=True,
    ),
    Route(
        "POST", _BASE + "/{id}/attach", reattach, "Attach to it again", tag="processes", upgrade=True, stream=True,
        status=101,
    ),
)  # fmt: skip
