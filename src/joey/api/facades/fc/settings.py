"""What belongs to a function beside its code: concurrency, provisioned instances, asynchronous invocations."""

from __future__ import annotations

import re
from typing import Any

from joey.api.facades.fc.base import (
    FUNCTION,
    ROOT,
    Message,
    answer,
    arn,
    fields,
    inward,
    listed,
    name_of,
    outward,
    reference,
    stamp,
)
from joey.api.facades.fc.errors import Failure, lacking
from joey.api.facades.signed_server import SignedCall, route
from joey.model.errors import Invalid
from joey.model.function import ACCOUNT, LATEST, REGION, AsyncConfig, split_ref

_MOST = 10_000
_QUEUE = re.compile(r"acs:mns:[a-z0-9-]+:\d+:/queues/([A-Za-z0-9_-]+)/messages", re.ASCII)


# --- concurrency -----------------------------------------------------------------------------------------------------


def _concurrency(name: str, reserved: int) -> Message:
    return {"functionArn": arn(name), "reservedConcurrency": reserved}


async def put_concurrency(call: SignedCall) -> Any:
    """PutConcurrencyConfig."""
    given, name = fields(call), name_of(call)
    wanted = given.need("reservedConcurrency", int)
    given.done()
    if wanted < 0:
        raise Invalid("reservedConcurrency", "is negative")
    await call.whole(call.functions.set_scaling(name, {"reserved": wanted}, owner=call.visible))
    return answer(call, _concurrency(name, wanted))


async def get_concurrency(call: SignedCall) -> Any:
    """GetConcurrencyConfig."""
    name = name_of(call)
    reserved = call.version(name).spec.reserved
    if reserved is None:
        raise Failure(404, "OnDemandConfigNotFound", f"function {name!r} has no concurrency config")
    return answer(call, _concurrency(name, reserved))


async def delete_concurrency(call: SignedCall) -> Any:
    """DeleteConcurrencyConfig."""
    await call.whole(call.functions.set_scaling(name_of(call), {"reserved": None}, owner=call.visible))
    return answer(call, status=204)


async def list_concurrency(call: SignedCall) -> Any:
    """ListConcurrencyConfigs."""
    call.allow(lacking, "functionName", "limit", "nextToken")
    rows = []
    for one in call.functions.list(owner=call.visible):
        if one.spec.reserved is not None and call.param("functionName") in ("", one.name):
            rows.append((one.name, _concurrency(one.name, one.spec.reserved)))
    return listed(call, "configs", rows)


# --- provisioned instances: by the older and by the newer of FC's two ways -------------------------------------------


def _kept(call: SignedCall) -> tuple[str, str, int, int]:
    """(name, qualifier, wanted, ready) of the qualifier."""
    call.allow(lacking, "qualifier")
    name, qualifier = reference(call)
    call.version(name, qualifier)
    wanted, ready = call.functions.provisioned(name, owner=call.visible).get(qualifier or LATEST, (0, 0))
    return name, qualifier or LATEST, wanted, ready


def _target(value: int, name: str) -> int:
    if not 0 <= value <= _MOST:
        raise Invalid(name, f"is {value}, not from 0 to {_MOST}")
    return value


async def _provision(call: SignedCall, target: int) -> None:
    name, qualifier = reference(call)
    await call.whole(call.functions.set_provisioned(name, qualifier or LATEST, target, owner=call.visible))


def _provisioned(name: str, qualifier: str, wanted: int, ready: int) -> Message:
    return {
        "functionArn": arn(name, outward(qualifier)),
        "target": wanted,
        "defaultTarget": wanted,
        "current": ready,
        "currentError": "",
    }


async def put_provision(call: SignedCall) -> Any:
    """PutProvisionConfig."""
    call.allow(lacking, "qualifier")
    given = fields(call)
    name = "defaultTarget" if "defaultTarget" in given else "target"
    target = _target(given.need(name, int), name)
    given.only("target", target)
    for one in ("scheduledActions", "targetTrackingPolicies"):
        given.only(one)
    given.only("alwaysAllocateCPU", True)
    given.only("alwaysAllocateGPU", False)
    given.done()
    await _provision(call, target)
    return answer(call, _provisioned(*_kept(call)))


