"""Published ports: `-p [ip:][host[-host]:]container[-container][/tcp|udp]`, Docker's grammar (docker-run(1))."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from joey.model.errors import Invalid
from joey.model.value import Value

_TEXT = re.compile(
    r"(?:(?:(?P<ip>\[[^\]]*\]|[^:\[\]]*):)?(?P<host>[0-9-]*):)?(?P<inside>[^:/]+)(?:/(?P<protocol>\w+))?", re.ASCII
)


class PublishedPort(Value, frozen=True, kw_only=True):
    """One port of the sandbox reachable through the host.

    host_ip     address of the host, "" is all of them
    host        port on the host; 0 takes a free one, within host_last if that is given (host..host_last)
    container   port inside
    """

    container: int
    host: int = 0
    host_last: int = 0
    host_ip: str = ""
    protocol: Literal["tcp", "udp"] = "tcp"

    def __post_init__(self) -> None:
        _check("container", self.container, 1)
        _check("host", self.host, 0)
        _check("host_last", self.host_last, 0)
        if self.host_last and (not self.host or self.host_last < self.host):
            raise Invalid("host_last", f"{self.host}-{self.host_last} is no range")
        if self.host_ip:
            try:
                address = ipaddress.ip_address(self.host_ip)
            except ValueError:
                raise Invalid("host_ip", f"{self.host_ip!r} is no IP address") from None
            if address.version == 6 or address.is_multicast:
                raise Invalid("host_ip", f"{self.host_ip} cannot be published on", "use an IPv4 address of this host")

    def __str__(self) -> str:
        host = f"{self.host}-{self.host_last}" if self.host_last else str(self.host or "")
        return f"{self.host_ip + ':' if self.host_ip else ''}{host}:{self.container}/{self.protocol}"


def parse_port_range(where: str, text: str) -> tuple[int, int]:
    """ "80" or "8000-8010" → first and last. Raises Invalid naming `where`."""
    first, dash, last = text.partition("-")
    if not re.fullmatch("[0-9]{1,5}", first, re.ASCII) or (dash and not re.fullmatch("[0-9]{1,5}", last, re.ASCII)):
        raise Invalid(where, f"{text!r} is no port", "a number, or a range such as 8000-8010")
    ports = int(first), int(last or first)
    for port in ports:
        _check(where, port, 1)
    if ports[1] < ports[0]:
        raise Invalid(where, f"the range {text} ends before it begins")
    return ports


def parse_published(where: str, text: str) -> tuple[PublishedPort, ...]:
    """The ports of one `-p`: a range inside is as many ports. Raises Invalid naming `where`.

    `80` (a free port of the host), `8080:80`, `127.0.0.1:8080:80`, `127.0.0.1::80`, `8000-8002:80-82`,
    `8000-8010:80` (the first free one of the range), each with /tcp or /udp; an IPv6 host address in brackets.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise Invalid(where, f"{text!r} is no port mapping", "[ip:][host:]container[/tcp|udp]")
    address, host, protocol = (match["ip"] or "").strip("[]"), match["host"] or "", match["protocol"] or "tcp"
    if protocol not in ("tcp", "udp"):
        raise Invalid(where, f"{text!r}: protocol {protocol} cannot be published", "tcp or udp")
    first, last = parse_port_range(where, match["inside"])
    outside = parse_port_range(where, host) if host else None
    try:
        if outside is None:
            return tuple(_port(inside, 0, 0, address, protocol) for inside in range(first, last + 1))
        if first == last and outside[0] != outside[1]:
            return (_port(first, outside[0], outside[1], address, protocol),)
        if outside[1] - outside[0] != last - first:
            raise Invalid(where, f"{text!r}: the ranges are of different length")
        return tuple(
            _port(first + index, outside[0] + index, 0, address, protocol) for index in range(last - first + 1)
        )
    except Invalid as error:
        raise Invalid(where, f"{text!r}: {error.message}" if error.where != where else error.message) from None


def _port(inside: int, host: int, host_last: int, address: str, protocol: str) -> PublishedPort:
    return PublishedPort(
        container=inside,
        host=host,
        host_last=host_last,
        host_ip=address,
        protocol=protocol,  # type: ignore[arg-type]
    )


def _check(where: str, port: int, least: int) -> None:
    if not least <= port <= 65535:
        raise Invalid(where, f"{port} is no port", f"{least} to 65535")
