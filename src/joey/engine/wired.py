"""Slots with a link: wired ahead by themselves once somebody has asked for one, and taken down in groups.

The kernel's RTNL lock makes single links dear (0.6 ms each in batches, 30 ms for one that is removed alone), so all of
it is done by one thread that takes together whatever waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from joey.engine.slots import Prepared, SlotPool
from joey.model.errors import JoeyError
from joey.network.fabric import Fabric, Wire

T = TypeVar("T")
_WIRED_TOGETHER, _ENDED_TOGETHER = 16, 64
_IN_FLIGHT = 16
_QUIET_SECONDS = 0.03
_END_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Wired(NamedTuple):
    """A slot and its link. `fresh`: nobody has used it, and its files of /etc are the plain ones."""

    prepared: Prepared
    wire: Wire
    fresh: bool = False


class Wiring:
    """Makes and releases links. Its thread is in the network namespace of the one that makes it first do something."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="joey-network")
        self._wanted: deque[tuple[int, Callable[[Wire], None], asyncio.Future[Wire]]] = deque()
        self._ended: deque[Wire] = deque()
        self._work: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self.fabric: Fabric

    async def run(self, call: Callable[[], T]) -> T:
        """Do something in the thread, in its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def wire(self, netns: int, then: Callable[[Wire], None]) -> Wire:
        """A link into a network namespace; `then` is called in the thread when it is there. Raises JoeyError."""
        future: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._wanted.append((netns, then, future))
        self._go()
        return await future

    def end(self, wire: Wire) -> None:
        """Take down the link of one that was dismissed, and forget its connections: a moment later, with others.
        Failures are logged: the next start of an engine finds what is left.
        """
        self._ended.append(wire)
        if self._ending is None or self._ending.done():
            self._ending = asyncio.ensure_future(self._end())

    async def settled(self) -> None:
        """Return when nothing is under way."""
        for task in (self._work, self._ending):
            if task is not None:
                await asyncio.wait((task,))

    async def close(self) -> None:
        """Wait for what is under way."""
        await self.settled()
        await asyncio.to_thread(self._thread.shutdown)

    def _go(self) -> None:
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._do())

    async def _do(self) -> None:
        await asyncio.sleep(0)  # whoever else asks just now comes along
        while self._wanted:
            await self._wire([self._wanted.popleft() for _ in range(min(_WIRED_TOGETHER, len(self._wanted)))])

    async def _wire(self, some: list[tuple[int, Callable[[Wire], None], asyncio.Future[Wire]]]) -> None:
        def work() -> list[Wire]:
            made = self.fabric.wire_many([netns for netns, _, _ in some])
            try:
                for (_, then, _), wire in zip(some, made, strict=True):
                    then(wire)
            except BaseException:
                self.fabric.release(made)
                raise
            return made

        try:
            wires = await self.run(work)
        except Exception as error:
            if len(some) > 1:  # one that cannot be wired is no fault of the others
                for one in some:
                    await self._wire([one])
            elif not some[0][2].done():
                some[0][2].set_exception(error)
            return
        for (_, _, future), wire in zip(some, wires, strict=True):
            if future.done():  # nobody waits any more
                self.end(wire)
            else:
                future.set_result(wire)

    async def _end(self) -> None:
        while self._ended:
            await asyncio.sleep(_END_SECONDS)
            try:
                while self._ended:
                    some = [self._ended.popleft() for _ in range(min(_ENDED_TOGETHER, len(self._ended)))]
                    await self.run(partial(self.fabric.take_down, some))
                await self.run(self.fabric.forget)
            except Exception as error:
                _log.error("links of sandboxes that have ended are left over: %s", error)


class WiredSlots:
    """The pool of slots with a link. `plain(slot, wire)` writes the files of /etc that most sandboxes have.

    As with all slots, each is used once, and an empty pool is only slower.
    """

    def __init__(self, pool: SlotPool, wiring: Wiring, target: int, plain: Callable[[Prepared, Wire], None]) -> None:
        self._pool = pool
        self._wiring = wiring
        self._target = target
        self._plain = plain
        self._ready: deque[Wired] = deque()
        self._making = 0
        self._closing = False
        self._quiet: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> int:
        return len(self._ready)

    async def take(self) -> Wired:
        """A slot of one's own. Raises JoeyError."""
        self._refill_later()
        return self._ready.popleft() if self._ready else await self._wire(await self._pool.take())

    async def prepare(self, count: int) -> None:
        """Make sure that `count` are ready now."""
        while self.ready < count and not self._closing:
            wanted = min(_IN_FLIGHT, count - self.ready)
            self._ready.extend(await asyncio.gather(*(self._make() for _ in range(wanted))))

    async def close(self) -> None:
        """Give up those that nobody has taken."""
        self._closing = True
        if self._quiet is not None:
            self._quiet.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        some = list(self._ready)
        self._ready.clear()
        for one in some:
            self._wiring.end(one.wire)
            self._pool.discard(one.prepared)

    async def _make(self) -> Wired:
        return await self._wire(await self._pool.make())

    async def _wire(self, prepared: Prepared) -> Wired:
        try:
            wire = await self._wiring.wire(prepared.netns, lambda wire: self._plain(prepared, wire))
        except BaseException:
            self._pool.discard(prepared)
            raise
        return Wired(prepared, wire, fresh=True)

    def _refill_later(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        if self._pool.crowded():
            self._quiet = asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._refill)
        else:
            self._refill()

    def _refill(self) -> None:
        while not self._closing and self.ready + self._making < self._target and self._making < _IN_FLIGHT:
            self._making += 1
            self._spawn(self._make_one())

    async def _make_one(self) -> None:
        try:
            self._ready.append(await self._make())
        except (OSError, JoeyError) as error:  # whoever wants one makes it himself, and hears why it fails
            _log.warning("no slot with a link can be made ahead: %s", error)
            return
        finally:
            self._making -= 1
        if not self._pool.crowded():
            self._refill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
