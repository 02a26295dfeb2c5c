"""Ports of the host that are published: who has which.

A published port is held by a bound socket of ours, so that no program of the host takes it (nothing would ever arrive
there) and one that has it is found out at once. Packets never see that socket: the table translates them first, so
that the sandbox sees the client's own address; only what the host sends from 127.0.0.0/8 comes from the gateway's
address, because a loopback address means the sandbox's own there.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from joey.model.errors import Conflict, Exhausted, Invalid, JoeyError, from_os
from joey.model.ports import PublishedPort


class Claim:
    """One port of the host, ours until `close`."""

    def __init__(self, asked: PublishedPort, held: socket.socket | None) -> None:
        self.asked = asked
        self._socket = held
        self.host: int = asked.host if held is None else held.getsockname()[1]

    @property
    def port(self) -> PublishedPort:
        """The mapping as it is, the host's port filled in."""
        return PublishedPort(
            container=self.asked.container, host=self.host, host_ip=self.asked.host_ip, protocol=self.asked.protocol
        )

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def claim_again(port: PublishedPort) -> Claim:
    """The claim of an engine before us, whose sandbox runs on. Whoever has taken the port meanwhile hears nothing
    there: the table goes first.
    """
    try:
        return claim(port)
    except JoeyError:
        return Claim(port, None)


def claim(asked: PublishedPort, *, where: str = "ports") -> Claim:
    """A claim of one port, in the calling thread's network namespace. Raises Conflict naming the port if somebody has
    it, Invalid if the address is not this host's.
    """
    last = asked.host_last or asked.host
    for number in range(asked.host, last + 1):
        try:
            return Claim(asked, _bind(asked, number))
        except OSError as error:
            failure = error
        if failure.errno == errno.EADDRNOTAVAIL:
            raise Invalid(where, f"{asked.host_ip} is no address of this host", "`ip address` lists them") from None
        if failure.errno != errno.EADDRINUSE:
            raise from_os(f"{where}: {asked}", failure)
    if not asked.host:
        raise Exhausted(where, "the host has no free port", "see net.ipv4.ip_local_port_range")
    what = f"port {asked.host}" if last == asked.host else f"every port of {asked.host}-{last}"
    remedy = f"`ss -{'l' if asked.protocol == 'tcp' else 'u'}np` tells by whom; or publish without a host port"
    raise Conflict(where, f"{what}/{asked.protocol} of the host is taken", remedy)


def claim_all(asked: Iterable[PublishedPort]) -> list[Claim]:
    """Claims of all, or none. Raises as claim, `ports[i]` saying which."""
    claims: list[Claim] = []
    try:
        for index, port in enumerate(asked):
            claims.append(claim(port, where=f"ports[{index}]"))
    except JoeyError:
        for one in claims:
            one.close()
        raise
    return claims


def _bind(asked: PublishedPort, number: int) -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM if asked.protocol == "tcp" else socket.SOCK_DGRAM)
    try:
        held.bind((asked.host_ip or "0.0.0.0", number))
    except BaseException:
        held.close()
        raise
    return held
