"""The reverse proxy: `http://PORT-ID.localhost:…` is port PORT of sandbox ID, of its own loopback.

One connection of a client is a Client, one to a program in a sandbox an Upstream (joey.network.proxy_upstream); a
request joins two of them. Heads are parsed and written anew (joey.network.http_head), bodies pass in pieces as they
come, at the pace of the slower side; after 101 all that comes passes. What a client sends beyond its request waits
until that is answered, so nothing reaches a sandbox that was not routed by its own head.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import socket
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from joey.network import http_head as http
from joey.network.http_body import Body, body
from joey.network.http_head import Refused, Request, Response
from joey.network.proxy_route import COOKIE, admit, place
from joey.network.proxy_upstream import Pool, Upstream, dial

HIGH_WATER = 128 << 10
"""Bytes that wait to be sent to one side before the other is not read any more."""
_AHEAD = 64 << 10
"""Bytes of a client's next request that are held."""
SWEEP = 1.0
_LINGER = 2.0
# A client that is gone, or does not read for five minutes (milliseconds, tcp(7)), is not waited for.
_TCP = (
    (socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 300_000),
)  # fmt: skip


class Door(Protocol):
    """The way into one sandbox that runs.

    key: of this run of it, so that no connection is used for another. token: what requests must carry, None for
    nothing. connect: a non-blocking connection to a port of its loopback; raises OSError. hold: it is in use until
    release.
    """

    @property
    def key(self) -> Hashable: ...
    @property
    def token(self) -> str | None: ...
    async def connect(self, port: int) -> socket.socket: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class State(enum.IntEnum):
    """What a client's connection is in."""

    HEAD = 0  # a request's head is awaited
    JOINING = 1  # the connection into the sandbox is being made
    BODY = 2  # the request's body passes
    ANSWER = 3  # all of the request has passed
    TUNNEL = 4
    LINGER = 5  # the last answer was sent; what still comes is thrown away
    CLOSED = 6


