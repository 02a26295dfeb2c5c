"""Warm pools: sandboxes started ahead, handed out once each, refilled beside the work. Of any kind of engine: how a
member is started and thrown away is its own (`Host`).

A member belongs to its pool until `take`, which gives it to exactly one caller: it is in no list any more then, and
what becomes of it is the caller's. An empty pool is only slower, never an error. A pool refills itself, `max_starting`
at a time, but not while many are being started for somebody (`crowded`), nor, unless it is half empty, just after it
has handed out: whoever has taken one is using the processors now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from joey.model.errors import Conflict, JoeyError, NotFound, TooMany
from joey.model.pool import PoolSpec
from joey.model.views import Pool as PoolView

QUIET_SECONDS = 0.03
_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
_LIVED_SECONDS = 10.0
"""Who has ended by himself sooner makes the next wait."""
_log = logging.getLogger(__name__)
KEY_COUNT = 100
"""Pools of one API key."""


class Member(Protocol):
    """A sandbox as pools know it."""

    id: str


M = TypeVar("M", bound=Member)


class Host(Protocol[M]):
    """What pools need of an engine."""

    async def start_member(self, pool: Pool[M]) -> M:
        """Start one and make it known as the pool's before that. Raises JoeyError, nothing is left then."""

    def usable(self, member: M) -> bool:
        """Whether it still runs."""

    def discard(self, member: M) -> None:
        """End and remove it, in the background."""

    def crowded(self) -> bool:
        """Whether so many are being started for somebody that members had better be started later."""

    def tell_pool(self, pool: Pool[M], type: str, **data: str | int) -> None:
        """An event `pool.` of it."""


class Pool(Generic[M]):
    """One pool. ready: members to hand out, oldest first. members: those and no others, by id."""

    def __init__(self, owner: str, spec: PoolSpec, created: float) -> None:
        self.owner, self.spec, self.created = owner, spec, created
        self.ready: deque[M] = deque()
        self.members: dict[str, M] = {}
        self.starting = self.handed_out = self.missed = self.failures = 0
        self.error: JoeyError | None = None
        self.version = 0
        """Counts changes of what its members are made of: one that was being started meanwhile is no good."""
        self.over = False
        self.taken_at = self.lost_at = 0.0
        self.wake = asyncio.Event()
        self.full: list[asyncio.Future[None]] = []
        self.task: asyncio.Task[None] | None = None

    def view(self) -> PoolView:
        spec = self.spec
        return PoolView(
            name=spec.name, owner=self.owner, created=self.created, size=spec.size, max_starting=spec.max_starting,
            spec=spec.spec, ready=len(self.ready), starting=self.starting, handed_out=self.handed_out,
            missed=self.missed, error=str(self.error) if self.error else "",
        )  # fmt: skip


