"""The one place every request of a Lambda client goes through: signature, route, limits, errors."""

from __future__ import annotations

from joey.api.facades import signing
from joey.api.facades.aws_lambda import aliases, errors, functions, invoke, layers, policy, settings
from joey.api.facades.signed_server import SignedServer, now
from joey.api.light import web


class LambdaServer(SignedServer):
    """Handles requests."""

    scheme = "AWS4-HMAC-SHA256"
    routes = (*functions.ROUTES, *aliases.ROUTES, *invoke.ROUTES, *settings.ROUTES, *policy.ROUTES, *layers.ROUTES)
    max_payload = 6 << 20

    def verify(self, request: signing.Request) -> str:
        return signing.sigv4(request, self.facade.secret, "lambda", now())

    def failed(self, error: Exception, id: str) -> web.Response:
        return errors.response(error, id)

    def unknown(self, method: str, path: str) -> Exception:
        return errors.no_operation(f"{method} {path[:200]}")
