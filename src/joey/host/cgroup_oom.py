"""Hear of out-of-memory kills as they happen, for those sandboxes whose owner wants to.

An engine that only wants to say why a process died needs none of this: it asks `InstanceCgroup.oom_kills(slot)` when
the process has died of SIGKILL, which costs one read and no descriptor. A watcher costs one descriptor in all, however
many sandboxes it watches: an inotify instance on v2 (memory.events changes), one eventfd shared by all on v1. v1's
tells neither whose limit was hit nor waits for the kill, so the counters of all that are watched are read, and read
again a little later. Sources: inotify(7), cgroup-v2.rst "memory.events", cgroup-v1/memory.rst "OOM Control".
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable

from joey.host.cgroup import InstanceCgroup
from joey.host.cgroup_files import CgroupError, write
from joey.model.cgroup import OomEvent

_IN_MODIFY, _IN_IGNORED = 0x2, 0x8000
_EVENT = struct.Struct("iIII")
_AGAIN = (0.005, 0.03, 0.15, 0.6)  # s after a v1 notice; the kill follows it at once unless the victim is slow to die
_libc = ctypes.CDLL(None, use_errno=True)


class OomWatcher:
    """Calls `callback` in the event loop for every out-of-memory kill in a watched slot. Close it when done.

    Must be made in the event loop. Raises CgroupError if the host has no memory controller.
    """

    def __init__(self, instance: InstanceCgroup, callback: Callable[[OomEvent], None]) -> None:
        hierarchy = instance.layout.of("memory")
        if hierarchy is None:
            raise CgroupError("watch", instance.name, None, "the host has no memory controller")
        self._instance, self._hierarchy, self._callback = instance, hierarchy, callback
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, int] = {}
        self._slot_of: dict[int, str] = {}  # v2: inotify watch -> slot
        self._timers: list[asyncio.TimerHandle] = []
        if hierarchy.version == 2:
            self._fd = _check("inotify_init1", _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        else:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.add_reader(self._fd, self._readable)

    def watch(self, slot: str) -> None:
        """Begin to report kills in `slot`; earlier ones are not. Raises CgroupError."""
        path = self._instance.path(self._hierarchy, slot)
        self._seen[slot] = self._instance.oom_kills(slot) or 0
        try:
            if self._hierarchy.version == 2:
                file = f"{path}/memory.events".encode()
                number = _check("inotify_add_watch", _libc.inotify_add_watch(self._fd, file, _IN_MODIFY))
                self._slot_of[number] = slot
            else:
                control = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    write(f"{path}/cgroup.event_control", f"{self._fd} {control}")
                finally:
                    os.close(control)
        except OSError as error:
            del self._seen[slot]
            remedy = "raise fs.inotify.max_user_watches" if error.errno == errno.ENOSPC else ""
            raise CgroupError("watch", path, error, remedy) from error
        except CgroupError:
            del self._seen[slot]
            raise

    def unwatch(self, slot: str) -> None:
        """Report no more of `slot`, which may be gone already."""
        self._seen.pop(slot, None)
        for number in [n for n, name in self._slot_of.items() if name == slot]:
            del self._slot_of[number]
            _libc.inotify_rm_watch(self._fd, number)  # fails if the file is gone, and the watch with it

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._seen.clear()

    def _readable(self) -> None:
        if self._hierarchy.version == 2:
            for slot in self._changed():
                self._look(slot)
            return
        os.eventfd_read(self._fd)
        self._look_at_all()
        for timer in self._timers:
            timer.cancel()
        self._timers = [self._loop.call_later(delay, self._look_at_all) for delay in _AGAIN]

    def _changed(self) -> set[str]:
        """Slots whose memory.events has changed since the last call."""
        slots: set[str] = set()
        data, at = os.read(self._fd, 65536), 0
        while at < len(data):
            number, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            if number == -1:  # the queue has overflowed
                slots.update(self._seen)
            elif mask & _IN_IGNORED:
                self._slot_of.pop(number, None)
            elif number in self._slot_of:
                slots.add(self._slot_of[number])
        return slots

    def _look_at_all(self) -> None:
        for slot in list(self._seen):
            self._look(slot)

    def _look(self, slot: str) -> None:
        total, before = self._instance.oom_kills(slot), self._seen.get(slot)
        if total is not None and before is not None and total > before:
            self._seen[slot] = total
            self._callback(OomEvent(slot, total - before, total))


def _check(call: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result
