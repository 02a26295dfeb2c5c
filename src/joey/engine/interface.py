"""What the API asks of the engine. `joey.engine.supervisor.Engine` and `joey.testing.engine.FakeEngine` both fulfil
it, and the same tests (tests/unit/test_api*.py, tests/e2e) run against both.

Rules of the whole interface
- `ref` is an id, a unique prefix of one (at least 2 characters) or a name. Errors are those of `joey.model.errors`,
  nothing else.
- The API cancels what only waits or reads (wait, logs, read, write, stats, list) when its client goes away; what
  changes a sandbox it lets finish.
- Nothing here buffers without bound: output is pulled, one piece of at most 64 KiB at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from joey.model.spec import Process, SandboxSpec
from joey.model.views import Detail, DiskUsage, Exit, LogEntry, Node, ResetReport, Sandbox, State, Stats

STDOUT: Literal[1] = 1
STDERR: Literal[2] = 2


class Attachment(Protocol):
    """A client's end of a process: of a sandbox's main process (attach, run) or of one that exec started.

    Several attachments to one main process get the same output; input of all of them is merged. A reader that is too
    slow must not make the engine hold more than about 1 MiB for it: for a main process the engine may pause reading
    the program's pipe or let the reader catch up from the log, for exec it stops reading the pipe. Nothing is ever
    skipped.
    """

    pid: int

    async def read(self) -> tuple[Literal[1, 2], bytes] | None:
        """The next piece of output, (stream, 1..65536 bytes); None once the process has ended and all was read.

        With a terminal everything is stream 1. A grandchild that keeps the pipe open does not delay the None for ever:
        the engine stops at most a second after the process's end. Not called by two tasks at once.
        """

    async def write(self, data: bytes) -> None:
        """Feed standard input; returns when the program can take it (pipe not full). Discards it if the input is
        closed.
        """

    async def close_stdin(self) -> None:
        """End of file on standard input once all written data is read. With a terminal, or done again: nothing."""

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size; nothing without a terminal or when the process has ended."""

    async def signal(self, number: int) -> None:
        """Send a signal to the process; nothing when it has ended. Raises Invalid for a number the kernel does not
        have.
        """

    async def wait(self) -> Exit:
        """The process's end. May be called before all output is read, and more than once."""

    async def close(self) -> None:
        """Detach: the process goes on, as do other attachments. Of exec: its pipes are closed, as when a Docker client
        leaves.

        May be called twice and while another task is in read() or write(), which then return None, or at once.
        """


@dataclass(frozen=True, slots=True)
class Started:
    """Of `run`: the sandbox and, if asked for, its attachment, which has missed no byte."""

    sandbox: Sandbox
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sandboxes `list` gives; all conditions hold. Empty fields mean any.

    all: also those that do not run (created, exited, dead); ignored when `states` is given. names: substrings of the
    name. ids: prefixes. labels: name -> value, None for any value. limit: the newest so many, 0 for all.
    """

    all: bool = False
    states: frozenset[State] = frozenset()
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    labels: dict[str, str | None] = field(default_factory=dict)
    exited: frozenset[int] = frozenset()
    limit: int = 0


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What `logs` gives. since, until: seconds since the epoch. tail: the last so many lines."""

    follow: bool = False
    since: float | None = None
    until: float | None = None
    tail: int | None = None
    stdout: bool = True
    stderr: bool = True


class Engine(Protocol):
    """Lifecycle of all sandboxes of one instance. Made by `Engine(instance)`; all methods on one event loop."""

    async def open(self) -> None:
        """Take over what runs, or start afresh. Raises JoeyError naming the step if this host cannot."""

    async def close(self, *, stop_launcher: bool = False) -> None:
        """Leave: sandboxes go on. With stop_launcher the launcher ends too if it holds no child (else it stays)."""

    async def prepare(self, slots: int) -> None:
        """Have so many slots ready now, for a burst to come."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A sandbox in state created: validated, image resolved, name reserved."""

    async def start(self, ref: str) -> Sandbox:
        """Start a created or exited sandbox. Raises Conflict if it runs, LaunchFailed if it cannot."""

    async def run(self, spec: SandboxSpec, *, attach: bool = False) -> Started:
        """create + (attach) + start as one: if it fails nothing is left, not even the name."""

    async def attach(self, ref: str) -> Attachment:
        """Attach to the main process: output from now on. Of a created sandbox: from its start. Raises Conflict if
        exited.
        """

    async def exec(self, ref: str, process: Process, *, detach: bool = False) -> Attachment:
        """Run a process in a running sandbox; `process` is taken as it is. detach: output is discarded, read() gives
        None.
        """

    async def stop(self, ref: str, timeout: float | None = None) -> Sandbox:
        """Stop signal, then SIGKILL after `timeout` seconds (None: the spec's); returns when it has ended. Ended
        already: nothing.
        """

    async def kill(self, ref: str, signal: int) -> None:
        """Signal the main process. Raises Conflict if it does not run."""

    async def pause(self, ref: str) -> Sandbox:
        """Freeze all its processes."""

    async def resume(self, ref: str) -> Sandbox:
        """Thaw them."""

    async def rename(self, ref: str, name: str) -> Sandbox:
        """Give it another name. Raises Conflict if it is taken."""

    async def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove it and its log; a running one only with force (SIGKILL). Returns when the name is free."""

    async def wait(self, ref: str) -> Exit:
        """The end of its present run; at once if it has ended. Of a created one: the end of its first run.

        Also answers, once, for a sandbox that is removed at its end (`remove` of the spec) while waited for.
        """

    async def inspect(self, ref: str) -> Detail:
        """All about one sandbox."""

    async def list(self, filter: Filter) -> Sequence[Sandbox]:
        """Sandboxes, newest first."""

    async def stats(self, refs: Sequence[str]) -> Sequence[Stats]:
        """Usage of the given sandboxes, of all running ones if none is given. One that has ended is left out."""

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogEntry]:
        """Output kept, in order; with follow also what comes, until the sandbox ends. Closing the iterator costs
        nothing.

        Raises NotFound at the first step.
        """

    async def explain(self, spec: SandboxSpec) -> str:
        """The plan `run(spec)` would send, a line an operation. Changes nothing."""

    async def node(self) -> Node:
        """This machine, its abilities, and how many sandboxes there are."""

    async def disk_usage(self) -> Sequence[DiskUsage]:
        """What takes room, a row a kind."""

    async def reset(self) -> ResetReport:
        """Remove everything this instance ever made. Works on an engine that was never opened, or could not be."""


__all__ = ["Attachment", "Engine", "Filter", "LogQuery", "STDERR", "STDOUT", "Started"]
