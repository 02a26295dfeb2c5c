"""/networks: bridge (Joey's nat), host, none, and private networks."""

from __future__ import annotations

import contextlib
from typing import Any

from joey.api.facades.docker import views
from joey.api.facades.docker.base import Refused, Req, Route, answer
from joey.api.facades.docker.request import Fields
from joey.api.light import web
from joey.model.errors import Conflict, JoeyError, NotFound
from joey.model.network import PrivateNetwork
from joey.model.views import NetworkView

_BUILT_IN = {"bridge": "bridge", "host": "host", "none": "null"}


def _view(name: str, driver: str, *, one: NetworkView | None = None, members: bool = False) -> dict[str, Any]:
    containers = {
        member.id: {"Name": member.name or member.id, "EndpointID": member.id, "MacAddress": "",
                    "IPv4Address": f"{member.address}/32" if member.address else "", "IPv6Address": ""}
        for member in (one.members if one and members else ())
    }  # fmt: skip
    return {
        "Name": name, "Id": name, "Created": views.stamp(one.created if one else None), "Scope": "local",
        "Driver": driver, "EnableIPv4": True, "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": []},
        "Internal": bool(one and one.internal), "Attachable": False, "Ingress": False, "ConfigFrom": {"Network": ""},
        "ConfigOnly": False, "Containers": containers, "Options": {}, "Labels": one.labels if one else {},
    }  # fmt: skip


async def index(r: Req) -> Any:
    filters = r.filters("name", "id", "driver", "label", "scope", "type", "dangling")
    rows = [_view(name, driver) for name, driver in _BUILT_IN.items()]
    found = {one.name: one for one in r.engine.network_list(None)}
    rows += [_view(one.name, "bridge", one=one) for one in found.values()]
    return [row for row in rows if _chosen(row, found, filters)]


def _chosen(row: dict[str, Any], found: dict[str, NetworkView], filters: dict[str, list[str]]) -> bool:
    custom = row["Name"] in found
    unused = custom and not found[row["Name"]].members
    tests = {
        "name": lambda v: v in row["Name"], "id": lambda v: row["Id"].startswith(v),
        "driver": lambda v: row["Driver"] == v, "scope": lambda v: v == "local",
        "type": lambda v: (v == "custom") == custom,
        "dangling": lambda v: unused == (v in ("true", "1")),
        "label": lambda v: row["Labels"].get(v.partition("=")[0], None)
        == (v.partition("=")[2] if "=" in v else row["Labels"].get(v, object())),
    }  # fmt: skip
    return all(any(tests[name](value) for value in values) for name, values in filters.items())


async def inspect(r: Req) -> Any:
    name = r.path["id"]
    if name in _BUILT_IN:
        return _view(name, _BUILT_IN[name])
    return _view(name, "bridge", one=_find(r, name), members=True)


def _find(r: Req, name: str) -> NetworkView:
    try:
        return r.engine.network(name)
    except NotFound:
        raise NotFound("", f"network {name} not found") from None


async def create(r: Req) -> web.Response:
    fields = Fields("", await r.json())
    name: str = fields.take("Name", str, "")
    driver: str = fields.take("Driver", str, "") or "bridge"
    if driver != "bridge":
        raise Refused("Driver", f"{driver!r} is not supported: Joey has bridge")
    ipam = fields.take("IPAM", dict[str, Any], {})
    if ipam.get("Config") or ipam.get("Options") or ipam.get("Driver") not in (None, "", "default"):
        raise Refused("IPAM", "addresses are the engine's")
    wanted = PrivateNetwork(
        name=name, internal=fields.take("Internal", bool, False), labels=fields.take("Labels", dict[str, str], {})
    )
    fields.drop("CheckDuplicate", "EnableIPv4")
    fields.refuse({"Scope": ("local",)}, {"EnableIPv6": "Joey's networks are IPv4", "Attachable": "there is no swarm"})
    try:
        await r.whole(r.engine.network_create(wanted))
    except Conflict:
        raise Conflict("", f"network with name {name} already exists") from None
    return answer({"Id": name, "Warning": ""}, status=201)


async def remove(r: Req) -> None:
    name = r.path["id"]
    if name in _BUILT_IN:
        raise JoeyForbidden("", f"{name} is a pre-defined network and cannot be removed")
    _find(r, name)
    await r.whole(r.engine.network_remove(name))


class JoeyForbidden(JoeyError):
    """What nobody may do: 403."""

    status = 403
    code = "forbidden"


async def connect(r: Req) -> None:
    raise Refused("network", "a container's network is chosen when it is made: docker run --network")


async def prune(r: Req) -> Any:
    r.filters()
    gone = []
    for one in r.engine.network_list(None):
        if not one.members:
            with contextlib.suppress(Conflict, NotFound):
                await r.whole(r.engine.network_remove(one.name))
                gone.append(one.name)
    return {"NetworksDeleted": gone}


ROUTES = (
    Route("GET", "/networks", index),
    Route("POST", "/networks/create", create, 201),
    Route("POST", "/networks/prune", prune),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", connect),
)
