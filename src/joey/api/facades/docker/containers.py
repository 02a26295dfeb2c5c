"""/containers: create, list, inspect, and what is done to them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from typing import Any

from msgspec import structs

from joey.api.facades.docker import anonymous, networks, request, sizes, views
from joey.api.facades.docker.base import Refused, Req, Route, answer, error
from joey.api.facades.docker.fields import Fields
from joey.api.facades.docker.hostconfig import resources, restart
from joey.api.light import web
from joey.api.requests import signal_number
from joey.engine.interface import Filter
from joey.model import codec
from joey.model.errors import Conflict, Invalid, JoeyError, LaunchFailed, NotFound
from joey.model.image import Image
from joey.model.snapshots import CommitBody
from joey.model.spec import HealthCheck, SandboxSpec, Update
from joey.model.views import Exit, Sandbox

_STATES: dict[str, str] = {
    "created": "created",
    "running": "running",
    "paused": "paused",
    "exited": "exited",
    "dead": "dead",
}
_KILLED = 10.0
_FILTERS = (
    "id", "name", "label", "status", "ancestor", "exited", "network", "volume", "health", "before", "since", "publish",
    "expose",
)  # fmt: skip
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")


async def create(r: Req) -> web.Response:
    """201 {"Id", "Warnings"}; 404 where the image is not here, upon which the client pulls it."""

    def check_of(image: str) -> HealthCheck | None:
        with contextlib.suppress(JoeyError):
            return r.images.image(image, "").health
        return None

    name = r.query.get("name", "").removeprefix("/")
    body = networks.named(r.engine, await r.json())
    wanted = request.spec(body, name, r.query.get("platform", ""), check_of)
    spec = wanted.spec
    try:
        made = await r.whole(_create(r, wanted))
    except Invalid as failure:
        if failure.status == 404:
            raise NotFound("", f"No such image: {spec.image}") from None
        raise
    except NotFound as failure:  # a network, or whose it is to share: 404 would be the image, which clients then pull
        raise Invalid("", str(failure)) from None
    except Conflict as failure:
        if spec.name and "name" in str(failure):
            text = f'Conflict. The container name "/{spec.name}" is already in use: remove or rename that container'
            raise Conflict("", text) from None
        raise
    if wanted.stays:
        r.state.stdin_stays.add(made.id)
    r.state.image(made.id, spec.image)
    return answer({"Id": made.id, "Warnings": wanted.warnings}, status=201)


async def _create(r: Req, wanted: request.Wanted) -> Sandbox:
    async with anonymous.made(r.engine, r.state, wanted.spec, wanted.sources, wanted.anonymous):
        made = await r.engine.create(wanted.spec)
        box = r.engine.find(made.id)  # type: ignore[attr-defined]
        if not box.spec.hostname and made.network != "host" and ":" not in made.network:
            # What runs inside finds itself by its host name.
            box.exchange(structs.replace(box.spec, hostname=made.id[:12]))
        return made


async def start(r: Req) -> web.Response:
    """304 if it runs already."""
    id = r.id
    if (await r.engine.inspect(id)).sandbox.state in ("running", "paused"):
        return web.Response(status=304)
    await networks.settle(r, id)
    try:
        await r.whole(r.engine.start(id))
    except LaunchFailed as failure:
        # The command line makes its exit code (127, 126) of these words.
        words = {127: "executable file not found in $PATH", 126: "permission denied"}.get(failure.exit_code, "")
        text = f"failed to create task for container: {failure}{': ' + words if words else ''}"
        return error(400 if words else 500, text)
    return web.Response(status=204)


async def stop(r: Req) -> web.Response:
    id, seconds = r.id, r.number("t")
    if r.query.get("signal"):
        await _quietly(r, id, signal_of(r))
    elif (await r.engine.inspect(id)).sandbox.state not in ("running", "paused"):
        return web.Response(status=304)
    # -1 is "never kill": a day is longer than any client waits.
    await r.whole(r.engine.stop(id, None if seconds is None else 86400.0 if seconds < 0 else float(seconds)))
    _tell(r, "stop", id)
    return web.Response(status=204)


async def _quietly(r: Req, id: str, number: int) -> None:
    with contextlib.suppress(Conflict):
        await r.whole(r.engine.kill(id, number))


def signal_of(r: Req, default: str = "KILL") -> int:
    """Raises Invalid in Docker's words."""
    text = r.query.get("signal") or default
    try:
        return signal_number(text)
    except ValueError:
        raise Invalid("", f"invalid signal: {text}") from None


