"""What the engine tells about sandboxes: frozen values, encoded as they are by the HTTP API."""

from __future__ import annotations

from typing import Literal

import msgspec

from joey.model.cgroup import Usage
from joey.model.ports import PublishedPort
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
    without a check. network: its mode. address: of its own, while it runs with nat or in a private network. ports:
    published now, the host's ports filled in.
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
    network: str = "none"
    address: str = ""
    ports: tuple[PublishedPort, ...] = ()


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


class PortHost(View, frozen=True):
    """How a port of a sandbox is reached through the reverse proxy: `Host` of the requests, and as a URL."""

    host: str
    url: str


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


class NetworkUsage(View, frozen=True):
    """What went through a sandbox's link: `sent` by it and `received`, in bytes and packets. refused: what its policy
    refused; names_asked and names_refused: DNS questions (these two of the engine that runs now).
    """

    sent: int = 0
    received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    refused: int = 0
    refused_packets: int = 0
    names_asked: int = 0
    names_refused: int = 0


class NetworkMember(View, frozen=True):
    """A sandbox in a private network; address "" while it does not run."""

    id: str
    name: str
    address: str = ""


class NetworkView(View, frozen=True):
    """A private network. owner: "" the administrator's. members: who refers to it, running or not."""

    name: str
    internal: bool = False
    labels: dict[str, str] = {}
    created: float = 0.0
    owner: str = ""
    members: tuple[NetworkMember, ...] = ()


class Stats(View, frozen=True):
    """What one sandbox uses at `at` (seconds since the epoch); `cpus` is the limit it has, None for none. network: None
    without a link of its own.
    """

    id: str
    name: str
    at: float
    usage: Usage
    cpus: float | None = None
    network: NetworkUsage | None = None


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


class Load(View, frozen=True):
    """What there is of what there may be on this node: sandboxes (warm ones included; limit None for as many as fit),
    bytes of memory promised as limits to those that run (the limit is memory and swap times the overcommit), starts in
    flight.
    """

    sandboxes: int = 0
    sandboxes_limit: int | None = None
    memory: int = 0
    memory_limit: int = 0
    memory_overcommit: float = 1.0
    starts: int = 0
    starts_limit: int = 0


class Node(View, frozen=True):
    """This machine and this engine. `counts`: state -> number of sandboxes. `load`: against the node's limits."""

    version: str
    home: str
    instance: str
    kernel: str
    arch: str
    cpus: int
    memory_total: int
    counts: dict[str, int] = {}
    checks: tuple[Check, ...] = ()
    load: Load = Load()


class Pool(View, frozen=True):
    """A warm pool: what it is, and how it does. spec: what its members are made of. ready: may be handed out now.
    starting: under way. handed_out: sandboxes given since the engine started, missed: creates that found none ready
    (they were started like any other). error: why the last member could not be started, "" if it could.
    """

    name: str
    owner: str
    created: float
    size: int
    max_starting: int
    spec: SandboxSpec
    ready: int = 0
    starting: int = 0
    handed_out: int = 0
    missed: int = 0
    error: str = ""


class DiskUsage(View, frozen=True):
    """What one kind of thing (layers, logs, images, state) takes: so many, on disk, and in memory (bytes)."""

    kind: str
    count: int
    bytes: int = 0
    memory: int = 0


class ResetReport(View, frozen=True):
    """What a reset removed, kind -> number (sandboxes, processes, cgroups, mounts, links, files)."""

    removed: dict[str, int] = {}
