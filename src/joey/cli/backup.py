"""`joey backup`."""

import os

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import say


def backup(values, arguments):
    """Write the archive beside its final name first: half of one is never taken for a whole."""
    path = arguments[0]
    if os.path.lexists(path) and not values.get("force"):
        raise UsageError(f"{path} exists", "give another name, or --force to replace it")
    part = f"{path}.part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{part}: {error.strerror}") from None
    try:
        with engine() as connection:
            total = _copy(connection.request("POST", "/v1/backup").stream(), fd)
        os.fsync(fd)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)
    say(f"{path}: {total} bytes")


def _copy(pieces, fd):
    total = 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            written = os.write(fd, view)
            total += written
            view = view[written:]
    return total


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
