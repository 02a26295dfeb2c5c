"""What comes out of containers: attach, logs, stats."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from joey.api.facades.docker import hijack, views
from joey.api.facades.docker.base import Refused, Req, Route, answer
from joey.api.light import web
from joey.engine.interface import LogQuery
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound
from joey.model.views import LogEntry, Stats

_TICKS = 100


async def attach(r: Req) -> web.StreamResponse:
    """Hijacked. With `logs` what was printed before comes first."""
    data, collector = await hijack.body(r.request)
    del data
    id = r.id
    detail = await r.engine.inspect(id)
    tty = detail.spec.process.tty
    keys = hijack.Keys(r.query.get("detachKeys", "")) if tty else None
    out = (r.flag("stdout"), r.flag("stderr"))
    past = b""
    if r.flag("logs"):
        async for entry in r.engine.logs(id, LogQuery(stdout=out[0], stderr=out[1])):
            past += entry.data if tty else hijack.frame(entry.stream, entry.data)
            if len(past) > 1 << 20:
                raise Refused("logs", "there is more than 1 MiB: docker logs -f")
    if not r.flag("stream"):
        connection = await hijack.take_over(r.request, collector, tty=tty)
        await connection.send(past)
        connection.close()
        return hijack.Taken()
    if detail.sandbox.state == "paused":
        raise Conflict("", f"container {id} is paused, unpause the container before attach")
    # Of one that has ended it is the next run's: `docker start -a` comes before the start.
    attachment = r.engine.find(id).attach(again=True)  # type: ignore[attr-defined]
    try:
        connection = await hijack.take_over(r.request, collector, tty=tty)
        r.tell("container", "attach", id)
        if past:
            await connection.send(past)
        stdin = r.flag("stdin") and detail.spec.process.stdin
        once = id not in r.state.stdin_stays
        return await hijack.serve(
            connection, attachment, tty=tty, stdin=stdin, out=(out[0] or tty, out[1]), once=once, keys=keys
        )
    finally:
        await attachment.close()


async def resize(r: Req) -> web.Response:
    """Only a container that runs has a terminal to size."""
    id, rows, cols = r.id, r.number("h", 0) or 0, r.number("w", 0) or 0
    detail = await r.engine.inspect(id)
    if detail.sandbox.state not in ("running", "paused"):
        raise Conflict("", f"container {id} is not running")
    if rows and cols and detail.spec.process.tty:
        attachment = await r.engine.attach(id)
        try:
            await attachment.resize(rows, cols)
        finally:
            await attachment.close()
    return web.Response(status=200)


async def logs(r: Req) -> web.StreamResponse:
    """Frames, of a terminal's output raw bytes."""
    id = r.id
    out, err = r.flag("stdout"), r.flag("stderr")
    if not out and not err:
        raise Invalid("", "Bad parameters: you must choose at least one stream")
    if r.flag("details"):
        raise Refused("details", "Joey's log entries have none")
    tail = r.query.get("tail", "all")
    if tail != "all" and not tail.isdigit():
        tail = "all"
    tty = (await r.engine.inspect(id)).spec.process.tty
    asked = LogQuery(
        follow=r.flag("follow"), since=r.moment("since"), until=r.moment("until"), stdout=out, stderr=err,
        tail=None if tail == "all" else int(tail),
    )  # fmt: skip
    entries = r.engine.logs(id, asked)
    response = await r.stream(hijack.RAW if tty else hijack.MULTIPLEXED)
    lines = _Lines(r.flag("timestamps"))
    try:
        async for entry in entries:
            if piece := lines(entry):
                await response.write(piece if tty else hijack.frame(entry.stream, piece))
    except JoeyError as failure:
        if not tty:
            await response.write(hijack.frame(3, str(failure).encode()))
    finally:
        await _close(entries)
    await response.write_eof()
    return response


class _Lines:
    """Puts the time before every line if wanted, although entries are not whole lines."""

    def __init__(self, stamps: bool) -> None:
        self._stamps = stamps
        self._within = {1: False, 2: False}

    def __call__(self, entry: LogEntry) -> bytes:
        if not self._stamps:
            return entry.data
        mark = views.stamp(entry.at).encode() + b" "
        pieces = entry.data.splitlines(keepends=True) if b"\r" not in entry.data else _cut(entry.data)
        within = self._within[entry.stream]
        self._within[entry.stream] = not entry.data.endswith(b"\n")
        return b"".join(piece if within and not at else mark + piece for at, piece in enumerate(pieces))


