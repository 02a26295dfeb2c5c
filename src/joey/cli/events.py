"""`joey events`."""

import time

from joey.cli.connect import engine
from joey.cli.output import say
from joey.client import jsontext
from joey.client.transport import query


def events(values, arguments):
    """Print what happens, a line an event, until interrupted."""
    wanted = {
        "follow": not values.get("no_follow", False),
        "after": values.get("after"),
        "type": values.get("type"),
        "label": values.get("label"),
        "sandbox": arguments or None,
    }
    with engine() as connection:
        held = b""
        for piece in connection.request("GET", "/v1/events" + query(wanted)).stream():
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                say(line.decode() if values.get("json") else _line(jsontext.loads(line)))


def _line(event):
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(event["at"])) + f".{int(event['at'] % 1 * 1e3):03d}"
    data = " ".join(f"{name}={value}" for name, value in event["data"].items())
    who = f"{event['sandbox'][:12]} {event['name']}".strip()
    return " ".join(part for part in (at, event["type"], who, data) if part)


COMMANDS = {
    "events": {
        "usage": "[OPTIONS] [SANDBOX…]",
        "summary": "Follow what happens to sandboxes",
        "arguments": (0, None),
        "options": (
            ("--after", "ID", "Begin after this event; the last 10,000 are kept"),
            ("--no-follow", "", "End after what has happened so far"),
            ("--type", "TYPE…", "Only this type, such as sandbox.exited, or all of a kind: process."),
            ("--label", "NAME[=VALUE]…", "Only of sandboxes with this label"),
            ("--json", "", "As JSON, a value a line"),
        ),
        "run": events,
    }
}
