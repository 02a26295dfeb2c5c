"""`events`: figures of a container as runc prints them, once (--stats) or every interval."""

from __future__ import annotations

import os
import time

from joey.client import jsontext
from joey.oci import cgroups
from joey.oci.errors import OciError

_OOM_SECONDS = 0.1
"""How often it looks whether somebody was killed for want of memory, between figures."""


def follow(container, interval, once):
    seconds = _seconds(interval)
    if container.status() == "stopped":
        raise OciError(f"container with id {container.id} is not running")
    groups = container.data["cgroups"]
    due, kills = 0.0, _kills(groups)
    while container.status() != "stopped":
        now = time.monotonic()
        if now >= due:
            _tell({"type": "stats", "id": container.id, "data": stats(groups)})
            due = now + seconds
        if once:
            return
        time.sleep(min(max(due - time.monotonic(), 0.001), _OOM_SECONDS))
        more = _kills(groups)
        if more > kills:
            _tell({"type": "oom", "id": container.id})
        kills = max(kills, more)


def _tell(line):
    os.write(1, (jsontext.dumps(line) + "\n").encode())


def _kills(groups):
    """How many the kernel has killed in it for want of memory."""
    directory = cgroups.of(groups, "memory") or "/nowhere"
    return _table(f"{directory}/memory.{'events' if cgroups.v2(groups) else 'oom_control'}").get("oom_kill", 0)


def _seconds(text):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    for unit, factor in units.items():
        number = text.removesuffix(unit)
        if text.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise OciError(f"--interval: {text!r} is not a duration such as 5s")


def stats(groups):
    unified = cgroups.v2(groups)
    return _v2(unified) if unified else _v1(groups)


def _int(path, default=0):
    text = cgroups.read_or(path)
    return int(text) if text.isdigit() else default


def _table(path):
    rows = (line.split() for line in cgroups.read_or(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _v1(groups):
    def at(controller):
        return cgroups.of(groups, controller) or "/nowhere"

    cpu, acct, memory = at("cpu"), at("cpuacct"), at("memory")
    throttling, times = _table(f"{cpu}/cpu.stat"), _table(f"{acct}/cpuacct.stat")
    per = [int(word) for word in cgroups.read_or(f"{acct}/cpuacct.usage_percpu").split()]
    raw = _table(f"{memory}/memory.stat")

    def entry(name):
        files = {"limit": "limit_in_bytes", "usage": "usage_in_bytes", "max": "max_usage_in_bytes"}
        files["failcnt"] = "failcnt"
        return {key: _int(f"{memory}/memory.{name}{file}") for key, file in files.items()}

    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    return {
        "cpu": {
            "usage": {
                "total": _int(f"{acct}/cpuacct.usage"), "percpu": per, "kernel": times.get("system", 0) * tick,
                "user": times.get("user", 0) * tick,
            },
            "throttling": {
                "periods": throttling.get("nr_periods", 0), "throttledPeriods": throttling.get("nr_throttled", 0),
                "throttledTime": throttling.get("throttled_time", 0),
            },
        },
        "memory": {
            "cache": raw.get("cache", 0), "usage": entry(""), "swap": entry("memsw."), "kernel": entry("kmem."),
            "kernelTCP": entry("kmem.tcp."), "raw": raw,
        },
        "pids": _pids(at("pids")),
        "blkio": _blkio(at("blkio")),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }  # fmt: skip


def _blkio(directory):
    found = {}
    for name, file in (("ioServiceBytesRecursive", "io_service_bytes"), ("ioServicedRecursive", "io_serviced")):
        rows = (line.split() for line in cgroups.read_or(f"{directory}/blkio.throttle.{file}_recursive").splitlines())
        found[name] = [
            {"major": int(row[0].split(":")[0]), "minor": int(row[0].split(":")[1]), "op": row[1], "value": int(row[2])}
            for row in rows
            if len(row) == 3
        ]
    return found


def _pids(directory):
    return {"current": _int(f"{directory}/pids.current"), "limit": _int(f"{directory}/pids.max")}


def _v2(directory):
    cpu, raw = _table(f"{directory}/cpu.stat"), _table(f"{directory}/memory.stat")
    entry = {
        "limit": _int(f"{directory}/memory.max", (1 << 64) - 1), "usage": _int(f"{directory}/memory.current"),
        "max": _int(f"{directory}/memory.peak"), "failcnt": _table(f"{directory}/memory.events").get("max", 0),
    }  # fmt: skip
    swap = {
        "limit": _int(f"{directory}/memory.swap.max", (1 << 64) - 1), "usage": _int(f"{directory}/memory.swap.current"),
        "failcnt": 0,
    }  # fmt: skip
    return {
        "cpu": {
            "usage": {
                "total": cpu.get("usage_usec", 0) * 1000, "kernel": cpu.get("system_usec", 0) * 1000,
                "user": cpu.get("user_usec", 0) * 1000,
            },
            "throttling": {
                "periods": cpu.get("nr_periods", 0), "throttledPeriods": cpu.get("nr_throttled", 0),
                "throttledTime": cpu.get("throttled_usec", 0) * 1000,
            },
        },
        "memory": {
            "cache": raw.get("file", 0), "usage": entry, "swap": swap, "kernel": {"failcnt": 0},
            "kernelTCP": {"failcnt": 0}, "raw": raw,
        },
        "pids": _pids(directory),
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }  # fmt: skip
