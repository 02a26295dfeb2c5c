"""Functions and versions: create, change, look, publish, delete."""

from __future__ import annotations

import os
from typing import Any

from joey.api.facades.aws_lambda import spec as translate
from joey.api.facades.aws_lambda import views
from joey.api.facades.aws_lambda.base import answer, fields, listed, name_of, reference
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.aws_lambda.layers import take
from joey.api.facades.code import permitted, stored
from joey.api.facades.fields import Fields
from joey.api.facades.links import link
from joey.api.facades.runtimes import present
from joey.api.facades.signed_server import SignedCall, now, route
from joey.model.errors import Invalid
from joey.model.function import LATEST, FunctionSpec, Version

_ROOT = "/2015-03-31/functions"
_MACHINE = os.uname().machine


async def create_function(call: SignedCall) -> Any:
    """CreateFunction."""
    given = fields(call)
    name, qualifier = views.reference(given.need("FunctionName", str))
    if qualifier:
        raise Invalid("FunctionName", "a new function has no qualifier")
    package = _package(given)
    given.need_one("Role")
    if package == "Zip":
        given.need_one("Runtime")
        given.need_one("Handler")
    elif "Runtime" in given or "Handler" in given:
        raise Invalid("Runtime" if "Runtime" in given else "Handler", "is not for functions of PackageType Image")
    tags = translate.check_tags(given.take("Tags", dict[str, str], {})) | {translate.PACKAGE: package}
    publish = given.take("Publish", bool, False)
    code, image = _code(given.part("Code"), package)
    layers = await take(call, given)
    values: dict[str, Any] = translate.kind_of(package) | {"memory": 128 << 20, "timeout": 3.0}
    values |= translate.configuration(given, _MACHINE, package, tags, present(call))
    given.done()
    if package == "Image":
        values["image"] = image
    if layers is not None:
        values["layers"], values["tags"][translate.LAYERS] = layers
    spec = FunctionSpec(name=name, **values)
    await call.whole(call.functions.create(spec, await stored(call, spec, code, "Code.ZipFile"), owner=call.owner))
    return await _changed(call, name, publish, 201)


async def _changed(call: SignedCall, name: str, publish: bool, status: int = 200) -> Any:
    """The answer for what is $LATEST now, or for the version it becomes."""
    if publish:
        made = await call.whole(call.functions.publish(name, owner=call.visible))
        return answer(call, views.configuration(made), status)
    return answer(call, views.configuration(call.version(name)), status)


def _package(given: Fields) -> str:
    package = given.take("PackageType", str, "Zip")
    if package not in ("Zip", "Image"):
        raise Invalid("PackageType", f"{package[:20]!r} is neither Zip nor Image")
    return package


def _code(part: Fields, package: str) -> tuple[str, str]:
    """(zip in base64, image) of what says where the code is: one of them."""
    for name in ("S3Bucket", "S3Key", "S3ObjectVersion", "S3ObjectStorageMode", "SourceKMSKeyArn"):
        part.only(name)
    zipped, image = part.take("ZipFile", str, ""), part.take("ImageUri", str, "")
    part.done()
    if package == "Image":
        if zipped or not image:
            raise Invalid("Code.ImageUri", "is what a function of PackageType Image has, and no other code")
        return "", image
    if image or not zipped:
        raise Invalid("Code.ZipFile", "is what a function of PackageType Zip has, and no other code")
    return zipped, ""


async def get_function(call: SignedCall) -> Any:
    """GetFunction, with a link to the code."""
    call.allow(lacking, "Qualifier")
    version = _version(call)
    spec = version.spec
    code = {"RepositoryType": "ECR", "ImageUri": spec.image}
    if spec.code:
        owner = call.functions.get(spec.name, owner=call.visible).owner
        code = {"RepositoryType": "S3", "Location": link(call.facade, owner, spec.name, version.version, now())}
    shown = {"Configuration": views.configuration(version, bool(reference(call)[1])), "Code": code}
    if tags := translate.tags_of(spec.tags):
        shown["Tags"] = tags
    if spec.reserved is not None:
        shown["Concurrency"] = {"ReservedConcurrentExecutions": spec.reserved}
    return answer(call, shown)


async def get_configuration(call: SignedCall) -> Any:
    """GetFunctionConfiguration."""
    call.allow(lacking, "Qualifier")
    return answer(call, views.configuration(_version(call), bool(reference(call)[1])))


def _version(call: SignedCall) -> Version:
    return call.version(*reference(call))


async def list_functions(call: SignedCall) -> Any:
    """ListFunctions."""
    call.allow(lacking, "FunctionVersion", "Marker", "MaxItems")
    if (which := call.param("FunctionVersion")) not in ("", "ALL"):
        raise Invalid("FunctionVersion", f"{which[:20]!r} is not ALL")
    rows = []
    for function in call.functions.list(owner=call.visible):
        versions = call.functions.versions(function.name, owner=function.owner)
        for one in versions if which else versions[:1]:
            key = f"{function.name}:{views.version_key(one.version)}"
            rows.append((key, views.configuration(one, bool(which))))
    return listed(call, "Functions", sorted(rows, key=lambda row: row[0]))


