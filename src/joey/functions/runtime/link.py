"""The runtime's end of the channel: frames in and out, and what the function prints."""

import _thread
import io
import os
import sys
from _thread import allocate_lock, get_ident

from .frames import HEADER, LOG, STDERR, STDOUT, Frames

_RECEIVE = 1 << 16
_MSG_DONTWAIT = 0x40  # <linux/socket.h>


class Link:
    """One stream socket. Sends are whole frames, of whatever thread; one thread receives."""

    def __init__(self, sock):
        sock.setblocking(True)
        self.sock = sock
        self.fd = sock.fileno()
        self.closed = False
        self._frames = Frames()
        self._lock = allocate_lock()
        self._sender = 0
        os.register_at_fork(after_in_child=self._forked)

    def send(self, *frames):
        """(kind, invocation, payload) each, together. When nobody is there any more this process ends."""
        pieces = []
        for kind, invocation, payload in frames:
            pieces.append(HEADER.pack(len(payload), kind, invocation))
            pieces.append(payload)
        self.write(b"".join(pieces))

    def write(self, data):
        """Frames as bytes."""
        if self.closed:
            os._exit(0)  # a child that the function forked, and let come back to us
        with self._lock:
            self._sender = get_ident()
            try:
                self.sock.sendall(data)
            except OSError:
                os._exit(0)  # nobody is there any more, and nothing shall go on without
            finally:
                self._sender = 0

    def log(self, stream, invocation, data):
        """What was printed. In a child that the function has forked, or in the middle of a frame: as any program."""
        if self.closed or self._sender == get_ident():
            os.write(stream, data)
            return
        for at in range(0, len(data), _RECEIVE):
            piece = bytes(data[at : at + _RECEIVE])
            self.write(HEADER.pack(len(piece) + 1, LOG, invocation) + bytes((stream,)) + piece)

    def receive(self, wait=True):
        """The frames that have come: [(kind, invocation, payload)], None at the end of the channel."""
        while not self.closed:
            try:
                data = self.sock.recv(_RECEIVE, 0 if wait else _MSG_DONTWAIT)
            except BlockingIOError:
                return []
            except OSError:
                return None
            if not data:
                return None
            found = self._frames.feed(data)
            if found:
                return found
        return None

    def _forked(self):
        """The function has forked: its child has no part in the channel, and would keep it from ending."""
        self.closed = True
        self._lock = allocate_lock()
        self.sock.close()


class _Raw(io.RawIOBase):
    """A standard stream: bytes become LOG frames of the invocation that prints them."""

    def __init__(self, link, stream, current):
        self._link, self._stream, self._current = link, stream, current

    def writable(self):
        return True

    def fileno(self):
        return self._stream

    def write(self, data):
        self._link.log(self._stream, self._current(), data)
        return len(data)

    def close(self):
        """Never: a function that closes its standard output is no reason to lose what comes later."""


class _Each(io.TextIOBase):
    """A standard stream where several threads print: each has its own, so that lines stay whole and are whose they
    are.
    """

    def __init__(self, make):
        self._make, self._local = make, _thread._local()

    @property
    def _own(self):
        try:
            return self._local.stream
        except AttributeError:
            self._local.stream = made = self._make()
            return made

    buffer = property(lambda self: self._own.buffer)
    encoding = property(lambda self: self._own.encoding)
    errors = property(lambda self: self._own.errors)

    def write(self, text):
        return self._own.write(text)

    def flush(self):
        self._own.flush()

    def fileno(self):
        return self._own.fileno()

    def writable(self):
        return True

    def reconfigure(self, **settings):
        self._own.reconfigure(**settings)


def capture(link, current, threads=False):
    """Let sys.stdout and sys.stderr go through `link`. current() -> the invocation that runs here, 0 for none. threads:
    several run here, each in one of its own.
    """
    for name, stream in (("stdout", STDOUT), ("stderr", STDERR)):
        old = getattr(sys, name)
        if old is not None:
            old.flush()

        def make(stream=stream):
            raw = io.BufferedWriter(_Raw(link, stream, current))
            return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)

        made = _Each(make) if threads else make()
        setattr(sys, name, made)
        setattr(sys, "__{}__".format(name), made)


def flush():
    """What was printed without a line's end, too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the function's own stream, or closed
