"""/v1/templates: warm processes that sandboxes are forked from. A key's templates are its own."""

from __future__ import annotations

from typing import Any

from joey.api.bodies import TemplateBody
from joey.api.requests import sandbox_spec
from joey.api.routes import Call, Route
from joey.api.tenant import restrict
from joey.functions.warm import PREFIX as FUNCTIONS_PREFIX
from joey.model import codec
from joey.model.errors import Invalid, JoeyError, NotPermitted
from joey.model.template import TemplateSpec, TemplateView

_KNOWN = ("berths", "code", "init", "modules", "python", "spec")


async def put_template(call: Call) -> Any:
    """Answers when its process is warm, or cannot be: `state` and `reason` say so. What is forked from the one it
    replaces goes on.
    """
    return await call.whole(_put(call, await call.json_object()))


async def _put(call: Call, body: dict[str, Any]) -> TemplateView:
    if call.path["name"].startswith(FUNCTIONS_PREFIX):
        raise Invalid("name", f"{FUNCTIONS_PREFIX}… are templates of functions, which come and go with them")
    given = body.get("spec", {})
    if not isinstance(given, dict):
        raise Invalid("spec", "is a JSON object", "as for POST /v1/sandboxes")
    if unknown := sorted(body.keys() - set(_KNOWN)):
        raise Invalid(unknown[0], "unknown field", f"known are {', '.join(_KNOWN)}")
    if body.get("code") and call.owner:
        raise NotPermitted("code", "only an administrator may ask for a directory of the host", "use an image")
    try:
        spec = restrict(call, sandbox_spec(given))
    except JoeyError as error:
        error.where = f"spec.{error.where}"
        raise
    rest = {name: value for name, value in body.items() if name != "spec"}
    wanted = codec.convert(TemplateSpec, {**rest, "name": call.path["name"]})
    return await call.engine.template_create(wanted.of(spec), owner=call.owner)


async def list_templates(call: Call) -> Any:
    """By name; the administrator sees all."""
    return call.engine.templates(call.visible)


async def get_template(call: Call) -> Any:
    """How it does."""
    return call.engine.template(call.path["name"], call.visible)


async def remove_template(call: Call) -> None:
    """Its process ends; sandboxes forked from it go on."""
    await call.whole(call.engine.template_remove(call.path["name"], owner=call.visible))


_ONE = "/v1/templates/{name}"

ROUTES = (
    Route("GET", "/v1/templates", list_templates, "List templates", tag="templates", answer=tuple[TemplateView, ...]),
    Route(
        "PUT", _ONE, put_template, "Make a template, or make it anew", tag="templates", body=TemplateBody,
        answer=TemplateView, stream=True,
        example={"modules": ["numpy", "pandas"], "spec": {"image": "host"}},
    ),
    Route("GET", _ONE, get_template, "One template", tag="templates", answer=TemplateView),
    Route("DELETE", _ONE, remove_template, "Remove a template", tag="templates", status=204),
)  # fmt: skip
