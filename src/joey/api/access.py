"""/v1/keys: API keys, for administrators."""

from __future__ import annotations

from typing import Any

from joey.api.auth import Key, KeyBody, NewKey
from joey.api.routes import Call, Route


async def create_key(call: Call) -> Any:
    """The answer holds the secret; it is not kept and not shown again."""
    return call.service.access.create(await call.body())


async def list_keys(call: Call) -> Any:
    """Oldest first, without secrets."""
    return call.service.access.list()


async def revoke_key(call: Call) -> None:
    """By id or name. Requests with it are refused from now on; its sandboxes stay, its warm pools go."""
    await call.whole(_revoke(call))


async def _revoke(call: Call) -> None:
    key = call.service.access.revoke(call.path["id"])
    for pool in call.engine.pools(key.id):
        await call.engine.pool_remove(pool.name, owner=key.id)


ROUTES = (
    Route(
        "POST", "/v1/keys", create_key, "Make an API key", tag="keys", admin=True, body=KeyBody, body_optional=True,
        answer=NewKey, status=201, example={"name": "ci", "limits": {"sandboxes": 100}},
    ),
    Route("GET", "/v1/keys", list_keys, "List API keys", tag="keys", admin=True, answer=tuple[Key, ...]),
    Route("DELETE", "/v1/keys/{id}", revoke_key, "Revoke an API key", tag="keys", admin=True, status=204),
)  # fmt: skip
