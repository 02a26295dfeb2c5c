"""Settings of the daemon: options, else environment, else $JOEY_HOME/daemon.toml, else the defaults below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joey.model import codec
from joey.model.errors import Invalid
from joey.model.limits import NodeLimits
from joey.model.value import Value

FILE = "daemon.toml"


class Settings(Value, frozen=True, kw_only=True):
    """How the daemon serves.

    listen          more places beside the instance's own socket: unix:PATH, HOST:PORT, [IPv6]:PORT
    socket_group    group (name or number) that may use the unix sockets: whoever is in it administers
    tls_cert, tls_key   PEM files: TCP is TLS then
    proxy           where the reverse proxy of sandboxes' ports listens: HOST:PORT; auto: on a port of the loopback that
                    stays the same, from when somebody first asks for it; off
    proxy_domain    what stands behind PORT-ID in its hosts, instead of localhost:PORT: [https://]NAME[:PORT]
    docker_socket   absolute path: serve the Docker API there from the start (docs/docker.md)
    proxy_connections   to it at a time; of more the one that has been idle for longest is closed
    idle_exit       seconds without a sandbox and without a request after which it ends; None for never
    max_requests    in flight at a time; more are told to come back (503)
    max_requests_per_key    requests and streams of one key at a time; more are refused (429)
    keys_pull       registries that keys may have asked for images that are not here (docker.io): requests go out from
                    this host, with its credentials
    max_connections by TCP at a time; more are closed
    max_sandboxes   that exist on this node, 0 for as many as fit; more are refused (503)
    memory_overcommit   how many times the machine's memory and swap may be promised as memory limits (256)
    max_starts      of sandboxes in flight at a time; more are told to come back (503)
    header_timeout  seconds a connection may take for a request's head, or be idle
    body_timeout    seconds a request's body may take
    """

    listen: tuple[str, ...] = ()
    socket_group: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    proxy: str = "auto"
    proxy_domain: str = ""
    docker_socket: str = ""
    proxy_connections: int = 2048
    idle_exit: float | None = None
    max_requests: int = 4096
    max_requests_per_key: int = 2048
    keys_pull: tuple[str, ...] = ("docker.io",)
    max_connections: int = 4096
    max_sandboxes: int = 0
    memory_overcommit: float = NodeLimits().memory_overcommit
    max_starts: int = NodeLimits().starts
    header_timeout: float = 75.0
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_requests_per_key", "max_connections", "max_starts", "proxy_connections"):
            if not 1 <= getattr(self, name) <= 1 << 20:
                raise Invalid(name, "is a whole number from 1 to 1048576")
        if not 0 <= self.max_sandboxes <= 1 << 20:
            raise Invalid("max_sandboxes", "is a whole number from 0 (no limit) to 1048576")
        if not 0 < self.memory_overcommit <= 1e6:
            raise Invalid("memory_overcommit", "is a number above 0, 1000000 at most")
        for name in ("header_timeout", "body_timeout", "idle_exit"):
            value = getattr(self, name)
            if value is not None and not (0 < value < 1e9 or (name == "idle_exit" and value == 0)):
                raise Invalid(name, "is a number of seconds above 0")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise Invalid("tls_key" if self.tls_cert else "tls_cert", "certificate and key are given together")

    @property
    def node(self) -> NodeLimits:
        """What all sandboxes together may use."""
        return NodeLimits(
            sandboxes=self.max_sandboxes or None, memory_overcommit=self.memory_overcommit, starts=self.max_starts
        )


def load(home: Path, options: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """The settings of the instance at `home`. options: what was given on the command line, by field.

    Environment: JOEY_LISTEN (several with commas), JOEY_SOCKET_GROUP, JOEY_TLS_CERT and so on, a field each.
    Raises Invalid naming the file, the variable or the field.
    """
    values = _of_file(home / FILE)
    for name in Settings.__struct_fields__:
        variable = f"JOEY_{name.upper()}"
        if text := environment.get(variable):
            values[name] = _of_text(name, text, variable)
    values |= {name: value for name, value in options.items() if value is not None and value != []}
    return codec.convert(Settings, values)


def _of_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import tomllib  # 7 ms that most starts do not need

    try:
        with path.open("rb") as source:
            values = tomllib.load(source)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(str(path), f"is not TOML: {error}") from None
    try:
        codec.convert(Settings, values)
    except Invalid as error:
        raise Invalid(f"{path}: {error.where}", error.message, error.remedy) from None
    return values


def _of_text(name: str, text: str, variable: str) -> Any:
    if name in ("listen", "keys_pull"):
        return [part.strip() for part in text.split(",") if part.strip()]
    default = getattr(Settings(), name)
    if isinstance(default, str):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise Invalid(variable, f"{text!r} is not a number") from None
