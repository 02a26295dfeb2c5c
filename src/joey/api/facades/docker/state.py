"""What Docker's API has a name for and the engine does not keep: execs that were created, and who closes stdin."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from joey.api.facades.docker.hijack import Keys
from joey.engine.events import KEPT, Events
from joey.engine.interface import Attachment
from joey.model.errors import Busy, NotFound
from joey.model.spec import Process

MOST = 4096


@dataclass(slots=True)
class Exec:
    """An exec: created, then started once. code: None before its end."""

    id: str
    sandbox: str
    process: Process
    streams: tuple[bool, bool, bool]
    keys: Keys | None = None
    attachment: Attachment | None = None
    started: bool = False
    code: int | None = None
    pid: int = 0

    @property
    def running(self) -> bool:
        return self.started and self.code is None


@dataclass(slots=True)
class State:
    """Of one engine. Lost with it, as the execs of a Docker daemon are."""

    execs: OrderedDict[str, Exec] = field(default_factory=OrderedDict)
    stdin_stays: set[str] = field(default_factory=set)
    """Containers whose standard input stays open when a client leaves (StdinOnce false)."""
    news: Events = field(default_factory=lambda: Events(itertools.count(1).__next__))
    """What happened that the engine has no event for."""
    images: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """Of which image containers are, or were: their last events come when they are gone."""
    apart: set[str] = field(default_factory=set)
    """Containers that were disconnected from their network before they were ever started."""
    making: set[str] = field(default_factory=set)
    """Volumes of containers that are being made."""
    sweeper: asyncio.Task[None] | None = None
    """Removes volumes of containers that are gone (anonymous.py)."""

    def add(self, sandbox: str, process: Process, streams: tuple[bool, bool, bool], keys: Keys | None = None) -> Exec:
        """Raises Busy if too many wait or run."""
        if len(self.execs) >= MOST:
            old = next((one for one in self.execs.values() if not one.running), None)
            if old is None:
                raise Busy("exec", f"{MOST} are running")
            del self.execs[old.id]
        made = Exec(secrets.token_hex(32), sandbox, process, streams, keys)
        self.execs[made.id] = made
        return made

    def exec(self, id: str) -> Exec:
        """Raises NotFound."""
        found = self.execs.get(id)
        if found is None:
            raise NotFound("", f"No such exec instance: {id}")
        return found

    def of(self, sandbox: str) -> list[str]:
        """Ids of those that run in a container."""
        return [one.id for one in self.execs.values() if one.sandbox == sandbox and one.running]

    def image(self, sandbox: str, name: str = "") -> str:
        """Keep in mind, or say, of which image a container is; "" if that is not known."""
        if name and sandbox not in self.images:
            self.images[sandbox] = name
            if len(self.images) > KEPT:
                self.images.popitem(last=False)
        return self.images.get(sandbox, "")

    def forget(self, sandbox: str) -> None:
        """A container is gone."""
        self.stdin_stays.discard(sandbox)
        self.apart.discard(sandbox)
        for one in [one for one in self.execs.values() if one.sandbox == sandbox]:
            del self.execs[one.id]
