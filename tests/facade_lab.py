"""The façades of AWS Lambda and Function Compute over Joey's functions, whose instances are this process: what is sent
as code is run here. For tests of what lies between a real SDK and the functions' service.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from joey.api.auth import KeyBody
from joey.api.facades.signed import Credentials, Signed
from joey.api.service import Service
from joey.api.table import table
from joey.functions.deploy import Deployments
from joey.functions.pool import Deployed
from joey.functions.wire import Answer, Failure, Head, StartFailed
from joey.testing.engine import FakeEngine


def zipped(**files: str) -> bytes:
    """A zip archive of name.py -> text."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.py"), text)
    return out.getvalue()


def unzipped(archive: bytes) -> dict[str, str]:
    """The other way round."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name.removesuffix(".py"): opened.read(name).decode() for name in opened.namelist()}


class Context:
    def __init__(self, head: Head, deployed: Deployed) -> None:
        self.aws_request_id = self.request_id = head.id
        self.invoked_function_arn = head.arn
        self.client_context = head.client_context
        self.function_version = deployed.version.version


class Runner:
    """An instance."""

    def __init__(self, deployed: Deployed, code: Path, layers: Path | None, loop: asyncio.AbstractEventLoop) -> None:
        self.deployed, self.id = deployed, "instance"
        self._work: set[asyncio.Future[Answer]] = set()
        self.gone: asyncio.Future[Failure] = loop.create_future()
        module, _, name = deployed.version.spec.handler.rpartition(".")
        space: dict[str, Any] = {"__name__": module}
        try:
            if layers is not None:
                space["LAYERS"] = layers
            exec((code / f"{module}.py").read_text(), space)
            self.handler: Callable[[Any, Context], Any] = space[name]
        except Exception as error:
            raise StartFailed(Failure("Runtime.ImportModuleError", str(error))) from None

    def submit(self, head: Head, body: bytes, timeout: float) -> asyncio.Future[Answer]:
        work = asyncio.ensure_future(self._answer(head, body))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        return work

    @property
    def in_flight(self) -> int:
        return len(self._work)

    async def _answer(self, head: Head, body: bytes) -> Answer:
        as_json = self.deployed.version.spec.event_format == "json"
        begun = time.monotonic()
        try:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                event = json.loads(body) if as_json else body
                found = await asyncio.to_thread(self.handler, event, Context(head, self.deployed))
            if hasattr(found, "__next__"):
                return Answer(chunks=self._pieces(found), head={}, logs=printed.getvalue().encode())
            text = json.dumps(found) if as_json else found
            answer = text.encode() if isinstance(text, str) else text
        except Exception as error:
            failure = Failure(type(error).__name__, str(error), ["here"], head.id)
            return Answer(failure=failure, logs=printed.getvalue().encode(), seconds=time.monotonic() - begun)
        return Answer(body=answer, logs=printed.getvalue().encode(), seconds=time.monotonic() - begun)

    async def _pieces(self, found: Iterator[str]) -> AsyncIterator[bytes]:
        for piece in found:
            yield piece.encode()

    @property
    def ready(self) -> bool:
        return not self.gone.done()

    async def stop(self, grace: float | None = None) -> None:
        if self._work and grace != 0:
            await asyncio.wait(self._work, timeout=grace)
        for work in tuple(self._work):
            work.cancel()
        if not self.gone.done():
            self.gone.set_result(Failure("Sandbox.Stopped", "stopped"))


class InProcess(Deployments):
    """Everything of the service but instances."""

    async def _instance(self, deployed: Deployed) -> Runner:
        paths = await self.codes.prepare(deployed.version.spec)
        assert paths.code is not None
        return Runner(deployed, paths.code, paths.layers, asyncio.get_running_loop())


class Lab:
    """A server in a thread. `credentials` as `joey env` gives them; `another` for a key made for it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._main(ready)))
        self._thread.start()
        ready.wait(20)
        self.credentials = self.access()

    async def _main(self, ready: threading.Event) -> None:
        engine = FakeEngine()
        await engine.open()
        self.service = Service(engine, table())
        self.service.functions = self.functions = InProcess(engine, None)
        self.facade: Signed = getattr(self.service, self.kind)
        ready.set()
        await self._ended.wait()
        await self.facade.close()
        await self.functions.close()
        self.service.database.close()
        await engine.close(stop_launcher=True)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def access(self, ref: str = "") -> Credentials:
        found: Credentials = self.call(self.facade.access(ref))
        return found

    def another(self, name: str, admin: bool = False) -> Credentials:
        async def make() -> None:
            self.service.access.create(KeyBody(name=name, admin=admin))

        self.call(make())
        return self.access(name)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        self.loop.close()


@contextlib.contextmanager
def lab(kind: str) -> Iterator[Lab]:
    """kind: aws_lambda or fc."""
    found = Lab(kind)
    try:
        yield found
    finally:
        found.close()
