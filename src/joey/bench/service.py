"""`joey bench service`: the SDK against an engine of its own in a process of its own, over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import joey
from joey.bench import machine
from joey.bench.lab import drive, folder
from joey.bench.leftovers import Watch
from joey.bench.report import Progress, Row, median_ms, number, quantiles, spread
from joey.client._async import service as async_service
from joey.client._sync import service as sync_service
from joey.client.bodies import process
from joey.host.instance import Instance
from joey.model import frames
from joey.model.errors import JoeyError

HELP = "the service as Python programs see it: create, commands, files and streams through the SDK"
_CLIENTS = 50
_LANES = 16
_MIB = 1 << 20


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=200, help="calls of each kind, one after the other (200)")
    parser.add_argument(
        "--creates", type=int, default=1000, help=f"sandboxes made by {_CLIENTS} clients at once (1000)"
    )
    parser.add_argument("--commands", type=int, default=2000, help=f"commands, {_LANES} at a time (2000)")
    parser.add_argument("--many", type=int, default=3000, help="sandboxes of one create_many, 0 for none (3000)")
    parser.add_argument("--mib", type=int, default=512, help="MiB of output streamed (512)")


class _Bench:
    """What has failed, and the measurements."""

    def __init__(self) -> None:
        self.failed = 0
        self.failures: list[str] = []

    def fail(self, error: BaseException) -> None:
        """Count a failure; the first few are kept as text."""
        self.failed += 1
        if len(self.failures) < 5:
            self.failures.append(f"{type(error).__name__}: {error}")

    def repeated(self, label: str, count: int, work: Callable[[], float]) -> list[float]:
        """Seconds of each call that worked; a tenth of them before that are not counted."""
        found: list[float] = []
        warm = max(1, count // 10)
        with Progress(label, count + warm) as progress:
            for at in range(count + warm):
                try:
                    took = work()
                    if at >= warm:
                        found.append(took)
                except JoeyError as error:
                    self.fail(error)
                progress.step()
        return found

    def create(self, **options: Any) -> float:
        """Sandbox.create until the output of a command in it is here; seconds."""
        begin = time.perf_counter()
        sandbox = joey.Sandbox.create(**options)
        try:
            result = sandbox.commands.run(["echo", "here"])
            took = time.perf_counter() - begin
            if result.stdout != "here\n":
                raise JoeyError("echo", f"it said {result!r}")
            return took
        finally:
            sandbox.kill()

    def pooled(self, count: int) -> list[float] | None:
        """The same from a warm pool; None while there are none."""
        pool_type = getattr(joey, "Pool", None)
        if pool_type is None or "pool" not in inspect.signature(joey.Sandbox.create).parameters:
            return None
        with pool_type("host", size=20) as pool:
            return self.repeated("create, pooled", count, lambda: self.create(pool=pool))

    def files(self, sandbox: joey.Sandbox) -> Callable[[], float]:
        """Write and read 1 MiB."""
        data = os.urandom(_MIB)

        def once() -> float:
            begin = time.perf_counter()
            sandbox.files.write("/tmp/file", data)
            again = sandbox.files.read("/tmp/file", "bytes")
            took = time.perf_counter() - begin
            if again != data:
                raise JoeyError("files", "what was read is not what was written")
            return took

        return once

    def output(self, sandbox: joey.Sandbox, mib: int) -> float | None:
        """MiB a second of what a command prints."""
        size, seen = mib * _MIB, 0
        try:
            begin = time.perf_counter()
            handle = sandbox.commands.attached(process(["head", "-c", str(size), "/dev/zero"]))
            while handle.exit_code is None:
                seen += sum(len(data) for kind, data in handle.pieces() if kind == frames.STDOUT)
            if seen != size:
                raise JoeyError("stdout", f"{seen} bytes came of {size}")
            return mib / (time.perf_counter() - begin)
        except JoeyError as error:
            self.fail(error)
            return None

    async def creates(self, count: int) -> float | None:
        """Sandboxes a second by so many clients, one request each."""
        made: list[joey.AsyncSandbox] = []
        with Progress(f"create, {_CLIENTS} clients", count) as progress:

            async def one(_: int) -> None:
                try:
                    made.append(await joey.AsyncSandbox.create())
                except JoeyError as error:
                    self.fail(error)
                progress.step()

            begin = time.perf_counter()
            await drive(count, _CLIENTS, one)
            seconds = time.perf_counter() - begin
        rate = len(made) / seconds if made else None
        await self.remove(made)
        return rate

    async def many(self, count: int) -> float | None:
        """Seconds of one create_many, to its last answer."""
        begin = time.perf_counter()
        made: list[Any] = await joey.AsyncSandbox.create_many(count, on_error="return")
        seconds = time.perf_counter() - begin
        good = [one for one in made if isinstance(one, joey.AsyncSandbox)]
        for one in made:
            if not isinstance(one, joey.AsyncSandbox):
                self.fail(one or JoeyError("create_many", "no answer"))
        await self.remove(good)
        return seconds if len(good) == count else None

    async def remove(self, made: list[joey.AsyncSandbox]) -> None:
        """Kill them, several at a time."""
        with Progress("remove", len(made)) as progress:

            async def one(at: int) -> None:
                with contextlib.suppress(JoeyError):
                    await made[at].kill()
                progress.step()

            await drive(len(made), 32, one)

    async def commands(self, count: int) -> float | None:
        """`true` a second, so many at a time, each lane in a sandbox of its own."""
        lanes: list[joey.AsyncSandbox] = await joey.AsyncSandbox.create_many(_LANES)
        done = 0
        with Progress(f"true, {_LANES} at a time", count) as progress:

            async def lane(at: int) -> None:
                nonlocal done
                for _ in range(at, count, _LANES):
                    try:
                        await lanes[at].commands.run(["true"], check=True)
                        done += 1
                    except JoeyError as error:
                        self.fail(error)
                    progress.step()

            begin = time.perf_counter()
            await drive(_LANES, _LANES, lane)
            seconds = time.perf_counter() - begin
        await self.remove(lanes)
        return done / seconds if done else None


async def run(options: Namespace) -> dict[str, Any]:
    """create_ms, pooled_create_ms, creates_per_second, commands_per_second, file_roundtrip_ms, stdout_mib_per_second,
    create_many {count, seconds}, failed, leftovers, machine.
    """
    bench = _Bench()
    async with serving() as watch:
        create = await asyncio.to_thread(bench.repeated, "create", options.count, bench.create)
        pooled = await asyncio.to_thread(bench.pooled, options.count)
        sandbox = await asyncio.to_thread(joey.Sandbox.create)
        files = await asyncio.to_thread(bench.repeated, "file of 1 MiB", options.count, bench.files(sandbox))
        output = await asyncio.to_thread(bench.output, sandbox, options.mib)
        await asyncio.to_thread(sandbox.kill)
        commands = await bench.commands(options.commands)
        creates = await bench.creates(options.creates)
        many = await bench.many(options.many) if options.many else None
        async_service.close()
        sync_service.close()
    left = await watch.gone()
    return {
        "create_ms": quantiles(create),
        "pooled_create_ms": quantiles(pooled) if pooled else None,
        "creates_per_second": _round(creates),
        "commands_per_second": _round(commands),
        "file_roundtrip_ms": median_ms(files),
        "stdout_mib_per_second": _round(output),
        "create_many": {"count": options.many, "seconds": many and round(many, 2)},
        "count": options.count,
        "failed": bench.failed,
        "failures": bench.failures,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Watch]:
    """An engine in a process of its own, on a home of its own, which JOEY_HOME names meanwhile."""
    from joey.cli.spawn import spawn

    before = {name: os.environ.pop(name, None) for name in ("JOEY_HOME", "JOEY_URL", "JOEY_API_KEY")}
    with folder("bench") as path:
        home = path / "home"
        home.mkdir(mode=0o700)
        os.environ["JOEY_HOME"] = str(home)
        try:
            instance = Instance.open(home)
            watch = Watch(instance)
            try:
                await asyncio.to_thread(spawn)
                yield watch
            finally:
                await asyncio.to_thread(_end, home)
                await watch.gone()
        finally:
            os.environ.pop("JOEY_HOME")
            os.environ.update({name: value for name, value in before.items() if value is not None})


def _end(home: Path) -> None:
    """End the engine and remove all it made."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((home / "run/daemon.lock").read_text())
        fd = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            if not select.select([fd], [], [], 15)[0]:
                os.kill(pid, signal.SIGKILL)
                select.select([fd], [], [], 5)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        finally:
            os.close(fd)
    subprocess.run([sys.executable, "-P", "-m", "joey.api.daemon", "--reset"], stdout=subprocess.DEVNULL, check=False)
    shutil.rmtree(home / "run", ignore_errors=True)  # the locks and the log of what has just ended


def rows(result: dict[str, Any]) -> list[Row]:
    pooled = result["pooled_create_ms"]
    many = result["create_many"]
    found = [
        ("machine", machine.describe(result["machine"])),
        ("create to output", spread(result["create_ms"])),
        ("the same, pooled", spread(pooled) if pooled else "no pools yet"),
        ("creates", f"{number(result['creates_per_second'])} a second, {_CLIENTS} clients"),
        ("commands", f"{number(result['commands_per_second'])} a second, {_LANES} at a time"),
        ("file of 1 MiB", f"{number(result['file_roundtrip_ms'], 'ms')} to write and read"),
        ("stdout", f"{number(result['stdout_mib_per_second'], 'MiB/s')}"),
    ]
    if many["count"]:
        found.append((f"create_many({many['count']})", number(many["seconds"], "s")))
    found.append(("failed", str(result["failed"])))
    found.append(("left over", str(result["leftovers"])))
    return found + [("failure", text) for text in result["failures"]]