def _cut(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


async def _close(entries: Any) -> None:
    close = getattr(entries, "aclose", None)
    if close is not None:
        await close()


async def stats(r: Req) -> web.StreamResponse:
    """An object a second, or one. Of a container that does not run all is zero."""
    id = r.id
    detail = await r.engine.inspect(id)
    before: dict[str, Any] = {}
    if not r.flag("stream", True):
        if not r.flag("one-shot") and detail.sandbox.state == "running":
            before = await _stats(r, id, {})
            await asyncio.sleep(1.0)
        return answer(await _stats(r, id, before))
    response = await r.stream()
    while True:
        try:
            before = await _stats(r, id, before)
        except NotFound:
            break
        await response.write(json.dumps(before).encode() + b"\r\n")
        await asyncio.sleep(1.0)
    await response.write_eof()
    return response


async def _stats(r: Req, id: str, before: dict[str, Any]) -> dict[str, Any]:
    sandbox = (await r.engine.inspect(id)).sandbox
    found = await r.engine.stats([id]) if sandbox.state in ("running", "paused") else []
    cpu = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}, "throttling_data": {
        "periods": 0, "throttled_periods": 0, "throttled_time": 0}}  # fmt: skip
    shown: dict[str, Any] = {
        "id": id, "name": views.name(sandbox), "read": views.stamp(time.time()), "num_procs": 0, "storage_stats": {},
        "preread": before.get("read", views.NEVER), "precpu_stats": before.get("cpu_stats", cpu), "cpu_stats": cpu,
        "memory_stats": {}, "pids_stats": {}, "blkio_stats": {"io_service_bytes_recursive": None},
    }  # fmt: skip
    if found:
        _fill(shown, found[0])
    return shown


def _fill(shown: dict[str, Any], found: Stats) -> None:
    usage = found.usage
    shown["cpu_stats"] = {
        "cpu_usage": {
            "total_usage": usage.cpu_ns or 0, "usage_in_kernelmode": usage.cpu_system_ns or 0,
            "usage_in_usermode": usage.cpu_user_ns or 0,
        },
        "system_cpu_usage": _system(), "online_cpus": _cpus(),
        "throttling_data": {
            "periods": 0, "throttled_periods": usage.throttled_periods or 0, "throttled_time": usage.throttled_ns or 0,
        },
    }  # fmt: skip
    shown["memory_stats"] = {
        "usage": usage.memory_current or 0, "limit": usage.memory_limit or 0, "max_usage": usage.memory_peak or 0,
        "stats": {"cache": usage.cache or 0, "rss": usage.rss or 0, "inactive_file": usage.cache or 0},
    }  # fmt: skip
    shown["pids_stats"] = {"current": usage.pids_current or 0, "limit": usage.pids_max or 0}
    shown["blkio_stats"]["io_service_bytes_recursive"] = [
        {"major": 0, "minor": 0, "op": "read", "value": usage.io_read_bytes or 0},
        {"major": 0, "minor": 0, "op": "write", "value": usage.io_write_bytes or 0},
    ]
    if found.network:
        net = found.network
        shown["networks"] = {"eth0": {
            "rx_bytes": net.received, "rx_packets": net.packets_received, "rx_errors": 0, "rx_dropped": 0,
            "tx_bytes": net.sent, "tx_packets": net.packets_sent, "tx_errors": 0, "tx_dropped": net.refused_packets,
        }}  # fmt: skip


def _system() -> int:
    """Nanoseconds of all CPUs of this machine (proc(5), /proc/stat)."""
    with open("/proc/stat", encoding="ascii") as source:
        ticks = sum(int(word) for word in source.readline().split()[1:9])
    return ticks * (1_000_000_000 // _TICKS)


def _cpus() -> int:
    import os

    return os.cpu_count() or 1


ROUTES = (
    Route("POST", "/containers/{id}/attach", attach, "detachKeys logs stream stdin stdout stderr"),
    Route("POST", "/containers/{id}/resize", resize, "h w"),
    Route("GET", "/containers/{id}/logs", logs, "follow stdout stderr since until timestamps tail details"),
    Route("GET", "/containers/{id}/stats", stats, "stream one-shot"),
)
