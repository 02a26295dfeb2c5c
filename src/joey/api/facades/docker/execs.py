"""exec: create, start (hijacked or detached), resize, inspect."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from msgspec import structs

from joey.api.facades.docker import hijack
from joey.api.facades.docker.base import Req, Route, answer
from joey.api.facades.docker.fields import Fields
from joey.api.facades.docker.request import environment
from joey.api.facades.docker.state import Exec
from joey.api.light import web
from joey.api.requests import process
from joey.engine.interface import Attachment
from joey.model import codec
from joey.model.errors import Conflict, Invalid, JoeyError, LaunchFailed, NotFound

_TASKS: set[asyncio.Task[None]] = set()


async def create(r: Req) -> web.Response:
    """201 {"Id"}. 409 if the container does not run."""
    id = r.id
    fields = Fields("", await r.json())
    detail = await r.engine.inspect(id)
    if detail.sandbox.state != "running":
        raise Conflict(
            "", f"container {id} is not running" if detail.sandbox.state != "paused" else "container is paused"
        )
    streams = [fields.take(f"Attach{name}", bool, False) for name in ("Stdin", "Stdout", "Stderr")]
    body: dict[str, Any] = {
        "argv": fields.take("Cmd", list[str], []), "env": environment(fields, "Env"),
        "tty": fields.take("Tty", bool, False), "stdin": streams[0],
    }  # fmt: skip
    if not body["argv"]:
        raise Invalid("", "No exec command specified")
    for field, ours in (("WorkingDir", "cwd"), ("User", "user")):
        if value := fields.take(field, str, ""):
            body[ours] = value
    rows, cols = [*fields.take("ConsoleSize", list[int], []), 0, 0][:2]
    if rows and cols:
        body["rows"], body["cols"] = rows, cols
    fields.drop("Detach", "Container")  # start says it again; docker-py says whose it is twice
    keys = hijack.Keys(fields.take("DetachKeys", str, "")) if body["tty"] else None
    fields.refuse({}, {"Privileged": "name what it needs when the container is made: --cap-add"})
    made = r.state.add(id, process(body, detail.spec.process), (streams[0], streams[1], streams[2]), keys)
    r.tell("container", f"exec_create: {' '.join(made.process.argv)}", id, execID=made.id)
    return answer({"Id": made.id}, status=201)


async def start(r: Req) -> web.StreamResponse:
    data, collector = await hijack.body(r.request)
    fields = Fields("", codec.decode(dict[str, Any], data) if data.strip() else {})
    found = r.state.exec(r.path["id"])
    detach, tty = fields.take("Detach", bool, False), fields.take("Tty", bool, False)
    size = [*fields.take("ConsoleSize", list[int], []), 0, 0][:2]
    fields.refuse({}, {})
    if found.started:
        raise Conflict("", f"exec {found.id} has been started already")
    if tty and not found.process.tty:
        raise Invalid("Tty", "the exec was created without a terminal")
    if all(size) and found.process.tty:
        found.process = structs.replace(found.process, rows=size[0], cols=size[1])
    found.started = True
    try:
        attachment = await r.whole(r.engine.exec(found.sandbox, found.process, detach=detach))
    except JoeyError as failure:
        found.code = (isinstance(failure, LaunchFailed) and failure.exit_code) or 126
        if detach or isinstance(failure, Conflict | NotFound):
            raise
        return await _not_started(r, collector, found, failure)
    except BaseException:
        found.code = 126
        raise
    found.pid = attachment.pid
    r.tell("container", f"exec_start: {' '.join(found.process.argv)}", found.sandbox, execID=found.id)
    if detach:
        _in_background(_watch(r, found, attachment))
        return web.Response(status=200)
    found.attachment = attachment
    try:
        connection = await hijack.take_over(r.request, collector, tty=found.process.tty)
    except BaseException:
        await attachment.close()
        raise
    return await _serve(r, connection, found, attachment)


async def _serve(r: Req, connection: hijack.Connection, found: Exec, attachment: Attachment) -> web.StreamResponse:
    stdin, out, err = found.streams

    async def told() -> None:
        end = await attachment.wait()
        _ended(r, found, end.code)

    try:
        # The exit code must be there when the stream ends: the client asks for it at once.
        return await hijack.serve(
            connection, attachment, tty=found.process.tty, stdin=stdin, out=(out, err), keys=found.keys, before_end=told
        )
    finally:
        if found.code is None:  # the client left
            _in_background(_watch(r, found, attachment, left=True))
        else:
            await attachment.close()
        found.attachment = None


async def _watch(r: Req, found: Exec, attachment: Attachment, *, left: bool = False) -> None:
    """Until its end. left: its client is gone; as from any terminal that is, it hears SIGHUP, and nobody reads it."""
    try:
        if left:
            await attachment.signal(signal.SIGHUP)
            await attachment.close()
        _ended(r, found, (await attachment.wait()).code)
    except JoeyError:
        found.code = 137  # the container has ended with it
    finally:
        if not left:
            await attachment.close()


def _ended(r: Req, found: Exec, code: int) -> None:
    found.code = code
    with contextlib.suppress(NotFound):
        r.tell("container", "exec_die", found.sandbox, execID=found.id, exitCode=str(code))


def _in_background(work: Any) -> None:
    task = asyncio.ensure_future(work)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


async def _not_started(r: Req, collector: Any, found: Exec, failure: JoeyError) -> web.StreamResponse:
    """As Docker says it: in the stream, as standard output, and by the exit code."""
    words = {127: ": executable file not found in $PATH", 126: ": permission denied"}
    why = words.get(failure.exit_code, "") if isinstance(failure, LaunchFailed) else ""
    connection = await hijack.take_over(r.request, collector, tty=found.process.tty)
    line = f"OCI runtime exec failed: {failure}{why}\r\n".encode()
    await connection.send(line if found.process.tty else hijack.frame(1, line))
    connection.close()
    return hijack.Taken()


async def resize(r: Req) -> web.Response:
    found = r.state.exec(r.path["id"])
    rows, cols = r.number("h", 0) or 0, r.number("w", 0) or 0
    if found.attachment is not None and rows and cols:
        await found.attachment.resize(rows, cols)
    elif not found.running:
        raise Conflict("", f"exec {found.id} is not running")
    return web.Response(status=200)


async def inspect(r: Req) -> Any:
    found = r.state.exec(r.path["id"])
    stdin, out, err = found.streams
    process_of = found.process
    return {
        "ID": found.id, "ContainerID": found.sandbox, "Running": found.running, "ExitCode": found.code,
        "Pid": found.pid, "OpenStdin": stdin, "OpenStdout": out, "OpenStderr": err, "DetachKeys": "",
        "CanRemove": found.code is not None,
        "ProcessConfig": {
            "tty": process_of.tty, "entrypoint": process_of.argv[0], "arguments": list(process_of.argv[1:]),
            "privileged": False, "user": process_of.user,
        },
    }  # fmt: skip


ROUTES = (
    Route("POST", "/containers/{id}/exec", create),
    Route("POST", "/exec/{id}/start", start),
    Route("POST", "/exec/{id}/resize", resize, "h w"),
    Route("GET", "/exec/{id}/json", inspect),
)
