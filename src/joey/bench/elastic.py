"""`joey bench elastic`: N sandboxes from nothing, each with a program inside that answers, then all of them gone."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Any

from joey.bench import machine, peers
from joey.bench.lab import Lab, drive, opened
from joey.bench.leftovers import settle
from joey.bench.machine import Calibration, mem_available_kib
from joey.bench.report import Progress, Row, number, quantiles, spread

HELP = "N sandboxes from nothing: how fast they answer, what they take, how fast they are gone"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=3000, help="sandboxes (3000)")
    parser.add_argument("--parallel", type=int, default=16, help="requests at once (16)")
    parser.add_argument(
        "--slots", choices=("cold", "warm"), default="cold", help="warm: slots are prepared before the clock starts"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="one run only, on memory as it is; no warm-up of that size"
    )
    peers.arguments(parser)


async def run(options: Namespace) -> dict[str, Any]:
    """The result with the keys of the issue; of two runs the one on recycled memory, the other one under `fresh`."""
    with Calibration() as pages:
        result = await measure(options, "fresh")
        pages.release()
        if not options.fresh:
            first = result
            result = await measure(options, "recycled", retouch=first["memory_taken_kib"])
            result["fresh"] = {key: first[key] for key in first if key not in ("count", "slots", "parallel")}
    result["peers"] = await peers.run(options.peers, options.peer_seconds)
    peers.compare(result["peers"], result["per_second"])
    result["machine"] = machine.machine(pages)
    return result


async def measure(options: Namespace, memory: str, retouch: int = 0) -> dict[str, Any]:
    """One run: start all, weigh them, remove all."""
    async with opened() as lab:
        label = f"{memory} memory"
        before = mem_available_kib()
        if options.slots == "warm":
            await lab.prepare(options.count)
        await settle()
        if retouch:
            machine.retouch(retouch)
        latencies, seconds = await _start(lab, options, f"start, {label}")
        await settle(2)
        taken = before - mem_available_kib()
        begin = time.perf_counter()
        with Progress(f"remove, {label}", options.count) as progress:
            await lab.remove_all(progress=progress)
        removed = time.perf_counter() - begin
        left = await lab.finish()
        torn_down = time.perf_counter() - begin
    return {
        "count": options.count,
        "slots": options.slots,
        "parallel": options.parallel,
        "memory": memory,
        "failed": lab.failed,
        "failures": lab.failures,
        "retries": lab.retries,
        "seconds": round(seconds, 3),
        "per_second": round(len(latencies) / seconds, 1),
        "answer_ms": quantiles(latencies),
        "memory_per_sandbox_kib": round(taken / max(len(latencies), 1), 1),
        "memory_taken_kib": taken,
        "removed_seconds": round(removed, 3),
        "teardown_seconds": round(torn_down, 3),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
    }


async def _start(lab: Lab, options: Namespace, label: str) -> tuple[list[float], float]:
    """Seconds to each answer, and from the first request to the last answer."""
    latencies: list[float] = []
    with Progress(label, options.count) as progress:

        async def one(number: int) -> None:
            answer = await lab.probe(number)
            if answer:
                latencies.append(answer.seconds)
            progress.step()

        begin = time.perf_counter()
        await drive(options.count, options.parallel, one)
        return latencies, time.perf_counter() - begin


def rows(result: dict[str, Any]) -> list[Row]:
    found = [("machine", machine.describe(result["machine"]))]
    for part in (result, result.get("fresh")):
        if part:
            found += [("", ""), *_figures(part, result["count"], result["slots"])]
    return found + peers.rows(result["peers"])


def _figures(part: dict[str, Any], count: int, slots: str) -> list[Row]:
    found = [
        (f"on {part['memory']} memory", f"{number(count)} sandboxes, {slots} slots, {part['failed']} failed"),
        ("  request to last answer", f"{part['seconds']:.2f} s, {number(part['per_second'])} a second"),
        ("  one answer", spread(part["answer_ms"])),
        ("  memory each", number(part["memory_per_sandbox_kib"], "KiB, the kernel's included", 0)),
        ("  gone again", f"{part['teardown_seconds']:.2f} s, {part['leftovers']} left over"),
    ]
    return found + [("  failure", text) for text in part["failures"]]
