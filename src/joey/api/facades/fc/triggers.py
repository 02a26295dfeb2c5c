"""Triggers: timers, and HTTP as function URLs."""

from __future__ import annotations

from typing import Any

import msgspec

from joey.api.facades.fc.base import FUNCTION, Message, answer, arn, fields, inward, listed, name_of, outward, stamp
from joey.api.facades.fc.errors import Failure, lacking
from joey.api.facades.fields import Fields
from joey.api.facades.signed_server import SignedCall, route, url_of
from joey.model import codec
from joey.model.errors import Conflict, Invalid
from joey.model.function import Trigger
from joey.model.function_views import TriggerView

_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")


def _config(text: str) -> Fields:
    """triggerConfig: JSON within JSON."""
    try:
        return Fields(msgspec.json.decode(text or "{}", type=dict[str, Any]), lacking, "triggerConfig.")
    except (msgspec.DecodeError, RecursionError):
        raise Invalid("triggerConfig", "is not a JSON object, as text") from None


def _timer(config: Fields, before: Trigger | None) -> dict[str, Any]:
    schedule = config.take("cronExpression", str, before.schedule if before else "")
    if not schedule:
        raise Invalid("triggerConfig.cronExpression", "is required")
    found = {
        "schedule": schedule,
        "payload": config.take("payload", str, before.payload if before else ""),
        "enabled": config.take("enable", bool, before.enabled if before else False),
    }
    config.done()
    return found


def _http(config: Fields, before: Trigger | None) -> dict[str, Any]:
    old = "function" if before is None or before.auth == "key" else "anonymous"
    auth = config.take("authType", str, old)
    if auth not in ("anonymous", "function"):
        raise lacking(f"authType {auth[:20]!r}, other than anonymous and function,")
    methods = config.take("methods", tuple[str, ...], before.methods if before else ())
    if wrong := sorted(set(methods) - set(_METHODS)):
        raise Invalid("triggerConfig.methods", f"{wrong[0][:20]!r} is no method")
    config.only("disableURLInternet", False)
    config.done()
    return {"auth": "none" if auth == "anonymous" else "key", "methods": methods}


def _view(call: SignedCall, name: str, view: TriggerView) -> Message:
    one, made = view.trigger, call.functions.get(name, owner=call.visible).created
    shown: Message = {
        "triggerName": one.name,
        "triggerType": "timer" if one.kind == "timer" else "http",
        "triggerId": f"{name}-{one.name}",
        "description": one.description,
        "qualifier": outward(one.qualifier),
        "targetArn": arn(name, outward(one.qualifier)),
        "createdTime": stamp(made),
        "lastModifiedTime": stamp(made),
        "status": "",
    }
    if one.kind == "timer":
        config: Message = {"cronExpression": one.schedule, "payload": one.payload, "enable": one.enabled}
    else:
        auth = "anonymous" if one.auth == "none" else "function"
        config = {"authType": auth, "methods": list(one.methods or _METHODS), "disableURLInternet": False}
        url = url_of(call, view.path)
        shown["httpTrigger"] = {"urlInternet": url, "urlIntranet": url}
    shown["triggerConfig"] = codec.encode(config).decode()
    return shown


async def create(call: SignedCall) -> Any:
    """CreateTrigger."""
    given, name = fields(call), name_of(call)
    trigger = given.need("triggerName", str)
    kind = given.need("triggerType", str)
    if kind not in ("timer", "http"):
        raise lacking(f"triggerType {kind[:40]!r}, other than timer and http,")
    config = _config(given.take("triggerConfig", str, ""))
    values = _timer(config, None) if kind == "timer" else _http(config, None)
    values |= {
        "qualifier": inward(given.take("qualifier", str, "")),
        "description": given.take("description", str, ""),
    }
    given.done()
    made = Trigger(name=trigger, kind="timer" if kind == "timer" else "url", **values)
    try:
        return await _set(call, name, made, new=True)
    except Conflict as error:
        raise Failure(409, "TriggerAlreadyExists", error.message) from None


async def _set(call: SignedCall, name: str, trigger: Trigger, new: bool = False) -> Any:
    made = await call.whole(call.functions.set_trigger(name, trigger, owner=call.visible, new=new))
    return answer(call, _view(call, name, made))


async def update(call: SignedCall) -> Any:
    """UpdateTrigger: what is named, also within triggerConfig."""
    given, name = fields(call), name_of(call)
    before = call.functions.trigger(name, call.path["trigger"], owner=call.visible).trigger
    config = _config(given.take("triggerConfig", str, ""))
    values = _timer(config, before) if before.kind == "timer" else _http(config, before)
    values |= {
        "qualifier": inward(given.take("qualifier", str, before.qualifier)),
        "description": given.take("description", str, before.description),
    }
    given.done()
    return await _set(call, name, Trigger(name=before.name, kind=before.kind, **values))


async def get(call: SignedCall) -> Any:
    """GetTrigger."""
    name = name_of(call)
    return answer(call, _view(call, name, call.functions.trigger(name, call.path["trigger"], owner=call.visible)))


async def remove(call: SignedCall) -> Any:
    """DeleteTrigger."""
    await call.whole(call.functions.delete_trigger(name_of(call), call.path["trigger"], owner=call.visible))
    return answer(call, status=204)


async def list_all(call: SignedCall) -> Any:
    """ListTriggers."""
    call.allow(lacking, "prefix", "limit", "nextToken")
    name = name_of(call)
    rows = call.functions.triggers(name, owner=call.visible)
    return listed(call, "triggers", [(one.trigger.name, _view(call, name, one)) for one in rows])


ROUTES = (
    route("POST", f"{FUNCTION}/triggers", create, "CreateTrigger"),
    route("GET", f"{FUNCTION}/triggers", list_all, "ListTriggers"),
    route("GET", f"{FUNCTION}/triggers/{{trigger}}", get, "GetTrigger"),
    route("PUT", f"{FUNCTION}/triggers/{{trigger}}", update, "UpdateTrigger"),
    route("DELETE", f"{FUNCTION}/triggers/{{trigger}}", remove, "DeleteTrigger"),
)
