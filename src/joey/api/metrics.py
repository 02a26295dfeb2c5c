"""GET /metrics: the Prometheus text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import os
import resource
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from joey._version import __version__
from joey.api import params
from joey.api.light import web
from joey.api.routes import TEXT, Call, Route
from joey.functions.metrics import Histograms, families, memory
from joey.model.views import Stats

STATES = ("created", "running", "paused", "exited", "dead")
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Histogram:
    """Durations (seconds) by bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Counters:
    """What the service counts. launches: creates with a start, by the time they took; failures: by problem code."""

    def __init__(self) -> None:
        self.launches = Histogram()
        self.failures: dict[str, int] = {}
        self.answers: dict[int, int] = {}


class Page:
    """The text, family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help: str, samples: Iterable[tuple[Mapping[str, Any], float]]) -> None:
        """All samples of a metric: labels -> value."""
        self._lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def one(self, name: str, kind: str, help: str, value: float) -> None:
        """A metric without labels."""
        self.family(name, kind, help, [({}, value)])

    def histogram(self, name: str, help: str, found: Histogram) -> None:
        """Buckets are cumulative, as the format wants them."""
        self._lines += [f"# HELP {name} {help}", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), found.counts, strict=True):
            total += count
            self._lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        self._lines += [f"{name}_sum {_number(found.sum)}", f"{name}_count {total}"]

    def histograms(self, found: Histograms) -> None:
        """Several of one name, by labels."""
        self._lines += [f"# HELP {found.name} {found.help}", f"# TYPE {found.name} histogram"]
        ends = (*map(str, found.bounds), "+Inf")
        for labels, durations in found.samples:
            total = 0
            for bound, count in zip(ends, durations.counts, strict=True):
                total += count
                self._lines.append(f"{found.name}_bucket{_labels({**labels, 'le': bound})} {total}")
            self._lines.append(f"{found.name}_sum{_labels(labels)} {_number(durations.sum)}")
            self._lines.append(f"{found.name}_count{_labels(labels)} {total}")

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def _labels(labels: Mapping[str, Any]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


async def metrics(call: Call) -> web.Response:
    """For Prometheus. Figures of each sandbox only with `sandboxes=true`: thousands of short-lived ones are too many
    time series for most.
    """
    service, page = call.service, Page()
    node = await call.engine.node()
    page.family("joey_build_info", "gauge", "Version of the engine", [({"version": __version__}, 1)])
    page.family(
        "joey_sandboxes", "gauge", "Sandboxes by state", [({"state": s}, node.counts.get(s, 0)) for s in STATES]
    )
    page.one("joey_node_cpus", "gauge", "CPUs of the machine", node.cpus)
    page.one("joey_node_memory_bytes", "gauge", "Memory of the machine", node.memory_total)
    counters = service.counters
    page.one("joey_launches_total", "counter", "Sandboxes started by a create", sum(counters.launches.counts))
    page.histogram("joey_launch_seconds", "From request to running", counters.launches)
    failures = sorted(counters.failures.items())
    page.family("joey_failures_total", "counter", "Problems answered, by code", [({"code": c}, n) for c, n in failures])
    page.one("joey_http_requests_in_flight", "gauge", "Requests in flight, streams aside", service.in_flight)
    page.one("joey_http_connections", "gauge", "Requests and streams open", service.activity.open)
    service.doorway.figures(page)
    for found in families(service.functions):
        if isinstance(found, Histograms):
            page.histograms(found)
        else:
            page.family(*found)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    page.one("process_cpu_seconds_total", "counter", "CPU time of the engine", usage.ru_utime + usage.ru_stime)
    page.one("process_resident_memory_bytes", "gauge", "Resident memory of the engine", _resident())
    page.one("process_open_fds", "gauge", "Open descriptors of the engine", len(os.listdir("/proc/self/fd")) - 1)
    extra = getattr(call.engine, "gauges", None)  # what this kind of engine knows of its own: launchers, slots, pools
    for name, (help, samples) in sorted(extra().items() if extra else ()):
        page.family(name, "gauge", help, samples)
    if call.query.get("sandboxes"):
        stats = await call.engine.stats([])
        _sandboxes(page, stats)
        page.family(*memory(service.functions, {one.id: one.usage.memory_current for one in stats}))
    return web.Response(text=page.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _sandboxes(page: Page, found: Iterable[Stats]) -> None:
    found = list(found)
    names = [{"id": one.id, "name": one.name} for one in found]

    def family(name: str, kind: str, help: str, values: Iterable[float | None]) -> None:
        samples = [(label, value) for label, value in zip(names, values, strict=True) if value is not None]
        page.family(f"joey_sandbox_{name}", kind, help, samples)

    usages = [one.usage for one in found]
    family("cpu_seconds_total", "counter", "CPU time", [_over(usage.cpu_ns, 1e9) for usage in usages])
    family("memory_bytes", "gauge", "Memory charged to it", [usage.memory_current for usage in usages])
    family("memory_limit_bytes", "gauge", "Its memory limit", [usage.memory_limit for usage in usages])
    family("pids", "gauge", "Processes and threads", [usage.pids_current for usage in usages])
    links = [one.network for one in found]
    for name, field, help in (
        ("network_sent_bytes", "sent", "Bytes it sent"),
        ("network_received_bytes", "received", "Bytes it received"),
        ("network_refused_packets", "refused_packets", "Packets its policy refused"),
        ("dns_refused", "names_refused", "Names its policy refused"),
    ):
        family(f"{name}_total", "counter", help, [None if link is None else getattr(link, field) for link in links])


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


ROUTES = (
    Route(
        "GET", "/metrics", metrics, "Figures for Prometheus", tag="node", admin=True, answer=bytes, media=TEXT,
        query=(params.flag("sandboxes", "Also figures of each sandbox, and the memory of functions"),),
    ),
)  # fmt: skip
