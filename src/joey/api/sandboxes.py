"""/v1/sandboxes: sandboxes and what is done to them."""

from __future__ import annotations

from typing import Any

import msgspec

from joey.api import params
from joey.api.routes import NDJSON, Call, Route
from joey.api.tenant import restrict_update
from joey.engine.interface import Filter
from joey.model.spec import Update
from joey.model.views import Detail, Exit, Sandbox, Stats

STATES = ("created", "running", "paused", "exited", "dead")


_LIST = (
    params.flag("all", "Also those that do not run"),
    params.choice("state", "Only those in this state", STATES).times(),
    params.text("name", "A part of the name").times(),
    params.text("id", "A beginning of the id").times(),
    params.text("image", "The image's name").times(),
    params.labels("label", "NAME, or NAME=VALUE"),
    params.integer("exited", "Ended with this exit code", high=255).times(),
    params.integer("limit", "The newest so many, 0 for all", default=0),
    params.text("cursor", "The header Joey-Next-Cursor of the page before: go on after it", longest=64),
)


def chosen(call: Call) -> Filter:
    """The Filter of a list's query."""
    asked = call.query
    return Filter(
        all=asked.get("all", False),
        limit=asked.get("limit", 0),
        names=tuple(asked.get("name", ())),
        ids=tuple(asked.get("id", ())),
        images=tuple(asked.get("image", ())),
        states=frozenset(asked.get("state", ())),
        exited=frozenset(asked.get("exited", ())),
        labels=params.as_labels(asked.get("label", ())),
        owner=call.visible,
        cursor=asked.get("cursor", ""),
    )


async def index(call: Call) -> Any:
    """Newest first. A full page has the header Joey-Next-Cursor, from which the next one goes on."""
    found = await call.engine.list(chosen(call))
    limit = call.query.get("limit", 0)
    headers = {"Joey-Next-Cursor": found[-1].id} if limit and len(found) >= limit else {}
    if NDJSON not in call.request.headers.get("Accept", ""):
        return call.reply(found, headers=headers)
    lines = await call.lines(**headers)
    for sandbox in found:
        await lines.add(sandbox)
    return await lines.end()


async def inspect(call: Call) -> Any:
    """Everything about one: state, the spec it was made from; for an administrator where its files are on the host."""
    found = await call.engine.inspect(call.ref)
    return msgspec.structs.replace(found, paths={}, slot="") if call.owner else found


async def update(call: Call) -> Any:
    """What is not given stays. Limits and the network's policy act at once; a timeout counts from now."""
    change = await call.body()
    restrict_update(call, change)
    return await call.whole(call.engine.update(call.ref, change))


async def remove(call: Call) -> None:
    """Remove it and its log. A running one only with force."""
    await call.whole(call.engine.remove(call.ref, force=call.query.get("force", False)))


async def start(call: Call) -> Any:
    """Start a created or exited one."""
    return await call.whole(call.engine.start(call.ref))


async def stop(call: Call) -> Any:
    """The stop signal, after `timeout` seconds SIGKILL. Answers when it has ended."""
    return await call.whole(call.engine.stop(call.ref, call.query.get("timeout")))


async def kill(call: Call) -> None:
    """Send the main process `signal` (KILL)."""
    await call.whole(call.engine.kill(call.ref, call.query.get("signal", 9)))


async def pause(call: Call) -> Any:
    """Freeze all its processes."""
    if call.query.get("reclaim"):
        return await call.whole(call.engine.pause(call.ref, reclaim=True))
    return await call.whole(call.engine.pause(call.ref))


async def resume(call: Call) -> Any:
    """Thaw them."""
    return await call.whole(call.engine.resume(call.ref))


async def rename(call: Call) -> Any:
    """Another name."""
    return await call.whole(call.engine.rename(call.ref, call.query["name"]))


async def wait(call: Call) -> Any:
    """Answers when it has ended."""
    return await call.engine.wait(call.ref)


async def stats(call: Call) -> Any:
    """Usage now; null for one that does not run."""
    found = await call.engine.stats([call.ref])
    return call.reply(found[0] if found else None)


async def all_stats(call: Call) -> Any:
    """Usage of those given by `id`, or of all that run."""
    engine, refs = call.engine, call.query.get("id", [])
    if call.visible is not None and not refs:
        refs = [sandbox.id for sandbox in await engine.list(Filter(owner=call.visible))]
        return await engine.stats(refs) if refs else []
    return await engine.stats([engine.resolve(ref, call.visible) for ref in refs])


_ONE = "/v1/sandboxes/{ref}"

ROUTES = (
    Route(
        "GET", "/v1/sandboxes", index, "List sandboxes", tag="sandboxes", query=_LIST,
        answer=tuple[Sandbox, ...], media=("application/json", NDJSON),
    ),
    Route("GET", _ONE, inspect, "Everything about one", tag="sandboxes", answer=Detail),
    Route(
        "PATCH", _ONE, update, "Change limits, labels, timeouts, restart policy", tag="sandboxes",
        body=Update, answer=Sandbox, example={"resources": {"memory": 268435456}, "timeout": 3600},
    ),
    Route(
        "DELETE", _ONE, remove, "Remove one", tag="sandboxes", status=204,
        query=(params.flag("force", "Also one that runs: SIGKILL"),),
    ),
    Route("POST", _ONE + "/start", start, "Start it", tag="sandboxes", answer=Sandbox),
    Route(
        "POST", _ONE + "/stop", stop, "Stop it", tag="sandboxes", answer=Sandbox, stream=True,
        query=(params.seconds("timeout", "How long to wait before SIGKILL; by default the spec's stop_timeout"),),
    ),
    Route(
        "POST", _ONE + "/kill", kill, "Signal its main process", tag="sandboxes", status=204,
        query=(params.signal(),),
    ),
    Route(
        "POST", _ONE + "/pause", pause, "Freeze it", tag="sandboxes", answer=Sandbox,
        query=(params.flag("reclaim", "Then have the kernel take back what memory it can"),),
    ),
    Route("POST", _ONE + "/resume", resume, "Thaw it", tag="sandboxes", answer=Sandbox),
    Route(
        "POST", _ONE + "/rename", rename, "Give it another name", tag="sandboxes", answer=Sandbox,
        query=(params.text("name", "The new name", empty=False).needed(),),
    ),
    Route("POST", _ONE + "/wait", wait, "Wait for its end", tag="sandboxes", answer=Exit, stream=True),
    Route("GET", _ONE + "/stats", stats, "What it uses", tag="sandboxes", answer=Stats | None),
    Route(
        "GET", "/v1/stats", all_stats, "What many use", tag="sandboxes", answer=tuple[Stats, ...],
        query=(params.text("id", "Of this one; all that run if none is given").times(),),
    ),
)  # fmt: skip
