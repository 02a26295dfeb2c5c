"""`joey bench snapshot`: how long it takes to keep a sandbox's files as an image, and to fork it, whatever size its
image has.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from typing import Any, cast

from joey.bench import machine
from joey.bench.lab import PROBE, Lab, opened
from joey.bench.report import Progress, Row, number, quantiles, spread
from joey.engine.forks import fork
from joey.engine.interface import LogQuery
from joey.engine.supervisor import Engine
from joey.images import archive, library, pack
from joey.model.errors import JoeyError
from joey.model.image import Image, Layer
from joey.model.snapshots import ForkBody, SnapshotBody
from joey.model.spec import Process, SandboxSpec
from joey.native import binary

HELP = "snapshot of a sandbox that has written a little on a large image; fork into many"
_FILE = 100 << 10
_SAID = "here I am"
_PATIENCE = 30.0


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--image", type=int, default=500, help="size of the image, MiB (500)")
    parser.add_argument("--written", type=int, default=10, help="what the sandbox has written, MiB (10)")
    parser.add_argument("--count", type=int, default=10, help="snapshots, and times it is forked (10)")
    parser.add_argument("--forks", type=int, default=100, help="sandboxes of one fork (100)")
    parser.add_argument("--storage", choices=("memory", "disk"), default="memory", help="where it writes (memory)")


async def run(options: Namespace) -> dict[str, Any]:
    """snapshot_ms, paused_ms (the sandbox stood still), start_ms (the first sandbox of a snapshot has answered),
    small_ms (snapshot_ms on an image of a single program), fork_ms (to the last answer) and fork_ran_ms (until every
    program in them has answered): p50, p99, max.
    """
    async with opened() as lab:
        large = await asyncio.to_thread(_image, lab, "large", options.image)
        small = await asyncio.to_thread(_image, lab, "small", 0)
        times: dict[str, list[float]] = {
            name: [] for name in ("snapshot", "paused", "start", "small", "fork", "fork_ran")
        }
        with Progress("snapshots", (options.count + 1) * 3) as progress:
            for image, kind in ((small, "small"), (large, "snapshot")):
                await _snapshots(lab, image, kind, options, times, progress)
            await _forks(lab, large, options, times, progress)
        left = await lab.finish()
    return {
        "image_mib": options.image,
        "written_mib": options.written,
        "storage": options.storage,
        "forks": options.forks,
        **{f"{name}_ms": quantiles(found) for name, found in times.items()},
        "failed": lab.failed,
        "failures": lab.failures,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def _image(lab: Lab, name: str, mebibytes: int) -> str:
    """The probe, and files of 100 KiB."""
    folder = lab.rootfs.parent / f"image-{name}"
    (folder / PROBE[1:]).parent.mkdir(parents=True, exist_ok=True)
    (folder / PROBE[1:]).write_bytes(binary("joey-probe").read_bytes())
    (folder / PROBE[1:]).chmod(0o755)
    for file in range((mebibytes << 20) // _FILE):
        path = folder / f"usr/lib/part{file // 100}/file{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(_FILE))
    tar = lab.rootfs.parent / f"{name}.tar"
    with open(tar, "w+b") as file_:
        archive_size = sum(file_.write(piece) for piece in pack.pack(folder))
        assert archive_size >= mebibytes << 20
        file_.seek(0)
        settings = Image(name=name, layers=(Layer("x", "/"),))
        archive.import_(library.of(lab.instance).store, file_, f"{name}:latest", settings=settings)
    tar.unlink()
    shutil.rmtree(folder)
    return f"{name}:latest"


def _spec(image: str, options: Namespace) -> SandboxSpec:
    return SandboxSpec(
        image=image, pull="never", storage=options.storage, process=Process(argv=(PROBE, "idle", _SAID)), init=True
    )


async def _snapshots(
    lab: Lab, image: str, kind: str, options: Namespace, times: dict[str, list[float]], progress: Progress
) -> None:
    sandbox = (await lab.engine.run(_spec(image, options))).sandbox
    snapshots = cast(Engine, lab.engine).snapshots
    for turn in range(options.count + 1):
        await lab.engine.files(sandbox.id).write("/written", _random(options.written))
        begin = time.perf_counter()
        taken = await snapshots.take(sandbox.id, SnapshotBody())
        took = time.perf_counter() - begin
        if turn:  # the first one opens the store and imports
            times[kind].append(took)
        if turn and kind == "snapshot":
            times["paused"].append(taken.paused)
            begin = time.perf_counter()
            again = (await lab.engine.run(_spec(taken.name, options))).sandbox
            if await _said(lab, again.id):
                times["start"].append(time.perf_counter() - begin)
            await lab.engine.remove(again.id, force=True)
        await snapshots.remove(taken.name, None)
        progress.step()
    await lab.engine.remove(sandbox.id, force=True)


async def _random(mebibytes: int) -> AsyncIterator[bytes]:
    for _ in range(mebibytes):
        yield os.urandom(1 << 20)


async def _forks(lab: Lab, image: str, options: Namespace, times: dict[str, list[float]], progress: Progress) -> None:
    sandbox = (await lab.engine.run(_spec(image, options))).sandbox
    await lab.engine.files(sandbox.id).write("/written", _random(options.written))
    for turn in range(options.count + 1):
        await lab.prepare(options.forks)
        begin = time.perf_counter()
        made = [one async for _, one in fork(cast(Engine, lab.engine), sandbox.id, ForkBody(count=options.forks))]
        answered = time.perf_counter() - begin
        ids = [one.id for one in made if not isinstance(one, JoeyError)]
        for error in made:
            if isinstance(error, JoeyError):
                lab.fail(error)
        said = [await _said(lab, id) for id in ids]
        if turn and all(said) and len(ids) == options.forks:
            times["fork"].append(answered)
            times["fork_ran"].append(time.perf_counter() - begin)
        await asyncio.gather(*(lab.engine.remove(id, force=True) for id in ids))
        progress.step()
    await lab.engine.remove(sandbox.id, force=True)


async def _said(lab: Lab, id: str) -> bool:
    """Whether its program answers in time."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        async for entry in lab.engine.logs(id, LogQuery()):
            if _SAID.encode() in entry.data:
                return True
        await asyncio.sleep(0.001)
    return False


def rows(result: dict[str, Any]) -> list[Row]:
    what = f"{result['written_mib']} MiB written on"
    found = [
        ("machine", machine.describe(result["machine"])),
        (f"snapshot, {what} {result['image_mib']} MiB", spread(result["snapshot_ms"])),
        ("of which it stood still", spread(result["paused_ms"])),
        (f"snapshot, {what} a single program", spread(result["small_ms"])),
        ("start of it, until it has answered", spread(result["start_ms"])),
        (f"fork({result['forks']}), to the last answer", spread(result["fork_ms"])),
        ("until each program has answered", spread(result["fork_ran_ms"])),
        ("failed", number(result["failed"])),
        ("left behind", number(result["leftovers"])),
    ]
    return found + [("", text) for text in result["failures"]]
