"""/v1/health, /v1/node, /v1/explain, /v1/reset, /v1/shutdown: the engine as a whole."""

from __future__ import annotations

import asyncio
import os

from joey._version import __version__
from joey.api.keys import ENDED
from joey.api.light import web
from joey.api.requests import json_object, query, sandbox_spec
from joey.api.sandboxes import engine_of, reply, whole


async def health(request: web.Request) -> web.Response:
    """GET: that the engine answers."""
    query(request)
    return reply({"status": "ok", "version": __version__, "pid": os.getpid()})


async def node(request: web.Request) -> web.Response:
    """GET: this machine, its abilities, how many sandboxes."""
    query(request)
    return reply(await engine_of(request).node())


async def disk(request: web.Request) -> web.Response:
    """GET: what takes room, kind by kind."""
    query(request)
    return reply(await engine_of(request).disk_usage())


async def explain(request: web.Request) -> web.Response:
    """POST: the plan a SandboxSpec would run, as text. Changes nothing."""
    query(request)
    body = await json_object(request)
    body.pop("start", None)
    return reply({"plan": await engine_of(request).explain(sandbox_spec(body))})


async def reset(request: web.Request) -> web.Response:
    """POST: remove everything this instance ever made, then end."""
    query(request)
    report = await whole(engine_of(request).reset())
    _end(request)
    return reply(report)


async def shutdown(request: web.Request) -> web.Response:
    """POST: end the engine; sandboxes go on."""
    query(request)
    _end(request)
    return reply({"pid": os.getpid()})


def _end(request: web.Request) -> None:
    ended = request.app[ENDED]
    # After this answer is on its way: closing the server waits for it.
    asyncio.get_running_loop().call_soon(ended.set)


def add_routes(app: web.Application) -> None:
    """The engine as a whole."""
    app.router.add_get("/v1/health", health)
    app.router.add_get("/v1/node", node)
    app.router.add_get("/v1/disk", disk)
    app.router.add_post("/v1/explain", explain)
    app.router.add_post("/v1/reset", reset)
    app.router.add_post("/v1/shutdown", shutdown)
