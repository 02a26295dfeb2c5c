"""The one place every request of a Function Compute client goes through: signature, route, limits, errors."""

from __future__ import annotations

from joey.api.facades import signing
from joey.api.facades.fc import aliases, errors, functions, invoke, layers, settings, triggers
from joey.api.facades.signed import Signed
from joey.api.facades.signed_server import MAX_CODE, SignedServer, now, request_id
from joey.api.light import web
from joey.api.routes import Route

MAX_PAYLOAD = 32 << 20
"""Bytes of a synchronous invocation's event."""
_MAX_REQUEST = 1 << 20
_ROUTES = (*functions.ROUTES, *aliases.ROUTES, *invoke.ROUTES, *settings.ROUTES, *triggers.ROUTES, *layers.ROUTES)


class FCServer(SignedServer):
    """Handles requests."""

    scheme = "ACS3-HMAC-SHA256"

    def __init__(self, facade: Signed) -> None:
        super().__init__(facade, _ROUTES, request_id)

    def verify(self, request: signing.Request) -> str:
        return signing.acs3(request, self.facade.secret, now())

    def verify_url(self, request: signing.Request) -> str:
        return signing.acs3(request, self.facade.secret, now(), trigger=True)

    def limit(self, route: Route) -> int:
        if route.tag == "invoke":
            return MAX_PAYLOAD
        return MAX_CODE if route.tag == "code" else _MAX_REQUEST

    def failed(self, error: Exception, id: str) -> web.Response:
        return errors.response(error, id)

    def unknown(self, method: str, path: str) -> Exception:
        return errors.no_path(method, path[:200])
