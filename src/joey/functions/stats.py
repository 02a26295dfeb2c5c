"""What a function did: counters and histograms, as /metrics shows them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


class Durations:
    """Seconds by bucket; constant memory, half a microsecond to add to."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def percentile(self, share: float) -> float | None:
        """The upper end of the bucket in which that share is reached; None without any. Of what is beyond the last
        bound: that bound.
        """
        total = self.count
        if not total:
            return None
        seen = 0
        for bound, count in zip((*BOUNDS, BOUNDS[-1]), self.counts, strict=True):
            seen += count
            if seen >= share * total:
                return bound
        return BOUNDS[-1]


@dataclass(slots=True)
class Stats:
    """Of one function, all its versions, since this engine began.

    errors: answers that were failures, by type. throttles: refused, by reason. waits: from request to a place.
    """

    invocations: int = 0
    cold_starts: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    throttles: dict[str, int] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)
    starts: Durations = field(default_factory=Durations)
    waits: Durations = field(default_factory=Durations)

    def failed(self, type: str) -> None:
        # The type is the handler's own word: a function that makes up names must not make up series without end.
        if type not in self.errors and len(self.errors) >= 20:
            type = "other"
        self.errors[type] = self.errors.get(type, 0) + 1

    def refused(self, reason: str) -> None:
        self.throttles[reason] = self.throttles.get(reason, 0) + 1
