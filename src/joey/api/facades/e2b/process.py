"""envd's process service on the engine's exec: programs, their output as a stream, input, signals, terminals.

A program goes on when its stream ends (clients reconnect), until the time of its request is over, as envd does; so a
client that vanishes leaves nothing behind but what it asked to go on for ever. Its pid is the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from joey.api.facades.e2b import connect
from joey.api.facades.e2b.call import EnvdCall
from joey.api.facades.e2b.connect import Fields, Stream
from joey.api.facades.e2b.envd import absolute, user_of
from joey.api.facades.e2b.errors import GONE, Failure
from joey.api.facades.e2b.kinds import BUILD, TEMPLATE
from joey.api.light import web
from joey.api.requests import checked_process
from joey.api.routes import Route
from joey.api.tenant import restrict_process
from joey.engine.interface import Attachment
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound
from joey.model.spec import Process
from joey.model.views import Exit, ProcessView

if TYPE_CHECKING:
    from joey.engine.interface import Engine

_KEEPALIVE = 90.0
_GRACE = 0.1
"""Seconds after which a program is killed whose client was told that its time is over."""
_SIGNALS = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}
_NAMES = {1: "hangup", 2: "interrupt", 3: "quit", 6: "aborted", 9: "killed", 11: "segmentation fault",
          13: "broken pipe", 14: "alarm clock", 15: "terminated"}  # fmt: skip

Message = dict[str, Any]


async def start(call: EnvdCall) -> web.StreamResponse:
    """A program, and its output until its end."""
    asked = Fields(await connect.single(call, dict[str, Any]))
    wanted, tag = await _wanted(call, asked)
    limit = connect.seconds(call, "Connect-Timeout-Ms", 0.001)
    more: Message = {"tag": tag} if tag else {}
    started: list[Attachment] = []
    overdue: list[asyncio.TimerHandle] = []

    async def begin() -> None:
        started.append(await call.engine.exec(call.ref, wanted, keep=True, **more))
        if limit is not None:
            kill = partial(_Overdue.kill, call.engine, call.ref, started[0].id)
            overdue.append(asyncio.get_running_loop().call_later(limit + _GRACE, kill))

    try:
        await call.whole(begin())
    except asyncio.CancelledError:  # the client left meanwhile
        for one in started:
            await one.close()
        raise
    except NotFound:
        raise
    except JoeyError as error:
        return await _refused(call, error)
    attachment = started[0]
    return await _follow(call, attachment, wanted.tty, limit, overdue)


async def _wanted(call: EnvdCall, asked: Fields) -> tuple[Process, str]:
    process = asked.object("process")
    user, home = await user_of(call)
    spec, labels = call.detail.spec.process, call.detail.sandbox.labels
    size = asked.object("pty", ()).object("size", ()) if asked.has("pty") else None
    env = {**spec.env, "E2B_SANDBOX_ID": call.ref, "E2B_TEMPLATE_ID": labels.get(TEMPLATE, call.detail.sandbox.image)}
    wanted = Process(
        argv=(process.text("cmd"), *process.texts("args")),
        env=env | process.mapping("envs"),
        cwd=absolute(process.text("cwd", "") or (spec.cwd if BUILD in labels and spec.cwd else home), home),
        user=user,
        tty=size is not None,
        stdin=size is None and asked.flag("stdin", True),
        rows=(size.number("rows") if size else 0) or 24,
        cols=(size.number("cols") if size else 0) or 80,
    )
    restrict_process(call, wanted)
    return checked_process(wanted), asked.text("tag", "")


async def _refused(call: EnvdCall, error: JoeyError) -> web.StreamResponse:
    """What cannot be started is told in the stream, as envd does."""
    stream = await Stream.begin(call)
    code = "invalid_argument" if error.status in (400, 404, 422) else ""
    return await stream.end(Failure(error.status, f"error starting process: {error.where}: {error.message}", code))


class _Overdue:
    """Programs that the time of their request is over for are killed, also when nobody listens any more."""

    _all: ClassVar[set[asyncio.Task[None]]] = set()

    @classmethod
    def kill(cls, engine: Engine, ref: str, id: str) -> None:
        task = asyncio.ensure_future(cls._run(engine, ref, id))
        cls._all.add(task)
        task.add_done_callback(cls._all.discard)

    @staticmethod
    async def _run(engine: Engine, ref: str, id: str) -> None:
        with contextlib.suppress(JoeyError):  # most have ended long ago
            await engine.signal_process(ref, id, 9)


async def attach(call: EnvdCall) -> web.StreamResponse:
    """The output of a program that runs, from what nobody has read yet on."""
    asked = Fields(await connect.single(call, dict[str, Any]))
    try:
        view = await _selected(call, asked.object("process"))
        attachment = await call.engine.connect(call.ref, view.id)
    except (JoeyError, Failure) as error:
        return await (await Stream.begin(call)).end(error)
    return await _follow(call, attachment, view.tty, connect.seconds(call, "Connect-Timeout-Ms", 0.001))


async def _follow(
    call: EnvdCall, attachment: Attachment, tty: bool, limit: float | None, overdue: Sequence[asyncio.TimerHandle] = ()
) -> web.StreamResponse:
    """overdue: of no use any more when it has ended."""
    try:
        stream = await Stream.begin(call)
        await stream.send({"event": {"start": {"pid": attachment.pid}}})
        try:
            async with asyncio.timeout(limit):
                await _pump(stream, attachment, tty, connect.seconds(call, "Keepalive-Ping-Interval", 1) or _KEEPALIVE)
                end = await attachment.wait()
        except TimeoutError:
            return await stream.end(Failure(408, "the time of the request is over"))
        for timer in overdue:
            timer.cancel()
        if end.signal == 9 and not await _runs(call):
            return await stream.end(Failure(502, GONE))
        return await stream.end(last={"event": {"end": _end(end)}})
    finally:
        await attachment.close()


async def _pump(stream: Stream, attachment: Attachment, tty: bool, interval: float) -> None:
    while True:
        try:
            async with asyncio.timeout(interval):
                piece = await attachment.read()
        except TimeoutError:
            await stream.send({"event": {"keepalive": {}}})
            continue
        if piece is None:
            return
        name = "pty" if tty else "stdout" if piece[0] == 1 else "stderr"
        await stream.send({"event": {"data": {name: piece[1]}}})


async def _runs(call: EnvdCall) -> bool:
    try:
        return (await call.engine.inspect(call.ref)).sandbox.state in ("running", "paused")
    except NotFound:
        return False


def _end(end: Exit) -> Message:
    """As Go's os.ProcessState tells of it, which envd passes on."""
    if end.signal:
        status = f"signal: {_NAMES.get(end.signal, end.signal)}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    status = f"exit status {end.code}"
    return {"exitCode": end.code, "exited": True, "status": status} | ({"error": status} if end.code else {})


