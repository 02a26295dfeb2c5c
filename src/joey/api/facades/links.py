"""Links to a function's code: who has one may fetch it without a key, until the link expires."""

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


def link(facade: Signed, owner: str, name: str, version: str, now: float) -> str:
    """To the archive of a version."""
    text = f"{int(now) + SECONDS}/{owner or '-'}/{name}/{version}"
    return f"{facade.url}{PATH}{text}/{_proof(facade, text)}"


async def serve(facade: Signed, request: web.Request, path: str, now: float) -> web.Response:
    """The archive that a link leads to. Raises NotFound."""
    text, _, proof = path.removeprefix(PATH).rpartition("/")
    parts = text.replace("%24", "$").split("/")
    right = _proof(facade, "/".join(parts))
    if request.method != "GET" or len(parts) != 4 or not hmac.compare_digest(right.encode(), proof.encode()):
        raise NotFound("code", "there is no such link")
    expires, owner, name, version = parts
    if int(expires) < now:
        raise NotFound("code", "the link has expired")
    data = await facade.service.functions.archive(name, owner="" if owner == "-" else owner, qualifier=version)
    return web.Response(body=data, content_type="application/zip")


def _proof(facade: Signed, text: str) -> str:
    return hmac.new(bytes.fromhex(facade.kept.secret), f"joey code link\0{text}".encode(), "sha256").hexdigest()
