"""What `joey bench chaos` consists of besides its clients: daemons that are killed and come back, and a reaper.

Daemons are forked from a process that has imported everything: so a kill and the return take a tenth of a second
instead of one, of which most would be Python reading modules. `python -m joey.bench.chaos_parts LOG` is that process:
on its standard input, `start` forks a daemon and writes its pid to standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
START_SECONDS = 30.0


def reap_orphan() -> bool:
    """Wait for one that has ended, if there is one: of another session, so none that this program waits for itself."""
    mine = os.getsid(0)
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        if os.getsid(found.si_pid) != mine:
            return os.waitpid(found.si_pid, os.WNOHANG)[0] != 0
    except (ChildProcessError, ProcessLookupError):
        return False
    return any(_reaped(pid) for pid in _children() if pid != found.si_pid)  # the kernel would name that one for ever


def _reaped(pid: int) -> bool:
    try:
        return os.getsid(pid) != os.getsid(0) and os.waitpid(pid, os.WNOHANG)[0] != 0
    except (ChildProcessError, ProcessLookupError):
        return False


def _children() -> Iterator[int]:
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            yield from map(int, Path(f"/proc/self/task/{task}/children").read_text().split())


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans below this process become ours, and are waited for, as PID 1 does: a sandbox's first process cannot end
    before everything in it has been waited for (pid_namespaces(7)).
    """
    libc, over = ctypes.CDLL(None), threading.Event()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def reap() -> None:
        while not over.wait(0.005):
            while reap_orphan():
                pass

    thread = threading.Thread(target=reap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Daemons:
    """One daemon at a time of the instance `home`."""

    def __init__(self, home: Path, log: Path) -> None:
        self._home = home
        argv = [sys.executable, "-P", "-m", "joey.bench.chaos_parts", str(log)]
        env = {**os.environ, "JOEY_HOME": str(home)}
        self._mother = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env
        )
        self.pid = 0
        self.back_seconds: list[float] = []
        self.failed_starts = 0
        self._killed = 0.0

    def start(self) -> None:
        """Fork the next one. It need not answer yet."""
        assert self._mother.stdin and self._mother.stdout
        self._mother.stdin.write("start\n")
        self._mother.stdin.flush()
        self.pid = int(self._mother.stdout.readline())

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._killed = time.monotonic()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)  # when the last of its threads is gone, which hold its lock
        poll.poll()
        os.close(pidfd)

    def wait_answer(self) -> None:
        """Until somebody has had an answer since the last kill, but not for ever."""
        deadline = time.monotonic() + START_SECONDS / 3
        while self._killed and time.monotonic() < deadline:
            if not _alive(self.pid):  # whoever supervises a daemon starts it again
                self.failed_starts += 1
                self.start()
            time.sleep(0.005)

    def answered(self) -> None:
        """Somebody has had an answer: how long that took since the kill."""
        if self._killed:
            self.back_seconds.append(time.monotonic() - self._killed)
            self._killed = 0.0

    def launchers(self) -> list[int]:
        """Pids of the launchers that listen in this instance, also while no daemon is there."""
        sockets = set()
        with open("/proc/net/unix") as table:
            for line in table:
                words = line.split()
                if len(words) == 8 and words[7].startswith(f"{self._home}/run/launcher-"):
                    sockets.add(words[6])
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and _comm(name) == "joey-launcher":
                with contextlib.suppress(OSError):
                    for fd in os.listdir(f"/proc/{name}/fd"):
                        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{name}/fd/{fd}"))
                        if match and match[1] in sockets:
                            found.append(int(name))
                            break
        return found

    def close(self) -> None:
        """End the daemon in order, and the process that makes them."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + START_SECONDS
        while _alive(self.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._mother.stdin
        self._mother.stdin.close()
        self._mother.wait()
        assert self._mother.stdout
        self._mother.stdout.close()


def _comm(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def mother(log: str) -> int:
    """Fork daemons until standard input ends."""
    import joey.api.server
    import joey.engine.supervisor  # noqa: F401
    from joey.api import daemon

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if line != "start\n":
            continue
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            for old, new in ((null, 0), (out, 1), (out, 2)):
                os.dup2(old, new)
            os.closerange(3, 64)
            os.setsid()
            os._exit(daemon.main([]))
        print(pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(mother(sys.argv[1]))
