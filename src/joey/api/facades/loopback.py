"""A façade on a port of the loopback, from when somebody first asks for it (`joey env NAME`).

Port, key and secret are kept in $JOEY_HOME/NAME.json (mode 0600), so addresses, keys and what is derived from the
secret outlive the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from joey.model.errors import Exhausted

if TYPE_CHECKING:
    from joey.api.light import web
    from joey.api.service import Service

_BACKLOG = 4096
log = logging.getLogger("joey.daemon")


class Kept(msgspec.Struct, kw_only=True):
    """What outlives the engine. port: 0 before anybody asked; key: what `joey env` tells; secret: 32 bytes in hex."""

    port: int = 0
    key: str = ""
    secret: str = ""


class Loopback:
    """The façade of one service. home: of the instance; without one nothing is remembered. A subclass gives `name`,
    `title` and `application`.
    """

    name = ""
    title = ""

    def __init__(self, service: Service, home: Path | None) -> None:
        self.service = service
        self._file = home / f"{self.name}.json" if home is not None else None
        self.kept = self._read()
        self._stack: contextlib.AsyncExitStack | None = None
        self._starting = asyncio.Lock()

    def application(self) -> web.Application:
        """What serves; most engines never need it, so it is imported here."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.kept.port}"

    async def open(self) -> None:
        """Listen at once where that was done before. Raises Exhausted."""
        if self.kept.port:
            await self.listen()

    async def close(self) -> None:
        """Stop serving."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def listen(self) -> None:
        """Serve from now on. Raises Exhausted."""
        async with self._starting:
            if self._stack is not None:
                return
            from joey.api.listeners import Listener
            from joey.api.server import serving

            sock = self._socket()
            stack = contextlib.AsyncExitStack()
            await stack.enter_async_context(serving(self.application(), [Listener(sock, False, self.name)]))
            self._stack = stack
            log.info("serving %s on 127.0.0.1:%d", self.title, self.kept.port)

    def write(self) -> None:
        """Keep what is in `kept`."""
        if self._file is None:
            return
        new = self._file.with_suffix(".json.new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(self.kept))
        os.replace(new, self._file)

    def _socket(self) -> socket.socket:
        try:
            try:
                sock = socket.create_server(("127.0.0.1", self.kept.port), backlog=_BACKLOG)
            except OSError:
                sock = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        except OSError as error:
            raise Exhausted(self.name, f"no port for it: {error.strerror}") from None
        port = sock.getsockname()[1]
        if port != self.kept.port or not self.kept.secret:
            self.kept.port = port
            self.kept.secret = self.kept.secret or secrets.token_hex(32)
            self.write()
        return sock

    def _read(self) -> Kept:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
                kept = msgspec.json.decode(self._file.read_bytes(), type=Kept)
                if 0 < kept.port < 65536 and len(bytes.fromhex(kept.secret)) == 32:
                    return kept
        return Kept()
