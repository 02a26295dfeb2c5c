"""The one place every request of a Function Compute client goes through: signature, route, limits, errors."""

from __future__ import annotations

from joey.api.facades import signing
from joey.api.facades.fc import aliases, errors, functions, invoke, layers, settings, triggers
from joey.api.facades.signed_server import SignedServer, now
from joey.api.light import web


class FCServer(SignedServer):
    """Handles requests."""

    scheme = "ACS3-HMAC-SHA256"
    routes = (*functions.ROUTES, *aliases.ROUTES, *invoke.ROUTES, *settings.ROUTES, *triggers.ROUTES, *layers.ROUTES)
    max_payload = 32 << 20

    def verify(self, request: signing.Request) -> str:
        return signing.acs3(request, self.facade.secret, now())

    def verify_url(self, request: signing.Request) -> str:
        return signing.acs3(request, self.facade.secret, now(), trigger=True)

    def failed(self, error: Exception, id: str) -> web.Response:
        return errors.response(error, id)

    def unknown(self, method: str, path: str) -> Exception:
        return errors.no_path(method, path[:200])
