"""Timers: triggers that put an asynchronous invocation into the queue when they are due.

That one was due is committed together with the invocation it caused. What fell due while no engine ran is made up for
once, however often it was.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from itertools import count

from joey.functions import cron
from joey.functions.queue import Statement
from joey.functions.store import Store
from joey.model.function import Trigger

log = logging.getLogger("joey.functions")
Key = tuple[str, str, str]
"""(owner, function, trigger)"""
_LONGEST_SLEEP = 60.0
"""Seconds: the wall clock may be set."""


class Timers:
    """fire: does what is due at the time it is given, together with a statement; may raise JoeyError."""

    def __init__(
        self,
        store: Store,
        fire: Callable[[Key, Trigger, float, Statement], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._fire, self._clock = store, fire, clock
        self._due: dict[Key, tuple[float, Trigger, cron.Schedule]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._fired: dict[Key, float] = {
            (owner, name, part): at for owner, name, part, at in store.read("SELECT * FROM fired")
        }

    def set(self, key: Key, trigger: Trigger) -> None:
        """It counts from now on, or goes on where an earlier engine left it. Raises Invalid (field "schedule")."""
        now = self._clock()
        known = self._due.get(key)
        if known is not None and known[1].schedule != trigger.schedule:
            self._fired.pop(key, None)
        start = self._fired.get(key)
        if start is None or start > now + _LONGEST_SLEEP:
            cron.parse(trigger.schedule)
            start = self._fired[key] = now
            sql, values = _fired(key, now)
            self._store.write(sql, *values)
        schedule = cron.parse(trigger.schedule, start)
        if not trigger.enabled:
            self._due.pop(key, None)
            self._fired[key] = now  # what falls due while it is off is not made up for
            return
        self._plan(key, trigger, schedule, schedule.next(start))

    def remove(self, key: Key) -> None:
        """It is gone."""
        self._due.pop(key, None)
        self._fired.pop(key, None)

    def next(self, key: Key) -> float | None:
        """When it is due; None for never."""
        due = self._due.get(key)
        return due[0] if due is not None and due[0] < float("inf") else None

    @property
    def known(self) -> bool:
        """Whether any is to be due."""
        return bool(self._due)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()

    def _plan(self, key: Key, trigger: Trigger, schedule: cron.Schedule, due: float) -> None:
        self._due[key] = due, trigger, schedule
        if due < float("inf"):
            heapq.heappush(self._heap, (due, next(self._numbers), key))
            if self._heap[0][2] == key:
                self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            seconds = min(max(0.0, self._heap[0][0] - self._clock()), _LONGEST_SLEEP)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._awake)

    def _awake(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            known = self._due.get(key)
            if known is None or known[0] != due:
                continue
            _, trigger, schedule = known
            at = due if schedule.next(due) > now else now  # the rest of what was missed is not made up for
            self._fired[key] = at
            try:
                self._fire(key, trigger, due, _fired(key, at))
            except Exception as error:
                log.warning("timer %s of function %s: %s", key[2], key[1], error)
            self._plan(key, trigger, schedule, schedule.next(now))
        self._arm()


def _fired(key: Key, at: float) -> Statement:
    return "INSERT OR REPLACE INTO fired VALUES (?, ?, ?, ?)", (*key, at)
