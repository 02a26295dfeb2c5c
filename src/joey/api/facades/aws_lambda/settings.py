"""What belongs to a function beside its code: concurrency, URLs, asynchronous invocations, tags; and the account."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from joey.api.facades.aws_lambda import spec as translate
from joey.api.facades.aws_lambda import views
from joey.api.facades.aws_lambda.base import answer, fields, listed, name_of, reference
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.aws_lambda.functions import retag
from joey.api.facades.signed_server import SignedCall, route, url_of
from joey.model.errors import Invalid
from joey.model.function import LATEST, AsyncConfig, Trigger
from joey.model.function_views import TriggerView

_CONCURRENCY = "/2017-10-31/functions/{name}/concurrency"
_PROVISIONED = "/2019-09-30/functions/{name}/provisioned-concurrency"
_URL = "/2021-10-31/functions/{name}/url"
_EVENTS = "/2019-09-25/functions/{name}/event-invoke-config"
_WHOLE, _STREAM = "BUFFERED", "RESPONSE_STREAM"
_TAGS = "/2017-03-31/tags/{arn}"
_CODE_TOTAL, _CODE_ZIPPED, _CODE_UNZIPPED, _CONCURRENT = 75 << 30, 50 << 20, 250 << 20, 1000


# --- concurrency -----------------------------------------------------------------------------------------------------


async def put_concurrency(call: SignedCall) -> Any:
    """PutFunctionConcurrency."""
    given, name = fields(call), name_of(call)
    wanted = given.need("ReservedConcurrentExecutions", int)
    given.done()
    if wanted < 0:
        raise Invalid("ReservedConcurrentExecutions", "is negative")
    await call.whole(call.functions.set_scaling(name, {"reserved": wanted}, owner=call.visible))
    return answer(call, {"ReservedConcurrentExecutions": wanted})


async def get_concurrency(call: SignedCall) -> Any:
    """GetFunctionConcurrency."""
    reserved = call.version(name_of(call)).spec.reserved
    return answer(call, {} if reserved is None else {"ReservedConcurrentExecutions": reserved})


async def delete_concurrency(call: SignedCall) -> Any:
    """DeleteFunctionConcurrency."""
    await call.whole(call.functions.set_scaling(name_of(call), {"reserved": None}, owner=call.visible))
    return answer(call, status=204)


# --- provisioned concurrency -----------------------------------------------------------------------------------------


def _qualified(call: SignedCall) -> tuple[str, str]:
    name, qualifier = reference(call)
    if not qualifier or qualifier == LATEST:
        raise Invalid("Qualifier", "names a published version or an alias here")
    return name, qualifier


def _status(call: SignedCall, name: str, qualifier: str) -> views.Message:
    """Raises Failure if nothing is provisioned for it."""
    kept = call.functions.provisioned(name, owner=call.visible)
    if qualifier not in kept:
        raise Failure(404, "ProvisionedConcurrencyConfigNotFoundException", "nothing is provisioned for this qualifier")
    wanted, ready = kept[qualifier]
    return {
        "RequestedProvisionedConcurrentExecutions": wanted,
        "AvailableProvisionedConcurrentExecutions": ready,
        "AllocatedProvisionedConcurrentExecutions": ready,
        "Status": "READY" if ready >= wanted else "IN_PROGRESS",
        "LastModified": views.stamp(call.version(name, qualifier).created),
    }


async def put_provisioned(call: SignedCall) -> Any:
    """PutProvisionedConcurrencyConfig."""
    call.allow(lacking, "Qualifier")
    given, (name, qualifier) = fields(call), _qualified(call)
    wanted = given.need("ProvisionedConcurrentExecutions", int)
    given.done()
    if wanted < 1:
        raise Invalid("ProvisionedConcurrentExecutions", "is a number from 1")
    await call.whole(call.functions.set_provisioned(name, qualifier, wanted, owner=call.visible))
    return answer(call, _status(call, name, qualifier), 202)


async def get_provisioned(call: SignedCall) -> Any:
    """GetProvisionedConcurrencyConfig; with List=ALL ListProvisionedConcurrencyConfigs."""
    call.allow(lacking, "Qualifier", "List", "Marker", "MaxItems")
    if call.param("List"):
        return _list_provisioned(call)
    return answer(call, _status(call, *_qualified(call)))


def _list_provisioned(call: SignedCall) -> Any:
    name = name_of(call)
    rows = []
    for qualifier in sorted(call.functions.provisioned(name, owner=call.visible)):
        if qualifier != LATEST:
            rows.append((qualifier, {"FunctionArn": views.arn(name, qualifier)} | _status(call, name, qualifier)))
    return listed(call, "ProvisionedConcurrencyConfigs", rows)


async def delete_provisioned(call: SignedCall) -> Any:
    """DeleteProvisionedConcurrencyConfig."""
    call.allow(lacking, "Qualifier")
    name, qualifier = _qualified(call)
    _status(call, name, qualifier)
    await call.whole(call.functions.set_provisioned(name, qualifier, 0, owner=call.visible))
    return answer(call, status=204)


# --- function URLs ---------------------------------------------------------------------------------------------------


def _trigger(qualifier: str) -> str:
    return f"lambda-url-{qualifier}" if qualifier else "lambda-url"


def _url(call: SignedCall, name: str, view: TriggerView) -> views.Message:
    when = views.stamp(call.functions.get(name, owner=call.visible).created)
    return {
        "FunctionUrl": url_of(call, view.path),
        "FunctionArn": views.arn(name, view.trigger.qualifier),
        "AuthType": "NONE" if view.trigger.auth == "none" else "AWS_IAM",
        "InvokeMode": _STREAM if view.trigger.description == _STREAM else _WHOLE,
        "CreationTime": when,
        "LastModifiedTime": when,
    }


def _find_url(call: SignedCall) -> tuple[str, TriggerView]:
    name, qualifier = reference(call)
    for one in call.functions.triggers(name, owner=call.visible):
        if one.trigger.name == _trigger(qualifier):
            return name, one
    raise Failure(404, "ResourceNotFoundException", "the function has no URL for this qualifier")


async def create_url(call: SignedCall) -> Any:
    """CreateFunctionUrlConfig."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    if any(one.trigger.name == _trigger(qualifier) for one in call.functions.triggers(name, owner=call.visible)):
        raise Failure(409, "ResourceConflictException", "the function has a URL for this qualifier already")
    return await _put_url(call, name, qualifier, 201, None)


