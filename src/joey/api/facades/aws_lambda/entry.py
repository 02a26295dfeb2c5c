"""Where the Lambda API listens: `joey env lambda` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joey.api.facades.signed import Credentials, Signed, WhoseKey
from joey.api.routes import Call, Route

if TYPE_CHECKING:
    from joey.api.light import web


class Lambda(Signed):
    """The façade of one service."""

    name = "lambda"
    title = "the AWS Lambda API"

    def application(self) -> web.Application:
        from joey.api.facades.aws_lambda.server import LambdaServer

        return LambdaServer(self).application()


async def lambda_access(call: Call) -> Credentials:
    """Serve the Lambda API on the loopback, from now on also after a restart, and say what its clients need."""
    body: WhoseKey = await call.body()
    return await call.whole(call.service.aws_lambda.access(body.key))


ROUTES = (
    Route(
        "POST", "/v1/facades/lambda", lambda_access, "Serve the AWS Lambda API", tag="node", admin=True, body=WhoseKey,
        body_optional=True, answer=Credentials, example={"key": "ci"},
    ),
)  # fmt: skip
