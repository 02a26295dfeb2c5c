"""application/vnd.amazon.eventstream: length and headers with a CRC, payload, CRC of it all. Pure.

Source: Smithy, "Amazon Event Stream specification".
"""

from __future__ import annotations

import struct
from zlib import crc32

MEDIA = "application/vnd.amazon.eventstream"
_STRING = 7
"""The type of a header's value."""


def event(kind: str, payload: bytes, media: str) -> bytes:
    """One message: an event of type `kind`."""
    headers = b"".join(
        _header(name, value)
        for name, value in ((":message-type", "event"), (":event-type", kind), (":content-type", media))
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    start = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return start + struct.pack(">I", crc32(start))


def _header(name: str, value: str) -> bytes:
    return struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", _STRING, len(value)) + value.encode()
