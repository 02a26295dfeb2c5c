"""/v1/volumes: directories that outlive sandboxes. Everybody sees and uses his own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joey.api import params
from joey.api.routes import Call, Route
from joey.model.errors import Broken
from joey.model.volumes import Volume, VolumeBody, VolumesPruned

if TYPE_CHECKING:
    from joey.engine.volumes import Volumes


def of(call: Call) -> Volumes:
    """The engine's. Raises Broken for an engine without any (a fake)."""
    found: Volumes | None = getattr(call.engine, "volumes", None)
    if found is None:
        raise Broken("volumes", "this engine keeps no volumes")
    return found


async def create_volume(call: Call) -> Volume:
    """One of that name and size that is there already is given back."""
    body: VolumeBody = await call.body()
    return await call.whole(of(call).create(body, call.owner))


async def volumes(call: Call) -> Any:
    """The caller's, in order of name; an administrator sees all."""
    return of(call).all(call.visible, params.as_labels(call.query.get("label", ())))


async def volume(call: Call) -> Volume:
    """One of them, with what is used of it."""
    return await of(call).inspect(call.path["name"], call.visible)


async def remove_volume(call: Call) -> None:
    """With all that is in it. Refused while a sandbox has it, running or not."""
    await call.whole(of(call).remove(call.path["name"], call.visible))


async def prune_volumes(call: Call) -> VolumesPruned:
    """Remove those that no sandbox has: the caller's, of an administrator his own."""
    return await call.whole(of(call).prune(call.owner))


ROUTES = (
    Route(
        "POST", "/v1/volumes", create_volume, "Make a volume", tag="volumes", body=VolumeBody, body_optional=True,
        answer=Volume, status=201, example={"name": "data", "size": 1 << 30},
    ),
    Route(
        "GET", "/v1/volumes", volumes, "List volumes", tag="volumes", answer=tuple[Volume, ...],
        query=(params.labels("label", "NAME, or NAME=VALUE"),),
    ),
    Route(
        "POST", "/v1/volumes/prune", prune_volumes, "Remove volumes that nothing uses", tag="volumes",
        answer=VolumesPruned,
    ),
    Route("GET", "/v1/volumes/{name}", volume, "One volume", tag="volumes", answer=Volume),
    Route(
        "DELETE", "/v1/volumes/{name}", remove_volume, "Remove a volume and its content", tag="volumes", status=204
    ),
)  # fmt: skip
