"""Functions and versions: create, change, look, publish, delete; instances and tags."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from joey.api.facades.code import permitted, stored
from joey.api.facades.fc import spec as translate
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
from joey.api.facades.fc.layers import take
from joey.api.facades.fields import Fields
from joey.api.facades.layers import told
from joey.api.facades.links import link
from joey.api.facades.runtimes import present, stands_in
from joey.api.facades.signed_server import SignedCall, now, route
from joey.model import codec
from joey.model.errors import Conflict, Invalid
from joey.model.function import LATEST, FunctionSpec, Version, check_name
from joey.model.function_views import VersionView
from joey.model.units import MIB

_KIND = "function"


def view(version: Version | VersionView, created: float, qualified: bool = False) -> Message:
    """Function. codeChecksum: SHA-256 in base64, not FC's CRC-64."""
    spec = version.spec
    shown: Message = {
        "functionName": spec.name,
        "functionArn": arn(spec.name, outward(version.version) if qualified else ""),
        "functionId": hashlib.sha256(spec.name.encode()).hexdigest()[:32],
        "runtime": spec.runtime,
        "handler": spec.handler,
        "description": spec.description,
        "timeout": max(1, round(spec.timeout)),
        "memorySize": max(1, spec.memory // MIB),
        "cpu": spec.cpus,
        "instanceConcurrency": spec.concurrency,
        "environmentVariables": spec.env | dict.fromkeys(spec.secrets, "***"),
        "internetAccess": spec.network != "none",
        "codeSize": version.code_size,
        "codeChecksum": version.code_sha256,
        "createdTime": stamp(created),
        "lastModifiedTime": stamp(version.created),
        "state": "Active",
        "lastUpdateStatus": "Successful",
        "tags": [{"Key": name, "Value": value} for name, value in sorted(_shown_tags(spec.tags).items())],
    }
    if reason := stands_in(spec):
        shown["stateReason"] = reason
    if text := spec.tags.get(translate.LAYERS, ""):
        shown["layers"] = [{"arn": one, "size": size} for one, size in told(text)]
    if spec.disk is not None:
        shown["diskSize"] = spec.disk // MIB
    if spec.keep_alive is not None:
        shown["idleTimeout"] = round(spec.keep_alive)
    hooks = {}
    for name, field in (("initializer", "initializer"), ("preStop", "pre_stop")):
        if handler := getattr(spec, field):
            hooks[name] = {"handler": handler, "timeout": max(1, round(getattr(spec, f"{field}_timeout")))}
    if hooks:
        shown["instanceLifecycleConfig"] = hooks
    if spec.runtime == translate.CONTAINER:
        shown["customContainerConfig"] = {"image": spec.image, "entrypoint": list(spec.command), "port": spec.port}
    elif spec.kind == "http":
        shown["customRuntimeConfig"] = {"command": list(spec.command), "port": spec.port}
    return shown


async def create_function(call: SignedCall) -> Any:
    """CreateFunction."""
    given = fields(call)
    name = given.need("functionName", str)
    check_name(name, "functionName")
    given.need_one("runtime")
    code = _code(given)
    tags = _tags(given.take("tags", list[dict[str, str]], []))
    values: dict[str, Any] = {"network": "nat", "memory": 128 * MIB, "timeout": 3.0, "tags": tags}
    values |= translate.configuration(given, "", present(call))
    if (layers := take(call, given)) is not None:
        values["layers"], tags[translate.LAYERS] = layers
    given.done()
    if values["runtime"] == translate.CONTAINER:
        if not values.get("image"):
            raise Invalid("customContainerConfig.image", "is required")
        if code:
            raise Invalid("code", "is not for custom containers: the image is the code")
    elif not code:
        raise Invalid("code", "is required")
    try:
        spec = FunctionSpec(name=name, **values)
        await call.whole(call.functions.create(spec, await stored(call, spec, code, "code.zipFile"), owner=call.owner))
    except Conflict as error:
        raise Failure(409, "FunctionAlreadyExists", error.message) from None
    return _now(call, name)


def _now(call: SignedCall, name: str, qualifier: str = "") -> Any:
    created = call.functions.get(name, owner=call.visible).created
    return answer(call, view(call.version(name, qualifier), created, bool(qualifier)))


def _code(given: Fields) -> str:
    part = given.part("code")
    for name in ("ossBucketName", "ossObjectName", "checksum"):
        part.only(name)
    zipped = part.take("zipFile", str, "")
    part.done()
    return zipped


def _tags(given: list[dict[str, str]]) -> dict[str, str]:
    tags = {}
    for tag in given:
        name = tag.get("Key") or tag.get("key") or ""
        if not name or name.startswith("joey."):
            raise Invalid("tags", f"{name!r}: a tag has a Key, and none below joey.")
        tags[name] = tag.get("Value") or tag.get("value") or ""
    return tags


def _shown_tags(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if not name.startswith("joey.")}


async def get_function(call: SignedCall) -> Any:
    """GetFunction."""
    call.allow(lacking, "qualifier")
    return _now(call, *reference(call))


async def get_code(call: SignedCall) -> Any:
    """GetFunctionCode: a link."""
    call.allow(lacking, "qualifier")
    version = call.version(*reference(call))
    if not version.spec.code:
        raise Failure(404, "FunctionCodeNotFound", "a custom container's code is its image")
    owner = call.functions.get(version.name, owner=call.visible).owner
    url = link(call.facade, owner, version.name, version.version, now())
    return answer(call, {"url": url, "checksum": version.code_sha256})


async def list_functions(call: SignedCall) -> Any:
    """ListFunctions."""
    call.allow(lacking, "prefix", "limit", "nextToken", "tags", "runtime", "functionName", "fcVersion")
    if call.param("fcVersion") not in ("", "v3"):
        raise lacking(f"fcVersion {call.param('fcVersion')[:10]}")
    tags: dict[str, str] = {}
    if text := call.param("tags"):
        try:
            tags = _tags(msgspec.json.decode(text, type=list[dict[str, str]]))
        except (msgspec.DecodeError, RecursionError):
            raise Invalid("tags", "is not a list of tags in JSON") from None
    rows = []
    for one in call.functions.list(owner=call.visible):
        right = call.param("runtime") in ("", one.spec.runtime) and call.param("functionName") in one.name
        if right and tags.items() <= one.spec.tags.items():
            rows.append((one.name, view(call.functions.versions(one.name, owner=one.owner)[0], one.created)))
    return listed(call, "functions", rows)


async def update_function(call: SignedCall) -> Any:
    """UpdateFunction: what is named."""
    given, name = fields(call), name_of(call)
    before = call.version(name)
    code = _code(given)
    changes = translate.configuration(given, before.spec.runtime, present(call))
    if (layers := take(call, given)) is not None:
        changes["layers"] = list(layers[0])
        changes["tags"] = before.spec.tags | {translate.LAYERS: layers[1]}
    given.done()
    if code and changes.get("runtime", before.spec.runtime) == translate.CONTAINER:
        raise Invalid("code", "is not for custom containers: the image is the code")
    permitted(call, before.spec, changes)
    new = await stored(call, before.spec, code, "code.zipFile")
    spec = codec.convert(FunctionSpec, {**codec.to_builtins(before.spec), **changes})
    owner = call.functions.get(name, owner=call.visible).owner
    await call.whole(call.functions.put(spec, new, owner=owner))
    return _now(call, name)


async def delete_function(call: SignedCall) -> Any:
    """DeleteFunction."""
    call.allow(lacking)
    await call.whole(call.functions.delete(name_of(call), owner=call.visible))
    return answer(call, status=204)


async def list_instances(call: SignedCall) -> Any:
    """ListInstances: those there are now."""
    call.allow(lacking, "qualifier", "limit", "withAllActive")
    rows = call.functions.instances(name_of(call), owner=call.visible)
    chosen = inward(call.param("qualifier"))
    shown = [
        {
            "instanceId": one.id,
            "versionId": outward(one.version),
            "qualifier": outward(one.version),
            "status": "Running",
            "createdTimeMs": round(one.started * 1000),
        }
        for one in rows
        if chosen in ("", one.version)
    ]
    return answer(call, {"instances": shown, "requestId": call.id})


# --- versions --------------------------------------------------------------------------------------------------------


def _version(version: VersionView) -> Message:
    when = stamp(version.created)
    return {
        "versionId": version.version,
        "description": version.description,
        "createdTime": when,
        "lastModifiedTime": when,
    }


async def publish(call: SignedCall) -> Any:
    """PublishFunctionVersion."""
    given, name = fields(call), name_of(call)
    description = given.take("description", str, "")
    given.done()
    made = await call.whole(call.functions.publish(name, description=description, owner=call.visible))
    return answer(call, _version(made))


async def list_versions(call: SignedCall) -> Any:
    """ListFunctionVersions: the newest first, unless direction is FORWARD."""
    call.allow(lacking, "direction", "limit", "nextToken")
    direction = call.param("direction") or "BACKWARD"
    if direction not in ("BACKWARD", "FORWARD"):
        raise Invalid("direction", "is BACKWARD or FORWARD")
    versions = call.functions.versions(name_of(call), owner=call.visible)
    rows = [(one.version.zfill(20), _version(one)) for one in versions if one.version != LATEST]
    return listed(call, "versions", rows, backward=direction == "BACKWARD")


async def delete_version(call: SignedCall) -> Any:
    """DeleteFunctionVersion."""
    version = inward(call.path["version"])
    if version == LATEST:
        raise Invalid("versionId", "LATEST goes with the function only")
    await call.whole(call.functions.delete_version(name_of(call), version, owner=call.visible))
    return answer(call, status=204)


# --- tags ------------------------------------------------------------------------------------------------------------


async def _retag(call: SignedCall, name: str, tags: dict[str, str], gone: set[str] | None) -> None:
    """gone: None for all."""
    tags_now = call.version(name).spec.tags
    keep = {key for key in tags_now if key.startswith("joey.") or (gone is not None and key not in gone)}
    left = {key: value for key, value in tags_now.items() if key in keep}
    await call.whole(call.functions.update_config(name, {"tags": left | tags}, owner=call.visible))


def _named(resource: str) -> str:
    """A function's name, of itself or of its ARN."""
    name = resource.rpartition("functions/")[2] if resource.startswith("acs:fc:") else resource
    check_name(name, "ResourceId")
    return name


async def tag(call: SignedCall) -> Any:
    """TagResources."""
    given = fields(call)
    given.only("ResourceType", _KIND)
    names = [_named(one) for one in given.need("ResourceId", list[str])]
    tags = _tags(given.need("Tag", list[dict[str, str]]))
    given.done()
    for name in names:
        call.version(name)  # all or none
    for name in names:
        await _retag(call, name, tags, set())
    return answer(call, {"RequestId": call.id})


def _list(call: SignedCall, name: str) -> list[str]:
    """A parameter that is a JSON list, as the SDK sends it."""
    text = call.param(name)
    try:
        return msgspec.json.decode(text, type=list[str]) if text else []
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(name, "is not a list of strings in JSON") from None


async def untag(call: SignedCall) -> Any:
    """UntagResources."""
    call.allow(lacking, "All", "ResourceId", "ResourceType", "TagKey")
    _type(call)
    everything = call.param("All").lower() == "true"
    names = [_named(one) for one in _list(call, "ResourceId")]
    for name in names:
        call.version(name)
    for name in names:
        await _retag(call, name, {}, None if everything else set(_list(call, "TagKey")))
    return answer(call, {"RequestId": call.id})


async def list_tags(call: SignedCall) -> Any:
    """ListTagResources."""
    call.allow(lacking, "Limit", "NextToken", "ResourceId", "ResourceType", "Tag")
    _type(call)
    if call.param("NextToken"):
        raise Invalid("NextToken", "is none that Joey gave")
    try:
        wanted = msgspec.json.decode(call.param("Tag") or "[]", type=list[dict[str, str]])
    except (msgspec.DecodeError, RecursionError):
        raise Invalid("Tag", "is not a list of tags in JSON") from None
    names = [_named(one) for one in _list(call, "ResourceId")]
    rows = []
    for one in call.functions.list(owner=call.visible):
        tags = _shown_tags(one.spec.tags)
        if (not names or one.name in names) and _tags(wanted).items() <= tags.items():
            for key, value in sorted(tags.items()):
                rows.append({"ResourceId": one.name, "ResourceType": _KIND, "TagKey": key, "TagValue": value})
    return answer(call, {"TagResources": rows, "RequestId": call.id})


def _type(call: SignedCall) -> None:
    if call.param("ResourceType") not in ("", _KIND, "ALIYUN::FC::FUNCTION"):
        raise lacking(f"ResourceType {call.param('ResourceType')[:40]}")


ROUTES = (
    route("POST", f"{ROOT}/functions", create_function, "CreateFunction", tag="code"),
    route("GET", f"{ROOT}/functions", list_functions, "ListFunctions"),
    route("GET", FUNCTION, get_function, "GetFunction"),
    route("PUT", FUNCTION, update_function, "UpdateFunction", tag="code"),
    route("DELETE", FUNCTION, delete_function, "DeleteFunction"),
    route("GET", f"{FUNCTION}/code", get_code, "GetFunctionCode"),
    route("GET", f"{FUNCTION}/instances", list_instances, "ListInstances"),
    route("POST", f"{FUNCTION}/versions", publish, "PublishFunctionVersion"),
    route("GET", f"{FUNCTION}/versions", list_versions, "ListFunctionVersions"),
    route("DELETE", f"{FUNCTION}/versions/{{version}}", delete_version, "DeleteFunctionVersion"),
    route("POST", f"{ROOT}/tags-v2", tag, "TagResources"),
    route("DELETE", f"{ROOT}/tags-v2", untag, "UntagResources"),
    route("GET", f"{ROOT}/tags-v2", list_tags, "ListTagResources"),
)
