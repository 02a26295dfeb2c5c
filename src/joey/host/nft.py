"""nf_tables by netlink: elements, chains and rules as messages, committed in one atomic batch.

nft(8) sets up the constant part of a table once (network/table.py); it reads back whole tables before each change,
which costs in proportion to what is there. These messages cost the same with one sandbox or five thousand.

Sources: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h. Keys are lists of fields, each padded to four bytes;
addresses and ports in network byte order, interface indices and marks in the host's.
"""

from __future__ import annotations

import ipaddress
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence

from joey.host.netlink import (
    F_APPEND,
    F_CREATE,
    F_EXCL,
    NETLINK_NETFILTER,
    Link,
    Message,
    attribute,
    attributes,
    be32,
    be64,
    each_attribute,
    nested,
    text,
)  # fmt: skip
from joey.model.errors import HostFailed, NotPermitted, Unenforceable

_SUBSYSTEM = 10 << 8
_NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = _SUBSYSTEM | 3, _SUBSYSTEM | 5, _SUBSYSTEM | 6, _SUBSYSTEM | 8
_NEWSETELEM, _GETSETELEM, _DELSETELEM = _SUBSYSTEM | 12, _SUBSYSTEM | 13, _SUBSYSTEM | 14
_GETTABLE, _DELTABLE, _GETOBJ = _SUBSYSTEM | 1, _SUBSYSTEM | 2, _SUBSYSTEM | 19
_INET = struct.pack(">BBH", 1, 0, 0)
_BEGIN = Message(0x10, 0, struct.pack(">BBH", 0, 0, 10), "begin")
_END = Message(0x11, 0, struct.pack(">BBH", 0, 0, 10), "end")
_GOTO = -4
_REG = 8  # NFT_REG32_00; the following fields of a key in the following registers
_EQ = 0

TCP, UDP, ICMP = 6, 17, 1
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}


def number(value: int) -> bytes:
    """A mark or an interface index as a field of a key."""
    return struct.pack("=I", value)


def port(value: int) -> bytes:
    return struct.pack(">Hxx", value)


def proto(value: int) -> bytes:
    return bytes((value, 0, 0, 0))


def key(*fields: bytes) -> bytes:
    return b"".join(field + bytes(-len(field) % 4) for field in fields)


def goto(chain: str) -> bytes:
    """A verdict, as the value of a map's element."""
    return nested(2, nested(2, be32(1, _GOTO & 0xFFFFFFFF) + text(2, chain)))


def value(data: bytes) -> bytes:
    """Plain data, as the value of a map's element."""
    return nested(2, attribute(1, data))


