"""Streams of frames (joey.model.frames): taking a connection over from aiohttp, and moving a process's bytes through
it.

Nothing is buffered without bound. Output: a piece is read from the engine only when the socket has taken the last one.
Input: the client has at most frames.WINDOW bytes of it under way, and what the program has not taken stops us reading
the socket when a client does not keep to that. A client that goes away is noticed at once, also while its output is
stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from joey.api import problem
from joey.api.keys import STREAMS
from joey.api.light import web
from joey.engine.interface import Attachment
from joey.model import codec, frames
from joey.model.errors import Invalid, JoeyError

_HIGH_WATER = 1 << 18
_READ_LIMIT = 2 * frames.WINDOW
_PARTING = 0.5


class FrameConnection(asyncio.Protocol):
    """A connection that has left HTTP: frames both ways, with flow control both ways."""

    def __init__(self, transport: asyncio.Transport, before: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._before = before  # aiohttp's protocol, which has to hear of the connection's end
        self._decoder = frames.Decoder()
        self._received: deque[tuple[int, bytes]] = deque()
        self._held = 0
        self._reading = True
        self._arrival = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        transport.set_protocol(self)

    # ---- asyncio's side

    def data_received(self, data: bytes) -> None:
        try:
            for kind, piece, _last in self._decoder.pieces(data):
                self._received.append((kind, piece))
                self._held += len(piece)
        except frames.Damaged as error:
            self._received.append((frames.ERROR, str(error).encode()))
            self._stop_reading()
        if self._held > _READ_LIMIT:
            self._stop_reading()
        self._arrival.set()

    def eof_received(self) -> bool:
        return False  # a client that stops sending has gone: its half-closed socket is of no use

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self._arrival.set()
        self._writable.set()
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _stop_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    # ---- our side

    async def receive(self) -> tuple[int, bytes] | None:
        """The next (kind, payload); None when the client is gone. Payloads of STDIN may be parts of a frame."""
        while not self._received:
            if self.gone.is_set():
                return None
            self._arrival.clear()
            await self._arrival.wait()
        kind, piece = self._received.popleft()
        self._held -= len(piece)
        if not self._reading and self._held <= _READ_LIMIT // 2 and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()
        return kind, piece

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Returns when the socket has room again. What is sent to a client that is gone vanishes."""
        if not self.gone.is_set():
            self._transport.write(frames.frame(kind, payload))
            await self._writable.wait()

    def close(self) -> None:
        """Close once everything sent has been taken; a client that takes nothing is dropped by `abort`."""
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection and what it has not taken."""
        self._transport.abort()


class Taken(web.StreamResponse):
    """What a handler returns whose connection is no longer aiohttp's: nothing is written, and it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class UpgradeRequired(web.HTTPClientError):
    """426 (RFC 9110, 15.5.22)."""

    status_code = 426


def wants_stream(request: web.Request) -> bool:
    """Whether the client asked for our upgrade."""
    return request.headers.get("Upgrade", "").lower() == frames.NAME


def require_stream(request: web.Request) -> None:
    """Raises 426 if the client did not ask for our upgrade."""
    if not wants_stream(request):
        text = f"this path opens a stream: send Connection: Upgrade and Upgrade: {frames.NAME}"
        raise UpgradeRequired(text=text, headers={"Upgrade": frames.NAME})


def take_over(request: web.Request, **headers: str) -> FrameConnection:
    """Answer 101 and take the connection. Raises ConnectionResetError if the client has gone."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has gone")
    assert isinstance(transport, asyncio.Transport)
    connection = FrameConnection(transport, transport.get_protocol())
    request.app[STREAMS].add(connection)
    lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", f"Upgrade: {frames.NAME}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    transport.write("\r\n".join((*lines, "", "")).encode())
    return connection


async def end_all(app: web.Application) -> None:
    """Drop every stream, so that the server can end."""
    streams = app[STREAMS]
    for connection in list(streams):
        connection.abort()


async def serve(connection: FrameConnection, attachment: Attachment) -> None:
    """Move bytes between a client and a process until the process has ended or the client is gone."""
    tasks = [
        asyncio.ensure_future(_output(connection, attachment)),
        asyncio.ensure_future(_input(connection, attachment)),
    ]
    gone = asyncio.ensure_future(connection.gone.wait())
    try:
        # Input may end before output; that the client is gone, or output ended, ends the whole.
        await asyncio.wait([tasks[0], gone], return_when=asyncio.FIRST_COMPLETED)
        if connection.gone.is_set():
            await asyncio.wait([tasks[1]], timeout=2 * _PARTING)
        if tasks[0].done() and (failure := tasks[0].exception()) is not None:
            await _report(connection, failure)
    finally:
        for task in (*tasks, gone):
            task.cancel()
        await asyncio.gather(*tasks, gone, return_exceptions=True)
        await attachment.close()
        connection.close()


async def _output(connection: FrameConnection, attachment: Attachment) -> None:
    while (piece := await attachment.read()) is not None:
        await connection.send(*piece)
    end = await attachment.wait()
    await connection.send(frames.EXIT, codec.encode(end))


async def _input(connection: FrameConnection, attachment: Attachment) -> None:
    """Control frames are acted upon at once; input waits in a queue of its own for the program to take it."""
    queue = _InputQueue()
    feeder = asyncio.ensure_future(queue.feed(connection, attachment))
    try:
        while (received := await connection.receive()) is not None:
            kind, payload = received
            if kind == frames.STDIN:
                await queue.put(payload)
            elif kind == frames.STDIN_EOF:
                await queue.put(None)
            else:
                await _control(attachment, kind, payload)
        # Gone, but what was typed before that still counts, if the program takes it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(queue.empty.wait(), _PARTING)
    except JoeyError as error:
        await _report(connection, error)
        connection.close()
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


class _InputQueue:
    """Input on its way to a program. A client that keeps to its window never makes `put` wait."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | None] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()

    async def put(self, piece: bytes | None) -> None:
        self._pieces.append(piece)
        self._size += len(piece or b"")
        self._filled.set()
        self.empty.clear()
        while self._size > frames.WINDOW:
            self._room.clear()
            await self._room.wait()

    async def feed(self, connection: FrameConnection, attachment: Attachment) -> None:
        while True:
            while not self._pieces:
                self.empty.set()
                self._filled.clear()
                await self._filled.wait()
            piece = self._pieces.popleft()
            if piece is None:
                await attachment.close_stdin()
                continue
            await attachment.write(piece)
            self._size -= len(piece)
            self._room.set()
            await connection.send(frames.CREDIT, len(piece).to_bytes(4, "big"))


async def _control(attachment: Attachment, kind: int, payload: bytes) -> None:
    """Raises Invalid for a frame that makes no sense here."""
    if kind == frames.RESIZE and len(payload) == 4:
        await attachment.resize(int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:], "big"))
    elif kind == frames.SIGNAL and len(payload) == 4:
        await attachment.signal(int.from_bytes(payload, "big"))
    else:
        raise Invalid("stream", f"a frame of type {kind} with {len(payload)} bytes makes no sense here")


async def _report(connection: FrameConnection, error: BaseException) -> None:
    document: dict[str, Any] = problem.document(error) if isinstance(error, JoeyError) else problem.unexpected(error)
    await connection.send(frames.ERROR, codec.encode(document))