async def update_url(call: SignedCall) -> Any:
    """UpdateFunctionUrlConfig."""
    call.allow(lacking, "Qualifier")
    name, one = _find_url(call)
    return await _put_url(call, name, one.trigger.qualifier, 200, one.trigger)


async def _put_url(call: SignedCall, name: str, qualifier: str, status: int, before: Trigger | None) -> Any:
    given = fields(call)
    old = "" if before is None else "NONE" if before.auth == "none" else "AWS_IAM"
    auth = given.take("AuthType", str, old)
    mode = given.take("InvokeMode", str, before.description if before else _WHOLE)
    if auth not in ("NONE", "AWS_IAM") or mode not in (_WHOLE, _STREAM):
        raise Invalid("AuthType", f"is NONE or AWS_IAM, and InvokeMode {_WHOLE} or {_STREAM}")
    given.done()
    trigger = Trigger(
        name=_trigger(qualifier),
        kind="url",
        auth="none" if auth == "NONE" else "key",
        qualifier=qualifier,
        description=mode,  # a handler that streams does so in both modes
    )
    made = await call.whole(call.functions.set_trigger(name, trigger, owner=call.visible))
    return answer(call, _url(call, name, made), status)


async def get_url(call: SignedCall) -> Any:
    """GetFunctionUrlConfig."""
    call.allow(lacking, "Qualifier")
    return answer(call, _url(call, *_find_url(call)))


async def delete_url(call: SignedCall) -> Any:
    """DeleteFunctionUrlConfig."""
    call.allow(lacking, "Qualifier")
    name, one = _find_url(call)
    await call.whole(call.functions.delete_trigger(name, one.trigger.name, owner=call.visible))
    return answer(call, status=204)


