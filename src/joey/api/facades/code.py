"""Code that a client sends as a zip archive, into the code store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joey.api.tenant import restrict_function
from joey.model import codec
from joey.model.function import FunctionSpec

if TYPE_CHECKING:
    from joey.api.facades.signed_server import SignedCall
    from joey.functions.service import Code


def permitted(call: SignedCall, spec: FunctionSpec, changes: dict[str, Any]) -> None:
    """Raises NotPermitted for changes that a key may not ask for, Invalid for wrong ones."""
    restrict_function(call, codec.convert(FunctionSpec, {**codec.to_builtins(spec), **changes}))


async def stored(call: SignedCall, spec: FunctionSpec, zipped: bytes | None) -> Code | None:
    """What becomes of the archive; None for none. Raises NotPermitted for what a key may not ask for, Invalid."""
    restrict_function(call, spec)
    if zipped is None:
        return None
    return await call.service.functions.code(spec, files={}, packed=zipped, requirements="", owner=call.owner)
