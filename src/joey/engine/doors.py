"""Ways into sandboxes that run, for the reverse proxy (joey.network.proxy): to ports of their own loopback."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from joey.engine.record import Phase
from joey.host import netns
from joey.model.errors import Conflict, NotFound
from joey.model.network import mode_of

if TYPE_CHECKING:
    from joey.engine.box import Box

_LOOPBACKS = ("127.0.0.1", "::1")


def door(box: Box | None) -> Door:
    """The way into the run there is now. Raises NotFound, Conflict if it does not run or has no network of its own."""
    if box is None:
        raise NotFound("sandbox", "no sandbox has this id", "see `joey ps`")
    if mode_of(box.spec.network) == "host":
        raise Conflict("network", "it shares the network of the host", "use the port itself, on the host")
    if box.record.phase is not Phase.RUNNING:
        raise Conflict("state", f"it is {box.view().state}", "start or resume it first")
    return Door(box)


class Door:
    """See `joey.engine.interface.Door`."""

    __slots__ = ("_box", "key")

    def __init__(self, box: Box) -> None:
        self._box = box
        self.key = (box.id, box.record.key)

    @property
    def token(self) -> str | None:
        return self._box.spec.proxy_token

    async def connect(self, port: int) -> socket.socket:
        """By its first process: the namespace is kept by nobody but the sandbox, and ends with it."""
        refused: OSError | None = None
        for host in _LOOPBACKS:
            pid = self._box.record.pid
            if pid is None or self.key[1] != self._box.record.key:
                raise ProcessLookupError(errno.ESRCH, "the sandbox has ended")
            try:
                return await netns.connect(pid, host, port, foreign=True)
            except (ProcessLookupError, PermissionError):
                raise
            except OSError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def hold(self) -> None:
        self._box.clocks.hold()

    def release(self) -> None:
        self._box.clocks.release()
