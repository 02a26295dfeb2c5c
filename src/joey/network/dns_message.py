"""As much of DNS messages as a forwarder needs: the question, the addresses of an answer, replies of our own (RFC
1035).

Our own because it is little, and what hostile clients send is read here: every offset is checked, and a name's
pointers may only lead back. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

A, CNAME, PTR, AAAA, OPT, SVCB, HTTPS, ANY = 1, 5, 12, 28, 41, 64, 65, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")


class Malformed(ValueError):
    """Not a DNS message we can use."""


class Query(NamedTuple):
    """A question. `name` is lower case without its final dot, `end` is where the question section ends."""

    id: int
    flags: int
    name: str
    kind: int
    klass: int
    end: int


class Record(NamedTuple):
    name: str
    kind: int
    ttl: int
    ttl_at: int
    data: bytes
    target: str


class Response(NamedTuple):
    """`records`: the answer section; `ttls`: where in the message lifetimes stand, of all sections."""

    rcode: int
    truncated: bool
    records: tuple[Record, ...]
    ttls: tuple[int, ...]


def parse_query(data: bytes) -> Query:
    """The one question of a standard query. Raises Malformed."""
    if len(data) < 12:
        raise Malformed("shorter than a header")
    identity, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1:
        raise Malformed("not a query of one question")
    name, offset = _name(data, 12)
    if offset + 4 > len(data):
        raise Malformed("the question ends early")
    kind, klass = struct.unpack_from(">HH", data, offset)
    return Query(identity, flags, name, kind, klass, offset + 4)


def opcode(query: Query) -> int:
    return query.flags >> 11 & 15


def parse_response(data: bytes, query: Query) -> Response:
    """What an upstream answered to `query`. Raises Malformed, also if it answers something else."""
    if len(data) < 12:
        raise Malformed("shorter than a header")
    _, flags, questions, *counts = _HEADER.unpack_from(data)
    if not flags & _QR or questions != 1:
        raise Malformed("not an answer")
    name, offset = _name(data, 12)
    if name != query.name or data[offset : offset + 4] != struct.pack(">HH", query.kind, query.klass):
        raise Malformed("answers another question")
    offset += 4
    truncated = bool(flags & _TC)
    records, ttls = [], []
    for place in range(sum(counts)):
        if truncated and offset >= len(data):
            break
        record, offset = _record(data, offset)
        if record.kind != OPT:
            ttls.append(record.ttl_at)
        if place < counts[0]:
            records.append(record)
    return Response(flags & 15, truncated, tuple(records), tuple(ttls))


def addresses(query: Query, response: Response, kind: int = A) -> tuple[list[bytes], int]:
    """(addresses of the question's name by the answer, CNAMEs followed; the least lifetime among them, seconds)."""
    names, ttl = {query.name}, 1 << 31
    for _ in range(16):
        more = {one.target for one in response.records if one.kind == CNAME and one.name in names} - names
        if not more:
            break
        names |= more
    found = []
    for record in response.records:
        if record.name in names and record.kind in (kind, CNAME):
            ttl = min(ttl, record.ttl)
            if record.kind == kind:
                found.append(record.data)
    return found, ttl if found else 0


def reply(
    data: bytes, query: Query, rcode: int, found: Sequence[bytes] = (), ttl: int = 0, *, truncated: bool = False
) -> bytes:
    """Our own answer to the query `data`: `found` are addresses (4 bytes: A, 16: AAAA)."""
    flags = _QR | _RA | (query.flags & (_RD | 0x7800)) | rcode | (_TC if truncated else 0)
    answers = b"".join(
        b"\xc0\x0c" + _RECORD.pack(A if len(one) == 4 else AAAA, 1, ttl, len(one)) + one for one in found
    )
    return _HEADER.pack(query.id, flags, 1, len(found), 0, 0) + data[12 : query.end] + answers


def with_id(data: bytes, identity: int) -> bytes:
    return struct.pack(">H", identity) + data[2:]


def aged(data: bytes, ttls: Sequence[int], seconds: int) -> bytes:
    """The message with `seconds` taken off every lifetime at the offsets `ttls`."""
    message = bytearray(data)
    for offset in ttls:
        (ttl,) = struct.unpack_from(">I", message, offset)
        struct.pack_into(">I", message, offset, max(0, ttl - seconds))
    return bytes(message)


def _record(data: bytes, offset: int) -> tuple[Record, int]:
    name, offset = _name(data, offset)
    if offset + 10 > len(data):
        raise Malformed("a record ends early")
    kind, _, ttl, length = _RECORD.unpack_from(data, offset)
    start = offset + 10
    if start + length > len(data):
        raise Malformed("a record ends early")
    content = data[start : start + length]
    if (kind == A and length != 4) or (kind == AAAA and length != 16):
        raise Malformed("an address of the wrong length")
    target = _name(data, start)[0] if kind == CNAME else ""
    return Record(name, kind, 0 if ttl >= 1 << 31 else ttl, offset + 4, content, target), start + length


def _name(data: bytes, offset: int) -> tuple[str, int]:
    """(the name at `offset`, where what follows it begins). Bytes that are no host name's are kept as latin-1: they
    match no rule but `*`. A dot inside a label would read as two labels, so it is refused.
    """
    labels: list[str] = []
    end, least, total = 0, offset, 0
    while True:
        if offset >= len(data):
            raise Malformed("a name ends early")
        length = data[offset]
        if length >= 0xC0:
            if offset + 2 > len(data):
                raise Malformed("a name ends early")
            end = end or offset + 2
            offset = (length & 0x3F) << 8 | data[offset + 1]
            if offset >= least:
                raise Malformed("a name's pointer does not lead back")
            least = offset
            continue
        if length > 63:
            raise Malformed("a label of unknown type")
        offset += 1
        if not length:
            return ".".join(labels).lower(), end or offset
        label = data[offset : offset + length]
        total += length + 1
        if len(label) < length or total > 254 or b"." in label:
            raise Malformed("a bad label")
        labels.append(label.decode("latin-1"))
        offset += length
