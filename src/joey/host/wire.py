"""Messages between engine and launcher, as native/plan.h lays them out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

VERSION = 2
INLINE = 65536
MAX_PLAN = 4 << 20
MAX_FDS = 64
HEADER = struct.Struct("<IIQQqiI")
CHILD = struct.Struct("<QQQiiQQQII")

HELLO, RUN, SIGNAL, FETCH, RELEASE, FORGET, LIST, SUBSCRIBE, STOP, ADOPT = range(1, 11)
DONE, LISTED, EXITED = 32, 33, 34
UNKNOWN = 1
"""Flag of a child: it has ended, its status and usage nobody knows."""


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


def pack(type: int, request: int, key: int = 0, value: int = 0, data: bytes = b"") -> bytes:
    return HEADER.pack(type, 0, request, key, value, 0, len(data)) + data


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
