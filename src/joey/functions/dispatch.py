"""From an invocation to a place at an instance: limits and waiting. One for the node.

What is beyond a limit is refused at once (TooMany) and never piles up: invocations of an owner, of a function with
reserved instances, those that wait for a function and those that wait at all are bounded, and so is how long they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from joey.functions.histogram import IdleTimes
from joey.functions.instances import LOOK, Bounds, Function, Instances
from joey.functions.pool import Deployed, Member, Pool, Runner
from joey.functions.stats import Stats
from joey.functions.wire import Answer, Head
from joey.model.errors import Busy, TooMany


@dataclass(slots=True)
class Served:
    """An answer and how it came about. cold: an instance was started for it."""

    answer: Answer
    instance: str
    cold: bool


class _Owner:
    __slots__ = ("reserved", "unreserved")

    def __init__(self) -> None:
        self.unreserved = self.reserved = 0


class Dispatcher(Instances):
    """Instances and who is let to them. start, happened: as of Instances."""

    def __init__(
        self,
        start: Callable[[Deployed], Awaitable[Runner]],
        *,
        bounds: Bounds | None = None,
        happened: Callable[..., None] = lambda kind, deployed, **data: None,
    ) -> None:
        super().__init__(start, bounds=bounds, happened=happened)
        self.waiting = 0
        self._owners: dict[str, _Owner] = {}

    # --- what is set -------------------------------------------------------------------------------------------------

    def reserve(self, owner: str, name: str, instances: int | None) -> None:
        """So many instances are this function's alone, and all it may have; None: as any other."""
        function = self.function(owner, name)
        mine = self._owners.setdefault(owner, _Owner())
        if (function.reserved is None) != (instances is None):  # what runs now counts on the other side from here on
            moved = function.running + function.waiting
            mine.unreserved += moved if instances is None else -moved
        mine.reserved += (instances or 0) - (function.reserved or 0)
        function.reserved = instances

    def most(self, owner: str) -> int:
        """Invocations of an owner at a time."""
        return self.bounds.key_running if owner else self.bounds.admin_running

    def remove(self, owner: str, name: str) -> None:
        """The function is gone; what is under way ends as it ends."""
        self.reserve(owner, name, None)
        function = self.functions[owner, name]
        if not function.running and not function.waiting:
            del self.functions[owner, name]
        else:
            function.idle, function.stats = IdleTimes(), Stats()

    # --- invocations -------------------------------------------------------------------------------------------------

    async def invoke(self, deployed: Deployed, head: Head, body: bytes, timeout: float) -> Served:
        """Have it answered. Raises TooMany, Busy, and what a start fails with: JoeyError, StartFailed."""
        pool = self.pools.get(deployed.key) or self.pool(deployed)
        function = self._enter(pool)
        clock = self._loop.time
        begun = clock()
        try:
            member = pool.take()
            if member is None:
                member = await self._wait(pool, function, begun)
        except BaseException:
            self._leave(pool, function)
            raise
        cold = not member.served and member.running == 1 and member.started >= begun
        stats = function.stats
        stats.invocations += 1
        if cold:
            stats.cold_starts += 1
        ready = clock()
        stats.waits.add(ready - begun)
        pool.scaler.seen.set(ready, pool.running + pool.crowd)
        number = next(self._numbers)
        pool.begun[number] = ready
        kept = False
        try:
            answer = await member.runner.invoke(head, body, timeout)
            if answer.failure is not None:
                stats.failed(answer.failure.type)
            if answer.chunks is not None:
                chunks = answer.chunks
                answer.chunks = _Chunks(chunks, lambda: self._done(pool, function, member, number))
                kept = True
            return Served(answer, member.runner.id, cold)
        finally:
            if not kept:
                self._done(pool, function, member, number)

    def _enter(self, pool: Pool) -> Function:
        """One more invocation. Raises TooMany naming the limit."""
        deployed = pool.deployed
        function = self.functions[deployed.function]
        if self._closing:
            raise Busy("functions", "the engine is ending", "come back later")
        under_way = function.running + function.waiting
        mine = self._owners.get(deployed.owner)
        if mine is None:
            mine = self._owners[deployed.owner] = _Owner()
        if function.reserved is not None:
            cap = function.reserved * pool.places
            if under_way >= cap:
                raise self._refused(function, "reserved", f"has {cap} places reserved and no more", "raise `reserved`")
        elif mine.unreserved >= self.most(deployed.owner) - mine.reserved:
            free = self.most(deployed.owner) - mine.reserved
            text = f"{mine.unreserved} invocations of its owner are under way, of {free} that nothing is reserved from"
            raise self._refused(function, "owner", text, "wait for some")
        if pool.limits.most == 0:
            raise self._refused(function, "max_instances", "may have no instances", "raise max_instances")
        if not under_way:
            now = self._loop.time()
            if function.last:
                function.idle.add(now - function.last)
            due = self._due.get(id(pool))
            if due is None or due > now + LOOK:
                self._look(pool, now + LOOK)
        if function.reserved is None:
            mine.unreserved += 1
        function.running += 1
        return function

    def _leave(self, pool: Pool, function: Function) -> None:
        function.running -= 1
        function.last = self._loop.time()
        if function.reserved is None:
            self._owners[function.owner].unreserved -= 1

    def _done(self, pool: Pool, function: Function, member: Member, number: int) -> None:
        self._leave(pool, function)
        now = function.last
        ready = pool.begun.pop(number)
        pool.took(now - ready)
        function.stats.durations.add(now - ready)
        pool.give_back(member, now)
        pool.scaler.seen.set(now, pool.running + pool.crowd)
        if pool.draining:
            self._rescale(pool)

    async def _wait(self, pool: Pool, function: Function, begun: float) -> Member:
        bounds = self.bounds
        if function.waiting >= bounds.function_waiting or self.waiting >= bounds.waiting:
            text = f"{function.waiting} invocations wait for it already"
            raise self._refused(function, "waiting", text, "come back later")
        future = pool.wait(self._loop)
        function.waiting += 1
        function.running -= 1
        self.waiting += 1
        timer = self._loop.call_later(bounds.seconds, self._waited, future, pool, function)
        try:
            self._ask(pool, begun)
            return await future
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                future.cancel()
                pool.abandon()
            elif future.exception() is None:
                pool.give_back(future.result(), self._loop.time())  # the place came as the caller left
            raise
        finally:
            timer.cancel()
            function.waiting -= 1
            function.running += 1
            self.waiting -= 1

    def _waited(self, future: asyncio.Future[Member], pool: Pool, function: Function) -> None:
        if not future.done():
            text = f"no instance became free within {self.bounds.seconds:g} s"
            future.set_exception(self._refused(function, "seconds", text, "come back later, or raise max_instances"))
            pool.abandon()

    def _refused(self, function: Function, reason: str, text: str, remedy: str) -> TooMany:
        function.stats.refused(reason)
        return TooMany("invocations", f"function {function.name}: {text}", remedy, retry_after=1)


class _Chunks:
    """A stream's pieces; its place is free at their end, whatever that is."""

    __slots__ = ("_chunks", "_done")

    def __init__(self, chunks: AsyncIterator[bytes], done: Callable[[], None]) -> None:
        self._chunks, self._done = chunks, done

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        """Nobody wants the rest."""
        try:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._end()

    def _end(self) -> None:
        done, self._done = self._done, _nothing
        done()


def _nothing() -> None:
    """It is done already."""


__all__ = ["Bounds", "Dispatcher", "Function", "Served"]
