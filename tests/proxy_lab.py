"""A reverse proxy between real sockets of the loopback, and programs behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from joey.network.http_head import Refused
from joey.network.proxy import Proxy
from joey.testing.doors import FakeDoor

ID, OTHER = "0123456789abcdef01234567", "f" * 24
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Door(FakeDoor):
    """The way to this machine's loopback, in place of a sandbox's; counts."""

    def __init__(self) -> None:
        self.key, self.token = ("run", 1.0), None
        self.held = self.holds = self.made = 0

    async def connect(self, port: int) -> socket.socket:
        sock = await super().connect(port)
        self.made += 1
        return sock

    def hold(self) -> None:
        self.held += 1
        self.holds += 1

    def release(self) -> None:
        self.held -= 1


class Lab:
    def __init__(self, proxy: Proxy, door: Door, port: int, inner: int) -> None:
        self.proxy, self.door, self.port, self.inner = proxy, door, port, inner
        self.host = f"{inner}-{ID}.localhost:{port}".encode()
        self.faults: list[dict[str, Any]] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)

    def request(self, *lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"") -> bytes:
        return b"\r\n".join([first, b"Host: " + (host or self.host), *lines, b"", b""])

    async def ask(self, data: bytes) -> bytes:
        """Send, then read until the proxy closes."""
        reader, writer = await self.open()
        writer.write(data)
        found = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def lab(handler: Handler, **options: Any) -> AsyncIterator[Lab]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    door = Door()

    def find(id: str) -> Any:
        if id != ID:
            raise Refused(404, "not-found", f"no sandbox {id}")
        return door

    proxy = Proxy(find, **options)
    sock = socket.create_server(("127.0.0.1", 0))
    await proxy.serve(sock)
    made = Lab(proxy, door, sock.getsockname()[1], server.sockets[0].getsockname()[1])
    asyncio.get_running_loop().set_exception_handler(lambda _, context: made.faults.append(context))
    try:
        yield made
    finally:
        await proxy.close()
        server.close()
        await asyncio.sleep(0.005)
        assert not proxy.clients and not proxy.pool.count and not proxy.tasks
        assert door.held == 0
        assert made.faults == []


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its head."""
    while True:
        head = await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


def says(*pieces: bytes, stay: bool = False) -> Handler:
    """Answers the first request with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        if stay:
            await reader.read()

    return handle


def problem(data: bytes) -> tuple[int, str]:
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert document["status"] == int(head.split()[1])
    return document["status"], document["type"].removeprefix("/problems/")
