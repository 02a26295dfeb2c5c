"""/v1/functions: functions, their versions, aliases, triggers and scaling. Calls: joey.api.function_calls."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field
from msgspec.structs import replace

from joey.api import params
from joey.api.light import web
from joey.api.routes import BINARY, Call, Route
from joey.api.tenant import restrict_function
from joey.functions.deploy import Deployments
from joey.functions.service import SCALING, Code
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.function import Alias, AsyncConfig, FunctionSpec, Trigger
from joey.model.function_views import (
    FunctionFigures,
    FunctionView,
    InstanceView,
    LayerView,
    TriggerView,
    VersionView,
)
from joey.model.value import Value

TAG = "functions"
ZIP = "application/zip"
_SPEC = tuple(name.encode_name for name in msgspec.structs.fields(FunctionSpec))


class DeployBody(FunctionSpec, frozen=True, kw_only=True):
    """A function to deploy. files: path -> source, the code inline; zip: the code as a zip archive (base64). With
    neither it keeps the code it has; larger code is sent by PUT …/code. requirements: what pip is to install with it.
    """

    name: str = ""
    files: dict[str, str] = field(default_factory=dict)
    zip: bytes = b""
    requirements: str = ""

    def __post_init__(self) -> None:
        if self.name:  # the path's; without one it is only a form
            super().__post_init__()


class ConfigBody(DeployBody, frozen=True, kw_only=True):
    """Fields to change of a function; what is not given stays."""


class VersionBody(Value, frozen=True, kw_only=True):
    """What to publish. revision, code_sha256: that $LATEST must have."""

    description: str = ""
    revision: str = ""
    code_sha256: str = ""


class AliasBody(Value, frozen=True, kw_only=True):
    """An alias: the version it leads to, and shares of others (version -> 0 to 1)."""

    version: str
    weights: dict[str, float] = field(default_factory=dict)
    description: str = ""


class ScalingBody(Value, frozen=True, kw_only=True):
    """How many instances; what is not given stays, null takes a limit away."""

    reserved: int | None = None
    provisioned: int = 0
    max_instances: int | None = None
    keep_alive: float | None = None


class ProvisionedBody(Value, frozen=True, kw_only=True):
    """Instances to keep of what a qualifier stands for."""

    instances: int


class TriggerBody(Value, frozen=True, kw_only=True):
    """A trigger: a timer with its schedule, or a URL."""

    kind: str
    schedule: str = ""
    payload: str = ""
    auth: str = "key"
    methods: tuple[str, ...] = ()
    qualifier: str = ""
    enabled: bool = True
    description: str = ""


def functions(call: Call) -> Deployments:
    return call.service.functions


def _body_fields(call: Call, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], bytes, str]:
    """(fields of the spec, files, zip, requirements) of a body as JSON gave it. Raises Invalid."""
    fields = dict(body)
    files = codec.convert(dict[str, str], fields.pop("files", {}))
    packed = codec.convert(bytes, fields.pop("zip", ""))
    requirements = codec.convert(str, fields.pop("requirements", ""))
    if files and packed:
        raise Invalid("zip", "goes without files", "put them into it")
    if unknown := sorted(fields.keys() - set(_SPEC)):
        raise Invalid(unknown[0], "unknown field", f"known are {', '.join((*_SPEC, 'files', 'zip', 'requirements'))}")
    if "code" in fields:
        raise Invalid("code", "is made from files, zip or PUT …/code", "leave it out")
    if "layers" in fields:
        named = codec.convert(tuple[str, ...], fields["layers"])
        layer = functions(call).registry.layer
        fields["layers"] = [one if one.startswith("sha256:") else layer(call.owner, one).digest for one in named]
    return fields, files, packed, requirements


async def list_functions(call: Call) -> Any:
    """In order of name; the administrator sees everybody's."""
    return functions(call).list(owner=call.visible)


async def put_function(call: Call) -> Any:
    """Another spec or code is a new revision of `$LATEST`: its instances take the place of the old ones', which end
    what they do first. A function's name is unique for its owner.
    """
    return await call.whole(_put(call, await call.json_object()))


