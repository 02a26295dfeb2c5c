"""Health checks: looking into a running sandbox from time to time, and what the answers amount to.

As Docker does it: `retries` failures in a row make it unhealthy, one success healthy. Failures within the start period
do not count until the first success; until then it looks every `start_interval`, later every `interval`. A paused
sandbox is not looked at. What it costs: a process inside for a command, a socket for http and tcp.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from joey.engine import restart
from joey.engine.timers import Timer, Timers
from joey.host import netns
from joey.model.errors import JoeyError
from joey.model.spec import HealthCheck
from joey.model.views import Health

Look: TypeAlias = Callable[[HealthCheck], Awaitable[None]]
_STATUS_LINE = 256
_log = logging.getLogger(__name__)


class Unhealthy(Exception):
    """A check that failed, and why."""


class Tally(NamedTuple):
    """What the checks so far amount to. failures: in a row."""

    health: Health = "starting"
    failures: int = 0


def count(tally: Tally, check: HealthCheck, *, ok: bool, age: float) -> Tally:
    """One more check. age: seconds since the run began."""
    if ok:
        return Tally("healthy")
    if tally.health == "starting" and age < check.start_period:
        return tally
    failures = tally.failures + 1
    return Tally("unhealthy" if failures >= check.retries else tally.health, failures)


def pause(tally: Tally, check: HealthCheck, *, age: float) -> float:
    """Seconds until the next check."""
    early = tally.health == "starting" and age < check.start_period
    return check.start_interval if early else check.interval


class Checker:
    """Looks while one run lasts. tell: the health, when it changes."""

    def __init__(
        self, check: HealthCheck, look: Look, tell: Callable[[Health], None], timers: Timers, *,
        health: Health | None, started: float,
    ) -> None:  # fmt: skip
        self._check = check
        self._look = look
        self._tell = tell
        self._timers = timers
        self._started = started
        self._tally = Tally(health or "starting")
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.paused = False
        self._next()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    @property
    def _age(self) -> float:
        return time.time() - self._started

    def _next(self) -> None:
        if not self._closed:
            self._timer = self._timers.at(time.time() + pause(self._tally, self._check, age=self._age), self._come)

    def _come(self) -> None:
        if self.paused:
            self._next()
        else:
            self._task = asyncio.ensure_future(self._once())

    async def _once(self) -> None:
        ok = False
        try:
            async with asyncio.timeout(self._check.timeout):
                await self._look(self._check)
            ok = True
        except (Unhealthy, JoeyError, OSError, TimeoutError) as error:
            _log.debug("health check: %s", error)
        except asyncio.CancelledError:
            return
        before = self._tally
        if self.paused or self._closed:  # it was frozen under the check: that says nothing
            self._next()
            return
        self._tally = count(before, self._check, ok=ok, age=self._age)
        if self._tally.health != before.health:
            self._tell(self._tally.health)
        self._next()


# --- by the network --------------------------------------------------------------------------------------------------


async def knock(pid: int, port: int) -> None:
    """Whether a port of the loopback of the network namespace of `pid` accepts. Raises OSError."""
    with contextlib.closing(await netns.connect(pid, "127.0.0.1", port)):
        pass


async def get(pid: int, url: str) -> None:
    """GET a URL of its loopback. Raises Unhealthy for any status but 200 to 399, OSError."""
    host, port, path = restart.http_target(url)
    connection = await netns.connect(pid, host, port)
    reader, writer = await _streams(connection)
    try:
        where = f"[{host}]" if ":" in host else host
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {where}:{port}\r\nUser-Agent: joey\r\nConnection: close\r\n\r\n".encode()
        )
        line = await reader.readline()
    except ValueError as error:  # longer than the reader's limit
        raise Unhealthy("its answer is no HTTP") from error
    finally:
        writer.close()
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise Unhealthy("its answer is no HTTP")
    if not 200 <= int(words[1]) < 400:
        raise Unhealthy(f"status {int(words[1])}")


async def _streams(connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection(sock=connection, limit=_STATUS_LINE)
    except BaseException:
        connection.close()
        raise
