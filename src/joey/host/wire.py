"""Messages between engine and launcher, as native/plan.h lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from joey.host.packets import (
    ADOPT as ADOPT,
)
from joey.host.packets import (
    CHILD as CHILD,
)
from joey.host.packets import (
    DONE as DONE,
)
from joey.host.packets import (
    EXITED as EXITED,
)
from joey.host.packets import (
    FETCH as FETCH,
)
from joey.host.packets import (
    FORGET as FORGET,
)
from joey.host.packets import (
    GROUP as GROUP,
)
from joey.host.packets import (
    HEADER as HEADER,
)
from joey.host.packets import (
    HELLO as HELLO,
)
from joey.host.packets import (
    INLINE as INLINE,
)
from joey.host.packets import (
    LIST as LIST,
)
from joey.host.packets import (
    LISTED as LISTED,
)
from joey.host.packets import (
    MAX_FDS as MAX_FDS,
)
from joey.host.packets import (
    MAX_PLAN as MAX_PLAN,
)
from joey.host.packets import (
    RELEASE as RELEASE,
)
from joey.host.packets import (
    RUN as RUN,
)
from joey.host.packets import (
    SIGNAL as SIGNAL,
)
from joey.host.packets import (
    STOP as STOP,
)
from joey.host.packets import (
    SUBSCRIBE as SUBSCRIBE,
)
from joey.host.packets import (
    UNKNOWN as UNKNOWN,
)
from joey.host.packets import (
    VERSION as VERSION,
)
from joey.host.packets import (
    pack as pack,
)


class Message(NamedTuple):
    """One packet. error: errno of DONE; value: pid of a RUN that is DONE; op: the operation that failed, or -1."""

    type: int
    error: int
    request: int
    key: int
    value: int
    op: int
    data: bytes


class Child(NamedTuple):
    """What the launcher knows of a process it started.

    Times in nanoseconds since the epoch (exited_ns 0 while it runs), usage in microseconds and KiB; status as wait(2)
    gives it; held: bit mask of the roles whose descriptors the launcher keeps; flags: UNKNOWN.
    """

    key: int
    started_ns: int
    exited_ns: int
    pid: int
    status: int = 0
    user_us: int = 0
    system_us: int = 0
    max_rss_kib: int = 0
    held: int = 0
    flags: int = 0

    @property
    def running(self) -> bool:
        return self.exited_ns == 0

    @property
    def unknown(self) -> bool:
        """Whether it ended unseen: after its launcher, and before another took it over."""
        return bool(self.flags & UNKNOWN)

    def pack(self) -> bytes:
        return CHILD.pack(*self)


def unpack(packet: bytes) -> Message:
    """Raises ValueError for what is no message of this version."""
    if len(packet) < HEADER.size:
        raise ValueError(f"message of {len(packet)} bytes")
    type, error, request, key, value, op, size = HEADER.unpack_from(packet)
    if size != len(packet) - HEADER.size:
        raise ValueError(f"message with {len(packet) - HEADER.size} bytes of data says {size}")
    return Message(type, error, request, key, value, op, packet[HEADER.size :])


def children(data: bytes) -> Iterator[Child]:
    for fields in CHILD.iter_unpack(data):
        yield Child(*fields)
