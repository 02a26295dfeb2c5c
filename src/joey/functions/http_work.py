"""Programs that serve HTTP on a port: every invocation is a request of ours, by connections that are kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from joey.functions import wire
from joey.functions.intake import Intake
from joey.functions.wire import Answer, Failure, Head
from joey.functions.work import LogSink, Pending, Work
from joey.model.function import FunctionSpec
from joey.network import http_head as http
from joey.network.http_body import body as body_of

if TYPE_CHECKING:
    from joey.engine.channels import Channel
    from joey.engine.interface import Door

WHOLE = 1 << 20
"""A body of a length that is known, and not above this, is given whole."""
_READ = 64 << 10
_FRESH_SECONDS = 0.5
"""So soon after its last use a kept connection takes a request that cannot be sent twice."""
_POLLS = (0.002, 0.005, 0.01, 0.02, 0.05)
_INFORMATION = 16
"""Heads before the last (100, 103) that an answer may have."""
_HOP = frozenset(("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"))


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.used = reader, writer, 0.0

    def hurry(self) -> None:
        """Acknowledge at once what comes next: many programs send head and body apart, and their kernel keeps the body
        back until the head is acknowledged, which would otherwise take 40 ms (tcp(7), TCP_QUICKACK).
        """
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class HttpWork(Work):
    """With one program, through the sandbox's door."""

    def __init__(
        self,
        channel: Channel,
        log: LogSink | None,
        overdue: Callable[[Pending], None],
        broken: Callable[[Failure | None], None],
        door: Door,
        spec: FunctionSpec,
    ) -> None:
        super().__init__(log, overdue, broken)
        self._channel, self._door, self._spec = channel, door, spec
        self._intake: Intake | None = Intake({channel.out: wire.STDOUT, channel.err: wire.STDERR}, self._raw)
        self._idle: list[_Connection] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._knock = asyncio.ensure_future(self._wait_for_it())

    async def _wait_for_it(self) -> None:
        for count in range(1 << 30):
            try:
                self._idle.append(await self._connect())
            except ProcessLookupError:
                return  # its end is told by the channel
            except OSError:
                await asyncio.sleep(_POLLS[min(count, len(_POLLS) - 1)])
            else:
                self.ready.set_result(None)
                return

    async def _connect(self) -> _Connection:
        sock = await self._door.connect(self._spec.port)
        try:
            made = _Connection(*await asyncio.open_connection(sock=sock, limit=http.MAX_HEAD))
        except BaseException:
            sock.close()
            raise
        return made

    def submit(self, head: Head, body: bytes, timeout: float) -> Pending:
        """A task an invocation: it may wait at several places."""
        one = self.add(head, timeout)
        self._tasks[one.number] = task = asyncio.ensure_future(self._run(one, body))
        task.add_done_callback(lambda _: self._tasks.pop(one.number, None))
        return one

    def cancel(self, one: Pending) -> None:
        """Leave the connection: that is what HTTP has to say it."""
        if (task := self._tasks.get(one.number)) is not None:
            task.cancel()

    async def _run(self, one: Pending, body: bytes) -> None:
        connection = None
        try:
            method, request = _request(one.head, body, self._spec)
            connection, response = await self._exchange(method, request)
            keep = await self._answer(one, connection, response)
            if keep and self._intake is not None:
                connection.used = monotonic()
                self._idle.append(connection)
                connection = None
        except asyncio.CancelledError:
            self.fail(one, wire.STOPPED, "the invocation was cancelled")
        except http.Refused as refused:
            self.fail(one, wire.PROTOCOL_ERROR, refused.detail)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            await asyncio.wait((self._channel.ended,), timeout=0.2)  # if that is why, that is what is told
            if not self._channel.ended.done():
                self.fail(one, wire.PROTOCOL_ERROR, f"the program does not answer: {error or type(error).__name__}")
        finally:
            if connection is not None:
                connection.writer.transport.abort()

    async def _exchange(self, method: str, request: bytes) -> tuple[_Connection, http.Response]:
        """Send a request and read the head of its answer: again, if a kept connection had ended in between."""
        while True:
            kept = self._take(method)
            connection = kept or await self._connect()
            try:
                connection.writer.write(request)
                connection.hurry()
                for _ in range(_INFORMATION):
                    head = await connection.reader.readuntil(b"\r\n\r\n")
                    response = http.read_response(head, method.encode())
                    if response.status >= 200:
                        return connection, response
                    if response.status == 101:
                        raise http.Refused(502, "bad-answer", "the program switched protocols unasked")
                raise http.Refused(502, "bad-answer", "the program does not come to its answer")
            except (OSError, asyncio.IncompleteReadError) as error:
                connection.writer.transport.abort()
                if kept is None or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                    raise
            except BaseException:
                connection.writer.transport.abort()
                raise

    def _take(self, method: str) -> _Connection | None:
        now = monotonic()
        while self._idle:
            connection = self._idle.pop()
            usable = not connection.reader.at_eof() and not connection.writer.is_closing()
            if usable and (
                method.encode() in http.SAFE or now - connection.used < _FRESH_SECONDS or not connection.used
            ):
                return connection
            connection.writer.transport.abort()
        return None

    async def _answer(self, one: Pending, connection: _Connection, response: http.Response) -> bool:
        """Whether the connection can be kept."""
        event = one.head.http is None
        headers = [[raw.decode("latin-1"), value.decode("latin-1")] for name, raw, value in response.fields
                   if name.decode() not in _HOP and name != b"content-length"]  # fmt: skip
        head: dict[str, Any] = {"status": response.status, "headers": headers}
        length = response.length
        if event or 0 <= length <= WHOLE:
            data = await self._whole(connection, length)
            if data is None:
                failure = f"Response payload size exceeded maximum allowed payload size ({wire.MAX_BODY} bytes)."
                self.fail(one, wire.RESPONSE_TOO_LARGE, failure)
                return False
            if event and response.status >= 400:
                text = data[:1024].decode("utf-8", "replace")
                self.fail(one, wire.HTTP_ERROR, f"the program answered {response.status}: {text}")
            else:
                self.settle(one, Answer(body=data, head=None if event else head))
            return response.keep
        await self._pass(one, connection, head, length)
        return response.keep

    async def _whole(self, connection: _Connection, length: int) -> bytes | None:
        if length > wire.MAX_BODY:
            return None
        if length >= 0:
            return await connection.reader.readexactly(length)
        pieces, size, body = [], 0, body_of(length, framed=False)
        while not body.done:
            data = await connection.reader.read(_READ)
            if not data:
                break
            piece, _ = body.feed(data)
            pieces.append(piece)
            size += len(piece)
            if size > wire.MAX_BODY:
                return None
        if not body.done and length != http.UNTIL_CLOSE:
            raise EOFError("its answer broke off")
        return b"".join(pieces)

    async def _pass(self, one: Pending, connection: _Connection, head: dict[str, Any], length: int) -> None:
        body, more = body_of(length, framed=False), asyncio.Event()
        stream = self.open(one, head, lambda _: more.set(), lambda: self.cancel(one))
        while not body.done:
            data = await connection.reader.read(_READ)
            if not data:
                break
            piece, _ = body.feed(data)
            if piece:
                stream.feed(piece)
            while stream.held > wire.WINDOW:
                more.clear()
                await more.wait()
        if body.done or length == http.UNTIL_CLOSE:
            self.finish_stream(one)
        else:
            self.fail(one, wire.PROTOCOL_ERROR, "the program's answer broke off")

    def _raw(self, stream: int, data: bytes) -> None:
        self.printed(next(iter(self.pending.values())) if len(self.pending) == 1 else None, stream, data)

    def finish(self) -> None:
        """Connections and the channel are closed."""
        if self._intake is not None:
            self._intake.drain()
            self._intake.close()
            self._intake = None
            self._knock.cancel()
            for task in self._tasks.values():
                task.cancel()
            for connection in self._idle:
                connection.writer.transport.abort()
            self._idle.clear()
            self._channel.close()

    def last_words(self) -> None:
        """Of a program that has ended."""
        if self._intake is not None:
            self._broken(None)


def _request(head: Head, body: bytes, spec: FunctionSpec) -> tuple[str, bytes]:
    """(method, request). An event is posted to /invoke, as Function Compute does."""
    asked = head.http
    if asked is None:
        asked = {"method": "POST", "path": "/invoke", "headers": [["Content-Type", "application/json"]]}
    target = asked["path"] + (f"?{asked['query']}" if asked.get("query") else "")
    lines = [f"{asked['method']} {target} HTTP/1.1"]
    given = set()
    for name, value in asked.get("headers", ()):
        given.add(lower := name.lower())
        if lower not in _HOP and lower != "content-length":
            lines.append(f"{name}: {value}")
    if "host" not in given:
        lines.append(f"Host: localhost:{spec.port}")
    lines += [
        f"Content-Length: {len(body)}",
        f"X-Fc-Request-Id: {head.id}",
        f"X-Fc-Function-Name: {spec.name}",
        f"X-Fc-Function-Handler: {spec.handler}",
        f"X-Joey-Request-Id: {head.id}",
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise http.Refused(400, "bad-header", "a header has a line break in it")
    text = "\r\n".join(lines)
    return asked["method"], text.encode("latin-1", "replace") + b"\r\n\r\n" + body
