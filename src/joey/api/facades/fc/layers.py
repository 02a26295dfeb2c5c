"""Layers and their versions."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from joey.api.facades import layers
from joey.api.facades.fc.base import ROOT, Message, answer, fields, limit_of, listed, stamp
from joey.api.facades.fc.errors import lacking
from joey.api.facades.fields import Fields
from joey.api.facades.links import layer_link
from joey.api.facades.signed_server import SignedCall, now, route
from joey.model.errors import Invalid, NotFound
from joey.model.function import ACCOUNT, REGION
from joey.model.function_views import LayerView

_ARN = re.compile(r"acs:fc:[a-z0-9-]+:\d+:layers/([A-Za-z0-9_-]+)/versions/(\d+)", re.ASCII)


def arn(name: str, version: int) -> str:
    """Of a version."""
    return f"acs:fc:{REGION}:{ACCOUNT}:layers/{name}/versions/{version}"


def of_arn(given: str) -> tuple[str, str]:
    """(name, version). Raises Invalid."""
    match = _ARN.fullmatch(given)
    if match is None:
        raise Invalid("layers", f"{given[:200]!r} is no ARN of a layer's version")
    return match[1], match[2]


def take(call: SignedCall, given: Fields) -> tuple[tuple[str, ...], str] | None:
    """(digests, ARNs as they are kept) of the parameter layers; None if it is not there. Raises Invalid."""
    if "layers" not in given:
        return None
    arns = given.take("layers", list[str], [])
    try:
        found = [layers.find(call, *of_arn(one)) for one in arns]
    except NotFound as error:
        raise Invalid("layers", error.message) from None
    return tuple(one.digest for one in found), layers.kept(arns, found)


def _view(call: SignedCall, name: str, version: int, layer: LayerView) -> Message:
    return {
        "layerName": name,
        "version": version,
        "layerVersionArn": arn(name, version),
        "description": layer.labels.get("Description", ""),
        "license": layer.labels.get("LicenseInfo", ""),
        "compatibleRuntime": layer.labels.get("CompatibleRuntimes", "").split(),
        "createTime": stamp(layer.created),
        "acl": "0",
        "codeSize": layer.size,
        "codeChecksum": layer.sha256,
        "code": {
            "repositoryType": "oss",
            "location": layer_link(call.facade, call.owner, layer.name, now()),
        },
    }


async def create(call: SignedCall) -> Any:
    """CreateLayerVersion."""
    given, name = fields(call), call.path["layer"]
    part = given.part("code")
    for one in ("ossBucketName", "ossObjectName", "checksum"):
        part.only(one)
    zipped = part.take("zipFile", str, "")
    part.done()
    labels = {
        "Description": given.take("description", str, ""),
        "LicenseInfo": given.take("license", str, ""),
        "CompatibleRuntimes": " ".join(given.take("compatibleRuntime", list[str], [])),
    }
    given.done()
    version, layer = await call.whole(layers.publish(call, name, zipped, labels))
    return answer(call, _view(call, name, version, layer))


async def get(call: SignedCall) -> Any:
    """GetLayerVersion."""
    name, version = call.path["layer"], call.path["version"]
    layer = layers.find(call, name, version)
    return answer(call, _view(call, name, int(version), layer))


async def by_arn(call: SignedCall) -> Any:
    """GetLayerVersionByArn."""
    name, version = of_arn(unquote(call.path["arn"]))
    return answer(call, _view(call, name, int(version), layers.find(call, name, version)))


async def list_all(call: SignedCall) -> Any:
    """ListLayers: the newest version of each."""
    call.allow(lacking, "prefix", "limit", "nextToken")
    found = layers.everything(call)
    rows = [(name, _view(call, name, max(those), those[max(those)])) for name, those in found.items()]
    return listed(call, "layers", rows)


async def list_versions(call: SignedCall) -> Any:
    """ListLayerVersions: from startVersion on."""
    call.allow(lacking, "startVersion", "limit")
    name, text, limit = call.path["layer"], call.param("startVersion") or "1", limit_of(call)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid("startVersion", "is not a number")
    found = layers.everything(call).get(name, {})
    numbers = [number for number in sorted(found) if number >= int(text)]
    shown: Message = {"layers": [_view(call, name, number, found[number]) for number in numbers[:limit]]}
    if len(numbers) > limit:
        shown["nextVersion"] = numbers[limit]
    return answer(call, shown)


async def delete(call: SignedCall) -> Any:
    """DeleteLayerVersion: functions that have it keep it."""
    await call.whole(layers.remove(call, call.path["layer"], call.path["version"]))
    return answer(call, status=204)


_VERSIONS = f"{ROOT}/layers/{{layer}}/versions"
ROUTES = (
    route("GET", f"{ROOT}/layers", list_all, "ListLayers"),
    route("GET", f"{ROOT}/layerarn/{{arn}}", by_arn, "GetLayerVersionByArn"),
    route("POST", _VERSIONS, create, "CreateLayerVersion", tag="code"),
    route("GET", _VERSIONS, list_versions, "ListLayerVersions"),
    route("GET", f"{_VERSIONS}/{{version}}", get, "GetLayerVersion"),
    route("DELETE", f"{_VERSIONS}/{{version}}", delete, "DeleteLayerVersion"),
)
