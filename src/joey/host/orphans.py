"""Processes in sandboxes whose launcher is gone: which they are, and what of their output can be opened again.

A process id may be another process's by now. So a pidfd is opened first, and what /proc says is believed of that only:
it is in the cgroup of the sandbox's slot, one pid namespace below ours, and its parent is not in there. A launcher's
child stays that whatever it does; nobody inside can look like one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat

from joey.host.cgroup import InstanceCgroup
from joey.plan.flags import ROLE_STDERR, ROLE_STDOUT

_STREAMS = ((1, ROLE_STDOUT), (2, ROLE_STDERR))


def claim(slot: str, pid: int, *, main: bool) -> int | None:
    """A pidfd of the child `pid` of some launcher that belongs to `slot`, dead and not waited for included, or None.
    main: the sandbox's first process. Raises OSError(EMFILE).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _belongs(slot, pid, main) and _there(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def find_main(cgroup: InstanceCgroup, slot: str) -> int | None:
    """The first process of the sandbox in `slot`, by what is in its cgroup."""
    return next((pid for pid in cgroup.procs(slot) if _belongs(slot, pid, True)), None)


def is_starting(pid: int) -> bool:
    """Whether it has yet to run a program of its own: its executable is the launcher's. Not so of one that is dead."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).split(" ")[0] == "joey-launcher"
    except OSError:
        return False


def never_breaks(pid: int) -> bool:
    """Whether its output goes to a pipe that it can read as well: if nobody else does it would wait there for ever."""
    for number, _ in _STREAMS:
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{number}").st_mode):
                with open(f"/proc/{pid}/fdinfo/{number}") as file:
                    flags = next(line.split()[1] for line in file if line.startswith("flags:"))
                if int(flags, 8) & os.O_ACCMODE == os.O_RDWR:
                    return True
    return False


def strangers(cgroup: InstanceCgroup, slot: str, known: set[int]) -> list[int]:
    """Pids of what a launcher put into the sandbox of `slot` besides its first process and `known`."""
    found = [pid for pid in cgroup.procs(slot) if pid not in known]
    return [pid for pid in found if _belongs(slot, pid, False)]


def end_strangers(cgroup: InstanceCgroup, slot: str, known: set[int], *, lasting: bool = False) -> None:
    """Kill what was being started when its launcher ended, and whose start has been answered as failed, or not at all.
    lasting: only those whose pipes never break, the others belong to clients and end by SIGPIPE.
    """
    for pid in strangers(cgroup, slot, known):
        if lasting and not never_breaks(pid):
            continue
        with contextlib.suppress(ProcessLookupError):
            if (pidfd := claim(slot, pid, main=False)) is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)


def output_ends(pid: int) -> dict[int, int]:
    """New read ends of the pipes that are its standard output and error, by role: what the program has opened there
    instead is left alone, unless it is a pipe, too.
    """
    found: dict[int, int] = {}
    seen = set()
    for number, role in _STREAMS:
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            is_ = os.fstat(fd)
            if stat.S_ISFIFO(is_.st_mode) and is_.st_dev == _pipes() and is_.st_ino not in seen:
                seen.add(is_.st_ino)
                found[role] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        finally:
            os.close(fd)
    return found


def _belongs(slot: str, pid: int, main: bool) -> bool:
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            placed = any(slot in line.rstrip().split("/") for line in file)
        status = _status(pid)
        numbers = status["NSpid"].split()
        if not placed or len(numbers) != 2 or (numbers[1] == "1") is not main:
            return False
        return main or _parent_is_ours(pid)
    except (OSError, KeyError):
        return False


def _parent_is_ours(pid: int) -> bool:
    """Whether its parent is in our own pid namespace. The launcher may be handing its children over just now."""
    for _ in range(5):
        parent = int(_status(pid)["PPid"])
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return len(_status(parent)["NSpid"].split()) == 1
    return False


def _status(pid: int) -> dict[str, str]:
    if not pid:  # of a parent outside our own pid namespace
        return {"NSpid": "0"}
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def _there(pidfd: int) -> bool:
    """Whether it has not been waited for: then its number was still its own."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


def _pipes() -> int:
    """The device of the kernel's own file system of pipes: what has a path is of another."""
    global _device
    if not _device:
        read, write = os.pipe()
        _device = os.fstat(read).st_dev
        os.close(read)
        os.close(write)
    return _device


_device = 0
