"""Where an engine is, and with which key we come: JOEY_HOME (unix socket), or JOEY_URL and JOEY_API_KEY."""

from __future__ import annotations

import os
from typing import NamedTuple

from joey.client.errors import Invalid, Unreachable
from joey.client.transport import socket_path


class Endpoint(NamedTuple):
    """`path` of a unix socket, or host, port and tls. `local`: an engine of this machine that may be started by us."""

    path: str = ""
    host: str = "joey"
    port: int = 0
    tls: bool = False
    api_key: str = ""
    local: bool = False

    @property
    def headers(self) -> str:
        """The header lines of every request."""
        host = f"{self.host}:{self.port}" if self.port else self.host
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        return f"Host: {host}\r\n{key}"

    def __str__(self) -> str:
        return self.path or f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def find(url: str | None = None, api_key: str | None = None) -> Endpoint:
    """The engine at `url` (http://, https://, unix:///path), else at JOEY_URL, else this machine's (JOEY_HOME).

    Raises Invalid for a URL or key that cannot be one.
    """
    url = os.environ.get("JOEY_URL", "") if url is None else url
    key = os.environ.get("JOEY_API_KEY", "") if api_key is None else api_key
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Invalid("api_key", "holds characters that no key has", "joey keys create prints one")
    if not url:
        return Endpoint(path=str(socket_path()), api_key=key, local=True)  # type: ignore[no-untyped-call]
    scheme, found, rest = url.partition("://")
    if found and scheme == "unix" and rest.startswith("/"):
        return Endpoint(path=rest, api_key=key)
    rest = rest.rstrip("/")
    if not found or scheme not in ("http", "https") or not rest or set("/@?#") & set(rest) or not rest.isascii():
        raise Invalid(
            "url", f"{url!r} is no address of an engine", "http://HOST:PORT, https://HOST:PORT or unix:///PATH"
        )
    host, _, port = rest.rpartition(":") if not rest.endswith("]") else (rest, "", "")
    if not host:
        host, port = port, ""
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise Invalid("url", f"{port!r} is no port", "http://HOST:PORT")
    tls = scheme == "https"
    return Endpoint(host=host, port=int(port or (443 if tls else 80)), tls=tls, api_key=key)


def unreachable(endpoint: Endpoint, error: OSError) -> Unreachable:
    """What to raise when connecting failed."""
    remedy = "joey doctor" if endpoint.local else "is the engine running there, and the address right?"
    kinds = [kind.__name__ for kind in type(error).__mro__]  # without importing ssl, which is dear
    if "SSLCertVerificationError" in kinds:
        remedy = "if it signs its own certificate, name that file in JOEY_CA"
    problem = Unreachable("engine", f"no engine answers at {endpoint}: {error.strerror or error}", remedy)
    problem.lasting = "SSLError" in kinds
    problem.errno = error.errno
    return problem


def may_start(endpoint: Endpoint, error: Unreachable) -> bool:
    """Whether the reason is that nobody serves this machine's socket, as opposed to: we may not ask."""
    import errno

    return endpoint.local and error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)


def start() -> None:
    """Start this machine's engine, or wait for whoever starts it. Raises Unreachable."""
    from joey.cli.spawn import spawn
    from joey.client import transport

    try:
        spawn()  # type: ignore[no-untyped-call]
    except transport.Unreachable as error:
        if " serves " in str(error):
            return  # one that begins or ends just now holds the lock: the caller tries again
        raise Unreachable("engine", str(error), getattr(error, "remedy", "") or "joey doctor") from None
