"""An engine of one's own for a benchmark: on a temporary JOEY_HOME, in this process, with nothing left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from joey.bench.leftovers import Watch
from joey.bench.report import Progress, say
from joey.engine.interface import Attachment, Engine
from joey.host.instance import Instance
from joey.model.errors import Busy, JoeyError
from joey.model.spec import Process, SandboxSpec
from joey.native import binary

T = TypeVar("T")
ANSWER_SECONDS = 60.0
"""A program that has not answered by then counts as failed."""
BUSY_SECONDS = 20.0
"""So long an engine that says it is busy is asked again."""
PROBE = "/joey-probe"


class Stopped(Exception):
    """A signal ended the benchmark; everything has been cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Answer(NamedTuple):
    """A program inside has answered. seconds: from the request until then. pid: of the host."""

    id: str
    seconds: float
    pid: int


class NoAnswer(Exception):
    """The program inside ended, or kept silent, without its answer."""


def guarded(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` on an event loop of its own. SIGINT, SIGTERM and SIGHUP cancel it once, and its clean-up is then left
    to finish; raises Stopped.
    """

    async def main() -> T:
        task = asyncio.ensure_future(work())
        got: list[int] = []

        def stop(number: int) -> None:
            if not got:
                say("\nstopping; removing what was made …")
                task.cancel()
            got.append(number)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            if got:
                raise Stopped(got[0]) from None
            raise

    return asyncio.run(main())


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread. Cancelled, its event is set, and it is left to finish."""
    stop = threading.Event()
    done = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait((done,))
        raise


@contextlib.contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """A directory below the system's temporary one, removed with all in it. Others may not list it, only pass."""
    path = Path(tempfile.mkdtemp(prefix=f"joey-{purpose}-"))
    try:
        path.chmod(0o711)
        yield path
    finally:
        # Never below a mount: that would be somebody's files.
        if f" {path}/" not in Path("/proc/self/mountinfo").read_text():
            shutil.rmtree(path, ignore_errors=True)


def make_rootfs(path: Path) -> Path:
    """A root file system of one static program, /joey-probe, and the directories any runtime mounts on."""
    for name in ("proc", "dev", "sys", "tmp", "run", "etc", "root"):
        (path / name).mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf", "passwd", "group"):
        (path / "etc" / name).touch()
    (path / "etc/hosts").write_text("127.0.0.1\tlocalhost\n")  # one that is empty counts as none
    (path / "run/.containerenv").touch()
    shutil.copy(binary("joey-probe"), path / PROBE[1:])
    (path / PROBE[1:]).chmod(0o755)
    return path


def probe_spec(rootfs: Path, verb: str, text: str) -> SandboxSpec:
    """A sandbox with the default hardening and limits whose program says `text` and ends (`answer`), stays (`idle`),
    or stays with its standard streams closed (`quiet`).
    """
    return SandboxSpec(rootfs=os.fspath(rootfs), process=Process(argv=(PROBE, verb, text)))


EngineFactory = Callable[[Instance], Engine]


def real_engine(instance: Instance) -> Engine:
    from joey.engine.supervisor import Engine as Real

    return Real(instance)


class Lab:
    """One opened engine, and what a benchmark does with it.

    `failures`: the first few errors, as text. `retries`: how often the engine was busy and asked again.
    """

    def __init__(self, engine: Engine, instance: Instance, rootfs: Path, watch: Watch) -> None:
        self.engine = engine
        self.instance = instance
        self.rootfs = rootfs
        self.watch = watch
        self.ids: list[str] = []
        self.failures: list[str] = []
        self.failed = 0
        self.retries = 0
        self._closed = False

    async def launch(self, spec: SandboxSpec, text: str) -> Answer:
        """Start a sandbox and wait until its program has said `text`. Raises JoeyError, NoAnswer."""
        begin = time.perf_counter()
        while True:
            try:
                started = await self.engine.run(spec, attach=True)
                break
            except Busy as busy:
                self.retries += 1
                if time.perf_counter() - begin > BUSY_SECONDS:
                    raise
                await asyncio.sleep(busy.retry_after)
        sandbox = started.sandbox
        self.ids.append(sandbox.id)
        assert started.attachment is not None
        try:
            # Not wait_for: in Python 3.11 it may lose a cancellation that comes together with the answer.
            async with asyncio.timeout(ANSWER_SECONDS):
                await _answer(started.attachment, text.encode())
            return Answer(sandbox.id, time.perf_counter() - begin, sandbox.pid or 0)
        except TimeoutError:
            raise NoAnswer(f"no answer within {ANSWER_SECONDS:.0f} s") from None
        finally:
            await started.attachment.close()

    async def probe(self, number: int, verb: str = "idle") -> Answer | None:
        """Launch the probe program; None (and counted) if it failed."""
        text = f"sandbox {number} of {os.getpid()} answers"
        try:
            return await self.launch(probe_spec(self.rootfs, verb, text), text)
        except (JoeyError, NoAnswer) as error:
            self.fail(error)
            return None

    def fail(self, error: BaseException) -> None:
        """Count a failure; the first few are kept as text."""
        self.failed += 1
        if len(self.failures) < 5:
            self.failures.append(f"{type(error).__name__}: {error}")

    async def prepare(self, slots: int) -> None:
        """Have so many slots ready before the clock starts."""
        await self.engine.prepare(slots)

    async def remove_all(self, parallel: int = 32, progress: Progress | None = None) -> None:
        """Remove every sandbox launched here, as a user would: by force, one request each."""
        ids, self.ids = self.ids, []

        async def one(number: int) -> None:
            with contextlib.suppress(JoeyError):
                await self.engine.remove(ids[number], force=True)
            if progress:
                progress.step()

        await drive(len(ids), parallel, one)

    async def finish(self) -> dict[str, int]:
        """Remove everything the instance made; what is really left then, kind → number."""
        self._closed = True
        await self.engine.reset()
        return await self.watch.gone()

    async def close(self) -> None:
        if not self._closed:
            left = await self.finish()
            if left:
                say(f"left behind in {self.instance.home}: {left}")


async def _answer(attachment: Attachment, text: bytes) -> None:
    got = b""
    while text not in got:
        piece = await attachment.read()
        if piece is None:
            end = await attachment.wait()
            raise NoAnswer(f"the program ended with {end.code} and said {got[-200:]!r}")
        got += piece[1]


@contextlib.asynccontextmanager
async def opened(make: EngineFactory | None = None) -> AsyncIterator[Lab]:
    """A lab on a fresh temporary home. On the way out, also by an error or a signal, everything is removed."""
    with folder("bench") as path:
        home = path / "home"
        home.mkdir(mode=0o700)
        instance = Instance.open(home)
        rootfs = make_rootfs(path / "rootfs")
        watch = Watch(instance)
        engine = (make or real_engine)(instance)
        lab = Lab(engine, instance, rootfs, watch)
        try:
            await engine.open()
            yield lab
        finally:
            await lab.close()


async def drive(
    count: int, parallel: int, one: Callable[[int], Awaitable[Any]], more: Callable[[], bool] = lambda: True
) -> None:
    """Call `one` with 0 … count-1, `parallel` at a time, in order of the numbers, as long as `more` says so.

    The first error, or being cancelled, ends all of it: no call begins after that, even if one under way survives its
    own cancellation, as a step that must not be left half-done may.
    """
    numbers = iter(range(count))
    ended = False

    async def worker() -> None:
        for number in numbers:
            if ended or not more():
                return
            await one(number)

    workers = [asyncio.create_task(worker()) for _ in range(min(parallel, count))]
    try:
        # Not gather: cancelled, that would wait for a worker whose cancellation has been swallowed, and who goes on.
        if workers:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        ended = True
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