async def restart_container(r: Req) -> web.Response:
    id = r.id
    if (await r.engine.inspect(id)).sandbox.state in ("running", "paused"):
        await stop(r)
    response = await start(r)
    _tell(r, "restart", id)
    return response


def _tell(r: Req, action: str, id: str, **attributes: str) -> None:
    with contextlib.suppress(NotFound):  # one that is removed at its end is gone by now
        r.tell("container", action, id, **attributes)


async def kill(r: Req) -> web.Response:
    id, number = r.id, signal_of(r)
    if (await r.engine.inspect(id)).sandbox.state not in ("running", "paused"):
        raise Conflict("", f"cannot kill container: {r.path['id']}: container {id} is not running")
    await r.whole(r.engine.kill(id, number))
    _tell(r, "kill", id, signal=str(number))
    if number == signal.SIGKILL:  # nothing stops it: Docker answers when it is done
        with contextlib.suppress(JoeyError, TimeoutError):
            async with asyncio.timeout(_KILLED):
                await r.engine.wait(id)
    return web.Response(status=204)


async def pause(r: Req) -> None:
    await r.whole(r.engine.pause(r.id))


async def unpause(r: Req) -> None:
    await r.whole(r.engine.resume(r.id))


async def rename(r: Req) -> None:
    name = r.query.get("name", "").removeprefix("/")
    if not name:
        raise Invalid("", "Neither old nor new names may be empty")
    await r.whole(r.engine.rename(r.id, name))


async def remove(r: Req) -> None:
    if r.flag("link"):
        raise Refused("link", "Joey has no links: use a network")
    id = r.id
    volumes = anonymous.of(r.engine, (await r.engine.inspect(id)).spec) if r.flag("v") else []
    try:
        await r.whole(r.engine.remove(id, force=r.flag("force")))
    except Conflict as failure:
        text = f'cannot remove container "{r.path["id"]}": {failure}: container is running: stop it, or force'
        raise Conflict("", text) from None
    r.state.forget(id)
    await r.whole(anonymous.remove(r.engine, volumes))


