"""Other runtimes beside us: the same program, namespaces, limits and seccomp policy, in the same run.

Their commands run from a helper process (joey.bench.peer_worker) with a mount namespace of its own. Each is measured
with 1, 2 and 4 launches at a time, and its best counts. A launch begins with the start of the command and ends with the
answer of the program inside; what the runtimes keep alive until then and the removal afterwards are not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joey.bench.leftovers import cgroups_named
from joey.bench.report import Progress, Row, number, say, spread

NAMES = ("crun", "runc", "bwrap", "podman")
_SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--peers",
        type=names,
        default=(),
        metavar="LIST",
        help=f"runtimes to run beside, of {','.join(NAMES)}, or all; one that is not installed is reported as absent",
    )
    parser.add_argument(
        "--peer-seconds", type=float, default=3.0, help="time for each peer at each of 1, 2, 4 at once (3)"
    )


def names(text: str) -> tuple[str, ...]:
    """`crun,runc` as a tuple. Raises ArgumentTypeError for an unknown one."""
    wanted = NAMES if text == "all" else tuple(name for name in text.split(",") if name)
    for name in wanted:
        if name not in NAMES:
            raise ArgumentTypeError(f"{name!r} is none of {', '.join(NAMES)}")
    return wanted


def find(name: str) -> str | None:
    """Path of a runtime's command, None if it is not installed."""
    return shutil.which(name, path=os.environ.get("PATH", "") + _SBIN)


async def run(wanted: Sequence[str], seconds: float) -> dict[str, Any]:
    """name → figures, `{"absent": why}` for one that is not installed, `{"error": …}` for one that does not work.

    Figures: version, parallel (at which it was best), count, per_second, answer_ms, memory_per_sandbox_kib, lacks (what
    of our hardening it has no means for).
    """
    result: dict[str, Any] = {}
    for name in wanted:
        path = find(name)
        if path is None:
            result[name] = {"absent": "not installed"}
        else:
            result[name] = await _measure(name, path, seconds)
    return result


async def _measure(name: str, path: str, seconds: float) -> dict[str, Any]:
    tag = f"joey-bench-{secrets.token_hex(4)}"
    task = {"peer": name, "path": path, "cgroup": tag, "seconds": seconds, "arch": platform.machine()}
    try:
        return await _work(name, task)
    finally:
        await _remove_cgroups(tag)


async def _work(name: str, task: dict[str, Any]) -> dict[str, Any]:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "joey.bench.peer_worker", json.dumps(task),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert worker.stdout is not None
    last: dict[str, Any] = {"error": "its helper process ended without a result"}
    try:
        with Progress(f"peer {name}") as progress:
            async for line in worker.stdout:
                last = json.loads(line)
                if "launches" in last:
                    progress.set(last["launches"], f"{last['parallel']} at a time")
    except BaseException:
        # Not worker.send_signal: that may reap the process itself, and asyncio then complains.
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)
        raise
    finally:
        await worker.wait()
    return last


async def _remove_cgroups(tag: str) -> None:
    """What a runtime left of its cgroups: deepest first, for as long as the last processes take to go."""
    for _ in range(100):
        for path in reversed(cgroups_named(tag)):
            try:
                Path(path).rmdir()
            except OSError:
                continue
        if not cgroups_named(tag):
            return
        await asyncio.sleep(0.05)
    say(f"left behind: cgroups {tag}")


def compare(peers: dict[str, Any], per_second: float) -> None:
    """Add `times`: how many times as many launches a second we do."""
    for figures in peers.values():
        if figures.get("per_second"):
            figures["times"] = round(per_second / figures["per_second"], 1)


def rows(peers: dict[str, Any]) -> list[Row]:
    found: list[Row] = [("", "")] if peers else []
    for name, figures in peers.items():
        if "per_second" not in figures:
            found.append((name, figures.get("absent") or f"does not work here: {figures.get('error')}"))
            continue
        text = f"{number(figures['per_second'])} a second ({figures['parallel']} at a time)"
        if "times" in figures:
            text += f"; Joey {figures['times']} times as many"
        found += [(name, text), ("  one answer", spread(figures["answer_ms"]))]
        found.append(("  memory each", number(figures["memory_per_sandbox_kib"], "KiB", 0)))
        if figures["lacks"]:
            found.append(("  without", ", ".join(figures["lacks"])))
    return found
