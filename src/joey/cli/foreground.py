"""Following a process from the terminal it was started from: what `run`, `exec` and `attach` share."""

from joey.cli.output import complain, is_terminal
from joey.cli.session import Detached, Session
from joey.client.transport import Lost


def follow(sock, rest, box, *, stdin, tty, keys=None, proxy=True, again=False):
    """The Exit document, or None if the user detached. `again`: it is the main process of the sandbox `box`, which is
    found again if the engine dies. Raises Problem, Lost, BrokenPipeError.
    """
    raw = watch = size = None
    if tty and is_terminal(1 if not is_terminal(0) else 0):
        from joey.cli import terminal

        at = 1 if is_terminal(1) else 0
        size = lambda: terminal.size(at)  # noqa: E731
        if stdin and is_terminal(0):
            raw = terminal.Raw(0)
            watch = terminal.KeyWatch(keys) if keys else None
    session = Session(sock, rest, stdin=0 if stdin else None, watch=watch, size=size, proxy=proxy)
    run = (lambda: _persistent(session, box)) if again else session.run
    try:
        if raw is None:
            return run()
        with raw:
            return run()
    except Detached:
        try:
            complain(f"detached; {box[:12]} goes on", f"joey attach {box[:12]}")
        except OSError:
            pass  # the terminal is gone, that is why
        return None
    except Lost as error:
        raise Lost(f"{error}; {box[:12]} may go on: joey ps, joey logs {box[:12]}, joey attach {box[:12]}") from None


def _persistent(session, box):
    while True:
        try:
            return session.run()
        except Lost:
            from joey.cli.again import reattach

            sock, rest, end = reattach(box, session.heard)
            if sock is None:
                return end
            session.go_on(sock, rest)


def exit_code(end):
    """What our own process exits with."""
    return end["code"] if 0 <= end["code"] <= 255 else 125
