"""What the engine tells about sandboxes: frozen values, encoded as they are by the HTTP API."""

from __future__ import annotations

from typing import Literal

import msgspec

from joey.model.cgroup import Usage
from joey.model.spec import SandboxSpec

State = Literal["created", "running", "paused", "exited", "dead"]
"""dead: it is being removed, and what it held is not yet proven free."""

Health = Literal["starting", "healthy", "unhealthy"]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base: immutable. Unlike a request it may gain fields, so that an older client reads a newer engine."""


class Exit(View, frozen=True):
    """How a process ended. `code`: its status, or 128 + `signal`. `oom`: the kernel killed in it for lack of memory.

    `at`: seconds since the epoch. `error`: why it never started, else empty.
    """

    code: int
    signal: int = 0
    oom: bool = False
    at: float = 0.0
    error: str = ""


class Sandbox(View, frozen=True):
    """One row of `joey ps`. Times are seconds since the epoch; `exit` is that of the last run, None while there was
    none.

    id: 24 hexadecimal characters. argv: what runs, the image's defaults included. pid: of the host, None when not
    running. owner: "" the administrator's, else the id of an API key. restarts: runs the restart policy began.
    deadline: when its timeout acts. restart_at: when the next of those runs begins, None if none does. health: None
    without a check.
    """

    id: str
    name: str
    image: str
    argv: tuple[str, ...]
    state: State
    created: float
    started: float | None = None
    finished: float | None = None
    pid: int | None = None
    exit: Exit | None = None
    tty: bool = False
    labels: dict[str, str] = {}
    owner: str = ""
    restarts: int = 0
    deadline: float | None = None
    restart_at: float | None = None
    health: Health | None = None


class ProcessView(View, frozen=True):
    """A process that exec started in a sandbox.

    id: names it within this instance, for ever. pid: of the host. tag: the client's own name for it. exit: None while
    it runs.
    """

    id: str
    sandbox: str
    pid: int
    argv: tuple[str, ...]
    cwd: str = ""
    user: str = ""
    tty: bool = False
    tag: str = ""
    started: float = 0.0
    exit: Exit | None = None


class Event(View, frozen=True):
    """Something happened. id: grows by one an event, also across restarts of the engine (some are left out after one
    that was killed). at: seconds since the epoch. owner: of the sandbox.

    type: `sandbox.` created started (data: restarts) exited (data: code, signal, oom, error) paused resumed reclaimed
    (data: bytes) updated renamed (data: before) removed oom health (data: health) timeout (data: idle) restarting
    (data: at, restarts); `process.` started exited (data: process, tag; code, signal, oom); `pool.` created filled
    removed; `events.lost` (data: count). sandbox, name: "" where there is none.
    """

    id: int
    at: float
    type: str
    sandbox: str = ""
    name: str = ""
    labels: dict[str, str] = {}
    owner: str = ""
    data: dict[str, str | int | float | bool | None] = {}


class FileInfo(View, frozen=True):
    """One entry of a sandbox's file system. path: absolute inside. mode: permission bits. user, group: by the sandbox's
    own files, "" if they name none. modified: seconds since the epoch. target: of a link.
    """

    name: str
    path: str
    type: Literal["file", "directory", "link", "fifo", "socket", "char", "block"]
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    modified: float = 0.0
    target: str = ""


class FileEvent(View, frozen=True):
    """A change below what is watched. path: absolute inside."""

    type: Literal["created", "modified", "removed", "moved", "attributes", "overflow"]
    path: str


class Detail(View, frozen=True):
    """Everything `joey inspect` shows. `paths`: name -> path on the host (log, writable layer, cgroups), for those who
    debug.
    """

    sandbox: Sandbox
    spec: SandboxSpec
    paths: dict[str, str] = {}
    slot: str = ""


class Stats(View, frozen=True):
    """What one sandbox uses at `at` (seconds since the epoch); `cpus` is the limit it has, None for none."""

    id: str
    name: str
    at: float
    usage: Usage
    cpus: float | None = None


class LogEntry(View, frozen=True):
    """A piece of output as the engine read it: not necessarily a whole line. `stream`: 1 stdout, 2 stderr."""

    at: float
    stream: Literal[1, 2]
    data: bytes


class Check(View, frozen=True):
    """One line of `joey doctor`. missing: it does not work; limited: some requests will be refused."""

    name: str
    state: Literal["ok", "limited", "missing"]
    found: str
    remedy: str = ""


class Node(View, frozen=True):
    """This machine and this engine. `counts`: state -> number of sandboxes."""

    version: str
    home: str
    instance: str
    kernel: str
    arch: str
    cpus: int
    memory_total: int
    counts: dict[str, int] = {}
    checks: tuple[Check, ...] = ()


class DiskUsage(View, frozen=True):
    """What one kind of thing (layers, logs, images, state) takes: so many, on disk, and in memory (bytes)."""

    kind: str
    count: int
    bytes: int = 0
    memory: int = 0


class ResetReport(View, frozen=True):
    """What a reset removed, kind -> number (sandboxes, processes, cgroups, mounts, links, files)."""

    removed: dict[str, int] = {}
