"""GET /v1/events: what happens, a line an event."""

from __future__ import annotations

from joey.api import params
from joey.api.light import web
from joey.api.routes import NDJSON, Call, Route
from joey.model.views import Event


async def events(call: Call) -> web.StreamResponse:
    """The last 10,000 are kept. After a lost connection go on with `after` = the last id seen; an event `events.lost`
    stands for what is not kept any more.
    """
    asked = call.query
    found = call.engine.events(
        asked.get("after"),
        follow=asked.get("follow", False),
        types=asked.get("type", ()),
        refs=asked.get("sandbox", ()),
        labels=params.as_labels(asked.get("label", ())),
        owner=call.visible,
    )
    lines = await call.lines()
    try:
        if asked.get("follow", False):
            async for event in found:
                await lines.write(event)
        else:
            async for event in found:
                await lines.add(event)
        return await lines.end()
    finally:
        close = getattr(found, "aclose", None)
        if close is not None:
            await close()


ROUTES = (
    Route(
        "GET", "/v1/events", events, "What happens to sandboxes", tag="sandboxes", stream=True,
        answer=Event, media=NDJSON,
        query=(
            params.integer("after", "Only events with a greater id"),
            params.flag("follow", "Go on with what comes, without end"),
            params.text("type", "This type, or all that begin so: process.", empty=False).times(),
            params.text("sandbox", "Of this one: id, beginning of it, or name", empty=False).times(),
            params.labels("label", "Of sandboxes with this label: NAME, or NAME=VALUE"),
        ),
    ),
)  # fmt: skip
