"""Layers: there are none yet in Joey that have names; lists of them are empty, and what would make one is refused."""

from __future__ import annotations

from typing import Any

from joey.api.facades.aws_lambda.base import answer
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.signed_server import SignedCall
from joey.api.routes import Route

_ROOT = "/2018-10-31/layers"


async def list_layers(call: SignedCall) -> Any:
    """ListLayers."""
    call.allow(lacking, "Marker", "MaxItems", "CompatibleRuntime", "CompatibleArchitecture", "find", "Arn")
    if call.param("find"):
        raise Failure(404, "ResourceNotFoundException", "Joey has no layer versions")
    return answer(call, {"Layers": []})


ROUTES = (Route("GET", _ROOT, list_layers, "ListLayers"),)
