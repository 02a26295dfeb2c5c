"""Where the E2B API listens, and the secrets it needs: `joey env e2b` asks for it.

It listens on a port of the loopback from when somebody first asks; port, key and the secret that sandboxes' access
tokens come from are kept in $JOEY_HOME/e2b.json (mode 0600), so addresses, keys and tokens outlive the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from joey.api.auth import KeyBody
from joey.api.routes import Call, Route
from joey.model.errors import Exhausted

if TYPE_CHECKING:
    from joey.api.service import Service

FILE = "e2b.json"
_BACKLOG = 4096
log = logging.getLogger("joey.daemon")


class E2BAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What an E2B client needs: url is E2B_API_URL and E2B_SANDBOX_URL, key E2B_API_KEY."""

    url: str
    key: str


class _Kept(msgspec.Struct, kw_only=True):
    port: int = 0
    key: str = ""
    secret: str = ""


class E2B:
    """The façade of one service. home: of the instance; without one nothing is remembered."""

    def __init__(self, service: Service, home: Path | None) -> None:
        self._service, self._home = service, home
        self._kept = self._read()
        self._stack: contextlib.AsyncExitStack | None = None
        self._starting = asyncio.Lock()

    async def open(self) -> None:
        """Listen at once where that was done before. Raises Exhausted."""
        if self._kept.port:
            await self._listen()

    async def access(self) -> E2BAccess:
        """Listen, and say where; the key is made anew if it was revoked. Raises Exhausted."""
        await self._listen()
        if self._service.access.find(self._kept.key) is None:
            self._kept.key = self._service.access.create(KeyBody(name="joey env e2b", form="e2b")).key
            self._write()
        return E2BAccess(url=f"http://127.0.0.1:{self._kept.port}", key=self._kept.key)

    def token(self, id: str) -> str:
        """What a client of a sandbox's envd must show, in X-Access-Token: the id and what proves it."""
        return id + hmac.new(bytes.fromhex(self._kept.secret), id.encode(), hashlib.sha256).hexdigest()

    async def close(self) -> None:
        """Stop serving."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def _listen(self) -> None:
        async with self._starting:
            if self._stack is not None:
                return
            from joey.api.facades.e2b.server import application  # most engines never need it
            from joey.api.listeners import Listener
            from joey.api.server import serving

            sock = self._socket()
            stack = contextlib.AsyncExitStack()
            listener = Listener(sock, False, "e2b")
            await stack.enter_async_context(serving(application(self._service, self), [listener]))
            self._stack = stack
            log.info("serving the E2B API on 127.0.0.1:%d", self._kept.port)

    def _socket(self) -> socket.socket:
        try:
            try:
                sock = socket.create_server(("127.0.0.1", self._kept.port), backlog=_BACKLOG)
            except OSError:
                sock = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        except OSError as error:
            raise Exhausted("e2b", f"no port for it: {error.strerror}") from None
        port = sock.getsockname()[1]
        if port != self._kept.port or not self._kept.secret:
            self._kept.port = port
            self._kept.secret = self._kept.secret or secrets.token_hex(32)
            self._write()
        return sock

    def _read(self) -> _Kept:
        if self._home is not None:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                kept = msgspec.json.decode((self._home / FILE).read_bytes(), type=_Kept)
                if 0 < kept.port < 65536 and len(bytes.fromhex(kept.secret)) == 32:
                    return kept
        return _Kept()

    def _write(self) -> None:
        if self._home is None:
            return
        new = self._home / f"{FILE}.new"
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(self._kept))
        os.replace(new, self._home / FILE)


async def e2b_access(call: Call) -> E2BAccess:
    """Serve the E2B API on the loopback, from now on also after a restart, and say what its clients need."""
    return await call.whole(call.service.e2b.access())


ROUTES = (
    Route(
        "POST", "/v1/facades/e2b", e2b_access, "Serve the E2B API", tag="node", admin=True, answer=E2BAccess,
    ),
)  # fmt: skip
