"""Moments of the wall clock at which something is to be done: one heap, one timer of the event loop for the earliest.

What is not due costs nothing but its place. Deadlines are seconds since the epoch, because they outlive the engine; a
clock that is set forward brings them nearer, and is noticed within LOOK_SECONDS.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable

LOOK_SECONDS = 60.0
_STALE = 1024
_log = logging.getLogger(__name__)


class Timer:
    """One moment. `cancel` it, or let it come."""

    __slots__ = ("_timers", "at", "call")

    def __init__(self, timers: Timers, at: float, call: Callable[[], None]) -> None:
        self._timers = timers
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not come. Done again, or after it has come: nothing."""
        if self.call is not None:
            self.call = None
            self._timers.cancelled()


class Timers:
    """All of them. Belongs to the event loop that is running when the first is made."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._made = 0
        self._stale = 0
        self._armed: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def at(self, moment: float, call: Callable[[], None]) -> Timer:
        """Call `call` at that moment of the clock, from the loop; at its next turn if it has passed."""
        timer = Timer(self, moment, call)
        self._made += 1
        heapq.heappush(self._heap, (moment, self._made, timer))
        if self._heap[0][2] is timer:
            self._arm()
        return timer

    def close(self) -> None:
        """None comes any more."""
        self._closed = True
        self._heap.clear()
        self._stale = 0
        self._arm()

    def cancelled(self) -> None:
        """Of Timer: one in the heap is of no use. Half of many: the heap is made anew."""
        self._stale += 1
        if self._stale > _STALE and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._stale = 0

    def _arm(self) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        if self._heap and not self._closed:
            seconds = min(LOOK_SECONDS, max(0.0, self._heap[0][0] - self._clock()))
            self._armed = asyncio.get_running_loop().call_later(seconds, self.look)

    def look(self) -> None:
        """Do all that is due by now."""
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].call is None):
            timer = heapq.heappop(self._heap)[2]
            call, timer.call = timer.call, None
            if call is None:
                self._stale -= 1
                continue
            try:
                call()
            except Exception:  # the others shall come all the same
                _log.exception("a timer failed")
        self._arm()
