"""What an earlier engine left: records on disk, children in launchers, cgroups. Intent meets reality."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from msgspec import json

from joey import images
from joey.engine.box import Box
from joey.engine.ends import UNSEEN
from joey.engine.fleet import Running
from joey.engine.launching import Launched, Launching
from joey.engine.networks import Link
from joey.engine.output import PIECE
from joey.engine.record import SIGKILL, Found, Phase, Recovered, Run
from joey.host import orphans
from joey.host.cgroup_files import CgroupError
from joey.host.launcher import LauncherError, LauncherGone
from joey.model import codec
from joey.model.resources import Resources
from joey.model.slot import Slot
from joey.model.spec import SandboxSpec
from joey.plan import flags as f

_log = logging.getLogger(__name__)
_MOST_PIECES = 32
"""Of output, read from one pipe at once: more than it holds."""

if TYPE_CHECKING:
    from joey.engine.fleet import Shard
    from joey.engine.schema import Row
    from joey.engine.supervisor import Engine
    from joey.host.wire import Child


async def recover(engine: Engine) -> None:
    """Find every sandbox again. What nobody knows any more is removed."""
    boxes = [_box(engine, row) for row in engine.store.load_all().rows]
    engine.warm.load()
    engine.forks.load()
    stored = [(box.id, box.spec.image) for box in boxes if not images.local(box.spec)]
    await asyncio.to_thread(images.recover, engine.instance, stored)
    machine = engine.machine
    machine.ids.adopt([box.slot.base for box in boxes if box.slot is not None])
    await machine.fleet.adopt()
    children = [(shard, child) for shard in machine.fleet.shards for child in await shard.list()]
    known = {child.key: (shard, child) for shard, child in children}
    await _find_orphans(engine, boxes, known)
    engine.execs.load()
    # Without a slot: launched while it was being written down where. It was not answered to, and goes with its slot.
    keys = {box.record.key for box in boxes if box.slot is not None} | engine.execs.keys
    places = _places(boxes) | engine.execs.places({box.id: box.slot.name for box in boxes if box.slot is not None})
    for key, (shard, child) in tuple(known.items()):
        if child.running and key in places:  # should this launcher end now, the next one finds it
            shard.running[key] = Running(child.pid, *places[key])
        shard.children += 1
        if key not in keys:  # of an exec whose client is gone, or of a sandbox that was never written down
            del known[key]
            shard.children -= 1
            with contextlib.suppress(LauncherError, LauncherGone):
                if child.running and orphans.never_breaks(child.pid):  # nor was it ever answered
                    await shard.launcher.signal(key, SIGKILL)
                await shard.launcher.disown(key)
    placed = [(box, box.slot.name) for box in boxes if box.slot is not None]
    # Whoever runs without a record that says so (the engine ended before it could write that down) is ended, also in
    # the slot of a sandbox whose files are kept.
    running = [slot for box, slot in placed if box.record.run in (Run.ALIVE, Run.LAUNCHING) and box.record.key in known]
    machine.sweep(running, (slot for _, slot in placed))
    engine.snapshots.recover(slot for box, slot in placed if box.record.phase is Phase.PAUSED)
    await engine.networks.recover(_linked(boxes, known))
    for box in boxes:
        engine.add(box)
        await _reconcile(engine, box, known.get(box.record.key))
    await engine.execs.take_over(known, {box.id: box.slot.name if box.slot else "" for box in boxes}, machine.fleet)
    for shard in machine.fleet.shards:
        machine.fleet.retire(shard)


def warm(launching: Launching) -> asyncio.Future[None]:
    """Have a thread make what the first launch would have to wait for; done when it is there."""

    def say(work: asyncio.Future[None]) -> None:
        if not work.cancelled() and (error := work.exception()):
            _log.error("the image of this host cannot be made: %s", error)

    work = asyncio.ensure_future(asyncio.to_thread(launching.warm))
    work.add_done_callback(say)
    return work


def _linked(boxes: Iterable[Box], known: dict[int, tuple[Shard, Child]]) -> list[tuple[Box, int]]:
    """Those that run on with a link, and their pids. The link of any other is gone, or will be."""
    found = []
    for box in boxes:
        child = known[box.record.key][1] if box.record.key in known else None
        if child is not None and child.running and box.record.run in (Run.ALIVE, Run.LAUNCHING):
            found += [(box, child.pid)] if box.link is not None else []
        else:
            box.link = None
    return found


def _places(boxes: Iterable[Box]) -> dict[int, tuple[str, bool]]:
    """What `Running` says of their first processes, by key."""
    alive = [box for box in boxes if box.record.run in (Run.ALIVE, Run.LAUNCHING)]
    return {box.record.key: (box.slot.name, True) for box in alive if box.slot is not None}


async def _find_orphans(engine: Engine, boxes: Iterable[Box], known: dict[int, tuple[Shard, Child]]) -> None:
    """Sandboxes that run on although no launcher knows them: it ended while no engine was there."""
    for box in boxes:
        record = box.record
        if record.run in (Run.ALIVE, Run.LAUNCHING) and record.key not in known and box.slot is not None:
            try:
                found = await engine.machine.fleet.find(record.key, box.slot.name, record.started or time.time())
            except OSError as error:
                _log.error("%s runs on, but cannot be taken over: %s", box.id, error)
                continue
            if found is not None:
                known[record.key] = found


def _box(engine: Engine, row: Row) -> Box:
    box = Box(engine, row.id, row.name, codec.decode(SandboxSpec, row.spec), row.created, row.owner)
    box.record = row.record
    meta = json.decode(row.meta, type=dict[str, Any])
    box.pool = str(meta.get("pool", ""))
    box.within = str(meta.get("within", ""))
    if meta.get("link"):
        box.link = codec.convert(Link, meta["link"])
    if row.slot:
        box.slot = Slot(name=row.slot, base=row.base, prepared=Resources.default())
    return box


async def _reconcile(engine: Engine, box: Box, known: tuple[Shard, Child] | None) -> None:
    found = None
    if known is not None and box.record.run in (Run.ALIVE, Run.LAUNCHING):
        shard, child = known
        engine.expect(child.key, box)
        if child.running and box.slot is not None:
            shard.running[child.key] = Running(child.pid, box.slot.name, True)
        fds = await shard.fetch(child.key)
        if child.running and box.slot is not None:
            with contextlib.suppress(LauncherError, LauncherGone):
                shard = await engine.machine.fleet.move(shard, child, Running(child.pid, box.slot.name, True), fds)
        box.took(Launched(shard, child.key, child.pid, fds))
        exit = None if child.running else engine.exit_of(box, child)
        found = Found(child.pid, child.started_ns / 1e9, _is_frozen(engine, box), exit)
    elif known is not None:
        with contextlib.suppress(LauncherError, LauncherGone):
            _log_rest(engine, box, await known[0].fetch(known[1].key))
            await known[0].launcher.disown(known[1].key)
        known[0].children -= 1
    box.apply(Recovered(time.time(), found, UNSEEN))


def _log_rest(engine: Engine, box: Box, fds: dict[int, int]) -> None:
    """Of one whose end is on disk: what the earlier engine was about to read of its output."""
    log = engine.kept.log(box.id)
    for role, fd in fds.items():
        if role != f.ROLE_STDIN:
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # nothing is left, though somebody has it open; EIO of a terminal
                for _ in range(_MOST_PIECES):
                    if not (data := os.read(fd, PIECE)):
                        break
                    log.write(2 if role == f.ROLE_STDERR else 1, data)
        os.close(fd)
    log.end()


def _is_frozen(engine: Engine, box: Box) -> bool:
    try:
        return box.slot is not None and engine.machine.cgroup.is_frozen(box.slot.name)
    except CgroupError:
        return False
