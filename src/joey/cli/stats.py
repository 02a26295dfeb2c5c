"""`joey stats`."""

import time

from joey.cli.connect import engine
from joey.cli.output import is_terminal, say, say_json, table, write
from joey.client.transport import query

PERIOD = 1.0
HEAD = ("SANDBOX ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS", "NET I/O", "BLOCK I/O", "REFUSED")


def stats(values, arguments):
    """Once, or every second until interrupted. CPU is measured between two looks."""
    once = values.get("no_stream", False)
    path = "/v1/stats" + query({"id": arguments})
    with engine() as connection:
        before = {one["id"]: one for one in connection.call("GET", path)}
        while True:
            if before or not once:
                time.sleep(PERIOD / 4 if once else PERIOD)
            now = connection.call("GET", path)
            for one in now:
                one["cpu_percent"] = percent(before.get(one["id"]), one)
            if values.get("json"):
                say_json(now)
            else:
                clear = b"\x1b[H\x1b[J" if not once and is_terminal(1) else b""
                write(1, clear)
                say(table(HEAD, [row(one) for one in now]))
            if once:
                return
            before = {one["id"]: one for one in now}


def percent(before, now):
    """CPU used between two looks, 100 for one whole CPU; None if there were not two."""
    if before is None or before["usage"]["cpu_ns"] is None or now["usage"]["cpu_ns"] is None:
        return None
    seconds = now["at"] - before["at"]
    return max(0.0, (now["usage"]["cpu_ns"] - before["usage"]["cpu_ns"]) / 1e7 / seconds) if seconds > 0 else None


def row(one):
    """The cells of one sandbox."""
    from joey.model.units import format_size

    def size(value):
        return "-" if value is None else format_size(value)

    usage = one["usage"]
    memory, limit = usage["memory_current"], usage["memory_limit"]
    share = f"{memory / limit * 100:.2f}%" if memory is not None and limit else "-"
    cpu = "-" if one["cpu_percent"] is None else f"{one['cpu_percent']:.2f}%"
    top = "" if usage["pids_max"] is None else f" / {usage['pids_max']}"
    return (
        one["id"][:12],
        one["name"],
        cpu,
        f"{size(memory)} / {size(limit)}",
        share,
        f"{'-' if usage['pids_current'] is None else usage['pids_current']}{top}",
        "-" if (net := one.get("network")) is None else f"{size(net['received'])} / {size(net['sent'])}",
        f"{size(usage['io_read_bytes'])} / {size(usage['io_write_bytes'])}",
        "-" if net is None else f"{net['refused_packets']} / {net['names_refused']}",
    )


COMMANDS = {
    "stats": {
        "usage": "[OPTIONS] [SANDBOX…]",
        "summary": "Show what sandboxes use: those named, or all that run",
        "options": (
            ("--no-stream", "", "Look once, not every second"),
            ("--json", "", "As JSON, an array each time"),
        ),
        "refused": {"-a": "", "--all": "", "--format": ("", "--json"), "--no-trunc": ""},
        "run": stats,
    }
}
