"""Connections of the reverse proxy to programs in sandboxes: one, and those kept for the next request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING

from joey.network import http_head as http
from joey.network.http_body import Body, Endless
from joey.network.http_head import Refused, Request

if TYPE_CHECKING:
    from joey.network.proxy import Client

Key = tuple[Hashable, int]
"""(one run of a sandbox, port)"""
CONNECT_SECONDS = 5.0
_INFORMATION = 16
"""Heads before the last (100, 103) that an answer may have."""
_KEPT = 32
_KEPT_IN_ALL = 512
_KEPT_SECONDS = 15.0
_FRESH_SECONDS = 0.5
"""A request that cannot be asked twice takes a kept connection only so soon after its last use."""


class Upstream(asyncio.Protocol):
    """One connection. Between requests it has no client, and whatever comes then ends it."""

    __slots__ = (
        "_body", "_buffer", "_client", "_information", "_keep", "_request", "_seen", "ended", "key", "transport",
        "tunnel", "used",
    )  # fmt: skip

    def __init__(self, key: Key) -> None:
        self.key = key
        self.used = 0.0
        """When it was put aside last; 0 for one that is new."""
        self.ended = False
        """Nothing comes from it any more."""
        self.tunnel = False
        self._keep = False
        self.transport: asyncio.Transport
        self._client: Client | None = None
        self._request: Request
        self._body: Body | None = None
        self._buffer = bytearray()
        self._seen = False
        self._information = 0

    def begin(self, client: Client, request: Request) -> None:
        """Serve one request."""
        self._client, self._request, self._body = client, request, None
        self._seen, self._information = False, 0

    def end(self) -> None:
        """It is the client's no more."""
        self._client = None

    def gone(self) -> bool:
        """Whether a kept one has ended, even if the loop has not looked yet."""
        if self.ended or self.transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=128 << 10)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        client = self._client
        if client is None:
            self.transport.abort()
            return
        self._seen = True
        try:
            if self._body is None:
                self._buffer += data
                self._heads(client)
            else:
                self._pass(client, data)
        except Refused as refused:
            refused.status = 502
            self._fail(refused)

    def _acknowledge(self) -> None:
        """At once: of a program that sends head and body apart the kernel keeps the second back until then (Nagle),
        which would take 40 ms (tcp(7), TCP_QUICKACK).
        """
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _heads(self, client: Client) -> None:
        while self._client is client and self._body is None:
            end = http.end_of(self._buffer)
            if not end or end > http.MAX_HEAD:
                if len(self._buffer) > http.MAX_HEAD:
                    raise Refused(502, "bad-answer", f"the answer's head is longer than {http.MAX_HEAD} bytes")
                return
            head = bytes(self._buffer[:end])
            del self._buffer[:end]
            response = http.read_response(head, self._request.method)
            if response.status < 200 and response.status != 101:
                self._information += 1
                if self._information > _INFORMATION:
                    raise Refused(502, "bad-answer", "the program in the sandbox does not come to its answer")
                client.inform(response)
                continue
            if response.status == 101:
                if not self._request.upgrade:
                    raise Refused(502, "bad-answer", "the program in the sandbox switched protocols unasked")
                self.tunnel = True
                response = response._replace(length=http.UNTIL_CLOSE, keep=False)
            rest = bytes(self._buffer)
            self._buffer.clear()
            self._keep = response.keep
            head, self._body = client.answer(response)
            self._pass(client, rest, head)
            if self._client is client:
                self._acknowledge()

    def _pass(self, client: Client, data: bytes, head: bytes = b"") -> None:
        assert self._body is not None
        out, rest = self._body.feed(data) if data else (b"", b"")
        if head or out:
            client.transport.write(head + out if head else out)  # in one: each is a packet
        if self._body.done:
            # What comes behind its end is nobody's: such a connection is not used again.
            client.answered(self._keep and not rest and not self._request.upgrade and not self.transport.is_closing())

    def _fail(self, refused: Refused | None) -> None:
        client, self._client = self._client, None
        self.transport.abort()
        if client is not None:
            client.lost(refused, False)

    def eof_received(self) -> bool:
        self.ended = True
        if self._client is None or not self.tunnel or self._client.ended:
            return False  # closes it, when what is to be sent has been
        with contextlib.suppress(OSError):
            self._client.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        client, self._client = self._client, None
        if client is None:
            return
        if isinstance(self._body, Endless) and exc is None and not self.tunnel:
            client.answered(False)
        else:
            client.lost(None, not self._seen and self.used > 0)

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.transport.resume_reading()


class Pool:
    """Connections kept for the next request to the same port of the same run of a sandbox."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: dict[Key, list[Upstream]] = {}

    def take(self, key: Key, now: float, again: bool) -> Upstream | None:
        """The one used last, if any is alive. again: the request can be asked twice."""
        kept = self._kept.get(key)
        while kept:
            upstream = kept.pop()
            self.count -= 1
            if not kept:
                del self._kept[key]
            if upstream.gone():
                upstream.transport.abort()
                continue
            if not again and now - upstream.used > _FRESH_SECONDS:
                upstream.transport.abort()
                continue
            return upstream
        return None

    def put(self, upstream: Upstream, now: float) -> None:
        """Keep it, if there is room."""
        kept = self._kept.setdefault(upstream.key, [])
        if len(kept) >= _KEPT or self.count >= _KEPT_IN_ALL:
            upstream.transport.abort()
            if not kept:
                del self._kept[upstream.key]
            return
        upstream.used = now
        kept.append(upstream)
        self.count += 1

    def sweep(self, now: float) -> None:
        """Close what was not used for a while, or was closed by the other side."""
        for key in list(self._kept):
            fresh = []
            for upstream in self._kept[key]:
                if upstream.ended or now - upstream.used > _KEPT_SECONDS:
                    upstream.transport.abort()
                    self.count -= 1
                else:
                    fresh.append(upstream)
            if fresh:
                self._kept[key] = fresh
            else:
                del self._kept[key]

    def close(self) -> None:
        """Close all."""
        for kept in self._kept.values():
            for upstream in kept:
                upstream.transport.abort()
        self._kept.clear()
        self.count = 0


async def dial(connect: Callable[[int], Awaitable[socket.socket]], port: int, key: Key) -> Upstream:
    """A new connection. Raises Refused."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await connect(port)
    except TimeoutError:
        raise Refused(502, "port-closed", f"port {port} of the sandbox does not answer") from None
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise Refused(503, "busy", "no descriptor is left for another connection") from None
        detail = f"nothing listens on port {port} in the sandbox" if error.errno == errno.ECONNREFUSED else str(error)
        raise Refused(502, "port-closed", detail) from None
    try:
        _, upstream = await asyncio.get_running_loop().create_connection(lambda: Upstream(key), sock=sock)
    except OSError as error:
        sock.close()
        raise Refused(502, "port-closed", f"port {port} of the sandbox: {error.strerror}") from None
    return upstream
