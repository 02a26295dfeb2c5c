"""Aliases, with weights."""

from __future__ import annotations

from typing import Any

from joey.api.facades.fc.base import FUNCTION, Message, answer, fields, inward, listed, name_of, outward
from joey.api.facades.fc.errors import Failure, lacking
from joey.api.facades.signed_server import SignedCall, route
from joey.model.errors import Conflict
from joey.model.function import Alias


def _view(found: Alias) -> Message:
    return {
        "aliasName": found.name,
        "versionId": outward(found.version),
        "description": found.description,
        "additionalVersionWeight": {outward(version): share for version, share in found.weights.items()},
    }


def _weights(given: dict[str, float]) -> dict[str, float]:
    return {inward(version): share for version, share in given.items()}


async def create(call: SignedCall) -> Any:
    """CreateAlias."""
    given, name = fields(call), name_of(call)
    alias = Alias(
        name=given.need("aliasName", str),
        version=inward(given.need("versionId", str)),
        description=given.take("description", str, ""),
        weights=_weights(given.take("additionalVersionWeight", dict[str, float], {})),
    )
    given.done()
    try:
        made = await call.whole(call.functions.set_alias(name, alias, owner=call.visible, new=True))
    except Conflict as error:
        raise Failure(409, "AliasAlreadyExists", error.message) from None
    return answer(call, _view(made))


async def update(call: SignedCall) -> Any:
    """UpdateAlias: what is named."""
    given, name = fields(call), name_of(call)
    found = call.functions.alias(name, call.path["alias"], owner=call.visible)
    alias = Alias(
        name=found.name,
        version=inward(given.take("versionId", str, found.version)),
        description=given.take("description", str, found.description),
        weights=_weights(given.take("additionalVersionWeight", dict[str, float], found.weights)),
    )
    given.done()
    return answer(call, _view(await call.whole(call.functions.set_alias(name, alias, owner=call.visible, must=True))))


async def get(call: SignedCall) -> Any:
    """GetAlias."""
    found = call.functions.alias(name_of(call), call.path["alias"], owner=call.visible)
    return answer(call, _view(found))


async def remove(call: SignedCall) -> Any:
    """DeleteAlias."""
    await call.whole(call.functions.delete_alias(name_of(call), call.path["alias"], owner=call.visible))
    return answer(call, status=204)


async def list_all(call: SignedCall) -> Any:
    """ListAliases."""
    call.allow(lacking, "prefix", "limit", "nextToken")
    found = call.functions.aliases(name_of(call), owner=call.visible)
    return listed(call, "aliases", [(one.name, _view(one)) for one in found])


ROUTES = (
    route("POST", f"{FUNCTION}/aliases", create, "CreateAlias"),
    route("GET", f"{FUNCTION}/aliases", list_all, "ListAliases"),
    route("GET", f"{FUNCTION}/aliases/{{alias}}", get, "GetAlias"),
    route("PUT", f"{FUNCTION}/aliases/{{alias}}", update, "UpdateAlias"),
    route("DELETE", f"{FUNCTION}/aliases/{{alias}}", remove, "DeleteAlias"),
)
