"""The one place every request of a Lambda client goes through: signature, route, limits, errors."""

from __future__ import annotations

from joey.api.facades import signing
from joey.api.facades.aws_lambda import aliases, errors, functions, invoke, layers, policy, settings
from joey.api.facades.signed import Signed
from joey.api.facades.signed_server import MAX_CODE, SignedServer, now, request_id
from joey.api.light import web
from joey.api.routes import Route

MAX_PAYLOAD = 6 << 20
"""Bytes of a synchronous invocation's event."""
_MAX_REQUEST = 1 << 20
_ROUTES = (
    *functions.ROUTES,
    *aliases.ROUTES,
    *invoke.ROUTES,
    *settings.ROUTES,
    *policy.ROUTES,
    *layers.ROUTES,
)


class LambdaServer(SignedServer):
    """Handles requests."""

    scheme = "AWS4-HMAC-SHA256"

    def __init__(self, facade: Signed) -> None:
        super().__init__(facade, _ROUTES, request_id)

    def verify(self, request: signing.Request) -> str:
        return signing.sigv4(request, self.facade.secret, "lambda", now())

    def limit(self, route: Route) -> int:
        if route.tag == "invoke":
            return MAX_PAYLOAD
        return MAX_CODE if route.tag == "code" else _MAX_REQUEST

    def failed(self, error: Exception, id: str) -> web.Response:
        return errors.response(error, id)

    def unknown(self, method: str, path: str) -> Exception:
        return errors.no_operation(f"{method} {path[:200]}")
