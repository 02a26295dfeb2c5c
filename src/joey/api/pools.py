"""/v1/pools: sandboxes kept warm. A key's pools are its own."""

from __future__ import annotations

from typing import Any

from joey.api import params
from joey.api.bodies import PoolBody
from joey.api.requests import sandbox_spec
from joey.api.routes import Call, Route
from joey.api.tenant import restrict
from joey.model import codec
from joey.model.errors import Invalid, JoeyError
from joey.model.pool import PoolSpec
from joey.model.views import Pool


async def put_pool(call: Call) -> Any:
    """Another size keeps its sandboxes, another spec does not. With `filled` it answers when all of them are ready, or
    when one could not be started (`error`). A spec with `init` and no program is what commands come to by exec.
    """
    return await call.whole(_put(call, await call.json_object()))


async def _put(call: Call, body: dict[str, Any]) -> Pool:
    body = dict(body)
    given = body.pop("spec", {})
    if not isinstance(given, dict):
        raise Invalid("spec", "is a JSON object", "as for POST /v1/sandboxes")
    if unknown := sorted(body.keys() - {"size", "max_starting"}):
        raise Invalid(unknown[0], "unknown field", "known are spec, size, max_starting")
    try:
        spec = restrict(call, sandbox_spec(given))
    except JoeyError as error:
        error.where = f"spec.{error.where}"
        raise
    wanted = codec.convert(PoolSpec, {**body, "name": call.path["name"]})
    wanted = PoolSpec(name=wanted.name, spec=spec, size=wanted.size, max_starting=wanted.max_starting)
    return await call.engine.pool_create(wanted, owner=call.owner, filled=call.query.get("filled", False))


async def list_pools(call: Call) -> Any:
    """By name; the administrator sees all."""
    return call.engine.pools(call.visible)


async def get_pool(call: Call) -> Any:
    """How it does."""
    return call.engine.pool(call.path["name"], call.visible)


async def remove_pool(call: Call) -> None:
    """It and the sandboxes that are ready in it. What it has handed out stays."""
    await call.whole(call.engine.pool_remove(call.path["name"], owner=call.visible))


_ONE = "/v1/pools/{name}"

ROUTES = (
    Route("GET", "/v1/pools", list_pools, "List warm pools", tag="pools", answer=tuple[Pool, ...]),
    Route(
        "PUT", _ONE, put_pool, "Make or change a warm pool", tag="pools", body=PoolBody, answer=Pool, stream=True,
        query=(params.flag("filled", "Answer when it is full"),),
        example={"size": 16, "spec": {"image": "host", "init": True}},
    ),
    Route("GET", _ONE, get_pool, "One pool", tag="pools", answer=Pool),
    Route("DELETE", _ONE, remove_pool, "Remove a pool and what is warm in it", tag="pools", status=204),
)  # fmt: skip