async def get_provision(call: SignedCall) -> Any:
    """GetProvisionConfig: target 0 where there is none."""
    return answer(call, _provisioned(*_kept(call)))


async def delete_provision(call: SignedCall) -> Any:
    """DeleteProvisionConfig, DeleteScalingConfig."""
    call.allow(lacking, "qualifier")
    await _provision(call, 0)
    return answer(call, status=204)


def _scaled(name: str, qualifier: str, wanted: int, ready: int) -> Message:
    return {
        "functionArn": arn(name, outward(qualifier)),
        "minInstances": wanted,
        "targetInstances": wanted,
        "currentInstances": ready,
        "currentError": "",
        "enableOnDemandScaling": True,
        "enableMixMode": False,
    }


async def put_scaling(call: SignedCall) -> Any:
    """PutScalingConfig."""
    call.allow(lacking, "qualifier")
    given = fields(call)
    target = _target(given.need("minInstances", int), "minInstances")
    given.only("enableOnDemandScaling", True)
    given.only("enableMixMode", False)
    given.done()  # policies and pools of reserved machines
    await _provision(call, target)
    return answer(call, _scaled(*_kept(call)))


async def get_scaling(call: SignedCall) -> Any:
    """GetScalingConfig."""
    return answer(call, _scaled(*_kept(call)))


def _all(call: SignedCall, name: str, view: Any) -> Any:
    call.allow(lacking, "functionName", "limit", "nextToken")
    rows = []
    for one in call.functions.list(owner=call.visible):
        if call.param("functionName") in ("", one.name):
            for qualifier, (wanted, ready) in call.functions.provisioned(one.name, owner=one.owner).items():
                rows.append((f"{one.name}:{qualifier}", view(one.name, qualifier, wanted, ready)))
    return listed(call, name, rows)


async def list_provision(call: SignedCall) -> Any:
    """ListProvisionConfigs."""
    return _all(call, "provisionConfigs", _provisioned)


async def list_scaling(call: SignedCall) -> Any:
    """ListScalingConfigs."""
    return _all(call, "scalingConfigs", _scaled)


# --- asynchronous invocations ----------------------------------------------------------------------------------------


def _config(call: SignedCall, name: str, qualifier: str, config: AsyncConfig) -> Message:
    when = stamp(call.functions.get(name, owner=call.visible).modified)
    return {
        "functionArn": arn(name, outward(qualifier)),
        "maxAsyncRetryAttempts": config.max_retries,
        "maxAsyncEventAgeInSeconds": round(config.max_age),
        "asyncTask": True,
        "destinationConfig": {
            "onSuccess": _destination(config.on_success),
            "onFailure": _destination(config.on_failure),
        },
        "createdTime": when,
        "lastModifiedTime": when,
    }


def _destination(target: str) -> Message:
    if not target:
        return {}
    kind, _, name = target.partition(":")
    if kind == "queue":
        return {"destination": f"acs:mns:{REGION}:{ACCOUNT}:/queues/{name}/messages"}
    name, _, qualifier = name.partition(":")
    return {"destination": arn(name, outward(qualifier) if qualifier else "")}


def _wanted(given: str) -> str:
    """Of a destination, as Joey has it. Raises Failure for one that is neither a function nor a queue."""
    if not given:
        return ""
    if match := _QUEUE.fullmatch(given):
        return f"queue:{match[1]}"
    head, _, rest = given.partition("functions/")
    if not (head.startswith("acs:fc:") and rest):
        raise lacking(f"destination {given[:200]!r}, other than the ARN of a function or an MNS queue,")
    name, _, qualifier = rest.partition("/")
    qualifier = inward(qualifier)
    split_ref(f"{name}:{qualifier}" if qualifier else name, "destination")
    return f"function:{name}" + (f":{qualifier}" if qualifier else "")


