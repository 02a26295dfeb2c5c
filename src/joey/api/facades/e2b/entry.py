"""Where the E2B API listens, and the secrets it needs: `joey env e2b` asks for it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from joey.api.auth import Key, KeyBody
from joey.api.facades.loopback import Loopback
from joey.api.routes import Call, Route

if TYPE_CHECKING:
    from joey.api.light import web


class E2BAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What an E2B client needs: url is E2B_API_URL and E2B_SANDBOX_URL, key E2B_API_KEY."""

    url: str
    key: str


class E2B(Loopback):
    """The façade of one service; what it keeps is the API key itself, and the secret behind access tokens."""

    name = "e2b"
    title = "the E2B API"
    welcome: Callable[[Call, Key], None] | None = None
    """Of the application, while there is one: a key is about to be used."""

    def application(self) -> web.Application:
        from joey.api.facades.e2b.server import application

        return application(self.service, self)

    async def access(self, call: Call) -> E2BAccess:
        """Listen, and say where; the key is made anew if it was revoked. Raises Exhausted."""
        await self.listen()
        if self.service.access.find(self.kept.key) is None:
            self.kept.key = self.service.access.create(KeyBody(name="joey env e2b", form="e2b")).key
            self.write()
        if self.welcome is not None and (key := self.service.access.find(self.kept.key)) is not None:
            self.welcome(call, key)
        return E2BAccess(url=self.url, key=self.kept.key)

    def token(self, id: str) -> str:
        """What a client of a sandbox's envd must show, in X-Access-Token: the id and what proves it."""
        return id + hmac.new(bytes.fromhex(self.kept.secret), id.encode(), hashlib.sha256).hexdigest()


async def e2b_access(call: Call) -> E2BAccess:
    """Serve the E2B API on the loopback, from now on also after a restart, and say what its clients need."""
    return await call.whole(call.service.e2b.access(call))


ROUTES = (
    Route(
        "POST", "/v1/facades/e2b", e2b_access, "Serve the E2B API", tag="node", admin=True, answer=E2BAccess,
    ),
)  # fmt: skip
