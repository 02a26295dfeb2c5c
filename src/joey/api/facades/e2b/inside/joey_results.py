"""What a kernel gives beside what Jupyter does: environment variables of one execution, data of tables, data of charts.

Formats are those of E2B's SDK (e2b_code_interpreter/charts.py): "e2b/data" of a DataFrame, "e2b/chart" of a figure of
matplotlib. A chart that is none of the known kinds has the type "unknown" and its title.
"""

from __future__ import annotations

import os
import sys

MOST_POINTS = 10_000


def install(shell) -> None:
    """shell: the kernel's IPython shell. Its `joey_environ(dict)` sets what applies from then on."""
    shell.joey_environ = Environment().apply
    formatters = shell.display_formatter.formatters

    class Lasting(type(formatters["application/json"])):
        """matplotlib_inline takes figures out of all formatters when it chooses its own."""

        def pop(self, typ, default=None):
            return default

    for mime, module, name, work in (
        ("e2b/data", "pandas.core.frame", "DataFrame", table),
        ("e2b/chart", "matplotlib.figure", "Figure", chart),
    ):
        formatter = Lasting(parent=shell.display_formatter)
        formatter.format_type = mime
        formatter.print_method = f"_{mime.replace('/', '_')}_"
        formatter._return_type = dict
        formatter.for_type_by_name(module, name, work)
        formatters[mime] = formatter


class Environment:
    """Variables that were set for an execution, and what they were before."""

    def __init__(self) -> None:
        self.before: dict = {}

    def apply(self, wanted: dict) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)


def table(frame) -> dict | None:
    """Columns and their values; None of a large one."""
    if frame.size > MOST_POINTS:
        return None
    return {str(name): [plain(value) for value in frame[name].tolist()] for name in frame.columns}


def plain(value):
    """A value as JSON has it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value).__name__ == "MaskedConstant":
        return None
    if isinstance(value, float):
        return value if value - value == 0 else None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return plain(value.item()) if hasattr(value, "item") else str(value)


# --- charts ----------------------------------------------------------------------------------------------------------


def chart(figure) -> dict | None:
    """Of a figure: its only axes' chart, or a superchart of several."""
    try:
        found = [of_axes(axes) for axes in figure.axes if axes.has_data()]
    except Exception as error:  # a chart is a courtesy: the picture is there
        print(f"no data of this chart: {type(error).__name__}: {error}", file=sys.__stderr__)
        return None
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    title = figure._suptitle.get_text() if figure._suptitle else ""
    return {"type": "superchart", "title": title, "elements": found}


def of_axes(axes) -> dict:
    from matplotlib.collections import PathCollection
    from matplotlib.container import BarContainer
    from matplotlib.patches import Wedge

    wedges = [one for one in axes.patches if isinstance(one, Wedge)]
    bars = [one for one in axes.containers if isinstance(one, BarContainer)]
    points = [one for one in axes.collections if isinstance(one, PathCollection)]
    lines = [one for one in axes.get_lines() if len(one.get_xdata())]
    title = axes.get_title()
    if wedges:
        elements = [pie(one, axes, place) for place, one in enumerate(wedges)]
        return {"type": "pie", "title": title, "elements": elements}
    about = {"title": title, **labels(axes)}
    if bars:
        return {"type": "bar", **about, "elements": [one for group in bars for one in of_bars(group, axes)]}
    if points:
        drawn = [(one, one.get_offsets()) for one in points]
        return {"type": "scatter", **about, **scales(axes), "elements": series(drawn)}
    if lines:
        drawn = [(one, list(zip(one.get_xdata(), one.get_ydata()))) for one in lines]  # noqa: B905 (Python 3.9)
        return {"type": "line", **about, **scales(axes), "elements": series(drawn)}
    return {"type": "unknown", "title": title, "elements": []}


def labels(axes) -> dict:
    """Of both axes; a unit stands in parentheses at the end."""
    found = {}
    for name, text in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
        begin, mark, unit = text.rpartition("(")
        has = bool(mark) and unit.endswith(")")
        found[f"{name}_label"] = text or None
        found[f"{name}_unit"] = unit[:-1] if has and begin else None
    return found


def scales(axes) -> dict:
    found = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        kind = type(axis.get_converter() if hasattr(axis, "get_converter") else axis.converter).__name__
        scale = axis.get_scale()
        if "Date" in kind or "Datetime" in kind:
            scale = "datetime"
        elif "StrCategory" in kind:
            scale = "categorical"
        found[f"{name}_ticks"] = [plain(value) for value in axis.get_majorticklocs()]
        found[f"{name}_tick_labels"] = [one.get_text() for one in axis.get_majorticklabels()]
        found[f"{name}_scale"] = scale
    return found


def series(drawn) -> list:
    found = []
    for number, (one, pairs) in enumerate(drawn):
        label = str(one.get_label())
        points = [[plain(x), plain(y)] for x, y in pairs[:MOST_POINTS]]
        found.append({"label": f"Series {number}" if label.startswith("_") else label, "points": points})
    return found


def of_bars(group, axes) -> list:
    upright = getattr(group, "orientation", "vertical") != "horizontal"
    axis = axes.xaxis if upright else axes.yaxis
    ticks = dict(zip((round(float(one), 6) for one in axis.get_majorticklocs()), axis.get_majorticklabels()))  # noqa: B905
    label = str(group.get_label())
    found = []
    for bar in group.patches:
        middle = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
        tick = ticks.get(round(float(middle), 6))
        name = tick.get_text() if tick is not None and tick.get_text() else f"{middle:g}"
        value = plain(bar.get_height() if upright else bar.get_width())
        found.append({"label": name, "value": value, "group": "" if label.startswith("_") else label})
    return found


def pie(wedge, axes, place: int) -> dict:
    texts = [one.get_text() for one in axes.texts]
    label = str(wedge.get_label())
    if label.startswith("_"):
        label = texts[place] if place < len(texts) else ""
    return {"label": label, "angle": plain(float(wedge.theta2 - wedge.theta1)), "radius": plain(float(wedge.r))}
