"""What Docker's API has a name for and the engine does not keep: execs that were created, and who closes stdin."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

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

    def add(self, sandbox: str, process: Process, streams: tuple[bool, bool, bool]) -> Exec:
        """Raises Busy if too many wait or run."""
        if len(self.execs) >= MOST:
            old = next((one for one in self.execs.values() if not one.running), None)
            if old is None:
                raise Busy("exec", f"{MOST} are running")
            del self.execs[old.id]
        made = Exec(secrets.token_hex(32), sandbox, process, streams)
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

    def forget(self, sandbox: str) -> None:
        """A container is gone."""
        self.stdin_stays.discard(sandbox)
        for one in [one for one in self.execs.values() if one.sandbox == sandbox]:
            del self.execs[one.id]
