"""/v1/sandboxes/{ref}/processes and /attach: programs inside."""

from __future__ import annotations

from typing import Any

import msgspec

from joey.api import streams
from joey.api.bodies import ExecBody
from joey.api.light import web
from joey.api.requests import process
from joey.api.routes import Call, Route
from joey.model.errors import Invalid


class Background(msgspec.Struct, frozen=True):
    """A process in the background. pid: of the host."""

    pid: int


async def attach(call: Call) -> web.StreamResponse:
    """With Upgrade: the main process's output from now on, and its input."""
    streams.require_stream(call.request)
    await call.data()
    attachment = await call.engine.attach(call.ref)
    return await _serve(call.request, attachment)


async def _serve(request: web.Request, attachment: Any) -> web.StreamResponse:
    try:
        connection = streams.take_over(request)
    except BaseException:
        await attachment.close()
        raise
    await streams.serve(connection, attachment)
    return streams.Taken()


async def execute(call: Call) -> Any:
    """A Process; with Upgrade attached to this connection, else with `detach: true`."""
    body = await call.json_object()
    detach = body.pop("detach", False)
    if not isinstance(detach, bool):
        raise Invalid("detach", "is true or false")
    if not detach:
        streams.require_stream(call.request)
    detail = await call.engine.inspect(call.ref)
    started = await call.whole(call.engine.exec(call.ref, process(body, detail.spec.process), detach=detach))
    if detach:
        pid = started.pid
        await started.close()
        return Background(pid)
    return await _serve(call.request, started)


ROUTES = (
    Route(
        "POST", "/v1/sandboxes/{ref}/attach", attach, "Attach to the main process", tag="processes",
        upgrade=True, stream=True, status=101,
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/processes", execute, "Run a program in a running sandbox", tag="processes",
        body=ExecBody, answer=Background, status=201, upgrade=True, stream=True,
        example={"argv": ["uname", "-a"], "detach": True},
    ),
)  # fmt: skip
