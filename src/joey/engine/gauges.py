"""What the engine tells of its own parts, for /metrics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TypeAlias

from joey.engine.machine import Machine

Gauges: TypeAlias = Mapping[str, tuple[str, list[tuple[dict[str, str], float]]]]
"""Metric -> its meaning, and (labels, value) of each sample."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def gauges(machine: Machine) -> Gauges:
    """Launchers (number, children, resident bytes) and slots. Costs a read of /proc a launcher."""
    shards = machine.fleet.shards
    memory = [({"pid": str(pid)}, size) for pid in machine.fleet.pids if (size := _resident(pid)) is not None]
    children = [({"launcher": str(shard.number)}, float(shard.children)) for shard in shards]
    return {
        "joey_launcher_memory_bytes": ("Resident memory of each launcher", memory),
        "joey_launcher_children": ("Contained processes of each launcher", children),
        "joey_slots_ready": ("Slots prepared ahead", [({}, float(machine.pool.ready))]),
        "joey_slots_clearing": ("Slots used and not yet cleared away", [({}, float(len(machine.pool.pending)))]),
    }


def _resident(pid: int) -> float | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", "rb") as statm:
        return float(int(statm.read().split()[1]) * _PAGE)
    return None
