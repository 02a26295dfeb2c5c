"""How figures are shown: progress on stderr, a table or JSON on stdout."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TextIO

Row = tuple[str, str]
LAST = 100
_BAR = 30


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of `ordered` do not exceed. Raises ValueError if there is none."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantiles(seconds: Iterable[float]) -> dict[str, float | None]:
    """p50, p99 and max in milliseconds; None each when nothing answered."""
    ordered = sorted(seconds)
    if not ordered:
        return {"p50": None, "p99": None, "max": None}
    found = {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99), "max": ordered[-1]}
    return {name: round(value * 1000, 3) for name, value in found.items()}


def median_ms(seconds: Sequence[float]) -> float | None:
    """The median in milliseconds, None of nothing."""
    return quantiles(seconds)["p50"]


def growth(seconds: Sequence[float]) -> dict[str, float | None]:
    """first_ms and last_ms, the medians of the first and last LAST (of halves, if there are fewer), and their ratio."""
    part = min(LAST, max(len(seconds) // 2, 1))
    first, last = median_ms(seconds[:part]), median_ms(seconds[-part:])
    return {"first_ms": first, "last_ms": last, "ratio": round(last / first, 2) if first and last else None}


def number(value: float | int | None, unit: str = "", digits: int = 2) -> str:
    """A figure for people: thousands apart, no more digits than tell something, "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        text = f"{round(value):,}"
    else:
        text = f"{value:.{digits}f}"
    return f"{text} {unit}".rstrip()


def spread(answer: dict[str, float | None]) -> str:
    """`p50 1.20 ms, p99 …, max …` of what `quantiles` gives."""
    return ", ".join(f"{name} {number(answer[name], 'ms')}" for name in ("p50", "p99", "max"))


def table(rows: Sequence[Row]) -> str:
    """Two columns; an empty first cell goes on with the row before, ("", "") is an empty line."""
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join(f"{label:<{width}}  {text}".rstrip() for label, text in rows)


def emit(result: dict[str, Any], rows: Sequence[Row], as_json: bool, stream: TextIO | None = None) -> None:
    """Print the result of one benchmark."""
    stream = stream or sys.stdout
    stream.write((json.dumps(result) if as_json else table(rows)) + "\n")
    stream.flush()


class Progress:
    """One line on stderr that moves; where stderr is no terminal, a line now and then.

    Use as a context manager. `total` 0: only the count and what it is, with no bar.
    """

    def __init__(self, label: str, total: int = 0, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._every = 0.1 if self._live else 5.0
        self._start = self._shown = time.monotonic()
        self._done = 0
        self.note = ""

    def step(self, count: int = 1) -> None:
        """`count` more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._show()

    def set(self, done: int, note: str = "") -> None:
        """So many are done now."""
        self.note = note
        self.step(done - self._done)

    def __enter__(self) -> Progress:
        if self._live:
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
        if not self._live or kind is None:
            self._stream.write(self._text(time.monotonic()) + "\n")
        self._stream.flush()

    def _show(self) -> None:
        text = self._text(self._shown)
        if self._live:
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        self._stream.write(text if self._live else text + "\n")
        self._stream.flush()

    def _text(self, now: float) -> str:
        elapsed = max(now - self._start, 1e-6)
        parts = [f"{self._label:<22}"]
        if self._total:
            filled = round(_BAR * min(self._done / self._total, 1))
            parts.append(f"[{'█' * filled}{'·' * (_BAR - filled)}]" if self._live else "")
            parts.append(f"{self._done:>6,}/{self._total:,}")
        elif self._done:
            parts.append(f"{self._done:>6,}")
        if self._done and self._total:
            parts.append(f"{self._done / elapsed:7,.0f}/s")
        parts += [f"{elapsed:5.1f} s", self.note]
        return " ".join(part for part in parts if part)


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)
