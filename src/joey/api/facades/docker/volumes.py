"""/volumes."""

from __future__ import annotations

import contextlib
from typing import Any

from joey.api.facades.docker import anonymous, views
from joey.api.facades.docker.base import Refused, Req, Route, answer
from joey.api.facades.docker.fields import Fields
from joey.api.light import web
from joey.model.errors import Conflict, NotFound
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
    rows = []
    for one in _of(r).all("", _labels(filters)):
        unused = not one.users
        if filters.get("name") and not any(part in one.name for part in filters["name"]):
            continue
        if filters.get("dangling") and unused != (filters["dangling"][0] in ("true", "1")):
            continue
        if filters.get("driver") and "local" not in filters["driver"]:
            continue
        rows.append(_view(one))
    return {"Volumes": rows, "Warnings": None}


def _labels(filters: dict[str, list[str]]) -> dict[str, str | None]:
    return {key: value if eq else None for key, eq, value in (t.partition("=") for t in filters.get("label", []))}


async def all_of(r: Req) -> list[dict[str, Any]]:
    """All of them, with what they take."""
    return [_view(await _of(r).inspect(one.name, "")) for one in _of(r).all("", {})]


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
    there = {one.name for one in _of(r).all("", {})}
    made = await r.whole(_of(r).create(body, ""))
    if made.name not in there:
        r.tell("volume", "create", made.name, driver="local")
    return answer(_view(made), status=201)


async def inspect(r: Req) -> Any:
    try:
        return _view(await _of(r).inspect(r.path["id"], ""))
    except NotFound:
        raise NotFound("", f"get {r.path['id']}: no such volume") from None


async def remove(r: Req) -> None:
    try:
        await r.whole(_of(r).remove(r.path["id"], ""))
        r.tell("volume", "destroy", r.path["id"], driver="local")
    except NotFound:
        if not r.flag("force"):
            raise NotFound("", f"get {r.path['id']}: no such volume") from None


async def prune(r: Req) -> Any:
    """Those without a name; with the filter `all` every one that is not used."""
    filters, own = r.filters("all", "label", "label!"), _of(r)
    wanted = _labels(filters)
    if filters.get("all", ["false"])[0] not in ("true", "1"):
        wanted[anonymous.LABEL] = None
    spared = _labels({"label": filters.get("label!", [])})
    gone, size = [], 0
    for one in own.all("", wanted):
        if one.users or any(key in one.labels and value in (None, one.labels[key]) for key, value in spared.items()):
            continue
        with contextlib.suppress(NotFound, Conflict):
            used = (await own.inspect(one.name, "")).used
            await r.whole(own.remove(one.name, ""))
            gone.append(one.name)
            size += used or 0
    return {"VolumesDeleted": gone, "SpaceReclaimed": size}


ROUTES = (
    Route("GET", "/volumes", index, "filters"),
    Route("POST", "/volumes/create", create),
    Route("POST", "/volumes/prune", prune, "filters"),
    Route("GET", "/volumes/{id}", inspect),
    Route("DELETE", "/volumes/{id}", remove, "force"),
)
