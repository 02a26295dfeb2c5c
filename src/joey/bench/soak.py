"""`joey bench soak`: sandboxes come and go through the API of a daemon; what it, its launchers and the kernel keep.

Every cycle is a create as the SDK makes it (idempotency key, durable answer), now and then with a command and now and
then out of a warm pool, and a removal. What is bounded by design (10,000 events, ids of 10,000 removed sandboxes that a
list may still name) is filled before the first weighing if the run is long enough to care.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import joey
from joey.bench import machine
from joey.bench.churn import open_descriptors, resident_kib
from joey.bench.lab import drive
from joey.bench.leftovers import cgroups_named, descendants
from joey.bench.report import Progress, Row, number
from joey.bench.service import serving
from joey.client._async import service as async_service
from joey.host.instance import Instance
from joey.model.errors import JoeyError

HELP = "N create-delete cycles through the API: what daemon, launchers and kernel have grown by"
_FILL = 12_000
_COMMAND_EVERY, _POOLED_EVERY = 10, 5
_SETTLE_SECONDS, _PAUSE_SECONDS = 20.0, 0.25


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, default=10_000, help="sandboxes that come and go (10000)")
    parser.add_argument("--parallel", type=int, default=16, help="clients at a time (16)")
    parser.add_argument(
        "--warm", type=int, default=None, help=f"cycles before the first weighing (a fifth, at most {_FILL})"
    )


async def run(options: Namespace) -> dict[str, Any]:
    """cycles, growth {daemon_kib, launcher_kib (resident), slab_kib (unreclaimable, of the whole machine), fds (of the
    daemon and launchers), cgroups, mounts (as the launchers see them), links}, halfway (the same at half the cycles),
    seconds, per_second, failed, leftovers, machine.
    """
    warm = min(_FILL, max(200, options.cycles // 5)) if options.warm is None else options.warm
    failures: list[str] = []
    async with serving() as watch:
        home = Path(os.environ["JOEY_HOME"])
        soak = _Soak(home, options.parallel, failures)
        async with joey.AsyncPool("host", size=4) as soak.pool:
            await soak.cycles(warm, "warming up")
            first = await soak.weigh()
            begin = time.perf_counter()
            await soak.cycles(options.cycles // 2, "first half")
            seconds = time.perf_counter() - begin
            middle = await soak.weigh()
            begin = time.perf_counter()
            await soak.cycles(options.cycles - options.cycles // 2, "second half")
            seconds += time.perf_counter() - begin
            last = await soak.weigh()
        async_service.close()
    left = await watch.gone()
    return {
        "cycles": options.cycles,
        "warm": warm,
        "growth": _less(last, first),
        "halfway": _less(middle, first),
        "at_first": first,
        "seconds": round(seconds, 2),
        "per_second": round(options.cycles / seconds, 1),
        "failed": soak.failed,
        "failures": failures,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def _less(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


class _Soak:
    """Clients of the daemon that serves `home`."""

    pool: joey.AsyncPool

    def __init__(self, home: Path, parallel: int, failures: list[str]) -> None:
        self._home, self._parallel, self._failures = home, parallel, failures
        self.failed = 0

    async def cycles(self, count: int, label: str) -> None:
        """So many sandboxes come and go."""
        with Progress(label, count) as progress:

            async def one(at: int) -> None:
                try:
                    await self._cycle(at)
                except JoeyError as error:
                    self.failed += 1
                    if len(self._failures) < 5:
                        self._failures.append(f"{type(error).__name__}: {error}")
                progress.step()

            await drive(count, self._parallel, one)

    async def _cycle(self, at: int) -> None:
        pooled = at % _POOLED_EVERY == 0
        sandbox = await joey.AsyncSandbox.create(
            pool=self.pool if pooled else None, metadata={"number": str(at)}, timeout=600
        )
        try:
            if at % _COMMAND_EVERY == 0:
                await sandbox.commands.run(["true"], check=True)
        finally:
            await sandbox.kill()

    async def weigh(self) -> dict[str, int]:
        """Once nothing is under way any more: what is there. The pool is full then, as it was the time before."""
        gc.collect()
        deadline = time.monotonic() + _SETTLE_SECONDS
        previous: dict[str, int] = {}
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            found = self._weigh()
            steady = [found[name] for name in ("fds", "cgroups", "mounts", "links")]
            if steady == [previous.get(name) for name in ("fds", "cgroups", "mounts", "links")]:
                return found
            if time.monotonic() > deadline:
                return found
            previous = found

    def _weigh(self) -> dict[str, int]:
        daemon = int((self._home / "run/daemon.lock").read_text())
        launchers = [pid for pid in descendants(daemon) if _name(pid) == "joey-launcher"]
        return {
            "daemon_kib": resident_kib(daemon),
            "launcher_kib": sum(map(resident_kib, launchers)),
            "slab_kib": _slab(),
            "fds": sum(map(open_descriptors, (daemon, *launchers))),
            "cgroups": len(cgroups_named(Instance.open(self._home).name)),
            "mounts": _mounts(daemon, f" {self._home}") + sum(map(_mounts, launchers)),
            "links": len(os.listdir("/sys/class/net")),
        }


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _mounts(pid: int, below: str = "") -> int:
    """In its mount namespace. The daemon's is the host's, where others mount too."""
    with contextlib.suppress(OSError):
        return sum(below in line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return 0


def _slab() -> int:
    """KiB of kernel memory that cannot be reclaimed (proc(5), SUnreclaim)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SUnreclaim:"):
            return int(line.split()[1])
    return 0


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("cycles", f"{number(result['cycles'])}, {number(result['per_second'])} a second, {result['failed']} failed"),
        ("grown by", ", ".join(f"{name} {value:+,}" for name, value in result["growth"].items())),
        ("halfway", ", ".join(f"{name} {value:+,}" for name, value in result["halfway"].items())),
        ("left over", str(result["leftovers"])),
    ]
    return found + [("failure", text) for text in result["failures"]]
