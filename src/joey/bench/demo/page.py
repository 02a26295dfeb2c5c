"""What the demo has seen, as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import Any

from joey.bench.chart import Series, bars, histogram, line_chart
from joey.bench.machine import describe
from joey.bench.report import number

_STYLE = """
:root { --ink:#1b2430; --soft:#5b6675; --paper:#f4f6f8; --card:#fff; --line:#dfe4ea; --quiet:#a9b4c0;
  --c0:#0a7f6f; --c1:#d0722b; --c2:#4a63c9; --c3:#b03a6b; --c4:#7a8794; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink:#e8edf2; --soft:#9aa7b5; --paper:#12171d; --card:#1b222a;
  --line:#2d3742; --quiet:#566372; --c0:#2fb8a2; --c1:#e8935a; --c2:#8ea2f2; --c3:#e0739f } }
* { box-sizing:border-box } body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1180px; margin:0 auto; padding:34px 22px 60px }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px } .lead { color:var(--soft); margin:0 0 24px; max-width:78ch }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(136px,1fr)); gap:12px; margin-bottom:18px }
.tile,.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 16px }
.tile b { display:block; font-size:24px; line-height:1.15; font-variant-numeric:tabular-nums }
.tile span { color:var(--soft) }
.grid { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(470px,100%),1fr)); gap:14px }
svg { width:100%; height:auto; display:block; font:12px system-ui,sans-serif } svg text { fill:var(--soft) }
svg .title { font-size:15px; font-weight:600; fill:var(--ink) } svg .name { fill:var(--ink) }
svg .grid { stroke:var(--line) } svg .mark { stroke:var(--c1); stroke-dasharray:4 3 }
h2 { font-size:17px; margin:0 0 8px } table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
td,th { padding:5px 8px; border-bottom:1px solid var(--line); text-align:right }
th { color:var(--soft); font-weight:500 }
td:first-child,th:first-child { text-align:left }
.bad { color:var(--c3); font-weight:600 }
footer { color:var(--soft); margin-top:20px }
"""


def page(result: dict[str, Any], samples: dict[str, Any]) -> str:
    """The whole document. `result` as `joey.bench.demo.run.demo` gives it, `samples` what its Recorder kept."""
    start, work = result["start"], result["work"]
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in _tiles(result))
    cards = "".join(f'<div class="card">{chart}</div>' for chart in _charts(result, samples))
    lead = (
        f"{number(start['count'])} sandboxes from nothing in {start['seconds']:.1f} s, all alive at once; then "
        f"{number(work['count'])} unknown Python programs judged by their unit tests, each in a sandbox of its own, "
        "some of them hostile. Default hardening: own user, mount, pid, ipc, uts, cgroup and network namespace, own "
        "ids, seccomp, memory, processor and process limits. A sandbox counts when the program inside has answered."
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Joey: {number(start['count'])} sandboxes</title><style>{_STYLE}</style>\n<main><h1>"
        f"{number(start['count'])} sandboxes in {start['seconds']:.1f} seconds</h1><p class=lead>{lead}</p>\n"
        f'<div class="tiles">{tiles}</div>\n<div class="grid">{cards}{_verdicts(work)}{_peers(result)}</div>'
        f"<footer>{escape(describe(result['machine']))}. Memory: what MemAvailable fell by, the kernel's own included; "
        f"it was {escape(start['memory'])}.</footer></main></html>\n"
    )


def _tiles(result: dict[str, Any]) -> list[tuple[str, str]]:
    start, work = result["start"], result["work"]
    return [
        (number(start["per_second"], digits=0), "sandboxes started a second"),
        (number(start["answer_ms"]["p50"], "ms", 1), "request to answer, median"),
        (number(start["memory_per_sandbox_kib"], "KiB", 0), "memory of each, alive"),
        (f"{start['removed_seconds']:.1f} s", "until all were gone again"),
        (number(work["as_expected"]), f"of {number(work['count'])} verdicts as they should be"),
        (number(work["contained"]), f"of {number(work['attacks'])} attacks contained"),
        (number(result["leftovers"]), "left behind"),
    ]


def _charts(result: dict[str, Any], samples: dict[str, Any]) -> list[str]:
    start, work = result["start"], result["work"]
    answer = start["answer_ms"]
    marks = [(f"{name} {answer[name]:.1f} ms", answer[name]) for name in ("p50", "p99") if answer[name] is not None]
    charts = [
        line_chart(
            "Start: sandboxes alive", [Series("alive", samples["start"]["alive"])], "seconds", "sandboxes"
        ),
        histogram("Start: from request to answer", samples["start"]["answers_ms"], "milliseconds", marks),
        line_chart("Start: memory taken", [Series("memory", samples["start"]["memory"])], "seconds", "MiB"),
        line_chart("Judge: programs judged", [Series("judged", samples["work"]["done"])], "seconds", "programs"),
        histogram(
            "Judge: life of one sandbox", samples["work"]["answers_ms"], "milliseconds",
            [(f"median {work['life_ms']['p50']:.0f} ms", work["life_ms"]["p50"])] if work["life_ms"]["p50"] else [],
        ),
    ]  # fmt: skip
    peers = [(name, peer) for name, peer in result["peers"].items() if "per_second" in peer]
    if peers:
        speed = [("Joey", start["per_second"]), *((name, peer["per_second"]) for name, peer in peers)]
        charts.append(
            bars("Started a second, same hardening", [(n, v, f"{number(v, digits=0)} a second") for n, v in speed])
        )
    return charts


def _verdicts(work: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(kind)}<td>{count['count']:,}<td>{escape(count['expected'])}<td>{_judged(count)}"
        for kind, count in work["kinds"].items()
    )
    head = "<tr><th>solution<th>sandboxes<th>should be<th>as it should"
    return (
        f'<div class="card"><h2>What the programs were, and what became of them</h2><table>{head}{rows}</table></div>'
    )


def _judged(count: dict[str, Any]) -> str:
    text = f"{count['as_expected']:,}"
    return text if count["as_expected"] == count["count"] else f'<span class="bad">{text}</span>'


def _peers(result: dict[str, Any]) -> str:
    rows = "".join(_peer(name, peer) for name, peer in (("Joey", result["start"]), *result["peers"].items()))
    head = "<tr><th>runtime<th>a second<th>median, ms<th>KiB each<th>Joey is … times as fast"
    return f'<div class="card"><h2>Beside other runtimes, in the same run</h2><table>{head}{rows}</table></div>'


def _peer(name: str, peer: dict[str, Any]) -> str:
    if "per_second" not in peer:
        return f'<tr><td>{escape(name)}<td colspan="4">{escape(peer.get("absent") or "does not work here")}'
    figures = (
        number(peer["per_second"], digits=0), number(peer["answer_ms"]["p50"], digits=1),
        number(peer["memory_per_sandbox_kib"], digits=0), number(peer.get("times"), digits=1),
    )  # fmt: skip
    return f"<tr><td>{escape(name)}" + "".join(f"<td>{figure}" for figure in figures)