async def _put(call: Call, body: dict[str, Any]) -> Any:
    fields, files, packed, requirements = _body_fields(call, body)
    name = call.path["name"]
    if fields.setdefault("name", name) != name:
        raise Invalid("name", f"is {fields['name']!r}, and {name!r} in the path", "leave it out")
    spec = codec.convert(FunctionSpec, fields)
    restrict_function(call, spec)
    own = functions(call)
    code = None
    if files or packed or requirements:
        code = await own.code(spec, files=files, packed=packed, requirements=requirements, owner=call.owner)
    view, new = await own.put(spec, code, owner=call.owner)
    return call.reply(view, 201 if new else 200)


async def get_function(call: Call) -> Any:
    """With what it does just now."""
    return functions(call).get(call.path["name"], owner=call.visible)


async def update_function(call: Call) -> Any:
    """Change some fields of `$LATEST`; code too, with `files` or `zip`."""
    return await call.whole(_update(call, await call.json_object()))


async def _update(call: Call, body: dict[str, Any]) -> Any:
    fields, files, packed, requirements = _body_fields(call, body)
    own, name = functions(call), call.path["name"]
    latest = own.version(name, owner=call.visible)
    spec = codec.convert(FunctionSpec, {**codec.to_builtins(latest.spec), **fields})
    restrict_function(call, spec)
    if files or packed or requirements:
        code = await own.code(spec, files=files, packed=packed, requirements=requirements, owner=call.owner)
        await own.update_code(name, code, owner=call.visible)
    return await own.update_config(name, fields, owner=call.visible)


async def delete_function(call: Call) -> None:
    """With its versions, aliases, triggers and what is queued for it. What runs is stopped once it has answered."""
    await call.whole(functions(call).delete(call.path["name"], owner=call.visible))


async def put_code(call: Call) -> Any:
    """New code for `$LATEST`: a zip or tar archive (plain or gzip), whose top is what stands at /code."""
    own, name, query = functions(call), call.path["name"], call.query
    latest = own.version(name, owner=call.visible)
    return await call.whole(_code(call, own, name, latest.spec, await own.take(call.chunks()), query))


async def _code(
    call: Call, own: Deployments, name: str, spec: FunctionSpec, code: Code, query: dict[str, Any]
) -> FunctionView:
    if query.get("requirements", False):
        code = await own.required(spec, code, owner=call.owner)
    return await own.update_code(name, code, owner=call.visible, revision=query.get("revision", ""))


async def get_code(call: Call) -> web.StreamResponse:
    """As a zip archive."""
    packed = await functions(call).archive(
        call.path["name"], owner=call.visible, qualifier=call.query.get("qualifier", "")
    )
    call.hold(len(packed))
    return web.Response(body=packed, content_type=ZIP)


async def list_layers(call: Call) -> Any:
    """In order of name."""
    return functions(call).layers(owner=call.visible)


async def put_layer(call: Call) -> Any:
    """A zip or tar archive whose top is what stands at /opt of functions that name it. They keep what it was when they
    were deployed.
    """
    own = functions(call)
    code = await own.take(call.chunks())
    return await call.whole(own.set_layer(call.path["layer"], code, owner=call.owner))


async def delete_layer(call: Call) -> None:
    """Functions that have it keep it."""
    await call.whole(functions(call).delete_layer(call.path["layer"], owner=call.owner))


async def publish(call: Call) -> Any:
    """`$LATEST` as it is now, under the next number, for good. If nothing has changed since the last one: that one."""
    body = await call.body()
    return await call.whole(
        functions(call).publish(
            call.path["name"], owner=call.visible, description=body.description, revision=body.revision,
            code_sha256=body.code_sha256,
        )
    )  # fmt: skip


async def list_versions(call: Call) -> Any:
    """`$LATEST` first, then the published ones, oldest first."""
    return functions(call).versions(call.path["name"], owner=call.visible)


async def delete_version(call: Call) -> None:
    """A published one that no alias leads to."""
    await call.whole(functions(call).delete_version(call.path["name"], call.path["version"], owner=call.visible))


async def list_aliases(call: Call) -> Any:
    """In order of name."""
    return functions(call).aliases(call.path["name"], owner=call.visible)


async def get_alias(call: Call) -> Any:
    """One alias."""
    return functions(call).alias(call.path["name"], call.path["alias"], owner=call.visible)


async def put_alias(call: Call) -> Any:
    """Each invocation goes to one of its versions by chance, as the weights say."""
    body = await call.body()
    alias = Alias(name=call.path["alias"], version=body.version, weights=body.weights, description=body.description)
    return await call.whole(functions(call).set_alias(call.path["name"], alias, owner=call.visible))


