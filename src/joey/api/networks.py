"""/v1/networks: private networks, shared by the sandboxes that name them."""

from __future__ import annotations

from typing import Any

from joey.api.routes import Call, Route
from joey.model.network import PrivateNetwork
from joey.model.views import NetworkView


async def create_network(call: Call) -> Any:
    """Its members reach each other by address, name, id and alias, whatever their policies say."""
    return await call.whole(call.engine.network_create(await call.body(), owner=call.owner))


async def list_networks(call: Call) -> Any:
    """In order of name."""
    return call.engine.network_list(call.visible)


async def inspect_network(call: Call) -> Any:
    """One, with its members."""
    return call.engine.network(call.path["network"], call.visible)


async def remove_network(call: Call) -> None:
    """Refused while a running sandbox is in it."""
    await call.whole(call.engine.network_remove(call.path["network"], owner=call.visible))


ROUTES = (
    Route(
        "POST", "/v1/networks", create_network, "Make a private network", tag="networks", body=PrivateNetwork,
        answer=NetworkView, status=201, example={"name": "backend", "internal": True},
    ),
    Route("GET", "/v1/networks", list_networks, "List them", tag="networks", answer=tuple[NetworkView, ...]),
    Route("GET", "/v1/networks/{network}", inspect_network, "One and its members", tag="networks", answer=NetworkView),
    Route("DELETE", "/v1/networks/{network}", remove_network, "Remove one", tag="networks", status=204),
)  # fmt: skip
