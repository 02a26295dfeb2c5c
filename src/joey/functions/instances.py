"""Instances of all versions: started when somebody waits or they are to be there, stopped when nothing needs them.

Starts in flight are bounded and go in turns (`turns.py`), so a function with a thousand waiting invocations does not
keep another's first one from starting. How many there should be: `scaler.py`; how long idle ones stay: `histogram.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from joey.functions.histogram import IdleTimes, Windows
from joey.functions.pool import Deployed, Member, Pool, Runner
from joey.functions.scaler import Limits, wanted_now
from joey.functions.stats import Stats
from joey.functions.turns import Turns
from joey.functions.wire import StartFailed
from joey.model.errors import Broken, Busy, JoeyError, TooMany

log = logging.getLogger("joey.functions")
LOOK = 1.0
"""Seconds between two looks at a version that has something to do."""
_SOON, _WAITING = 0.02, 0.25
"""The same while somebody waits: as long as a start takes, within these."""
_ROOM = 4
"""Idle instances that go when the node is full."""
_HOPELESS = 3
"""So many starts failed one after the other: all who wait are told."""
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """key_running, admin_running: invocations under way or waiting, of one key and of the administrator;
    function_waiting, waiting: those that wait, of one function and of all; seconds: that one waits at most. starts: of
    instances in flight; key_starts: of one key's; start_seconds: one that takes longer is not counted any more, since
    initializers may take a day.
    """

    key_running: int = 1000
    admin_running: int = 20_000
    function_waiting: int = 5000
    waiting: int = 20_000
    seconds: float = 60.0
    starts: int = 32
    key_starts: int = 24
    start_seconds: float = 5.0


@dataclass(slots=True)
class Function:
    """What all versions of one function share."""

    owner: str
    name: str
    reserved: int | None = None
    """Invocations at a time."""
    running: int = 0
    waiting: int = 0
    last: float = 0.0
    """When there was an invocation last; 0 for not yet."""
    idle: IdleTimes = field(default_factory=IdleTimes)
    stats: Stats = field(default_factory=Stats)
    pools: set[Pool] = field(default_factory=set)
    """Of its versions."""


class Instances:
    """start: makes an instance; raises StartFailed for what is the function's own fault, else JoeyError. happened: is
    told (kind, version, data) of starts and ends.
    """

    def __init__(
        self,
        start: Callable[[Deployed], Awaitable[Runner]],
        *,
        bounds: Bounds | None = None,
        happened: Callable[..., None] = lambda kind, deployed, **data: None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.functions: dict[tuple[str, str], Function] = {}
        self.pools: dict[tuple[str, str, str, str], Pool] = {}
        self.starts = 0
        self._starts_of: dict[str, int] = {}
        self._put_by: set[tuple[str, str, str, str]] = set()
        """Versions of keys that have as many starts in flight as they may."""
        self._start, self._happened = start, happened
        self._turns: Turns[tuple[str, str, str, str]] = Turns()
        self._looks: list[tuple[float, int, Pool]] = []
        self._numbers = count()
        self._due: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    # --- versions ----------------------------------------------------------------------------------------------------

    def function(self, owner: str, name: str) -> Function:
        """The state of a function, made if need be."""
        found = self.functions.get((owner, name))
        if found is None:
            found = self.functions[owner, name] = Function(owner, name)
        return found

    def pool(self, deployed: Deployed) -> Pool:
        """Of a version, made if need be."""
        pool = self.pools.get(deployed.key)
        if pool is None:
            function = self.function(*deployed.function)
            pool = self.pools[deployed.key] = Pool(deployed, function.stats, self._wants)
            function.pools.add(pool)
            self.limit(pool)
        return pool

    def limit(self, pool: Pool, provisioned: int | None = None) -> None:
        """Set its limits anew; provisioned: instances that are kept (None: as they are)."""
        spec = pool.deployed.version.spec
        least = pool.limits.least if provisioned is None else provisioned
        caps = [spec.max_instances, self.function(*pool.deployed.function).reserved]
        most = min((cap for cap in caps if cap is not None), default=1 << 30)
        pool.limits = Limits(0 if pool.draining else min(least, most), most, spec.concurrency)
        self._look(pool, self._loop.time())

    def retire(self, pool: Pool) -> None:
        """No more invocations come; those that are there are served, then its instances are stopped."""
        pool.draining = True
        self.limit(pool, 0)
        self._rescale(pool)

    def now(self) -> float:
        """Seconds of the clock that members' times are of."""
        return self._loop.time()

    # --- starting ----------------------------------------------------------------------------------------------------

    def _ask(self, pool: Pool, now: float) -> None:
        """Somebody waits: start at once what that takes, averages aside."""
        demand = pool.demand(now)
        pool.scaler.seen.set(now, demand.running + demand.waiting)
        wanted = min(wanted_now(demand, pool.limits), pool.limits.most)
        pool.missing = wanted - demand.ready - demand.starting
        if now < pool.not_before:
            self._look(pool, pool.not_before)
        elif pool.missing > 0:
            self._wants(pool)
        self._look(pool, self._next_look(pool, now))

    def _wants(self, pool: Pool) -> None:
        self._turns.add(pool.deployed.owner, pool.deployed.key)
        self._start_more()

    def _start_more(self) -> None:
        while self.starts < self.bounds.starts and not self._closing:
            key = self._turns.next()
            if key is None:
                return
            pool, owner = self.pools.get(key), key[0]
            if pool is None or pool.missing <= 0:
                self._turns.remove(owner, key)
                continue
            if owner and self._starts_of.get(owner, 0) >= self.bounds.key_starts:
                self._turns.remove(owner, key)
                self._put_by.add(key)
                continue
            pool.missing -= 1
            pool.starting += 1
            self._spawn(self._begin(pool, self._taken(owner)))

    def _taken(self, owner: str) -> Callable[[], None]:
        """A start is in flight until what this gives is called, or it has taken long."""
        self.starts += 1
        self._starts_of[owner] = self._starts_of.get(owner, 0) + 1
        held = True

        def free() -> None:
            nonlocal held
            timer.cancel()
            if not held:
                return
            held = False
            self.starts -= 1
            self._starts_of[owner] -= 1
            if not self._starts_of[owner]:
                del self._starts_of[owner]
            for key in [key for key in self._put_by if key[0] == owner]:
                self._put_by.discard(key)
                self._turns.add(owner, key)
            if not self._closing:
                self._start_more()

        timer = self._loop.call_later(self.bounds.start_seconds, free)
        return free

    async def _begin(self, pool: Pool, free: Callable[[], None]) -> None:
        begun = self._loop.time()
        try:
            runner = await self._start(pool.deployed)
        except StartFailed as failed:
            waves = self._failed(pool, begun)
            pool.stats.failed(failed.failure.type)
            pool.fail(failed, 1 if waves < _HOPELESS else len(pool.waiting))
            self._pause(pool, waves - _HOPELESS)
        except Busy as full:  # the node, or the owner's share of it: who waits goes on to wait
            log.info("function %s: no instance now: %s", pool.deployed.version.name, full)
            self._make_room(pool.deployed.owner if isinstance(full, TooMany) else None)
            self._put_off(pool, begun, full)
        except Broken as error:  # of the host or ours: it may go well the next time
            log.warning("function %s: an instance cannot start: %s", pool.deployed.version.name, error)
            self._put_off(pool, begun, error)
        except JoeyError as error:  # of the function: what it asks for cannot be had
            log.info("function %s: an instance cannot start: %s", pool.deployed.version.name, error)
            pool.fail(error, len(pool.waiting))
            self._pause(pool, self._failed(pool, begun))
        except Exception as error:
            log.exception("function %s: an instance cannot start", pool.deployed.version.name)
            self._put_off(pool, begun, Broken("start", f"{type(error).__name__}: {error}"))
        else:
            self._started(pool, runner, begun)
        finally:
            pool.starting -= 1
            if not self._closing:
                self._rescale(pool)
            free()

    def _make_room(self, owner: str | None) -> None:
        """The node is full, or what this owner may have of it: idle instances that nobody has reserved go, of those
        that have been idle for longest.
        """
        idle = [
            (member.idle, id(member), pool, member)
            for pool in self.pools.values()
            if owner in (None, pool.deployed.owner) and not pool.crowd
            for member in pool.free[: max(0, len(pool.members) - pool.limits.least)]
            if not member.running
        ]
        for _, _, pool, member in heapq.nsmallest(_ROOM, idle):
            pool.drop(member)
            self._spawn(self._stop(pool, member, "room"))

    def _failed(self, pool: Pool, begun: float) -> int:
        """A start has failed. Returns how many did one after the other: those that went on together count once."""
        if begun >= pool.failed_at:
            pool.failures += 1
            pool.failed_at = self._loop.time()
        return pool.failures

    def _put_off(self, pool: Pool, begun: float, error: JoeyError) -> None:
        """Try again in a moment; where that goes on and on and nothing is ready, tell those who wait."""
        waves = self._failed(pool, begun)
        if waves >= 2 * _HOPELESS and not pool.members:
            pool.fail(error, len(pool.waiting))
        self._pause(pool, min(waves - 1, 6))

    def _pause(self, pool: Pool, exponent: int) -> None:
        if exponent >= 0:
            pool.not_before = self._loop.time() + min(0.05 * 2.0 ** min(exponent, 9), _LONGEST_PAUSE)

    def _started(self, pool: Pool, runner: Runner, begun: float) -> None:
        now = self._loop.time()
        pool.stats.starts.add(now - begun)
        if runner.gone.done() or self._closing:
            self._spawn(self._stop(pool, Member(runner, now, now), "closing"))
            return
        member = pool.add(runner, now, now - begun)
        runner.gone.add_done_callback(lambda gone: self._gone(pool, member))
        self._happened("started", pool.deployed, instance=runner.id, seconds=now - begun)

    def _gone(self, pool: Pool, member: Member) -> None:
        if not pool.drop(member) or self._closing:
            return
        reason = "" if member.runner.gone.cancelled() else member.runner.gone.result().type
        self._happened("ended", pool.deployed, instance=member.runner.id, reason=reason)
        self._rescale(pool)

    def _rescale(self, pool: Pool) -> None:
        """Start what is missing, stop what is too much, forget what is empty."""
        now = self._loop.time()
        function = self.functions.get(pool.deployed.function)
        if function is not None and not pool.running and not pool.waiting:
            keep = pool.deployed.version.spec.keep_alive
            pool.windows = Windows(0.0, keep) if keep is not None else function.idle.windows()
        for member in pool.scale(now):
            pool.drop(member)
            self._spawn(self._stop(pool, member, "idle"))
        if now < pool.not_before and (pool.waiting or pool.limits.least > len(pool.members)):
            self._look(pool, pool.not_before)
        if pool.empty and (pool.draining or self._over(pool, now)):
            self._forget(pool)
            return
        self._look(pool, self._next_look(pool, now))

    def _over(self, pool: Pool, now: float) -> bool:
        """Nothing of it is to be warm any more, until somebody asks."""
        windows = pool.windows
        return not pool.limits.least and (windows is None or not pool.last or now - pool.last >= windows.end)

    def _next_look(self, pool: Pool, now: float) -> float:
        if pool.waiting:
            return now + min(max(pool.start_seconds or _WAITING, _SOON), _WAITING)
        if pool.running or pool.starting or len(pool.members) > max(1, pool.limits.least):
            return now + LOOK
        windows = pool.windows
        if windows is None or not pool.last:
            return now + 10 * LOOK
        edges = [pool.last + windows.prewarm, pool.last + windows.end]
        return max(now + LOOK, min((edge for edge in edges if edge > now), default=now + 60 * LOOK))

    def _forget(self, pool: Pool) -> None:
        self.pools.pop(pool.deployed.key, None)
        if (function := self.functions.get(pool.deployed.function)) is not None:
            function.pools.discard(pool)
        self._turns.remove(pool.deployed.owner, pool.deployed.key)
        self._due.pop(id(pool), None)

    async def _stop(self, pool: Pool, member: Member, reason: str, grace: float | None = None) -> None:
        with contextlib.suppress(JoeyError):
            await member.runner.stop(grace)
        self._happened("stopped", pool.deployed, instance=member.runner.id, reason=reason)

    async def kill(self, pool: Pool, instance: str) -> bool:
        """Stop one instance, whatever it does. Returns whether there was one."""
        for member in list(pool.members):
            if member.runner.id == instance:
                pool.drop(member)
                await self._stop(pool, member, "asked")
                self._rescale(pool)
                return True
        return False

    # --- time --------------------------------------------------------------------------------------------------------

    def _look(self, pool: Pool, when: float) -> None:
        """Look at it then, or earlier if that was asked for before."""
        due = self._due.get(id(pool))
        if due is not None and due <= when:
            return
        self._due[id(pool)] = when
        heapq.heappush(self._looks, (when, next(self._numbers), pool))
        if self._looks[0][0] == when:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._looks[0][0], self._tick) if self._looks else None

    def _tick(self) -> None:
        now = self._loop.time()
        while self._looks and self._looks[0][0] <= now:
            when, _, pool = heapq.heappop(self._looks)
            if self._due.get(id(pool)) == when:
                del self._due[id(pool)]
                if self.pools.get(pool.deployed.key) is pool:
                    self._rescale(pool)
        self._arm()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float = 5.0) -> None:
        """Stop every instance; those that wait are told to come back."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        ending = Busy("functions", "the engine is ending", "come back later")
        for pool in self.pools.values():
            pool.fail(ending, len(pool.waiting))
            for member in list(pool.members):
                pool.drop(member)
                self._spawn(self._stop(pool, member, "closing"))
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=seconds)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=1.0)
