"""Code that a client sends as a zip archive, into the code store."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from joey.api.tenant import restrict_function
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.function import FunctionSpec

if TYPE_CHECKING:
    from joey.api.facades.signed_server import SignedCall
    from joey.functions.service import Code


def permitted(call: SignedCall, spec: FunctionSpec, changes: dict[str, Any]) -> None:
    """Raises NotPermitted for changes that a key may not ask for, Invalid for wrong ones."""
    restrict_function(call, codec.convert(FunctionSpec, {**codec.to_builtins(spec), **changes}))


async def stored(call: SignedCall, spec: FunctionSpec, zipped: str, where: str) -> Code | None:
    """What becomes of an archive in base64; None for "". where: the parameter it came by. Raises NotPermitted for what
    a key may not ask for, Invalid.
    """
    restrict_function(call, spec)
    if not zipped:
        return None
    packed = await unpacked(zipped, where)
    return await call.service.functions.code(spec, files={}, packed=packed, requirements="", owner=call.owner)


async def unpacked(text: str, where: str) -> bytes:
    """The bytes that base64 stands for. Raises Invalid."""
    try:
        return await asyncio.to_thread(b64decode, text, validate=True)
    except ValueError:
        raise Invalid(where, "is not base64") from None
