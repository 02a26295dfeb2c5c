"""rtnetlink messages for links, addresses, routes and neighbours: pure functions from values to `Message`, and the few
questions we ask. Addresses are IPv4 as four bytes (`socket.inet_aton`).

Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,veth}.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from joey.host.netlink import (
    F_CREATE,
    F_EXCL,
    F_REPLACE,
    NETLINK_ROUTE,
    Link,
    Message,
    NetlinkError,
    attribute,
    attributes,
    nested,
    text,
    u32,
)  # fmt: skip

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH = 28
IFF_UP, IFF_NOARP = 1, 0x80
_ADDRESS, _IFNAME, _MTU, _LINKINFO, _AF_SPEC, _GROUP, _NETNS_FD, _TXQ, _RXQ = 1, 3, 4, 18, 26, 27, 28, 31, 32
DEVCONF_FORWARDING, DEVCONF_REDIRECTS, DEVCONF_SEND_REDIRECTS = 1, 4, 6
DEVCONF_RP_FILTER, DEVCONF_ROUTE_LOCALNET = 8, 26
_TABLE_MAIN, _SCOPE_HOST, _SCOPE_LINK, _SCOPE_UNIVERSE = 254, 254, 253, 0
PROTOCOL = 74
"""Our routes carry this number (rtm_protocol), so that `ip route show proto 74` names them."""
_ONLINK = 4
_NUD_PERMANENT = 0x80


def link_header(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """struct ifinfomsg"""
    return struct.pack("=BxHiII", family, 0, index, flags, change)


@dataclass(frozen=True)
class Veth:
    """A pair: one end here, its peer `inner` in the network namespace of descriptor `netns`. `group` marks our ends.
    The indices of both are chosen by the caller, who then needs no answer to go on.
    """

    name: str
    index: int
    group: int
    mac: bytes
    netns: int
    inner: str
    inner_index: int
    inner_mac: bytes
    mtu: int = 1500


def new_veth(pair: Veth) -> Message:
    """Both ends in one message, neither speaking ARP, both down (the first has no peer yet to be up with)."""
    queues = u32(_TXQ, 1) + u32(_RXQ, 1)
    peer = (
        link_header(pair.inner_index, IFF_NOARP, IFF_NOARP)
        + text(_IFNAME, pair.inner)
        + attribute(_ADDRESS, pair.inner_mac)
        + u32(_MTU, pair.mtu)
        + u32(_NETNS_FD, pair.netns)
        + queues
    )
    body = (
        link_header(pair.index, IFF_NOARP, IFF_NOARP)
        + text(_IFNAME, pair.name)
        + attribute(_ADDRESS, pair.mac)
        + u32(_MTU, pair.mtu)
        + u32(_GROUP, pair.group)
        + queues
        + nested(_LINKINFO, text(1, "veth"), nested(2, nested(1, peer)))
    )
    return Message(NEWLINK, F_CREATE | F_EXCL, body, f"create {pair.name}")


def set_link(index: int, conf: dict[int, int], *, up: bool = True, no_ipv6: bool = True) -> Message:
    """Bring a link up (or leave it), with IPv4 settings of its own {DEVCONF_*: value} and no IPv6 address."""
    families = []
    if conf:
        families.append(nested(socket.AF_INET, nested(1, *(u32(key, value) for key, value in conf.items()))))
    if no_ipv6 and socket.has_ipv6:
        families.append(nested(socket.AF_INET6, attribute(8, b"\1")))  # addr_gen_mode none
    body = link_header(index, IFF_UP if up else 0, IFF_UP if up else 0) + nested(_AF_SPEC, *families)
    return Message(NEWLINK, 0, body, f"set link {index}")


def link_up(index: int) -> Message:
    return Message(NEWLINK, 0, link_header(index, IFF_UP, IFF_UP), f"link {index} up")


def add_address(index: int, address: bytes, prefix: int = 32, *, host_scope: bool = False) -> Message:
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, _SCOPE_HOST if host_scope else _SCOPE_UNIVERSE, index)
    body += attribute(1, address) + attribute(2, address)
    return Message(NEWADDR, F_CREATE | F_REPLACE, body, f"address {socket.inet_ntoa(address)}")


def delete_address(index: int, address: bytes, prefix: int = 32) -> Message:
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index) + attribute(1, address) + attribute(2, address)
    return Message(DELADDR, 0, body, f"delete address {socket.inet_ntoa(address)}")


def host_route(index: int, address: bytes, source: bytes) -> Message:
    """`address` is behind link `index`; what the host itself sends there comes from `source`."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, _TABLE_MAIN, PROTOCOL, _SCOPE_LINK, 1, 0)
    body += attribute(1, address) + u32(4, index) + attribute(7, source)
    return Message(NEWROUTE, F_CREATE | F_REPLACE, body, f"route to {socket.inet_ntoa(address)}")


