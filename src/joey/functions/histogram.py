"""How long an idle function stays warm: learned from its idle times. Pure.

After "Serverless in the Wild" (Shahrad and others, USENIX ATC 2020, section 4): a histogram of the idle times of each
function, with bins of a minute over four hours. From its head (5th percentile) comes how long nothing need be warm
after an invocation, from its tail (99th) how long to wait for the next one; each with a margin of 10 %. Where the
histogram says little (few values, or spread evenly: a coefficient of variation of the bins below 2) an ordinary
keep-alive does. Where most idle times are beyond its range, and alike, the next one is foreseen from the last ones
(the paper fits ARIMA there; the mean of times that hardly vary is what that comes to).

Two differences, both because a cold start from a template costs milliseconds here and memory is what there is least
of: bins grow with the idle time (10 s at first), so a function that is called every few seconds is not kept for a
minute; and the ordinary keep-alive is shorter than the paper's, for what is called rarely is rarely worth its memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

RANGE = 4 * 3600.0
"""Seconds beyond which idle times are only counted."""
STANDARD = 600.0
"""Seconds of keep-alive as long as nothing is known."""
_ENOUGH = 5
_HEAD, _TAIL, _MARGIN = 0.05, 0.99, 0.10
_SPREAD = 2.0
_ALIKE = 0.1
_FORGET = 2048
_RECENT = 8


def _edges() -> tuple[float, ...]:
    """Upper ends of the bins: 10 s apart to 2 minutes, then a minute apart."""
    return (*(10.0 * n for n in range(1, 13)), *(60.0 * n for n in range(3, int(RANGE // 60) + 1)))


EDGES = _edges()


@dataclass(frozen=True, slots=True)
class Windows:
    """After the end of an invocation: nothing need be warm for `prewarm` seconds (0: stay warm), then for `keep`."""

    prewarm: float
    keep: float

    @property
    def end(self) -> float:
        """Seconds after the invocation when nothing is to be warm any more."""
        return self.prewarm + self.keep


@dataclass(slots=True)
class IdleTimes:
    """The idle times of one function, in constant memory."""

    counts: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    inside: int = 0
    squares: int = 0
    """Sums of counts and of their squares."""
    beyond: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """The last few, for what is beyond the histogram."""

    def add(self, seconds: float) -> None:
        """An invocation came after so long without one."""
        if seconds < 0 or seconds != seconds:
            return
        self.recent.append(seconds)
        if seconds >= RANGE:
            self.beyond += 1
        else:
            at = _bin(seconds)
            self.squares += 2 * self.counts[at] + 1
            self.counts[at] += 1
            self.inside += 1
        if self.inside + self.beyond > _FORGET:  # what was long ago counts less
            self.counts = [count // 2 for count in self.counts]
            self._sum()
            self.beyond //= 2

    def _sum(self) -> None:
        self.inside, self.squares = sum(self.counts), sum(count * count for count in self.counts)

    def windows(self, standard: float = STANDARD) -> Windows:
        """What to do after an invocation that ends now."""
        inside, total = self.inside, self.inside + self.beyond
        if total >= _ENOUGH and self.beyond * 2 > total:
            return self._foreseen()
        if inside < _ENOUGH or self._variation() < _SPREAD:
            return Windows(0.0, standard)
        head, tail = self._percentile(_HEAD, inside, low=True), self._percentile(_TAIL, inside, low=False)
        prewarm = head * (1 - _MARGIN)
        return Windows(
            prewarm if prewarm >= EDGES[0] else 0.0, tail * (1 + _MARGIN) - (prewarm if prewarm >= EDGES[0] else 0.0)
        )

    def _percentile(self, share: float, inside: int, *, low: bool) -> float:
        seen = 0
        for at, count in enumerate(self.counts):
            seen += count
            if seen >= share * inside and count:
                return (EDGES[at - 1] if at else 0.0) if low else EDGES[at]
        return EDGES[-1]

    def _variation(self) -> float:
        """Coefficient of variation of the bins: high where few of them hold most."""
        mean = self.inside / len(self.counts)
        return math.sqrt(max(0.0, self.squares / len(self.counts) - mean * mean)) / mean if mean else 0.0

    def _foreseen(self) -> Windows:
        mean = sum(self.recent) / len(self.recent)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in self.recent) / len(self.recent))
        if deviation > _ALIKE * mean:
            return Windows(0.0, EDGES[0])  # nothing is known but that it will be long
        margin = max(2 * deviation, _MARGIN * mean / 2)
        return Windows(max(mean - margin, 0.0), 2 * margin)

    def dump(self) -> list[list[float]]:
        """As JSON holds it: [bin, count] where there is something, then ["beyond", …] as [-1, count], recent last."""
        filled: list[list[float]] = [[at, count] for at, count in enumerate(self.counts) if count]
        return [*filled, [-1, self.beyond], list(self.recent)]

    @classmethod
    def load(cls, data: Sequence[Sequence[float]]) -> IdleTimes:
        """What `dump` gave; empty for anything else."""
        found = cls()
        try:
            *pairs, recent = data
            for at, count in pairs:
                if at < 0:
                    found.beyond = int(count)
                else:
                    found.counts[int(at)] = int(count)
            found._sum()
            found.recent.extend(float(one) for one in recent)
        except (ValueError, IndexError, TypeError):
            return cls()
        return found


def _bin(seconds: float) -> int:
    return int(seconds // 10) if seconds < 120 else int(seconds // 60) + 10