class Table:
    """Messages for one table of the inet family, by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def add(
        self, set_: str, key: bytes, data: bytes = b"", *, timeout: float = 0.0, expression: bytes = b""
    ) -> Message:
        """A new element; EEXIST if the key is there with other data. `timeout` in seconds."""
        element = nested(1, attribute(1, key)) + data
        if timeout:
            element += be64(4, int(timeout * 1000))
        if expression:
            element += attribute(7 | 0x8000, expression)
        return self._element(_NEWSETELEM, F_CREATE, set_, element, "add to")

    def remove(self, set_: str, key: bytes) -> Message:
        """ENOENT, and with it the whole batch, if it is not there."""
        return self._element(_DELSETELEM, 0, set_, nested(1, attribute(1, key)), "remove from")

    def _element(self, kind: int, flags: int, set_: str, element: bytes, what: str) -> Message:
        body = _INET + text(1, self.name) + text(2, set_) + nested(3, nested(1, element))
        return Message(kind, flags, body, f"{what} {set_}")

    def flush_set(self, set_: str) -> Message:
        return Message(_DELSETELEM, 0, _INET + text(1, self.name) + text(2, set_), f"empty {set_}")

    def new_chain(self, name: str) -> Message:
        return Message(_NEWCHAIN, F_CREATE | F_EXCL, _INET + text(1, self.name) + text(3, name), f"chain {name}")

    def delete_chain(self, name: str) -> list[Message]:
        """With its rules; EBUSY if something still goes there."""
        return [
            Message(_DELRULE, 0, _INET + text(1, self.name) + text(2, name), f"rules of chain {name}"),
            Message(_DELCHAIN, 0, _INET + text(1, self.name) + text(3, name), f"delete chain {name}"),
        ]

    def rule(self, chain: str, expressions: Iterable[bytes]) -> Message:
        """A rule after all others of a chain."""
        body = _INET + text(1, self.name) + text(2, chain) + nested(4, *(attribute(1 | 0x8000, e) for e in expressions))
        return Message(_NEWRULE, F_CREATE | F_APPEND, body, f"rule of chain {chain}")

    def delete(self) -> Message:
        return Message(_DELTABLE, 0, _INET + text(1, self.name), f"delete table {self.name}")

    # ---- questions

    def exists(self, link: Link) -> bool:
        return link.ask(Message(_GETTABLE, 0, _INET + text(1, self.name), f"table {self.name}")) is not None

    def counter_of(self, link: Link, set_: str, key: bytes) -> tuple[int, int] | None:
        """(packets, bytes) that an element of a set with counters has matched; None if it is not there."""
        answer = link.ask(self._element(_GETSETELEM, 0, set_, nested(1, attribute(1, key)), "read"))
        if answer is None:
            return None
        element = attributes(attributes(answer, 4)[3])[1]
        return _counts(attributes(element).get(7, b""))

    def has(self, link: Link, set_: str, key: bytes) -> bool:
        return link.ask(self._element(_GETSETELEM, 0, set_, nested(1, attribute(1, key)), "read")) is not None

    def counter(self, link: Link, name: str) -> tuple[int, int]:
        """(packets, bytes) of a named counter. Raises KeyError if there is none."""
        answer = link.ask(
            Message(_GETOBJ, 0, _INET + text(1, self.name) + text(2, name) + be32(3, 1), f"counter {name}")
        )
        if answer is None:
            raise KeyError(name)
        return _counts_of(attributes(attributes(answer, 4)[4]))

    def elements(self, link: Link, set_: str) -> list[tuple[bytes, bytes]]:
        """(key, data) of every element; data is b"" in a set, and for a verdict the name of the chain it goes to."""
        found = []
        body = _INET + text(1, self.name) + text(2, set_)
        for answer in link.dump(Message(_GETSETELEM, 0, body, f"elements of {set_}")):
            for _, element in each_attribute(attributes(answer, 4).get(3, b"")):
                values = attributes(element)
                data = attributes(values.get(2, b""))
                verdict = attributes(data.get(2, b"")).get(2, b"").rstrip(b"\0")
                found.append((attributes(values[1])[1], data.get(1, verdict)))
        return found


def commit(link: Link, messages: Sequence[Message]) -> None:
    """All of `messages` or none. Raises NetlinkError naming the one that was refused."""
    if messages:
        link.transact(list(messages), _BEGIN, _END)


def load(script: str) -> None:
    """Run a script of nft(8), atomically, in the caller's network namespace. Raises Unenforceable where there is no
    nft, NotPermitted, HostFailed with nft's own words.
    """
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        raise Unenforceable("network", "nft is not installed", "install the package nftables, or use network none")
    done = subprocess.run([program, "-f", "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[0] if lines else f"exit status {done.returncode}"
        if "Operation not permitted" in done.stderr:
            raise NotPermitted("network: nft", why, "run the engine as root with CAP_NET_ADMIN")
        raise HostFailed("network: nft", why, "`joey doctor` says what this kernel lacks")


def open_link() -> Link:
    """A netfilter socket of the calling thread's network namespace."""
    return Link(NETLINK_NETFILTER)


