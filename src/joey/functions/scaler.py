"""How many instances a version should have: a pure function of what was seen and the time.

Two answers, of which the larger counts.

*Now*: what invocations that wait would gain by more instances. Each that runs or waits could use a place; but one that
waits is served sooner by an instance that becomes free than by one that is still to start, if those that run end soon.
So of `waiting` those do not count who get a place of one that ends within the time of a start, and where invocations
are shorter than starts only as many as would wait for longer: `waiting x duration / start`. As long as durations are
not known all count. That takes 0 to 1,000 in one step and starts no thousand instances for a thousand invocations of a
millisecond.

*On average*: Knative's pod autoscaler (github.com/knative/serving, pkg/autoscaler/scaling): concurrency averaged over a
stable window of 60 s and a panic window of 6 s, over the places of an instance. When the panic window wants twice as
many as there are ready, the scaler panics: for a stable window it only grows. Otherwise it follows the stable window
down, at most by half each step. Averages are integrals over time, not samples.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

STABLE, PANIC = 60.0, 6.0
"""Seconds."""
PANIC_AT = 2.0
DOWN = 2.0
STEP = 2.0
"""Seconds between two steps down."""
UTILISATION = 1.0
"""Of the places of an instance. Knative aims at 70 %; here a new instance takes milliseconds."""
_BUCKET = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Instances there must be (provisioned) and may be at most. places: invocations one instance takes at a time."""

    least: int = 0
    most: int = 1 << 30
    places: int = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """What is there at the moment. ready and starting: instances. duration: of an invocation, start: of an instance, in
    seconds, as they were lately; None for not known. ending: of those that run, how many will have ended by the time
    that an instance takes to start.
    """

    running: int
    waiting: int
    ready: int
    starting: int = 0
    duration: float | None = None
    start: float | None = None
    ending: int = 0


class Concurrency:
    """The integral of a step function of time, in buckets of a second: averages over windows in constant memory."""

    __slots__ = ("_at", "_buckets", "_value")

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, float]] = deque()
        self._value, self._at = 0.0, -math.inf

    def set(self, now: float, value: float) -> None:
        """From now on it is `value`. Costs a microsecond."""
        self._advance(now)
        self._value = value

    def average(self, now: float, window: float) -> float:
        """Over the last `window` seconds; what was before the first value counts as 0."""
        self._advance(now)
        first = math.floor(now - window)
        total = 0.0
        for bucket, area in reversed(self._buckets):
            if bucket <= first:
                if bucket == first:  # the part of it that is within the window
                    total += area * (1 - (now - window - first))
                break
            total += area
        return total / window

    def _advance(self, now: float) -> None:
        at = self._at
        if now <= at:
            return
        self._at = now
        if at == -math.inf:
            return
        value = self._value
        if not value:
            return
        at = max(at, now - STABLE - 2)
        while True:
            bucket = math.floor(at)
            end = min(now, bucket + _BUCKET)
            self._add(bucket, value * (end - at))
            if end >= now:
                break
            at = end
        while self._buckets and self._buckets[0][0] < now - STABLE - 2:
            self._buckets.popleft()

    def _add(self, bucket: int, area: float) -> None:
        if self._buckets and self._buckets[-1][0] == bucket:
            area += self._buckets.pop()[1]
        self._buckets.append((bucket, area))


@dataclass(slots=True)
class Scaler:
    """Of one version. Times are seconds of a clock that only goes forward."""

    seen: Concurrency = field(default_factory=Concurrency)
    panic_until: float = -math.inf
    panic_most: int = 0
    lowered: float = -math.inf

    def observe(self, now: float, concurrency: int) -> None:
        """So many invocations run or wait from now on."""
        self.seen.set(now, concurrency)

    def desired(self, now: float, demand: Demand, limits: Limits) -> int:
        """So many instances there should be, those that are starting included."""
        wanted = max(wanted_now(demand, limits), self._on_average(now, demand, limits))
        wanted = max(limits.least, min(wanted, limits.most))
        have = demand.ready + demand.starting
        if wanted < have:
            return self._lowered(now, wanted, have, limits)
        return wanted

    def _on_average(self, now: float, demand: Demand, limits: Limits) -> int:
        target = max(limits.places * UTILISATION, 1e-9)
        stable = math.ceil(self.seen.average(now, STABLE) / target - 1e-9)
        panic = math.ceil(self.seen.average(now, PANIC) / target - 1e-9)
        if panic >= PANIC_AT * max(demand.ready, 1):
            self.panic_until = now + STABLE
        if now < self.panic_until:
            self.panic_most = max(self.panic_most, panic, stable)
            return self.panic_most
        self.panic_most = 0
        return stable

    def _lowered(self, now: float, wanted: int, have: int, limits: Limits) -> int:
        if now - self.lowered < STEP:
            return min(have, max(limits.most, limits.least))
        self.lowered = now
        return min(max(wanted, math.floor(have / DOWN)), max(limits.most, limits.least))


def wanted_now(demand: Demand, limits: Limits) -> int:
    """Instances that the invocations of this moment have a use for."""
    waiting: float = demand.waiting
    if waiting and demand.duration is not None and demand.start is not None and demand.ready:
        if demand.duration < demand.start:  # places come free again and again meanwhile
            free_in_time = demand.ready * limits.places * demand.start / max(demand.duration, 1e-6)
        else:
            free_in_time = demand.ending
        waiting = max(0.0, waiting - free_in_time)
        waiting = min(waiting, math.ceil(waiting * demand.duration / max(demand.start, 1e-6)))
    return math.ceil((demand.running + waiting) / limits.places)
