"""A server over an engine in a thread, for tests whose client blocks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from joey.api.auth import KeyBody
from joey.api.config import Settings
from joey.api.keys import ENDED
from joey.api.listeners import BACKLOG, Listener, listen
from joey.api.server import make_app
from joey.api.server import serving as serve_on
from joey.api.service import Service
from joey.api.table import table
from joey.engine.interface import Engine
from joey.testing.engine import FakeEngine

T = TypeVar("T")


@dataclass
class Served:
    """A running server: its socket, its engine, and the loop both live on. With `tcp` also `url`, which takes `key`, an
    administrator's.
    """

    path: str
    engine: Engine
    loop: asyncio.AbstractEventLoop
    url: str = ""
    key: str = ""

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 20) -> T:
        """Run `work` on the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)


@contextlib.contextmanager
def serving(
    home: Path, make: Callable[[], Engine] = FakeEngine, settings: Settings | None = None, *, tcp: bool = False
) -> Iterator[Served]:
    """Serve a new engine on `home`/run/api.sock inside the block; end it and its processes afterwards."""
    ready: threading.Event = threading.Event()
    found: list[Served] = []
    failed: list[BaseException] = []
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        engine = make()
        await engine.open()
        service = Service(engine, table(), home / "api.db", settings)
        app = make_app(engine, service)
        (home / "run").mkdir(parents=True, exist_ok=True)
        path = home / "run" / "api.sock"
        stop.append(lambda: loop.call_soon_threadsafe(app[ENDED].set))
        try:
            async with contextlib.AsyncExitStack() as stack:
                local = [Listener(listen(path), True, str(path), path=path)]
                await stack.enter_async_context(serve_on(app, local, settings))
                found.append(Served(str(path), engine, loop))
                if tcp:
                    sock = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
                    found[0].url = "http://127.0.0.1:{1}".format(*sock.getsockname())
                    found[0].key = service.access.create(KeyBody(name="test", admin=True)).key
                    remote = make_app(engine, service, local=False)
                    await stack.enter_async_context(serve_on(remote, [Listener(sock, False, "")], settings))
                ready.set()
                await app[ENDED].wait()
        finally:
            service.database.close()
            await engine.close(stop_launcher=True)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="joey-server")
    thread.start()
    ready.wait()
    try:
        if found:
            yield found[0]
    finally:
        if stop:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                stop[0]()
        thread.join()
    if failed:
        raise failed[0]
