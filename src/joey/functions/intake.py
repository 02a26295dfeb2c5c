"""What an instance says, read no faster than it may speak: who prints without end has to wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

LOG_RATE = 4 << 20
"""Bytes of output a second that are read of one instance, and as many at once."""
_PIECE_COST = 256
"""What handling one piece costs, in bytes."""
_PAUSE = 0.25


class Intake:
    """Descriptors of one instance, read as they become readable. printed(stream, bytes): from its output."""

    def __init__(self, outputs: dict[int, int], printed: Callable[[int, bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._readers: dict[int, Callable[[], None]] = {}
        self._outputs = dict(outputs)
        self._printed = printed
        self._allowance = float(LOG_RATE)
        self._filled = self._loop.time()
        self._paused: asyncio.TimerHandle | None = None
        for fd in outputs:
            self.add(fd, lambda fd=fd: self._read(fd))  # type: ignore[misc]

    def add(self, fd: int, readable: Callable[[], None]) -> None:
        """One more."""
        self._readers[fd] = readable
        if self._paused is None:
            self._loop.add_reader(fd, readable)

    def drop(self, fd: int) -> None:
        """One is not read any more."""
        if self._readers.pop(fd, None) is not None:
            self._loop.remove_reader(fd)

    def drain(self) -> None:
        """Read what is in its output now, a pipe's full at most."""
        for fd in tuple(self._outputs):
            self._read(fd)

    def spend(self, size: int) -> None:
        """So many bytes of output were taken."""
        self._allowance -= size + _PIECE_COST
        if self._allowance < 0 and self._paused is None:
            now = self._loop.time()
            self._allowance = min(LOG_RATE, self._allowance + (now - self._filled) * LOG_RATE)
            self._filled = now
            if self._allowance < 0 and self._readers:
                for fd in self._readers:
                    self._loop.remove_reader(fd)
                self._paused = self._loop.call_later(_PAUSE, self._resume)

    def close(self) -> None:
        """Nothing is read any more."""
        if self._paused is not None:
            self._paused.cancel()
        for fd in tuple(self._readers):
            self.drop(fd)
        self._outputs.clear()

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._printed(self._outputs[fd], data)
            self.spend(len(data))
        else:
            self.drop(fd)
            self._outputs.pop(fd, None)

    def _resume(self) -> None:
        self._paused = None
        for fd, readable in self._readers.items():
            self._loop.add_reader(fd, readable)
