"""`joey bench density`: how many sandboxes are alive at once, an idle program in each, and what each takes."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Any

from joey.bench import machine
from joey.bench.lab import Lab, drive, opened
from joey.bench.leftovers import cgroups_named, processes_in, settle
from joey.bench.machine import Calibration, mem_available_kib
from joey.bench.report import LAST, Progress, Row, number, quantiles, spread

HELP = "N sandboxes alive at once, and the memory of each"
CHECKPOINTS = (1000, 3000, 10_000, 15_000, 20_000, 30_000)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10_000, help="sandboxes (10000)")
    parser.add_argument("--parallel", type=int, default=16, help="requests at once (16)")
    parser.add_argument(
        "--keep-mib", type=int, default=1024, help="stop before less than this is available (1024)", metavar="MIB"
    )


async def run(options: Namespace) -> dict[str, Any]:
    """The keys of `elastic`, and: checkpoints (a list of count, seconds, memory_per_sandbox_kib, answer_ms of the last
    100), alive (processes that the kernel counts in our cgroups), stopped (why before `count`, else "").

    The program closes its standard streams once it has answered: so it holds no pipe, like a daemon with its own log.
    """
    with Calibration() as pages:
        async with opened() as lab:
            await settle()
            fill = Fill(lab, options.count, options.parallel, options.keep_mib * 1024)
            await fill.run("quiet")
            alive = len(processes_in(cgroups_named(lab.instance.name)))
            begin = time.perf_counter()
            with Progress("remove", len(lab.ids)) as progress:
                await lab.remove_all(progress=progress)
            left = await lab.finish()
            torn_down = time.perf_counter() - begin
    return {
        "count": options.count,
        "failed": lab.failed,
        "failures": lab.failures,
        "stopped": fill.stopped,
        "alive": alive,
        "memory": "fresh",
        **fill.figures(),
        "teardown_seconds": round(torn_down, 3),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "peers": {},
        "machine": machine.machine(pages),
    }


class Fill:
    """Start sandboxes and let them stay; weigh at checkpoints."""

    def __init__(self, lab: Lab, count: int, parallel: int, keep_kib: int) -> None:
        self._lab, self._count, self._parallel, self._keep = lab, count, parallel, keep_kib
        self._before = mem_available_kib()
        self._begin = time.perf_counter()
        self._seconds = 0.0
        self.latencies: list[float] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.stopped = ""

    async def run(self, verb: str) -> None:
        """All of them, or until memory runs out, or ten in a row failed."""
        wanted = sorted({point for point in CHECKPOINTS if point < self._count} | {self._count})
        with Progress("start", self._count) as progress:
            for point in wanted:
                await self._until(point, verb, progress)
                if self.stopped:
                    break
                await settle(5)
                self.checkpoints.append(self._weigh())

    async def _until(self, point: int, verb: str, progress: Progress) -> None:
        offset = len(self.latencies)
        in_a_row = 0

        async def one(number: int) -> None:
            nonlocal in_a_row
            if self.stopped:
                return
            answer = await self._lab.probe(offset + number, verb)
            in_a_row = 0 if answer else in_a_row + 1
            if answer:
                self.latencies.append(answer.seconds)
                self._seconds = time.perf_counter() - self._begin
            if in_a_row >= 10:
                self.stopped = f"ten failures in a row: {self._lab.failures[-1]}"
            elif number % 50 == 0 and mem_available_kib() < self._keep:
                self.stopped = f"less than {self._keep // 1024} MiB available"
            progress.step()

        await drive(point - offset, self._parallel, one)

    def _weigh(self) -> dict[str, Any]:
        return {
            "count": len(self.latencies),
            "seconds": round(self._seconds, 3),
            "memory_per_sandbox_kib": self._each(),
            "answer_ms": quantiles(self.latencies[-LAST:]),
        }

    def _each(self) -> float:
        return round((self._before - mem_available_kib()) / max(len(self.latencies), 1), 1)

    def figures(self) -> dict[str, Any]:
        last = self.checkpoints[-1] if self.checkpoints else {"memory_per_sandbox_kib": None}
        return {
            "parallel": self._parallel,
            "seconds": round(self._seconds, 3),
            "per_second": round(len(self.latencies) / max(self._seconds, 1e-9), 1),
            "answer_ms": quantiles(self.latencies),
            "memory_per_sandbox_kib": last["memory_per_sandbox_kib"],
            "checkpoints": self.checkpoints,
        }


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("alive at once", f"{number(result['alive'])} of {number(result['count'])}, {result['failed']} failed"),
        ("one answer", spread(result["answer_ms"])),
    ]
    for point in result["checkpoints"]:
        text = f"{number(point['memory_per_sandbox_kib'], 'KiB each', 0)}, after {point['seconds']:.1f} s"
        found.append(
            (f"  at {number(point['count'])}", f"{text}; launch p50 {number(point['answer_ms']['p50'], 'ms')}")
        )
    found.append(("gone again", f"{result['teardown_seconds']:.2f} s, {result['leftovers']} left over"))
    if result["stopped"]:
        found.append(("stopped", result["stopped"]))
    return found + [("failure", text) for text in result["failures"]]
