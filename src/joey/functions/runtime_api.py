"""AWS Lambda's Runtime API (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html): programs of any language
ask for work on 127.0.0.1:9001 of their own network. The socket is made there and served here, so a sandbox without any
network has it, and nobody else can reach it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from joey.functions import wire
from joey.functions.intake import Intake
from joey.functions.wire import Answer, Failure, Head
from joey.functions.work import HELD, LogSink, Pending, Work
from joey.host import netns
from joey.model.errors import Conflict, Unenforceable, from_os
from joey.model.function import ACCOUNT, REGION, Version
from joey.network import http_head as http
from joey.network.http_body import body as body_of

if TYPE_CHECKING:
    from joey.engine.channels import Channel

PORT = 9001
ADDRESS = f"127.0.0.1:{PORT}"
_BASE = "/2018-06-01/runtime/"
_READ = 64 << 10
_SPARE_CONNECTIONS = 8
"""Beyond one for each invocation at once."""
_PENALTY = 0.02
"""Seconds that a request to no purpose takes, or a connection without a request: that is what a flood is made of."""
_STREAMING = b"lambda-runtime-function-response-mode"


class RuntimeApi(Work):
    """What one sandbox's program asks of us."""

    def __init__(
        self,
        log: LogSink | None,
        overdue: Callable[[Pending], None],
        broken: Callable[[Failure | None], None],
        version: Version,
    ) -> None:
        super().__init__(log, overdue, broken)
        self._version = version
        self._waiting: deque[tuple[Pending, bytes]] = deque()
        self._askers: deque[asyncio.Future[None]] = deque()
        self._given: dict[str, Pending] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(version.spec.concurrency + _SPARE_CONNECTIONS)
        self._listener: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._intake: Intake | None = None
        self._open = True

    async def listen(self, pid: int) -> None:
        """Serve in the network of `pid`, before the program is there. Raises JoeyError."""
        try:
            sock = await netns.listen(pid, "127.0.0.1", PORT)
        except ProcessLookupError as error:
            raise Conflict("state", "the sandbox has just ended") from error
        except PermissionError as error:
            reason = "the Runtime API needs a network of the function's own"
            raise Unenforceable("network", reason, "another network than the host's") from error
        except OSError as error:
            raise from_os("listen for the Runtime API", error) from error
        self._listener = asyncio.ensure_future(self._accept(sock))

    def attend(self, channel: Channel) -> None:
        """The program has been started."""
        self._channel = channel
        self._intake = Intake({channel.out: wire.STDOUT, channel.err: wire.STDERR}, self._raw)

    def submit(self, head: Head, body: bytes, timeout: float) -> Pending:
        """It is given to who asks next."""
        one = self.add(head, timeout)
        self._waiting.append((one, body))
        self._wake()
        return one

    def cancel(self, one: Pending) -> None:
        """The Runtime API has no word for it, but what was given to nobody yet is given to nobody."""
        for entry in self._waiting:
            if entry[0] is one:
                self._waiting.remove(entry)
                self.fail(one, wire.STOPPED, "the invocation was cancelled")
                return

    def _wake(self) -> None:
        while self._askers:
            asker = self._askers.popleft()
            if not asker.done():
                asker.set_result(None)
                return

    # --- connections -------------------------------------------------------------------------------------------------

    async def _accept(self, sock: socket.socket) -> None:
        """Connections beyond those there is room for wait in the kernel."""
        with sock:
            while True:
                await self._room.acquire()
                connection, _ = await self._loop.sock_accept(sock)
                connection.setblocking(False)
                task = asyncio.ensure_future(self._connected(connection))
                self._connections.add(task)
                task.add_done_callback(partial(self._left, connection))

    def _left(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._room.release()
        if task.cancelled():
            connection.close()  # it may not have begun

    async def _connected(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=http.MAX_HEAD)
        useful = False
        try:
            while await self._request(reader, writer):
                useful = True
        except http.Refused as refused:
            writer.write(_answer(refused.status, _problem(refused.code, refused.detail), close=True))
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # it is its connection
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
        if not useful:
            await asyncio.sleep(_PENALTY)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one; whether another may come."""
        request = http.read_request(await reader.readuntil(b"\r\n\r\n"))
        path = request.target.decode("latin-1").partition("?")[0]
        if any(name == b"expect" for name, _, _ in request.fields):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        what = path.removeprefix(_BASE).split("/") if path.startswith(_BASE) else []
        match [request.method.decode(), *what]:
            case ["GET", "invocation", "next"]:
                return await self._next(reader, writer)
            case ["POST", "invocation", id, "response"]:
                answer = await self._response(id, request, reader)
            case ["POST", "invocation", id, "error"]:
                answer = self._error(id, await _read(request, reader), request)
            case ["POST", "init", "error"]:
                answer = self._init_error(await _read(request, reader), request)
            case _:
                await _read(request, reader)
                answer = _answer(404, _problem("NotFound", "the Runtime API has no such path"))
        if answer is not _ACCEPTED:
            await asyncio.sleep(_PENALTY)
        writer.write(answer)
        await writer.drain()
        return request.keep

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if not self.ready.done():
            self.ready.set_result(None)
        while not self._waiting:
            asker: asyncio.Future[None] = self._loop.create_future()
            self._askers.append(asker)
            await asker
        if reader.at_eof() or writer.is_closing():
            self._wake()  # somebody else may have it
            return False
        one, body = self._waiting.popleft()
        self._given[one.head.id] = one
        head, left = one.head, max(0.0, one.due - time.monotonic())
        spec = self._version.spec
        arn = head.arn or f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{spec.name}"
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"Lambda-Runtime-Aws-Request-Id: {head.id}",
            f"Lambda-Runtime-Deadline-Ms: {int((time.time() + left) * 1000)}",
            f"Lambda-Runtime-Invoked-Function-Arn: {arn}",
            f"Lambda-Runtime-Trace-Id: {head.trace or 'Root=1-00000000-000000000000000000000000;Sampled=0'}",
        ]
        if head.client_context is not None:
            lines.append(f"Lambda-Runtime-Client-Context: {msgspec.json.encode(head.client_context).decode('latin-1')}")
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await writer.drain()
        return True

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _response(self, id: str, request: http.Request, reader: asyncio.StreamReader) -> bytes:
        one = self._given.get(id)
        streams = any(name == _STREAMING and value.lower() == b"streaming" for name, _, value in request.fields)
        if one is not None and streams and one.head.stream and one.number in self.pending:
            await self._stream(one, request, reader)
            self._given.pop(id, None)
            return _ACCEPTED
        body = await _read(request, reader)
        one = self._given.pop(id, None)
        if one is None:
            return _answer(400, _problem("InvalidRequestID", "this invocation was not given to you, or is answered"))
        self._drain()
        if body is None:
            reason = f"Response payload size exceeded maximum allowed payload size ({wire.MAX_BODY} bytes)."
            self.fail(one, wire.RESPONSE_TOO_LARGE, reason)
            return _answer(413, _problem("RequestEntityTooLarge", reason))
        self.settle(one, Answer(body=body))
        return _ACCEPTED

    async def _stream(self, one: Pending, request: http.Request, reader: asyncio.StreamReader) -> None:
        kind = next((value.decode("latin-1") for name, _, value in request.fields if name == b"content-type"), "")
        body, more = body_of(request.length, framed=False), asyncio.Event()
        stream = self.open(one, {"content_type": kind}, lambda _: more.set(), more.set)
        while not body.done:
            data = await reader.read(_READ)
            if not data:
                self.fail(one, wire.PROTOCOL_ERROR, "the answer broke off")
                raise EOFError
            piece, _ = body.feed(data)
            if piece and stream.open:
                stream.feed(piece)
            while stream.held > HELD and stream.open:
                more.clear()
                await more.wait()
        self._drain()
        self.finish_stream(one)

    def _error(self, id: str, body: bytes | None, request: http.Request) -> bytes:
        one = self._given.pop(id, None)
        if one is None:
            return _answer(400, _problem("InvalidRequestID", "this invocation was not given to you, or is answered"))
        self._drain()
        self.refuse(one, _failure(body, request, one.head.id))
        return _ACCEPTED

    def _init_error(self, body: bytes | None, request: http.Request) -> bytes:
        failure = _failure(body, request, "")
        if not self.ready.done():
            self._loop.call_soon(self._broken, failure)
        return _ACCEPTED

    # --- output, and the end -----------------------------------------------------------------------------------------

    def _raw(self, stream: int, data: bytes) -> None:
        self.printed(next(iter(self.pending.values())) if len(self.pending) == 1 else None, stream, data)

    def _drain(self) -> None:
        if self._intake is not None:
            self._intake.drain()

    def finish(self) -> None:
        """Nobody is served any more."""
        if not self._open:
            return
        self._open = False
        for task in (self._listener, *self._connections):
            if task is not None:
                task.cancel()
        if self._intake is not None and self._channel is not None:
            self._intake.drain()
            self._intake.close()
            self._channel.close()

    def last_words(self) -> None:
        """Of a program that has ended."""
        if self._open:
            self._broken(None)


async def _read(request: http.Request, reader: asyncio.StreamReader) -> bytes | None:
    """All of a body; None if it is longer than an answer may be (it is read all the same, up to twice that)."""
    body = body_of(request.length, framed=False)
    pieces, size = [], 0
    while not body.done:
        data = await reader.read(_READ)
        if not data:
            raise EOFError
        piece, _ = body.feed(data)
        size += len(piece)
        if size <= wire.MAX_BODY:
            pieces.append(piece)
        elif size > 4 * wire.MAX_BODY:
            raise http.Refused(413, "RequestEntityTooLarge", "far more than an answer may be")
    return b"".join(pieces) if size <= wire.MAX_BODY else None


def _failure(body: bytes | None, request: http.Request, id: str) -> Failure:
    """What a runtime says of an error: JSON of the form it should have, or whatever it sent."""
    named = next((v.decode("latin-1") for name, _, v in request.fields if name == _ERROR_TYPE), "")
    try:
        said: Any = msgspec.json.decode(body or b"{}")
    except (msgspec.MsgspecError, RecursionError):
        said = {"errorMessage": (body or b"")[:4096].decode("utf-8", "replace")}
    if not isinstance(said, dict):
        said = {"errorMessage": str(said)}
    type = said.get("errorType") or named or "Runtime.Unknown"
    return wire.said(type, said.get("errorMessage") or "", said.get("stackTrace"), id)


_ERROR_TYPE = b"lambda-runtime-function-error-type"


def _problem(type: str, message: str) -> bytes:
    return msgspec.json.encode({"errorType": type, "errorMessage": message})


def _answer(status: int, body: bytes, *, close: bool = False) -> bytes:
    more = "Connection: close\r\n" if close else ""
    head = f"HTTP/1.1 {status} {'Accepted' if status == 202 else 'Error'}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{more}\r\n".encode() + body


_ACCEPTED = _answer(202, b'{"status":"OK"}')
