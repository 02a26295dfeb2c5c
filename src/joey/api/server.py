"""The HTTP API over an engine, as an aiohttp application, and the server that listens on a unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from weakref import WeakSet

from joey.api import streams
from joey.api.keys import ACTIVITY, ENDED, ENGINE, SERVICE, STREAMS
from joey.api.light import web
from joey.api.requests import MAX_BODY
from joey.api.service import Service
from joey.api.table import table
from joey.engine.interface import Engine

_SUN_PATH = 107


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
    # One route for all: ours are found, checked and answered in one place (joey.api.service).
    app.router.add_route("*", "/{tail:.*}", service.handler(local))
    return app


def listen(path: Path, backlog: int = 4096) -> socket.socket:
    """A listening unix socket at `path`, for its owner only. Replaces a socket nobody listens on. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A path may be longer than sun_path; its folder's descriptor is not.
        address = str(path) if len(os.fsencode(path)) <= _SUN_PATH else f"/proc/self/fd/{folder}/{path.name}"
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # the mode is right from the first moment
        try:
            sock.bind(address)
        finally:
            os.umask(before)
        sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def running(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on a listening socket inside the block. A handler whose client leaves is cancelled."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=1.0,
        lingering_time=1.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
        sock.close()
