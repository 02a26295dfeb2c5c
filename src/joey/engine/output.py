"""The pump of one process's streams: from its pipes or terminal to its log and to everybody attached.

A client that reads slowly catches up from the log, where there is one, and the process and all others go on; without
one, or when the log would have to drop what that client has not read (some 20 MiB behind), we stop reading the
process's pipes, so that the process waits and nothing is lost.
A program that pours out more than anybody reads is slowed (`Pace`): it shall take neither the disk nor the engine.
With neither log nor client output is read and dropped, or its last MiB kept for a client to come. A pipe that a
grandchild still holds is read for a second after the process's end, then what is in it, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from joey.engine.attached import HIGH, Attached, Input, Kept, Piece
from joey.plan import flags as f

PIECE = 1 << 16
GRACE_SECONDS = 1.0

_PIECES_A_TURN = 8  # then others get theirs
_BUSY = 4  # full pieces in a row, after which a larger pipe saves waking up
_BUSY_PIPE = 1 << 20
_F_SETPIPE_SZ = fcntl.F_SETPIPE_SZ
_POURING = 16  # full pieces in a row, after which it is slowed while nobody is attached
_JOINED = 4096
_dropped = bytearray(PIECE)


class Sink(Protocol):
    """Where output is kept: `joey.engine.logs.Log`."""

    def write(self, stream: Literal[1, 2], data: bytes) -> None: ...
    def reader(self) -> Kept | None: ...


class _Stream:
    """One descriptor that is read. rest: bytes still to be read at most, None before the grace is over."""

    __slots__ = ("fd", "full", "number", "rest")

    def __init__(self, fd: int, number: Literal[1, 2]) -> None:
        self.fd = fd
        self.number: Literal[1, 2] = number
        self.full = 0
        self.rest: int | None = None


class Backlog:
    """Output that nobody has read: the newest HIGH bytes; of each only LOW, once all together are above PLENTY."""

    __slots__ = ("_pieces", "size")
    PLENTY, LOW = 64 << 20, 1 << 16
    together = 0

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self.size = 0

    def add(self, number: Literal[1, 2], data: bytes) -> None:
        """A small piece joins the one before it: of a program that writes single bytes no more is held."""
        if self._pieces and self._pieces[-1][0] == number and len(self._pieces[-1][1]) + len(data) <= _JOINED:
            before = self._pieces.pop()[1]
            self._grow(-len(before))
            data = before + data
        self._pieces.append((number, data))
        self._grow(len(data))
        most = HIGH if Backlog.together <= self.PLENTY else self.LOW
        while self.size > most and len(self._pieces) > 1:
            self._grow(-len(self._pieces.popleft()[1]))

    def _grow(self, size: int) -> None:
        self.size += size
        Backlog.together += size

    def take(self) -> Sequence[Piece]:
        taken, self._pieces = self._pieces, deque()
        self._grow(-self.size)
        return taken

    def __del__(self) -> None:
        type(self).together -= self.size  # the module may be gone


class Pace:
    """How fast programs that pour out what nobody reads may go on, all of them together: RATE bytes a second."""

    RATE = 64 << 20
    SHORTEST, LONGEST = 0.02, 1.0

    def __init__(self) -> None:
        self._credit, self._at = float(self.RATE), 0.0

    def spend(self, now: float, size: int) -> float:
        """`size` bytes were read at `now`: the seconds to read no more from that program, 0 for none."""
        self._credit = min(float(self.RATE), self._credit + (now - self._at) * self.RATE) - size
        self._at = now
        return 0.0 if self._credit >= 0 else min(max(-self._credit / self.RATE, self.SHORTEST), self.LONGEST)


_pace = Pace()


class Output:
    """Reads from now on, at the loop's next turn: an attachment made before that misses nothing.

    The descriptors belong to it; they are made non-blocking, and closed once. `closed` is done when the last of stdout,
    stderr or terminal has ended. input_ended: called when clients have ended the input, for copies of `stdin`. Tell
    `exited` when the process has, else readers never see the end.
    """

    __slots__ = (
        "_attached", "_backlog", "_blocked", "_exited", "_grace", "_log", "_loop", "_resting", "_streams",
        "_terminal", "closed", "input",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        terminal: int | None = None,
        log: Sink | None = None,
        input_ended: Callable[[], None] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """keep: what comes while nobody is attached is for who attaches next, also after the end."""
        self._loop = loop
        self._log = log
        self._backlog = Backlog() if keep else None
        self._attached: tuple[Attached, ...] = ()
        self._blocked: set[Attached] = set()
        self._exited = False
        self._grace: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._terminal = terminal
        self._streams: list[_Stream] = []
        self.closed: asyncio.Future[None] = loop.create_future()
        self.input = Input(loop, stdin, ended=input_ended) if terminal is None else Input(loop, terminal, pipe=False)
        if stdin is not None:
            os.set_blocking(stdin, False)
        for fd, number in ((stdout, 1), (stderr, 2), (terminal, 1)):
            if fd is not None:
                os.set_blocking(fd, False)
                self._streams.append(_Stream(fd, 1 if number == 1 else 2))
        self._listen()
        if not self._streams:
            self.closed.set_result(None)

    # --- of the engine -----------------------------------------------------------------------------------------------

    @property
    def watched(self) -> bool:
        """Whether somebody is attached."""
        return bool(self._attached)

    def descriptors(self) -> dict[int, int]:
        """What of it is open, by role (`plan.flags.ROLE_*`): to be copied at once."""
        found = {f.ROLE_TERMINAL if self._terminal is not None else int(one.number): one.fd for one in self._streams}
        if (stdin := self.input.descriptor) is not None:
            found[f.ROLE_STDIN] = stdin
        return found

    def attach(self, attached: Attached) -> None:
        """From now on it gets the output. After the end: at once the end."""
        attached.bind(self)
        if self._backlog is not None:
            for number, data in self._backlog.take():
                attached.put(number, data)
        if self._done:
            attached.end()
        else:
            self._attached = (*self._attached, attached)
            self._go_on()

    def exited(self) -> None:
        """The process has ended. What it has written is still read, what others write for GRACE_SECONDS more."""
        if self._exited:
            return
        self._exited = True
        self.input.close()
        self._go_on()
        if self._streams:
            self._grace = self._loop.call_later(GRACE_SECONDS, self._grace_over)
        else:
            self._finish()

    def close(self) -> None:
        """Close all, reading no more: attachments get what is queued for them. Done again: nothing."""
        self._exited = True
        self._wake()
        self.input.close()
        for stream in tuple(self._streams):
            self._end(stream)
        self._finish()

    @property
    def unread(self) -> int:
        """Bytes kept for who attaches next."""
        return self._backlog.size if self._backlog is not None else 0

    def take(self) -> Sequence[Piece]:
        """What was kept, which is nobody's then."""
        return self._backlog.take() if self._backlog is not None else ()

    def restore(self, pieces: Sequence[Piece]) -> None:
        """What an earlier engine has taken: it comes first."""
        if self._backlog is not None:
            for number, data in pieces:
                self._backlog.add(number, data)

    def drop(self) -> None:
        """Nobody shall have them."""
        self._backlog = None

    @property
    def _done(self) -> bool:
        return self._exited and not self._streams

    # --- of attachments ----------------------------------------------------------------------------------------------

    def detach(self, attached: Attached, unread: Sequence[Piece] = ()) -> None:
        """It gets nothing any more, and nothing waits for it."""
        self._attached = tuple(one for one in self._attached if one is not attached)
        if self._backlog is not None and not self._attached:
            for number, data in unread:
                self._backlog.add(number, data)
        self.drained(attached)

    def drained(self, attached: Attached) -> None:
        """It has room again."""
        if attached in self._blocked:
            self._blocked.remove(attached)
            if not self._blocked:
                self._listen()

    def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size; nothing without one or after its end."""
        if self._terminal is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetwinsize(self._terminal, (rows, cols))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for stream in self._streams:
            self._loop.add_reader(stream.fd, self._ready, stream)
            if stream.rest is not None:  # nothing may be left to wake us
                self._loop.call_soon(self._ready, stream)

    def _ready(self, stream: _Stream) -> None:
        for _ in range(_PIECES_A_TURN):
            if stream.fd < 0 or self._blocked or self._must_wait():
                return
            size = self._read(stream)
            if size <= 0:
                if size == 0 or stream.rest is not None:
                    self._end(stream)
                return
            if stream.rest is not None:
                stream.rest -= size
                if stream.rest <= 0:
                    self._end(stream)
            elif size < PIECE:
                stream.full = 0
                return  # most likely empty; if not, we are called again
            else:
                self._enlarge(stream)
                if self._rests(stream, size):
                    return
        if stream.rest is not None:
            self._loop.call_soon(self._ready, stream)

    def _read(self, stream: _Stream) -> int:
        """Read and pass on one piece: its size, 0 at the end, -1 if there is nothing now."""
        try:
            if not self._attached and self._log is None and self._backlog is None:
                return os.readv(stream.fd, (_dropped,))
            data = os.read(stream.fd, PIECE)
        except BlockingIOError:
            return -1
        except OSError:  # EIO: nobody has the terminal open any more (ioctl_tty(2), pty(7))
            return 0
        if data:
            self._pass_on(stream.number, data)
        return len(data)

    def _pass_on(self, number: Literal[1, 2], data: bytes) -> None:
        if self._log is not None:
            self._log.write(number, data)
        if self._backlog is not None and not self._attached:
            self._backlog.add(number, data)
        for attached in self._attached:
            if attached.behind is None and not attached.put(number, data):
                attached.behind = self._log.reader() if self._log is not None else None
                if attached.behind is None:
                    self._blocked.add(attached)
        if self._blocked:
            self._pause()

    def _must_wait(self) -> bool:
        """Whether the log would lose what a client that is behind has not read."""
        for attached in self._attached:
            if attached.behind is not None and attached.behind.endangered(PIECE):
                self._blocked.add(attached)
        if self._blocked:
            self._pause()
        return bool(self._blocked)

    def _pause(self) -> None:
        for stream in self._streams:
            self._loop.remove_reader(stream.fd)

    def _enlarge(self, stream: _Stream) -> None:
        stream.full += 1
        if stream.full == _BUSY and self._terminal is None:
            with contextlib.suppress(OSError):  # EPERM: the user's pipes have enough (pipe(7), pipe-user-pages-soft)
                fcntl.fcntl(stream.fd, _F_SETPIPE_SZ, _BUSY_PIPE)

    def _rests(self, stream: _Stream, size: int) -> bool:
        """Whether it is time to let the program wait, since nobody reads what it pours out."""
        if self._attached or self._exited or stream.full < _POURING:
            return False
        seconds = _pace.spend(self._loop.time(), size)
        if seconds:
            self._pause()
            self._resting = self._loop.call_later(seconds, self._go_on)
        return bool(seconds)

    def _wake(self) -> bool:
        """End a rest; whether there was one."""
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.cancel()
        return resting is not None

    def _go_on(self) -> None:
        if self._wake() and not self._blocked:
            self._listen()

    # --- ends --------------------------------------------------------------------------------------------------------

    def _grace_over(self) -> None:
        """Read what is there, once; a client that is still behind may take its time."""
        self._grace = None
        for stream in tuple(self._streams):
            stream.rest = PIECE if self._terminal is not None else fcntl.fcntl(stream.fd, fcntl.F_GETPIPE_SZ)
            self._ready(stream)

    def _end(self, stream: _Stream) -> None:
        self._streams.remove(stream)
        if self._terminal is not None:
            self.input.close()
            self._terminal = None
        self._loop.remove_reader(stream.fd)
        os.close(stream.fd)
        stream.fd = -1
        if not self._streams:
            if not self.closed.done():
                self.closed.set_result(None)
            if self._exited:
                self._finish()

    def _finish(self) -> None:
        """Both the process and its output have ended."""
        if self._grace:
            self._grace.cancel()
            self._grace = None
        attached, self._attached = self._attached, ()
        for one in attached:
            one.end()
