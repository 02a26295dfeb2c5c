"""E2B's templates: asked for, filled with files, built (joey.api.facades.e2b.building), listed, tagged and deleted."""

from __future__ import annotations

import hmac
import re
from typing import Any, BinaryIO

import msgspec

from joey.api.facades.e2b.building import Job
from joey.api.facades.e2b.call import Owned
from joey.api.facades.e2b.catalogue import BUILTIN, Build, Tag, Template, here, split
from joey.api.facades.e2b.control import kind_of, timestamp
from joey.api.facades.e2b.envd import VERSION
from joey.api.facades.e2b.errors import Failure, lacking
from joey.api.facades.e2b.kinds import INTERPRETER_NAMES, Kind
from joey.api.facades.e2b.recipe import Step
from joey.api.facades.e2b.snapshots import remove as remove_snapshot
from joey.api.light import web
from joey.api.routes import Route
from joey.api.transfer import received
from joey.images import reference
from joey.images.unpack import Limits, unpack
from joey.model import codec
from joey.model.errors import Invalid

_HASH = re.compile(r"[0-9a-f]{16,128}")
_PAGE, _ENTRIES = 100, 100
_MOST_FILES = 8 << 30
"""Bytes of one archive, unpacked."""
_OLD_BASES = re.compile(r"(docker\.io/)?e2bdev/(base|code-interpreter)(:[\w.-]+)?")
"""Images of E2B's own templates, which are asked for where nothing else is."""
_DEFAULT_CPUS, _DEFAULT_MEMORY = 1, 512
UPLOADS = "/templates/uploads/"

Message = dict[str, Any]


class _Request(msgspec.Struct, kw_only=True):
    name: str = ""
    alias: str = ""
    tags: list[str] = []
    cpuCount: int | None = None
    memoryMB: int | None = None
    minFreeDiskMb: int | None = None  # free memory is what a sandbox's files have: there is nothing to grow


class _Start(msgspec.Struct, kw_only=True):
    fromImage: str = ""
    fromTemplate: str = ""
    fromImageRegistry: Any = None
    startCmd: str = ""
    readyCmd: str = ""
    steps: list[Step] = []
    force: bool = False


class _Tags(msgspec.Struct, kw_only=True):
    name: str = ""
    target: str = ""
    tags: list[str]


# --- building --------------------------------------------------------------------------------------------------------


async def request(call: Owned) -> Message:
    """A build that files and steps are to come for."""
    template, build = await _requested(call)
    return {
        "templateID": template.id, "buildID": build.id, "public": False, "names": [template.name], "tags": build.tags,
        "aliases": [template.name],
    }  # fmt: skip


async def request_v2(call: Owned) -> Message:
    """The same, as older clients have it."""
    template, _ = await _requested(call)
    return _view(call, template)


async def _requested(call: Owned) -> tuple[Template, Build]:
    body = codec.decode(_Request, await call.data() or b"{}")
    name = body.name or body.alias
    if not name:
        raise Invalid("name", "is missing")
    for field, value, most in (("cpuCount", body.cpuCount, 1024), ("memoryMB", body.memoryMB, 1 << 24)):
        if value is not None and not 1 <= value <= most:
            raise Invalid(field, f"is a whole number from 1 to {most}")
    await call.yard.room(call.owner)
    build = call.catalogue.request(call.owner, name, body.tags, body.cpuCount, body.memoryMB)
    template = call.catalogue.templates[build.template]
    call.yard.add(build, template)
    return template, build


async def file_link(call: Owned) -> Message:
    """Where an archive of files goes, unless it is here."""
    template = call.catalogue.own(call.path["template"], call.visible)
    digest = call.path["hash"]
    if not _HASH.fullmatch(digest):
        raise Invalid("hash", f"{digest!r} is no hash")
    job = call.yard.waiting(template)
    if job is None:
        raise Failure(400, f"no build of template '{template.name}' waits for files")
    if call.yard.has(job, digest):
        return {"present": True}
    path = f"{UPLOADS}{job.build.id}/{digest}"
    return {"present": False, "url": f"http://{call.request.host}{path}?token={_token(call, path)}"}


def _token(call: Owned, path: str) -> str:
    return call.e2b.token(path)[len(path) :]


async def upload(call: Owned) -> None:
    """An archive, perhaps compressed; the link that was given out is what allows it."""
    if not hmac.compare_digest(call.request.query.get("token", "").encode(), _token(call, call.request.path).encode()):
        raise Failure(401, "the link is wrong")
    digest, job = call.path["hash"], call.yard.jobs.get(call.path["build"])
    if job is None or job.task is not None:
        raise Failure(404, "the build waits for no files any more")
    place = await call.yard.place(job)
    target = place / "context" / digest

    def keep(archive: BinaryIO) -> None:
        if not target.exists():
            unpack(archive, target, limits=Limits(size=_MOST_FILES, clamp_ids=True), durable=False)

    await received(call, place, "files", keep)


