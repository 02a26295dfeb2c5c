"""Replay of a day of functions: cold starts and memory with the keep-alive that Joey learns, beside a fixed one.

    python -m joey.bench.functions_trace [--functions 2000] [--days 1] [--keep-alive 600] [--seed 1] [--json]

The trace is made from what "Serverless in the Wild" (Shahrad and others, USENIX ATC 2020) has published of Azure
Functions: daily invocations of a function over eight orders of magnitude, 45 % of them at most once an hour and 81 % at
most once a minute (figure 5); 29 % with timers (figure 4); of the others some regular, some Poisson, most bursty, with
coefficients of variation above 1 (figure 6); a load by the hour (figure 4); execution times log-normal with
mu -0.38 and sigma 2.36 (figure 7); memory by a Burr distribution (figure 8). Nothing runs: time is simulated, and
decisions are those of joey.functions.histogram, as the dispatcher takes them. An instance takes one invocation after
the other, as in the paper's own evaluation.

Beside the share of all invocations that were cold, which the busiest functions decide, stands the paper's measure: the
share of cold ones of each function, at the third quartile. Memory is that of idle instances, in GiB hours.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from joey.functions.histogram import IdleTimes, Windows

DAY = 86_400.0
HELP = "Replay a day of functions: learned keep-alive beside a fixed one (simulated)"
_MOST = 8640
"""Invocations a day of one function that are simulated: above that, one every 10 s, it is never idle for long."""
_QUANTILES = ((0.0, 0.05), (0.45, 24.0), (0.81, 1440.0), (0.95, 30_000.0), (1.0, 5e6))
"""(share of functions, invocations a day): between them the logarithm is interpolated."""
_TIMERS = (
    (60, 0.18),
    (300, 0.24),
    (600, 0.10),
    (900, 0.12),
    (1800, 0.08),
    (3600, 0.16),
    (21_600, 0.04),
    (86_400, 0.08),
)
_TIMER_SHARE, _REGULAR_SHARE, _POISSON_SHARE = 0.29, 0.10, 0.21


@dataclass(slots=True)
class Function:
    """One of the trace: (instant, seconds it takes) in order; memory in MiB."""

    memory: float
    calls: list[tuple[float, float]]


@dataclass(slots=True)
class Outcome:
    """Of a policy."""

    invocations: int = 0
    cold: int = 0
    idle_mib_seconds: float = 0.0
    shares: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        ordered = sorted(self.shares)
        return {
            "cold_share": self.cold / max(self.invocations, 1),
            "cold_share_p75": ordered[int(0.75 * (len(ordered) - 1))] if ordered else 0.0,
            "idle_gib_hours": self.idle_mib_seconds / 1024 / 3600,
        }


def trace(functions: int, days: float, seed: int) -> Iterator[Function]:
    """The functions that were called at all."""
    for number in range(functions):
        chance = random.Random(f"{seed}/{number}")
        times = _times(chance, days * DAY)
        if times:
            typical = math.exp(chance.gauss(-0.38, 2.36))
            calls = [(at, min(typical * math.exp(chance.gauss(0, 0.3)), 600.0)) for at in times]
            yield Function(_memory(chance), calls)


def _times(chance: random.Random, until: float) -> list[float]:
    kind = chance.random()
    if kind < _TIMER_SHARE:
        period = float(_chosen(chance, _TIMERS))
        return list(_regular(chance, period, until, jitter=0.002))
    rate = min(_rate(chance), _MOST) / DAY
    kind = (kind - _TIMER_SHARE) / (1 - _TIMER_SHARE)
    if kind < _REGULAR_SHARE:
        return list(_regular(chance, 1 / rate, until, jitter=0.05))
    if kind < _REGULAR_SHARE + _POISSON_SHARE:
        return list(_random(chance, rate, until, lambda: chance.expovariate(1.0)))
    shape = chance.uniform(0.08, 0.5)  # coefficient of variation 3.5 to 1.4
    return list(_random(chance, rate, until, lambda: chance.gammavariate(shape, 1 / shape)))


def _chosen(chance: random.Random, table: tuple[tuple[int, float], ...]) -> int:
    return chance.choices([value for value, _ in table], [share for _, share in table])[0]


def _rate(chance: random.Random) -> float:
    """Invocations a day, by the published distribution."""
    at = chance.random()
    for (low, a), (high, b) in pairwise(_QUANTILES):
        if at <= high:
            return math.exp(math.log(a) + (at - low) / (high - low) * (math.log(b) - math.log(a)))
    return _QUANTILES[-1][1]


def _regular(chance: random.Random, period: float, until: float, jitter: float) -> Iterator[float]:
    at = chance.uniform(0, period)
    while at < until:
        yield max(0.0, at + chance.gauss(0, jitter * period))
        at += period


def _random(chance: random.Random, rate: float, until: float, gap: Callable[[], float]) -> Iterator[float]:
    """Gaps of mean 1 over an intensity that follows the hour: as much again at noon as at midnight."""
    at = chance.expovariate(1.0) / rate if rate * until > 1 else chance.uniform(0, until)
    while at < until:
        yield at
        load = 1.0 - 0.33 * math.cos(2 * math.pi * at / DAY)
        at += gap() / (rate * load)


def _memory(chance: random.Random) -> float:
    """MiB: Burr XII with c 11.652, k 0.221, scale 107.083, by inversion."""
    return min(107.083 * ((1 - chance.random()) ** (-1 / 0.221) - 1) ** (1 / 11.652), 1536.0)


def replay(function: Function, windows: Callable[[IdleTimes], Windows], outcome: Outcome, until: float) -> None:
    """One function with one policy."""
    idle, ends, cold = IdleTimes(), -math.inf, 0
    window = Windows(0.0, 0.0)
    for at, seconds in function.calls:
        if ends == -math.inf:
            cold += 1
        elif at > ends:
            gap = at - ends
            cold += not window.prewarm <= gap <= window.end
            outcome.idle_mib_seconds += function.memory * max(0.0, min(gap, window.end) - window.prewarm)
            idle.add(gap)
        ends = max(ends, at) + seconds
        window = windows(idle)
    outcome.idle_mib_seconds += function.memory * max(0.0, min(until - ends, window.end) - window.prewarm)
    outcome.invocations += len(function.calls)
    outcome.cold += cold
    outcome.shares.append(cold / len(function.calls))


def compare(functions: int, days: float, seed: int, keep_alive: float) -> dict[str, object]:
    """Both policies over the same trace."""
    fixed, learned = Outcome(), Outcome()
    count = 0
    for function in trace(functions, days, seed):
        count += 1
        replay(function, lambda idle: Windows(0.0, keep_alive), fixed, days * DAY)
        replay(function, lambda idle: idle.windows(), learned, days * DAY)
    return {
        "functions": count,
        "invocations": fixed.invocations,
        "days": days,
        "fixed": fixed.figures(),
        "learned": learned.figures(),
        "both_lower": learned.cold < fixed.cold and learned.idle_mib_seconds < fixed.idle_mib_seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m joey.bench.functions_trace", description=HELP)
    parser.add_argument("--functions", type=int, default=2000)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--keep-alive", type=float, default=600.0, help="seconds, of the fixed policy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = compare(options.functions, options.days, options.seed, options.keep_alive)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{found['functions']} functions, {found['invocations']} invocations, {found['days']:g} days")
    for name in ("fixed", "learned"):
        figures = found[name]
        assert isinstance(figures, dict)
        print(
            f"{name:8} cold {figures['cold_share']:.3%} of all, {figures['cold_share_p75']:.1%} of a function's at the "
            f"third quartile; idle memory {figures['idle_gib_hours']:.0f} GiB h"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