async def update_code(call: SignedCall) -> Any:
    """UpdateFunctionCode."""
    given, name = fields(call), name_of(call)
    publish, revision = given.take("Publish", bool, False), given.take("RevisionId", str, "")
    dry = given.take("DryRun", bool, False)
    if architectures := given.take("Architectures", list[str], []):
        translate.check_architectures(architectures, _MACHINE)
    before = call.version(name)
    code, image = _code(given, before.spec.tags.get(translate.PACKAGE, "Zip"))
    _same(before, revision)
    new = await stored(call, before.spec, code, "ZipFile")
    if dry:
        checked = {"CodeSha256": new.sha256, "CodeSize": new.size} if new else {}
        return answer(call, views.configuration(before) | checked)
    if new is None:
        permitted(call, before.spec, {"image": image})
        work = call.functions.update_config(name, {"image": image}, owner=call.visible, revision=revision)
    else:
        work = call.functions.update_code(name, new, owner=call.visible, revision=revision)
    await call.whole(work)
    return await _changed(call, name, publish)


async def update_configuration(call: SignedCall) -> Any:
    """UpdateFunctionConfiguration."""
    given, name = fields(call), name_of(call)
    revision = given.take("RevisionId", str, "")
    before = call.version(name)
    package = before.spec.tags.get(translate.PACKAGE, "Zip")
    changes = translate.configuration(given, _MACHINE, package, before.spec.tags, present(call))
    if (layers := await take(call, given)) is not None:
        changes["layers"] = list(layers[0])
        changes["tags"] = changes.get("tags", before.spec.tags) | {translate.LAYERS: layers[1]}
    given.done()
    _same(before, revision)
    permitted(call, before.spec, changes)
    await call.whole(call.functions.update_config(name, changes, owner=call.visible, revision=revision))
    return await _changed(call, name, False)


def _same(version: Version, revision: str) -> None:
    if revision and revision != version.revision:
        raise Failure(
            412, "PreconditionFailedException", "the RevisionId is not the function's: it was changed meanwhile"
        )


async def delete_function(call: SignedCall) -> Any:
    """DeleteFunction: with a qualifier that version only."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    if qualifier == LATEST:
        raise Invalid("Qualifier", "$LATEST goes with the function only")
    if qualifier:
        await call.whole(call.functions.delete_version(name, qualifier, owner=call.visible))
    else:
        await call.whole(call.functions.delete(name, owner=call.visible))
    return answer(call, status=204)


async def publish_version(call: SignedCall) -> Any:
    """PublishVersion."""
    given, name = fields(call), name_of(call)
    description, digest = given.take("Description", str, ""), given.take("CodeSha256", str, "")
    revision = given.take("RevisionId", str, "")
    given.done()
    latest = call.version(name)
    _same(latest, revision)
    if digest and digest != latest.code_sha256:
        raise Invalid("CodeSha256", f"is {digest[:60]}, and the function's code is {latest.code_sha256}")
    made = await call.whole(call.functions.publish(name, description=description, owner=call.visible))
    return answer(call, views.configuration(made), 201)


async def list_versions(call: SignedCall) -> Any:
    """ListVersionsByFunction."""
    call.allow(lacking, "Marker", "MaxItems")
    versions = call.functions.versions(name_of(call), owner=call.visible)
    rows = [(views.version_key(one.version), views.configuration(one, True)) for one in versions]
    return listed(call, "Versions", sorted(rows, key=lambda row: row[0]))


def retag(version: Version, tags: dict[str, str]) -> dict[str, Any]:
    """What update_config is told for new tags of the user's."""
    own = {name: value for name, value in version.spec.tags.items() if name.startswith("joey.")}
    return {"tags": own | tags}


ROUTES = (
    route("POST", _ROOT, create_function, "CreateFunction", tag="code"),
    route("GET", _ROOT, list_functions, "ListFunctions"),
    route("GET", f"{_ROOT}/{{name}}", get_function, "GetFunction"),
    route("DELETE", f"{_ROOT}/{{name}}", delete_function, "DeleteFunction"),
    route("GET", f"{_ROOT}/{{name}}/configuration", get_configuration, "GetFunctionConfiguration"),
    route("PUT", f"{_ROOT}/{{name}}/configuration", update_configuration, "UpdateFunctionConfiguration"),
    route("PUT", f"{_ROOT}/{{name}}/code", update_code, "UpdateFunctionCode", tag="code"),
    route("POST", f"{_ROOT}/{{name}}/versions", publish_version, "PublishVersion"),
    route("GET", f"{_ROOT}/{{name}}/versions", list_versions, "ListVersionsByFunction"),
)