class Proxy:
    """find: the door of a sandbox by its whole id; raises Refused. suffixes: what may stand behind PORT-ID, in lower
    case. connections: at a time; of more the one that has been idle for longest goes, or the new one.
    """

    def __init__(
        self,
        find: Callable[[str], Door],
        suffixes: Sequence[str] = ("localhost",),
        *,
        connections: int = 2048,
        head_timeout: float = 10.0,
        idle_timeout: float = 75.0,
    ) -> None:
        self.find = find
        self.suffixes = tuple(suffix.lower().encode() for suffix in suffixes)
        self.connections, self.head_timeout, self.idle_timeout = connections, head_timeout, idle_timeout
        self.clients: dict[Client, None] = {}
        self.pool = Pool()
        self.tasks: set[asyncio.Task[None]] = set()
        self.requests = 0
        self.refused: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def serve(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: Client(self), sock=sock, backlog=1024))

    async def close(self) -> None:
        """End everything at once."""
        for server in self._servers:
            server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for client in list(self.clients):
            client.abort()
        self.pool.close()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.sleep(0)  # transports close in the loop's next turn
        for server in self._servers:
            await server.wait_closed()

    def took(self, client: Client) -> bool:
        """A new connection; False if there is no room for it."""
        if len(self.clients) >= self.connections:
            oldest = min((one for one in self.clients if one.state is State.HEAD), key=_since, default=None)
            if oldest is None:
                return False
            oldest.abort()
        self.clients[client] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)
        return True

    def _sweep(self) -> None:
        """Who is too slow with a head, or idle for too long, goes. One timer for all: a connection costs none."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for client in list(self.clients):
            client.sweep(now)
        self.pool.sweep(now)
        more = self.clients or self.pool.count
        self._sweeper = loop.call_later(SWEEP, self._sweep) if more else None

    def count(self, refused: Refused) -> None:
        """Something was refused."""
        self.refused[refused.code] = self.refused.get(refused.code, 0) + 1


def _since(client: Client) -> float:
    return client.since


class Client(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_answered", "_asked", "_door", "_held", "_key", "_method", "_out", "_peer", "_proxy", "_request", "_seen",
        "_task", "_writable", "buffer", "ended", "since", "state", "transport", "upstream",
    )  # fmt: skip

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.buffer = bytearray()
        self.state = State.HEAD
        self.since = asyncio.get_running_loop().time()
        self.upstream: Upstream | None = None
        self.transport: asyncio.Transport
        self._request: Request
        self._asked: Body
        self._door: Door | None = None
        self._key: tuple[Hashable, int] = ("", 0)
        self._held = False
        self._answered = False
        self.ended = False
        self._method = b""
        self._seen = 0
        self._out = b""
        self._peer = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = True

    # --- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._proxy.took(self):
            self.state = State.CLOSED
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only where the protocol is named
        for option, value in _TCP:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._peer = transport.get_extra_info("peername")[0].encode()

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is State.TUNNEL:
            assert self.upstream is not None
            self.upstream.transport.write(data)
        elif state is State.BODY:
            self._body(data)
        elif state is State.HEAD:
            if not self.buffer:
                self.since = asyncio.get_running_loop().time()
            self.buffer += data
            self._head()
        elif state < State.LINGER:
            self.buffer += data
            if len(self.buffer) > _AHEAD:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = True
        if self.state is State.TUNNEL and self.upstream is not None and not self.upstream.ended:
            with contextlib.suppress(OSError):
                self.upstream.transport.write_eof()
            return True  # the other direction goes on
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = State.CLOSED
        self._proxy.clients.pop(self, None)
        if self._task is not None:
            self._task.cancel()
        self._part(keep=False)

    def pause_writing(self) -> None:
        self._writable = False
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        if self.upstream is not None:
            self.upstream.transport.resume_reading()

    # --- the request -------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        buffer = self.buffer
        if buffer[:2] == b"\r\n":  # RFC 9112, 2.2: of clients that end a body with a line too many
            del buffer[:2]
        end = http.end_of(buffer, self._seen)
        if not end or end > http.MAX_HEAD:
            self._seen = len(buffer)
            if self._seen > http.MAX_HEAD:
                self.refuse(Refused(431, "head-too-large", f"the request's head is longer than {http.MAX_HEAD} bytes"))
            return
        self._seen, self._method = 0, b""
        head = bytes(buffer[:end])
        del buffer[:end]
        try:
            self._route(http.read_request(head))
        except Refused as refused:
            self.refuse(refused)

    def _route(self, request: Request) -> None:
        self._request, self._asked, self._answered = request, body(request.length), False
        self._method = request.method
        self._proxy.requests += 1
        id, port = place(request.host, self._proxy.suffixes)
        door = self._proxy.find(id)
        if door.token is not None:
            self._request, location = admit(request, door.token)
            if location:
                self._to_cookie(location, door.token)
                return
        self._door, self._key = door, (door.key, port)
        self._out = http.write_request(self._request, self._forwarded(), _OURS)
        upstream = self._proxy.pool.take(self._key, asyncio.get_running_loop().time(), request.again)
        if upstream is not None:
            self._join(upstream)
        else:
            self._dial()

    def _forwarded(self) -> list[bytes]:
        chain, proto = self._peer, b"http"
        for name, _, value in self._request.fields:
            if name == b"x-forwarded-for":
                chain = value + b", " + self._peer
            elif name == b"x-forwarded-proto":
                proto = value
        return [
            b"X-Forwarded-For: " + chain, b"X-Forwarded-Host: " + self._request.host, b"X-Forwarded-Proto: " + proto,
            b"Via: 1.1 joey",
        ]  # fmt: skip

    def _dial(self) -> None:
        self.state = State.JOINING
        self._task = asyncio.get_running_loop().create_task(self._connect())
        self._proxy.tasks.add(self._task)
        self._task.add_done_callback(self._proxy.tasks.discard)

    async def _connect(self) -> None:
        door, (_, port) = self._door, self._key
        assert door is not None
        try:
            upstream = await dial(door.connect, port, self._key)
        except Refused as refused:
            self._task = None
            self.refuse(refused)
            return
        self._task = None
        if self.state is not State.JOINING:
            upstream.transport.abort()
            return
        self._join(upstream)

    def _join(self, upstream: Upstream) -> None:
        self.upstream = upstream
        if not self._held and self._door is not None:
            self._held = True
            self._door.hold()
        upstream.begin(self, self._request)
        if not self._writable:
            upstream.transport.pause_reading()
        if self._asked.done:
            self.state = State.ANSWER
            upstream.transport.write(self._out)
            return
        self.state = State.BODY
        waiting = bytes(self.buffer)
        self.buffer.clear()
        self.transport.resume_reading()
        self._body(waiting, self._out)

    def _body(self, data: bytes, head: bytes = b"") -> None:
        self.since = asyncio.get_running_loop().time()
        try:
            out, rest = self._asked.feed(data)
        except Refused as refused:
            self.refuse(refused)
            return
        if (head or out) and self.upstream is not None:
            self.upstream.transport.write(head + out if head else out)
        if self._asked.done:
            self.buffer += rest
            self.state = State.ANSWER

    # --- the answer --------------------------------------------------------------------------------------------------

    def answer(self, response: Response) -> tuple[bytes, Body]:
        """The upstream has a final head, or 101: what to send for it, and the body to pass what follows through.
        Raises Refused.
        """
        if response.status == 101 and not self._asked.done:
            raise Refused(502, "bad-answer", "the program in the sandbox switched protocols within the request")
        close = not self._request.keep or response.length == http.UNTIL_CLOSE or not self._asked.done
        chunked = response.length == http.CHUNKED and not self._request.old
        self._answered = True
        head = http.write_response(response, chunked=chunked, close=close)
        if response.status == 101:
            self.state = State.TUNNEL
            if self.buffer and self.upstream is not None:
                self.upstream.transport.write(bytes(self.buffer))
                self.buffer.clear()
            self.transport.resume_reading()
        self._request = self._request._replace(keep=not close)
        return head, body(response.length, not self._request.old)

    def inform(self, response: Response) -> None:
        """A head that is not the last (100, 103): passed on to who knows of such."""
        if not self._request.old:
            self.transport.write(http.write_response(response, chunked=False, close=False))

    def answered(self, keep: bool) -> None:
        """The whole answer has passed. keep: the upstream can serve another."""
        whole = self._asked.done and self.state is State.ANSWER
        self._part(keep=keep and whole)
        if not whole or not self._request.keep:
            self._linger()
            return
        self.state = State.HEAD
        self.since = asyncio.get_running_loop().time()
        self.transport.resume_reading()
        if self.buffer:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self.state is State.HEAD:
            self._head()

    def lost(self, refused: Refused | None, again: bool) -> None:
        """The upstream has gone before its answer was whole. again: it was kept from before and said nothing at all."""
        upstream, self.upstream = self.upstream, None
        if again and self._request.again and self.state is State.ANSWER:
            self._dial()
        elif not self._answered:
            self.refuse(refused or Refused(502, "no-answer", "the program in the sandbox closed without an answer"))
        elif upstream is not None and upstream.tunnel:
            self._part(keep=False)
            self.state = State.CLOSED
            self.transport.close()
        else:
            self._part(keep=False)
            self.transport.abort()  # what was sent is no whole answer, and must not look like one

    # --- the end -----------------------------------------------------------------------------------------------------

    def refuse(self, refused: Refused) -> None:
        """Answer with a problem document (RFC 9457), then close. After a part of an answer: close."""
        self._proxy.count(refused)
        if self._answered or self.state >= State.TUNNEL:
            self.abort()
            return
        self._part(keep=False)
        document = {"type": f"/problems/{refused.code}", "title": http_title(refused.status), "status": refused.status}
        data = json.dumps(document | {"detail": refused.detail}).encode() + b"\n"
        more = [b"Content-Type: application/problem+json", b"Cache-Control: no-store"]
        if refused.status == 503:
            more.append(b"Retry-After: 1")
        self._last(refused.status, more, data)

    def _to_cookie(self, location: str, token: str) -> None:
        cookie = b"Set-Cookie: %b=%b; Path=/; HttpOnly; SameSite=Lax" % (COOKIE, token.encode())
        self._last(303, [b"Location: " + location.encode("latin-1"), cookie, b"Cache-Control: no-store"], b"")

    def _last(self, status: int, lines: list[bytes], data: bytes) -> None:
        first = b"HTTP/1.1 %d %b" % (status, http_title(status).encode())
        head = [first, *lines, b"Content-Length: %d" % len(data), b"Connection: close", b"\r\n"]
        self.transport.write(b"\r\n".join(head) + (b"" if self._method == b"HEAD" else data))
        self._linger()

    def _linger(self) -> None:
        """Close so that the client gets all of what was sent: a reset, for what it still sends, would destroy it."""
        self.state = State.LINGER
        self.since = asyncio.get_running_loop().time()
        self.buffer.clear()
        self.transport.resume_reading()
        with contextlib.suppress(OSError):
            self.transport.write_eof()

    def abort(self) -> None:
        """End at once."""
        self.state = State.CLOSED
        self.transport.abort()

    def _part(self, *, keep: bool) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            if not self._writable and keep:
                upstream.transport.resume_reading()
            upstream.end()
            if keep:
                self._proxy.pool.put(upstream, asyncio.get_running_loop().time())
            elif upstream.tunnel:
                upstream.transport.close()
            else:
                upstream.transport.abort()
        if self._held and self._door is not None:
            self._held = False
            self._door.release()
        self._door = None

    def sweep(self, now: float) -> None:
        """Of the proxy's timer."""
        quiet = now - self.since
        if self.state is State.HEAD:
            if self.buffer:
                if quiet > self._proxy.head_timeout:
                    self.refuse(Refused(408, "timeout", "the request's head did not come in time"))
            elif quiet > self._proxy.idle_timeout:
                self.transport.close()
        elif self.state is State.BODY and quiet > self._proxy.idle_timeout and self._writing():
            self.refuse(Refused(408, "timeout", "the request's body did not come in time"))
        elif self.state is State.LINGER and quiet > _LINGER and not self.transport.get_write_buffer_size():
            self.abort()
        elif self.state is State.LINGER and quiet > self._proxy.idle_timeout:
            self.abort()

    def _writing(self) -> bool:
        """Whether it is the client that is slow, not the sandbox; and nothing is answered yet."""
        waits = self.upstream is not None and self.upstream.transport.get_write_buffer_size() > 0
        return not self._answered and not waits


_OURS = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_TITLES = {
    303: "See Other", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 431: "Request Header Fields Too Large", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


def http_title(status: int) -> str:
    """The phrase of a status that the proxy itself gives."""
    return _TITLES.get(status, "Error")