async def put_async(call: SignedCall) -> Any:
    """PutAsyncInvokeConfig: all of it anew."""
    call.allow(lacking, "qualifier")
    given = fields(call)
    retries = given.take("maxAsyncRetryAttempts", int, 3)
    age = given.take("maxAsyncEventAgeInSeconds", int, 86400)
    if not 0 <= retries <= 8 or not 1 <= age <= 604800:
        raise Invalid("maxAsyncRetryAttempts", "is from 0 to 8, and maxAsyncEventAgeInSeconds from 1 to 604800")
    targets = {"on_success": "", "on_failure": ""}
    destinations = given.part("destinationConfig")
    for name, field in (("onSuccess", "on_success"), ("onFailure", "on_failure")):
        one = destinations.part(name)
        targets[field] = _wanted(one.take("destination", str, ""))
        one.done()
    destinations.done()
    given.take("asyncTask", bool, True)  # every asynchronous invocation is a task here
    given.done()
    config = AsyncConfig(max_retries=retries, max_age=float(age), **targets)
    name, qualifier = reference(call)
    await call.whole(call.functions.set_async(name, qualifier or LATEST, config, owner=call.visible))
    return answer(call, _config(call, name, qualifier, config))


def _existing(call: SignedCall) -> tuple[str, str, AsyncConfig]:
    call.allow(lacking, "qualifier")
    name, qualifier = reference(call)
    config = call.functions.async_configs(name, owner=call.visible).get(qualifier or LATEST)
    if config is None:
        raise Failure(404, "AsyncConfigNotExists", f"AsyncConfig for {name}:{outward(qualifier)} does not exist.")
    return name, qualifier or LATEST, config


async def get_async(call: SignedCall) -> Any:
    """GetAsyncInvokeConfig."""
    return answer(call, _config(call, *_existing(call)))


async def delete_async(call: SignedCall) -> Any:
    """DeleteAsyncInvokeConfig."""
    name, qualifier, _ = _existing(call)
    await call.whole(call.functions.set_async(name, qualifier, None, owner=call.visible))
    return answer(call, status=204)


async def list_async(call: SignedCall) -> Any:
    """ListAsyncInvokeConfigs."""
    call.allow(lacking, "functionName", "limit", "nextToken")
    rows = []
    for one in call.functions.list(owner=call.visible):
        if call.param("functionName") in ("", one.name):
            for qualifier, config in call.functions.async_configs(one.name, owner=one.owner).items():
                rows.append((f"{one.name}:{qualifier}", _config(call, one.name, qualifier, config)))
    return listed(call, "configs", rows)


ROUTES = (
    route("PUT", f"{FUNCTION}/concurrency", put_concurrency, "PutConcurrencyConfig"),
    route("GET", f"{FUNCTION}/concurrency", get_concurrency, "GetConcurrencyConfig"),
    route("DELETE", f"{FUNCTION}/concurrency", delete_concurrency, "DeleteConcurrencyConfig"),
    route("GET", f"{ROOT}/concurrency-configs", list_concurrency, "ListConcurrencyConfigs"),
    route("PUT", f"{FUNCTION}/provision-config", put_provision, "PutProvisionConfig"),
    route("GET", f"{FUNCTION}/provision-config", get_provision, "GetProvisionConfig"),
    route("DELETE", f"{FUNCTION}/provision-config", delete_provision, "DeleteProvisionConfig"),
    route("GET", f"{ROOT}/provision-configs", list_provision, "ListProvisionConfigs"),
    route("PUT", f"{FUNCTION}/scaling-config", put_scaling, "PutScalingConfig"),
    route("GET", f"{FUNCTION}/scaling-config", get_scaling, "GetScalingConfig"),
    route("DELETE", f"{FUNCTION}/scaling-config", delete_provision, "DeleteScalingConfig"),
    route("GET", f"{ROOT}/scaling-configs", list_scaling, "ListScalingConfigs"),
    route("PUT", f"{FUNCTION}/async-invoke-config", put_async, "PutAsyncInvokeConfig"),
    route("GET", f"{FUNCTION}/async-invoke-config", get_async, "GetAsyncInvokeConfig"),
    route("DELETE", f"{FUNCTION}/async-invoke-config", delete_async, "DeleteAsyncInvokeConfig"),
    route("GET", f"{ROOT}/async-invoke-configs", list_async, "ListAsyncInvokeConfigs"),
)
