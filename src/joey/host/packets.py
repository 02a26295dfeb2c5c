"""Numbers and layout of the messages between engine and launcher, as native/plan.h has them: light to import."""

from __future__ import annotations

import struct

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
GROUP = 0x100
"""In the value of SIGNAL: to the whole process group of a child that leads one."""


def pack(type: int, request: int, key: int = 0, value: int = 0, data: bytes = b"") -> bytes:
    return HEADER.pack(type, 0, request, key, value, 0, len(data)) + data