async def start(call: Owned) -> None:
    """Build it."""
    body = codec.decode(_Start, await call.data() or b"{}")
    template = call.catalogue.own(call.path["template"], call.visible)
    build = call.catalogue.build(template, call.path["build"])
    job = call.yard.jobs.get(build.id)
    if job is None or job.task is not None or build.status != "waiting":
        raise Failure(400, f"build '{build.id}' has been started already")
    if body.fromImageRegistry:
        raise lacking("fromImageRegistry (`joey login` keeps a registry's name and password)")
    base, image = _base(call, body)
    build.start, build.ready = body.startCmd, body.readyCmd
    if base is not None:
        build.interpreter = base.interpreter
        if base.interpreter and body.startCmd:
            raise lacking("a start command beside the code interpreter")
        build.start, build.ready = build.start or base.start, build.ready or base.ready
        build.cpus, build.memory = build.cpus or base.cpus, build.memory or base.memory
    call.yard.start(job, body.steps, base, image, body.force)


def _base(call: Owned, body: _Start) -> tuple[Kind | None, str]:
    """The template it starts from, else the image. Raises Failure (404, 403), Invalid."""
    if bool(body.fromImage) == bool(body.fromTemplate):
        raise Invalid("fromImage", "either it or fromTemplate is given")
    own = _OLD_BASES.fullmatch(body.fromImage)
    ref = body.fromTemplate or ("" if own is None else "base" if own[2] == "base" else INTERPRETER_NAMES[0])
    if ref:
        found = kind_of(call, ref)
        if not here(call.yard.images, found.image):
            raise Failure(404, f"template '{ref}' not found")
        return found, ""
    image = body.fromImage
    try:
        named = reference.parse(image)
    except Invalid as error:
        raise Invalid("fromImage", error.message, error.remedy) from None
    if call.owner and not here(call.yard.images, image) and named.registry not in call.service.keys_pull:
        raise Failure(403, f"{named.registry} is no registry that keys may have asked")
    return None, image


async def status(call: Owned) -> Message:
    """How far it is, and a page of its log."""
    job, build, template = _job(call)
    offset, limit = _number(call, "logsOffset", 0, 1 << 31), _number(call, "limit", _ENTRIES, _ENTRIES)
    found: Message = {
        "templateID": template.id, "buildID": build.id, "status": build.status, "logs": [],
        "logEntries": _entries(call, job, offset)[:limit],
    }  # fmt: skip
    if build.status == "error":
        found["reason"] = {"message": build.reason, "step": build.step or "base", "logEntries": []}
    return found


async def logs(call: Owned) -> Message:
    """Its log."""
    job, _, _ = _job(call)
    found = _entries(call, job, 0)
    if call.request.query.get("direction") == "backward":
        found = found[::-1]
    return {"logs": found[: _number(call, "limit", _ENTRIES, 1000)]}


def _entries(call: Owned, job: Job | None, offset: int) -> list[Message]:
    """Of an earlier engine's builds there is none."""
    levels = ("debug", "info", "warn", "error")
    least = call.request.query.get("level", "debug")
    if least not in levels:
        raise Invalid("level", f"{least!r} is not one of {', '.join(levels)}")
    if job is None:
        return []
    found = list(job.entries)[max(0, offset - job.dropped) :]
    return [one for one in found if levels.index(one["level"]) >= levels.index(least)]


def _job(call: Owned) -> tuple[Job | None, Build, Template]:
    template = call.catalogue.own(call.path["template"], call.visible)
    build = call.catalogue.build(template, call.path["build"])
    return call.yard.jobs.get(build.id), build, template


def _number(call: Owned, name: str, default: int, most: int) -> int:
    text = call.request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text[:12]) <= most):
        raise Invalid(name, f"is a whole number up to {most}")
    return int(text)


# --- looking ---------------------------------------------------------------------------------------------------------


def _view(call: Owned, template: Template) -> Message:
    builds = [one for one in call.catalogue.builds.values() if one.template == template.id]
    newest = builds[-1] if builds else Build(id="", template=template.id, created=template.created)
    last = template.last_spawned
    return {
        "templateID": template.id, "buildID": newest.id, "cpuCount": newest.cpus or _DEFAULT_CPUS,
        "memoryMB": newest.memory or _DEFAULT_MEMORY, "diskSizeMB": newest.memory or _DEFAULT_MEMORY,
        "public": template.owner == "", "aliases": [template.name], "names": [template.name],
        "createdAt": timestamp(template.created), "updatedAt": timestamp(template.updated), "createdBy": None,
        "lastSpawnedAt": None if last is None else timestamp(last), "spawnCount": template.spawned,
        "buildCount": template.builds, "envdVersion": VERSION, "buildStatus": newest.status,
    }  # fmt: skip


async def index(call: Owned) -> web.StreamResponse:
    """The key's, the newest first; v2 in pages."""
    found = sorted(call.catalogue.of_owner(call.visible), key=lambda one: (-one.created, one.id))
    if token := call.request.query.get("nextToken"):
        place = next((at for at, one in enumerate(found) if one.id == token), None)
        if place is None:
            raise Invalid("nextToken", "is not one of ours, or that template is gone")
        found = found[place + 1 :]
    limit = _number(call, "limit", _PAGE, 1000) if call.request.path.startswith("/v2") else len(found)
    page = found[:limit]
    headers = {"x-next-token": page[-1].id} if page and len(found) > limit else {}
    return call.reply([_view(call, one) for one in page], 200, headers)


