"""The application: every request of a Docker client goes through here."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any
from weakref import WeakSet

from joey.api.facades.docker import (
    anonymous,
    build,
    containers,
    data,
    events,
    execs,
    files,
    images,
    networks,
    system,
    top,
    volumes,
)
from joey.api.facades.docker.base import VERSION, Req, Route, answer, described, error, split
from joey.api.facades.docker.hijack import CONNECTIONS, end_all
from joey.api.facades.docker.state import State
from joey.api.light import web
from joey.api.problem import log
from joey.api.requests import MAX_BODY
from joey.api.service import Service
from joey.model.errors import JoeyError

ROUTES: tuple[Route, ...] = (
    *system.ROUTES, *containers.ROUTES, *execs.ROUTES, *data.ROUTES, *events.ROUTES, *files.ROUTES, *images.ROUTES,
    *networks.ROUTES, *top.ROUTES, *volumes.ROUTES, *build.ROUTES,
)  # fmt: skip
_COMPILED = tuple((route, route.pattern) for route in ROUTES)


def make(service: Service) -> web.Application:
    """The application over the engine of `service`."""
    state = State()

    async def handle(request: web.Request) -> web.StreamResponse:
        service.activity.open += 1
        try:
            response = await _answer(request, service, state)
        except JoeyError as failure:
            response = described(failure)
        except TimeoutError:
            response = error(408, "the body did not come in time")
        except web.HTTPException as failure:
            response = error(failure.status, failure.text or failure.reason)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as failure:
            mark = secrets.token_hex(4)
            log.error("defect %s", mark, exc_info=failure)
            response = error(500, f"defect {mark} in the engine: {type(failure).__name__}; see run/daemon.log")
        finally:
            service.activity.done()
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    app = web.Application(client_max_size=MAX_BODY)
    app[CONNECTIONS] = WeakSet()

    async def begin(app: web.Application) -> None:
        """What an engine before this one has left to do."""
        await anonymous.sweep(service.engine, state)
        if anonymous.any_left(service.engine):
            anonymous.follow(service.engine, state)

    async def end(app: web.Application) -> None:
        state.news.close()
        if state.sweeper is not None:
            state.sweeper.cancel()

    app.on_startup.append(begin)
    app.on_shutdown.append(end)
    app.on_shutdown.append(end_all)
    app.router.add_route("*", r"/{tail:[\s\S]*}", handle)
    return app


HEADERS = {"Api-Version": VERSION, "Docker-Experimental": "false", "Ostype": "linux", "Server": "Joey"}


async def _answer(request: web.Request, service: Service, state: State) -> web.StreamResponse:
    path, query = split(request.raw_path)
    known = False
    for route, pattern in _COMPILED:
        if match := pattern.fullmatch(path):
            known = True
            if route.method == request.method:
                asked = Req(request, service, state, match.groupdict(), query)
                route.check(asked.query)
                value: Any = await route.handler(asked)
                if isinstance(value, web.StreamResponse):
                    return value
                return web.Response(status=204) if value is None else _json(value, route.status)
    system.no_swarm(path)
    if known:
        return error(405, f"{request.method} is not for {path}")
    return error(404, f"page not found: Joey does not serve {request.method} {path} (docs/docker.md)")


def _json(value: Any, status: int) -> web.Response:
    return answer(value, status=status)
