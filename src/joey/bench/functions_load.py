"""Many requests over many connections from one thread: what a load takes of a core must leave the service the other."""

from __future__ import annotations

import select
import socket
import time
from types import TracebackType
from typing import NamedTuple

from joey.client.transport import connect

_SECONDS = 120.0
"""A connection that has not answered by then counts as failed."""


class Reply(NamedTuple):
    """An answer, or that there was none (status 0). error: the type of a function's failure."""

    status: int
    error: str
    body: bytes


class _Line:
    """One connection. It has one request at a time."""

    __slots__ = ("buffer", "sock", "unsent")

    def __init__(self, path: str) -> None:
        self.sock: socket.socket = connect(path)  # type: ignore[no-untyped-call]
        self.sock.setblocking(False)
        self.buffer = b""
        self.unsent = b""

    def ask(self, request: bytes) -> bool:
        """Send it; False if the rest of it has to wait."""
        try:
            sent = self.sock.send(request)
        except BlockingIOError:
            sent = 0
        self.unsent = request[sent:]
        return not self.unsent

    def take(self) -> Reply | None:
        """What has come; None as long as it is not whole."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError as error:
            return Reply(0, "", str(error).encode())
        self.buffer = self.buffer + data if self.buffer else data
        reply = parse(self.buffer)
        if reply is None:
            return None if data else Reply(0, "", b"the connection was closed")
        self.buffer = b""
        return reply


def parse(data: bytes) -> Reply | None:
    """An answer of HTTP/1.1 with a length, or in chunks; None if it is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, body = data[:end].lower(), data[end + 4 :]
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        if len(body) < int(head[at + 17 :].split(b"\r\n", 1)[0]):
            return None
    elif b"\r\ntransfer-encoding: chunked" in head and not body.endswith(b"0\r\n\r\n"):
        return None
    at = head.find(b"\r\njoey-function-error:")
    error = data[at + 22 : end].split(b"\r\n", 1)[0].strip().decode("latin-1") if at >= 0 else ""
    return Reply(int(data[9:12]), error, body)


class Load:
    """So many connections, kept open. A context manager."""

    def __init__(self, path: str, count: int) -> None:
        self._lines = [_Line(path) for _ in range(count)]
        self._poll = select.epoll()
        self._of = {line.sock.fileno(): line for line in self._lines}
        for fd in self._of:
            self._poll.register(fd, select.EPOLLIN)

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poll.close()
        for line in self._lines:
            line.sock.close()

    def each(self, path: str, body: bytes, count: int) -> tuple[list[Reply], float]:
        """So many requests at once, one a connection; the answers, and the seconds until the last."""
        begin = time.perf_counter()
        replies = self._run(_request(path, body), count, lambda: False, begin + _SECONDS)
        return replies, time.perf_counter() - begin

    def for_seconds(self, path: str, body: bytes, seconds: float) -> tuple[list[Reply], float]:
        """A request after the other on each connection, for so long."""
        begin = time.perf_counter()
        end = begin + seconds
        replies = self._run(_request(path, body), len(self._lines), lambda: time.perf_counter() < end, end + _SECONDS)
        return replies, time.perf_counter() - begin

    def _run(self, request: bytes, count: int, more: object, deadline: float) -> list[Reply]:
        assert callable(more)
        replies: list[Reply] = []
        waiting = 0
        for line in self._lines[:count]:
            self._send(line, request)
            waiting += 1
        while waiting and (left := deadline - time.perf_counter()) > 0:
            for fd, event in self._poll.poll(min(left, 1.0)):
                line = self._of[fd]
                if event & select.EPOLLOUT:
                    self._send(line, line.unsent)
                    continue
                reply = line.take()
                if reply is None:
                    continue
                replies.append(reply)
                if reply.status and more():
                    self._send(line, request)
                else:
                    waiting -= 1
                    if not reply.status:
                        self._poll.unregister(fd)
        return replies + [Reply(0, "", b"no answer")] * waiting

    def _send(self, line: _Line, request: bytes) -> None:
        had = bool(line.unsent)
        whole = line.ask(request)
        if had or not whole:
            self._poll.modify(line.sock.fileno(), select.EPOLLIN if whole else select.EPOLLIN | select.EPOLLOUT)


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: joey\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
