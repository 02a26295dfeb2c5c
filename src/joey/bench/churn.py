"""`joey bench churn`: sandboxes come and go without a pause; what engine, launchers and kernel keep of it."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.lab import Lab, drive, opened
from joey.bench.leftovers import cgroups_named, descendants, settle
from joey.bench.machine import mem_available_kib
from joey.bench.report import Progress, Row, number, quantiles, spread
from joey.model.errors import JoeyError

HELP = "create, run and remove without a pause for S seconds: rate, growth, leftovers"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--parallel", type=int, default=8, help="sandboxes at once (8)")


async def run(options: Namespace) -> dict[str, Any]:
    """count, failed, seconds, per_second (whole lives), answer_ms, growth, leftovers, machine.

    growth: what the second half of the time added: engine_kib and launchers_kib (resident), descriptors (of the engine
    and the launchers), cgroups, mem_available_kib (less of it is negative).
    """
    async with opened() as lab:
        work = _Churn(lab, options.seconds, options.parallel)
        await work.run()
        left = await lab.finish()
    count = len(work.latencies)
    return {
        "count": count,
        "failed": lab.failed,
        "failures": lab.failures,
        "parallel": options.parallel,
        "seconds": round(work.seconds, 3),
        "per_second": round(count / work.seconds, 1),
        "answer_ms": quantiles(work.latencies),
        "growth": work.growth,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


class _Churn:
    def __init__(self, lab: Lab, seconds: float, parallel: int) -> None:
        self._lab, self._limit, self._parallel = lab, seconds, parallel
        self.latencies: list[float] = []
        self.seconds = 0.0
        self.growth: dict[str, int] = {}

    async def run(self) -> None:
        """Two halves, with a pause between them in which everything is weighed."""
        states = []
        with Progress("churn") as progress:
            for _ in range(2):
                begin = time.perf_counter()
                await self._half(begin + self._limit / 2, progress)
                self.seconds += time.perf_counter() - begin
                await settle(5)
                states.append(weigh(self._lab.instance.name))
        self.growth = {name: states[1][name] - states[0][name] for name in states[0]}

    async def _half(self, until: float, progress: Progress) -> None:
        async def life(number: int) -> None:
            await self._life(number)
            progress.step()

        await drive(sys.maxsize, self._parallel, life, lambda: time.perf_counter() < until)

    async def _life(self, number: int) -> None:
        answer = await self._lab.probe(number, "answer")
        if answer is None:
            return
        self.latencies.append(answer.seconds)
        self._lab.ids.remove(answer.id)
        try:
            await self._lab.engine.remove(answer.id, force=True)
        except JoeyError as error:
            self._lab.fail(error)


def weigh(name: str) -> dict[str, int]:
    """What this process, the processes below it and the kernel hold at the moment."""
    launchers = descendants(os.getpid())
    return {
        "engine_kib": resident_kib(os.getpid()),
        "launchers_kib": sum(map(resident_kib, launchers)),
        "descriptors": sum(map(open_descriptors, (os.getpid(), *launchers))),
        "cgroups": len(cgroups_named(name)),
        "mem_available_kib": mem_available_kib(),
    }


def resident_kib(pid: int) -> int:
    """VmRSS of a process, 0 when it is gone (proc(5))."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open, 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def rows(result: dict[str, Any]) -> list[Row]:
    growth = result["growth"]
    found = [
        ("machine", machine.describe(result["machine"])),
        (
            "whole lives",
            f"{number(result['count'])}, {number(result['per_second'])} a second, {result['failed']} failed",
        ),
        ("one answer", spread(result["answer_ms"])),
        ("grown in half the time", ", ".join(f"{name} {value:+,}" for name, value in growth.items())),
        ("left over", str(result["leftovers"])),
    ]
    return found + [("failure", text) for text in result["failures"]]
