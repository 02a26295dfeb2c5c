"""/v1/health, /v1/node, /v1/explain, /v1/reset, /v1/shutdown: the engine as a whole."""

from __future__ import annotations

import asyncio
import os

import msgspec

from joey._version import __version__
from joey.api import params
from joey.api.bodies import CreateBody
from joey.api.requests import sandbox_spec
from joey.api.routes import Call, Route
from joey.engine.interface import Filter
from joey.model.errors import Busy
from joey.model.views import DiskUsage, Load, Node, ResetReport


class Health(msgspec.Struct, frozen=True):
    """That the engine answers. pid: of its process."""

    status: str
    version: str
    pid: int


class Plan(msgspec.Struct, frozen=True):
    """What a spec would run, a line an operation."""

    plan: str


class Ending(msgspec.Struct, frozen=True):
    """Of the engine that ends now."""

    pid: int


async def health(call: Call) -> Health:
    """Whether it lives. With `ready`: whether it takes work, else 503."""
    service = call.service
    if call.query.get("ready") and (service.ended.is_set() or service.in_flight >= service.max_requests):
        raise Busy("ready", "it is ending" if service.ended.is_set() else "too many requests are in flight")
    return Health("ok", __version__, os.getpid())


async def node(call: Call) -> object:
    """This machine, its abilities, how many sandboxes; of a key its own, and nothing of how the engine is set up."""
    found = await call.engine.node()
    if not call.owner:
        return found
    counts: dict[str, int] = {}
    for one in await call.engine.list(Filter(all=True, owner=call.owner)):
        counts[one.state] = counts.get(one.state, 0) + 1
    return msgspec.structs.replace(found, home="", instance="", counts=counts, checks=(), load=Load())


async def disk(call: Call) -> object:
    """What takes room, kind by kind."""
    return await call.engine.disk_usage()


async def explain(call: Call) -> Plan:
    """The plan a SandboxSpec would run, as text. Changes nothing."""
    body = await call.json_object()
    body.pop("start", None)
    return Plan(await call.engine.explain(sandbox_spec(body)))


async def reset(call: Call) -> object:
    """Remove everything this instance ever made, then end."""
    await call.whole(call.service.functions.close())
    report = await call.whole(call.engine.reset())
    call.service.database.remove()
    _end(call)
    return report


async def shutdown(call: Call) -> Ending:
    """End the engine; sandboxes go on."""
    _end(call)
    return Ending(os.getpid())


def _end(call: Call) -> None:
    # After this answer is on its way: closing the server waits for it.
    asyncio.get_running_loop().call_soon(call.service.ended.set)


ROUTES = (
    Route(
        "GET", "/v1/health", health, "Whether it lives, and whether it is ready", tag="node", answer=Health,
        open=True, stream=True, query=(params.flag("ready", "503 while it takes no work"),),
    ),
    Route("GET", "/v1/node", node, "This machine and what it can do", tag="node", answer=Node),
    Route("GET", "/v1/disk", disk, "What takes room", tag="node", answer=tuple[DiskUsage, ...], admin=True),
    Route(
        "POST", "/v1/explain", explain, "The plan a spec would run; changes nothing", tag="node",
        body=CreateBody, answer=Plan, admin=True, example={"image": "host", "process": {"argv": ["true"]}},
    ),
    Route(
        "POST", "/v1/reset", reset, "Remove everything this instance ever made, and end", tag="node",
        answer=ResetReport, admin=True,
    ),
    Route("POST", "/v1/shutdown", shutdown, "End the engine; sandboxes go on", tag="node", answer=Ending, admin=True),
)  # fmt: skip
