"""/networks: bridge (Joey's nat), host, none, and private networks."""

from __future__ import annotations

import contextlib
from typing import Any

from msgspec import structs

from joey.api.facades.docker import views
from joey.api.facades.docker.base import Refused, Req, Route, answer
from joey.api.facades.docker.fields import Fields
from joey.api.facades.docker.hostconfig import MODES, endpoint_aliases
from joey.api.light import web
from joey.engine.interface import Engine
from joey.model.errors import Conflict, JoeyError, NotFound
from joey.model.network import PrivateNetwork, as_spec
from joey.model.views import NetworkView

_BUILT_IN = {"bridge": "bridge", "host": "host", "none": "null"}


def _view(name: str, driver: str, *, one: NetworkView | None = None, members: bool = False) -> dict[str, Any]:
    containers = {
        member.id: {"Name": member.name or member.id, "EndpointID": member.id, "MacAddress": "",
                    "IPv4Address": f"{member.address}/32" if member.address else "", "IPv6Address": ""}
        for member in (one.members if one and members else ())
    }  # fmt: skip
    return {
        "Name": name, "Id": views.network_id(name), "Created": views.stamp(one.created if one else None),
        "Scope": "local", "Driver": driver, "EnableIPv4": True, "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": []},
        "Internal": bool(one and one.internal), "Attachable": True, "Ingress": False, "ConfigFrom": {"Network": ""},
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
    name = _name(r)
    if name in _BUILT_IN:
        return _view(name, _BUILT_IN[name])
    return _view(name, "bridge", one=r.engine.network(name), members=True)


def _name(r: Req) -> str:
    """The network of the path, by name, id or the beginning of one. Raises NotFound in Docker's words, Conflict."""
    ref = r.path["id"]
    if found := _by_id(r.engine, ref):
        return found
    raise NotFound("", f"network {ref} not found")


def _by_id(engine: Engine, ref: str) -> str:
    """The name of the network that is called so, or has the id; "" if there is none. Raises Conflict."""
    names = [*_BUILT_IN, *(one.name for one in engine.network_list(None))]
    if ref in names:
        return ref
    found = [name for name in names if views.network_id(name).startswith(ref)] if ref else []
    if len(found) > 1:
        raise Conflict("", f"network {ref} is ambiguous ({len(found)} matches found)")
    return found[0] if found else ""


def named(engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    """The request of a create with its networks by name, where it gives ids."""

    def name(ref: str) -> str:
        return (_by_id(engine, ref) if len(ref) >= 12 and ":" not in ref else "") or ref

    body = dict(body)
    host, networking = body.get("HostConfig"), body.get("NetworkingConfig")
    if isinstance(host, dict) and isinstance(host.get("NetworkMode"), str):
        body["HostConfig"] = {**host, "NetworkMode": name(host["NetworkMode"])}
    if isinstance(networking, dict) and isinstance(networking.get("EndpointsConfig"), dict):
        ends = {name(ref): end for ref, end in networking["EndpointsConfig"].items()}
        body["NetworkingConfig"] = {**networking, "EndpointsConfig": ends}
    return body


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
    fields.drop("CheckDuplicate", "EnableIPv4", "Attachable")  # names are unique, and every container may join
    fields.refuse({"Scope": ("local",)}, {"EnableIPv6": "Joey's networks are IPv4"})
    try:
        await r.whole(r.engine.network_create(wanted))
    except Conflict:
        raise Conflict("", f"network with name {name} already exists") from None
    r.tell("network", "create", views.network_id(name), name=name)
    return answer({"Id": views.network_id(name), "Warning": ""}, status=201)


async def remove(r: Req) -> None:
    name = _name(r)
    if name in _BUILT_IN:
        raise JoeyForbidden("", f"{name} is a pre-defined network and cannot be removed")
    await r.whole(r.engine.network_remove(name))
    r.tell("network", "destroy", views.network_id(name), name=name)


class JoeyForbidden(JoeyError):
    """What nobody may do: 403."""

    status = 403
    code = "forbidden"


async def connect(r: Req) -> web.Response:
    """Of a container that was never started, to the network that it is to have. Compose makes containers so."""
    fields = Fields("", await r.json())
    name, id = _name(r), r.find(fields.take("Container", str, ""))
    end = fields.take("EndpointConfig", dict[str, Any], {})
    fields.refuse({}, {})
    mode = MODES.get(name, name)
    aliases = endpoint_aliases(end, mode)
    box = r.engine.find(id)  # type: ignore[attr-defined]

    async def work() -> None:
        _unstarted(r, id)
        network = as_spec(box.spec.network)
        if id not in r.state.apart:
            if network.mode == mode:
                raise JoeyForbidden("", f"endpoint with name {box.name} already exists in network {name}")
            there = views.network_name(network.mode)
            raise Refused("", f"a container is in one network: disconnect it from {there} first")
        spec = structs.replace(box.spec, network=structs.replace(network, mode=mode, aliases=tuple(aliases)))
        r.engine.networks.check(spec, "")  # type: ignore[attr-defined]
        box.exchange(spec)
        r.state.apart.discard(id)

    await r.whole(box.in_turn(work()))
    return web.Response(status=200)


async def disconnect(r: Req) -> web.Response:
    """Of a container that was never started: it gets another network, or none."""
    fields = Fields("", await r.json())
    name, id = _name(r), r.find(fields.take("Container", str, ""))
    fields.drop("Force")
    fields.refuse({}, {})
    _unstarted(r, id)
    mode = as_spec((await r.engine.inspect(id)).spec.network).mode
    if id in r.state.apart or views.network_name(mode) != name:
        raise JoeyForbidden("", f"container {id} is not connected to network {name}")
    r.state.apart.add(id)
    return web.Response(status=200)


def _unstarted(r: Req, id: str) -> None:
    if r.engine.find(id).view().state != "created":  # type: ignore[attr-defined]
        raise Refused("network", "a container's network is chosen before it is started: docker run --network")


async def settle(r: Req, id: str) -> None:
    """Before a start: one that was disconnected, and not connected again, has no network."""
    if id not in r.state.apart:
        return
    box = r.engine.find(id)  # type: ignore[attr-defined]

    async def work() -> None:
        if box.view().state == "created":
            box.exchange(structs.replace(box.spec, network="none"))
        r.state.apart.discard(id)

    await r.whole(box.in_turn(work()))


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
    Route("GET", "/networks", index, "filters"),
    Route("POST", "/networks/create", create, status=201),
    Route("POST", "/networks/prune", prune, "filters"),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", disconnect),
)
