"""The network of one instance: addresses, links, table, ports. What the slot pool and the supervisor call.

    fabric = Fabric.open("joey-1a2b", lock_file)      once, at start
    wire = fabric.wire(netns)                         a slot: veth pair, address, routes; nothing passes yet
    fabric.admit(wire, policy)                        at launch: one atomic commit
    fabric.change(wire, policy)                       live
    fabric.publish(wire, ports)                       → the ports as they are
    fabric.serve_dns(port)                            where the forwarder (network/dns.py) listens, once
    fabric.heal()                                     when fabric.watch is readable
    fabric.follow()                                   a moment after fabric.moves was readable, in the thread that wires
    fabric.release([wire, …])                         takes everything down; the address goes to the end of the queue
    fabric.close()                                    the last: table, gateway address, what was switched on
    Fabric.again(…)                                   instead of open, for an engine that finds sandboxes running

Two threads may share it: one that wires and releases, which waits for the kernel's RTNL lock, and one (the engine's)
for all else, which takes tens to hundreds of microseconds a call. It works in the network namespace where it was
opened.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from joey.host import conntrack, nft, tc
from joey.host import netlink_route as route
from joey.host.addresses import PER_BLOCK, Addresses
from joey.host.netlink import NETLINK_ROUTE, Link, Message, NetlinkError, inside, inside_each
from joey.model.errors import Unenforceable, from_os
from joey.model.network import NetworkPolicy, protected
from joey.model.ports import PublishedPort
from joey.network.ports import Claim, claim_again, claim_all
from joey.network.table import Seat, Table

INNER, INNER_INDEX = "eth0", 0x4A6F
_MAC, _INNER_MAC = bytes.fromhex("024a6f657901"), bytes.fromhex("024a6f657902")
_GROUP, _DYING = 0x4A000000, 0x01000000
_INDEX = 0x10000000
_DEVICE = {
    route.DEVCONF_FORWARDING: 1,
    route.DEVCONF_REDIRECTS: 0,
    route.DEVCONF_SEND_REDIRECTS: 0,
    route.DEVCONF_RP_FILTER: 1,
}


@dataclass
class Wire:
    """A sandbox's link: which address of the block, and, once admitted, its seat and ports."""

    offset: int
    index: int
    name: str
    address: ipaddress.IPv4Address
    netns: int
    seat: Seat | None = None
    had_seat: bool = False
    claims: list[Claim] = field(default_factory=list)


class Known(NamedTuple):
    """A sandbox that outlived its engine, from the engine's records; `ports` with the host's ports filled in."""

    netns: int
    policy: NetworkPolicy
    network: int = 0
    ports: tuple[PublishedPort, ...] = ()


Switched = list[tuple[int, str]]
"""(index, name) of links of the host on which we have switched forwarding on."""
Note = Callable[[int, Switched], None]


def _unnoted(number: int, switched: Switched) -> None:
    pass