def open_watch() -> Link:
    """A socket that hears of every change of nf_tables in the calling thread's namespace (NFNLGRP_NFTABLES)."""
    return Link(NETLINK_NETFILTER, groups=1 << (7 - 1))


def deleted_tables(watch: Link) -> set[str]:
    """Names of tables of the inet family that were deleted since the last call; "" if that cannot be told."""
    found = set()
    for kind, body in watch.pending():
        if not kind:
            found.add("")
        elif kind == _DELTABLE and body[:1] == _INET[:1]:
            found.add(attributes(body, 4).get(1, b"").rstrip(b"\0").decode())
    return found


# ---- expressions of rules (nft --debug=netlink prints them)


def _expression(name: str, *parts: bytes) -> bytes:
    return text(1, name) + nested(2, *parts)


def count_over(limit: int) -> bytes:
    """`ct count over limit`, of an element."""
    return _expression("connlimit", be32(1, limit), be32(2, 1))  # inverted: matches when over


def verdict(chain: str) -> bytes:
    """goto a chain"""
    return _expression("immediate", be32(1, 0), nested(2, nested(2, be32(1, _GOTO & 0xFFFFFFFF) + text(2, chain))))


def _compare(data: bytes, operation: int = _EQ) -> bytes:
    return _expression("cmp", be32(1, _REG), be32(2, operation), nested(3, attribute(1, data)))


def _load(base: int, offset: int, length: int, register: int = _REG) -> bytes:
    return _expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def _meta(what: int, register: int = _REG) -> bytes:
    return _expression("meta", be32(1, register), be32(2, what))


def is_protocol(name: str) -> list[bytes]:
    """`meta l4proto tcp`"""
    return [_meta(16), _compare(bytes((PROTOCOLS[name],)))]


def to_port(first: int, last: int) -> list[bytes]:
    """`th dport first-last`, after is_protocol."""
    bounds = nested(3, attribute(1, struct.pack(">H", first))), nested(4, attribute(1, struct.pack(">H", last)))
    return [_load(2, 2, 2), _expression("range", be32(1, _REG), be32(2, _EQ), *bounds)]


def to_network(network: ipaddress.IPv4Network) -> list[bytes]:
    """`ip daddr network`. Nothing for all of IPv4, which is all there is behind our first chain."""
    if not network.prefixlen:
        return []
    mask = network.netmask.packed
    parts = [_load(1, 16, 4)]
    if network.prefixlen < 32:
        masked = nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(4)))
        parts.append(_expression("bitwise", be32(1, _REG), be32(2, _REG), be32(3, 4), *masked))
    return [*parts, _compare(network.network_address.packed)]


def not_in(set_: str) -> list[bytes]:
    """`ip daddr != @set`"""
    return [_load(1, 16, 4), _expression("lookup", text(1, set_), be32(2, _REG), be32(5, 1))]


def in_set(set_: str) -> list[bytes]:
    """`ip daddr @set`"""
    return [_load(1, 16, 4), _expression("lookup", text(1, set_), be32(2, _REG))]


def pair_in(set_: str) -> list[bytes]:
    """`ip saddr . ip daddr @set`"""
    return [_load(1, 12, 4), _load(1, 16, 4, _REG + 1), _expression("lookup", text(1, set_), be32(2, _REG))]


def pair_and_port_in(set_: str) -> list[bytes]:
    """`ip saddr . ip daddr . meta l4proto . th dport @set`"""
    loads = [_load(1, 12, 4), _load(1, 16, 4, _REG + 1), _meta(16, _REG + 2), _load(2, 2, 2, _REG + 3)]
    return [*loads, _expression("lookup", text(1, set_), be32(2, _REG))]


def _counts(expression: bytes) -> tuple[int, int] | None:
    values = attributes(expression)
    return _counts_of(attributes(values[2])) if 2 in values else None


def _counts_of(values: dict[int, bytes]) -> tuple[int, int]:
    return int.from_bytes(values[2], "big"), int.from_bytes(values[1], "big")
