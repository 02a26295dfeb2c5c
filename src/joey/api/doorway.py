"""The reverse proxy as the daemon serves it: where it listens, how a sandbox's port is called, the engine behind it.

By default it is started when somebody first asks for such a host, on a port of the loopback that is then kept in
$JOEY_HOME/proxy.port: links last as long as the instance. It shares nothing with the API but the process: its sockets
are its own, and what it connects to is never in the host's network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from joey.api import params
from joey.api.config import Settings
from joey.api.listeners import address_of
from joey.api.metrics import Page
from joey.api.routes import Call, Route
from joey.engine.interface import Door, Engine
from joey.model.errors import Conflict, Exhausted, Invalid, NotFound
from joey.model.network import mode_of
from joey.model.views import PortHost
from joey.network.http_head import Refused
from joey.network.proxy import Proxy

log = logging.getLogger("joey.daemon")
PORT_FILE = "proxy.port"
_LOOPBACKS = (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))


class Doorway:
    """home: of the instance; without one no port is remembered."""

    def __init__(self, engine: Engine, settings: Settings, home: Path | None = None) -> None:
        self._engine, self._home = engine, home
        self._setting = settings.proxy
        self._scheme, self._domain = domain_of(settings.proxy_domain)
        self._port = 0
        self._starting = asyncio.Lock()
        suffixes = (self._domain.partition(":")[0], "localhost") if self._domain else ("localhost",)
        self.proxy = Proxy(self._find, suffixes, connections=settings.proxy_connections)

    def _find(self, id: str) -> Door:
        """Raises Refused."""
        try:
            return self._engine.door(id)
        except NotFound:
            raise Refused(404, "not-found", "there is no such sandbox") from None
        except Conflict as error:
            raise Refused(503, "not-running", f"the sandbox cannot be reached: {error.message}") from None

    async def open(self) -> None:
        """Listen at once where that was asked for, or was done before. Raises Invalid, OSError."""
        if self._setting not in ("auto", "off"):
            for sock in given_sockets(self._setting):
                await self._serve(sock)
        elif self._setting == "auto" and self._remembered():
            await self._listen()

    async def host(self, id: str, port: int) -> PortHost:
        """How a port of a sandbox is called. Raises Conflict if there is no proxy, Exhausted."""
        await self._listen()
        where = self._domain or f"localhost:{self._port}"
        return PortHost(host=f"{port}-{id}.{where}", url=f"{self._scheme}://{port}-{id}.{where}")

    async def close(self) -> None:
        """Stop serving, at once."""
        await self.proxy.close()

    async def _listen(self) -> None:
        async with self._starting:
            if self._port:
                return
            if self._setting == "off":
                raise Conflict("proxy", "the reverse proxy is switched off", 'proxy = "auto" in daemon.toml')
            for sock in self._loopback():
                await self._serve(sock)

    async def _serve(self, sock: socket.socket) -> None:
        await self.proxy.serve(sock)
        host, self._port = sock.getsockname()[:2]
        log.info("reverse proxy on %s", f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}")

    def _loopback(self) -> Iterable[socket.socket]:
        """The same port of 127.0.0.1 and, where it is to be had, of ::1. Raises Exhausted."""
        remembered = self._remembered()
        try:
            first = _bound(*_LOOPBACKS[0], remembered)
        except OSError:
            try:
                first = _bound(*_LOOPBACKS[0], 0)
            except OSError as error:
                raise Exhausted("proxy", f"no port for it: {error.strerror}") from None
        port = first.getsockname()[1]
        if self._home is not None and port != remembered:
            file = self._home / PORT_FILE
            file.with_suffix(".new").write_text(f"{port}\n")
            os.replace(file.with_suffix(".new"), file)
        yield first
        with contextlib.suppress(OSError):
            yield _bound(*_LOOPBACKS[1], port)

    def _remembered(self) -> int:
        if self._home is not None:
            with contextlib.suppress(OSError, ValueError):
                port = int((self._home / PORT_FILE).read_text())
                return port if 0 < port < 65536 else 0
        return 0

    def figures(self, page: Page) -> None:
        """For /metrics."""
        proxy = self.proxy
        page.one("joey_proxy_connections", "gauge", "Connections to the reverse proxy", len(proxy.clients))
        page.one("joey_proxy_requests_total", "counter", "Requests by the reverse proxy", proxy.requests)
        refused = [({"code": code}, count) for code, count in sorted(proxy.refused.items())]
        page.family("joey_proxy_refused_total", "counter", "Requests it answered itself, by problem code", refused)


def domain_of(text: str) -> tuple[str, str]:
    """(scheme, NAME[:PORT] in lower case) of the setting proxy_domain. Raises Invalid."""
    scheme, mark, rest = text.rpartition("://")
    name, colon, port = rest.partition(":")
    labels = name.split(".")
    good = all(label.replace("-", "").isalnum() and label.isascii() for label in labels) or not text
    if not good or scheme not in ("", "http", "https") or (mark and not scheme) or (colon and not port.isdigit()):
        raise Invalid("proxy_domain", f"{text!r} is no domain", "sandbox.example.com, or https://sandbox.example.com")
    return scheme or "http", rest.lower()


def given_sockets(text: str) -> list[socket.socket]:
    """A bound socket for HOST:PORT. Raises Invalid naming proxy."""
    host, port = address_of(text, "proxy")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_bound(str(found[0][4][0]), found[0][0], port)]
    except OSError as error:
        raise Invalid("proxy", f"{text!r}: {error.strerror}") from None


def _bound(host: str, family: int, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def host(call: Call) -> PortHost:
    """HTTP to this host reaches `port` of the sandbox's own loopback, also of one without a network. Whoever knows the
    host may use it, unless the sandbox was made with a `proxy_token`; that then goes into the header X-Access-Token.
    """
    detail = await call.engine.inspect(call.ref)
    port = call.query["port"]
    if mode_of(detail.spec.network) == "host":
        return PortHost(host=f"localhost:{port}", url=f"http://localhost:{port}")
    return await call.service.doorway.host(detail.sandbox.id, port)


ROUTES = (
    Route(
        "GET", "/v1/sandboxes/{ref}/host", host, "Where one of its ports is reached", tag="sandboxes",
        query=(params.integer("port", "A port inside", low=1, high=65535).needed(),), answer=PortHost,
    ),
)  # fmt: skip
