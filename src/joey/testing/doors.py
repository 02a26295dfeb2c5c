"""The fake engine's doors: to this machine's loopback, where the programs of its sandboxes run."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from joey.model.errors import Conflict, NotFound
from joey.model.spec import SandboxSpec


class _Box(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def spec(self) -> SandboxSpec: ...
    @property
    def state(self) -> str: ...
    @property
    def started(self) -> float | None: ...


class FakeDoor:
    """See `joey.engine.interface.Door`."""

    def __init__(self, box: _Box) -> None:
        self.key = (box.id, box.started)
        self.token = box.spec.proxy_token

    async def connect(self, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return sock

    def hold(self) -> None:
        """It has no idle timeouts."""

    def release(self) -> None:
        """As hold."""


def fake_door(box: _Box | None) -> FakeDoor:
    """Raises NotFound, Conflict if it does not run."""
    if box is None:
        raise NotFound("sandbox", "no sandbox has this id", "see `joey ps`")
    if box.state != "running":
        raise Conflict("state", f"it is {box.state}", "start or resume it first")
    return FakeDoor(box)
