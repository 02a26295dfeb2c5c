"""The instances of one version and the invocations that wait for them. Belongs to the event loop; nothing here waits.

Who has been used last is used next: what load does not need becomes idle at the other end of the list, and goes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from joey.functions.histogram import Windows
from joey.functions.scaler import Demand, Limits, Scaler
from joey.functions.stats import Stats
from joey.functions.wire import Answer, Failure, Head, StartFailed
from joey.model.errors import JoeyError
from joey.model.function import AsyncConfig, Version

_COUNT_SECONDS = 0.01
_LATELY = 0.2
"""Weight of the newest in the moving averages of durations."""


class Runner(Protocol):
    """One instance, as `joey.functions.instance.Instance` is. gone: done, with the reason, once it can take no more.
    in_flight: what it works at, those included that nobody waits for any more. submit: the future never fails for what
    the function does. stop: no more invocations, and its end once those it has are over; with grace 0 at once.
    """

    id: str
    gone: asyncio.Future[Failure]

    @property
    def ready(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    def submit(self, head: Head, body: bytes, timeout: float) -> asyncio.Future[Answer]: ...

    async def stop(self, grace: float | None = None) -> None: ...


_ONLY_SCALING: dict[str, Any] = {
    "reserved": None, "provisioned": 0, "max_instances": None, "keep_alive": None, "tags": {}, "description": "",
    "async_": AsyncConfig(),
}  # fmt: skip
"""Fields of a function that an instance which runs has no notice of."""


class Deployed:
    """One version of an owner's function as it is run. Two with the same `key` can have the same instances: what they
    differ in, if anything, is how many and for how long.
    """

    __slots__ = ("function", "key", "owner", "version")

    def __init__(self, owner: str, version: Version) -> None:
        self.owner, self.version = owner, version
        self.function = (owner, version.name)
        runs = msgspec.json.encode(msgspec.structs.replace(version.spec, **_ONLY_SCALING))
        identity = hashlib.sha256(runs + version.code_sha256.encode()).hexdigest()[:16]
        self.key = (owner, version.name, version.version, identity)


@dataclass(slots=True, eq=False)
class Member:
    """An instance of a pool. started, idle: when it was, and since when it has nothing to do, of `Instances.now`.
    running: invocations it works at; served: those that are over.
    """

    runner: Runner
    started: float
    idle: float
    running: int = 0
    served: int = 0


class Pool:
    """Of one version. `want` is called when more instances are to be started than are starting."""

    def __init__(self, deployed: Deployed, stats: Stats, want: Callable[[Pool], None]) -> None:
        self.deployed, self.stats, self._want = deployed, stats, want
        self.places = deployed.version.spec.concurrency
        self.members: set[Member] = set()
        self.free: list[Member] = []
        """Those that can take one more, the one used last at the end."""
        self.waiting: deque[asyncio.Future[Member]] = deque()
        self.running = self.starting = self.missing = 0
        self.scaler = Scaler()
        self.limits = Limits(places=self.places)
        self.windows: Windows | None = None
        self.last = 0.0
        """When an invocation ended last."""
        self.draining = False
        """No more invocations come: its version is no more, or is run otherwise now."""
        self.start_seconds: float | None = None
        self.duration: float | None = None
        """Of an invocation, in seconds: moving averages, None for not known yet."""
        self.begun: dict[int, float] = {}
        """When those that run began, oldest first."""
        self._counted = (0.0, 0)
        self._abandoned = 0
        self.failures = 0
        """Starts that failed one after the other, the last at `failed_at`."""
        self.failed_at = 0.0
        self.not_before = 0.0

    # --- invocations -------------------------------------------------------------------------------------------------

    def take(self) -> Member | None:
        """A place at an instance that is ready; None if there is none, or others wait already."""
        return None if self.waiting else self._place()

    def _place(self) -> Member | None:
        free = self.free
        while free:
            member = free[-1]
            if not member.runner.ready:  # it is ending, and will be gone in a moment
                free.pop()
                continue
            member.running += 1
            self.running += 1
            if member.running >= self.places:
                free.pop()
            return member
        return None

    def wait(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Member]:
        """A place as soon as there is one. Whoever gives up cancels it, and calls `abandon`."""
        future: asyncio.Future[Member] = loop.create_future()
        self.waiting.append(future)
        return future

    def abandon(self) -> None:
        """Somebody who waited gave up, or was told not to wait: his future is done."""
        self._abandoned += 1
        if self._abandoned * 2 > len(self.waiting):
            self.waiting = deque(future for future in self.waiting if not future.done())
            self._abandoned = 0

    @property
    def crowd(self) -> int:
        """How many wait."""
        return len(self.waiting) - self._abandoned

    def give_back(self, member: Member, now: float) -> None:
        """An invocation has left its place."""
        self.running -= 1
        member.running -= 1
        member.served += 1
        self.last = now
        if not member.running:
            member.idle = now
        if member in self.members and member.runner.ready:
            if member.running == self.places - 1:
                self.free.append(member)
            self.serve()

    def serve(self) -> None:
        """Give free places to those who wait."""
        waiting = self.waiting
        while waiting:
            if waiting[0].done():
                waiting.popleft()
                self._abandoned -= 1
                continue
            member = self._place()
            if member is None:
                return
            waiting.popleft().set_result(member)

    def took(self, seconds: float) -> None:
        """How long an invocation was at an instance."""
        self.duration = seconds if self.duration is None else self.duration + _LATELY * (seconds - self.duration)

    # --- instances ---------------------------------------------------------------------------------------------------

    def add(self, runner: Runner, now: float, seconds: float) -> Member:
        """An instance has started, in so many seconds."""
        before = self.start_seconds
        self.start_seconds = seconds if before is None else before + _LATELY * (seconds - before)
        self.failures = 0
        member = Member(runner, now, now)
        self.members.add(member)
        self.free.append(member)
        self.serve()
        return member

    def drop(self, member: Member) -> bool:
        """It takes no more. Returns whether it was still there."""
        if member not in self.members:
            return False
        self.members.discard(member)
        if member in self.free:
            self.free.remove(member)
        return True

    def fail(self, error: JoeyError | StartFailed, count: int) -> None:
        """So many of those who wait are told why they wait in vain."""
        while self.waiting and count:
            future = self.waiting.popleft()
            if future.done():
                self._abandoned -= 1
            else:
                future.set_exception(error)
                count -= 1

    def demand(self, now: float) -> Demand:
        """What the scaler has to know. now: of `Instances.now`."""
        duration = self.duration
        if duration is not None and self.begun:  # one that has taken longer already says more than those before
            duration = max(duration, now - next(iter(self.begun.values())))
        return Demand(
            self.running, self.crowd, len(self.members), self.starting, duration, self.start_seconds,
            self._ending(now),
        )  # fmt: skip

    def _ending(self, now: float) -> int:
        """How many of those that run will have ended by the time a start takes: after as long as others took; one that
        has taken longer already after as long again. Looked at every few milliseconds.
        """
        if self.duration is None or self.start_seconds is None or not self.waiting:
            return 0
        if now - self._counted[0] > _COUNT_SECONDS:
            usual, start = self.duration, self.start_seconds
            ages = (now - begun for begun in self.begun.values())
            self._counted = now, sum((usual - age if age < usual else age) <= start for age in ages)
        return self._counted[1]

    def scale(self, now: float) -> list[Member]:
        """Ask for what is missing; returns the idle instances that are too many."""
        demand = self.demand(now)
        self.scaler.observe(now, demand.running + demand.waiting)
        wanted = self.scaler.desired(now, demand, self.limits)
        if not demand.running and not demand.waiting:
            wanted = self._idle(now, wanted)
        have = demand.ready + demand.starting
        self.missing = max(0, wanted - have) if now >= self.not_before else 0
        if self.missing:
            self._want(self)
        return self._surplus(demand.ready - wanted) if demand.ready > wanted else []

    def _idle(self, now: float, wanted: int) -> int:
        """Nothing runs or waits: the last one stays, goes and comes again as idle times tell. More than one is the
        scaler's matter.
        """
        windows = self.windows
        if self.draining:
            return 0
        if windows is None or not self.last:
            return wanted
        since = now - self.last
        warm = windows.prewarm <= since < windows.end
        if warm:
            return max(wanted, 1, self.limits.least)
        return wanted if wanted > 1 else self.limits.least

    def _surplus(self, count: int) -> list[Member]:
        idle = [member for member in self.free if not member.running]
        return idle[:count]

    @property
    def empty(self) -> bool:
        """Nothing is left of it."""
        return not (self.members or self.waiting or self.running or self.starting)
