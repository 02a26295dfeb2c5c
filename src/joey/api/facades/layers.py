"""Layers with versions, as both APIs have them: version N of NAME is the layer `NAME--N` of Joey's, which both see."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from joey.api.facades.code import unpacked
from joey.model.errors import Invalid, NotFound
from joey.model.function import FunctionSpec, check_name

if TYPE_CHECKING:
    from joey.api.facades.signed_server import SignedCall
    from joey.model.function_views import LayerView

_VERSIONED = re.compile(r"(.+)--([1-9][0-9]{0,8})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)


def everything(call: SignedCall) -> dict[str, dict[int, LayerView]]:
    """Name -> version -> layer, of the caller."""
    found: dict[str, dict[int, LayerView]] = {}
    for layer in call.service.functions.layers(owner=call.owner):
        if match := _VERSIONED.fullmatch(layer.name):
            found.setdefault(match[1], {})[int(match[2])] = layer
    return found


def find(call: SignedCall, name: str, version: str) -> LayerView:
    """One of them. Raises NotFound."""
    if version.isascii() and version.isdigit() and len(version) < 10:
        layer = everything(call).get(name, {}).get(int(version))
        if layer is not None:
            return layer
    raise NotFound("layer", f"there is no version {version[:20]!r} of a layer {name[:128]!r}")


def kept(arns: list[str], found: list[LayerView]) -> str:
    """What a function keeps in a tag, because it only has digests: ARN=SIZE and so on."""
    return " ".join(f"{arn}={layer.size}" for arn, layer in zip(arns, found, strict=True))


def told(text: str) -> list[tuple[str, int]]:
    """(ARN, size) of what `kept` made."""
    parts = (part.rpartition("=") for part in text.split())
    return [(arn, int(size)) for arn, _, size in parts if size.isdecimal() and len(size) < 16]


async def publish(call: SignedCall, name: str, zipped: str, labels: dict[str, str]) -> tuple[int, LayerView]:
    """The next version, from an archive in base64. Raises Invalid."""
    if not _NAME.fullmatch(name):
        raise Invalid("LayerName", f"{name[:128]!r} is not 1 to 100 letters, digits, _ and -")
    if not zipped:
        raise Invalid("ZipFile", "is required")
    packed = await unpacked(zipped, "ZipFile")
    form = FunctionSpec(name="layer", handler="none")
    functions = call.service.functions
    code = await functions.code(form, files={}, packed=packed, requirements="", owner=call.owner)
    version = max(everything(call).get(name, {0: None})) + 1
    full = f"{name}--{version}"
    check_name(full, "LayerName")
    return version, await functions.set_layer(full, code, owner=call.owner, labels=labels)


async def remove(call: SignedCall, name: str, version: str) -> None:
    """Functions that have it keep it. Raises NotFound."""
    await call.service.functions.delete_layer(find(call, name, version).name, owner=call.owner)
