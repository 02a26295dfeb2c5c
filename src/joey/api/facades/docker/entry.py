"""Where the Docker API listens: a unix socket of its own, off until a setting or `joey env docker` asks for it.

Who can open the socket administers, so it is its owner's (mode 0600), with `socket_group` also that group's. Once asked
for it is served again by the next engine: $JOEY_HOME/docker.socket holds its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from joey.api.routes import Call, Route
from joey.model.errors import Conflict, Invalid, from_os

if TYPE_CHECKING:
    from joey.api.config import Settings
    from joey.api.service import Service

FILE = "docker.socket"
DEFAULT_HOME = Path("/var/lib/joey")
DEFAULT = Path("/run/joey/docker.sock")
log = logging.getLogger("joey.daemon")


class DockerAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What a Docker client needs: DOCKER_HOST."""

    host: str


class Docker:
    """The façade of one service. home: of the instance; without one nothing is remembered."""

    def __init__(self, service: Service, home: Path | None, settings: Settings) -> None:
        self._service, self._home, self._settings = service, home, settings
        self._stack: contextlib.AsyncExitStack | None = None
        self._starting = asyncio.Lock()

    @property
    def path(self) -> Path:
        """Of the socket: the setting, else /run/joey/docker.sock of the usual instance, else one below its home."""
        if self._settings.docker_socket:
            return Path(self._settings.docker_socket)
        if self._home is None or self._home == DEFAULT_HOME:
            return DEFAULT
        return self._home / "run" / "docker.sock"

    async def open(self) -> None:
        """Listen at once if a setting says so or it was asked for before. Raises Invalid, HostFailed, Conflict."""
        if self._settings.docker_socket or (self._home is not None and (self._home / FILE).exists()):
            await self._listen()

    async def access(self) -> DockerAccess:
        """Listen, and say where."""
        await self._listen()
        if self._home is not None:
            (self._home / FILE).write_text(f"{self.path}\n", encoding="utf-8")
        return DockerAccess(host=f"unix://{self.path}")

    async def close(self) -> None:
        """Stop serving."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def _listen(self) -> None:
        async with self._starting:
            if self._stack is not None:
                return
            from joey.api.facades.docker.app import make  # most engines never need it
            from joey.api.listeners import Listener, group_of, listen
            from joey.api.server import serving

            path = self.path
            _check(path)
            try:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                listener = Listener(
                    listen(path, group=group_of(self._settings.socket_group)), True, str(path), path=path
                )
            except OSError as error:
                raise from_os("docker_socket", error) from error
            stack = contextlib.AsyncExitStack()
            await stack.enter_async_context(serving(make(self._service), [listener]))
            self._stack = stack
            log.info("serving the Docker API on %s", path)


def _check(path: Path) -> None:
    """Raises Invalid for what is no place for our socket, Conflict for one that somebody serves."""
    import socket

    if not path.is_absolute():
        raise Invalid("docker_socket", f"{str(path)!r} is not absolute")
    if len(os.fsencode(path)) > 107:
        raise Invalid("docker_socket", f"{path} is too long for a socket's address", "daemon.toml: docker_socket")
    if not path.exists():
        return
    if not path.is_socket():
        raise Invalid("docker_socket", f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise Conflict("docker_socket", f"{path} is served by somebody else", "daemon.toml: docker_socket")


async def docker_access(call: Call) -> DockerAccess:
    """Serve the Docker API on its socket, from now on also after a restart, and say where."""
    return await call.whole(call.service.docker.access())


ROUTES = (
    Route(
        "POST", "/v1/facades/docker", docker_access, "Serve the Docker API", tag="node", admin=True,
        answer=DockerAccess,
    ),
)  # fmt: skip
