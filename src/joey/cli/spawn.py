"""Starting an engine in the background, for the first command that needs one."""

import fcntl
import os
import select
import sys

from joey.cli.output import complain, is_terminal
from joey.client.transport import Connection, Unreachable, home, socket_path

IDLE_EXIT = 900
"""Seconds without a sandbox and without a request after which an engine that was started on demand ends."""
TIMEOUT = 60.0
_LOG_LIMIT = 1 << 20


def command():
    """The engine's command line. -P: nothing is imported from the directory we happen to be in."""
    return [sys.executable, "-P", "-m", "joey.api.daemon"]


def spawn(argv=None):
    """Return when an engine answers. Of several who come here at once, one starts it and the others wait for that one.

    Raises Unreachable with the end of the engine's log if it does not start.
    """
    folder = home() + "/run"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        lock = os.open(folder + "/spawn.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unreachable(error.errno, error.strerror, folder) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            Connection.open(socket_path()).close()
            return
        except Unreachable:
            pass
        _start(argv or [*command(), "--detached", "--idle-exit", str(IDLE_EXIT)], folder + "/daemon.log")
    finally:
        os.close(lock)


def _start(argv, log_path):
    _rotate(log_path)
    log = _high(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    ready, told = (_high(fd) for fd in os.pipe2(os.O_CLOEXEC))
    begin = os.fstat(log).st_size
    try:
        pid = os.posix_spawn(
            argv[0],
            [*argv, "--ready-fd", "3"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, told, 3),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            ],
            setsid=True,
        )
    except OSError as error:
        raise Unreachable(error.errno, f"cannot start {argv[0]}: {error.strerror}", log_path) from None
    finally:
        os.close(told)
        os.close(log)
    try:
        _await(ready, pid, log_path, begin)
    finally:
        os.close(ready)


def _high(fd):
    """`fd` moved above 3, out of the way of the descriptors the engine gets: ours may be any that the caller had
    closed.
    """
    if fd > 3:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


def _await(ready, pid, log_path, begin):
    waiter = select.poll()
    waiter.register(ready, select.POLLIN)
    if not waiter.poll(1000) and is_terminal(2):
        complain("starting the engine …")
    if not waiter.poll(TIMEOUT * 1000):
        os.kill(pid, 15)
        raise _failed(f"the engine did not start within {TIMEOUT:.0f} s", log_path, begin)
    if os.read(ready, 16) != b"ready\n":
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        raise _failed(f"the engine did not start (exit code {code})", log_path, begin)


def _failed(what, log_path, begin):
    lines = []
    try:
        with open(log_path, "rb") as log:
            log.seek(begin)
            lines = log.read(1 << 16).decode(errors="replace").splitlines()[-20:]
    except OSError:
        pass
    if lines and lines[-1].startswith("try: "):
        last = [line for line in lines if line.startswith(("joey: ", "try: "))][-2:]
        return StartFailed(what, last[0].removeprefix("joey: "), last[-1].removeprefix("try: "))
    return StartFailed(what, "\n".join(["", *("  | " + line for line in lines)]), f"the whole log: {log_path}")


class StartFailed(Unreachable):
    """The engine was started and ended. `reason` from its log, `remedy`."""

    def __init__(self, what, reason, remedy):
        super().__init__(f"{what}: {reason}" if not reason.startswith("\n") else f"{what}{reason}")
        self.remedy = remedy


def _rotate(path):
    try:
        if os.stat(path).st_size > _LOG_LIMIT:
            os.replace(path, path + ".1")
    except FileNotFoundError:
        pass
