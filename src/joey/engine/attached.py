"""A client's end of a process (`interface.Attachment`), and the way into the process's standard input."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

from joey.model.views import Exit, LogEntry

Piece = tuple[Literal[1, 2], bytes]
HIGH = 1 << 20
"""Bytes queued for a client above which nothing more is read for it."""
LOW = 1 << 19
_PIECE_COST = 128
"""What a piece takes besides its bytes: a program that writes single bytes must not make us hold much more."""


class Pump(Protocol):
    """What an attachment asks of the process's streams: `joey.engine.output.Output`."""

    input: Input

    def drained(self, attached: Attached) -> None: ...
    def detach(self, attached: Attached, unread: Sequence[Piece] = ()) -> None: ...
    def resize(self, rows: int, cols: int) -> None: ...
    def close(self) -> None: ...


class Kept(Protocol):
    """Where what a client has not been given can be read: `joey.engine.logs.Reader`."""

    def read(self) -> Sequence[LogEntry]: ...
    def endangered(self, size: int) -> bool: ...
    def close(self) -> None: ...


class Attached:
    """One attachment. May be made before its process is: then `read` and `write` wait until `Output.attach`, or `end`
    if the process never comes.

    wait, signal: the process's, from the engine. owner: called when it is closed, which also
    closes the process's pipes (exec).
    """

    __slots__ = (
        "_eof", "_output", "_owner", "_queue", "_reader", "_signal", "_size", "_started", "_wait",
        "behind", "closed", "ended", "id", "pid", "queued",
    )  # fmt: skip

    def __init__(
        self,
        wait: Callable[[], Awaitable[Exit]],
        signal: Callable[[int], Awaitable[None]],
        *,
        pid: int = 0,
        id: str = "",
        owner: Callable[[], None] | None = None,
    ) -> None:
        self.pid = pid
        self.id = id
        self.behind: Kept | None = None
        self.closed = False
        self.ended = False
        self.queued = 0
        self._wait = wait
        self._signal = signal
        self._owner = owner
        self._output: Pump | None = None
        self._queue: deque[Piece] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._eof = False
        self._size: tuple[int, int] | None = None

    # --- of the client -----------------------------------------------------------------------------------------------

    async def read(self) -> tuple[Literal[1, 2], bytes] | None:
        while not self._queue:
            if self.behind is not None and self._catch_up(self.behind):
                break
            if self.ended or self.closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        piece = self._queue.popleft()
        before, self.queued = self.queued, self.queued - len(piece[1]) - _PIECE_COST
        if before > LOW >= self.queued and self._output:
            self._output.drained(self)
        return piece

    def _catch_up(self, kept: Kept) -> bool:
        """Take the next pieces from the log; False: all are read, from now on they come as they did."""
        entries = kept.read()
        for entry in entries:
            self._queue.append((entry.stream, entry.data))
            self.queued += len(entry.data) + _PIECE_COST
        if not entries:
            kept.close()
            self.behind = None
        if self._output:
            self._output.drained(self)
        return bool(entries)

    async def write(self, data: bytes) -> None:
        while not (self._output or self.ended or self.closed):
            if self._started is None:
                self._started = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._started)  # others wait for it too
        if self._output:
            await self._output.input.write(data, self)

    async def close_stdin(self) -> None:
        self._eof = True
        if self._output and not self.closed:
            self._output.input.finish()

    async def resize(self, rows: int, cols: int) -> None:
        self._size = (rows, cols)
        if self._output and not self.closed:
            self._output.resize(rows, cols)

    async def signal(self, number: int) -> None:
        await self._signal(number)

    async def wait(self) -> Exit:
        return await self._wait()

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        unread, self._queue = self._queue, deque()
        self.queued = 0
        if self.behind is not None:
            self.behind.close()
            self.behind = None
        self._wake()
        if self._output:
            self._output.detach(self, unread)
            self._output.input.wake()
            if self._owner:
                self._output.close()
                self._owner()

    # --- of the engine -----------------------------------------------------------------------------------------------

    def bind(self, output: Pump) -> None:
        """The process is there."""
        self._output = output
        if self._size:
            output.resize(*self._size)
        if self._eof:
            output.input.finish()
        if self._started:
            self._started.set_result(None)
            self._started = None

    def put(self, stream: Literal[1, 2], data: bytes) -> bool:
        """Queue a piece; whether there is room for more. Not for who is `behind`: that one reads the log."""
        self._queue.append((stream, data))
        self.queued += len(data) + _PIECE_COST
        if self._reader:
            self._wake_reader()
        return self.queued < HIGH

    def end(self) -> None:
        """Nothing more will come: the process has ended and its output is queued, or it never started."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._wake_reader()
        if self._started:
            self._started.set_result(None)
            self._started = None

    def _wake_reader(self) -> None:
        if self._reader:
            if not self._reader.done():
                self._reader.set_result(None)
            self._reader = None


class Input:
    """Standard input of a process: a pipe, a terminal (not `pipe`: whose descriptor belongs to the output), or none.

    ended: called after the end of file was asked for, to close other copies of the descriptor. Written by several
    clients, whose pieces come in the order they were written, whole up to what a pipe has room for.
    """

    __slots__ = ("_ended", "_fd", "_finishing", "_loop", "_pipe", "_room", "_writers")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int | None,
        *,
        pipe: bool = True,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._fd = -1 if fd is None else fd
        self._pipe = pipe
        self._ended = ended
        self._room: asyncio.Future[None] | None = None
        self._writers = 0
        self._finishing = False

    async def write(self, data: bytes, client: Attached) -> None:
        """Return when all is in the pipe, or nobody will read it any more, or the client has closed."""
        rest = memoryview(data)
        self._writers += 1
        try:
            while rest and self._fd >= 0 and not client.closed:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    await asyncio.shield(self._wait_for_room())
                except OSError:  # EPIPE, of a terminal EIO: nobody reads
                    self.close()
        finally:
            self._writers -= 1
            self._finish()

    @property
    def descriptor(self) -> int | None:
        """Of a pipe into which more may be written."""
        return self._fd if self._pipe and self._fd >= 0 and not self._finishing else None

    def finish(self) -> None:
        """End of file once everybody has written. Of a terminal: nothing."""
        if self._pipe:
            self._finishing = True
            self._finish()

    def _finish(self) -> None:
        if self._finishing and not self._writers and self._fd >= 0:
            self.close()
            if self._ended:
                self._ended()

    def close(self) -> None:
        """Drop it now; what has not been written is discarded."""
        self.wake()
        fd, self._fd = self._fd, -1
        if self._pipe and fd >= 0:
            os.close(fd)

    def wake(self) -> None:
        """Let writers look again."""
        room, self._room = self._room, None
        if room:
            self._loop.remove_writer(self._fd)
            if not room.done():
                room.set_result(None)

    def _wait_for_room(self) -> asyncio.Future[None]:
        if self._room is None:
            self._room = self._loop.create_future()
            self._loop.add_writer(self._fd, self.wake)
        return self._room
