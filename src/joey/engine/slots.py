"""The pool of slots: made ahead by the worker, refilled by itself, never handed out twice.

An empty pool is only slower, never an error.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine
from typing import NamedTuple

from joey.engine.fleet import Fleet, refused
from joey.host.cgroup_files import CgroupError
from joey.host.idranges import IdRanges
from joey.host.launcher import Done, LauncherError, LauncherGone
from joey.model.cgroup import CgroupLayout
from joey.model.errors import Broken, JoeyError
from joey.model.resources import Resources
from joey.model.slot import Slot, slot_name
from joey.plan import setup
from joey.plan.encode import encode
from joey.plan.layout import BOXES
from joey.plan.ops import Plan
from joey.plan.template import Template, make

_IN_FLIGHT = 16
_QUIET_SECONDS = 0.03
_TRIES = 2
_RETRY_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A slot and its descriptors: user namespace, network namespace. They belong to the holder."""

    slot: Slot
    userns: int
    netns: int

    def close(self) -> None:
        os.close(self.userns)
        os.close(self.netns)


class Special(NamedTuple):
    """A kind of slot that is not made ahead. plan_for: what makes the plan of a slot, the same function for slots whose
    plans differ only in them. fds: what a plan needs.
    """

    plan_for: Callable[[Slot], Callable[[CgroupLayout, Slot], Plan]]
    fds: tuple[int, ...] = ()


