"""The HTTP API over an engine, as an aiohttp application, and the server that listens on sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from weakref import WeakSet

from joey.api import problem, streams
from joey.api.config import Settings
from joey.api.keys import ACTIVITY, ENDED, ENGINE, SERVICE, STREAMS
from joey.api.light import RequestHandler, web
from joey.api.listeners import BACKLOG, Listener, listen
from joey.api.requests import MAX_BODY
from joey.api.service import Service
from joey.api.table import table
from joey.engine.interface import Engine

__all__ = ["listen", "make_app", "running", "serving"]

_MAX_LINE = 16384
"""Of a request's first line: room for the longest path the kernel takes (4,095 bytes), every byte as %XX."""


def make_app(engine: Engine, service: Service | None = None, *, local: bool = True) -> web.Application:
    """The application of one listener. `app[ENDED]` is set to make the server end.

    service: shared by several listeners, made for this one if none is given. local: a unix socket's, whose clients are
    administrators without a key.
    """
    service = service or Service(engine, table())
    app = web.Application(client_max_size=MAX_BODY)
    app[SERVICE] = service
    app[ENGINE] = engine
    app[ENDED] = service.ended
    app[ACTIVITY] = service.activity
    app[STREAMS] = WeakSet()
    app.on_shutdown.append(streams.end_all)
    app.on_shutdown.append(_close_doorway)
    # One route for all: ours are found, checked and answered in one place (joey.api.service).
    app.router.add_route("*", r"/{tail:[\s\S]*}", service.handler(local))
    return app


async def _close_doorway(app: web.Application) -> None:
    await app[SERVICE].functions.close()
    await app[SERVICE].doorway.close()
    await app[SERVICE].e2b.close()
    await app[SERVICE].aws_lambda.close()
    await app[SERVICE].fc.close()
    await app[SERVICE].docker.close()


@contextlib.asynccontextmanager
async def running(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on a listening socket inside the block. A handler whose client leaves is cancelled."""
    async with serving(app, [Listener(sock, True, "")]):
        yield


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, listeners: Iterable[Listener], settings: Settings | None = None
) -> AsyncIterator[None]:
    """Serve `app` on sockets of one kind (unix or TCP) inside the block. The sockets are closed at its end."""
    settings = settings or Settings()
    listeners = list(listeners)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_silent(),
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=1.0,
        lingering_time=1.0,
        keepalive_timeout=settings.header_timeout,
        max_headers=64,
        max_line_size=_MAX_LINE,
    )
    servers: list[asyncio.Server] = []
    try:
        await runner.setup()
        loop = asyncio.get_running_loop()
        for listener in listeners:
            extra: dict[str, Any] = {"ssl": listener.tls, "ssl_handshake_timeout": 10.0} if listener.tls else {}
            factory = _factory(runner, None if listener.local else settings.max_connections)
            servers.append(await loop.create_server(factory, sock=listener.sock, backlog=BACKLOG, **extra))
        yield
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
        for listener in listeners:
            listener.sock.close()
            if listener.path is not None:
                listener.path.unlink(missing_ok=True)


def _factory(runner: web.AppRunner, most: int | None) -> Callable[[], asyncio.BaseProtocol]:
    server = runner.server
    assert server is not None

    arguments = getattr(server, "_kwargs", None)  # without it what is no HTTP is answered in aiohttp's own words

    def make() -> asyncio.BaseProtocol:
        if most is not None and len(server.connections) >= most:
            return _Refused()
        return server() if arguments is None else _Handler(server, loop=asyncio.get_running_loop(), **arguments)

    return make


class _Handler(RequestHandler):
    """What is no HTTP, or more of it than is allowed, is answered by a problem document too."""

    __slots__ = ()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is sent already")
        if status >= 500 and exc is not None:
            response = problem.defect(exc)
        else:
            detail = (message or "this is not HTTP/1.1").partition("\n")[0].strip(" :")
            response = problem.answer(status, "http", "Bad request", detail)
        response.force_close()
        return response


class _Refused(asyncio.Protocol):
    """A connection too many: every one costs a descriptor, of which the engine needs some itself."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _silent() -> logging.Logger:
    """What a client sends that is no HTTP is answered, not logged with a traceback each time. Defects of ours are
    logged where they are answered (joey.api.problem).
    """
    logger = logging.getLogger("joey.api.http")
    logger.setLevel(logging.CRITICAL)
    return logger
