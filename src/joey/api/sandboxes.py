"""/v1/sandboxes: sandboxes and what is done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from joey.api import streams
from joey.api.keys import ENGINE
from joey.api.light import web
from joey.api.logs import logs
from joey.api.requests import Many, boolean, count, json_object, query, sandbox_spec, seconds, signal_number
from joey.engine.interface import Engine, Filter
from joey.model import codec
from joey.model.errors import Invalid

T = TypeVar("T")
STATES = ("created", "running", "paused", "exited", "dead")


def reply(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=codec.encode(value), content_type="application/json")


def engine_of(request: web.Request) -> Engine:
    """The engine this application serves."""
    return request.app[ENGINE]


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` to its end even if the client leaves: what changes a sandbox is never left half-way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody is left to be told
        raise


async def create(request: web.Request) -> web.StreamResponse:
    """POST: a SandboxSpec and `start` (default true). With Upgrade: run it with this connection attached."""
    engine = engine_of(request)
    query(request)
    body = await json_object(request)
    start = body.pop("start", True)
    if not isinstance(start, bool):
        raise Invalid("start", "is true or false")
    spec = sandbox_spec(body)
    if not streams.wants_stream(request):
        work = engine.run(spec) if start else engine.create(spec)
        made = await whole(work)
        return reply(getattr(made, "sandbox", made), 201)
    if not start:
        raise Invalid("start", "a stream needs a sandbox that is started")
    task = asyncio.ensure_future(engine.run(spec, attach=True))
    try:
        started = await asyncio.shield(task)
        assert started.attachment is not None
        connection = streams.take_over(request, Joey_Sandbox=started.sandbox.id)
    except (asyncio.CancelledError, ConnectionResetError):
        # Nobody knows its id: it would run for ever.
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            left = task.result()
            if left.attachment is not None:
                await left.attachment.close()
            await engine.remove(left.sandbox.id, force=True)
        raise
    await streams.serve(connection, started.attachment)
    return streams.Taken()


async def index(request: web.Request) -> web.Response:
    """GET: sandboxes, newest first."""
    asked = query(
        request,
        all=boolean,
        limit=count,
        name=Many(),
        id=Many(),
        image=Many(),
        label=Many(),
        state=Many(_state),
        exited=Many(count),
    )
    labels: dict[str, str | None] = {}
    for text in asked.get("label", ()):
        name, equals, value = text.partition("=")
        labels[name] = value if equals else None
    chosen = Filter(
        all=asked.get("all", False),
        limit=asked.get("limit", 0),
        names=tuple(asked.get("name", ())),
        ids=tuple(asked.get("id", ())),
        images=tuple(asked.get("image", ())),
        states=frozenset(asked.get("state", ())),
        exited=frozenset(asked.get("exited", ())),
        labels=labels,
    )
    return reply(await engine_of(request).list(chosen))


def _state(text: str) -> str:
    if text not in STATES:
        raise ValueError(f"{text!r} is none of {', '.join(STATES)}")
    return text


async def inspect(request: web.Request) -> web.Response:
    """GET: everything about one."""
    query(request)
    return reply(await engine_of(request).inspect(request.match_info["ref"]))


async def remove(request: web.Request) -> web.Response:
    """DELETE: remove one; a running one with force."""
    force = query(request, force=boolean).get("force", False)
    await whole(engine_of(request).remove(request.match_info["ref"], force=force))
    return web.Response(status=204)


async def start(request: web.Request) -> web.Response:
    """POST: start a created or exited one."""
    query(request)
    return reply(await whole(engine_of(request).start(request.match_info["ref"])))


async def stop(request: web.Request) -> web.Response:
    """POST: the stop signal, after `timeout` seconds SIGKILL."""
    timeout = query(request, timeout=seconds).get("timeout")
    return reply(await whole(engine_of(request).stop(request.match_info["ref"], timeout)))


async def kill(request: web.Request) -> web.Response:
    """POST: send `signal` (KILL)."""
    number = query(request, signal=signal_number).get("signal", 9)
    await whole(engine_of(request).kill(request.match_info["ref"], number))
    return web.Response(status=204)


async def pause(request: web.Request) -> web.Response:
    """POST: freeze."""
    query(request)
    return reply(await whole(engine_of(request).pause(request.match_info["ref"])))


async def resume(request: web.Request) -> web.Response:
    """POST: thaw."""
    query(request)
    return reply(await whole(engine_of(request).resume(request.match_info["ref"])))


async def rename(request: web.Request) -> web.Response:
    """POST: another name."""
    name = query(request, name=str).get("name", "")
    if not name:
        raise Invalid("name", "the new name is missing")
    return reply(await whole(engine_of(request).rename(request.match_info["ref"], name)))


async def wait(request: web.Request) -> web.Response:
    """POST: answers when it has ended."""
    query(request)
    return reply(await engine_of(request).wait(request.match_info["ref"]))


async def stats(request: web.Request) -> web.Response:
    """GET: usage of one."""
    query(request)
    found = await engine_of(request).stats([request.match_info["ref"]])
    return reply(found[0] if found else None)


async def all_stats(request: web.Request) -> web.Response:
    """GET /v1/stats: usage of those given by `id`, or of all that run."""
    refs = query(request, id=Many()).get("id", [])
    return reply(await engine_of(request).stats(refs))


async def attach(request: web.Request) -> web.StreamResponse:
    """POST with Upgrade: the main process's output from now on, and its input."""
    query(request)
    streams.require_stream(request)
    await request.read()
    attachment = await engine_of(request).attach(request.match_info["ref"])
    return await _serve(request, attachment)


async def _serve(request: web.Request, attachment: Any) -> web.StreamResponse:
    try:
        connection = streams.take_over(request)
    except BaseException:
        await attachment.close()
        raise
    await streams.serve(connection, attachment)
    return streams.Taken()


async def execute(request: web.Request) -> web.StreamResponse:
    """POST …/processes: a Process; with Upgrade attached to this connection, else with `detach: true`."""
    from joey.api.requests import process

    engine, ref = engine_of(request), request.match_info["ref"]
    query(request)
    body = await json_object(request)
    detach = body.pop("detach", False)
    if not isinstance(detach, bool):
        raise Invalid("detach", "is true or false")
    if not detach:
        streams.require_stream(request)
    detail = await engine.inspect(ref)
    started = await whole(engine.exec(detail.sandbox.id, process(body, detail.spec.process), detach=detach))
    if detach:
        pid = started.pid
        await started.close()
        return reply({"pid": pid}, 201)
    return await _serve(request, started)


def add_routes(app: web.Application) -> None:
    """Everything under /v1/sandboxes, and /v1/stats."""
    one = "/v1/sandboxes/{ref}"
    app.router.add_post("/v1/sandboxes", create)
    app.router.add_get("/v1/sandboxes", index)
    app.router.add_get(one, inspect)
    app.router.add_delete(one, remove)
    app.router.add_get(one + "/stats", stats)
    app.router.add_get(one + "/logs", logs)
    app.router.add_get("/v1/stats", all_stats)
    verbs = {"start": start, "stop": stop, "kill": kill, "pause": pause, "resume": resume, "rename": rename}
    for name, handler in {**verbs, "wait": wait, "attach": attach, "processes": execute}.items():
        app.router.add_post(f"{one}/{name}", handler)
