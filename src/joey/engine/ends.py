"""How a launcher's word on the end of a process becomes an Exit, also when it has none."""

from __future__ import annotations

from joey.engine.record import exit_of
from joey.host.wire import Child
from joey.model.views import Exit

UNSEEN = "it ended while its launcher was gone: its exit code is unknown"


def exit_of_child(child: Child, *, oom: bool = False) -> Exit:
    """The end of a child that has ended. Code 125 and an `error` if nobody saw it."""
    at = child.exited_ns / 1e9
    return Exit(code=125, oom=oom, at=at, error=UNSEEN) if child.unknown else exit_of(child.status, at, oom=oom)
