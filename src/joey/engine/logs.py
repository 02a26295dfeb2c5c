"""Kept output: one log a sandbox, for people with grep as well as for `joey logs`.

A record is a line header and what the program wrote, as it was read, then a newline of our own:

    1763822107123456789 1 0000d hello, world⏎⏎
    │                   │ └ bytes that follow, 5 hexadecimal digits, at most 65536
    │                   └ 1 stdout, 2 stderr
    └ nanoseconds since the epoch, 19 digits

The length makes any bytes safe, and a record that a power failure tore is seen, and cut off when the log is next
written. Nothing is synced to disk. ID.log is rotated to ID.log.1 at 10 MiB.

A log begins in memory, beside the files of its sandbox, which live no longer than the machine is up either; when it
grows it moves to disk. Files are opened at the first byte, and few are open at a time: a sandbox that writes nothing
costs nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import re
import shutil
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

from joey.engine.interface import LogQuery
from joey.model.views import LogEntry

PIECE = 1 << 16
"""Bytes of one record at most."""

SPILL = 1 << 16
"""Bytes up to which a log stays in memory: making a file there is thirty times cheaper than on a journaling disk."""

_HEADER = re.compile(rb"(\d{19}) ([12]) ([0-9a-f]{5}) ")
_HEADER_SIZE = 28
_CHUNK = 1 << 18
_log = logging.getLogger(__name__)


class Logs:
    """All logs of an instance, in `folder`. One event loop."""

    def __init__(
        self, folder: Path, *, fast: Path | None = None, max_bytes: int = 10 << 20, files: int = 2, max_open: int = 256
    ) -> None:
        """fast: a directory in memory where logs begin; one that grows beyond SPILL bytes moves to `folder`."""
        self.folder = folder
        self.fast = fast
        self.max_bytes = max_bytes
        self.files = files
        self._max_open = max_open
        self._logs: dict[str, Log] = {}
        self._open: OrderedDict[Log, None] = OrderedDict()  # least recently written first

    def log(self, id: str) -> Log:
        """The log of sandbox `id`, always the same object until it is removed. Touches nothing."""
        log = self._logs.get(id)
        if log is None:
            fast = self.fast / f"{id}.log" if self.fast else None
            log = self._logs[id] = Log(self, self.folder / f"{id}.log", fast)
        return log

    def read(self, id: str, query: LogQuery) -> AsyncIterator[LogEntry]:
        """What `query` asks of the log of `id`; nothing if there is none."""
        return self.log(id).read(query)

    def remove(self, id: str) -> None:
        """Delete the log of `id`, if there is one. Who follows it sees its end, and what is still written to it
        is dropped: a client that reads slowly can hold output back until then.
        """
        log = self.log(id)
        log.end()
        log.removed = True
        del self._logs[id]
        if not log.spilled:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(log.file(0))
            return
        for index in range(self.files):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(log.file(index))

    def close(self) -> None:
        """End all logs and close their files; they stay on disk."""
        for log in self._logs.values():
            log.end()

    def opened(self, log: Log) -> None:
        self._open[log] = None
        if len(self._open) > self._max_open:
            next(iter(self._open)).close_file()

    def used(self, log: Log) -> None:
        self._open.move_to_end(log)

    def closed(self, log: Log) -> None:
        self._open.pop(log, None)


class Log:
    """The log of one sandbox. Between `begin` and `end` a run writes; `write` never fails, it counts what it lost."""

    def __init__(self, logs: Logs, path: Path, fast: Path | None = None) -> None:
        self.path = path
        self.moves = 0  # goes up when the file moves, its content and size unchanged
        self._fast = fast
        self._spilled = False
        self.running = False
        self.removed = False
        self.generation = 0  # goes up with every rotation
        self._logs = logs
        self._fd = -1
        self._size = 0
        self._checked = False
        self._lost = 0
        self._followers: set[asyncio.Future[None]] = set()

    def file(self, index: int) -> str:
        """Path of the file in use (0), of the one rotated last (1), and so on."""
        if index:
            return f"{self.path}.{index}"
        return str(self.path if self.spilled else self._fast)

    @property
    def spilled(self) -> bool:
        """Whether it is in the folder on disk; also if an earlier engine moved it there."""
        if not self._spilled and (self._fast is None or (self._size == 0 and self.path.exists())):
            self._spilled = True
        return self._spilled

    # --- writing -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A run starts: who follows waits from now on for its `end`."""
        self.running = True

    def end(self) -> None:
        """All output of the run has been written."""
        self.running = False
        self.close_file()
        self._tell()

    def write(self, stream: Literal[1, 2], data: bytes) -> None:
        """Append a piece of output. What cannot be written, because the disk is full, is counted, and the number put in
        its place as soon as there is room again.
        """
        if self.removed:
            return
        try:
            if self._lost:
                self._append(2, b"joey: %d bytes of output could not be logged\n" % self._lost)
                self._lost = 0
            for start in range(0, len(data), PIECE):
                self._append(stream, data if len(data) <= PIECE else data[start : start + PIECE])
        except OSError as error:
            if not self._lost:
                _log.error("%s: output is not logged: %s", self.path, error.strerror)
            if not self._checked:
                self.close_file()
            self._lost += len(data)
        if self._followers:
            self._tell()

    def reader(self) -> Reader | None:
        """A reader of what is written from now on; None while the disk is full, or without a log."""
        if self._lost or self.removed:
            return None
        try:
            if self._fd < 0:
                self._open()
            return Reader(self, at_end=True)
        except OSError:
            return None

    def close_file(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            self._logs.closed(self)
            os.close(self._fd)
            self._fd = -1

    def _append(self, stream: Literal[1, 2], data: bytes) -> None:
        size = _HEADER_SIZE + len(data) + 1
        if self._fd < 0:
            self._open()
        else:
            self._logs.used(self)
        if self._size and self._size + size > (self._logs.max_bytes if self.spilled else SPILL):
            self._rotate() if self.spilled else self._spill()
        written = os.writev(self._fd, (b"%019d %d %05x " % (time.time_ns(), stream, len(data)), data, b"\n"))
        if written != size:  # the disk is full: half a record would hide those that follow
            self._checked = False
            os.ftruncate(self._fd, self._size)
            self._checked = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += size

    def _open(self) -> None:
        self._fd = os.open(self.file(0), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._logs.opened(self)
        self._size = os.fstat(self._fd).st_size
        if self._size and not self._checked:
            self._size = _intact(self._fd)
            os.ftruncate(self._fd, self._size)
        self._checked = True

    def _spill(self) -> None:
        """From memory to disk."""
        fast = self.file(0)
        self.close_file()
        shutil.copyfile(fast, self.path)
        os.chmod(self.path, 0o600)
        os.unlink(fast)
        self._spilled = True
        self.moves += 1
        self._open()

    def _rotate(self) -> None:
        self.close_file()
        # To rename over a file makes ext4 write the new one to disk first (ext4(5), auto_da_alloc): 7 ms, not 0.1.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file(self._logs.files - 1))
        for index in range(self._logs.files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.file(index - 1), self.file(index))
        self.generation += 1
        self._open()

    def _tell(self) -> None:
        followers, self._followers = self._followers, set()
        for future in followers:
            if not future.done():
                future.set_result(None)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, query: LogQuery) -> AsyncIterator[LogEntry]:
        """What `query` asks for. `tail` counts lines of what passes its other conditions."""
        with contextlib.closing(Reader(self)) as reader:
            if query.tail is not None:
                tail = _Tail(query.tail)
                async for entry in self._entries(reader, query, self._held()):
                    tail.add(entry)
                for entry in tail.entries():
                    yield entry
                if not query.follow:
                    return
            while True:
                async for entry in self._entries(reader, query, math.inf if query.follow else self._held()):
                    yield entry
                # Nothing has been awaited since the end was found: what comes from now on wakes us.
                if not (query.follow and self.running and await self._changed(query.until)):
                    return

    def _held(self) -> int:
        """Bytes in its files. Who does not follow reads no more than that: a program may write faster than we read."""
        total = 0
        for index in range(self._logs.files):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(self.file(index)).st_size
        return total

    async def _entries(self, reader: Reader, query: LogQuery, most: float) -> AsyncIterator[LogEntry]:
        """Those of `query` among what there is now, in chunks, so that others get their turn; some `most` bytes."""
        since, until = query.since or 0.0, query.until or math.inf
        streams = {number for number, wanted in ((1, query.stdout), (2, query.stderr)) if wanted}
        while most > 0 and (entries := reader.read()):
            for entry in entries:
                most -= len(entry.data) + _HEADER_SIZE + 1
                if entry.at > until:
                    return
                if entry.stream in streams and entry.at >= since:
                    yield entry
            await asyncio.sleep(0)

    async def _changed(self, until: float | None) -> bool:
        """Wait until something is written, or the run ends: True. False when `until` has come."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.add(future)
        try:
            async with asyncio.timeout(None if until is None else until - time.time()):
                await future
        except TimeoutError:
            return False
        finally:
            self._followers.discard(future)
        return True


class Reader:
    """A place in a log, across rotations."""

    def __init__(self, log: Log, *, at_end: bool = False) -> None:
        self._log = log
        self._generation = log.generation - (log._logs.files - 1)
        self._fd = -1
        self._offset = 0
        self._moves = log.moves
        if at_end:
            self._generation, self._offset = log.generation, log._size
            self._chunk()  # has the file open from now on, whatever becomes of its name

    def endangered(self, size: int) -> bool:
        """Whether another `size` bytes might take away what has not been read."""
        log = self._log
        full = log._size + size + _HEADER_SIZE + 1 > log._logs.max_bytes
        return full and self._generation < log.generation - log._logs.files + 1

    def read(self) -> list[LogEntry]:
        """The next entries, at most a chunk of them; none at the end."""
        while True:
            entries, consumed = _parse(self._chunk())
            self._offset += consumed
            if entries or self._generation >= self._log.generation:
                return entries
            self._next_file()

    def _chunk(self) -> bytes:
        if self._moves != self._log.moves and self._generation == self._log.generation:
            self._moves = self._log.moves
            self.close()
        if self._fd < 0:
            with contextlib.suppress(FileNotFoundError):
                self._fd = os.open(self._log.file(self._log.generation - self._generation), os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._fd, _CHUNK, self._offset) if self._fd >= 0 else b""

    def _next_file(self) -> None:
        """The one after, or the oldest there is if that has been rotated away."""
        self.close()
        self._offset = 0
        self._generation = max(self._generation + 1, self._log.generation - (self._log._logs.files - 1))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Tail:
    """The last `count` lines of what is added. What follows the last newline is a line too."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: deque[LogEntry] = deque()
        self._newlines = 0  # in what is kept

    def add(self, entry: LogEntry) -> None:
        self._kept.append(entry)
        self._newlines += entry.data.count(b"\n")
        # Without the first entry there must still be more newlines than lines wanted: one of them may end the text.
        while self._kept and self._newlines - (first := self._kept[0].data.count(b"\n")) > self._count:
            self._newlines -= first
            self._kept.popleft()

    def entries(self) -> Iterator[LogEntry]:
        if not self._count or not self._kept:
            return
        lines = self._newlines + (not self._kept[-1].data.endswith(b"\n"))
        drop = lines - self._count
        for entry in self._kept:
            data = entry.data
            if drop > 0:
                inside = data.count(b"\n")
                if inside < drop:
                    drop -= inside
                    continue
                data = data.split(b"\n", drop)[-1]
                drop = 0
            if data:
                yield LogEntry(at=entry.at, stream=entry.stream, data=data)


def _parse(data: bytes) -> tuple[list[LogEntry], int]:
    """The whole records `data` begins with, and their bytes."""
    entries = []
    position = 0
    while match := _HEADER.match(data, position):
        start = match.end()
        end = start + int(match[3], 16)
        if data[end : end + 1] != b"\n":
            break
        stream: Literal[1, 2] = 1 if match[2] == b"1" else 2
        entries.append(LogEntry(at=int(match[1]) / 1e9, stream=stream, data=data[start:end]))
        position = end + 1
    return entries, position


def _intact(fd: int) -> int:
    """How many bytes of a log are whole records."""
    offset = 0
    while data := os.pread(fd, _CHUNK, offset):
        position = 0
        while match := _HEADER.match(data, position):
            end = match.end() + int(match[3], 16)
            if data[end : end + 1] != b"\n":
                break
            position = end + 1
        if not position:
            break
        offset += position
    return offset
