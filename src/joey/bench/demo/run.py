"""The demo: start thousands at once, judge thousands of unknown programs, look at the peers, leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from joey.bench import machine, peers
from joey.bench.demo import judge
from joey.bench.demo.hostile import ATTACKS, Bait
from joey.bench.demo.judge import Task
from joey.bench.lab import Lab, drive, opened
from joey.bench.leftovers import settle
from joey.bench.machine import Calibration, mem_available_kib
from joey.bench.report import Progress, quantiles, say
from joey.engine.interface import Attachment
from joey.model.errors import JoeyError
from joey.model.views import Exit

_OUTPUT = 64 * 1024
_SAMPLE_SECONDS = 0.1


class Recorder:
    """What happens, ten times a second, for the charts."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._memory = mem_available_kib()
        self.done = self.alive = 0
        self.answers_ms: list[float] = []
        self._points: dict[str, list[tuple[float, float]]] = {"done": [], "alive": [], "memory": []}

    def sample(self) -> None:
        now = time.perf_counter() - self._begin
        self._points["done"].append((now, self.done))
        self._points["alive"].append((now, self.alive))
        self._points["memory"].append((now, max(0.0, (self._memory - mem_available_kib()) / 1024)))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async def forever() -> None:
            while True:
                self.sample()
                await asyncio.sleep(_SAMPLE_SECONDS)

        task = asyncio.create_task(forever())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.sample()

    def kept(self) -> dict[str, Any]:
        return {**self._points, "answers_ms": self.answers_ms}


async def demo(options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, samples for the charts). Figures: start, work, peers, machine, leftovers, seconds."""
    began = time.perf_counter()
    with Calibration(256) as pages:
        async with opened() as lab:
            start, first = await start_all(lab, options.count, options.start_parallel)
            pages.release()
            work, second = await judge_all(lab, options.count, options.parallel, options.seed)
            left = await lab.finish()
    wanted = [name for name in options.peers if peers.find(name)]
    result: dict[str, Any] = {"start": start, "work": work, "peers": await peers.run(wanted, options.peer_seconds)}
    peers.compare(result["peers"], start["per_second"])
    result["machine"] = machine.machine(pages)
    result["leftovers"] = sum(left.values())
    result["leftovers_by_kind"] = left
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result, {"start": first, "work": second}


# --- thousands at once -----------------------------------------------------------------------------------------------


async def start_all(lab: Lab, count: int, parallel: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Start `count` sandboxes from nothing, let them all be alive, remove them."""
    await settle()
    before = mem_available_kib()
    recorder = Recorder()
    with Progress("start", count) as progress:

        async def one(number: int) -> None:
            answer = await lab.probe(number)
            if answer:
                recorder.answers_ms.append(answer.seconds * 1000)
                recorder.alive += 1
            recorder.done += 1
            progress.set(recorder.done, f"{recorder.alive:,} alive, {lab.failed} failed")

        async with recorder.running():
            begin = time.perf_counter()
            await drive(count, parallel, one)
            seconds = time.perf_counter() - begin
    await settle(2)
    taken = before - mem_available_kib()
    begin = time.perf_counter()
    with Progress("remove", count) as progress:
        await lab.remove_all(progress=progress)
    figures = {
        "count": count,
        "alive": recorder.alive,
        "failed": lab.failed,
        "failures": list(lab.failures),
        "memory": "fresh",
        "seconds": round(seconds, 3),
        "per_second": round(recorder.alive / seconds, 1),
        "answer_ms": quantiles([ms / 1000 for ms in recorder.answers_ms]),
        "memory_per_sandbox_kib": round(taken / max(recorder.alive, 1), 1),
        "removed_seconds": round(time.perf_counter() - begin, 3),
    }
    return figures, recorder.kept()


# --- a program in each -----------------------------------------------------------------------------------------------


