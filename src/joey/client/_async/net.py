"""Sockets of the asyncio face: written by hand, with the same names as joey.client._sync.net.

Plain non-blocking sockets instead of asyncio's transports: an idle connection belongs to no loop, so a loop may end
without anybody having closed the SDK, and nothing is buffered that was not asked for.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from joey.client._sync.net import Quiet, _unix
from joey.client.endpoint import Endpoint, unreachable
from joey.client.errors import ConnectionLost

T = TypeVar("T")
CONNECT_SECONDS = 10.0
_PIECE = 1 << 18
_TURNS = 16  # so many pieces in a row before others get their turn
Callback = Callable[[Any], object] | Callable[[Any], Awaitable[object]]
"""Called with each piece of output; may be a coroutine function."""


class Wire:
    """One connection. Not for two tasks receiving, or two sending, at once."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = weakref.ref(asyncio.get_running_loop())  # or a kept connection would keep its loop alive
        self._pid = os.getpid()
        self._eager = False
        self._turn = 0
        self._waiting: set[asyncio.Future[None]] = set()

    async def send(self, data: bytes) -> None:
        """All of `data`. Raises ConnectionLost."""
        try:
            try:
                count = self._sock.send(data)
            except BlockingIOError:
                count = 0
            view = memoryview(data)[count:]
            while view:
                loop = asyncio.get_running_loop()
                await self._wait(loop.add_writer, loop.remove_writer)
                try:
                    view = view[self._sock.send(view) :]
                except BlockingIOError:
                    continue
        except OSError as error:
            raise ConnectionLost("", f"the engine closed the connection: {error.strerror or error}") from None

    async def recv(self, most: int = _PIECE) -> bytes:
        """What there is, at least a byte; b"" at the end."""
        while True:
            if self._eager:
                # A stream: there is probably more. One after the other, but not without ever letting others go.
                self._turn += 1
                if self._turn % _TURNS == 0:
                    await asyncio.sleep(0)
                    if self._sock.fileno() < 0:
                        raise ConnectionLost("", "the connection was closed")
            else:
                loop = asyncio.get_running_loop()
                await self._wait(loop.add_reader, loop.remove_reader)
            try:
                data = self._sock.recv(most)
            except BlockingIOError:
                self._eager = False
                continue
            except ConnectionResetError:
                return b""
            except OSError as error:
                raise ConnectionLost("", f"the connection broke: {error.strerror or error}") from None
            self._eager = len(data) >= 16384
            return data

    async def recv_exactly(self, count: int) -> bytes:
        """So many bytes, fewer only at the end."""
        pieces, missing = [], count
        while missing:
            piece = await self.recv(min(missing, _PIECE))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    async def recv_within(self, seconds: float) -> bytes | None:
        """The same; None if nothing came in that time."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await self.recv()
        except TimeoutError:
            return None

    async def _wait(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        fd = self._sock.fileno()
        if fd < 0:
            raise ConnectionLost("", "the connection was closed")
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        add(fd, _wake, ready)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._sock.fileno() == fd:
                remove(fd)

    def alive(self) -> bool:
        """Whether an idle connection may be used: nothing came, not even its end, and no fork shares it with us."""
        if self._pid != os.getpid() or self._loop() is not asyncio.get_running_loop():
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """May be called twice, and while somebody waits for it."""
        fd = self._sock.fileno()
        if fd < 0:
            return
        loop = self._loop()
        if self._waiting and loop is not None and not loop.is_closed():
            loop.remove_reader(fd)
            loop.remove_writer(fd)
            for ready in self._waiting:
                _wake(ready)
        self._sock.close()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class TlsWire(Wire):
    """The same over asyncio's streams, which know TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._pid = os.getpid()

    def __del__(self) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise ConnectionLost("", f"the engine closed the connection: {error.strerror or error}") from None

    async def recv(self, most: int = _PIECE) -> bytes:
        try:
            return await self._reader.read(most)
        except ConnectionResetError:
            return b""
        except OSError as error:
            raise ConnectionLost("", f"the connection broke: {error.strerror or error}") from None

    def alive(self) -> bool:
        return (
            self._pid == os.getpid()
            and self._loop() is asyncio.get_running_loop()
            and not self._reader.at_eof()
            and not self._writer.is_closing()
        )

    def close(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            self._writer.transport.abort()


async def connect(endpoint: Endpoint) -> Wire:
    """Raises Unreachable."""
    try:
        if endpoint.path:
            return Wire(_unix(endpoint.path))  # connecting a unix socket does not wait, unless the backlog is full
        async with asyncio.timeout(CONNECT_SECONDS):
            return await _tcp(endpoint)
    except OSError as error:
        raise unreachable(endpoint, error) from None


async def _tcp(endpoint: Endpoint) -> Wire:
    host = endpoint.host.strip("[]")
    if endpoint.tls:
        from joey.client.tls import context

        return TlsWire(*await asyncio.open_connection(host, endpoint.port, ssl=context(), limit=_PIECE))
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM):
        sock = Quiet(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return Wire(sock)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def sleep(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Do blocking `work` beside the loop."""
    return await asyncio.to_thread(work, *arguments)


async def notify(callback: Callback | None, value: Any) -> None:
    """Call back, and wait if it is a coroutine function."""
    if callback is not None:
        answer = callback(value)
        if inspect.isawaitable(answer):
            await answer


def scope() -> object:
    """What connections are shared within: the running loop."""
    return asyncio.get_running_loop()


__all__ = ["Callback", "Wire", "connect", "in_thread", "notify", "scope", "sleep"]