async def list_urls(call: SignedCall) -> Any:
    """ListFunctionUrlConfigs."""
    call.allow(lacking, "Marker", "MaxItems")
    name = name_of(call)
    rows = []
    for one in call.functions.triggers(name, owner=call.visible):
        if one.trigger.kind == "url" and one.trigger.name == _trigger(one.trigger.qualifier):
            rows.append((one.trigger.name, _url(call, name, one)))
    return listed(call, "FunctionUrlConfigs", rows)


# --- asynchronous invocations ----------------------------------------------------------------------------------------


def _config(call: SignedCall, name: str, qualifier: str, config: AsyncConfig) -> views.Message:
    return {
        "LastModified": call.functions.get(name, owner=call.visible).modified,
        "FunctionArn": views.arn(name, qualifier or LATEST),
        "MaximumRetryAttempts": config.max_retries,
        "MaximumEventAgeInSeconds": round(config.max_age),
        "DestinationConfig": {
            "OnSuccess": views.destination(config.on_success),
            "OnFailure": views.destination(config.on_failure),
        },
    }


async def put_events(call: SignedCall) -> Any:
    """PutFunctionEventInvokeConfig: all of it anew. UpdateFunctionEventInvokeConfig: what is named."""
    call.allow(lacking, "Qualifier")
    given, (name, qualifier) = fields(call), reference(call)
    before = AsyncConfig()
    if call.route.method == "POST":
        before = _existing(call, name, qualifier)
    retries = given.take("MaximumRetryAttempts", int, before.max_retries)
    age = given.take("MaximumEventAgeInSeconds", int, round(before.max_age))
    if not 0 <= retries <= 2 or not 60 <= age <= 21600:
        raise Invalid("MaximumRetryAttempts", "is from 0 to 2, and MaximumEventAgeInSeconds from 60 to 21600")
    targets = {"on_success": before.on_success, "on_failure": before.on_failure}
    if "DestinationConfig" in given:
        destinations = given.part("DestinationConfig")
        for where, field in (("OnSuccess", "on_success"), ("OnFailure", "on_failure")):
            if where in destinations:
                one = destinations.part(where)
                targets[field] = views.target(one.take("Destination", str, ""))
                one.done()
        destinations.done()
    given.done()
    config = AsyncConfig(max_retries=retries, max_age=float(age), **targets)
    await call.whole(call.functions.set_async(name, qualifier or LATEST, config, owner=call.visible))
    return answer(call, _config(call, name, qualifier, config))


def _existing(call: SignedCall, name: str, qualifier: str) -> AsyncConfig:
    configs = call.functions.async_configs(name, owner=call.visible)
    if (qualifier or LATEST) not in configs:
        text = f"The function {views.arn(name, qualifier)} doesn't have an EventInvokeConfig"
        raise Failure(404, "ResourceNotFoundException", text)
    return configs[qualifier or LATEST]


async def get_events(call: SignedCall) -> Any:
    """GetFunctionEventInvokeConfig."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    return answer(call, _config(call, name, qualifier, _existing(call, name, qualifier)))


async def delete_events(call: SignedCall) -> Any:
    """DeleteFunctionEventInvokeConfig."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    _existing(call, name, qualifier)
    await call.whole(call.functions.set_async(name, qualifier or LATEST, None, owner=call.visible))
    return answer(call, status=204)


async def list_events(call: SignedCall) -> Any:
    """ListFunctionEventInvokeConfigs."""
    call.allow(lacking, "Marker", "MaxItems")
    name = name_of(call)
    configs = call.functions.async_configs(name, owner=call.visible)
    rows = [(qualifier, _config(call, name, qualifier, configs[qualifier])) for qualifier in sorted(configs)]
    return listed(call, "FunctionEventInvokeConfigs", rows)


# --- tags, account ---------------------------------------------------------------------------------------------------


def _tagged(call: SignedCall) -> str:
    name, qualifier = views.reference(unquote(call.path["arn"]))
    if qualifier:
        raise Invalid("Resource", "tags are a function's, not a version's or an alias's")
    return name


async def list_tags(call: SignedCall) -> Any:
    """ListTags."""
    return answer(call, {"Tags": translate.tags_of(call.version(_tagged(call)).spec.tags)})