class SlotPool:
    """`take` gives a slot to one sandbox, `clear` takes away all that was made for it.

    Slots are never used twice: a user namespace, network namespace or cgroup that has had a tenant is destroyed, not
    cleaned. number: gives slots their numbers, none ever twice.
    """

    def __init__(
        self, fleet: Fleet, layout: CgroupLayout, ids: IdRanges, number: Callable[[], int], target: int
    ) -> None:
        self._fleet = fleet
        self._layout = layout
        self._ids = ids
        self._number = number
        self._ready: deque[Prepared] = deque()
        self._making = 0
        self._target = target
        self._gate = asyncio.Semaphore(_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._quiet: asyncio.TimerHandle | None = None
        self._templates: dict[bool, Template] = {}
        self._kinds: dict[Callable[[CgroupLayout, Slot], Plan], Template | None] = {}
        self._clearings: dict[tuple[tuple[str, ...], bool], Template] = {}
        self._default = tuple(h.name for h in layout.default)
        self.crowded: Callable[[], bool] = lambda: False
        """Whether so many are being started that slots had better be made later."""
        self.pending: set[str] = set()
        """Names of slots whose clearing has not succeeded yet."""

    @property
    def ready(self) -> int:
        return len(self._ready)

    async def take(self) -> Prepared:
        """A slot of one's own. Raises Busy when ids run out, HostFailed and its kin when the kernel refuses."""
        self._refill_later()
        return self._ready.popleft() if self._ready else await self._make()

    async def revive(self, slot: Slot, files: bool = True) -> Prepared:
        """The slot of a sandbox that ran before, its files as it left them, all else new. files: whether they are
        there.
        """
        async with self._gate:
            repairs = self._fleet.repairs
            try:
                return await self._make_in(slot, revive=files)
            except LauncherGone as error:
                raise _gone(error) from error
            except JoeyError:
                if not await self._repaired(repairs):
                    raise
        await self.clear(slot, self._default, files=False)
        return await self._make_in(slot, revive=files)

    async def make(self, special: Special | None = None) -> Prepared:
        """One that was not made ahead, so that those that were are left. special: one of another kind."""
        return await self._make(special)

    def discard(self, prepared: Prepared) -> None:
        """Clear away one that nobody has used."""
        prepared.close()
        self.clear(prepared.slot, self._default)

    async def prepare(self, count: int) -> None:
        """Make sure that `count` are ready now. The pool does not keep as many by itself afterwards."""
        while self.ready < count and not self._closing:
            wanted = min(_IN_FLIGHT, count - self.ready)
            self._ready.extend(await asyncio.gather(*(self._make() for _ in range(wanted))))

    def clear(self, slot: Slot, hierarchies: tuple[str, ...], *, files: bool = True) -> asyncio.Task[None]:
        """Remove the cgroups of a slot, and with `files` its directories and claim on ids, in the background; retried
        until it has succeeded.
        """
        self.pending.add(slot.name)
        return self._spawn(self._clear(slot, hierarchies, files))

    async def close(self) -> None:
        """Clear every slot nobody has taken, and wait for all clearing."""
        self._closing = True
        if self._quiet is not None:
            self._quiet.cancel()
        while self._ready or self._tasks:
            while self._ready:
                prepared = self._ready.popleft()
                prepared.close()
                self.clear(prepared.slot, self._default)
            await asyncio.wait(self._tasks)  # one that was being made comes only now

    async def _make(self, special: Special | None = None) -> Prepared:
        """A new one. When the worker goes away under it, what it has made is unknown: another slot is tried."""
        async with self._gate:
            for left in reversed(range(_TRIES)):
                repairs = self._fleet.repairs
                slot = Slot(name=slot_name(self._number()), base=self._ids.take(), prepared=Resources.default())
                try:
                    return await self._make_in(slot, special=special)
                except LauncherGone as error:
                    self.clear(slot, self._default)
                    if not left:
                        raise _gone(error) from error
                except JoeyError:
                    self.clear(slot, self._default)
                    if not left or not await self._repaired(repairs):
                        raise
                except BaseException:
                    self.clear(slot, self._default)
                    raise
            raise AssertionError

    async def _repaired(self, repairs: int) -> bool:
        """Whether it failed for want of the instance's cgroups, which are there again."""
        try:
            return await self._fleet.repair(repairs)
        except (OSError, CgroupError) as error:
            _log.error("cgroups cannot be made again: %s", error)
            return False

    async def _make_in(self, slot: Slot, *, revive: bool = False, special: Special | None = None) -> Prepared:
        def plan() -> Plan:
            if special:
                return special.plan_for(slot)(self._layout, slot)
            return setup.slot(self._layout, slot, revive=revive)

        try:
            encoded = self._special(special, slot) if special else self._template(revive).fill(slot)
            done = await (await self._fleet.worker()).run(0, encoded, special.fds if special else ())
        except LauncherError as error:
            raise refused(plan(), error, "make a slot") from error
        return Prepared(slot, *done.fds)

    def _special(self, special: Special, slot: Slot) -> bytes:
        plan = special.plan_for(slot)
        if plan not in self._kinds:
            self._kinds[plan] = make(lambda one: encode(plan(self._layout, one)), slot.prepared)
        found = self._kinds[plan]
        return found.fill(slot) if found is not None else encode(plan(self._layout, slot))

    def _template(self, revive: bool) -> Template:
        if revive not in self._templates:
            made = make(lambda slot: encode(setup.slot(self._layout, slot, revive=revive)), Resources.default())
            assert made is not None
            self._templates[revive] = made
        return self._templates[revive]

    async def _run(self, plan: bytes) -> Done:
        return await (await self._fleet.worker()).run(0, plan)

    async def _clear(self, slot: Slot, hierarchies: tuple[str, ...], files: bool) -> None:
        plan = self._clearing(hierarchies, files).fill(slot)
        attempt = 0
        while True:
            try:
                async with self._gate:
                    await self._run(plan)
                break
            except (OSError, JoeyError) as error:  # EBUSY: its last processes are not gone yet
                if isinstance(error, LauncherError) and error.errno == errno.EAGAIN:
                    continue
                if attempt == len(_RETRY_SECONDS):
                    _log.warning("slot %s cannot be cleared yet: %s", slot.name, error)
                if self._closing and attempt > 2 * len(_RETRY_SECONDS):
                    return  # stays in `pending`; found again by name at the next start
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
        self.pending.discard(slot.name)
        if files:
            self._ids.give_back(slot.base)

    def _clearing(self, hierarchies: tuple[str, ...], files: bool) -> Template:
        found = self._clearings.get((hierarchies, files))
        if found is None:
            storages = tuple(BOXES) if files else ()
            found = make(lambda slot: encode(setup.clear(hierarchies, storages, slot.name)), Resources.default())
            assert found is not None
            self._clearings[hierarchies, files] = found
        return found

    def _refill_later(self) -> None:
        """At once beside a launch or two, but not within a burst: making one costs as much as a launch."""
        if not self.crowded():
            self._refill()
            return
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._refill)

    def _refill(self) -> None:
        if not self._closing and self.ready + self._making < self._target:
            self._making += 1
            self._spawn(self._make_one())

    async def _make_one(self) -> None:
        try:
            self._ready.append(await self._make())
        except (OSError, JoeyError) as error:  # whoever wants one makes it himself, and hears why it fails
            _log.warning("no slot can be made ahead: %s", error)
            return
        finally:
            self._making -= 1
        self._refill()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _gone(error: LauncherGone) -> Broken:
    return Broken("make a slot", f"the worker went away: {error}", "try again")
