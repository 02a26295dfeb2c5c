"""New sandboxes on the files of another: copied once, shared by all of them as a read-only layer, each with a writable
one of its own. Files only: main programs start anew, memory and processes stay where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec

from joey.model.errors import Invalid, JoeyError
from joey.model.snapshots import ForkBody
from joey.model.spec import SandboxSpec
from joey.model.views import Sandbox

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine

MOST = 10_000
_AT_A_TIME = 64


async def fork(engine: Engine, ref: str, body: ForkBody) -> AsyncGenerator[tuple[int, Sandbox | JoeyError], None]:
    """(number from 0, the new sandbox or why there is none), as they are ready. Closed early, those not yet told of are
    removed and the rest is not begun.

    The same specification (limits, user, network, volumes …) and owner, new ids, no names. Raises what
    `Snapshots.for_forks` does, before the first.
    """
    if not 1 <= body.count <= MOST:
        raise Invalid("count", f"is a whole number from 1 to {MOST}")
    box = engine.find(ref)
    image = await engine.snapshots.for_forks(box, body.pause)
    try:
        async for one in _start(engine, box, _spec(box.spec, image.digest), body.count):
            yield one
    finally:
        engine.snapshots.drop(image)


def _spec(spec: SandboxSpec, digest: str) -> SandboxSpec:
    return msgspec.structs.replace(spec, image=digest, pull="missing", platform="", name="")


async def _start(
    engine: Engine, box: Box, spec: SandboxSpec, count: int
) -> AsyncGenerator[tuple[int, Sandbox | JoeyError], None]:
    ready: asyncio.Queue[tuple[int, Sandbox | JoeyError]] = asyncio.Queue()
    waiting = iter(range(count))
    untold: set[str] = set()

    async def worker() -> None:
        for number in waiting:
            try:
                made = (await engine.run(spec, owner=box.owner)).sandbox
            except JoeyError as error:
                ready.put_nowait((number, error))
            else:
                untold.add(made.id)
                ready.put_nowait((number, made))

    workers = [asyncio.ensure_future(worker()) for _ in range(min(_AT_A_TIME, count))]
    try:
        for _ in range(count):
            number, one = await _next(ready, workers)
            if isinstance(one, Sandbox):
                untold.discard(one.id)
            yield number, one
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for id in untold:
            await _remove(engine, id)


async def _next(
    ready: asyncio.Queue[tuple[int, Sandbox | JoeyError]], workers: list[asyncio.Task[None]]
) -> tuple[int, Sandbox | JoeyError]:
    """The next answer. Raises what a worker died of."""
    getting = asyncio.ensure_future(ready.get())
    try:
        while not getting.done():
            alive = [task for task in workers if not task.done()]
            await asyncio.wait([getting, *alive], return_when=asyncio.FIRST_COMPLETED)
            for task in workers:
                if task.done() and (error := task.exception()) is not None:
                    raise error
        return getting.result()
    finally:
        getting.cancel()


async def _remove(engine: Engine, id: str) -> None:
    try:
        await engine.remove(id, force=True)
    except JoeyError:  # somebody else was first
        return