def default_route(index: int, gateway: bytes) -> Message:
    """Everything else is behind `gateway`, which need not be in any subnet of ours (onlink)."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, PROTOCOL, _SCOPE_UNIVERSE, 1, _ONLINK)
    body += attribute(5, gateway) + u32(4, index)
    return Message(NEWROUTE, F_CREATE | F_REPLACE, body, f"default route via {socket.inet_ntoa(gateway)}")


def static_neighbour(index: int, address: bytes, mac: bytes) -> Message:
    """A permanent entry: never asked for, never forgotten, not counted against neigh.default.gc_thresh3."""
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    body += attribute(1, address) + attribute(2, mac)
    return Message(NEWNEIGH, F_CREATE | F_REPLACE, body, f"neighbour {socket.inet_ntoa(address)}")


@dataclass(frozen=True)
class Found:
    """A link that exists."""

    index: int
    name: str
    group: int
    up: bool
    mtu: int


def links(link: Link, *, group: int | None = None) -> list[Found]:
    """All links of the namespace, or those of a group. Reads them all: not for the path of a launch."""
    found = []
    for body in link.dump(Message(GETLINK, 0, link_header(), "list links")):
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
        values = attributes(body, 16)
        number = struct.unpack("=I", values[_GROUP])[0] if _GROUP in values else 0
        if group is None or number == group:
            name = values[_IFNAME].rstrip(b"\0").decode()
            found.append(Found(index, name, number, bool(flags & IFF_UP), struct.unpack("=I", values[_MTU])[0]))
    return found


def conf_of(link: Link, index: int, which: int) -> int | None:
    """An IPv4 setting (DEVCONF_*) of a link; None if the link is gone."""
    body = link.ask(Message(GETLINK, 0, link_header(index), f"link {index}"))
    if body is None:
        return None
    families = attributes(attributes(body, 16).get(_AF_SPEC, b""))
    table = attributes(families.get(socket.AF_INET, b"")).get(1, b"")
    return int(struct.unpack_from("=i", table, 4 * (which - 1))[0]) if len(table) >= 4 * which else None


def settle(link: Link, index: int) -> None:
    """Make a link whose other end has just come up ready to send. The end that was up first drops what it is given
    until a worker of the kernel has seen the other (net/core/link_watch.c): every fourth new sandbox lost its first
    SYN so and took a second. To ask for the link makes the kernel look at once (Linux 6.8; before, slots that wait for
    a launch have the time).
    """
    link.ask(Message(GETLINK, 0, link_header(index), f"link {index}"))


def counters(link: Link, index: int) -> tuple[int, int, int, int] | None:
    """(bytes received, bytes sent, packets received, packets sent) of a link; None if it is gone."""
    body = link.ask(Message(GETLINK, 0, link_header(index), f"link {index}"))
    if body is None or 23 not in (values := attributes(body, 16)):
        return None
    rx_packets, tx_packets, rx_bytes, tx_bytes = struct.unpack_from("=4Q", values[23])
    return rx_bytes, tx_bytes, rx_packets, tx_packets


class Route(NamedTuple):
    """An IPv4 route: where to, out of which link (0: none), whether directly (no gateway)."""

    network: ipaddress.IPv4Network
    link: int
    direct: bool
    protocol: int
    unicast: bool


def routes(link: Link) -> Iterator[Route]:
    """Every IPv4 route of every table, local ones too."""
    request = Message(GETROUTE, 0, struct.pack("=BBBBBBBBI", socket.AF_INET, *(0,) * 7, 0), "list routes")
    for body in link.dump(request):
        _, length, _, _, _, protocol, _, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
        if flags & 0x200:  # RTM_F_CLONED: an entry of the cache
            continue
        values = attributes(body, 12)
        address = values.get(1, b"\0\0\0\0")
        oif = struct.unpack("=I", values[4])[0] if 4 in values else 0
        direct = 5 not in values and 9 not in values and 18 not in values
        yield Route(ipaddress.IPv4Network((address, length)), oif, direct, protocol, kind == 1)


def open_watch() -> Link:
    """A socket that hears of every IPv4 address that comes or goes in the calling thread's namespace."""
    return Link(NETLINK_ROUTE, groups=1 << (5 - 1))  # RTNLGRP_IPV4_IFADDR


def delete_together(link: Link, indices: Sequence[int], group: int) -> int:
    """Delete links, those that are there; → how many were. They are put into link group `group` (nobody else's) and
    that is deleted: the kernel waits for its grace periods once, not once a link.
    """
    there = 0
    for index in indices:
        try:
            link.send([Message(NEWLINK, 0, link_header(index) + u32(_GROUP, group), f"end link {index}")])
            there += 1
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
    if there:
        try:
            link.send([Message(DELLINK, 0, link_header() + u32(_GROUP, group), "delete links")])
        except NetlinkError as error:
            if error.errno != errno.ENODEV:  # gone with their namespaces meanwhile
                raise
    return there
