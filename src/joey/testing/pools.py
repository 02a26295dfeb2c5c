"""Warm pools of the fake engine: their members are ordinary processes. What pools do is the real engine's own code."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from joey.engine.pools import Pool, Pools
from joey.model.errors import JoeyError
from joey.model.pool import PoolSpec, check, warm
from joey.model.spec import SandboxSpec
from joey.model.views import Pool as PoolView

if TYPE_CHECKING:
    from joey.engine.admission import Admission
    from joey.engine.events import Events
    from joey.engine.owners import Registry
    from joey.testing.engine import _Box as Box


class FakePools:
    """The part of `FakeEngine` that has to do with pools."""

    admission: Admission
    _boxes: Registry[Box]
    _news: Events
    _pools: Pools[Box]
    _warm: dict[str, Box]
    _box: Any
    _run: Any
    _drop: Any
    _tell: Any
    _set_deadline: Any

    async def pool_create(self, pool: PoolSpec, *, owner: str = "", filled: bool = False) -> PoolView:
        """As the real engine's, with members that are ordinary processes."""
        self._box(pool.spec, owner)
        made = self._pools.put(owner, pool)
        if filled:
            await self._pools.filled(made)
        return made.view()

    def pools(self, owner: str | None = None) -> Sequence[PoolView]:
        """All of an owner."""
        return [pool.view() for pool in self._pools.list(owner)]

    def pool(self, name: str, owner: str | None = None) -> PoolView:
        """One."""
        return self._pools.find(name, owner).view()

    async def pool_remove(self, name: str, *, owner: str | None = None) -> None:
        """With its members."""
        self._pools.remove(self._pools.find(name, owner))

    async def _hand_out(self, name: str, spec: SandboxSpec, owner: str) -> Box | None:
        pool = self._pools.get(name, owner)
        check(name, pool.spec.spec, spec, late_env=pool.spec.late_env)
        box = self._pools.take(pool)
        if box is None:
            return None
        try:
            self.admission.resize(box.id, spec.resources.memory)
            self._boxes.claim(box, spec.name)
        except JoeyError:
            self.admission.hold(box.id, box.spec.resources.memory, runs=True)
            self._pools.give_back(pool, box)
            raise
        del self._warm[box.id]
        box.pool, box.spec, box.created = "", spec, time.time()
        self._boxes.add(box)
        self._tell(box, "created", pool=name)
        self._tell(box, "started", restarts=0)
        self._set_deadline(box, spec.timeout)
        return box

    async def start_member(self, pool: Pool[Box]) -> Box:
        """For its pools."""
        box = self._box(warm(pool.spec.spec), pool.owner)
        box.pool = pool.spec.name
        self.admission.enter(box.id, box.owner)
        self._warm[box.id] = box
        try:
            self.admission.resize(box.id, box.spec.resources.memory)
            await self._run(box)
        except JoeyError:
            self._drop(box)
            raise
        return box

    def usable(self, member: Box) -> bool:
        """Whether it runs."""
        return member.state == "running"

    def discard(self, member: Box) -> None:
        """Its end removes it."""
        if member.child is not None:
            member.child.kill(signal.SIGKILL)

    def crowded(self) -> bool:
        """Never."""
        return False

    def tell_pool(self, pool: Pool[Box], type: str, **data: str | int) -> None:
        """An event."""
        self._news.emit(f"pool.{type}", sandbox="", name=pool.spec.name, labels=None, owner=pool.owner, **data)