async def delete_alias(call: Call) -> None:
    """The versions stay."""
    await call.whole(functions(call).delete_alias(call.path["name"], call.path["alias"], owner=call.visible))


async def put_scaling(call: Call) -> Any:
    """reserved: instances that are this function's alone, and all it may have. provisioned: kept whatever the load.
    Instances that run stay as they are.
    """
    body = await call.json_object()
    if unknown := sorted(body.keys() - set(SCALING)):
        raise Invalid(unknown[0], "unknown field", f"known are {', '.join(SCALING)}")
    return await call.whole(functions(call).set_scaling(call.path["name"], body, owner=call.visible))


async def put_provisioned(call: Call) -> Any:
    """Of a version or an alias; 0 for none."""
    body = await call.body()
    name, qualifier = call.path["name"], call.path["qualifier"]
    await call.whole(functions(call).set_provisioned(name, qualifier, body.instances, owner=call.visible))
    return functions(call).get(name, owner=call.visible)


async def list_instances(call: Call) -> Any:
    """Sandboxes that run it now, oldest first."""
    own = functions(call)
    return await own.measured(own.instances(call.path["name"], owner=call.visible), call.engine)


async def stop_instance(call: Call) -> None:
    """It ends what it does first; another one takes its place if there is need."""
    await call.whole(functions(call).stop_instance(call.path["name"], call.path["instance"], owner=call.visible))


async def function_metrics(call: Call) -> Any:
    """Since the engine began; with the memory of its instances."""
    own, name = functions(call), call.path["name"]
    figures = own.get(name, owner=call.visible).figures
    found = await own.measured(own.instances(name, owner=call.visible), call.engine)
    return replace(figures, memory=sum(one.memory or 0 for one in found))


async def put_async(call: Call) -> Any:
    """Of `$LATEST`, a version or an alias."""
    config = await call.body()
    name, qualifier = call.path["name"], call.path["qualifier"]
    await call.whole(functions(call).set_async(name, qualifier, config, owner=call.visible))
    return config


async def get_async(call: Call) -> Any:
    """What was set for the qualifier, else what the function's spec says."""
    return functions(call).async_config(call.path["name"], call.path["qualifier"], owner=call.visible)


async def delete_async(call: Call) -> None:
    """From now on as the function's spec says."""
    name, qualifier = call.path["name"], call.path["qualifier"]
    await call.whole(functions(call).set_async(name, qualifier, None, owner=call.visible))


async def list_triggers(call: Call) -> Any:
    """In order of name."""
    return functions(call).triggers(call.path["name"], owner=call.visible)


async def get_trigger(call: Call) -> Any:
    """With the address of a URL, and when a timer is due next."""
    return functions(call).trigger(call.path["name"], call.path["trigger"], owner=call.visible)


async def put_trigger(call: Call) -> Any:
    """A timer: `rate(5 minutes)`, `cron(0 12 * * ? *)` or five fields of crontab(5), in UTC. A URL: any method to
    `path` of the answer and what is below it; with auth `none` for anybody who reaches this server.
    """
    body = await call.body()
    trigger = codec.convert(Trigger, {**codec.to_builtins(body), "name": call.path["trigger"]})
    return await call.whole(functions(call).set_trigger(call.path["name"], trigger, owner=call.visible))


async def delete_trigger(call: Call) -> None:
    """It invokes no more."""
    await call.whole(functions(call).delete_trigger(call.path["name"], call.path["trigger"], owner=call.visible))


_ONE = "/v1/functions/{name}"
_EXAMPLE = {"handler": "index.handler", "files": {"index.py": "def handler(event, context):\n    return event\n"}}

