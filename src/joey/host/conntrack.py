"""Forget the kernel's connections of one address (ctnetlink).

Needed when an address ends or a published port is taken back: translations live in the connection's entry. Policy
changes do not come here: they take effect by the generation in the connection's mark (network/table.py).

The kernel walks its whole table once per call (include/uapi/linux/netfilter/nfnetlink_conntrack.h, CTA_FILTER, Linux
5.8), about 10 ms per 100,000 entries, so this belongs off the path of a request; several addresses share one dump.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from pathlib import Path

from joey.host.netlink import Link, Message, NetlinkError, attribute, attributes

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_HEADER = struct.Struct(">BBH")
_TUPLE_ORIG, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP, _V4_SRC, _V4_DST = 1, 1, 2


def capacity(path: Path = Path("/proc/sys/net/netfilter/nf_conntrack_max")) -> int:
    """How many connections the kernel keeps, of all network namespaces' own tables alike; 65,536 if it does not say."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 65536


def flush(link: Link, addresses: Collection[bytes]) -> int:
    """Delete every connection that one of `addresses` (four bytes each) opened or answers; how many there were. `link`
    is a netfilter socket.
    """
    if not addresses:
        return 0
    wanted = frozenset(addresses)
    # Most entries are of others, and to take one apart costs twenty times as much as to see that.
    mentions = re.compile(b"|".join(re.escape(address) for address in wanted), re.DOTALL).search
    header = _HEADER.pack(2, 0, 0)
    deletions = []
    for body in link.dump(Message(_GET, 0, header, "list connections")):
        if not mentions(body):
            continue
        values = attributes(body, 4)
        if wanted & _ends(values):
            # By original tuple and id: an entry made anew meanwhile has another id and stays.
            which = attribute(_TUPLE_ORIG | 0x8000, values[_TUPLE_ORIG]) + attribute(_ID, values[_ID])
            deletions.append(Message(_DELETE, 0, header + which, "delete connection"))
    gone = 0
    for one in deletions:
        try:
            link.send([one])
            gone += 1
        except NetlinkError as error:
            if error.errno != 2:  # it ended by itself
                raise
    return gone


def _ends(values: dict[int, bytes]) -> frozenset[bytes]:
    """Who opened a connection (original source) and who answers it (reply source), whatever was translated."""
    found = []
    for kind in (_TUPLE_ORIG, _TUPLE_REPLY):
        addresses = attributes(attributes(values.get(kind, b"")).get(_TUPLE_IP, b""))
        found.append(addresses.get(_V4_SRC, b""))
    return frozenset(found)
