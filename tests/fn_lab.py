"""Instances of functions that contain nothing, and time that passes at once: for tests of what runs functions."""

import asyncio
import itertools
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

from joey.functions.pool import Deployed
from joey.functions.wire import STOPPED, Answer, Failure, Head, StartFailed
from joey.model.function import FunctionSpec, Version

Handler = Callable[[Head, bytes], Awaitable[Answer]]


class _Selector(selectors.SelectSelector):
    """Waiting takes no time: the clock goes on instead."""

    clock = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing")
        self.clock += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes at once when there is nothing to do."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.clock


def virtual(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())  # type: ignore[arg-type]
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class FakeRunner:
    """An instance that is a coroutine."""

    numbers = itertools.count(1)

    def __init__(self, lab: "Lab") -> None:
        self.id = f"i{next(self.numbers):04}"
        self.gone: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self._lab = lab
        self._work: dict[asyncio.Future[Answer], asyncio.Future[Answer]] = {}

    @property
    def ready(self) -> bool:
        return not self.gone.done()

    @property
    def in_flight(self) -> int:
        return len(self._work)

    def submit(self, head: Head, body: bytes, timeout: float) -> asyncio.Future[Answer]:
        assert not self.gone.done(), "asked of an instance that is gone"
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        work = asyncio.ensure_future(self._do(head, body))
        self._work[work] = answer
        work.add_done_callback(self._done)
        return answer

    async def _do(self, head: Head, body: bytes) -> Answer:
        self._lab.under_way += 1
        self._lab.most_under_way = max(self._lab.most_under_way, self._lab.under_way)
        try:
            return await self._lab.handler(head, body)
        finally:
            self._lab.under_way -= 1

    def _done(self, work: asyncio.Future[Answer]) -> None:
        answer = self._work.pop(work)
        if not answer.done():
            answer.set_result(Answer(failure=Failure(STOPPED, "ended")) if work.cancelled() else work.result())

    async def stop(self, grace: float | None = None) -> None:
        if self._work and grace != 0:
            await asyncio.wait(list(self._work), timeout=grace)
        for work in list(self._work):
            work.cancel()
        self.end("stopped")

    def end(self, reason: str) -> None:
        if not self.gone.done():
            self._lab.alive.discard(self)
            self.gone.set_result(Failure(reason, reason))


class Lab:
    """What makes fake instances. seconds: of a start; failures: raised by the next starts, one each."""

    def __init__(self, handler: Handler | None = None, seconds: float = 0.01) -> None:
        self.handler = handler or echo
        self.seconds = seconds
        self.failures: list[Exception] = []
        self.alive: set[FakeRunner] = set()
        self.started: list[str] = []
        self.under_way = self.most_under_way = self.most_alive = self.starting = self.most_starting = 0

    async def start(self, deployed: Deployed) -> FakeRunner:
        self.starting += 1
        self.most_starting = max(self.starting, self.most_starting)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.starting -= 1
        self.started.append(deployed.version.name)
        if self.failures:
            raise self.failures.pop(0)
        runner = FakeRunner(self)
        self.alive.add(runner)
        self.most_alive = max(self.most_alive, len(self.alive))
        return runner


async def echo(head: Head, body: bytes) -> Answer:
    return Answer(body=body)


def lasting(seconds: float) -> Handler:
    """A handler that takes so long."""

    async def handler(head: Head, body: bytes) -> Answer:
        await asyncio.sleep(seconds)
        return Answer(body=body)

    return handler


def failed(type: str = "ValueError") -> Answer:
    return Answer(failure=Failure(type, "no"))


def unloadable() -> StartFailed:
    return StartFailed(Failure("Runtime.ImportModuleError", "No module named 'x'"))


def deployed(name: str = "f", owner: str = "", **fields: Any) -> Deployed:
    return Deployed(owner, Version(spec=FunctionSpec(name=name, handler="index.handler", **fields)))
