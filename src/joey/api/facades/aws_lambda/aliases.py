"""Aliases, with weights."""

from __future__ import annotations

import hashlib
from typing import Any

from joey.api.facades.aws_lambda import views
from joey.api.facades.aws_lambda.base import answer, fields, listed, name_of
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.fields import Fields
from joey.api.facades.signed_server import SignedCall, route
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.function import Alias

_ROOT = "/2015-03-31/functions/{name}/aliases"


def _view(function: str, found: Alias) -> views.Message:
    return views.alias(function, found, _revision(found))


def _revision(found: Alias) -> str:
    """Another one with every change: of what it says."""
    text = hashlib.sha256(codec.encode(found)).hexdigest()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def _weights(given: Fields) -> dict[str, float]:
    routing = given.part("RoutingConfig")
    weights = routing.take("AdditionalVersionWeights", dict[str, float], {})
    routing.done()
    if len(weights) > 1:
        raise Invalid("RoutingConfig.AdditionalVersionWeights", "names more than one other version")
    return weights


async def create_alias(call: SignedCall) -> Any:
    """CreateAlias."""
    given, name = fields(call), name_of(call)
    alias = Alias(
        name=given.need("Name", str),
        version=given.need("FunctionVersion", str),
        description=given.take("Description", str, ""),
        weights=_weights(given),
    )
    given.done()
    made = await call.whole(call.functions.set_alias(name, alias, owner=call.visible, new=True))
    return answer(call, _view(name, made), 201)


async def update_alias(call: SignedCall) -> Any:
    """UpdateAlias: what is not named stays."""
    given, name = fields(call), name_of(call)
    found = call.functions.alias(name, call.path["alias"], owner=call.visible)
    revision = given.take("RevisionId", str, "")
    if revision and revision != _revision(found):
        raise Failure(412, "PreconditionFailedException", "the RevisionId is not the alias's: it was changed meanwhile")
    alias = Alias(
        name=found.name,
        version=given.take("FunctionVersion", str, found.version),
        description=given.take("Description", str, found.description),
        weights=_weights(given) if "RoutingConfig" in given else found.weights,
    )
    given.done()
    changed = await call.whole(call.functions.set_alias(name, alias, owner=call.visible, must=True))
    return answer(call, _view(name, changed))


async def get_alias(call: SignedCall) -> Any:
    """GetAlias."""
    name = name_of(call)
    return answer(call, _view(name, call.functions.alias(name, call.path["alias"], owner=call.visible)))


async def delete_alias(call: SignedCall) -> Any:
    """DeleteAlias."""
    await call.whole(call.functions.delete_alias(name_of(call), call.path["alias"], owner=call.visible))
    return answer(call, status=204)


async def list_aliases(call: SignedCall) -> Any:
    """ListAliases, of one version if that is asked."""
    call.allow(lacking, "FunctionVersion", "Marker", "MaxItems")
    name, version = name_of(call), call.param("FunctionVersion")
    found = call.functions.aliases(name, owner=call.visible)
    rows = [(one.name, _view(name, one)) for one in found if version in ("", one.version, *one.weights)]
    return listed(call, "Aliases", sorted(rows, key=lambda row: row[0]))


ROUTES = (
    route("POST", _ROOT, create_alias, "CreateAlias"),
    route("GET", _ROOT, list_aliases, "ListAliases"),
    route("GET", f"{_ROOT}/{{alias}}", get_alias, "GetAlias"),
    route("PUT", f"{_ROOT}/{{alias}}", update_alias, "UpdateAlias"),
    route("DELETE", f"{_ROOT}/{{alias}}", delete_alias, "DeleteAlias"),
)