class Fabric:
    """See the top of this file. `note` is told of what has to be undone even by another engine, before it is done: the
    number of the block of addresses, and what was switched on.
    """

    def __init__(self, name: str, addresses: Addresses, mtu: int, note: Note = _unnoted) -> None:
        self.name = name
        self.addresses = addresses
        self.gateway = addresses.gateway
        self.mtu = mtu
        self.group = _GROUP | addresses.number
        self.switched: Switched = []
        self._note = note
        self.wires: dict[int, Wire] = {}
        self._ended: list[Wire] = []
        self.local: list[ipaddress.IPv4Network] = []
        self.dns_port = 0
        with contextlib.ExitStack() as opened:
            self._route = opened.enter_context(Link(NETLINK_ROUTE))
            self._quick = opened.enter_context(Link(NETLINK_ROUTE))
            self._filter = opened.enter_context(nft.open_link())
            self._track = opened.enter_context(nft.open_link())
            self.watch = opened.enter_context(nft.open_watch())
            self.moves = opened.enter_context(route.open_watch())
            opened.pop_all()
        self.table = Table(self._filter, name)

    @classmethod
    def open(cls, name: str, lock_file: Path | None = None, note: Note = _unnoted) -> Fabric:
        """Set up the table `name`, the gateway's address and forwarding. Raises Unenforceable, NotPermitted, HostFailed
        saying what is missing; nothing is left then.
        """
        with Link(NETLINK_ROUTE) as link:
            taken = [one.network for one in route.routes(link) if one.protocol != route.PROTOCOL]
            mtu = _uplink_mtu(link)
        addresses = Addresses(taken, lock_file) if lock_file else Addresses(taken)
        try:
            fabric = cls(name, addresses, mtu, note)
        except OSError as error:
            addresses.close()
            raise from_os("network: netlink", error) from error
        try:
            note(addresses.number, [])
            fabric._set_up()
        except BaseException as error:
            fabric.close()
            if isinstance(error, NetlinkError):
                raise from_os(f"network: {error.what}", error) from error
            raise
        return fabric

    @classmethod
    def again(
        cls, name: str, number: int, known: Mapping[int, Known], lock_file: Path | None = None, note: Note = _unnoted,
        switched: Switched | None = None,
    ) -> Fabric:  # fmt: skip
        """After an engine that died, with sandboxes that run on: `number` of its block of addresses, `known` sandboxes
        by offset. Running connections stay up; what is of nobody is swept away. `wires` holds them, by link. A port
        that somebody has taken meanwhile is published all the same, and not held.
        """
        addresses = Addresses.again(number, known, lock_file) if lock_file else Addresses.again(number, known)
        with Link(NETLINK_ROUTE) as link:
            mtu = _uplink_mtu(link)
        fabric = cls(name, addresses, mtu, note)
        fabric.switched = list(switched or ())
        try:
            for offset, one in known.items():
                wire = fabric._wire_at(offset, one.netns)
                fabric.wires[wire.index] = wire
                wire.claims = [claim_again(port) for port in one.ports]
            fabric._take_over(known)
        except BaseException:
            fabric.close(keep=True)
            raise
        return fabric

    @classmethod
    def undo(cls, name: str, number: int, switched: Switched, lock_file: Path | None = None) -> int:
        """After an engine that died with no sandbox left: take away all it has made; → how many links there were."""
        addresses = Addresses.again(number, (), lock_file) if lock_file else Addresses.again(number, ())
        fabric = cls(name, addresses, 0)
        try:
            fabric.switched = list(switched)
            if fabric.table.exists():
                return fabric.sweep(())
            strays = [one.index for one in route.links(fabric._route, group=fabric.group)]
            return route.delete_together(fabric._route, strays, fabric.group ^ _DYING)
        finally:
            fabric.close()

    def _take_over(self, known: Mapping[int, Known]) -> None:
        self.local = _near(self._route)
        if self.table.exists():
            self.table.local = tuple(self.local)
            places = {self.addresses.address(offset).packed: one for offset, one in known.items()}
            seats = self.table.adopt({key: (one.policy, one.network) for key, one in places.items()})
            for wire in self.wires.values():
                wire.seat = seats.get(wire.address.packed)
            self.sweep(self.wires.values())
        else:
            self._install()
            for wire in self.wires.values():
                one = known[wire.offset]
                wire.seat = self.table.admit(wire.index, wire.address.packed, one.policy, one.network)
                self._publish_again(wire)
        self._forward()

    def heal(self) -> bool:
        """If our table is gone (`nft flush ruleset`, a restarted firewall), make it anew with all that was in it;
        whether it was gone. Until then nothing is filtered, so it is to be called at once: when `watch` is readable.
        """
        nft.deleted_tables(self.watch)
        if self.table.exists():
            return False
        self._install()
        seated = [wire for wire in list(self.wires.values()) if wire.seat]
        seats = self.table.admit_again([wire.seat for wire in seated if wire.seat])
        for wire, seat in zip(seated, seats, strict=True):
            wire.seat = seat
            self._publish_again(wire)
        if self.dns_port:
            self.table.serve_dns(self.gateway, self.dns_port)
        return True

    def follow(self) -> list[ipaddress.IPv4Network]:
        """The host has got an address (another uplink, a VPN): protect what it is in now, and let answers come in
        there; → networks that are new. What it has left stays protected.
        """
        new = [network for network in _near(self._route) if network not in self.local]
        if new:
            self.table.protect(new)
            self.local += new
        self._forward()
        return new

    def serve_dns(self, port: int) -> None:
        """Sandboxes' questions to the gateway's port 53 go to `port` there, where the forwarder listens."""
        self.table.serve_dns(self.gateway, port)
        self.dns_port = port

    def _publish_again(self, wire: Wire) -> None:
        for one in wire.claims:
            port = one.port
            self.table.publish(port.protocol, port.host_ip, port.host, wire.address.packed, port.container)

    def _install(self) -> None:
        self.table.install(group=self.group, pool=self.addresses.block, gateway=self.gateway, local=self.local)

    def _set_up(self) -> None:
        self.local = _near(self._route)
        self._install()
        self._route.send([route.add_address(1, self.gateway.packed, host_scope=True), route.link_up(1)])
        self._forward()

    def _forward(self) -> None:
        """Let answers come back in: forwarding on for each link that routes lead out of, if it is off."""
        out = {one.link for one in route.routes(self._route) if one.unicast and one.link > 1}
        for found in route.links(self._route):
            if found.index in out and found.group != self.group:
                if route.conf_of(self._route, found.index, route.DEVCONF_FORWARDING) == 0:
                    self.switched.append((found.index, found.name))
                    self._note(self.addresses.number, self.switched)
                    self._route.send(
                        [route.set_link(found.index, {route.DEVCONF_FORWARDING: 1}, up=False, no_ipv6=False)]
                    )

    # ---- links

    def wire(self, netns: int) -> Wire:
        """A link into the network namespace of descriptor `netns`, which has none yet."""
        return self.wire_many([netns])[0]

    def wire_many(self, namespaces: Sequence[int]) -> list[Wire]:
        """The same for several at once, all or none. The descriptors stay the caller's."""
        wires: list[Wire] = []
        try:
            for netns in namespaces:
                wires.append(self._place(netns))
                self.wires[wires[-1].index] = wires[-1]
            self._route.send(message for one in wires for message in self._outer(one))
            inside_each([(one.netns, partial(self._inner, one)) for one in wires])
            for one in wires:
                route.settle(self._route, one.index)
        except BaseException as error:
            self._unwire(wires)
            if isinstance(error, NetlinkError):
                raise from_os(f"network: {error.what}", error) from error
            raise
        return wires

    def _place(self, netns: int) -> Wire:
        return self._wire_at(self.addresses.take(), netns)

    def _wire_at(self, offset: int, netns: int) -> Wire:
        number = self.addresses.number * PER_BLOCK + offset
        return Wire(offset, _INDEX + number, f"joey{number:06x}", self.addresses.address(offset), netns)

    def _outer(self, wire: Wire) -> Iterable[Message]:
        """Our end. Its index follows from the address, so all can be said in one go and no answer is waited for."""
        pair = route.Veth(wire.name, wire.index, self.group, _MAC, wire.netns, INNER, INNER_INDEX, _INNER_MAC, self.mtu)
        yield route.new_veth(pair)
        yield route.set_link(wire.index, _DEVICE)
        yield route.host_route(wire.index, wire.address.packed, self.gateway.packed)
        yield route.static_neighbour(wire.index, wire.address.packed, _INNER_MAC)

    def _inner(self, wire: Wire) -> None:
        # Without IPv6 addresses but for the loopback's: programs that bind ::1 work.
        with Link(NETLINK_ROUTE) as link:
            link.send(
                [
                    route.set_link(INNER_INDEX, {}),
                    route.add_address(INNER_INDEX, wire.address.packed),
                    route.static_neighbour(INNER_INDEX, self.gateway.packed, _MAC),
                    route.default_route(INNER_INDEX, self.gateway.packed),
                ]
            )

    def _unwire(self, wires: Iterable[Wire], *, give_back: bool = True) -> None:
        wires = list(wires)
        route.delete_together(self._route, [wire.index for wire in wires], self.group ^ _DYING)
        for wire in wires:
            if give_back:
                self.addresses.give_back(wire.offset)
            self.wires.pop(wire.index, None)

    # ---- policy

    def admit(self, wire: Wire, policy: NetworkPolicy, network: int = 0) -> None:
        """Let it send, under `policy`, as a member of private network `network` (0: none)."""
        self.admit_many([wire], policy, network)

    def admit_many(self, wires: Sequence[Wire], policy: NetworkPolicy, network: int = 0) -> None:
        places = [(wire.index, wire.address.packed, policy, network) for wire in wires]
        try:
            seats = self.table.admit_many(places)
        except NetlinkError as error:
            raise from_os(f"network: {error.what}", error) from error
        for wire, seat in zip(wires, seats, strict=True):
            wire.seat = seat
            self._shape(wire, NetworkPolicy(), policy)

    def change(self, wire: Wire, policy: NetworkPolicy) -> None:
        """Another policy, in effect for the next packet when this returns."""
        seat = _seated(wire)
        before = seat.policy
        self.table.change(seat, policy)
        self._shape(wire, before, policy)

    def refused(self, wire: Wire) -> tuple[int, int]:
        """(packets, bytes) refused by policy."""
        return self.table.refused(_seated(wire))

    def traffic(self, wire: Wire) -> tuple[int, int, int, int]:
        """(bytes sent, bytes received, packets sent, packets received) by the sandbox."""
        return route.counters(self._quick, wire.index) or (0, 0, 0, 0)

    def _shape(self, wire: Wire, before: NetworkPolicy, policy: NetworkPolicy) -> None:
        if before.bandwidth_in != policy.bandwidth_in:
            self._bucket(self._quick, wire.index, policy.bandwidth_in)
        if before.bandwidth_out != policy.bandwidth_out:

            def body() -> None:
                with Link(NETLINK_ROUTE) as link:
                    self._bucket(link, INNER_INDEX, policy.bandwidth_out)

            inside(wire.netns, body)

    def _bucket(self, link: Link, index: int, rate: int | None) -> None:
        try:
            link.send([tc.unlimit(index) if rate is None else tc.limit(index, rate, self.mtu)])
        except NetlinkError as error:
            if rate is None:
                return  # there was none
            if error.errno == errno.ENOENT:
                raise Unenforceable(
                    "network.policy.bandwidth", "this kernel has no token bucket (CONFIG_NET_SCH_TBF)", "ask for none"
                ) from None
            raise from_os(f"network: {error.what}", error) from error

    # ---- ports

    def publish(self, wire: Wire, ports: Iterable[PublishedPort]) -> list[PublishedPort]:
        """Publish `ports`, all or none; → them with the host's ports filled in. Raises Conflict if one is taken."""
        claims = claim_all(ports)
        done: list[Claim] = []
        try:
            if claims:
                self._quick.send([route.set_link(wire.index, {**_DEVICE, route.DEVCONF_ROUTE_LOCALNET: 1})])
            for one in claims:
                port = one.port
                self.table.publish(port.protocol, port.host_ip, port.host, wire.address.packed, port.container)
                done.append(one)
        except BaseException as error:
            self._unpublish(done)
            for one in claims:
                one.close()
            if isinstance(error, NetlinkError):
                raise from_os(f"network: {error.what}", error) from error
            raise
        wire.claims += claims
        return [one.port for one in claims]

    def _unpublish(self, claims: Iterable[Claim]) -> None:
        for one in claims:
            self.table.unpublish(one.port.protocol, one.port.host_ip, one.port.host)
            one.close()

    # ---- the end

    def release(self, wires: Sequence[Wire]) -> None:
        """Take sandboxes out: no element, link, port or connection of theirs stays."""
        self.dismiss(wires)
        self.take_down(wires)
        self.forget()

    def dismiss(self, wires: Sequence[Wire]) -> None:
        """The part of `release` that counts: from now on nothing of theirs passes, and their ports are free."""
        for wire in wires:
            self._unpublish(wire.claims)
            wire.claims = []
        self.table.dismiss([wire.seat for wire in wires if wire.seat])
        for wire in wires:
            wire.had_seat = wire.had_seat or wire.seat is not None
            wire.seat = None

    def take_down(self, wires: Sequence[Wire]) -> None:
        """Then their links, better many together: it waits for grace periods of the kernel once."""
        self._unwire(wires, give_back=False)
        self._ended += wires

    def forget(self) -> None:
        """Then their connections, of all that were taken down: the kernel tells of all there are. Only then are their
        addresses used again.
        """
        ended, self._ended = self._ended, []
        try:
            conntrack.flush(self._track, [wire.address.packed for wire in ended if wire.had_seat])
        finally:
            for wire in ended:
                self.addresses.give_back(wire.offset)

    def sweep(self, keep: Iterable[Wire]) -> int:
        """After an engine that died: delete links and elements of none of `keep`; → how many links."""
        kept = list(keep)
        indices = {wire.index for wire in kept}
        gone = self.table.sweep({wire.address.packed for wire in kept})
        conntrack.flush(self._track, gone)
        strays = [one.index for one in route.links(self._route, group=self.group) if one.index not in indices]
        return route.delete_together(self._route, strays, self.group ^ _DYING)

    def close(self, *, keep: bool = False) -> None:
        """Give up everything but sandboxes' links, which end with their namespaces. With `keep` only our descriptors:
        the sandboxes go on without us.
        """
        for wire in self.wires.values():
            for claim in wire.claims:
                claim.close()
        try:
            if not keep:
                self.table.remove()
                with contextlib.suppress(NetlinkError):
                    self._route.send([route.delete_address(1, self.gateway.packed)])
                for index, _ in set(self.switched) & {(one.index, one.name) for one in route.links(self._route)}:
                    with contextlib.suppress(NetlinkError):
                        self._route.send(
                            [route.set_link(index, {route.DEVCONF_FORWARDING: 0}, up=False, no_ipv6=False)]
                        )
                self.switched = []
        finally:
            for link in (self._route, self._quick, self._filter, self._track):
                link.close()
            self.watch.close()
            self.moves.close()
            self.addresses.close()


def _seated(wire: Wire) -> Seat:
    if wire.seat is None:
        raise ValueError(f"{wire.name} has not been admitted")
    return wire.seat


def near() -> list[ipaddress.IPv4Network]:
    """As Fabric.local, where there is no fabric yet. Raises OSError."""
    with Link(NETLINK_ROUTE) as link:
        return _near(link)


def _near(link: Link) -> list[ipaddress.IPv4Network]:
    """Networks the host is in that are not protected anyway."""
    found = {one.network for one in route.routes(link) if one.unicast and one.direct}
    return [network for network in sorted(found) if network.prefixlen and not protected(network)]


def _uplink_mtu(link: Link) -> int:
    """The MTU of the link that the default route leads out of; 1500 without one."""
    out = {one.link for one in route.routes(link) if one.unicast and not one.network.prefixlen}
    return min((one.mtu for one in route.links(link) if one.index in out), default=1500)
