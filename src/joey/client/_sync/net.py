"""Sockets of the blocking face: written by hand, with the same names as joey.client._async.net.

A call is one send and one recv on the caller's thread: no event loop and no second thread, whose two hand-overs would
cost more than the rest of the call.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from joey.client.endpoint import Endpoint, unreachable
from joey.client.errors import ConnectionLost

T = TypeVar("T")
CONNECT_SECONDS = 10.0
_PIECE = 1 << 18
Callback = Callable[[Any], object]
"""Called with each piece of output."""


class Quiet(socket.socket):
    """Closes itself without a warning: connections are kept for the next call, and nobody is asked to close the SDK."""

    def __del__(self) -> None:
        self.close()


class Wire:
    """One connection. Not for two threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._pid = os.getpid()
        self._whole = 0 if hasattr(sock, "pending") else socket.MSG_WAITALL  # TLS knows no flags

    def send(self, data: bytes) -> None:
        """All of `data`. Raises ConnectionLost."""
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise ConnectionLost("", f"the engine closed the connection: {error.strerror or error}") from None

    def recv(self) -> bytes:
        """What there is, at least a byte; b"" at the end."""
        try:
            return self._sock.recv(_PIECE)
        except ConnectionResetError:
            return b""
        except OSError as error:
            raise ConnectionLost("", f"the connection broke: {error.strerror or error}") from None

    def alive(self) -> bool:
        """Whether an idle connection may be used: nothing came, not even its end, and no fork shares it with us."""
        return self._pid == os.getpid() and not self._poll.poll(0)

    def recv_exactly(self, count: int) -> bytes:
        """So many bytes, fewer only at the end: what is large is received where it stays."""
        pieces, missing = [], count
        try:
            while missing:
                piece = self._sock.recv(missing, self._whole)  # in one go, unless a signal comes in between
                if not piece:
                    break
                pieces.append(piece)
                missing -= len(piece)
        except ConnectionResetError:
            pass
        except OSError as error:
            raise ConnectionLost("", f"the connection broke: {error.strerror or error}") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def recv_within(self, seconds: float) -> bytes | None:
        """The same; None if nothing came in that time."""
        pending = getattr(self._sock, "pending", None)  # of TLS
        if (pending is not None and pending()) or self._poll.poll(max(0.0, seconds * 1000)):
            return self.recv()
        return None

    def close(self) -> None:
        """May be called twice."""
        self._sock.close()


def connect(endpoint: Endpoint) -> Wire:
    """Raises Unreachable."""
    return Wire(open_socket(endpoint))


def open_socket(endpoint: Endpoint) -> socket.socket:
    """Connected, by TLS if asked for. Raises Unreachable."""
    try:
        return _unix(endpoint.path) if endpoint.path else _tcp(endpoint)
    except OSError as error:
        raise unreachable(endpoint, error) from None


def _unix(path: str) -> socket.socket:
    from joey.client.transport import Unreachable as Refused
    from joey.client.transport import connect as open_unix

    try:
        raw = open_unix(path)  # type: ignore[no-untyped-call]
    except Refused as error:
        raise OSError(error.errno, error.strerror) from None
    return Quiet(fileno=raw.detach())


def _tcp(endpoint: Endpoint) -> socket.socket:
    sock = socket.create_connection((endpoint.host.strip("[]"), endpoint.port), CONNECT_SECONDS)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if endpoint.tls:
            from joey.client.tls import context

            sock = context().wrap_socket(sock, server_hostname=endpoint.host.strip("[]"))
            sock.settimeout(None)
            return sock
        sock.settimeout(None)
        return Quiet(fileno=sock.detach())
    except BaseException:
        sock.close()
        raise


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Do blocking `work`: here, in the caller's thread."""
    return work(*arguments)


def notify(callback: Callback | None, value: Any) -> None:
    """Call back."""
    if callback is not None:
        callback(value)


def scope() -> object:
    """What connections are shared within: the process."""
    return None


__all__ = ["Callback", "Wire", "connect", "in_thread", "notify", "scope", "sleep"]
