"""Layers and their versions."""

from __future__ import annotations

import re
from typing import Any

from joey.api.facades import layers
from joey.api.facades.aws_lambda.base import answer, fields, listed
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.aws_lambda.views import Message, stamp
from joey.api.facades.fields import Fields
from joey.api.facades.links import layer_link
from joey.api.facades.signed_server import SignedCall, now, route
from joey.model.errors import Invalid, NotFound
from joey.model.function import ACCOUNT, REGION
from joey.model.function_views import LayerView

_ROOT = "/2018-10-31/layers"
_ARN = re.compile(r"arn:aws[a-zA-Z-]*:lambda:[a-z0-9-]+:\d{12}:layer:([A-Za-z0-9_-]+)(?::(\d+))?", re.ASCII)
_LISTS = ("CompatibleRuntimes", "CompatibleArchitectures")


def arn(name: str, version: int | None = None) -> str:
    """Of a layer, or of a version of it."""
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer:{name}" + (f":{version}" if version else "")


def of_arn(given: str) -> tuple[str, str]:
    """(name, version). Raises Invalid."""
    match = _ARN.fullmatch(given)
    if match is None or not match[2]:
        raise Invalid("Layers", f"{given[:200]!r} is no ARN of a layer version")
    return match[1], match[2]


async def take(call: SignedCall, given: Fields) -> tuple[tuple[str, ...], str] | None:
    """(digests, ARNs as they are kept) of the parameter Layers; None if it is not there. Raises Invalid, Failure."""
    if "Layers" not in given:
        return None
    arns = given.take("Layers", list[str], [])
    try:
        found = [layers.find(call, *of_arn(one)) for one in arns]
    except NotFound as error:
        raise Invalid("Layers", error.message) from None
    return tuple(one.digest for one in found), layers.kept(arns, found)


def _name(call: SignedCall) -> str:
    match = _ARN.fullmatch(call.path["name"])
    return match[1] if match else call.path["name"]


def _view(name: str, version: int, layer: LayerView) -> Message:
    shown: Message = {"LayerVersionArn": arn(name, version), "Version": version, "CreatedDate": stamp(layer.created)}
    shown |= {key: layer.labels[key] for key in ("Description", "LicenseInfo") if layer.labels.get(key)}
    shown |= {key: layer.labels[key].split() for key in _LISTS if layer.labels.get(key)}
    return shown


def _whole(call: SignedCall, name: str, version: int, layer: LayerView) -> Message:
    content = {
        "Location": layer_link(call.facade, call.owner, layer.name, now()),
        "CodeSha256": layer.sha256,
        "CodeSize": layer.size,
    }
    return _view(name, version, layer) | {"LayerArn": arn(name), "Content": content}


async def publish(call: SignedCall) -> Any:
    """PublishLayerVersion."""
    given, name = fields(call), _name(call)
    content = given.part("Content")
    for one in ("S3Bucket", "S3Key", "S3ObjectVersion"):
        content.only(one)
    zipped = content.take("ZipFile", str, "")
    content.done()
    labels = {key: " ".join(given.take(key, list[str], [])) for key in _LISTS}
    labels |= {key: given.take(key, str, "") for key in ("Description", "LicenseInfo")}
    given.done()
    version, layer = await call.whole(layers.publish(call, name, zipped, labels))
    return answer(call, _whole(call, name, version, layer), 201)


async def get(call: SignedCall) -> Any:
    """GetLayerVersion."""
    name, version = _name(call), call.path["version"]
    layer = layers.find(call, name, version)
    return answer(call, _whole(call, name, int(version), layer))


async def list_layers(call: SignedCall) -> Any:
    """ListLayers, with the newest version of each; with find=LayerVersion GetLayerVersionByArn."""
    call.allow(lacking, "Marker", "MaxItems", "CompatibleRuntime", "CompatibleArchitecture", "find", "Arn")
    if call.param("find"):
        name, version = of_arn(call.param("Arn"))
        return answer(call, _whole(call, name, int(version), layers.find(call, name, version)))
    rows = []
    for name, versions in layers.everything(call).items():
        fitting = {number: layer for number, layer in versions.items() if _fits(call, layer)}
        if fitting:
            newest = _view(name, max(fitting), fitting[max(fitting)])
            rows.append((name, {"LayerName": name, "LayerArn": arn(name), "LatestMatchingVersion": newest}))
    return listed(call, "Layers", sorted(rows, key=lambda row: row[0]))


async def list_versions(call: SignedCall) -> Any:
    """ListLayerVersions: the newest first."""
    call.allow(lacking, "Marker", "MaxItems", "CompatibleRuntime", "CompatibleArchitecture")
    name = _name(call)
    fitting = {number: layer for number, layer in layers.everything(call).get(name, {}).items() if _fits(call, layer)}
    rows = [(str(10**9 - number).zfill(10), _view(name, number, fitting[number])) for number in sorted(fitting)]
    return listed(call, "LayerVersions", rows[::-1])


def _fits(call: SignedCall, layer: LayerView) -> bool:
    for param, label in zip(("CompatibleRuntime", "CompatibleArchitecture"), _LISTS, strict=True):
        if (wanted := call.param(param)) and wanted not in layer.labels.get(label, "").split():
            return False
    return True


async def delete(call: SignedCall) -> Any:
    """DeleteLayerVersion: functions that have it keep it. That it is not there is no error."""
    try:
        await call.whole(layers.remove(call, _name(call), call.path["version"]))
    except NotFound:
        pass
    return answer(call, status=204)


async def no_policy(call: SignedCall) -> Any:
    """GetLayerVersionPolicy: none has one, a layer is its owner's."""
    layers.find(call, _name(call), call.path["version"])
    raise Failure(404, "ResourceNotFoundException", "No policy is associated with the given resource.")


ROUTES = (
    route("GET", _ROOT, list_layers, "ListLayers"),
    route("POST", f"{_ROOT}/{{name}}/versions", publish, "PublishLayerVersion", tag="code"),
    route("GET", f"{_ROOT}/{{name}}/versions", list_versions, "ListLayerVersions"),
    route("GET", f"{_ROOT}/{{name}}/versions/{{version}}", get, "GetLayerVersion"),
    route("DELETE", f"{_ROOT}/{{name}}/versions/{{version}}", delete, "DeleteLayerVersion"),
    route("GET", f"{_ROOT}/{{name}}/versions/{{version}}/policy", no_policy, "GetLayerVersionPolicy"),
)