async def tag(call: SignedCall) -> Any:
    """TagResource."""
    given, name = fields(call), _tagged(call)
    tags = translate.check_tags(given.need("Tags", dict[str, str]))
    given.done()
    before = call.version(name)
    changes = retag(before, translate.tags_of(before.spec.tags) | tags)
    await call.whole(call.functions.update_config(name, changes, owner=call.visible))
    return answer(call, status=204)


async def untag(call: SignedCall) -> Any:
    """UntagResource."""
    call.allow(lacking, "tagKeys")
    name, gone = _tagged(call), set(call.params.get("tagKeys", []))
    before = call.version(name)
    left = {key: value for key, value in translate.tags_of(before.spec.tags).items() if key not in gone}
    await call.whole(call.functions.update_config(name, retag(before, left), owner=call.visible))
    return answer(call, status=204)


async def code_signing(call: SignedCall) -> Any:
    """GetFunctionCodeSigningConfig: none has one."""
    name = name_of(call)
    call.version(name)
    return answer(call, {"FunctionName": name, "CodeSigningConfigArn": ""})


async def event_sources(call: SignedCall) -> Any:
    """ListEventSourceMappings: there are none."""
    call.allow(lacking, "EventSourceArn", "FunctionName", "Marker", "MaxItems")
    return answer(call, {"EventSourceMappings": []})


async def account(call: SignedCall) -> Any:
    """GetAccountSettings."""
    mine = call.functions.list(owner=call.visible)
    reserved = sum(one.spec.reserved or 0 for one in mine)
    limits = {
        "TotalCodeSize": _CODE_TOTAL,
        "CodeSizeUnzipped": _CODE_UNZIPPED,
        "CodeSizeZipped": _CODE_ZIPPED,
        "ConcurrentExecutions": _CONCURRENT,
        "UnreservedConcurrentExecutions": max(0, _CONCURRENT - reserved),
    }
    usage = {"TotalCodeSize": sum(one.code_size for one in mine), "FunctionCount": len(mine)}
    return answer(call, {"AccountLimit": limits, "AccountUsage": usage})


ROUTES = (
    route("PUT", _CONCURRENCY, put_concurrency, "PutFunctionConcurrency"),
    route("DELETE", _CONCURRENCY, delete_concurrency, "DeleteFunctionConcurrency"),
    route("GET", "/2019-09-30/functions/{name}/concurrency", get_concurrency, "GetFunctionConcurrency"),
    route("PUT", _PROVISIONED, put_provisioned, "PutProvisionedConcurrencyConfig"),
    route("GET", _PROVISIONED, get_provisioned, "GetProvisionedConcurrencyConfig"),
    route("DELETE", _PROVISIONED, delete_provisioned, "DeleteProvisionedConcurrencyConfig"),
    route("POST", _URL, create_url, "CreateFunctionUrlConfig"),
    route("PUT", _URL, update_url, "UpdateFunctionUrlConfig"),
    route("GET", _URL, get_url, "GetFunctionUrlConfig"),
    route("DELETE", _URL, delete_url, "DeleteFunctionUrlConfig"),
    route("GET", f"{_URL}s", list_urls, "ListFunctionUrlConfigs"),
    route("PUT", _EVENTS, put_events, "PutFunctionEventInvokeConfig"),
    route("POST", _EVENTS, put_events, "UpdateFunctionEventInvokeConfig"),
    route("GET", _EVENTS, get_events, "GetFunctionEventInvokeConfig"),
    route("DELETE", _EVENTS, delete_events, "DeleteFunctionEventInvokeConfig"),
    route("GET", f"{_EVENTS}/list", list_events, "ListFunctionEventInvokeConfigs"),
    route("GET", _TAGS, list_tags, "ListTags"),
    route("POST", _TAGS, tag, "TagResource"),
    route("DELETE", _TAGS, untag, "UntagResource"),
    route("GET", "/2020-06-30/functions/{name}/code-signing-config", code_signing, "GetFunctionCodeSigningConfig"),
    route("GET", "/2015-03-31/event-source-mappings", event_sources, "ListEventSourceMappings"),
    route("GET", "/2016-08-19/account-settings", account, "GetAccountSettings"),
)
