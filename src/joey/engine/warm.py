"""How the engine starts the members of its pools, hands them out and finds them again: see `joey.engine.pools`.

A member is a sandbox with a record that says whose it is (`Row.meta`), known to nobody but its pool: no list, no name
and no reference leads to it. Handing out writes one record that makes it a sandbox of its owner, and answers once that
is on disk. Until then nothing inside has been touched, so after a crash it is either: a member as good as before, or
the owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING

from joey import images
from joey.engine.box import Box
from joey.engine.pools import Pool, Pools
from joey.engine.record import Phase, RemoveAsked, Run, StartAsked
from joey.model import codec
from joey.model.errors import JoeyError
from joey.model.pool import PoolSpec, check, warm
from joey.model.spec import SandboxSpec

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

_log = logging.getLogger(__name__)


async def launch(engine: Engine, box: Box) -> Box:
    """Start a box of the engine's own, which admission knows. Raises JoeyError, nothing is left then."""
    try:
        await engine.complete(box)
        engine.admission.resize(box.id, box.spec.resources.memory)
        box.apply(StartAsked(engine.store.next_number("key")))
    except BaseException:
        engine.gone(box)
        raise
    try:
        await box.answer()
    except JoeyError:
        with contextlib.suppress(JoeyError):
            box.apply(RemoveAsked(True))
            await asyncio.shield(box.removed)
        raise
    return box


class Warm:
    """The pools of a real engine. `boxes`: members, ready or being started or removed, by id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.pools: Pools[Box] = Pools(self)
        self.boxes: dict[str, Box] = {}
        self._found: list[Box] = []
        self._stored: list[tuple[str, bytes, float]] = []

    # --- of the interface --------------------------------------------------------------------------------------------

    async def put(self, spec: PoolSpec, owner: str) -> Pool[Box]:
        """Make or change a pool; on disk when it returns. Raises JoeyError naming the field of `spec`."""
        engine = self._engine
        if images.local(spec.spec):
            launching = engine.machine.launching
            try:
                launching.check(launching.complete(spec.spec))
                engine.networks.check(spec.spec, owner)
            except JoeyError as error:
                error.where = f"spec.{error.where}"
                raise
        pool = self.pools.put(owner, spec)
        engine.store.save_pool(owner, spec.name, codec.encode(spec), pool.created)
        await engine.store.flush()
        return pool

    async def remove(self, name: str, owner: str | None) -> None:
        """Raises NotFound. First the pool goes from disk: members without one are removed by the next engine."""
        pool, engine = self.pools.find(name, owner), self._engine
        engine.store.delete_pool(pool.owner, pool.spec.name)
        self.pools.remove(pool)
        await engine.store.flush()
        left = [box.removed for box in self.boxes.values() if (box.pool, box.owner) == (pool.spec.name, pool.owner)]
        if left:
            await asyncio.wait(left, timeout=10)

    # --- handing out -------------------------------------------------------------------------------------------------

    async def hand_out(self, name: str, spec: SandboxSpec, owner: str) -> Box | None:
        """A sandbox of `spec` out of a pool, None if there is none ready. Raises NotFound, and Invalid or Unenforceable
        naming what cannot be changed on a warm one; TooMany, Busy; Conflict (the name is taken).
        """
        engine, pool = self._engine, self.pools.get(name, owner)
        check(name, pool.spec.spec, spec, late_env=pool.spec.late_env)
        box = self.pools.take(pool)
        if box is None:
            return None
        before = box.spec
        try:
            request = engine.machine.launching.complete(spec, box.id)
            engine.admission.resize(box.id, spec.resources.memory)
            engine.claim(box, spec.name)
        except JoeyError:
            engine.admission.hold(box.id, before.resources.memory, runs=True)
            self.pools.give_back(pool, box)
            raise
        del self.boxes[box.id]
        box.pool, box.created = "", time.time()
        engine.add(box)
        box.become(spec, request)
        on_disk = engine.store.flushed()
        try:
            if before.resources != box.spec.resources:
                await on_disk  # from here on it is no member any more, whatever happens
                await box.limit(before.resources)
            if error := await on_disk:
                raise error
        except BaseException:
            with contextlib.suppress(JoeyError):
                box.apply(RemoveAsked(True))
            raise
        box.tell("created", pool=name)
        box.tell("started", restarts=0)
        return box

    # --- members: joey.engine.pools.Host -----------------------------------------------------------------------------

    async def start_member(self, pool: Pool[Box]) -> Box:
        engine, spec = self._engine, warm(pool.spec.spec)
        box = Box(engine, secrets.token_hex(12), "", spec, time.time(), pool.owner)
        box.pool = pool.spec.name
        engine.admission.enter(box.id, box.owner)
        self.boxes[box.id] = box
        return await launch(engine, box)

    def usable(self, member: Box) -> bool:
        return member.record.phase is Phase.RUNNING and member.record.run is Run.ALIVE

    def discard(self, member: Box) -> None:
        with contextlib.suppress(JoeyError):
            member.apply(RemoveAsked(True))

    def crowded(self) -> bool:
        return self._engine.crowded

    def tell_pool(self, pool: Pool[Box], type: str, **data: str | int) -> None:
        news = self._engine.news
        news.emit(f"pool.{type}", sandbox="", name=pool.spec.name, labels=None, owner=pool.owner, **data)

    # --- after a start of the engine ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read what pools there were. To be called before anything is saved."""
        self._stored = self._engine.store.load_pools()

    def found(self, box: Box) -> None:
        """A member that an earlier engine left."""
        self.boxes[box.id] = box
        self._found.append(box)

    def recover(self) -> None:
        """Pools go on with the members found, which have been reconciled with what runs. What is no pool's, or not what
        its pool is made of now, or does not run, goes.
        """
        for owner, spec, created in self._stored:
            self.pools.put(owner, codec.decode(PoolSpec, spec), created)
        self._stored = []
        found, self._found = self._found, []
        for box in found:
            if box.id not in self.boxes or self._engine.forks.holds(box):
                continue
            try:
                pool = self.pools.get(box.pool, box.owner)
            except JoeyError:
                self.discard(box)
                continue
            if self.usable(box) and box.spec == warm(pool.spec.spec):
                self.pools.adopt(pool, box)
            else:
                self.discard(box)
