"""Coming back to a sandbox after the engine has gone: it is started again, what was printed meanwhile is shown, and the
session goes on. Imported only when that happens.
"""

import time

from joey.cli.connect import engine
from joey.cli.output import complain, is_terminal, write
from joey.client.transport import Lost, Problem, Unreachable, query, quote
from joey.model import frames

PATIENCE = 30.0


def reattach(box, since):
    """(socket, bytes already read, None), or (None, b"", Exit document) if it has ended meanwhile. `since`: when the
    connection broke, seconds since the epoch. Raises Lost if it cannot be found again.

    What the engine reads between our two requests may be missing; it is in the log.
    """
    if is_terminal(2):
        complain(f"the engine has gone; {box[:12]} goes on, waiting for the engine …")
    path = f"/v1/sandboxes/{quote(box)}"
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return _reattach(path, since)
        except (Lost, Unreachable) as error:
            if time.monotonic() > end:
                raise Lost(f"the engine has gone and did not come back: {error}") from None
        except Problem as problem:
            if problem.status == 404:
                raise Lost(
                    "it is not there any more: it ended and was removed meanwhile, its exit code is not known"
                ) from None
            raise
        time.sleep(0.1)


def _reattach(path, since):
    until = time.time()
    connection = engine()
    try:
        sock, _, rest = connection.upgrade("POST", path + "/attach")
    except Problem as problem:
        connection.close()
        if problem.status != 409:
            raise
        with engine() as other:  # it has ended
            end = other.call("POST", path + "/wait")
        _show(path, {"since": since})
        return None, b"", end
    _show(path, {"since": since, "until": until})
    return sock, rest, None


def _show(path, asked):
    decoder = frames.Decoder()
    asked = {name: f"{value:.6f}" for name, value in asked.items()}
    with engine() as connection:
        for data in connection.request("GET", f"{path}/logs{query(asked)}").stream():
            for kind, piece, _ in decoder.pieces(data):
                if kind in (frames.STDOUT, frames.STDERR):
                    write(kind, piece)