async def wait(r: Req) -> web.StreamResponse:
    """The head is sent at once: the client starts the container after that."""
    id, condition = r.id, r.query.get("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise Invalid("", f"invalid condition: {condition!r}")
    detail = await r.engine.inspect(id)
    if condition == "not-running" and detail.sandbox.state == "created":
        return answer({"StatusCode": 0})
    over = detail.sandbox.state in ("exited", "dead")
    task = asyncio.ensure_future(_next(r, id) if over and condition == "next-exit" else r.engine.wait(id))
    try:
        await asyncio.sleep(0)  # it waits before the head is on its way
        response = await r.stream()
        text: dict[str, Any]
        try:
            end: Exit = await task
            text = {"StatusCode": end.code}  # why it never started is what start answers
            if condition == "removed":
                await _gone(r, id)
        except JoeyError as failure:
            text = {"StatusCode": 125, "Error": {"Message": str(failure)}}
        await response.write(codec.encode(text))
        await response.write_eof()
        return response
    finally:
        task.cancel()


async def _next(r: Req, id: str) -> Exit:
    """The end of the next run of one that has ended."""
    found: Any = r.engine.events(follow=True, types=("sandbox.exited", "sandbox.removed"), refs=(id,))
    try:
        async for event in found:
            if event.type == "sandbox.exited":
                return Exit(code=int(event.data.get("code") or 0))
            break
    finally:
        await found.aclose()
    raise NotFound("", f"No such container: {id}")


async def _gone(r: Req, id: str) -> None:
    """Returns when a container that is removed at its end is: its name is free then."""
    with contextlib.suppress(NotFound):
        while True:
            r.engine.resolve(id)
            await asyncio.sleep(0.005)


async def index(r: Req) -> Any:
    """Newest first. Filters hold all; of one filter's values any."""
    filters = r.filters(*_FILTERS)
    limit = r.number("limit", 0) or 0
    asked = Filter(
        all=r.flag("all") or bool(limit > 0), states=_states(filters.get("status", [])), limit=0,
        labels=_labels(filters.get("label", [])), ids=tuple(filters.get("id", ())),
    )  # fmt: skip
    if "exited" in filters:
        asked = Filter(all=True, states=frozenset(("exited",)), labels=asked.labels, ids=asked.ids)
    for value in (*filters.get("publish", ()), *filters.get("expose", ())):
        _fits(value, None, "")
    found = [one for one in await r.engine.list(asked) if await _chosen(r, one, filters)]
    rows = []
    for one in found[: limit if limit > 0 else None]:
        with contextlib.suppress(NotFound):
            rows.append(await shown(r, one))
    return await sizes.added(r, rows) if r.flag("size") else rows


async def shown(r: Req, one: Sandbox) -> dict[str, Any]:
    """Its row. Raises NotFound."""
    detail = await r.engine.inspect(one.id)
    return views.row(one, image_id(r, one), views.mounts(detail.spec), time.time(), r.gateway)


def _states(wanted: list[str]) -> frozenset[Any]:
    for state in wanted:
        if state not in (*_STATES, "restarting", "removing"):
            raise Invalid("", f"invalid filter 'status={state}'")
    return frozenset(
        {"exited" if state == "restarting" else "dead" if state == "removing" else state for state in wanted}
    )


def _labels(texts: list[str]) -> dict[str, str | None]:
    return {key: value if equals else None for key, equals, value in (text.partition("=") for text in texts)}


async def _chosen(r: Req, one: Sandbox, filters: dict[str, list[str]]) -> bool:
    tests = {
        "name": lambda value: re.search(value, "/" + one.name) is not None or value.removeprefix("/") == one.name,
        "ancestor": lambda value: value in (one.image, image_id(r, one)) or f"{value}:latest" == one.image,
        "exited": lambda value: one.exit is not None and str(one.exit.code) == value,
        "network": lambda value: value == views.network_name(one.network),
        "health": lambda value: value == (one.health or "none"),
        "status": lambda value: value == views.state(one) or value == "removing",
        "publish": lambda value: any(_fits(value, port.host, port.protocol) for port in one.ports),
        "expose": lambda value: any(_fits(value, port.container, port.protocol) for port in one.ports),
    }  # fmt: skip
    for name, values in filters.items():
        if name in ("before", "since"):
            times = await _times(r, values)
            if not any(one.created < at if name == "before" else one.created > at for at in times):
                return False
        elif name == "volume":
            kept = views.mounts((await r.engine.inspect(one.id)).spec)
            if not any(value in (mount.get("Name"), mount["Destination"]) for mount in kept for value in values):
                return False
        elif name in tests:
            try:
                if not any(tests[name](value) for value in values):
                    return False
            except re.error as failure:
                raise Invalid("", f"invalid filter '{name}': {failure}") from None
    return True


def _fits(value: str, port: int | None, protocol: str) -> bool:
    """Whether a port is one of PORT[-PORT][/PROTOCOL]. Raises Invalid."""
    match = _PORTS.fullmatch(value)
    if match is None:
        raise Invalid("", f"invalid filter: {value!r} is no PORT[-PORT][/PROTOCOL]")
    first = int(match[1])
    return port is not None and first <= port <= int(match[2] or first) and protocol == (match[3] or "tcp")


async def _times(r: Req, refs: list[str]) -> list[float]:
    return [(await r.engine.inspect(r.find(ref))).sandbox.created for ref in refs]


async def inspect(r: Req) -> Any:
    id = r.id
    detail = await r.engine.inspect(id)
    image = image_id(r, detail.sandbox)
    size = await sizes.of(r, id, image) if r.flag("size") else {}
    return size | views.inspect(
        detail, image_of(r, detail.spec, id), image, r.state.of(id), id in r.state.stdin_stays, r.gateway
    )


def image_of(r: Req, spec: SandboxSpec, id: str) -> Image | None:
    """The image a container has; None for the host's and one that is gone."""
    with contextlib.suppress(JoeyError):
        return r.images.image(spec.image, id)
    return None


def image_id(r: Req, one: Sandbox) -> str:
    """The image's id; the name of what has none (host)."""
    with contextlib.suppress(JoeyError):
        own = r.images
        digest = own.held(one.id) or (own.store.find(one.image).digest if own.exists else "")
        if digest:
            return own.store.find(digest).config.digest
    return one.image


async def update(r: Req) -> Any:
    """Limits and the restart policy."""
    fields = Fields("HostConfig", await r.json())
    change: dict[str, Any] = {"resources": resources(fields)}
    policy = restart(fields)
    body = await r.json()
    if (body.get("RestartPolicy") or {}).get("Name"):
        change["restart"] = policy
    fields.refuse({"MemorySwappiness": (-1,), "OomKillDisable": (False,)}, {})
    await r.whole(r.engine.update(r.id, codec.convert(Update, change)))
    return {"Warnings": []}


async def commit(r: Req) -> web.Response:
    Fields("", await r.json()).refuse({}, dict.fromkeys(("Cmd", "Env", "Labels", "User"), "say it by changes"))
    id = r.find(r.query.get("container", ""))
    name = r.query.get("repo", "")
    if name and r.query.get("tag"):
        name += f":{r.query['tag']}"
    wanted = CommitBody(
        name=name, changes=r.changes(), message=r.query.get("comment", ""), author=r.query.get("author", ""),
        pause=r.flag("pause", True),
    )  # fmt: skip
    made = await r.whole(_snapshots(r).commit(id, wanted))
    r.images.changed()
    _tell(r, "commit", id, comment=wanted.message)
    return answer({"Id": r.images.store.find(made.id).config.digest}, status=201)


def _snapshots(r: Req) -> Any:
    found = getattr(r.engine, "snapshots", None)
    if found is None:
        raise Refused("snapshots", "this engine keeps no images")
    return found


async def changes(r: Req) -> Any:
    kinds = {"C": 0, "A": 1, "D": 2}
    return [{"Path": one.path, "Kind": kinds[one.kind]} for one in await _snapshots(r).changes(r.id)]


async def prune(r: Req) -> Any:
    filters = r.filters("label", "until")
    if "until" in filters:
        raise Refused("until", "Joey prunes by label, not by time")
    gone, freed = [], 0
    labels = _labels(filters.get("label", []))
    for one in await r.engine.list(Filter(states=frozenset(("created", "exited", "dead")), labels=labels)):
        with contextlib.suppress(NotFound, Conflict):
            size = await sizes.written(r, one.id)
            await r.whole(r.engine.remove(one.id))
            r.state.forget(one.id)
            gone.append(one.id)
            freed += size
    return {"ContainersDeleted": gone, "SpaceReclaimed": freed}


ROUTES = (
    Route("POST", "/containers/create", create, "name platform"),
    Route("GET", "/containers/json", index, "all limit size filters"),
    Route("POST", "/containers/prune", prune, "filters"),
    Route("GET", "/containers/{id}/json", inspect, "size"),
    Route("GET", "/containers/{id}/changes", changes),
    Route("POST", "/containers/{id}/start", start),
    Route("POST", "/containers/{id}/stop", stop, "t signal"),
    Route("POST", "/containers/{id}/restart", restart_container, "t signal"),
    Route("POST", "/containers/{id}/kill", kill, "signal"),
    Route("POST", "/containers/{id}/pause", pause),
    Route("POST", "/containers/{id}/unpause", unpause),
    Route("POST", "/containers/{id}/wait", wait, "condition"),
    Route("POST", "/containers/{id}/rename", rename, "name"),
    Route("POST", "/containers/{id}/update", update),
    Route("DELETE", "/containers/{id}", remove, "v force link"),
    Route("POST", "/commit", commit, "container repo tag comment author changes pause"),
)
