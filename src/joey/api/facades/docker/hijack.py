"""Connections that leave HTTP (attach, exec): raw bytes in, raw or multiplexed output out.

Output of a process without a terminal is framed: stream (1 stdout, 2 stderr), three zero bytes, length (4 bytes, big
endian), data. A client that closes its sending side ends standard input only; one that is gone ends the whole.
Source: Docker Engine API 1.45, "Attach to a container".
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import sys
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

from joey.api.light import web
from joey.api.streams import Taken
from joey.engine.interface import Attachment
from joey.model.errors import Invalid, JoeyError

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
_HIGH_WATER = 1 << 18
_READ_LIMIT = 1 << 18
_HEARD = 1.0
_LINGER = 2.0
"""Seconds for a client to end its side when the output has ended."""
_LOOK = 1.0
"""Seconds between looks whether a client that has closed its sending side, or is not read from, is still there."""


def frame(stream: int, data: bytes) -> bytes:
    """One piece of output of a process without a terminal."""
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


class Body:
    """Collects what comes after a request that asks for an upgrade, until its connection is taken over."""

    def __init__(self) -> None:
        self.held = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.held += data
        return False, b""

    def feed_eof(self) -> None:
        """The client sends no more."""

    def set_exception(self, exc: BaseException, cause: BaseException | None = None) -> None:
        """The connection is gone: its transport says so too."""


class Connection(asyncio.Protocol):
    """A connection that is no HTTP any more, with flow control both ways."""

    def __init__(self, transport: asyncio.Transport, first: bytes) -> None:
        self._transport = transport
        self._before = transport.get_protocol()  # aiohttp's has to hear of the connection's end
        self._received: deque[bytes] = deque([first] if first else [])
        self._size = len(first)
        self._paused = False
        self._arrival, self._writable, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._eof = asyncio.Event()
        self._ended = False
        self._writable.set()
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._size += len(data)
        if self._size > _READ_LIMIT and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._arrival.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._eof.set()
        self._arrival.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._eof.set()
        self.gone.set()
        self._arrival.set()
        self._writable.set()
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> bytes | None:
        """The next piece; None when the client sends no more."""
        while not self._received:
            if self._ended:
                return None
            self._arrival.clear()
            await self._arrival.wait()
        piece = self._received.popleft()
        self._size -= len(piece)
        if self._paused and self._size <= _READ_LIMIT // 2 and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def send(self, data: bytes) -> None:
        """Returns when the socket has room again."""
        if not self.gone.is_set() and not self._transport.is_closing():
            self._transport.write(data)
            await self._writable.wait()

    async def heard(self) -> None:
        """Returns when the client has read all that was sent, in a second at the latest. docker-py loses what comes in
        one piece with the head of the answer: it stays in a buffer that it never looks into again.
        """
        sock, began = self._transport.get_extra_info("socket"), time.monotonic()
        while not self.gone.is_set() and sock is not None and sock.fileno() >= 0 and _unread(sock):
            if (waited := time.monotonic() - began) > _HEARD:
                return
            await asyncio.sleep(waited / 4)

    async def left(self) -> None:
        """Returns when the client is gone, also one that has closed its sending side before."""
        while not self.gone.is_set():
            if (self._ended or self._paused) and hung_up(self._transport.get_extra_info("socket")):
                return
            with contextlib.suppress(TimeoutError):  # wait_for of Python 3.11 can lose a cancellation
                async with asyncio.timeout(_LOOK):
                    await (self.gone if self._ended else self._eof).wait()

    async def finish(self) -> None:
        """End our side, and take in what the client still sends until it ends its own: one whose bytes are left unread
        sees a reset, not an end (`data | docker run -i IMAGE true`).
        """
        if self.gone.is_set() or self._transport.is_closing():
            return
        with contextlib.suppress(TimeoutError, OSError):
            self._transport.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self.receive() is not None:
                    pass

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


def _unread(sock: Any) -> int:
    """Bytes that the other end of a unix socket has not read (unix(7), SIOCOUTQ)."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def hung_up(sock: Any) -> bool:
    """Whether the other end has closed both ways."""
    if sock is None or sock.fileno() < 0:
        return True
    poller = select.poll()
    poller.register(sock.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


CONNECTIONS: web.AppKey[Any] = web.AppKey("docker-connections", WeakSet)


async def end_all(app: web.Application) -> None:
    """Drop every stream, so that the server can end."""
    for connection in list(app[CONNECTIONS]):
        connection.abort()


def upgrades(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "tcp"


async def body(request: web.Request) -> tuple[bytes, Body | None]:
    """The body of a request that may ask for an upgrade, and who collects what comes after it."""
    if not upgrades(request):
        return await request.read(), None
    async with asyncio.timeout(30):
        data = await request.read()
    collector = Body()
    request.protocol.set_parser(collector)  # type: ignore[arg-type]
    return data, collector


async def take_over(request: web.Request, collector: Body | None, *, tty: bool) -> Connection:
    """Answer, and take the connection. Raises ConnectionResetError if the client has gone."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has gone")
    assert isinstance(transport, asyncio.Transport)
    connection = Connection(transport, bytes(collector.held) if collector else b"")
    request.app[CONNECTIONS].add(connection)
    media = RAW if tty else MULTIPLEXED
    if collector is not None:
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {media}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n\r\n"
    transport.write(head.encode())
    await connection.heard()
    return connection


class Keys:
    """Looks in what is typed for the keys that detach (`--detach-keys`, "ctrl-p,ctrl-q" unless given)."""

    def __init__(self, text: str = "") -> None:
        """Raises Invalid for what names no key."""
        self._keys = b"".join(_key(part) for part in (text or "ctrl-p,ctrl-q").split(","))
        self._held = 0

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether all keys were typed). The first of the keys are held until it is clear."""
        held, data = self._keys[: self._held] + data, b""
        at = held.find(self._keys)
        if at >= 0:
            return held[:at], True
        self._held = next(n for n in range(len(self._keys) - 1, -1, -1) if held.endswith(self._keys[:n]))
        return held[: len(held) - self._held], False


def _key(text: str) -> bytes:
    name = text.removeprefix("ctrl-")
    if len(name) != 1 or not name.isascii():
        raise Invalid("detachKeys", f"{text!r} is no key: a character, or ctrl- and one of a-z @ [ \\ ] ^ _")
    if name is text:
        return text.encode()
    if not 0x40 <= ord(name.upper()) <= 0x5F:
        raise Invalid("detachKeys", f"{text!r} is no key: ctrl- and one of a-z @ [ \\ ] ^ _")
    return bytes((ord(name.upper()) - 0x40,))


async def serve(
    connection: Connection, attachment: Attachment, *, tty: bool, stdin: bool, out: tuple[bool, bool] = (True, True),
    once: bool = True, keys: Keys | None = None, before_end: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:  # fmt: skip
    """Move bytes until the process has ended, the client is gone, or has typed the keys that detach. once: the end of
    input is told to the process. before_end: what must be done before the client sees the end of a stream whose process
    has ended.
    """
    output = asyncio.ensure_future(_output(connection, attachment, tty, out))
    feeder = asyncio.ensure_future(_input(connection, attachment if stdin else None, once, keys))
    gone = asyncio.ensure_future(connection.left())
    try:
        await asyncio.wait([output, gone], return_when=asyncio.FIRST_COMPLETED)
        if not output.done():  # what was typed before it left still counts
            await asyncio.wait([feeder], timeout=0.5)
        elif output.exception() is None:
            if before_end is not None:
                await before_end()
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
            await connection.finish()
    finally:
        for task in (output, feeder, gone):
            task.cancel()
        connection.close()
        await asyncio.gather(output, feeder, gone, return_exceptions=True)
    return Taken()


async def _output(connection: Connection, attachment: Attachment, tty: bool, out: tuple[bool, bool]) -> None:
    while (piece := await attachment.read()) is not None:
        stream, data = piece
        if out[stream - 1]:
            await connection.send(data if tty else frame(stream, data))


async def _input(connection: Connection, attachment: Attachment | None, once: bool, keys: Keys | None) -> None:
    with contextlib.suppress(JoeyError):
        while (piece := await connection.receive()) is not None:
            if attachment is None:
                continue
            piece, detached = keys(piece) if keys else (piece, False)
            if piece:
                await attachment.write(piece)
            if detached:
                connection.close()
                return
        if attachment is not None and once:
            await attachment.close_stdin()


__all__ = ["CONNECTIONS", "Connection", "Keys", "Taken", "body", "end_all", "frame", "serve", "take_over", "upgrades"]