async def judge_all(lab: Lab, count: int, parallel: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judge `count` solutions, `parallel` at a time; what became of each kind."""
    async with _bait(lab.instance.home.parent) as (bait, reached):
        tasks = judge.make_tasks(count, bait, seed)
        court = Court(lab, count)
        begin = time.perf_counter()
        with court.progress:
            async with court.recorder.running():
                await drive(count, parallel, lambda number: court.judge(tasks[number]))
        seconds = time.perf_counter() - begin
    return court.figures(seconds, len(reached)), court.recorder.kept()


class Court:
    """Judges tasks, and counts."""

    def __init__(self, lab: Lab, count: int) -> None:
        self._lab = lab
        self.recorder = Recorder()
        self.progress = Progress("judge", count)
        self._failed_before = lab.failed
        self._verdicts: Counter[str] = Counter()
        self._kinds: dict[str, Counter[str]] = {}
        self.surprises: list[str] = []

    async def judge(self, task: Task) -> None:
        begin = time.perf_counter()
        try:
            output, end, late = await self._run(task)
        except JoeyError as error:
            self._lab.fail(error)
            self._count(task, "not started", [])
        else:
            self.recorder.answers_ms.append((time.perf_counter() - begin) * 1000)
            self._count(task, judge.verdict(task, output, end, late), judge.leaks(output))
        self.recorder.done += 1
        parts = [f"{self._verdicts[verdict]:,} {verdict}" for verdict in judge.VERDICTS if self._verdicts[verdict]]
        self.progress.set(self.recorder.done, ", ".join([*parts, f"{self.recorder.alive} at work"]))

    async def _run(self, task: Task) -> tuple[bytes, Exit, bool]:
        engine = self._lab.engine
        started = await engine.run(judge.spec(task), attach=True)
        assert started.attachment is not None
        self.recorder.alive += 1
        try:
            return await self._watch(started.sandbox.id, started.attachment, task)
        finally:
            await started.attachment.close()
            await engine.remove(started.sandbox.id, force=True)
            self.recorder.alive -= 1

    async def _watch(self, sandbox: str, process: Attachment, task: Task) -> tuple[bytes, Exit, bool]:
        """Feed the program, read what it says, at most so long; (output, end, whether it was stopped)."""
        said = bytearray()
        try:
            async with asyncio.timeout(judge.TIME_LIMIT):
                await process.write(task.program)
                await process.close_stdin()
                await _read(process, said)
                return bytes(said), await process.wait(), False
        except TimeoutError:
            with contextlib.suppress(JoeyError):  # it has just ended by itself
                await self._lab.engine.kill(sandbox, signal.SIGKILL)
            return bytes(said), await process.wait(), True

    def _count(self, task: Task, verdict: str, leaks: list[str]) -> None:
        found = self._kinds.setdefault(task.kind, Counter())
        found["count"] += 1
        self._verdicts[verdict] += 1
        if verdict == task.expected and not leaks:
            found["as_expected"] += 1
        elif len(self.surprises) < 10:
            self.surprises.append(f"{task.kind} solution of {task.problem}: {verdict} {' '.join(leaks)}".strip())

    def figures(self, seconds: float, reached: int) -> dict[str, Any]:
        kinds = {
            kind: {**self._kinds[kind], "as_expected": self._kinds[kind]["as_expected"], "expected": expected}
            for kind, expected in judge.EXPECTED.items()
            if kind in self._kinds
        }
        attacks = [figures for kind, figures in kinds.items() if kind in ATTACKS]
        return {
            "count": self.recorder.done,
            "failed": self._lab.failed - self._failed_before,
            "seconds": round(seconds, 3),
            "per_second": round(self.recorder.done / seconds, 1),
            "life_ms": quantiles([ms / 1000 for ms in self.recorder.answers_ms]),
            "verdicts": dict(self._verdicts),
            "kinds": kinds,
            "as_expected": sum(figures["as_expected"] for figures in kinds.values()),
            "attacks": sum(figures["count"] for figures in attacks),
            "contained": sum(figures["as_expected"] for figures in attacks) if not reached else 0,
            "reached": reached,
            "surprises": self.surprises,
        }


async def _read(process: Attachment, said: bytearray) -> None:
    """All the output there is; only the first 64 KiB are kept."""
    while (piece := await process.read()) is not None:
        if len(said) < _OUTPUT:
            said += piece[1]


@contextlib.asynccontextmanager
async def _bait(folder: Path) -> AsyncIterator[tuple[Bait, list[str]]]:
    """Things on the host that a prisoner must not find, and the list of connections that reached us nevertheless."""
    secret = secrets.token_hex(16)
    path = folder / "secret.txt"
    path.write_text(f"the secret is {secret}\n")
    path.chmod(0o644)
    reached: list[str] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(str(writer.get_extra_info("sockname")))
        writer.close()

    name = f"joey-demo-{os.getpid()}"
    tcp = await asyncio.start_server(connected, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(connected, f"\0{name}")
    # A process whose arguments and environment hold the secret, and that waits.
    holder = subprocess.Popen(
        ["sh", "-c", "read line", secret], stdin=subprocess.PIPE, env={"SECRET": secret, "PATH": os.defpath}
    )
    try:
        yield Bait(secret, os.fspath(path), tcp.sockets[0].getsockname()[1], name), reached
    finally:
        holder.kill()
        holder.communicate()
        for server in (tcp, unix):
            server.close()
            await server.wait_closed()
        path.unlink()


def complaints(result: dict[str, Any]) -> list[str]:
    """What did not go as it should; empty when all is well."""
    work, found = result["work"], []
    if failed := result["start"]["failed"] + work["failed"]:
        found.append(f"{failed} sandboxes failed: {'; '.join(result['start']['failures'])}")
    if work["as_expected"] != work["count"]:
        found.append(f"{work['count'] - work['as_expected']} verdicts are not as they should be: {work['surprises']}")
    if work["reached"]:
        found.append(f"{work['reached']} connections reached the host")
    if result["leftovers"]:
        found.append(f"left behind: {result['leftovers_by_kind']}")
    for text in found:
        say(text)
    return found
