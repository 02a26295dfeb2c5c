"""Links to code of functions and layers: who has one may fetch it without a key, until the link expires."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from joey.api.light import web
from joey.model.errors import NotFound

if TYPE_CHECKING:
    from joey.api.facades.signed import Signed

PATH = "/code/"
SECONDS = 600
"""How long a link holds, as with AWS Lambda."""
_LAYER = "layer"


def link(facade: Signed, owner: str, name: str, version: str, now: float) -> str:
    """To the archive of a function's version."""
    text = f"{int(now) + SECONDS}/{owner or '-'}/{name}/{version}"
    return f"{facade.url}{PATH}{text}/{_proof(facade, text)}"


def layer_link(facade: Signed, owner: str, name: str, now: float) -> str:
    """To the archive of a layer, by Joey's name for it."""
    return link(facade, owner, name, _LAYER, now)


async def serve(facade: Signed, request: web.Request, path: str, now: float) -> web.Response:
    """The archive that a link leads to. Raises NotFound."""
    text, _, proof = path.removeprefix(PATH).replace("%24", "$").rpartition("/")
    right = _proof(facade, text)
    if request.method != "GET" or not hmac.compare_digest(right.encode(), proof.encode(errors="replace")):
        raise NotFound("code", "there is no such link")
    expires, owner, name, version = text.split("/")  # we have written it
    owner = "" if owner == "-" else owner
    if int(expires) < now:
        raise NotFound("code", "the link has expired")
    functions = facade.service.functions
    if version == _LAYER:
        digest = next((one.digest for one in functions.layers(owner=owner) if one.name == name), "")
        if not digest:
            raise NotFound("code", "the layer is gone")
        data = await functions.codes.archive(digest)
    else:
        data = await functions.archive(name, owner=owner, qualifier=version)
    return web.Response(body=data, content_type="application/zip")


def _proof(facade: Signed, text: str) -> str:
    given = f"joey code link\0{text}".encode(errors="surrogateescape")
    return hmac.new(bytes.fromhex(facade.kept.secret), given, "sha256").hexdigest()