async def index(call: EnvdCall) -> Message:
    """Those that run."""
    await connect.unary(call, dict[str, Any])
    return {"processes": [_info(view) for view in await call.engine.processes(call.ref) if view.exit is None]}


def _info(view: ProcessView) -> Message:
    config = {"cmd": view.argv[0] if view.argv else "", "args": list(view.argv[1:]), "cwd": view.cwd}
    return {"config": config, "pid": view.pid} | ({"tag": view.tag} if view.tag else {})


async def _selected(call: EnvdCall, process: Fields) -> ProcessView:
    """Raises NotFound."""
    pid, tag = process.number("pid"), process.text("tag", "")
    for view in await call.engine.processes(call.ref):
        if view.exit is None and (view.pid == pid if pid else view.tag == tag and tag):
            return view
    raise Failure(404, f"process with {f'pid {pid}' if pid else f'tag {tag!r}'} not found")


async def send_input(call: EnvdCall) -> Message:
    asked = Fields(await connect.unary(call, dict[str, Any]))
    view = await _selected(call, asked.object("process"))
    await _feed(call, view, asked.object("input"))
    return {}


async def _feed(call: EnvdCall, view: ProcessView, given: Fields) -> None:
    name = "pty" if given.has("pty") else "stdin"
    if view.tty != (name == "pty"):
        raise Failure(400, "the process has " + ("a terminal: send pty" if view.tty else "no terminal: send stdin"),
                      "failed_precondition")  # fmt: skip
    await _ended(call.engine.feed_process(call.ref, view.id, given.bytes(name)))


async def _ended(work: Any) -> None:
    try:
        await work
    except Conflict as error:
        raise Failure(409, error.message, "failed_precondition") from None


async def stream_input(call: EnvdCall) -> web.StreamResponse:
    """A stream of input to one program."""
    connect.checked(call)
    view: ProcessView | None = None
    failure: Exception | None = None
    try:
        async for message in connect.messages(call, dict[str, Any]):
            asked = Fields(message)
            if asked.has("start"):
                view = await _selected(call, asked.object("start").object("process"))
            elif asked.has("data"):
                if view is None:
                    raise Invalid("start", "is missing")
                await _feed(call, view, asked.object("data").object("input"))
    except (JoeyError, Failure) as error:
        failure = error
    stream = await Stream.begin(call)
    if failure is None:
        await stream.send({})
    return await stream.end(failure)


async def close_stdin(call: EnvdCall) -> Message:
    asked = Fields(await connect.unary(call, dict[str, Any]))
    view = await _selected(call, asked.object("process"))
    await _ended(call.engine.feed_process(call.ref, view.id, b"", close=True))
    return {}


async def send_signal(call: EnvdCall) -> Message:
    asked = Fields(await connect.unary(call, dict[str, Any]))
    view = await _selected(call, asked.object("process"))
    number = _SIGNALS.get(asked.text("signal", ""))
    if number is None:
        raise Invalid("signal", "is not SIGNAL_SIGTERM or SIGNAL_SIGKILL")
    await _ended(call.whole(call.engine.signal_process(call.ref, view.id, number)))
    return {}


async def update(call: EnvdCall) -> Message:
    """The terminal's size."""
    asked = Fields(await connect.unary(call, dict[str, Any]))
    view = await _selected(call, asked.object("process"))
    if asked.has("pty"):
        size = asked.object("pty").object("size")
        rows, cols = size.number("rows"), size.number("cols")
        if not (0 < rows < 65536 and 0 < cols < 65536):
            raise Invalid("pty.size", "rows and cols are 1 to 65535")
        await _ended(call.engine.resize_process(call.ref, view.id, rows, cols))
    return {}


_BASE = "/process.Process/"
ROUTES = (
    Route("POST", _BASE + "Start", start, "Start a program", stream=True),
    Route("POST", _BASE + "Connect", attach, "Follow one that runs", stream=True),
    Route("POST", _BASE + "List", index, "Those that run"),
    Route("POST", _BASE + "SendInput", send_input, "Feed it"),
    Route("POST", _BASE + "StreamInput", stream_input, "Feed it with a stream", stream=True),
    Route("POST", _BASE + "CloseStdin", close_stdin, "End of file"),
    Route("POST", _BASE + "SendSignal", send_signal, "Send it a signal"),
    Route("POST", _BASE + "Update", update, "Set its terminal's size"),
)
