"""Where the Function Compute API listens: `joey env fc` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joey.api.facades.signed import Credentials, Signed, WhoseKey
from joey.api.routes import Call, Route

if TYPE_CHECKING:
    from joey.api.light import web


class FC(Signed):
    """The façade of one service."""

    name = "fc"
    title = "the Function Compute API"

    def application(self) -> web.Application:
        from joey.api.facades.fc.server import FCServer

        return FCServer(self).application()


async def fc_access(call: Call) -> Credentials:
    """Serve the Function Compute API on the loopback, also after a restart, and say what its clients need."""
    body: WhoseKey = await call.body()
    return await call.whole(call.service.fc.access(body.key))


ROUTES = (
    Route(
        "POST", "/v1/facades/fc", fc_access, "Serve the Function Compute API", tag="node", admin=True, body=WhoseKey,
        body_optional=True, answer=Credentials, example={"key": "ci"},
    ),
)  # fmt: skip
