"""The foreground of `run`, `exec` and `attach`: bytes, signals and sizes between the user and a process, until it ends.

One thread, one poll(2). Standard input goes out within the window that joey.model.frames describes; nothing that is
sent ever blocks the loop, so signals are passed on also while the program does not read.
"""

import os
import select
import time

try:
    import _signal as signal
except ImportError:  # pragma: no cover
    import signal  # type: ignore[no-redef]

from joey.cli.output import complain, write
from joey.client import jsontext
from joey.client.transport import Lost, Problem
from joey.model import frames

PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
_ASKING = (signal.SIGINT, signal.SIGTERM)
_PIECE = 1 << 16


class Detached(Exception):
    """The user left; the process goes on."""


class Session:
    """One stream of frames. `stdin`: descriptor to read or None. `watch`: a KeyWatch. `size`: function -> (rows,
    columns).
    """

    def __init__(self, sock, rest=b"", *, stdin=None, watch=None, size=None, proxy=True):
        self._sock, self._rest = sock, rest
        self._stdin, self._watch, self._size, self._proxy = stdin, watch, size, proxy
        self._terminal = size is not None and stdin is not None and os.isatty(stdin)
        self._hung_up = False
        self._credit = frames.WINDOW
        self._pending = bytearray()
        self._sending = False
        self._decoder = frames.Decoder()
        self._exit = None
        self._asked = 0
        self._dead = set()  # of 1 and 2, those nobody reads any more
        self._input_ended = False
        self.heard = 0.0  # when the connection broke, seconds since the epoch

    def run(self):
        """The Exit document of the process. Raises Detached, Problem, Lost, and BrokenPipeError if our reader left."""
        wake, alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = self._install(alarm)
        self._sock.setblocking(False)
        try:
            if self._size is not None:
                self._send(frames.resize(*self._size()))
            self._loop(wake)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(alarm)
            self._sock.close()
        if 1 in self._dead:
            raise BrokenPipeError
        return self._exit

    def go_on(self, sock, rest=b""):
        """Take another connection to the same process, for the next `run`. What was under way is lost."""
        self._sock, self._rest = sock, rest
        self._credit = frames.WINDOW
        self._pending = bytearray(frames.frame(frames.STDIN_EOF) if self._input_ended else b"")
        self._sending = False
        self._decoder = frames.Decoder()

    def _install(self, alarm):
        """Handlers for signals to pass on; what was there before."""
        wanted = {}
        if self._proxy:
            wanted = {getattr(signal, name): self._pass_on for name in PASSED_ON}
        if self._size is not None:
            wanted[signal.SIGWINCH] = lambda *_: self._send(frames.resize(*self._size()))
        before = {}
        for number, handler in wanted.items():
            old = signal.getsignal(number)
            if old is signal.SIG_IGN and number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                continue  # nohup, or a background job of a shell without job control
            before[number] = old
            signal.signal(number, handler)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        return before

    def _pass_on(self, number, _frame):
        self._send(frames.signal(number))
        self._hung_up |= number == signal.SIGHUP
        if number in _ASKING:
            self._asked += 1
            if self._asked == 2:
                complain("the program has not ended yet (process 1 ignores signals it has no handler for)",
                         "once more to kill it; --init next time")  # fmt: skip
            elif self._asked == 3:
                self._send(frames.signal(signal.SIGKILL))

    # ---- sending

    def _send(self, data):
        self._pending += data
        if self._sending:
            return  # in a signal handler, while the same is under way below
        self._sending = True
        try:
            while self._pending:
                try:
                    count = self._sock.send(self._pending[:_PIECE])
                except BlockingIOError:
                    return
                except (BrokenPipeError, ConnectionResetError):
                    self._pending.clear()  # reading tells why
                    return
                del self._pending[:count]
        finally:
            self._sending = False

    # ---- the loop

    def _loop(self, wake):
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        sock, mask, reading = self._sock.fileno(), 0, False
        if self._rest:
            self._take(self._rest)
        while self._exit is None:
            wanted = select.POLLIN | (select.POLLOUT if self._pending else 0)
            if wanted != mask:
                poll.register(sock, wanted)
                mask = wanted
            listen = self._stdin is not None and self._credit > 0 and not self._pending
            if listen != reading:
                reading = self._listen(poll, listen)
            for fd, event in poll.poll():
                if fd == sock and event & ~select.POLLOUT:
                    self._receive()
                elif fd == sock:
                    self._send(b"")
                elif fd == wake:
                    os.read(wake, 512)
                elif self._exit is None and self._stdin is not None:
                    reading = self._read_stdin(poll, event)

    def _listen(self, poll, listen):
        if listen:
            poll.register(self._stdin, select.POLLIN)
        elif self._stdin is not None:
            poll.unregister(self._stdin)
        return listen

    def _read_stdin(self, poll, event):
        """Pass some input on; whether there may be more."""
        try:
            data = b"" if event & select.POLLNVAL else os.read(self._stdin, min(_PIECE, self._credit))
        except BlockingIOError:
            return True
        except OSError:  # EIO: the terminal is gone
            data = b""
        if not data:
            poll.unregister(self._stdin)
            self._stdin = None
            self._input_ended = True
            self._send(frames.frame(frames.STDIN_EOF))
            if self._terminal:
                self._hang_up()
            return False
        leave = False
        if self._watch is not None:
            data, leave = self._watch.feed(data)
        if data:
            self._credit -= len(data)
            self._send(frames.frame(frames.STDIN, data))
        if leave:
            self._flush_last()
            raise Detached
        return True

    def _hang_up(self):
        """The terminal is gone (in raw mode nothing else ends the input): the program hears of it, and we leave."""
        if self._proxy and not self._hung_up and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._send(frames.signal(signal.SIGHUP))
        self._flush_last()
        raise Detached

    def _flush_last(self):
        self._sock.settimeout(1)
        try:
            self._sock.sendall(self._pending)
        except OSError:
            pass

    def _receive(self):
        try:
            data = self._sock.recv(1 << 18)
        except (BlockingIOError, ConnectionResetError) as error:
            if isinstance(error, BlockingIOError):
                return
            data = b""
        if not data:
            self.heard = time.time()
            raise Lost("the engine closed the connection before the program ended")
        self._take(data)

    def _take(self, data):
        for kind, payload, _last in self._decoder.pieces(data):
            if kind in (frames.STDOUT, frames.STDERR):
                self._write(kind, payload)
            elif kind == frames.CREDIT:
                self._credit += int.from_bytes(payload, "big")
            elif kind == frames.EXIT:
                self._exit = jsontext.loads(payload)
            elif kind == frames.ERROR:
                document = jsontext.loads(payload)
                raise Problem(document.get("status", 500), document)

    def _write(self, fd, payload):
        if fd in self._dead or not payload:
            return
        try:
            write(fd, payload)
        except OSError:  # EPIPE, EIO, EBADF, ENOSPC
            self._dead.add(fd)
            if fd == 1:
                self._reader_left()

    def _reader_left(self):
        """Nobody reads our output. A program run directly would get SIGPIPE; from a terminal that is gone we just
        leave.
        """
        if self._size is not None or not self._proxy:
            raise Detached
        self._send(frames.signal(signal.SIGKILL))
