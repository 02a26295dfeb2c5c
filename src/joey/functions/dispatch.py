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

_NOTICE = 0.05
"""Seconds between two looks at whether an instance has noticed that nobody reads."""


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
        self.limits: Callable[[str], int | None] = lambda owner: None
        """Of a key: invocations at a time, None for key_running."""
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
        if not owner:
            return self.bounds.admin_running
        given = self.limits(owner)
        return self.bounds.key_running if given is None else given

    def remove(self, owner: str, name: str) -> None:
        """The function is gone; what is under way ends as it ends."""
        self.reserve(owner, name, None)
        function = self.functions[owner, name]
        if not function.running and not function.waiting:
            del self.functions[owner, name]
        else:
            function.idle, function.stats = IdleTimes(), Stats()

    # --- invocations -------------------------------------------------------------------------------------------------

    async def invoke(self, deployed: Deployed, head: Head, body: bytes, timeout: float, *, cut: bool = False) -> Served:
        """Have it answered. Whoever leaves before that does not end it, as with AWS Lambda: it keeps its place; with
        `cut` its instance is ended, unless others are in there. Raises TooMany, Busy, and what a start fails with:
        JoeyError, StartFailed.
        """
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

        def over(_: object = None) -> None:
            self._done(pool, function, member, number)

        kept = False
        try:
            future = member.runner.submit(head, body, timeout)
            try:
                answer = await asyncio.shield(future)
            except asyncio.CancelledError:
                kept = True
                future.add_done_callback(_unread)
                future.add_done_callback(over)
                if cut and pool.places == 1 and not future.done():
                    pool.drop(member)
                    self._spawn(self._stop(pool, member, "cut", 0.0))
                raise
            if answer.failure is not None:
                stats.failed(answer.failure.type)
            if answer.chunks is not None:
                answer.chunks = _Chunks(answer.chunks, over, lambda: self._spawn(self._freed(member, over)))
                kept = True
            return Served(answer, member.runner.id, cold)
        finally:
            if not kept:
                over()

    async def _freed(self, member: Member, over: Callable[[], None]) -> None:
        """A stream that nobody reads: its place is free once the instance has noticed."""
        while member.runner.in_flight >= member.running and not member.runner.gone.done():
            await asyncio.sleep(_NOTICE)
        over()

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
    """A stream's pieces. over: at their end, whatever that is; left: when nobody reads the rest."""

    __slots__ = ("_chunks", "_left", "_over")

    def __init__(self, chunks: AsyncIterator[bytes], over: Callable[[], None], left: Callable[[], None]) -> None:
        self._chunks, self._over, self._left = chunks, over, left

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except asyncio.CancelledError:
            raise  # it may be read on; else it is closed
        except BaseException:
            self._end(self._over)
            raise

    async def aclose(self) -> None:
        """Nobody wants the rest. At its end, or done again: nothing."""
        try:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._end(self._left)

    def _end(self, what: Callable[[], None]) -> None:
        self._over = self._left = _nothing
        what()


def _nothing() -> None:
    """It is done already."""


def _unread(future: asyncio.Future[Answer]) -> None:
    """An answer that nobody waits for."""
    chunks = None if future.cancelled() or future.exception() else future.result().chunks
    close = getattr(chunks, "aclose", None)
    if close is not None:
        _closing.add(task := asyncio.ensure_future(close()))
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()

__all__ = ["Bounds", "Dispatcher", "Function", "Served"]
