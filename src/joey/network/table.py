"""One instance's nftables table: rules.nft, and per sandbox a handful of elements in its sets and maps.

Everything here costs the same with one sandbox or thousands, and each call is one atomic commit. A policy change
takes effect on running connections too: an allowed connection carries its sandbox's generation as mark, and `live4`
holds the pair (address, generation) that passes unasked. A change replaces the pair, so that the next packet of every
connection is judged anew; an address used again has another generation, so that nothing of its last tenant passes.

The calls block for fractions of a millisecond, and take turns: threads may share a Table.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from joey.host import conntrack, nft
from joey.host.netlink import Link, Message, NetlinkError
from joey.model.network import PROTECTED, NetworkPolicy
from joey.network.policy import Clause, compile_policy

P = ParamSpec("P")
R = TypeVar("R")

_SCRIPT = Path(__file__).with_name("rules.nft")
_MOST_NAMES = 4096
_PER_ADDRESS = (
    "sources4", "internet4", "class4", "network4", "members4", "generation4", "live4", "refused4", "connections4",
    "names4", "names4_port",
)  # fmt: skip
_SECOND = ("sources4", "members4")  # of those, the ones whose key begins with something else


@dataclass
class Seat:
    """A sandbox's place in the table. `group`: the class of its policy, 0 without rules."""

    index: int
    address: bytes
    policy: NetworkPolicy
    group: int
    generation: int
    network: int = 0
    names: dict[bytes, tuple[str, float]] = field(default_factory=dict)
    """address → (the name it was given for, when that ends by time.monotonic())"""

    @property
    def source(self) -> bytes:
        return nft.key(nft.number(self.index), self.address)