ROUTES = (
    Route("GET", "/v1/functions", list_functions, "List functions", tag=TAG, answer=tuple[FunctionView, ...]),
    Route(
        "PUT", _ONE, put_function, "Deploy a function", tag=TAG, body=DeployBody, answer=FunctionView, stream=True,
        also={}, example=_EXAMPLE,
    ),
    Route("GET", _ONE, get_function, "One function", tag=TAG, answer=FunctionView),
    Route(
        "PATCH", _ONE, update_function, "Change a function", tag=TAG, body=ConfigBody, answer=FunctionView, stream=True,
    ),
    Route("DELETE", _ONE, delete_function, "Remove a function", tag=TAG, status=204),
    Route(
        "PUT", _ONE + "/code", put_code, "New code for a function", tag=TAG, body=bytes, body_media=BINARY,
        answer=FunctionView, stream=True,
        query=(
            params.text("revision", "That $LATEST must have", longest=64),
            params.flag("requirements", "Install what its requirements.txt names"),
        ),
    ),
    Route(
        "GET", _ONE + "/code", get_code, "The code of a function", tag=TAG, answer=bytes, media=ZIP,
        query=(params.text("qualifier", "A version, or an alias; $LATEST without", longest=128),),
    ),
    Route("GET", "/v1/layers", list_layers, "List layers", tag=TAG, answer=tuple[LayerView, ...]),
    Route(
        "PUT", "/v1/layers/{layer}", put_layer, "Make or change a layer", tag=TAG, body=bytes, body_media=BINARY,
        answer=LayerView, stream=True,
    ),
    Route("DELETE", "/v1/layers/{layer}", delete_layer, "Remove a layer", tag=TAG, status=204),
    Route(
        "POST", _ONE + "/versions", publish, "Publish a version", tag=TAG, body=VersionBody, body_optional=True,
        answer=VersionView, status=201, example={"description": "first"},
    ),
    Route("GET", _ONE + "/versions", list_versions, "List versions", tag=TAG, answer=tuple[VersionView, ...]),
    Route("DELETE", _ONE + "/versions/{version}", delete_version, "Remove a version", tag=TAG, status=204),
    Route("GET", _ONE + "/aliases", list_aliases, "List aliases", tag=TAG, answer=tuple[Alias, ...]),
    Route("GET", _ONE + "/aliases/{alias}", get_alias, "One alias", tag=TAG, answer=Alias),
    Route(
        "PUT", _ONE + "/aliases/{alias}", put_alias, "Make or change an alias", tag=TAG, body=AliasBody, answer=Alias,
        example={"version": "1", "weights": {"2": 0.1}},
    ),
    Route("DELETE", _ONE + "/aliases/{alias}", delete_alias, "Remove an alias", tag=TAG, status=204),
    Route(
        "PUT", _ONE + "/scaling", put_scaling, "How many instances", tag=TAG, body=ScalingBody, answer=FunctionView,
        example={"reserved": 20, "provisioned": 2},
    ),
    Route(
        "PUT", _ONE + "/provisioned/{qualifier}", put_provisioned, "Keep instances of a version or alias", tag=TAG,
        body=ProvisionedBody, answer=FunctionView, example={"instances": 2},
    ),
    Route("GET", _ONE + "/instances", list_instances, "Its instances", tag=TAG, answer=tuple[InstanceView, ...]),
    Route("DELETE", _ONE + "/instances/{instance}", stop_instance, "Stop an instance", tag=TAG, status=204),
    Route("GET", _ONE + "/metrics", function_metrics, "What it did and does", tag=TAG, answer=FunctionFigures),
    Route(
        "GET", _ONE + "/async/{qualifier}", get_async, "How asynchronous ones are treated", tag=TAG, answer=AsyncConfig,
    ),
    Route(
        "PUT", _ONE + "/async/{qualifier}", put_async, "Set how asynchronous ones are treated", tag=TAG,
        body=AsyncConfig, answer=AsyncConfig, example={"max_retries": 1, "on_failure": "queue:dead"},
    ),
    Route("DELETE", _ONE + "/async/{qualifier}", delete_async, "Treat them as the function says", tag=TAG, status=204),
    Route("GET", _ONE + "/triggers", list_triggers, "List triggers", tag=TAG, answer=tuple[TriggerView, ...]),
    Route("GET", _ONE + "/triggers/{trigger}", get_trigger, "One trigger", tag=TAG, answer=TriggerView),
    Route(
        "PUT", _ONE + "/triggers/{trigger}", put_trigger, "Make or change a trigger", tag=TAG, body=TriggerBody,
        answer=TriggerView, example={"kind": "timer", "schedule": "rate(5 minutes)"},
    ),
    Route("DELETE", _ONE + "/triggers/{trigger}", delete_trigger, "Remove a trigger", tag=TAG, status=204),
)  # fmt: skip

__all__ = ["ROUTES", "TAG", "functions"]
