"""E2B's control plane: sandboxes are made, listed, looked at, kept alive, paused and ended.

An E2B sandbox is a sandbox of the key's whose main program is joey-init alone, with a link of its own (nat), removed
when it ends. Metadata are labels; what E2B asks back and Joey has no field for are labels below `joey.e2b.`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import msgspec

from joey.api.creation import IDEMPOTENCY
from joey.api.facades.e2b import catalogue, network, starting
from joey.api.facades.e2b.call import Owned
from joey.api.facades.e2b.envd import RESUME, VERSION
from joey.api.facades.e2b.errors import Failure, lacking
from joey.api.facades.e2b.kinds import INTERPRETER_NAMES, OWN, OWN_ENV, TEMPLATE, Kind
from joey.api.light import web
from joey.api.routes import JSON, Route
from joey.api.tenant import restrict
from joey.build.workshop import LABEL as STEP
from joey.engine.interface import Filter
from joey.model import codec
from joey.model.errors import Conflict, ImageError, Invalid, JoeyError, NotFound, RegistryFailed
from joey.model.spec import Process, SandboxSpec, Update, check_labels
from joey.model.views import Detail, Sandbox, Stats

DEFAULT_TIMEOUT = 15.0
"""Seconds, of E2B's API; its SDKs ask for 300."""
FIRST = "base"
"""The template that SDKs ask for when they are told of none."""
_LONGEST = 30 * 86400
_PAGE = 100
_MIB = 1 << 20
_NEVER = "9999-12-31T23:59:59Z"

Message = dict[str, Any]


class NewSandbox(msgspec.Struct, kw_only=True):
    """Of POST /sandboxes and /v2/sandboxes. What is not named here and given is refused, unless it says nothing."""

    templateID: str
    timeout: float | None = None
    metadata: dict[str, str] = {}
    envVars: dict[str, str] = {}
    autoPause: bool = False
    autoPauseMemory: bool = True
    autoResume: Any = None
    secure: bool = True
    allow_internet_access: bool | None = None
    network: network.Config | None = None
    mcp: Any = None
    iam: Any = None
    volumeMounts: list[Any] = []


_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(NewSandbox))


class _Timeout(msgspec.Struct, kw_only=True):
    timeout: float | None = None
    duration: float | None = None
    autoPause: bool | None = None
    memory: bool | None = None


async def create(call: Owned) -> web.StreamResponse:
    """A running sandbox."""
    data = await call.data()
    body = codec.decode(NewSandbox, data or b"{}")
    for name, value in codec.decode(dict[str, Any], data or b"{}").items():
        if name not in _FIELDS and value not in (None, "", 0, [], {}):
            raise lacking(name)
    kind, spec = _wanted(call, body)

    async def work() -> tuple[int, bytes]:
        begun = time.monotonic()
        try:
            sandbox = await call.warmth.run(kind, spec, call.owner)
        except (ImageError, RegistryFailed) as error:
            raise catalogue.not_found(body.templateID, error) from None
        call.service.counters.launches.add(time.monotonic() - begun)
        await starting.ready(call.engine, sandbox.id, kind)
        return 201, codec.encode(await made(call, sandbox, spec.proxy_token))

    key = call.request.headers.get(IDEMPOTENCY)
    if key is None:
        status, text = await call.whole(work())
    else:
        status, text, _ = await call.whole(call.service.idempotency.answer(call.owner, key, data, work))
    return web.Response(status=status, body=text, content_type=JSON)


def _wanted(call: Owned, body: NewSandbox) -> tuple[Kind, SandboxSpec]:
    kind = kind_of(call, body.templateID)
    spec = restrict(call, _spec(body, kind))
    return kind, msgspec.structs.replace(spec, mounts=kind.mounts) if kind.mounts else spec


def welcome(call: Owned, interpreter: bool = False) -> None:
    """Start ahead what the caller's key is likely to ask for first. interpreter: also that, if one was chosen."""
    names = [FIRST]
    if interpreter and INTERPRETER_NAMES[0] in call.catalogue.templates:
        names.append(INTERPRETER_NAMES[0])
    for name in names:
        with contextlib.suppress(Failure, JoeyError):  # who asks for it is told
            call.warmth.ahead(*_wanted(call, NewSandbox(templateID=name)), call.owner)