def _one_at_a_time(method: Callable[Concatenate[Table, P], R]) -> Callable[Concatenate[Table, P], R]:
    def locked(self: Table, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return update_wrapper(locked, method)


class Table:
    """The table `name` in the network namespace of `link` (a netfilter socket)."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self._nft = nft.Table(name)
        self._generation = secrets.randbits(30)
        self._lock = threading.RLock()
        self.local: tuple[ipaddress.IPv4Network, ...] = ()
        # Of a sandbox that asks for no limit: enough for any, too few to fill the host's table alone.
        self.most_connections = max(1024, conntrack.capacity() // 4)
        self._classes: dict[tuple[object, ...], int] = {}
        self._members: dict[int, int] = {}
        self._next_class = 0

    # ---- the constant part

    def install(
        self,
        *,
        group: int,
        pool: ipaddress.IPv4Network,
        gateway: ipaddress.IPv4Address,
        local: Sequence[ipaddress.IPv4Network] = (),
    ) -> None:
        """Make the table, replacing one of that name, in the calling thread's network namespace. Other tables are not
        touched. `local`: networks the host is in, protected like private ones. Raises as nft.load.
        """
        self.local = tuple(local)
        self._classes, self._members = {}, {}
        text = _SCRIPT.read_text()
        values = {
            "$TABLE": self.name,
            "$GROUP": str(group),
            "$POOL": str(pool),
            "$GATEWAY": str(gateway),
            "$PROTECTED": ", ".join(str(network) for network in (*PROTECTED, *local) if network.version == 4),
        }
        for name, value in values.items():
            text = text.replace(name, value)
        # Adding first makes deleting possible whether it was there or not; all of it is one transaction.
        nft.load(f"table inet {self.name}\ndelete table inet {self.name}\n{text}")

    def protect(self, networks: Sequence[ipaddress.IPv4Network]) -> None:
        """More networks like private ones, for policies in effect too. As `install`."""
        nft.load(f"add element inet {self.name} protected4 {{ {', '.join(map(str, networks))} }}\n")
        self.local = (*self.local, *networks)

    @_one_at_a_time
    def exists(self) -> bool:
        return self._nft.exists(self.link)

    @_one_at_a_time
    def remove(self) -> None:
        """Delete the table with all that is in it; nothing if it is gone."""
        try:
            nft.commit(self.link, [self._nft.delete()])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise

    # ---- sandboxes

    def admit(self, index: int, address: bytes, policy: NetworkPolicy, network: int = 0) -> Seat:
        """Let link `index` send from `address` under `policy`, as a member of private network `network` (0: none)."""
        return self.admit_many([(index, address, policy, network)])[0]

    @_one_at_a_time
    def admit_many(self, sandboxes: Iterable[tuple[int, bytes, NetworkPolicy, int]]) -> list[Seat]:
        """The same for several, all or none."""
        seats: list[Seat] = []
        messages: list[Message] = []
        with self._joining(messages) as join:
            for index, address, policy, network in sandboxes:
                seat = Seat(index, address, policy, join(policy), self._next_generation(), network)
                seats.append(seat)
                messages += self._elements_of(seat, self._nft.add, with_data=True)
            nft.commit(self.link, messages)
        return seats

    @_one_at_a_time
    def admit_again(self, seats: Sequence[Seat]) -> list[Seat]:
        """Into a table that was made anew: what `seats` had in the old one."""
        now = time.monotonic()
        fresh = self.admit_many((seat.index, seat.address, seat.policy, seat.network) for seat in seats)
        for old, new in zip(seats, fresh, strict=True):
            for address, (name, until) in old.names.items():
                if name and until > now:
                    self.learn(new, name, [address], until - now)
        return fresh

    @_one_at_a_time
    def change(self, seat: Seat, policy: NetworkPolicy) -> None:
        """Put another policy into effect, for running connections too."""
        self._forget_names(seat, keep=policy)
        generation, table = self._next_generation(), self._nft
        messages: list[Message] = []
        with self._joining(messages) as join:
            group = join(policy)
            messages += [
                *self._deciding(seat.address, seat.policy, seat.group, self._without),
                *self._deciding(seat.address, policy, group, table.add),
                table.remove("generation4", seat.address),
                table.add("generation4", seat.address, nft.value(nft.number(generation))),
                table.remove("live4", nft.key(seat.address, nft.number(seat.generation))),
                table.add("live4", nft.key(seat.address, nft.number(generation))),
            ]
            if policy.connections != seat.policy.connections:
                messages += [
                    table.remove("connections4", seat.address),
                    table.add("connections4", seat.address, expression=self._counting(policy)),
                ]
            nft.commit(self.link, messages)
        old = seat.group
        seat.policy, seat.group, seat.generation = policy, group, generation
        self._leave([old])

    @_one_at_a_time
    def dismiss(self, seats: Sequence[Seat]) -> None:
        """Take sandboxes out; nothing of theirs passes any more. Their connections' entries are another matter
        (host/conntrack.py).
        """
        messages = []
        for seat in seats:
            self._forget_names(seat)
            messages += self._elements_of(seat, self._without)
        nft.commit(self.link, messages)
        self._leave([seat.group for seat in seats])

    @_one_at_a_time
    def refused(self, seat: Seat) -> tuple[int, int]:
        """(packets, bytes) that policy refused so far."""
        return self._nft.counter_of(self.link, "refused4", seat.address) or (0, 0)

    @_one_at_a_time
    def totals(self) -> dict[str, tuple[int, int]]:
        """Named counters of the whole instance: {name: (packets, bytes)}."""
        return {name: self._nft.counter(self.link, name) for name in ("spoofed", "not_ipv4", "uninvited")}

    @_one_at_a_time
    def occupied(self) -> set[bytes]:
        """Addresses that have an element in any set. Reads the whole table."""
        found = set()
        for set_ in _PER_ADDRESS:
            for key, _ in self._nft.elements(self.link, set_):
                found.add(key[4:8] if set_ in _SECOND else key[:4])
        return found

    def _elements_of(self, seat: Seat, make: Callable[..., Message], *, with_data: bool = False) -> list[Message]:
        """What a sandbox has in the sets, each through `make` (add or remove)."""
        number = nft.number
        counting = {"expression": self._counting(seat.policy)} if with_data else {}
        messages = [
            make("sources4", seat.source),
            *self._deciding(seat.address, seat.policy, seat.group, make),
            make("generation4", seat.address, nft.value(number(seat.generation))),
            make("live4", nft.key(seat.address, number(seat.generation))),
            make("refused4", seat.address),
            make("connections4", seat.address, **counting),
        ]
        if seat.network:
            messages += [
                make("network4", seat.address, nft.value(number(seat.network))),
                make("members4", nft.key(number(seat.network), seat.address)),
            ]
        return messages

    def _without(self, set_: str, key: bytes, data: bytes = b"") -> Message:
        """The opposite of adding: what is removed is named by its key alone."""
        return self._nft.remove(set_, key)

    @staticmethod
    def _deciding(address: bytes, policy: NetworkPolicy, group: int, make: Callable[..., Message]) -> list[Message]:
        """What decides about new connections: a class, internet4, or nothing, which refuses."""
        if group:
            return [make("class4", address, nft.value(nft.number(group)))]
        return [make("internet4", address)] if policy.internet else []

    # ---- names

    @_one_at_a_time
    def learn(self, seat: Seat, name: str, addresses: Sequence[bytes], seconds: float) -> None:
        """Our forwarder is about to answer that `name` is at `addresses`: allow it as the policy's rules for that
        name say, one commit for all. The kernel keeps the old lifetime of an element that is there, so a known one is
        taken out in the same commit. (A commit that fails costs milliseconds: nothing is taken out on suspicion.)
        """
        now = time.monotonic()
        messages, fresh = [], []
        for address in addresses:
            ends = seat.names.get(address, ("", 0.0))[1]
            until = max(now + seconds, ends)
            for set_, key in self._names_of(seat, name, address):
                added = self._nft.add(set_, key, timeout=until - now)
                fresh.append(added)
                messages += [self._nft.remove(set_, key), added] if ends > now else [added]
            seat.names[address] = (name, until)
        try:
            nft.commit(self.link, messages)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # one ended just now, or belongs to another rule
                raise
            nft.commit(self.link, fresh)
        if len(seat.names) > _MOST_NAMES:
            seat.names = {one: kept for one, kept in seat.names.items() if kept[1] > now}

    def _names_of(self, seat: Seat, name: str, address: bytes) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        for rule in seat.policy.domain_rules(name):
            protocols = ("tcp", "udp") if rule.protocol == "any" else (rule.protocol,)
            if rule.port_range is None and rule.protocol == "any":
                found.append(("names4", nft.key(seat.address, address)))
                continue
            first, last = rule.port_range or (0, 0)
            for protocol in protocols:
                for port in range(first, last + 1):
                    fields = seat.address, address, nft.proto(nft.PROTOCOLS[protocol]), nft.port(port)
                    found.append(("names4_port", nft.key(*fields)))
        return list(dict.fromkeys(found))

    def _forget_names(self, seat: Seat, keep: NetworkPolicy | None = None) -> None:
        """Close what names opened, but for names that another policy treats the same."""
        for address, (name, _) in list(seat.names.items()):
            if keep is not None and name and keep.domain_rules(name) == seat.policy.domain_rules(name):
                continue
            for set_, key in self._names_of(seat, name, address):
                try:
                    nft.commit(self.link, [self._nft.remove(set_, key)])
                except NetlinkError as error:
                    if error.errno != errno.ENOENT:  # its time was over
                        raise
            del seat.names[address]

    # ---- ports

    @_one_at_a_time
    def publish(self, protocol: str, host_ip: str, port: int, address: bytes, container: int) -> None:
        """What arrives at the host's `port` (at `host_ip`, "" all) goes to `address`:`container`. Also for our name
        server, with the gateway's address.
        """
        set_, key = _published(protocol, host_ip, port)
        data = nft.value(nft.key(address, nft.port(container)))
        nft.commit(self.link, [self._nft.add(set_, key, data)])

    @_one_at_a_time
    def unpublish(self, protocol: str, host_ip: str, port: int) -> None:
        set_, key = _published(protocol, host_ip, port)
        nft.commit(self.link, [self._nft.remove(set_, key)])

    @_one_at_a_time
    def serve_dns(self, gateway: ipaddress.IPv4Address, port: int) -> None:
        """Port 53 of the gateway's address, for sandboxes, is `port` there, where our forwarder listens."""
        messages: list[Message] = []
        for protocol in (nft.TCP, nft.UDP):
            key = nft.key(gateway.packed, nft.proto(protocol), nft.port(53))
            if self._nft.has(self.link, "published4_at", key):
                messages.append(self._nft.remove("published4_at", key))
            data = nft.value(nft.key(gateway.packed, nft.port(port)))
            messages.append(self._nft.add("published4_at", key, data))
            messages.append(self._nft.add("dns4", nft.key(nft.proto(protocol), nft.port(port))))
        nft.commit(self.link, [self._nft.flush_set("dns4"), *messages])

    # ---- after an engine that died

    @_one_at_a_time
    def sweep(self, keep: Collection[bytes]) -> list[bytes]:
        """Take out every element and chain of addresses that are not in `keep`; → those addresses. Reads the whole
        table: once, at start.
        """
        gone: set[bytes] = set()
        groups: set[int] = set()
        messages = []
        for set_ in _PER_ADDRESS:
            for key, data in self._nft.elements(self.link, set_):
                address = key[4:8] if set_ in _SECOND else key[:4]
                if address not in keep:
                    gone.add(address)
                    messages.append(self._nft.remove(set_, key))
                elif set_ == "class4":
                    groups.add(_host_number(data))
        for set_, place in (("published4", 8), ("published4_at", 12)):
            for key, data in self._nft.elements(self.link, set_):
                if data[:4] not in keep and not (set_ == "published4_at" and data[:4] == key[:4]):
                    messages.append(self._nft.remove(set_, key[:place]))
        for key, _ in self._nft.elements(self.link, "classes4"):
            if _host_number(key) not in groups:
                messages += self._without_class(_host_number(key))
        nft.commit(self.link, messages)
        return sorted(gone)

    @_one_at_a_time
    def adopt(self, known: dict[bytes, tuple[NetworkPolicy, int]]) -> dict[bytes, Seat]:
        """The seats of sandboxes that outlived the engine, from what the table says: {address: (policy, network)} →
        {address: seat}. An address of `known` that has no seat in the table is left out.
        """
        generations = dict(self._nft.elements(self.link, "generation4"))
        groups = {key[:4]: _host_number(group) for key, group in self._nft.elements(self.link, "class4")}
        seats = {}
        for key, _ in self._nft.elements(self.link, "sources4"):
            address = key[4:8]
            if address in known and address in generations:
                policy, network = known[address]
                group, generation = groups.get(address, 0), _host_number(generations[address])
                seats[address] = Seat(_host_number(key), address, policy, group, generation, network)
                self._generation = max(self._generation, generation & 0x7FFFFFFF)
                if group:
                    self._classes[_rules_of(policy)] = group
                    self._members[group] = self._members.get(group, 0) + 1
                    self._next_class = max(self._next_class, group)
        return seats

    # ---- inside

    def _next_generation(self) -> int:
        """Never the number of a class: those are below 2^31."""
        self._generation = (self._generation + 1) & 0x7FFFFFFF
        return self._generation | 0x80000000

    def _counting(self, policy: NetworkPolicy) -> bytes:
        return nft.count_over(policy.connections or self.most_connections)

    @contextlib.contextmanager
    def _joining(self, messages: list[Message]) -> Iterator[Callable[[NetworkPolicy], int]]:
        """Within it, join(policy) gives the class of a policy; what makes a new one goes into `messages`. If what is
        within fails, nobody has joined.
        """
        joined: list[int] = []

        def join(policy: NetworkPolicy) -> int:
            if not policy.rules:
                return 0
            group = self._classes.get(_rules_of(policy))
            if group is None:
                group = self._next_class = self._next_class % 0x7FFFFFFF + 1
                self._classes[_rules_of(policy)] = group
                self._members[group] = 0
                messages.extend(self._new_class(group, policy))
            self._members[group] += 1
            joined.append(group)
            return group

        try:
            yield join
        except BaseException:
            for group in joined:
                self._members[group] -= 1
                if not self._members[group]:
                    self._drop(group)
            raise

    def _new_class(self, group: int, policy: NetworkPolicy) -> list[Message]:
        chain = _chain(group)
        rules = [self._nft.rule(chain, _expressions(clause)) for clause in compile_policy(policy, self.local)]
        element = self._nft.add("classes4", nft.number(group), nft.goto(chain))
        return [self._nft.new_chain(chain), *rules, element]

    def _leave(self, groups: Iterable[int]) -> None:
        """Members have left classes; a class without any goes."""
        messages = []
        for group in groups:
            if not group:
                continue
            self._members[group] -= 1
            if not self._members[group]:
                self._drop(group)
                messages += self._without_class(group)
        nft.commit(self.link, messages)

    def _without_class(self, group: int) -> list[Message]:
        return [self._nft.remove("classes4", nft.number(group)), *self._nft.delete_chain(_chain(group))]

    def _drop(self, group: int) -> None:
        del self._members[group]
        self._classes = {rules: one for rules, one in self._classes.items() if one != group}


def _expressions(clause: Clause) -> list[bytes]:
    found: list[bytes] = []
    if clause.network is not None:
        found += nft.to_network(clause.network)
    if clause.target == "outside":
        found += nft.not_in("protected4")
    elif clause.target == "protected":
        found += nft.in_set("protected4")
    elif clause.target == "names":
        found += nft.pair_in("names4")
    if clause.protocol:
        found += nft.is_protocol(clause.protocol)
    if clause.target == "names and ports":
        found += nft.pair_and_port_in("names4_port")
    if clause.ports:
        found += nft.to_port(*clause.ports)
    return [*found, nft.verdict(clause.verdict)]


def _chain(group: int) -> str:
    return f"class_{group}"


def _rules_of(policy: NetworkPolicy) -> tuple[object, ...]:
    """What two policies of one class have in common: all but bandwidth and the number of connections."""
    return policy.internet, policy.rules


def _host_number(data: bytes) -> int:
    return int.from_bytes(data[:4], sys.byteorder)


def _published(protocol: str, host_ip: str, port: int) -> tuple[str, bytes]:
    fields = nft.proto(nft.PROTOCOLS[protocol]), nft.port(port)
    if not host_ip:
        return "published4", nft.key(*fields)
    return "published4_at", nft.key(ipaddress.IPv4Address(host_ip).packed, *fields)
