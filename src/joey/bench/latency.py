"""`joey bench latency`: one sandbox at a time, what it costs the processors, and a whole `joey run`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.churn import resident_kib
from joey.bench.lab import Lab, folder, opened
from joey.bench.leftovers import Watch, descendants, settle
from joey.bench.report import Progress, Row, median_ms, number, quantiles, spread
from joey.host.instance import Instance
from joey.model.errors import HostFailed, JoeyError

HELP = "one launch at a time: until the answer, processor time, and `joey run host true` as a whole"
PAUSE = 0.005
"""Between two launches, so that a slot is ready and what is measured is one launch and nothing beside it."""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=300, help="launches, one after the other (300)")
    parser.add_argument("--commands", type=int, default=30, help="times to run the command `joey run` (30; 0: not)")


async def run(options: Namespace) -> dict[str, Any]:
    """answer_ms, and:

    cpu_ms      medians of kernel + user time: launcher; child (from its birth to its answer, so what it does between
                exec and the answer is in it); launch, the sum of both; engine (mean of this Python process)
    run_ms      the command `joey run --rm host true`, start to end, with the engine up
    engine_mib, launchers_mib    resident, with no sandbox
    """
    async with opened() as lab:
        meter = Meter(lab)
        await meter.run(options.count)
        left = await lab.finish()
    result = {
        "count": options.count,
        "failed": lab.failed,
        "failures": lab.failures,
        "answer_ms": quantiles(meter.latencies),
        "cpu_ms": meter.cpu(),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }
    return {**result, **(await commands(options.commands) if options.commands else {})}


def on_cpu_ns(pid: int) -> int:
    """Time a process that now sleeps has spent on a processor (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """proc(5), stat"""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Meter:
    """Launches, one after the other, and what each took of the processors."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.latencies: list[float] = []
        self._launcher: list[float] = []
        self._child: list[float] = []
        self._engine = 0.0

    async def run(self, count: int) -> None:
        await self._lab.probe(0)  # the root file system is looked at and attached once
        await settle()
        launchers = [pid for pid in descendants(os.getpid()) if _name(pid) == "joey-launcher"]
        with Progress("launch, one at a time", count) as progress:
            for index in range(count):
                await self._one(index + 1, launchers)
                progress.step()

    async def _one(self, index: int, launchers: list[int]) -> None:
        await asyncio.sleep(PAUSE)
        before, own = {pid: on_cpu_ns(pid) for pid in launchers}, time.process_time()
        answer = await self._lab.probe(index)
        if answer is None:
            return
        self.latencies.append(answer.seconds)
        self._engine += time.process_time() - own
        await asyncio.sleep(0.001)  # until launcher and program sleep: a running task's time is not brought forward
        launcher = parent(answer.pid)
        if launcher in before:
            self._launcher.append((on_cpu_ns(launcher) - before[launcher]) / 1e9)
            self._child.append(on_cpu_ns(answer.pid) / 1e9)
        self._lab.ids.remove(answer.id)
        with contextlib.suppress(JoeyError):
            await self._lab.engine.remove(answer.id, force=True)

    def cpu(self) -> dict[str, float | None]:
        both = [a + b for a, b in zip(self._launcher, self._child, strict=True)]
        return {
            "launch": median_ms(both),
            "launcher": median_ms(self._launcher),
            "child": median_ms(self._child),
            "engine": round(self._engine / max(len(self.latencies), 1) * 1000, 3),
        }


# --- the command -----------------------------------------------------------------------------------------------------


async def commands(count: int) -> dict[str, Any]:
    """The command line against an engine process of its own."""
    with folder("bench") as path:
        home = path / "home"
        home.mkdir(mode=0o700)
        watch = Watch(Instance.open(home))
        env = {**os.environ, "JOEY_HOME": os.fspath(home)}
        async with _daemon(env) as daemon:
            await _command(env, "run", "--rm", "host", "true")
            await settle(5)
            launchers = descendants(daemon) - {daemon}
            found = {
                "engine_mib": round(resident_kib(daemon) / 1024, 1),
                "launchers_mib": round(sum(map(resident_kib, launchers)) / 1024, 1),
            }
            times = []
            with Progress("joey run", count) as progress:
                for _ in range(count):
                    await asyncio.sleep(0.02)
                    times.append(await _command(env, "run", "--rm", "host", "true"))
                    progress.step()
        left = await watch.gone()
    return {**found, "run_ms": quantiles(times), "run_leftovers": sum(left.values()), "run_leftovers_by_kind": left}


@contextlib.asynccontextmanager
async def _daemon(env: dict[str, str]) -> AsyncIterator[int]:
    """`joey daemon`, answering; afterwards its instance is reset and it has ended."""
    null = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*joey(), "daemon", env=env, stdin=null, stdout=null, stderr=null)
    try:
        await _until_up(env, process)
        yield process.pid
    finally:
        with contextlib.suppress(HostFailed):
            await _command(env, "system", "reset", "-f")
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _until_up(env: dict[str, str], process: asyncio.subprocess.Process) -> None:
    socket = Instance.open(env["JOEY_HOME"]).api_socket
    deadline = time.monotonic() + 20
    while not socket.exists():
        if process.returncode is not None or time.monotonic() > deadline:
            raise HostFailed("joey daemon", f"did not come up (exit code {process.returncode})")
        await asyncio.sleep(0.01)


async def _command(env: dict[str, str], *words: str) -> float:
    """Run the command `joey`; seconds from its start to its end. Raises HostFailed with what it said."""
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *joey(), *words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        raise HostFailed(f"joey {' '.join(words)}", f"exit code {process.returncode}: {said.decode().strip()}")
    return seconds


def joey() -> list[str]:
    """The command as it was installed beside this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name("joey")
    return [os.fspath(beside)] if beside.exists() else ["joey"]


def rows(result: dict[str, Any]) -> list[Row]:
    cpu = result["cpu_ms"]
    found = [
        ("machine", machine.describe(result["machine"])),
        ("launch to answer", spread(result["answer_ms"])),
        ("processor time", f"{number(cpu['launch'], 'ms')}: launcher {number(cpu['launcher'], 'ms')}, child until its "
         f"answer {number(cpu['child'], 'ms')}; besides, engine (Python) {number(cpu['engine'], 'ms')}"),
    ]  # fmt: skip
    if "run_ms" in result:
        found += [
            ("joey run host true", spread(result["run_ms"])),
            ("resident, empty", f"engine {result['engine_mib']} MiB, launchers {result['launchers_mib']} MiB"),
        ]
    found.append(("left over", str(result["leftovers"] + result.get("run_leftovers", 0))))
    return found + [("failure", text) for text in result["failures"]]