def kind_of(call: Owned, ref: str) -> Kind:
    """What a template's name means for the key. Raises Failure (404)."""
    images = catalogue.images_of(call.service)
    try:
        seen = images.seen_as(ref, call.owner) if images is not None and images.exists and call.owner else ref
    except ImageError as error:
        raise catalogue.not_found(ref, error) from None
    return call.catalogue.kind(ref, call.owner, images, seen)


def _spec(body: NewSandbox, kind: Kind) -> SandboxSpec:
    for name in ("mcp", "iam", "volumeMounts"):
        if getattr(body, name):
            raise lacking(name)
    if not body.autoPauseMemory:
        raise lacking("autoPauseMemory: false (pausing keeps memory here)")
    labels = {TEMPLATE: body.templateID, **kind.labels}
    if reserved := sorted(name for name in body.metadata if name.startswith(OWN)):
        raise Invalid("metadata", f"{reserved[0]!r}: names below {OWN} are Joey's own")
    resume = body.autoResume
    if resume.get("enabled", False) if isinstance(resume, Mapping) else resume:
        labels[RESUME] = "1"
    spec = SandboxSpec(
        image=kind.image,
        entrypoint=(),
        init=True,
        process=Process(argv=kind.argv, env={**OWN_ENV, **body.envVars}, user=kind.user, cwd=kind.cwd),
        resources=kind.resources,
        labels=body.metadata | labels,
        network=network.of(body.network, body.allow_internet_access),
        timeout=seconds(DEFAULT_TIMEOUT if body.timeout is None else body.timeout),
        on_timeout="pause" if body.autoPause else "kill",
        remove=True,
        proxy_token=network.traffic_token(body.network),
    )
    check_labels(spec.labels)
    return spec


def seconds(value: float, name: str = "timeout") -> float:
    if not 0 <= value <= _LONGEST:
        raise Invalid(name, f"is not within 0 and {_LONGEST} seconds")
    return max(value, 0.001)


async def made(call: Owned, sandbox: Sandbox, traffic: str | None) -> Message:
    """How a client goes on with it. traffic: the token that requests to its ports must carry, None for none."""
    host = await call.service.doorway.host(sandbox.id, 1)
    found = {
        "sandboxID": sandbox.id,
        "templateID": sandbox.labels.get(TEMPLATE, sandbox.image),
        "clientID": "joey",
        "envdVersion": VERSION,
        "envdAccessToken": call.e2b.token(sandbox.id),
        "domain": host.host.partition(".")[2],
    }
    return found if traffic is None else found | {"trafficAccessToken": traffic}


# --- looking ---------------------------------------------------------------------------------------------------------


def _view(detail: Detail) -> Message:
    sandbox, spec = detail.sandbox, detail.spec
    resources = spec.resources
    return {
        "sandboxID": sandbox.id,
        "templateID": sandbox.labels.get(TEMPLATE, sandbox.image),
        "clientID": "joey",
        "startedAt": timestamp(_begun(sandbox)),
        "endAt": _NEVER if sandbox.deadline is None else timestamp(sandbox.deadline),
        "cpuCount": max(1, round(resources.cpus or 1)),
        "memoryMB": (resources.memory or 0) // _MIB,
        "diskSizeMB": (resources.disk or resources.memory or 0) // _MIB,
        "metadata": {name: value for name, value in sandbox.labels.items() if not name.startswith(OWN)},
        "state": "paused" if sandbox.state == "paused" else "running",
        "envdVersion": VERSION,
    }


def _begun(sandbox: Sandbox) -> float:
    """Since when its owner has it: the program of a warm one ran before."""
    return max(sandbox.started or 0.0, sandbox.created)


