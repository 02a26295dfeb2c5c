"""The reverse proxy into real sandboxes: their own loopback, whatever their network is, and nothing of the host's."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from joey.api.config import Settings
from joey.api.doorway import PORT_FILE, Doorway
from joey.engine.supervisor import Engine
from joey.host import netns
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.spec import Process, SandboxSpec

SERVE = """
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        data = socket.gethostname().encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def log_message(self, *a): pass
server = Server((sys.argv[1], int(sys.argv[2])), Handler)
print("up", flush=True)
server.serve_forever()
"""


class Lab:
    def __init__(self, engine: Engine, doorway: Doorway) -> None:
        self.engine, self.doorway = engine, doorway
        self.host = ""

    async def start(self, address: str = "127.0.0.1", port: int = 8000, **spec: object) -> str:
        """A sandbox whose server is up; its id."""
        program = Process(argv=("python3", "-c", SERVE, address, str(port)))
        values = {"image": "host", "process": program, "hostname": "inside"} | spec
        started = await self.engine.run(SandboxSpec(**values), attach=True)  # type: ignore[arg-type]
        assert started.attachment is not None
        assert await asyncio.wait_for(started.attachment.read(), 10) == (1, b"up\n")
        await started.attachment.close()
        self.host = (await self.doorway.host(started.sandbox.id, port)).host
        return started.sandbox.id

    async def ask(self, *lines: bytes, host: str = "") -> tuple[int, bytes]:
        """GET /; status and body."""
        host = host or self.host
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.host.partition(":")[2]))
        writer.write(
            b"\r\n".join([b"GET / HTTP/1.1", b"Host: " + host.encode(), b"Connection: close", *lines, b"", b""])
        )
        data = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        said, _, body = data.partition(b"\r\n\r\n")
        return int(said.split()[1]), body

    async def kind(self, *lines: bytes, host: str = "") -> tuple[int, str]:
        """Status and kind of a problem."""
        status, body = await self.ask(*lines, host=host)
        return status, json.loads(body)["type"].removeprefix("/problems/")


def drive(home: Path, work: Callable[[Lab], Awaitable[None]], **settings: object) -> None:
    async def main() -> None:
        engine = Engine(Instance.open(home), slots=4)
        await engine.open()
        doorway = Doorway(engine, Settings(**settings), home)  # type: ignore[arg-type]
        try:
            await work(Lab(engine, doorway))
        finally:
            await doorway.close()
            await engine.reset()

    asyncio.run(asyncio.wait_for(main(), 40))


def test_into_its_own_loopback_and_no_other(joey_home: Path) -> None:
    async def work(lab: Lab) -> None:
        hidden = socket.create_server(("127.0.0.1", 0))  # of the host
        here = hidden.getsockname()[1]
        first = await lab.start()
        assert await lab.ask() == (200, b"inside")
        second = await lab.start("::1", hostname="second")
        assert await lab.ask() == (200, b"second")
        assert await lab.kind(host=lab.host.replace("8000-", f"{here}-")) == (502, "port-closed")
        proxy = lab.host.partition(":")[2]
        assert await lab.kind(host=f"{proxy}-{first}.localhost") == (502, "port-closed")  # not to the proxy itself
        assert await lab.kind(host=f"8000-{'0' * 24}.localhost") == (404, "not-found")
        assert await lab.kind(host=f"8000-{first[:12]}.localhost") == (404, "no-such-host")
        assert (await lab.ask(host=lab.host.replace(second, first)))[1] == b"inside"
        assert await lab.ask(b"X-Access-Token: whatever") == (200, b"second")
        hidden.close()

    drive(joey_home, work)


def test_what_shares_the_hosts_network_is_not_reached(joey_home: Path) -> None:
    async def work(lab: Lab) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        host = await lab.start(port=port, network="host")
        assert await lab.kind() == (503, "not-running")
        with pytest.raises(Invalid):  # else it would be a way round
            await lab.start(network=f"container:{host}")

    drive(joey_home, work)
    with pytest.raises(PermissionError):
        netns.make(os.getpid(), socket.AF_INET, foreign=True)


def test_its_life(joey_home: Path) -> None:
    async def work(lab: Lab) -> None:
        id = await lab.start(proxy_token="token-of-mine")
        token = b"X-Access-Token: token-of-mine"
        assert await lab.kind() == (401, "access-token")
        assert (await lab.ask(token))[0] == 200
        await lab.engine.pause(id)
        assert await lab.kind(token) == (503, "not-running")
        await lab.engine.resume(id)
        assert (await lab.ask(token))[0] == 200
        assert lab.doorway.proxy.pool.count == 1
        await lab.engine.stop(id, 0)
        assert await lab.kind(token) == (503, "not-running")
        end = time.monotonic() + 5
        while any(one for kept in lab.doorway.proxy.pool._kept.values() for one in kept if not one.ended):
            assert time.monotonic() < end  # a kept connection would keep its network too
            await asyncio.sleep(0.01)
        await lab.engine.start(id)
        end = time.monotonic() + 10
        while (await lab.ask(token))[0] != 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await lab.engine.remove(id, force=True)
        assert await lab.kind(token) == (404, "not-found")

    drive(joey_home, work)


def test_requests_keep_it_from_being_idle(joey_home: Path) -> None:
    async def work(lab: Lab) -> None:
        id = await lab.start(idle_timeout=0.5)
        begin = time.monotonic()
        while time.monotonic() - begin < 1.2:
            assert (await lab.ask())[0] == 200
            await asyncio.sleep(0.1)
        wait = asyncio.ensure_future(lab.engine.wait(id))
        assert not wait.done()
        await asyncio.wait_for(wait, 10)

    drive(joey_home, work)


def test_where_it_listens(joey_home: Path) -> None:
    async def first(lab: Lab) -> None:
        assert not (joey_home / PORT_FILE).exists()
        await lab.doorway.open()
        assert not lab.doorway.proxy._servers  # nobody asked
        host = (await lab.doorway.host("0" * 24, 80)).host
        port = host.partition(":")[2]
        assert (joey_home / PORT_FILE).read_text() == f"{port}\n"
        await lab.doorway.close()
        again = Doorway(lab.engine, Settings(), joey_home)
        await again.open()
        assert again.proxy._servers and (await again.host("0" * 24, 80)).host == host
        with pytest.raises(Invalid, match="in use"):
            await Doorway(lab.engine, Settings(proxy=f"127.0.0.1:{port}")).open()
        await again.close()
        other = Doorway(lab.engine, Settings(proxy=f"127.0.0.1:{port}", proxy_domain="https://Box.example.com"))
        await other.open()
        found = await other.host("0" * 24, 80)
        assert found.url == f"https://80-{'0' * 24}.box.example.com" and found.host == found.url[8:]
        await other.close()
        with pytest.raises(Conflict):
            await Doorway(lab.engine, Settings(proxy="off")).host("0" * 24, 80)
        for domain in ("a b", "ftp://x", "x:y", "-", "a..b", "ü.de"):
            with pytest.raises(Invalid):
                Doorway(lab.engine, Settings(proxy_domain=domain))
        with pytest.raises(NotFound):
            lab.engine.door("0" * 24)

    drive(joey_home, first)
    assert not (joey_home / PORT_FILE).exists()
