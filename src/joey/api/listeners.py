"""Where the daemon listens: the instance's socket, others by option, and those systemd hands over.

By a unix socket comes the administrator (mode 0600, with a group 0660). By TCP comes who has an API key: an address
other machines can reach is refused while there is no key at all.
"""

from __future__ import annotations

import grp
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from joey.api.config import Settings
from joey.model.errors import Invalid

BACKLOG = 4096
_SUN_PATH = 107
_FIRST_FD = 3
"""sd_listen_fds(3): descriptors from here on."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. local: unix. tls: None without. name: as it is logged."""

    sock: socket.socket
    local: bool
    name: str
    tls: ssl.SSLContext | None = None
    path: Path | None = None
    """Of a unix socket we made: it is removed at the end."""


def listen(path: Path, backlog: int = BACKLOG, group: int | None = None) -> socket.socket:
    """A listening unix socket at `path`, for its owner only or also for `group`. Replaces a socket that is there.
    Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # A path may be longer than sun_path; its folder's descriptor is not.
        address = str(path) if len(os.fsencode(path)) <= _SUN_PATH else f"/proc/self/fd/{folder}/{path.name}"
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # the mode is right from the first moment
        try:
            sock.bind(address)
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)


def open_all(settings: Settings, home: Path, own: Path, has_keys: bool, handed: list[socket.socket]) -> list[Listener]:
    """Everything to listen on: `own` unless systemd handed it over, what was `handed`, and settings.listen.

    Raises Invalid naming `listen` (or tls_cert, socket_group), OSError. Nothing stays open then.
    """
    group = group_of(settings.socket_group)
    tls = _tls(settings)
    found: list[Listener] = []
    try:
        for sock in handed:
            found.append(_handed(sock, has_keys, tls))
        if not any(listener.local and listener.name == str(own) for listener in found):
            if group is not None:
                for folder in (home, own.parent):  # only through, to the socket
                    os.chown(folder, -1, group)
                    folder.chmod(0o710)
            found.append(Listener(listen(own, group=group), True, str(own), path=own))
        for text in settings.listen:
            found.append(_open(text, group, has_keys, tls))
    except BaseException:
        for listener in found:
            listener.sock.close()
        raise
    return found


def _open(text: str, group: int | None, has_keys: bool, tls: ssl.SSLContext | None) -> Listener:
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise Invalid("listen", f"{text!r}: the path is not absolute")
        if path.exists() and not path.is_socket():
            raise Invalid("listen", f"{path} is there and is no socket")
        return Listener(listen(path, group=group), True, str(path), path=path)
    host, port = address_of(text)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except socket.gaierror as error:
        raise Invalid("listen", f"{text!r}: {error.strerror}") from None
    _check(str(address[0]), text, has_keys)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Invalid("listen", f"{text!r}: {error.strerror}") from None
    return Listener(sock, False, _said(sock), tls)


def address_of(text: str, field: str = "listen") -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPv6]:PORT. Raises Invalid naming `field`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isdigit() or int(port) > 65535 or (":" in host and not text.startswith("[")):
        raise Invalid(field, f"{text!r} is neither unix:PATH nor HOST:PORT", "127.0.0.1:8080, [::1]:8080, unix:/run/x")
    return host, int(port)


def _check(host: str, text: str, has_keys: bool) -> None:
    """Raises Invalid for an address others can reach, as long as nobody could have a key."""
    import ipaddress

    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback and not has_keys:
        raise Invalid(
            "listen",
            f"{text!r} can be reached from other machines, and there is no API key",
            "joey keys create first, or listen on 127.0.0.1",
        )


def _handed(sock: socket.socket, has_keys: bool, tls: ssl.SSLContext | None) -> Listener:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise Invalid("LISTEN_FDS", "a descriptor handed over is no listening stream socket")
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return Listener(sock, True, os.fsdecode(sock.getsockname()))
    _check(str(sock.getsockname()[0]), _said(sock), has_keys)
    return Listener(sock, False, _said(sock), tls)


def handed_over(environment: Mapping[str, str], take: Callable[[int], socket.socket]) -> list[socket.socket]:
    """Sockets of systemd's socket activation (sd_listen_fds(3)); none if they are for another process.

    Raises Invalid naming LISTEN_FDS.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    text = environment.get("LISTEN_FDS", "0")
    if not text.isdigit() or int(text) > 1024:
        raise Invalid("LISTEN_FDS", f"{text!r} is not a number of descriptors")
    found: list[socket.socket] = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(text)):
        try:
            os.set_inheritable(fd, False)
            found.append(take(fd))
        except OSError as error:
            for sock in found:
                sock.close()
            raise Invalid("LISTEN_FDS", f"descriptor {fd}: {error.strerror}") from None
    return found


def _said(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def group_of(text: str) -> int | None:
    """The number of the setting socket_group, None for none. Raises Invalid."""
    if not text:
        return None
    if text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise Invalid("socket_group", f"there is no group {text!r}", f"groupadd --system {text}") from None


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except FileNotFoundError as error:
        raise Invalid("tls_cert", f"{error.filename or settings.tls_cert}: {error.strerror}") from None
    except (ssl.SSLError, OSError) as error:
        raise Invalid("tls_cert", f"certificate and key cannot be used: {error}") from None
    return context