def timestamp(at: float) -> str:
    """A moment as E2B writes it (RFC 3339, UTC). at: seconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def inspect(call: Owned) -> Message:
    """One of them."""
    detail = await living(call)
    lifecycle = {
        "onTimeout": "pause" if detail.spec.on_timeout == "pause" else "kill",
        "autoResume": RESUME in detail.sandbox.labels,
    }
    token = call.e2b.token(call.ref)
    domain = (await call.service.doorway.host(call.ref, 1)).host.partition(".")[2]
    return _view(detail) | {"envdAccessToken": token, "domain": domain, "lifecycle": lifecycle}


async def living(call: Owned) -> Detail:
    """Raises Failure for one that has ended: E2B knows no such thing."""
    detail = await call.engine.inspect(call.ref)
    if detail.sandbox.state not in ("running", "paused"):
        raise Failure(404, f"Sandbox \"{call.ref}\" doesn't exist or you don't have access to it")
    return detail


async def index_v1(call: Owned) -> list[Message]:
    """Those that run, in one list."""
    return [_view(one) for one in await _details(call, await _matching(call, {"running"}))]


async def index(call: Owned) -> web.StreamResponse:
    """A page; the header x-next-token leads to the next one."""
    query = call.request.query
    states = {part for text in query.getall("state", []) for part in text.split(",") if part}
    if unknown := states - {"running", "paused"}:
        raise Invalid("state", f"{sorted(unknown)[0]!r} is neither running nor paused")
    found = await _matching(call, states or {"running", "paused"})
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Invalid("order", "is asc or desc")
    found.sort(key=_place, reverse=order == "desc")
    if token := query.get("nextToken"):
        at = _of_token(token)
        found = [one for one in found if (_place(one) < at if order == "desc" else _place(one) > at)]
    text = query.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1000):
        raise Invalid("limit", "is a whole number from 1 to 1000")
    page = found[: int(text)]
    headers = {"x-next-token": "{}:{}".format(*_place(page[-1]))} if len(found) > len(page) else {}
    return call.reply([_view(one) for one in await _details(call, page)], 200, headers)


def _place(sandbox: Sandbox) -> tuple[float, str]:
    return sandbox.created, sandbox.id


def _of_token(token: str) -> tuple[float, str]:
    created, _, id = token.partition(":")
    try:
        return float(created), id
    except ValueError:
        raise Invalid("nextToken", "is not one of ours") from None


async def _matching(call: Owned, states: set[str]) -> list[Sandbox]:
    query = call.request.query
    # Names and values are quoted twice: as a query of their own, and each before that.
    pairs = parse_qsl(query.get("metadata", ""), keep_blank_values=True)
    labels: dict[str, str | None] = {unquote(name): unquote(value) for name, value in pairs}
    wanted: frozenset[Literal["running", "paused"]] = frozenset(states)  # type: ignore[arg-type]
    found = list(await call.engine.list(Filter(states=frozenset(wanted), labels=labels, owner=call.visible)))
    found = [one for one in found if STEP not in one.labels]
    if template := query.get("template"):
        found = [one for one in found if one.labels.get(TEMPLATE, one.image) == template]
    if after := query.get("startedAfter"):
        try:
            begin = datetime.fromisoformat(after.replace(" ", "+")).timestamp()
        except ValueError:
            raise Invalid("startedAfter", "is no time") from None
        found = [one for one in found if _begun(one) > begin]
    return found


async def _details(call: Owned, found: list[Sandbox]) -> list[Detail]:
    details = []
    for one in found:
        try:
            details.append(await call.engine.inspect(one.id))
        except NotFound:  # it has ended meanwhile
            continue
    return details


# --- changing --------------------------------------------------------------------------------------------------------


async def kill(call: Owned) -> None:
    """End it; nothing of it stays."""
    await living(call)
    await call.whole(call.engine.remove(call.ref, force=True))


async def timeout(call: Owned) -> None:
    """Seconds from now."""
    body = codec.decode(_Timeout, await call.data() or b"{}")
    if body.timeout is None:
        raise Invalid("timeout", "is missing")
    await living(call)
    await call.whole(call.engine.update(call.ref, Update(timeout=seconds(body.timeout))))


async def refresh(call: Owned) -> None:
    """At least so many seconds more."""
    body = codec.decode(_Timeout, await call.data() or b"{}")
    await _prolong(call, await living(call), seconds(body.duration or DEFAULT_TIMEOUT, "duration"))


async def _prolong(call: Owned, detail: Detail, seconds: float) -> None:
    deadline = detail.sandbox.deadline
    if deadline is None or deadline < time.time() + seconds:
        await call.whole(call.engine.update(call.ref, Update(timeout=seconds)))


async def pause(call: Owned) -> None:
    """Freeze it: it uses no CPU, keeps its memory, and has no end until it goes on."""
    body = codec.decode(_Timeout, await call.data() or b"{}")
    if body.memory is False:
        raise lacking("memory: false (pausing keeps memory here)")
    if (await living(call)).sandbox.state == "paused":
        raise Conflict("", f"sandbox {call.ref} is already paused")

    async def work() -> None:
        await call.engine.pause(call.ref)
        await call.engine.update(call.ref, Update(timeout=None))

    await call.whole(work())


async def connect(call: Owned) -> web.StreamResponse:
    """A running one lives so long at least; a paused one goes on."""
    body = codec.decode(_Timeout, await call.data() or b"{}")
    if body.memory is False:
        raise lacking("memory: false (a reboot)")
    return await _again(call, seconds(DEFAULT_TIMEOUT if body.timeout is None else body.timeout), must=False)


async def resume(call: Owned) -> web.StreamResponse:
    """A paused one goes on."""
    body = codec.decode(_Timeout, await call.data() or b"{}")
    return await _again(call, seconds(DEFAULT_TIMEOUT if body.timeout is None else body.timeout), must=True)


async def _again(call: Owned, seconds: float, must: bool) -> web.StreamResponse:
    detail = await living(call)
    if paused := detail.sandbox.state == "paused":

        async def work() -> None:
            await call.engine.update(call.ref, Update(timeout=seconds))
            await call.engine.resume(call.ref)

        await call.whole(work())
    elif must:
        raise Conflict("", f"sandbox {call.ref} is already running")
    else:
        await _prolong(call, detail, seconds)
    return call.reply(await made(call, detail.sandbox, detail.spec.proxy_token), 201 if paused else 200)


async def update_network(call: Owned) -> None:
    """Its policy, anew; in effect when this answers."""
    body = codec.decode(network.Config, await call.data() or b"{}")
    detail = await living(call)
    change = Update(network=network.change(body, detail.spec.network))
    from joey.api.tenant import restrict_update

    restrict_update(call, change)
    await call.whole(call.engine.update(call.ref, change))


# --- metrics ---------------------------------------------------------------------------------------------------------

_SAMPLE = 0.1


async def metrics(call: Owned) -> list[Message]:
    """What it uses now, one point: Joey keeps no history."""
    await living(call)
    return await _metrics(call, [call.ref])


async def all_metrics(call: Owned) -> Message:
    """Of several."""
    ids = [id for text in call.request.query.getall("sandbox_ids", []) for id in text.split(",") if id]
    if not 1 <= len(ids) <= _PAGE:
        raise Invalid("sandbox_ids", f"1 to {_PAGE} are taken")
    mine = {one.id for one in await call.engine.list(Filter(owner=call.visible))}
    ids = [id for id in ids if id in mine]
    return {"sandboxes": dict(zip(ids, await _metrics(call, ids), strict=False))} if ids else {"sandboxes": {}}


async def _metrics(call: Owned, ids: list[str]) -> list[Message]:
    """CPU of a tenth of a second."""
    before = {one.id: one for one in await call.engine.stats(ids)}
    await asyncio.sleep(_SAMPLE)
    return [_metric(one, before.get(one.id)) for one in await call.engine.stats(ids)]


def _metric(now: Stats, before: Stats | None) -> Message:
    used = 0.0
    if before is not None and now.at > before.at:
        used = ((now.usage.cpu_ns or 0) - (before.usage.cpu_ns or 0)) / 1e9 / (now.at - before.at) * 100
    cache = now.usage.cache or 0
    return {
        "timestamp": timestamp(now.at),
        "timestampUnix": int(now.at),
        "cpuCount": max(1, round(now.cpus or 1)),
        "cpuUsedPct": round(max(0.0, used), 2),
        "memUsed": max(0, (now.usage.memory_current or 0) - cache),
        "memTotal": now.usage.memory_limit or 0,
        "memCache": cache,
        "diskUsed": 0,
        "diskTotal": 0,
    }


_ONE = "/sandboxes/{ref}"
ROUTES = (
    Route("POST", "/sandboxes", create, "Make one", status=201),
    Route("POST", "/v2/sandboxes", create, "Make one", status=201),
    Route("GET", "/sandboxes", index_v1, "Those that run"),
    Route("GET", "/v2/sandboxes", index, "A page of them"),
    Route("GET", "/sandboxes/metrics", all_metrics, "What several use"),
    Route("GET", _ONE, inspect, "Look at one"),
    Route("DELETE", _ONE, kill, "End one", status=204),
    Route("POST", _ONE + "/timeout", timeout, "When it ends", status=204),
    Route("POST", _ONE + "/refreshes", refresh, "Keep it", status=204),
    Route("POST", _ONE + "/pause", pause, "Freeze it", status=204),
    Route("POST", _ONE + "/connect", connect, "Go on with it"),
    Route("POST", "/v2" + _ONE + "/connect", connect, "Go on with it"),
    Route("POST", _ONE + "/resume", resume, "Thaw it"),
    Route("PUT", _ONE + "/network", update_network, "Change its policy", status=204),
    Route("GET", _ONE + "/metrics", metrics, "What it uses"),
)
