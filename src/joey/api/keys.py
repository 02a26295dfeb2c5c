"""What an application carries."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from joey.api.light import web
from joey.engine.interface import Engine

if TYPE_CHECKING:
    from joey.api.service import Service
    from joey.api.streams import FrameConnection


class Activity:
    """Whether anybody asked for anything: what --idle-exit looks at."""

    def __init__(self) -> None:
        self.open = 0
        self.last = time.monotonic()

    def done(self) -> None:
        """A request has ended."""
        self.open -= 1
        self.last = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last request ended; 0 while there is one."""
        return 0.0 if self.open else time.monotonic() - self.last


SERVICE: web.AppKey[Service] = web.AppKey("service")
ENGINE: web.AppKey[Engine] = web.AppKey("engine")
ENDED: web.AppKey[asyncio.Event] = web.AppKey("ended")
"""Set to make the server end."""
STREAMS: web.AppKey[WeakSet[FrameConnection]] = web.AppKey("streams", WeakSet)
"""Connections that have left HTTP, so that they end when the server does."""
ACTIVITY: web.AppKey[Activity] = web.AppKey("activity")