async def inspect(call: Owned) -> Message:
    """One, with its builds."""
    template = call.catalogue.own(call.path["template"], call.visible)
    builds = [one for one in call.catalogue.builds.values() if one.template == template.id]
    shown = [
        {
            "buildID": one.id, "status": one.status, "createdAt": timestamp(one.created),
            "updatedAt": timestamp(one.finished or one.created), "cpuCount": one.cpus or _DEFAULT_CPUS,
            "memoryMB": one.memory or _DEFAULT_MEMORY, "envdVersion": VERSION,
            **({"finishedAt": timestamp(one.finished)} if one.finished else {}),
        }
        for one in reversed(builds)
    ]  # fmt: skip
    return _view(call, template) | {"builds": shown}


async def alias(call: Owned) -> Message:
    """Whether there is a template of that name."""
    name = call.path["alias"]
    if name in BUILTIN:
        return {"templateID": name, "public": True}
    found = call.catalogue.template(name.partition(":")[0], call.owner)
    if found is None:
        raise Failure(404, f"template '{name}' not found")
    if tag := split(name)[1]:
        call.catalogue.tagged(found, tag)
    return {"templateID": found.id, "public": found.owner == ""}


async def remove(call: Owned) -> None:
    """A template with all its builds, or a snapshot."""
    name = call.path["name"]
    if call.catalogue.template(name, call.owner) is None:
        return await remove_snapshot(call)
    template = call.catalogue.own(name, call.visible)

    async def work() -> None:
        await call.yard.forget(template)
        await call.warmth.forget(template.id)
        call.catalogue.remove(template)
        await call.yard.discard()

    await call.whole(work())


async def change(call: Owned) -> Message:
    """Only whether it is public, which it is not."""
    template = call.catalogue.own(call.path["template"], call.visible)
    if (await call.json_object()).get("public"):
        raise lacking("public: true (templates of the administrator are everybody's)")
    return {"names": [template.name]}


# --- tags ------------------------------------------------------------------------------------------------------------


async def assign(call: Owned) -> Message:
    """More names for one build."""
    body = codec.decode(_Tags, await call.data())
    name, tag = split(body.target, "target")
    template = call.catalogue.own(name, call.visible)
    build = call.catalogue.tagged(template, tag)
    for one in body.tags:
        split(f"{name}:{one}", "tags")
    for one in body.tags:
        template.tags[one] = Tag(build=build.id, created=template.updated)
    call.catalogue.save(template)
    return {"buildID": build.id, "tags": body.tags}


async def unassign(call: Owned) -> None:
    """Fewer; a build without any stays among the last ones."""
    body = codec.decode(_Tags, await call.data())
    template = call.catalogue.own(split(body.name)[0], call.visible)
    if missing := [one for one in body.tags if one not in template.tags]:
        raise Failure(404, f"template '{template.name}' has no tag '{missing[0]}'")
    for one in body.tags:
        del template.tags[one]
    call.catalogue.save(template)
    call.catalogue.forget_old(template)
    await call.whole(call.yard.discard())


async def tags(call: Owned) -> list[Message]:
    """Those of a template."""
    template = call.catalogue.own(call.path["template"], call.visible)
    return [
        {"tag": name, "buildID": tag.build, "createdAt": timestamp(tag.created)} for name, tag in template.tags.items()
    ]


_ONE = "/templates/{template}"
ROUTES = (
    Route("POST", "/v3/templates", request, "Ask for a build", status=202),
    Route("POST", "/v2/templates", request_v2, "Ask for a build", status=202),
    Route("GET", _ONE + "/files/{hash}", file_link, "Where files go", status=201),
    Route("PUT", UPLOADS + "{build}/{hash}", upload, "Files", status=204, stream=True),
    Route("POST", "/v2" + _ONE + "/builds/{build}", start, "Build", status=202),
    Route("GET", _ONE + "/builds/{build}/status", status, "How far it is"),
    Route("GET", _ONE + "/builds/{build}/logs", logs, "Its log"),
    Route("GET", "/templates", index, "The key's"),
    Route("GET", "/v2/templates", index, "The key's, in pages"),
    Route("GET", _ONE, inspect, "One"),
    Route("PATCH", _ONE, change, "Change one"),
    Route("PATCH", "/v2" + _ONE, change, "Change one"),
    Route("DELETE", "/templates/{name}", remove, "Delete one, or a snapshot", status=204),
    Route("GET", "/templates/aliases/{alias}", alias, "Whether there is one"),
    Route("POST", "/templates/tags", assign, "Name a build", status=201),
    Route("DELETE", "/templates/tags", unassign, "Take names away", status=204),
    Route("GET", _ONE + "/tags", tags, "Its tags"),
)
