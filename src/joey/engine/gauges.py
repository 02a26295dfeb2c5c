"""What the engine tells of its own parts, for /metrics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from joey.engine.machine import Machine
from joey.model.views import Load, Pool

Gauges: TypeAlias = Mapping[str, tuple[str, list[tuple[dict[str, str], float]]]]
"""Metric -> its meaning, and (labels, value) of each sample."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def gauges(machine: Machine, load: Load, pools: Sequence[Pool], network: Mapping[str, int]) -> Gauges:
    """Launchers (number, children, resident bytes), slots, admission and pools. Costs a read of /proc a launcher."""
    shards = machine.fleet.shards
    memory = [({"pid": str(pid)}, size) for pid in machine.fleet.pids if (size := _resident(pid)) is not None]
    children = [({"launcher": str(shard.number)}, float(shard.children)) for shard in shards]
    return {
        "joey_launcher_memory_bytes": ("Resident memory of each launcher", memory),
        "joey_launcher_children": ("Contained processes of each launcher", children),
        **_of_load(load),
        **_of_pools(pools),
        **_of_network(network),
        "joey_slots_ready": ("Slots prepared ahead", [({}, float(machine.pool.ready))]),
        "joey_slots_clearing": ("Slots used and not yet cleared away", [({}, float(len(machine.pool.pending)))]),
    }


def _of_load(load: Load) -> Gauges:
    """What the node may have: 0 for no limit."""
    return {
        "joey_admitted_sandboxes": ("Sandboxes that exist, warm ones included", [({}, float(load.sandboxes))]),
        "joey_admitted_sandboxes_limit": ("How many may, 0 for no limit", [({}, float(load.sandboxes_limit or 0))]),
        "joey_promised_memory_bytes": ("Sum of the memory limits of those that run", [({}, float(load.memory))]),
        "joey_promised_memory_limit_bytes": ("How much may be promised", [({}, float(load.memory_limit))]),
        "joey_starts_in_flight": ("Sandboxes being started", [({}, float(load.starts))]),
    }


def _of_network(network: Mapping[str, int]) -> Gauges:
    """Of `engine.networks.Networks.totals`; nothing while no sandbox has had a link."""
    if not network:
        return {}
    reasons = ("spoofed", "not_ipv4", "uninvited")
    dropped = [({"reason": reason}, float(network[reason])) for reason in reasons]
    return {
        "joey_network_dropped_packets": ("Packets dropped that no policy was asked about", dropped),
        "joey_network_links": ("Sandboxes with a link of their own", [({}, float(network["links"]))]),
        "joey_network_links_ready": ("Slots with a link prepared ahead", [({}, float(network["ready"]))]),
    }


def _of_pools(pools: Sequence[Pool]) -> Gauges:
    named = [({"pool": pool.name, "owner": pool.owner}, pool) for pool in pools]
    return {
        "joey_pool_size": ("Sandboxes a pool is to keep", [(name, float(pool.size)) for name, pool in named]),
        "joey_pool_ready": ("Of them ready", [(name, float(pool.ready)) for name, pool in named]),
        "joey_pool_handed_out": ("Handed out", [(name, float(pool.handed_out)) for name, pool in named]),
        "joey_pool_missed": ("Creates that found none", [(name, float(pool.missed)) for name, pool in named]),
    }


def _resident(pid: int) -> float | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", "rb") as statm:
        return float(int(statm.read().split()[1]) * _PAGE)
    return None
