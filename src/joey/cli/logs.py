"""`joey logs`."""

import time

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import write
from joey.cli.values import whole
from joey.client import jsontext
from joey.client.transport import Problem, query, quote
from joey.model import frames

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def logs(values, arguments):
    """Standard output to standard output, standard error to standard error, as they were."""
    (ref,) = arguments
    now = time.time()
    wanted = {
        "follow": values.get("follow", False),
        "timestamps": values.get("timestamps", False),
        "since": moment(values["since"], "--since", now) if "since" in values else None,
        "until": moment(values["until"], "--until", now) if "until" in values else None,
    }
    if values.get("tail", "all") != "all":
        wanted["tail"] = max(0, whole(values["tail"], "--tail"))
    decoder = frames.Decoder()
    with engine() as connection:
        response = connection.request("GET", f"/v1/sandboxes/{quote(ref)}/logs{query(wanted)}")
        for data in response.stream():
            for kind, payload, _ in decoder.pieces(data):
                if kind == frames.ERROR:
                    document = jsontext.loads(payload)
                    raise Problem(document.get("status", 500), document)
                write(kind, payload)


def moment(text, option, now):
    """Seconds since the epoch of `10m`, `1h30m` (ago), `1700000000.5`, `2024-01-02T03:04:05Z`. Raises UsageError."""
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return f"{float(text):.6f}"
    span = _span(text)
    if span is not None:
        return f"{now - span:.6f}"
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(text).timestamp():.6f}"
    except ValueError:
        raise UsageError(f"{option}: {text!r} is no time", "10m, 2024-01-02T03:04:05Z, or seconds since 1970") from None


def _span(text):
    total, number = 0.0, ""
    for char in text:
        if char.isdigit() or char == ".":
            number += char
        elif char in _UNITS and number.replace(".", "", 1).isdigit():
            total, number = total + float(number) * _UNITS[char], ""
        else:
            return None
    return None if number or not text else total


COMMANDS = {
    "logs": {
        "usage": "[OPTIONS] SANDBOX",
        "summary": "Show what a sandbox has printed",
        "arguments": (1, 1),
        "options": (
            ("-f --follow", "", "Go on with what it prints, until it ends"),
            ("-n --tail", "NUMBER|all", "Only the last so many lines"),
            ("--since", "TIME", "From a time on: 10m (ago), 2024-01-02T03:04:05Z, seconds since 1970"),
            ("--until", "TIME", "Up to a time"),
            ("-t --timestamps", "", "The time before every line"),
        ),
        "refused": {"--details": ""},
        "run": logs,
    }
}
