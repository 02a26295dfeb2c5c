"""/volumes."""

from __future__ import annotations

from typing import Any

from joey.api.facades.docker import views
from joey.api.facades.docker.base import Refused, Req, Route, answer
from joey.api.facades.docker.request import Fields
from joey.api.light import web
from joey.model.errors import NotFound
from joey.model.units import parse_size
from joey.model.volumes import Volume, VolumeBody


def _of(r: Req) -> Any:
    found = getattr(r.engine, "volumes", None)
    if found is None:
        raise Refused("volumes", "this engine keeps no volumes")
    return found


def _view(one: Volume) -> dict[str, Any]:
    return {
        "Name": one.name, "Driver": "local", "Mountpoint": "", "CreatedAt": views.stamp(one.created),
        "Labels": one.labels, "Scope": "local", "Options": {"size": str(one.size)} if one.size else None,
        "UsageData": {"Size": -1 if one.used is None else one.used, "RefCount": len(one.users)},
    }  # fmt: skip


async def index(r: Req) -> Any:
    filters = r.filters("name", "label", "dangling", "driver")
    labels = {key: value if eq else None for key, eq, value in (t.partition("=") for t in filters.get("label", []))}
    rows = []
    for one in _of(r).all("", labels):
        unused = not one.users
        if filters.get("name") and not any(part in one.name for part in filters["name"]):
            continue
        if filters.get("dangling") and unused != (filters["dangling"][0] in ("true", "1")):
            continue
        if filters.get("driver") and "local" not in filters["driver"]:
            continue
        rows.append(_view(one))
    return {"Volumes": rows, "Warnings": None}


async def create(r: Req) -> web.Response:
    """One of that name that is there already is given back."""
    fields = Fields("", await r.json())
    options = fields.take("DriverOpts", dict[str, str], {})
    if fields.take("Driver", str, "local") not in ("", "local"):
        raise Refused("Driver", "Joey has the driver local")
    if unknown := sorted(set(options) - {"size"}):
        raise Refused(f"DriverOpts.{unknown[0]}", "Joey's volumes have size, nothing else")
    body = VolumeBody(
        name=fields.take("Name", str, ""), labels=fields.take("Labels", dict[str, str], {}),
        size=parse_size(options["size"], "DriverOpts.size") if "size" in options else None,
    )  # fmt: skip
    fields.refuse({}, {})
    return answer(_view(await r.whole(_of(r).create(body, ""))), status=201)


async def inspect(r: Req) -> Any:
    try:
        return _view(await _of(r).inspect(r.path["id"], ""))
    except NotFound:
        raise NotFound("", f"get {r.path['id']}: no such volume") from None


async def remove(r: Req) -> None:
    try:
        await r.whole(_of(r).remove(r.path["id"], ""))
    except NotFound:
        if not r.flag("force"):
            raise NotFound("", f"get {r.path['id']}: no such volume") from None


async def prune(r: Req) -> Any:
    filters = r.filters("all")
    if not filters.get("all"):  # volumes of Joey all have names: without `all` Docker would keep those
        return {"VolumesDeleted": [], "SpaceReclaimed": 0}
    gone = await r.whole(_of(r).prune(""))
    return {"VolumesDeleted": list(gone.names), "SpaceReclaimed": gone.bytes}


ROUTES = (
    Route("GET", "/volumes", index),
    Route("POST", "/volumes/create", create),
    Route("POST", "/volumes/prune", prune),
    Route("GET", "/volumes/{id}", inspect),
    Route("DELETE", "/volumes/{id}", remove),
)
