"""`joey bench exec`: one more process in a sandbox that runs, from Python."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Any

from joey.bench import machine
from joey.bench.lab import Lab, opened
from joey.bench.report import Progress, Row, number, quantiles, spread
from joey.model.errors import JoeyError
from joey.model.spec import Process, SandboxSpec

HELP = "exec of `true` in a running sandbox, until its exit status is here"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=500, help="processes, one after the other (500)")


async def run(options: Namespace) -> dict[str, Any]:
    """count, failed, seconds, per_second, answer_ms (request → exit status), leftovers, machine."""
    async with opened() as lab:
        started = await lab.engine.run(SandboxSpec(image="host", process=Process(argv=("sleep", "infinity"))))
        lab.ids.append(started.sandbox.id)
        latencies: list[float] = []
        begin = time.perf_counter()
        with Progress("exec", options.count) as progress:
            for _ in range(options.count):
                took = await _exec(lab, started.sandbox.id)
                if took is not None:
                    latencies.append(took)
                progress.step()
        seconds = time.perf_counter() - begin
        left = await lab.finish()
    return {
        "count": options.count,
        "failed": lab.failed,
        "failures": lab.failures,
        "seconds": round(seconds, 3),
        "per_second": round(len(latencies) / seconds, 1),
        "answer_ms": quantiles(latencies),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


async def _exec(lab: Lab, sandbox: str) -> float | None:
    begin = time.perf_counter()
    try:
        process = await lab.engine.exec(sandbox, Process(argv=("true",)))
        try:
            end = await process.wait()
        finally:
            await process.close()
    except JoeyError as error:
        lab.fail(error)
        return None
    if end.code != 0:
        lab.fail(RuntimeError(f"true ended with {end.code}"))
        return None
    return time.perf_counter() - begin


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("exec of true", spread(result["answer_ms"])),
        ("", f"{number(result['per_second'])} a second, one after the other; {result['failed']} failed"),
        ("left over", str(result["leftovers"])),
    ]
    return found + [("failure", text) for text in result["failures"]]
