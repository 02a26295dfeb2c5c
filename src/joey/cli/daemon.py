"""`joey daemon`: this process becomes the engine."""

import os
import sys

from joey.cli.spawn import command
from joey.cli.values import decimal


def daemon(values, arguments):
    """Does not return: the engine's own program takes over."""
    argv = command()
    if "idle_exit" in values:
        decimal(values["idle_exit"], "--idle-exit")
        argv += ["--idle-exit", values["idle_exit"]]
    sys.stdout.flush()
    os.execv(argv[0], argv)


COMMANDS = {
    "daemon": {
        "usage": "[OPTIONS]",
        "summary": "Run the engine in the foreground",
        "text": "Other commands start one in the background when they need it. SIGTERM ends it; sandboxes go on.",
        "arguments": (0, 0),
        "options": (("--idle-exit", "SECONDS", "End after so long without a sandbox and without a request"),),
        "run": daemon,
    }
}
