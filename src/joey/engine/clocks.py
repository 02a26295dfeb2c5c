"""What comes to a sandbox with time: its deadline, a restart, the end of its patience when idle, health checks.

After every event `follow` compares what the record says with what is armed; a sandbox that waits for nothing has
nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from joey.engine.health import Checker
from joey.engine.record import Due, Event, HealthSeen, Idle, Phase, Record, Run
from joey.engine.timers import Timer, Timers
from joey.model.spec import HealthCheck

if TYPE_CHECKING:
    from joey.engine.health import Look


class Clocks:
    """Of one sandbox. apply: takes an event. number: a new key for a restart. look: one health check, raises if it
    fails.
    """

    __slots__ = ("_apply", "_checker", "_due", "_holds", "_idle", "_look", "_number", "_timers", "touched", "watched")

    def __init__(
        self, timers: Timers, apply: Callable[[Event], None], number: Callable[[], int], look: Look | None = None
    ) -> None:
        self._timers = timers
        self._apply = apply
        self._number = number
        self._look = look
        self._due: Timer | None = None
        self._idle: Timer | None = None
        self._checker: Checker | None = None
        self._holds = 0
        self.touched = 0.0
        self.watched: Callable[[], bool] = lambda: False
        """Whether somebody is attached to its main process, or other processes run in it."""

    # --- who wants something of it is not idle -----------------------------------------------------------------------

    def touch(self) -> None:
        """Somebody has asked something of it."""
        self.touched = time.time()

    def hold(self) -> None:
        """Something goes on in it, until `release`: it is not idle meanwhile."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1
        self.touch()

    # --- armed -------------------------------------------------------------------------------------------------------

    def follow(self, record: Record, check: HealthCheck | None) -> None:
        """Arm what the record wants, drop what it does not want any more."""
        self._follow_due(record)
        idle = record.policy.idle if record.phase is Phase.RUNNING and record.run is Run.ALIVE else None
        if idle is not None and self._idle is None:
            self.touch()
            self._arm_idle(record.key, idle)
        elif self._idle is not None and idle is None:
            self._idle.cancel()
            self._idle = None
        alive = record.run is Run.ALIVE and record.phase in (Phase.RUNNING, Phase.PAUSED)
        if alive and check is not None and self._look is not None and self._checker is None:
            self._check(record, check)
        elif self._checker is not None:
            self._checker.paused = record.phase is Phase.PAUSED
            if not alive:
                self._checker.close()
                self._checker = None

    def rearm(self) -> None:
        """The policy has changed: what is armed for the idle is armed anew by the next `follow`."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def close(self) -> None:
        """Drop everything."""
        for timer in (self._due, self._idle):
            if timer is not None:
                timer.cancel()
        self._due = self._idle = None
        if self._checker is not None:
            self._checker.close()
            self._checker = None

    def _follow_due(self, record: Record) -> None:
        due = record.due
        if (self._due.at if self._due is not None else None) == due:
            return
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None:
            self._due = self._timers.at(due, lambda: self._come(record.again_at is not None))

    def _come(self, again: bool) -> None:
        self._due = None
        self._apply(Due(time.time(), self._number() if again else 0))

    def _arm_idle(self, key: int, seconds: float) -> None:
        self._idle = self._timers.at(self.touched + seconds, lambda: self._quiet(key, seconds))

    def _quiet(self, key: int, seconds: float) -> None:
        if self._holds or self.watched():
            self.touch()
        now = time.time()
        if now < self.touched + seconds:
            self._arm_idle(key, seconds)
            return
        self._idle = None
        self._apply(Idle(key, now))

    def _check(self, record: Record, check: HealthCheck) -> None:
        key = record.key
        assert self._look is not None
        self._checker = Checker(
            check, self._look, lambda health: self._apply(HealthSeen(key, health)), self._timers,
            health=record.health, started=record.started or time.time(),
        )  # fmt: skip
        self._checker.paused = record.phase is Phase.PAUSED
        if record.health is None:
            self._apply(HealthSeen(key, "starting"))
