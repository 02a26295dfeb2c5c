"""What a sandbox is: the request, as frozen values that hold no I/O and no host state.

A `SandboxSpec` says what the user wants; what this machine can do stands in `joey.model.facts`, and `joey.plan.compile`
joins the two. Field names follow the OCI runtime specification (config.md) where it has the thing, Docker's CLI
otherwise. Decode untrusted JSON with `joey.model.codec.decode(SandboxSpec, data)`: it refuses unknown fields and names
the bad one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import UNSET, UnsetType, field

from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.errors import Invalid
from joey.model.network import NetworkSpec, check_mode
from joey.model.resources import Resources
from joey.model.seccomp import SeccompPolicy
from joey.model.value import Value
from joey.model.volumes import VolumeMount

_TOKEN = re.compile(r"[A-Za-z0-9._~\-]{8,256}")  # it travels in a header, a query and a cookie


class Mount(Value, frozen=True, kw_only=True):
    """One bind mount of a host path (mount(8), `docker run -v`).

    `source` is an absolute path of the host, opened once by the engine; `target` an absolute path inside the sandbox.
    `idmap` shows the host's uid 0..65535 as the sandbox's own 0..65535; without it files keep their host owners, which
    the sandbox sees as nobody.
    """

    source: str
    target: str
    read_only: bool = False
    recursive: bool = True
    propagation: Literal["private", "rprivate", "slave", "rslave", "shared", "rshared"] = "rprivate"
    idmap: bool = True
    noexec: bool = False


class Tmpfs(Value, frozen=True, kw_only=True):
    """An empty directory in memory, charged to the sandbox. `size` (bytes) makes it a file system of its own, with that
    limit.
    """

    target: str
    size: int | None = None
    mode: int = 0o1777
    noexec: bool = False


class Device(Value, frozen=True, kw_only=True):
    """A device node of the host shown inside (`docker run --device`). `access` is any of r, w, m."""

    path: str
    target: str = ""
    access: str = "rw"


class Rlimit(Value, frozen=True, kw_only=True):
    """A resource limit by its name without RLIMIT_ (getrlimit(2)), e.g. NOFILE. None is infinity."""

    name: str
    soft: int | None
    hard: int | None


class Process(Value, frozen=True, kw_only=True):
    """One process: the main one of a sandbox, or one run inside later (exec).

    argv      (n,) program and arguments; a name without "/" is looked up in PATH inside the sandbox
    env       {name: value}; merged over the image's
    cwd       absolute directory inside; "" takes the image's, else "/"
    user      "", "uid", "name", "uid:gid", "name:group": resolved against the sandbox's own /etc/passwd and /etc/group
    tty       a pseudo-terminal as stdin, stdout and stderr
    stdin     keep standard input open (else /dev/null)
    """

    argv: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    groups: tuple[int, ...] = ()
    tty: bool = False
    stdin: bool = False
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    no_new_privileges: bool = True
    rlimits: tuple[Rlimit, ...] = ()
    umask: int = 0o022
    rows: int = 24
    cols: int = 80


class Restart(Value, frozen=True, kw_only=True):
    """Whether a run that ended is followed by another (`docker run --restart`).

    on-failure: after a code other than 0, at most `max_retries` times in a row (None: without end). always, and
    unless-stopped (the same, except that one stopped by a user stays so when the engine starts again).
    """

    policy: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    max_retries: int | None = None


class HealthCheck(Value, frozen=True, kw_only=True):
    """How to find out whether a running sandbox works: exactly one of command, http and tcp (seconds everywhere).

    command         (n,) run inside; 0 is healthy
    http            a URL whose host is the sandbox's loopback, e.g. http://127.0.0.1:8080/health; 200 to 399 is healthy
    tcp             a port of the sandbox's loopback that accepts
    start_period    failures in it do not count; until the first success in it it looks every start_interval

    A sandbox whose spec has none takes over its image's. The command ("NONE",), as in Docker's API: it shall not.
    """

    command: tuple[str, ...] = ()
    http: str = ""
    tcp: int | None = None
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    start_period: float = 0.0
    start_interval: float = 5.0

    @property
    def none(self) -> bool:
        """Whether it says that there is to be no check."""
        return self.command == ("NONE",)


class SandboxSpec(Value, frozen=True, kw_only=True):
    """One isolated environment and its main process.

    Exactly one of `image` and `rootfs` is given; `pull` says when a registry is asked for the image, `platform` which
    one of several it is to be ("" for this machine's). `entrypoint` stands before `process.argv` instead of the image's
    (None: the image's); a given one, even empty, also discards the image's default arguments, as Docker does. `init`
    runs joey-init as PID 1 in front of the main process; with an empty argv joey-init runs alone and processes come by
    exec. `storage` says where the writable layer lives: "memory" (a directory on a shared tmpfs, charged to the
    sandbox and so bounded by its memory limit) or "disk". `timeout` (seconds since it was started, restarts included)
    kills or pauses it, as `on_timeout` says, and no restart follows; so does `idle_timeout`: seconds in which nobody
    was attached to it, no process by exec ran, and no request wanted more of it than to look (list, inspect, stats,
    logs, wait and events only look). An engine that starts counts them anew; the timeout goes on.
    `network` is a mode (none, nat, host, container:SANDBOX or the name of a private network) or, with policy, ports and
    names, a NetworkSpec; by default nothing is reachable but the sandbox's own loopback.
    `proxy_token`: what requests by the reverse proxy must carry (X-Access-Token); None lets in whoever knows the id.
    `devpts` mounts a pseudo-terminal file system of its own; it is there anyway with `process.tty`, and added when a
    terminal is first asked for by exec.
    """

    image: str = ""
    rootfs: str = ""
    pull: Literal["missing", "always", "never"] = "missing"
    platform: str = ""
    process: Process = Process()
    entrypoint: tuple[str, ...] | None = None
    name: str = ""
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    devices: tuple[Device, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    seccomp: SeccompPolicy | Literal["default", "unconfined"] = "default"
    read_only: bool = False
    resources: Resources = Resources.default()
    network: str | NetworkSpec = "none"
    init: bool = False
    devpts: bool = True
    storage: Literal["memory", "disk"] = "memory"
    shm_size: int | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    oom_score_adj: int = 0
    stop_signal: str = "SIGTERM"
    stop_timeout: float = 10.0
    labels: dict[str, str] = field(default_factory=dict)
    remove: bool = False
    restart: Restart = Restart()
    timeout: float | None = None
    idle_timeout: float | None = None
    on_timeout: Literal["kill", "pause"] = "kill"
    health: HealthCheck | None = None
    proxy_token: str | None = None

    def __post_init__(self) -> None:
        if self.proxy_token is not None and not _TOKEN.fullmatch(self.proxy_token):
            raise Invalid("proxy_token", "is not 8 to 256 letters, digits and . _ ~ -", "openssl rand -hex 16")
        if isinstance(self.network, str) and self.network != "none":
            check_mode("network", self.network)


MAX_LABELS = 32 << 10
"""Characters of all labels of a sandbox together. Every event of it carries them, and an engine keeps 10,000 events."""


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises Invalid naming labels if they are too long."""
    if labels and (length := sum(len(name) + len(value) for name, value in labels.items())) > MAX_LABELS:
        raise Invalid("labels", f"{length} characters, at most {MAX_LABELS}", "keep what is long in a file")


class Update(Value, frozen=True, kw_only=True):
    """What to change of a sandbox (`PATCH /v1/sandboxes/{ref}`, in the manner of RFC 7396): what is not given stays.

    resources: fields of Resources, e.g. {"memory": 1073741824}; None takes a limit away. labels: name -> value, None
    removes one. network: fields of NetworkPolicy, e.g. {"internet": False, "rules": []}, which denies all; in effect,
    for running connections too, when the call returns. timeout: seconds from now, None for no end. idle_timeout:
    seconds, None for none.
    """

    resources: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    timeout: float | UnsetType | None = UNSET
    idle_timeout: float | UnsetType | None = UNSET
    on_timeout: Literal["kill", "pause"] | UnsetType = UNSET
    restart: Restart | UnsetType = UNSET
