"""What tests of the engine look at and wait for on the machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from joey.engine.supervisor import Engine
from joey.images import library
from joey.model.spec import SandboxSpec


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Return as soon as `condition()` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.002)


async def until(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 5.0) -> None:
    """Return as soon as `await ask()` equals `wanted`."""
    deadline = time.monotonic() + seconds
    while (found := await ask()) != wanted:
        assert time.monotonic() < deadline, f"it still is {found!r}"
        await asyncio.sleep(0.002)


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def mounts(pid: int) -> list[str]:
    """The mounts of a process's mount namespace: where, and the type."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return sorted(f"{line.split(' ')[4]} {line.partition(' - ')[2].split(' ')[0]}" for line in lines)


def rows(engine: Engine) -> int:
    """Sandboxes in the database."""
    with contextlib.closing(sqlite3.connect(engine.instance.db)) as database:
        (count,) = database.execute("SELECT count(*) FROM sandboxes").fetchone()
    return int(count)


def held(engine: Engine) -> dict[str, object]:
    """All that an engine without ready slots holds for sandboxes, on the machine and in itself."""
    machine, launchers = engine.machine, engine.machine.fleet.pids
    storage = machine.storage
    return {
        "cgroups": machine.cgroup.sweep(),
        "scratch": sorted(os.listdir(storage.scratch)),
        "limited": sorted(os.listdir(storage.scratch / ".limited")),
        "disk": sorted(os.listdir(storage.disk)),
        "disk images": sorted(os.listdir(storage.disk / ".images")),
        "logs": sorted(path.name for path in (engine.kept.folder, engine.kept.fast) if path for path in path.iterdir()),
        "loops": sorted(path for path in loop_files() if str(engine.instance.home) in path),
        "ids free": len(machine.ids._free) % 1024,
        "clearing": set(machine.pool.pending),
        "boxes": [box.name for box in engine.boxes],
        "names": set(engine._boxes.names),
        "expected ends": set(engine._keys),
        "execs": set(engine.execs._known),
        "children": [shard.children for shard in machine.fleet.shards],
        "mounts": [mounts(pid) for pid in launchers],
        "layers": [sorted(os.listdir(f"/proc/{pid}/root/layers")) for pid in launchers],
        "descriptors": [descriptors(pid) for pid in (os.getpid(), *launchers)],
    }


def loop_files() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield path.read_text().strip()


async def nothing_new(engine: Engine, before: dict[str, object], seconds: float = 5.0) -> None:
    """Return as soon as the engine holds what it held before; AssertionError saying what else after `seconds`."""
    deadline = time.monotonic() + seconds
    while (now := held(engine)) != before:
        if time.monotonic() > deadline:
            raise AssertionError("\n".join(f"{k}: {before[k]} -> {now[k]}" for k in now if now[k] != before[k]))
        await asyncio.sleep(0.002)


async def settled(lab: Any, spec: SandboxSpec) -> dict[str, object]:
    """What the engine of a lab holds once every launcher has started something and nothing is under way."""
    await asyncio.gather(*(lab.finish(replace(spec, remove=True)) for _ in range(8)))
    await eventually(lambda: not any(box.record.held and not box.alive for box in lab.engine.boxes))
    await eventually(lambda: all(box.alive for box in lab.engine.boxes) and not lab.engine.machine.pool.pending)
    running = len(lab.engine.boxes)

    async def children() -> int:
        return sum([len(await shard.launcher.list()) for shard in lab.engine.machine.fleet.shards])

    await until(children, running)
    await lab.engine.store.flush()
    rows(lab.engine)  # SQLite keeps the descriptor for the next time
    assert library.of(lab.engine.instance).store  # opened by whoever asks for an image first
    return held(lab.engine)
