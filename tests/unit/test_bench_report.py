"""How the benchmarks show figures, and their charts."""

import io
import json
import xml.etree.ElementTree as ET

import pytest

from joey.bench.chart import Series, bars, histogram, label, line_chart, thin, ticks
from joey.bench.report import Progress, emit, median_ms, number, quantile, quantiles, spread, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.99, 10), (0.9, 9), (1, 10), (0, 1)])
def test_a_quantile_is_a_value_that_was_measured(share, value):
    assert quantile(list(range(1, 11)), share) == value


def test_no_quantile_of_nothing():
    with pytest.raises(ValueError):
        quantile([], 0.5)
    assert quantiles([]) == {"p50": None, "p99": None, "max": None}


def test_quantiles_are_milliseconds():
    assert quantiles([0.003, 0.001, 0.002]) == {"p50": 2.0, "p99": 3.0, "max": 3.0}
    assert median_ms([0.004, 0.001]) == 1.0


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (3000, "3,000"), (12.345, "12.35"), (1234.5, "1,234"), (0, "0"), (0.5, "0.50")]
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_a_number_with_its_unit():
    assert number(512.3, "KiB", 0) == "512 KiB"
    assert spread({"p50": 1.0, "p99": None, "max": 2.5}) == "p50 1.00 ms, p99 –, max 2.50 ms"


def test_a_table_lines_up():
    assert table([("a", "1"), ("", ""), ("longer", "2")]).splitlines() == ["a       1", "", "longer  2"]


def test_json_is_one_line_and_the_whole_result():
    out = io.StringIO()
    emit({"count": 3, "peers": {}}, [("count", "3")], True, out)
    assert out.getvalue().count("\n") == 1 and json.loads(out.getvalue()) == {"count": 3, "peers": {}}
    out = io.StringIO()
    emit({"count": 3}, [("count", "3")], False, out)
    assert out.getvalue() == "count  3\n"


def test_progress_on_a_terminal_is_one_line_that_moves():
    out = Terminal()
    with Progress("start", 4, out) as progress:
        progress.set(2, "all well")
        progress._show()
    text = out.getvalue()
    assert "all well" in text and "2/4" in text and "█" in text
    assert text.count("\n") == 1 and text.endswith("\n")


def test_progress_elsewhere_is_lines_without_control_characters():
    out = io.StringIO()
    with Progress("start", 4, out) as progress:
        progress.step(4)
    assert "4/4" in out.getvalue() and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


# ---- charts


@pytest.mark.parametrize("top", [0, 0.003, 0.7, 1, 3, 7.2, 99, 3000, 123456])
def test_ticks_are_round_and_reach_the_top(top):
    found = ticks(top)
    assert found[0] == 0 and found[-1] >= top * 0.999 and 2 <= len(found) <= 8
    assert found[-2] < top or top == 0


@pytest.mark.parametrize("top", [-1, float("nan")])
def test_no_ticks_for_what_is_no_range(top):
    with pytest.raises(ValueError):
        ticks(top)


def test_tick_labels():
    assert [label(value) for value in (0.0, 2.5, 12000.0)] == ["0", "2.5", "12,000"]


def test_thinned_points_keep_the_last():
    points = [(float(n), float(n)) for n in range(1001)]
    assert len(thin(points)) <= 502 and thin(points)[-1] == points[-1]
    assert list(thin(points[:3])) == points[:3]


def parse(svg):
    return ET.fromstring(svg)


def test_a_line_chart_is_a_picture_with_its_lines():
    picture = parse(line_chart("a & b", [Series("one", [(0, 0), (1, 5)]), Series("<two>", [(0, 1)])], "s", "n"))
    assert len(picture.findall("polyline")) == 2
    texts = [text.text for text in picture.findall("text")]
    assert "a & b" in texts and "<two>" in texts


def test_a_histogram_counts_every_value_once():
    picture = parse(histogram("lives", [1.0] * 50 + [2.0] * 30 + [500.0], "ms", [("p50", 1.0), ("p99", 500.0)]))
    assert sum(int(rect.find("title").text) for rect in picture.findall("rect")) == 81
    assert len([line for line in picture.findall("line") if line.get("class") == "mark"]) == 2


def test_charts_of_nothing_are_still_pictures():
    for svg in (histogram("h", [], "ms"), line_chart("l", [], "s", "n"), bars("b", [])):
        parse(svg)


def test_bars_are_in_proportion():
    rects = parse(bars("speed", [("joey", 600.0, "600"), ("crun", 60.0, "60")])).findall("rect")
    assert float(rects[0].get("width")) == pytest.approx(10 * float(rects[1].get("width")), rel=0.01)
