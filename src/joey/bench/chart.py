"""Charts as inline SVG for a page that needs nothing else. Colours are CSS variables of the page (--c0 … --c4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 40, 40


@dataclass(frozen=True)
class Series:
    """One line of a chart: points in order of x."""

    name: str
    points: Sequence[Point]


def ticks(top: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, about `wanted` of them. Raises ValueError for a negative or NaN top."""
    if not top >= 0:
        raise ValueError(f"top: {top} is not a number above 0")
    if top == 0:
        return [0.0, 1.0]
    rough = top / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.9999)
    return [round(step * n, 10) for n in range(math.ceil(top / step * 0.9999) + 1)]


def label(value: float) -> str:
    """A tick's text: 12,000 or 0.25."""
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def line_chart(title: str, series: Sequence[Series], x_unit: str, y_unit: str) -> str:
    """Lines over a shared x axis that begins at 0, each with its name at the top."""
    points = [point for one in series for point in one.points]
    scale = _Scale(max((x for x, _ in points), default=0), max((y for _, y in points), default=0))
    parts = [*scale.grid(x_unit, y_unit)]
    for index, one in enumerate(series):
        path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in thin(one.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--c{index})" stroke-width="2.2"/>')
    return _svg(title, [*_legend([one.name for one in series] if len(series) > 1 else []), *parts])


def thin(points: Sequence[Point], most: int = 400) -> Sequence[Point]:
    """At most about `most` of the points, the last one among them."""
    step = max(1, len(points) // most)
    return [*points[:-1:step], *points[-1:]]


def histogram(title: str, values: Sequence[float], x_unit: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """How many values fall where; what lies above the 99.5th percentile is counted in the last column.

    marks: (name, value) drawn as vertical lines.
    """
    ordered = sorted(values)
    top = ordered[min(len(ordered) - 1, int(len(ordered) * 0.995))] if ordered else 1.0
    axis = ticks(max(top, 1e-9))
    count = 40
    width = axis[-1] / count
    columns = [0] * count
    for value in ordered:
        columns[min(count - 1, int(value / width))] += 1
    scale = _Scale(axis[-1], max(columns))
    parts = [*scale.grid(x_unit, "sandboxes")]
    for index, number in enumerate(columns):
        if number:
            x, y = scale.x(index * width), scale.y(number)
            parts.append(
                f'<rect x="{x + 0.5:.1f}" y="{y:.1f}" width="{scale.x(width) - scale.x(0) - 1:.1f}" '
                f'height="{scale.y(0) - y:.1f}" fill="var(--c0)"><title>{number}</title></rect>'
            )
    for row, (name, value) in enumerate(marks):
        x = scale.x(min(value, axis[-1]))
        side, shift = ("end", -5) if x > WIDTH - 110 else ("start", 5)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{scale.y(0):.1f}" class="mark"/>')
        text = escape(name)
        parts.append(f'<text x="{x + shift:.1f}" y="{_TOP + 12 + 15 * row}" text-anchor="{side}">{text}</text>')
    return _svg(title, parts)


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: (name, value, text beside the bar); the first is the one in colour."""
    top = max((value for _, value, _ in rows), default=1.0) or 1.0
    left, right = 92, 120
    step = min(44, (HEIGHT - _TOP - 16) / max(len(rows), 1))
    parts = []
    for index, (name, value, text) in enumerate(rows):
        y = _TOP + 8 + index * step
        width = max(1.5, (WIDTH - left - right) * max(value, 0) / top)
        middle = f"{y + step * 0.36 + 4:.1f}"
        colour = "var(--c0)" if index == 0 else "var(--quiet)"
        parts += [
            f'<text x="{left - 10}" y="{middle}" text-anchor="end" class="name">{escape(name)}</text>',
            f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{step * 0.72:.1f}" rx="3" fill="{colour}"/>',
            f'<text x="{left + width + 8:.1f}" y="{middle}">{escape(text)}</text>',
        ]
    return _svg(title, parts)


class _Scale:
    """From values to places in the picture. Both axes begin at 0."""

    def __init__(self, right: float, top: float) -> None:
        self._xs, self._ys = ticks(right), ticks(top, 4)

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self._xs[-1]

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self._ys[-1]

    def grid(self, x_unit: str, y_unit: str) -> list[str]:
        parts = []
        for value in self._ys:
            y = self.y(value)
            parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>')
        for value in self._xs:
            x = self.x(value)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{label(value)}</text>')
        middle = (WIDTH + _LEFT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_unit)}</text>')
        parts.append(
            f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">'
            f"{escape(y_unit)}</text>"
        )
        return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect x="{x:.1f}" y="25" width="10" height="10" rx="2" fill="var(--c{index})"/>')
        parts.append(f'<text x="{x + 15:.1f}" y="34">{escape(name)}</text>')
        x += 34 + 6.6 * len(name)
    return parts


def _svg(title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f'<text x="4" y="16" class="title">{escape(title)}</text>', *parts, "</svg>"])
