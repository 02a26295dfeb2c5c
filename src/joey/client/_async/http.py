"""HTTP/1.1 as far as our engine speaks it: kept connections, bodies of known length or in chunks, upgrades."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator

from joey.client._async.net import Wire, connect
from joey.client.endpoint import Endpoint
from joey.client.errors import ConnectionLost
from joey.model import frames

_MAX_HEAD = 1 << 16
_JOINED = 1 << 16  # a body up to here goes out with its head in one call of the kernel
_KEPT = 64

Body = bytes | AsyncIterable[bytes]


class Response:
    """An answer whose body has not been read: `read` it whole, take its `pieces`, or `close`."""

    def __init__(self, http: Http, wire: Wire, status: int, headers: dict[str, str], rest: bytearray) -> None:
        self.status = status
        self.headers = headers
        self._http, self._wire, self._buffer = http, wire, rest

    async def read(self) -> bytes:
        """The whole body. Raises ConnectionLost if it is cut off."""
        length = self.headers.get("content-length")
        missing = -1 if length is None else int(length) - len(self._buffer)
        if missing >= 0:
            data = bytes(self._buffer)
            self._buffer.clear()
            if missing:  # else, as most of the time, it came with the head
                data += await self._rest(missing)
            self._keep()
            return data
        pieces = [piece async for piece in self.pieces()]
        return b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Leaving early drops the connection. Raises ConnectionLost if it is cut off."""
        whole = False
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                async for piece in self._chunks():
                    yield piece
            else:
                length = self.headers.get("content-length")
                if self.status in (204, 304):
                    length = "0"
                async for piece in self._exactly(None if length is None else int(length)):
                    yield piece
            whole = True
        finally:
            if whole:
                self._keep()
            else:
                self.close()

    async def _rest(self, count: int) -> bytes:
        data = b""
        try:
            data = await self._wire.recv_exactly(count)
        finally:
            if len(data) < count:
                self.close()
        if len(data) < count:
            raise ConnectionLost("", "the engine closed the connection in the middle of its answer")
        return data

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines, without their ends."""
        buffer = bytearray()
        async for piece in self.pieces():
            buffer += piece
            if b"\n" not in piece:
                continue
            *whole, last = bytes(buffer).split(b"\n")
            buffer = bytearray(last)
            for line in whole:
                if line:
                    yield line
        if buffer:
            yield bytes(buffer)

    def take(self) -> tuple[Wire, bytes]:
        """The connection itself and what was read of it, after a 101."""
        return self._wire, bytes(self._buffer)

    def close(self) -> None:
        """Drop it, and with it the connection."""
        self._wire.close()

    def _keep(self) -> None:
        if self.headers.get("connection", "").lower() == "close" or self._buffer or self.status == 101:
            self._wire.close()
        else:
            self._http.keep(self._wire)

    async def _fill(self) -> None:
        data = await self._wire.recv()
        if not data:
            raise ConnectionLost("", "the engine closed the connection in the middle of its answer")
        self._buffer += data

    async def _exactly(self, count: int | None) -> AsyncIterator[bytes]:
        while count is None or count > 0:
            if self._buffer:
                piece = bytes(self._buffer if count is None else self._buffer[:count])
                del self._buffer[: len(piece)]
            else:
                piece = await self._wire.recv()
                if not piece and count is None:
                    return  # it ends with the connection
                if not piece:
                    raise ConnectionLost("", "the engine closed the connection in the middle of its answer")
                if count is not None and len(piece) > count:
                    self._buffer += piece[count:]
                    piece = piece[:count]
            if count is not None:
                count -= len(piece)
            yield piece

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise ConnectionLost("", "the answer is not HTTP")
            await self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            text = (await self._line()).partition(b";")[0].strip()
            if not text or text.strip(b"0123456789abcdefABCDEF"):
                raise ConnectionLost("", "the engine's answer is cut off")
            count = int(text, 16)
            async for piece in self._exactly(count):
                yield piece
            if await self._line() and count:
                raise ConnectionLost("", "the engine's answer is cut off")
            if not count:
                return


class Http:
    """Connections to one engine."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._common = endpoint.headers
        self._idle: deque[Wire] = deque()

    async def send(self, method: str, path: str, body: Body = b"", headers: str = "") -> Response:
        """Send a request and return its answer, whatever its status.

        Raises Unreachable if nothing was sent, ConnectionLost if the answer did not come.
        """
        wire = await self._wire()
        try:
            if isinstance(body, (bytes, bytearray, memoryview)):
                await self._send_bytes(wire, f"{method} {path} HTTP/1.1\r\n{self._common}{headers}", bytes(body))
            else:
                head = f"{method} {path} HTTP/1.1\r\n{self._common}{headers}Transfer-Encoding: chunked\r\n\r\n"
                await wire.send(head.encode())
                if (early := await self._send_chunks(wire, body)) is not None:
                    return early
            return await self._answer(wire)
        except BaseException:
            wire.close()
            raise

    async def _send_bytes(self, wire: Wire, head: str, body: bytes) -> None:
        if not body:
            await wire.send(f"{head}Content-Length: 0\r\n\r\n".encode())
            return
        start = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
        if len(body) <= _JOINED:
            await wire.send(start + body)
            return
        await wire.send(start)
        try:
            await wire.send(body)
        except ConnectionLost:
            pass  # it may have answered before it read everything; if not, reading says so

    async def _send_chunks(self, wire: Wire, body: AsyncIterable[bytes]) -> Response | None:
        """The answer, if it came before the body was sent."""
        async for piece in body:
            if not piece:
                continue
            try:
                await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            except ConnectionLost:
                return await self._answer(wire)
        await wire.send(b"0\r\n\r\n")
        return None

    def keep(self, wire: Wire) -> None:
        """Take back a connection whose answer has been read."""
        if len(self._idle) < _KEPT:
            self._idle.append(wire)
        else:
            wire.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def _wire(self) -> Wire:
        while True:
            try:
                wire = self._idle.pop()  # the last one used: its end is the likeliest to be open
            except IndexError:
                return await connect(self.endpoint)
            if wire.alive():
                return wire
            wire.close()

    async def _answer(self, wire: Wire) -> Response:
        buffer = bytearray()
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > _MAX_HEAD:
                raise ConnectionLost("", "the answer is not HTTP")
            data = await wire.recv()
            if not data:
                raise ConnectionLost("", "the engine closed the connection without an answer")
            buffer += data
        first, *lines = buffer[:end].decode("latin-1").split("\r\n")
        del buffer[: end + 4]
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise ConnectionLost("", "the answer is not HTTP")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Response(self, wire, int(words[1]), headers, buffer)


