"""What the API asks of the engine. `joey.engine.supervisor.Engine` and `joey.testing.engine.FakeEngine` both fulfil
it, and the same tests (tests/unit/test_api*.py, tests/e2e) run against both.

Rules of the whole interface
- `owner` is whose a sandbox is: "" the administrator's (who comes by the unix socket), else an API key's id. Names are
  unique for each owner. Where a call asks for an owner to look through the eyes of, None sees everything (what the
  administrator passes), and what belongs to somebody else does not exist (NotFound, never a refusal that tells of it).
  The other calls trust `ref`: the API turns what a client gave into an id with `resolve(ref, owner)` first.
- `ref` is an id, a unique prefix of one (at least 2 characters) or a name. Errors are those of `joey.model.errors`,
  nothing else.
- The API cancels what only waits or reads (wait, logs, read, write, stats, list) when its client goes away; what
  changes a sandbox it lets finish.
- Nothing here buffers without bound: output is pulled, one piece of at most 64 KiB at a time.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from joey.model.limits import Limits, NodeLimits
from joey.model.network import PrivateNetwork
from joey.model.pool import PoolSpec
from joey.model.spec import Process, SandboxSpec, Update
from joey.model.template import TemplateSpec, TemplateView
from joey.model.views import (
    Detail,
    DiskUsage,
    Event,
    Exit,
    FileEvent,
    FileInfo,
    LogEntry,
    NetworkView,
    Node,
    Pool,
    ProcessView,
    ResetReport,
    Sandbox,
    State,
    Stats,
)

STDOUT: Literal[1] = 1
STDERR: Literal[2] = 2


class Attachment(Protocol):
    """A client's end of a process: of a sandbox's main process (attach, run) or of one that exec started.

    Several attachments to one main process get the same output; input of all of them is merged. For a reader that is
    too slow the engine holds about 1 MiB. Of a main process it then catches up from the log while the program and all
    others go on, unless it falls so far behind that the log would drop what it has not read (some 20 MiB): then the
    program waits. A process that exec started waits for its slowest reader. Nothing is ever skipped, except what a full
    disk has kept from the log.
    """

    pid: int
    id: str
    """Of a process that exec started: the id of its ProcessView. "" for a main process."""

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
        leaves; with a tag or `keep` it goes on, and what has not been read is for the next one (`Engine.connect`).

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
    name. ids: prefixes. labels: name -> value, None for any value. limit: the newest so many, 0 for all. owner: only
    that one's, None for everybody's. cursor: the id of the last one of the page before: go on after it (also if it has
    been removed meanwhile, then from the next older than it was).
    """

    all: bool = False
    states: frozenset[State] = frozenset()
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    labels: dict[str, str | None] = field(default_factory=dict)
    exited: frozenset[int] = frozenset()
    limit: int = 0
    owner: str | None = None
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What `logs` gives. since, until: seconds since the epoch. tail: the last so many lines."""

    follow: bool = False
    since: float | None = None
    until: float | None = None
    tail: int | None = None
    stdout: bool = True
    stderr: bool = True


class Reading(Protocol):
    """An open file. info: as it was opened (its path is the one asked for). chunks: its bytes, to be read once."""

    @property
    def info(self) -> FileInfo: ...
    @property
    def chunks(self) -> AsyncIterator[bytes]: ...


class Files(Protocol):
    """The files of one sandbox that runs; of a paused one what only reads (else Conflict, field "state"). Paths are
    absolute, as seen inside; links are followed as the sandbox would follow them and never lead out of its root. What
    is written is charged to the sandbox, and belongs to its ids.

    Raises NotFound, Invalid, Conflict with field "path"; Exhausted when its memory or disk is full.
    """

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """Of the thing itself, if it is a link of the link; with follow of what that points to."""

    async def list(self, path: str, depth: int = 1) -> Sequence[FileInfo]:
        """What is in a directory, in order of path; with depth 2 also what is in those, and so on."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a regular file in pieces of at most 1 MiB, up to its end if `length` is None."""

    def reading(self, path: str, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reading]:
        """The same for who wants to know what he reads: what is wrong is said before the block begins."""

    async def write(
        self, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None, user: str = "", parents: bool = False
    ) -> FileInfo:
        """Write a file anew, all or nothing. mode: of a new file (0o644) or to set. parents: make directories above."""

    async def mkdir(self, path: str, *, mode: int = 0o755, user: str = "", parents: bool = False) -> FileInfo:
        """Make a directory. Raises Conflict if it is there, without `parents`."""

    async def move(self, source: str, target: str) -> FileInfo:
        """rename(2): a file at `target` is replaced."""

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or an empty directory; with recursive all below it."""

    async def chmod(self, path: str, mode: int) -> FileInfo:
        """Set permission bits, 0 to 0o7777."""

    async def chown(self, path: str, user: str) -> FileInfo:
        """Give it to "uid", "name", "uid:gid" or "name:group" of the sandbox."""

    def pack(self, path: str, *, root: str = ".") -> AsyncIterator[bytes]:
        """A tree as a tar archive. root: what the sandbox's root is called in it, "." or "" (names begin with "/")."""

    async def unpack(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar archive (not compressed) into a directory that exists."""

    def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[FileEvent]:
        """What changes there from now on, until the sandbox ends."""

    def watching(self, path: str, *, recursive: bool = False) -> AbstractAsyncContextManager[AsyncIterator[FileEvent]]:
        """The same for who wants to know when it begins: with the block."""


class Door(Protocol):
    """The way into one run of a sandbox, for the reverse proxy.

    key: of this run and no other. token: what requests must carry, None for nothing. connect: a non-blocking connection
    to a port of its own loopback; raises OSError. hold: it is not idle until release.
    """

    @property
    def key(self) -> Hashable: ...
    @property
    def token(self) -> str | None: ...
    async def connect(self, port: int) -> socket.socket: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class Engine(Protocol):
    """Lifecycle of all sandboxes of one instance. Made by `Engine(instance)`; all methods on one event loop."""

    async def open(self) -> None:
        """Take over what runs, or start afresh. Raises JoeyError naming the step if this host cannot."""

    async def close(self, *, stop_launcher: bool = False) -> None:
        """Leave: sandboxes go on. With stop_launcher the launcher ends too if it holds no child (else it stays)."""

    async def prepare(self, slots: int, *, linked: int = 0) -> None:
        """Have so many slots ready now, for a burst to come; linked: with a link of their own, for nat and private
        networks.
        """

    def limit(self, owners: Callable[[str], Limits], node: NodeLimits) -> None:
        """What may be used: by an owner (asked for at each request; "" has no limits) and by all together. What is
        beyond it is refused: TooMany of an owner, Busy of the node, naming the limit.
        """

    def resolve(self, ref: str, owner: str | None = None) -> str:
        """The id of a sandbox. Raises NotFound, also if it is another owner's; Conflict (not unique)."""

    # What create, start, run (without attach), update and remove have answered is on disk by then.

    async def create(self, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """A sandbox in state created: validated, image resolved, name reserved."""

    async def start(self, ref: str) -> Sandbox:
        """Start a created or exited sandbox. Raises Conflict if it runs, LaunchFailed if it cannot."""

    async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "", pool: str = "") -> Started:
        """create + (attach) + start as one: if it fails nothing is left, not even the name.

        pool: hand out a warm sandbox of that pool of the same owner, made `spec`; if none is ready, start one. Not with
        attach. Raises NotFound, and Invalid or Unenforceable naming what of `spec` cannot be changed on a warm one.
        """

    # Warm pools are of one owner each, and never shared. Their members count against limits and are in no list.

    async def pool_create(self, pool: PoolSpec, *, owner: str = "", filled: bool = False) -> Pool:
        """Make a pool, or change that of the same name: its size, or all its members. filled: return when it is full,
        or when that is not to be (`Pool.error`).
        """

    def pools(self, owner: str | None = None) -> Sequence[Pool]:
        """In order of owner and name."""

    def pool(self, name: str, owner: str | None = None) -> Pool:
        """One of them. Raises NotFound, Conflict (several owners have one, with None)."""

    async def pool_remove(self, name: str, *, owner: str | None = None) -> None:
        """It and its members; what it has handed out stays. Raises NotFound."""

    # Templates are of one owner each, and never shared.

    async def template_create(self, template: TemplateSpec, *, owner: str = "") -> TemplateView:
        """Make one, or make the one of that name anew; returns when it is warm or cannot be (`state`). Raises JoeyError
        naming the field, TooMany.
        """

    def templates(self, owner: str | None = None) -> Sequence[TemplateView]:
        """In order of owner and name."""

    def template(self, name: str, owner: str | None = None) -> TemplateView:
        """One of them. Raises NotFound."""

    async def template_remove(self, name: str, *, owner: str | None = None) -> None:
        """It; sandboxes forked from it go on. Raises NotFound."""

    async def forked(self, template: str, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """A sandbox forked from a template, on disk when it returns; of `spec` its name, labels, timeouts and its
        process's env. Raises NotFound, Conflict, TooMany, Busy.
        """

    async def network_create(self, network: PrivateNetwork, *, owner: str = "") -> NetworkView:
        """A private network, on disk when it returns. Raises Conflict if the owner has one of that name."""

    def network_list(self, owner: str | None = None) -> Sequence[NetworkView]:
        """In order of name; None: everybody's."""

    def network(self, name: str, owner: str | None = None) -> NetworkView:
        """One of them. Raises NotFound."""

    async def network_remove(self, name: str, *, owner: str | None = None) -> None:
        """Raises NotFound, Conflict while a running sandbox is in it."""

    async def update(self, ref: str, change: Update) -> Sandbox:
        """Change limits, labels, timeouts and restart policy, also of a running one: all of it or nothing.

        Limits act at once. Raises Invalid naming the field for what this host cannot enforce, Conflict if it is being
        removed, and what the kernel says (a memory limit below what is in use, for one).
        """

    def events(
        self,
        after: int | None = None,
        *,
        follow: bool = False,
        types: Sequence[str] = (),
        refs: Sequence[str] = (),
        labels: dict[str, str | None] | None = None,
        owner: str | None = None,
    ) -> AsyncIterator[Event]:
        """What happened, oldest first, of the last 10,000 events: those with an id above `after`, or with None what
        comes from now on (without `follow`: all that is kept). follow: go on with what comes, without end.

        types: exact, or a beginning that ends with a dot ("process."). refs: ids, prefixes or names of the time of the
        event. An event of type `events.lost` stands for what is not kept any more (data: count, at most so many), also
        for a reader who is too slow: nothing is held for one.
        """

    async def attach(self, ref: str) -> Attachment:
        """Attach to the main process: output from now on. Of a created sandbox: from its start. Raises Conflict if
        exited.
        """

    async def exec(
        self, ref: str, process: Process, *, detach: bool = False, tag: str = "", keep: bool = False
    ) -> Attachment:
        """Run a process in a running sandbox; `process` is taken as it is. detach: output is discarded, read() gives
        None. tag: the client's own name for it. keep, or a tag: it outlives the attachment and the engine.
        """

    async def processes(self, ref: str) -> Sequence[ProcessView]:
        """Those that exec started, oldest first: all that run, and the last that ended."""

    async def process(self, ref: str, id: str) -> ProcessView:
        """One of them. Raises NotFound (field "process")."""

    async def connect(self, ref: str, id: str) -> Attachment:
        """Attach again: what nobody has read yet (1 MiB at most), then what comes. While somebody is attached the
        program waits for its reader; while nobody is, the oldest output is dropped. Raises NotFound.
        """

    async def signal_process(self, ref: str, id: str, number: int) -> None:
        """Send it a signal. Raises NotFound, Conflict if it has ended, Invalid for a number the kernel does not
        have.
        """

    async def wait_process(self, ref: str, id: str) -> Exit:
        """Its end. Raises NotFound."""

    async def feed_process(self, ref: str, id: str, data: bytes, *, close: bool = False) -> None:
        """Feed its standard input; returns when the program can have taken it. close: end of file after that. Raises
        NotFound, Conflict if it has ended or has none.
        """

    async def resize_process(self, ref: str, id: str, rows: int, cols: int) -> None:
        """Set its terminal's size. Raises NotFound, Conflict if it has none."""

    def files(self, ref: str) -> Files:
        """Its files. Raises NotFound."""

    def door(self, id: str) -> Door:
        """The way to the ports of one that runs, by its whole id. Raises NotFound, Conflict."""

    async def stop(self, ref: str, timeout: float | None = None) -> Sandbox:
        """Stop signal, then SIGKILL after `timeout` seconds (None: the spec's); returns when it has ended. Ended
        already: nothing.
        """

    async def kill(self, ref: str, signal: int) -> None:
        """Signal the main process. Raises Conflict if it does not run."""

    async def pause(self, ref: str, *, reclaim: bool = False) -> Sandbox:
        """Freeze all its processes. reclaim: then have the kernel take back what memory it can (page cache; anonymous
        memory only where there is swap).
        """

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

    async def backup(self, path: Path) -> None:
        """A consistent copy of the state as a new file at `path`, mode 0600. Raises Invalid if it exists."""

    async def reset(self) -> ResetReport:
        """Remove everything this instance ever made. Works on an engine that was never opened, or could not be."""


__all__ = ["Attachment", "Engine", "Files", "Filter", "LogQuery", "STDERR", "STDOUT", "Started"]
