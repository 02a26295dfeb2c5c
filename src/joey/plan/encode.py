"""Plans to bytes, as native/plan.h lays them out: header, operations of 48 bytes, blob."""

from __future__ import annotations

import struct

from joey.plan.ops import NO_REG, Op, Plan, Reg

MAGIC = 0x4E4C504A
VERSION = 3
_HEADER = struct.Struct("<4I")
_OP = struct.Struct("<H4BH4I3Q")
_COUNT, _NUMBER = struct.Struct("<I"), struct.Struct("<Q")
_U64 = (1 << 64) - 1
HEADER_SIZE, OP_SIZE = _HEADER.size, _OP.size
NUMBERS_AT = 24
"""Where an operation's three numbers begin, in bytes (native/plan.h, struct plan_op)."""


class _Blob:
    """Strings and data behind each other; equal strings stand once. Offset 0 is the empty string."""

    def __init__(self, before: bytes = b"\0") -> None:
        self.bytes = bytearray(before)
        self._seen: dict[str, int] = {"": 0}

    def string(self, text: str) -> int:
        offset = self._seen.get(text)
        if offset is None:
            offset = self._seen[text] = self._add(_c_string(text))
        return offset

    def strings(self, items: tuple[str, ...]) -> int:
        return self._add(_COUNT.pack(len(items)) + b"".join(map(_c_string, items)))

    def data(self, data: bytes) -> int:
        return self._add(_COUNT.pack(len(data)) + data)

    def numbers(self, items: tuple[int, ...]) -> int:
        return self._add(struct.pack(f"<{1 + len(items)}I", len(items), *items))

    def registers(self, items: tuple[Reg, ...]) -> int:
        return self.data(bytes(items))

    def _add(self, data: bytes) -> int:
        offset = len(self.bytes)
        self.bytes += data
        return offset


def _c_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError(f"NUL byte in {text!r}")
    return data + b"\0"


def encode(plan: Plan) -> bytes:
    """The launcher's form of a plan. Raises ValueError for a string with a NUL byte."""
    blob = _Blob()
    packed = b"".join([_pack(op, blob) for op in plan.ops])
    return _assemble(len(plan.ops), packed, blob)


def append(encoded: bytes, op: Op) -> bytes:
    """An encoded plan with one more operation at its end."""
    count, size = struct.unpack_from("<2I", encoded, 8)
    blob = _Blob(encoded[len(encoded) - size : -1])
    packed = _pack(op, blob)
    return _assemble(count + 1, encoded[HEADER_SIZE : len(encoded) - size] + packed, blob)


def renumber(encoded: bytes, at: int, number: int) -> bytes:
    """An encoded plan whose operation `at` has another first number."""
    place = HEADER_SIZE + at * OP_SIZE + NUMBERS_AT
    return b"".join((encoded[:place], _NUMBER.pack(number), encoded[place + _NUMBER.size :]))


def _pack(op: Op, blob: _Blob) -> bytes:
    regs, offsets, numbers = op.pack(blob)
    r = (*regs, *(NO_REG,) * (4 - len(regs)))
    s = (*offsets, *(0,) * (4 - len(offsets)))
    n = (*numbers, *(0,) * (3 - len(numbers)))
    return _OP.pack(op.CODE, *r, 0, *s, n[0] & _U64, n[1] & _U64, n[2] & _U64)


def _assemble(count: int, packed: bytes, blob: _Blob) -> bytes:
    blob.bytes += b"\0"
    return b"".join((_HEADER.pack(MAGIC, VERSION, count, len(blob.bytes)), packed, blob.bytes))
