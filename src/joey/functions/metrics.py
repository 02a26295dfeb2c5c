"""Figures of functions, as /metrics shows them: families of samples, by function and owner. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from joey.functions.service import Functions
from joey.functions.stats import BOUNDS, Durations, Stats

Labels = Mapping[str, str]


class Family(NamedTuple):
    """One metric: its samples by labels."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Labels, float]]


class Histograms(NamedTuple):
    """One metric of durations."""

    name: str
    help: str
    bounds: tuple[float, ...]
    samples: list[tuple[Labels, Durations]]


def families(own: Functions) -> Iterable[Family | Histograms]:
    """Of all functions; nothing where there are none."""
    if not own.known:
        return
    found = [(entry, own.figures(entry)) for entry in own.registry.list(None)]
    if not found:
        return
    labels = [{"function": entry.name, "owner": entry.owner} for entry, _ in found]

    def values(name: str, kind: str, help: str, field: str) -> Family:
        samples: list[tuple[Labels, float]] = [
            (label, getattr(figures, field)) for label, (_, figures) in zip(labels, found, strict=True)
        ]
        return Family(f"joey_function_{name}", kind, help, samples)

    def by(name: str, help: str, field: str, label: str) -> Family:
        samples: list[tuple[Labels, float]] = [
            ({**base, label: key}, count)
            for base, (_, figures) in zip(labels, found, strict=True)
            for key, count in sorted(getattr(figures, field).items())
        ]
        return Family(f"joey_function_{name}", "counter", help, samples)

    def durations(name: str, help: str, of: Callable[[Stats], Durations]) -> Histograms:
        functions = own.dispatcher.functions
        samples: list[tuple[Labels, Durations]] = [
            (label, of(functions[entry.key].stats) if entry.key in functions else Durations())
            for label, (entry, _) in zip(labels, found, strict=True)
        ]
        return Histograms(f"joey_function_{name}", help, BOUNDS, samples)

    yield values("invocations_total", "counter", "Invocations that got a place", "invocations")
    yield values("cold_starts_total", "counter", "Invocations an instance was started for", "cold_starts")
    yield by("errors_total", "Invocations and starts that failed, by type", "errors", "type")
    yield by("throttles_total", "Invocations refused, by the limit", "throttles", "reason")
    yield values("running", "gauge", "Invocations under way", "running")
    yield values("waiting", "gauge", "Invocations that wait for an instance", "waiting")
    yield values("queued", "gauge", "Asynchronous invocations that are not over", "queued")
    yield values("instances", "gauge", "Instances that are ready", "instances")
    yield values("starting", "gauge", "Instances that are being started", "starting")
    yield durations("duration_seconds", "At an instance", lambda stats: stats.durations)
    yield durations("start_seconds", "Starts of instances", lambda stats: stats.starts)
    yield durations("wait_seconds", "From the request to a place at an instance", lambda stats: stats.waits)


def memory(own: Functions, charged: Mapping[str, int | None]) -> Family:
    """charged: bytes by id of sandbox, also of those that are no instances."""
    found: dict[tuple[str, str], int] = {}
    for id, key in own.by_instance().items():
        found[key] = found.get(key, 0) + (charged.get(id) or 0)
    samples: list[tuple[Labels, float]] = [
        ({"function": name, "owner": owner}, size) for (owner, name), size in sorted(found.items())
    ]
    return Family("joey_function_memory_bytes", "gauge", "Memory charged to its instances", samples)
