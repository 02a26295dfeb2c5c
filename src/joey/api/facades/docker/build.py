"""docker build by the classic builder's API. BuildKit's session is not served: DOCKER_BUILDKIT=0 docker build."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from joey.api.build import News, carried_out, receive
from joey.api.facades.docker.base import Refused, Req, Route
from joey.api.light import web
from joey.build import session
from joey.build.workshop import NETWORKS, Options
from joey.model import codec
from joey.model.errors import Invalid, JoeyError

_USUAL: dict[str, tuple[str, ...]] = {
    "rm": ("0", "1", "true", "false"), "forcerm": ("0", "1", "true", "false"), "version": ("1",),
    "q": ("1", "0", "true", "false"),
    "cachefrom": ("[]", "null"), "ulimits": ("[]", "null"), "buildid": (), "cgroupparent": (),
    "cpuperiod": ("0",), "cpuquota": ("0",), "cpusetcpus": (), "cpusetmems": (), "cpushares": ("0",), "memory": ("0",),
    "memswap": ("0",), "shmsize": ("0",), "squash": ("0", "false"), "extrahosts": ("[]", "null"),
    "securityopt": ("[]", "null"), "isolation": ("default",), "remote": (), "session": (), "outputs": ("[]", "null"),
}  # fmt: skip
_READ = {"t", "dockerfile", "nocache", "pull", "buildargs", "labels", "target", "networkmode", "platform"}


_HELD = 1000
_NONE_KEPT = "rm=false: a build leaves no containers behind, there are none to keep"
"""Told, not refused: docker-py says rm=False unless it is told otherwise."""


class _News(News):
    """held: what is only told if the build fails (`docker build -q`), None to tell it at once."""

    held: deque[dict[str, Any]] | None = None

    def tell(self, event: dict[str, Any]) -> None:
        line = _said(event)
        if line and self.held is not None:
            self.held.append(line)
        elif line:
            self.add(line)


def _said(event: dict[str, Any]) -> dict[str, Any] | None:
    """An event of the builder's in the words of Docker's stream."""
    if "instruction" in event:
        return {"stream": f"Step {event['step']}/{event['total']} : {event['instruction']}\n"}
    if "output" in event:
        return {"stream": event["output"]}
    if event.get("cached"):
        return {"stream": " ---> Using cache\n"}
    if "warning" in event:
        return {"stream": f"[Warning] {event['warning']}\n"}
    return None


async def build(r: Req) -> web.StreamResponse:
    """The context is the body, the answer a stream of what happens."""
    options, name = _options(r)
    own = r.images
    async with session.folder(own.store) as place:
        extras = await receive(r, place)
        news = _News()
        news.held = deque(maxlen=_HELD) if r.flag("q") else None
        async with carried_out(r.engine, own, place, name, options, extras, news) as task:
            response = await r.stream()
            if not r.flag("rm", True) and not r.flag("q"):
                await response.write(_line({"stream": f"[Warning] {_NONE_KEPT}\n"}))
            await news.follow(task, lambda line: response.write(_line(line)))
            await session.remove(place)
            await response.write(b"".join(_line(line) for line in _outcome(task, r, options, news.held or ())))
            await response.write_eof()
            return response


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


def _outcome(
    task: asyncio.Future[Any], r: Req, options: Options, held: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    failure = task.exception()
    if failure is not None:
        text = str(failure) if isinstance(failure, JoeyError) else f"defect in the engine: {type(failure).__name__}"
        return [*held, {"errorDetail": {"message": text}, "error": text}]
    r.images.changed()
    id = r.images.store.find(task.result().digest).config.digest
    if r.flag("q"):
        return [{"stream": f"{id}\n"}]
    lines: list[dict[str, Any]] = [{"aux": {"ID": id}}, {"stream": f"Successfully built {id[7:19]}\n"}]
    return lines + [{"stream": f"Successfully tagged {tag}\n"} for tag in options.tags]


def _options(r: Req) -> tuple[Options, str]:
    if r.query.get("version") == "2":
        raise Refused("version", "Joey has the classic builder, not BuildKit: DOCKER_BUILDKIT=0 docker build")
    for field, value in r.query.items():
        if field not in _READ and value and value.lower() not in _USUAL.get(field, ()) and field != "buildid":
            raise Refused(field, f"{value!r} is not supported by Joey's builder")
    network = r.query.get("networkmode", "") or "default"
    network = {"bridge": "default"}.get(network, network)
    if network not in NETWORKS:
        raise Refused("networkmode", f"{network!r} is none of {', '.join(NETWORKS)}")
    options = Options(
        tags=tuple(r.many("t")),
        target=r.query.get("target", ""), arguments=_object(r, "buildargs"), labels=_object(r, "labels"),
        no_cache=r.flag("nocache"), pull=r.flag("pull"), network=network, platform=r.query.get("platform", ""),
    )  # fmt: skip
    return options, r.query.get("dockerfile", "") or "Dockerfile"


def _object(r: Req, name: str) -> dict[str, str]:
    text = r.query.get(name, "")
    found = codec.decode(dict[str, Any], text) if text and text != "null" else {}
    if name == "buildargs":  # null: the client was to pass its own variable on, and has none
        found = {key: value for key, value in found.items() if value is not None}
    if bad := [key for key, value in found.items() if not isinstance(value, str)]:
        raise Invalid(name, f"{bad[0]} has no value")
    return found


async def prune(r: Req) -> Any:
    """What a build leaves for the next one are images without a name: those go with `docker image prune`."""
    return {"CachesDeleted": [], "SpaceReclaimed": 0}


_KNOWN = " ".join((*_READ, *_USUAL))
ROUTES = (Route("POST", "/build", build, _KNOWN), Route("POST", "/build/prune", prune, "all filters keep-storage"))
