"""`joey bench flat`: whether the N-th sandbox starts as fast as the first, all before it still alive."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Any

from joey.bench import machine
from joey.bench.density import Fill
from joey.bench.lab import opened
from joey.bench.leftovers import settle
from joey.bench.machine import Calibration
from joey.bench.report import Progress, Row, growth, number, spread

HELP = "median launch of the last hundred of N against the first hundred"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10_000, help="sandboxes (10000)")
    parser.add_argument("--parallel", type=int, default=1, help="requests at once (1)")


async def run(options: Namespace) -> dict[str, Any]:
    """The keys of `density`, and first_ms, last_ms (medians of the first and last 100 launches), ratio."""
    with Calibration() as pages:
        async with opened() as lab:
            await settle()
            fill = Fill(lab, options.count, options.parallel, 512 * 1024)
            await fill.run("quiet")
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
        **growth(fill.latencies),
        "memory": "fresh",
        **fill.figures(),
        "teardown_seconds": round(torn_down, 3),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "peers": {},
        "machine": machine.machine(pages),
    }


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("first hundred", number(result["first_ms"], "ms, median")),
        (f"last hundred of {number(result['count'])}", number(result["last_ms"], "ms, median")),
        ("ratio", number(result["ratio"])),
        ("all", spread(result["answer_ms"])),
        ("gone again", f"{result['teardown_seconds']:.2f} s, {result['leftovers']} left over"),
    ]
    if result["stopped"]:
        found.append(("stopped", result["stopped"]))
    return found + [("failure", text) for text in result["failures"]]