class Frames:
    """A connection that has become a stream of frames (joey.model.frames). Output pulled, input within its window."""

    def __init__(self, wire: Wire, rest: bytes) -> None:
        self._wire, self._rest = wire, rest
        self._decoder = frames.Decoder()
        self.credit = frames.WINDOW
        self.ended = False

    async def receive(self, seconds: float | None = None) -> list[tuple[int, bytes]]:
        """The next (kind, payload)s; none if only credit came, or nothing within `seconds`. Raises ConnectionLost at
        an early end.
        """
        while True:
            data, self._rest = self._rest, b""
            if not data:
                came = await (self._wire.recv() if seconds is None else self._wire.recv_within(seconds))
                if came is None:
                    return []
                data = came
            if not data:
                raise ConnectionLost("", "the engine closed the connection before the command ended")
            try:
                found = [(kind, piece) for kind, piece, _ in self._decoder.pieces(data)]
            except frames.Damaged as error:
                raise ConnectionLost("", f"the engine's stream is damaged: {error}") from None
            given = [piece for kind, piece in found if kind == frames.CREDIT]
            if given:
                self.credit += sum(int.from_bytes(piece, "big") for piece in given)
                found = [one for one in found if one[0] != frames.CREDIT]
            if found or given:
                return found

    async def send(self, data: bytes) -> None:
        """Whole frames. Raises ConnectionLost."""
        await self._wire.send(data)

    async def feed(self, data: memoryview) -> int:
        """Send as much of `data` as input as the window has room for; how much that was."""
        count = min(len(data), self.credit, frames.MAX_PAYLOAD)
        if count:
            self.credit -= count
            await self._wire.send(frames.frame(frames.STDIN, bytes(data[:count])))
        return count

    def close(self) -> None:
        """Leave; the command goes on. May be called twice."""
        self.ended = True
        self._wire.close()
