"""`joey backup`."""

import os

from joey.cli.archive import keep
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import say


def backup(values, arguments):
    """Nothing is asked of the engine before FILE can be written."""
    path = arguments[0]
    if os.path.lexists(path) and not values.get("force"):
        raise UsageError(f"{path} exists", "give another name, or --force to replace it")

    def stream():
        with engine() as connection:
            yield from connection.request("POST", "/v1/backup").stream()

    total = keep(stream, path, 0o600, sync=True)
    say(f"{path}: {total} bytes")


COMMANDS = {
    "backup": {
        "usage": "[OPTIONS] FILE",
        "summary": "Copy the engine's state to a file, while it goes on",
        "text": (
            "FILE is a tar archive of the databases in $JOEY_HOME: sandboxes, pools, networks, API keys. To\n"
            "go back to it, end the engine and unpack it there: tar -xf FILE -C $JOEY_HOME. Images, volumes,\n"
            "logs and what sandboxes have written are not in it."
        ),
        "arguments": (1, 1),
        "options": (("-f --force", "", "Replace FILE if it exists"),),
        "run": backup,
    }
}