class Pools(Generic[M]):
    """All pools of an engine, by owner and name."""

    def __init__(self, host: Host[M]) -> None:
        self._host = host
        self._pools: dict[tuple[str, str], Pool[M]] = {}
        self._of: dict[str, Pool[M]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def __iter__(self) -> Iterator[Pool[M]]:
        return iter(self._pools.values())

    def get(self, name: str, owner: str) -> Pool[M]:
        """An owner's own. Raises NotFound."""
        found = self._pools.get((owner, name))
        if found is None:
            raise NotFound("pool", f"no pool has the name {name!r}", "joey pool ls")
        return found

    def find(self, name: str, owner: str | None) -> Pool[M]:
        """As `get`; owner None: anybody's, the administrator's first. Raises NotFound, Conflict (not unique)."""
        if owner is not None or ("", name) in self._pools:
            return self.get(name, owner or "")
        found = [pool for (_, one), pool in self._pools.items() if one == name]
        if len(found) > 1:
            raise Conflict(
                "pool", f"{len(found)} owners have a pool called {name!r}", "use the key of the one you mean"
            )
        return found[0] if found else self.get(name, "")

    def list(self, owner: str | None = None) -> Sequence[Pool[M]]:
        """In order of name."""
        return sorted((p for p in self if owner in (None, p.owner)), key=lambda p: (p.owner, p.spec.name))

    # --- change ------------------------------------------------------------------------------------------------------

    def put(self, owner: str, spec: PoolSpec, created: float | None = None) -> Pool[M]:
        """Make a pool, or change one: another size keeps its members, another spec does not. created: of one that an
        earlier engine had. Raises TooMany.
        """
        pool = self._pools.get((owner, spec.name))
        if pool is None:
            if owner and created is None and sum(whose == owner for whose, _ in self._pools) >= KEY_COUNT:
                raise TooMany("pools", f"this key has {KEY_COUNT} already", "remove some")
            pool = self._pools[owner, spec.name] = Pool(owner, spec, created or time.time())
            if created is None:
                self._host.tell_pool(pool, "created", size=spec.size)
        elif pool.spec != spec:
            before, pool.spec = pool.spec, spec
            if before.spec != spec.spec:
                pool.version += 1
                self._shrink(pool, 0)
            self._shrink(pool, spec.size)
        pool.failures, pool.error = 0, None
        self._go_on(pool)
        return pool

    def remove(self, pool: Pool[M]) -> None:
        """It and its members are no more. Sandboxes it has handed out are no members."""
        self._pools.pop((pool.owner, pool.spec.name), None)
        pool.over = True
        if pool.task is not None:
            pool.wake.set()
        self._shrink(pool, 0)
        self._settle(pool)
        self._host.tell_pool(pool, "removed", handed_out=pool.handed_out)

    async def filled(self, pool: Pool[M]) -> None:
        """Return when it is full, or cannot be filled (`pool.error`), or is removed."""
        if len(pool.ready) < pool.spec.size and pool.error is None and not pool.over:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            pool.full.append(future)
            await future

    async def close(self) -> None:
        """Start no more. Members stay what they are."""
        self._closing = True
        tasks = [task for task in (*self._tasks, *(pool.task for pool in self)) if task is not None]
        for pool in self:
            if pool.task is not None:
                pool.task.cancel()
            self._settle(pool)
        if tasks:
            await asyncio.wait(tasks)

    # --- members -----------------------------------------------------------------------------------------------------

    def adopt(self, pool: Pool[M], member: M) -> None:
        """A member that an earlier engine has started."""
        if len(pool.ready) >= pool.spec.size:
            self._host.discard(member)
            return
        self._add(pool, member)

    def take(self, pool: Pool[M]) -> M | None:
        """One that is the caller's alone from now on; None if none is ready."""
        pool.taken_at = time.monotonic()
        while pool.ready:
            member = pool.ready.popleft()
            del pool.members[member.id], self._of[member.id]
            if self._host.usable(member):
                pool.handed_out += 1
                self._go_on(pool)
                return member
            self._host.discard(member)
        pool.missed += 1
        self._go_on(pool)
        return None

    def give_back(self, pool: Pool[M], member: M) -> None:
        """Nothing has come of it, nothing in it was touched."""
        pool.handed_out -= 1
        if pool.over:
            self._host.discard(member)
        else:
            pool.ready.appendleft(member)
            pool.members[member.id], self._of[member.id] = member, pool

    def lost(self, id: str) -> None:
        """A sandbox is gone; if it was a member another one is started."""
        pool = self._of.pop(id, None)
        if pool is not None:
            pool.ready.remove(pool.members.pop(id))
            self._ended(pool)
            self._go_on(pool)

    def _ended(self, pool: Pool[M]) -> None:
        """A member has ended by itself. If all of them do so it is no use to start more and more of them."""
        pool.lost_at = time.monotonic()
        self._failed(
            pool, JoeyError("pool", "a sandbox that was started ahead has ended", "give it a program that stays")
        )

    def _failed(self, pool: Pool[M], error: JoeyError) -> None:
        """Whoever waits for it to be full hears of it; the next try waits longer."""
        pool.failures += 1
        pool.error = error
        self._settle(pool)

    def _add(self, pool: Pool[M], member: M) -> None:
        pool.ready.append(member)
        pool.members[member.id], self._of[member.id] = member, pool
        if len(pool.ready) == pool.spec.size:
            self._host.tell_pool(pool, "filled", size=pool.spec.size)
            self._settle(pool)

    def _shrink(self, pool: Pool[M], size: int) -> None:
        while len(pool.ready) > size:
            member = pool.ready.pop()
            del pool.members[member.id], self._of[member.id]
            self._host.discard(member)

    def _settle(self, pool: Pool[M]) -> None:
        waiting, pool.full = pool.full, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- refilling ---------------------------------------------------------------------------------------------------

    def _go_on(self, pool: Pool[M]) -> None:
        if len(pool.ready) + pool.starting >= pool.spec.size and pool.spec.size:
            if len(pool.ready) >= pool.spec.size:
                self._settle(pool)
            return
        if not pool.spec.size:
            self._settle(pool)
        elif pool.task is None and not self._closing and not pool.over:
            pool.task = asyncio.ensure_future(self._fill(pool))
        pool.wake.set()

    async def _fill(self, pool: Pool[M]) -> None:
        """Lives as long as something is missing."""
        try:
            while not (pool.over or self._closing) and (missing := self._missing(pool)) > 0:
                if pool.failures:
                    await self._rest(pool, _AGAIN_SECONDS[min(pool.failures, len(_AGAIN_SECONDS)) - 1])
                elif self._busy(pool):
                    await asyncio.sleep(QUIET_SECONDS)
                    continue
                count = min(missing, pool.spec.max_starting)
                await asyncio.gather(*(self._start(pool) for _ in range(count)))
        finally:
            pool.task = None

    def _missing(self, pool: Pool[M]) -> int:
        return pool.spec.size - len(pool.ready) - pool.starting

    def _busy(self, pool: Pool[M]) -> bool:
        if self._host.crowded():
            return True
        return 2 * len(pool.ready) >= pool.spec.size and time.monotonic() - pool.taken_at < QUIET_SECONDS

    async def _rest(self, pool: Pool[M], seconds: float) -> None:
        """After a failure; a change of the pool is a reason to try at once."""
        pool.wake.clear()
        version, spec = pool.version, pool.spec
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and pool.spec is spec and pool.version == version and not pool.over:
            try:
                await asyncio.wait_for(pool.wake.wait(), left)
            except TimeoutError:
                return
            pool.wake.clear()

    async def _start(self, pool: Pool[M]) -> None:
        version = pool.version
        pool.starting += 1
        try:
            member = await self._host.start_member(pool)
        except JoeyError as error:
            if not pool.failures:
                _log.warning("pool %s: no sandbox can be started ahead: %s", pool.spec.name, error)
            self._failed(pool, error)
            return
        except Exception as error:  # the pool must live to try again
            _log.exception("pool %s", pool.spec.name)
            self._failed(pool, JoeyError("pool", f"{type(error).__name__}: {error}", "this is a bug of Joey's"))
            return
        finally:
            pool.starting -= 1
        if time.monotonic() - pool.lost_at > _LIVED_SECONDS:
            pool.failures, pool.error = 0, None
        if pool.over or self._closing or pool.version != version or len(pool.ready) >= pool.spec.size:
            if not self._closing:
                self._host.discard(member)
        elif self._host.usable(member):
            self._add(pool, member)
        else:
            self._ended(pool)
