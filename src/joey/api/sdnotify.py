"""Telling systemd how the daemon is (sd_notify(3), systemd.service(5) Type=notify, WatchdogSec=)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Datagrams to $NOTIFY_SOCKET; without one nothing happens. Failing to tell never fails the daemon."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        usec = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog = int(usec) / 1e6 if usec.isdigit() and int(usec) and for_us else None
        """Seconds within which systemd wants to hear of us."""

    def tell(self, *lines: str) -> None:
        """Send assignments such as READY=1."""
        if self._address[:1] not in ("/", "@"):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)

    async def watch(self) -> None:
        """Say again and again that the event loop turns; returns at once if nobody listens for it."""
        while self.watchdog is not None and self._address:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 3)
