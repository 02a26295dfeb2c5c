"""Encoded plans that differ only in their slot, made by filling in the slot instead of compiling anew.

Nothing is guessed: the plan is compiled for two slots, and where the two encodings differ is what depends on the slot.
Each such place must be explained by the slot's name or its range of ids, else there is no template. Names and numbers
have a fixed width, so a place never moves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from joey.model.resources import Resources
from joey.model.slot import FIRST_ID, IDS_PER_SLOT, Slot, slot_name
from joey.plan.encode import HEADER_SIZE, NUMBERS_AT, OP_SIZE

_U64 = struct.Struct("<Q")
_WIDTH = len(slot_name(0))


class Template:
    """One encoding with holes. `fill` takes some microseconds."""

    def __init__(
        self, encoded: bytes, names: list[int], numbers: list[tuple[int, int]], texts: list[tuple[int, int, int]]
    ) -> None:
        self._encoded = encoded
        self._names = names
        self._numbers = numbers
        self._texts = texts

    def fill(self, slot: Slot) -> bytes:
        """The encoding for `slot`. Raises ValueError if its name has another width."""
        out, name, base = bytearray(self._encoded), slot.name.encode(), slot.base
        if len(name) != _WIDTH:
            raise ValueError(f"slot {slot.name}: names have {_WIDTH} characters")
        for at in self._names:
            out[at : at + len(name)] = name
        for at, plus in self._numbers:
            _U64.pack_into(out, at, base + plus)
        for at, width, plus in self._texts:
            out[at : at + width] = b"%0*d" % (width, base + plus)
        return bytes(out)


def make(compile: Callable[[Slot], bytes], prepared: Resources) -> Template | None:
    """A template of what `compile` gives for any slot prepared so; None if it depends on the slot in another way."""
    one = Slot(name=slot_name(1_111_111), base=0x4111_0000, prepared=prepared)
    two = Slot(name=slot_name(2_222_222), base=0x7222_0000, prepared=prepared)
    first, second = compile(one), compile(two)
    if len(first) != len(second):
        return None
    blob = HEADER_SIZE + OP_SIZE * struct.unpack_from("<I", first, 8)[0]
    numbers = _numbers(first, second, blob, one, two)
    found = _texts(first, second, blob, one, two)
    if numbers is None or found is None:
        return None
    template = Template(first, found[0], numbers, found[1])
    return template if template.fill(two) == second and template.fill(one) == first else None


def _numbers(first: bytes, second: bytes, end: int, one: Slot, two: Slot) -> list[tuple[int, int]] | None:
    places = []
    for op in range(HEADER_SIZE, end, OP_SIZE):
        if first[op : op + NUMBERS_AT] != second[op : op + NUMBERS_AT]:
            return None
        for at in range(op + NUMBERS_AT, op + OP_SIZE, 8):
            a, b = _U64.unpack_from(first, at)[0], _U64.unpack_from(second, at)[0]
            if a != b:
                if a - one.base != b - two.base or not -FIRST_ID <= a - one.base <= IDS_PER_SLOT:
                    return None
                places.append((at, a - one.base))
    return places


def _texts(
    first: bytes, second: bytes, start: int, one: Slot, two: Slot
) -> tuple[list[int], list[tuple[int, int, int]]] | None:
    """Places of the slot's name, and of decimal numbers (place, digits, what is added to the base)."""
    names: list[int] = []
    texts: list[tuple[int, int, int]] = []
    width, at = len(one.name), start
    while at < len(first):
        if first[at] == second[at]:
            at += 1
            continue
        name = first.find(one.name.encode(), max(start, at - width), at + width)
        if 0 <= name <= at:
            names.append(name)
            at = name + width
            continue
        number = _number_around(first, at)
        if number is None:
            return None
        begin, digits = number
        texts.append((begin, len(digits), int(digits) - one.base))
        at = begin + len(digits)
    return names, texts


def _number_around(data: bytes, at: int) -> tuple[int, bytes] | None:
    """The decimal number that has a digit at `at`: (where it begins, its digits)."""
    begin = end = at
    while data[begin - 1 : begin].isdigit():
        begin -= 1
    while data[end : end + 1].isdigit():
        end += 1
    return (begin, data[begin:end]) if end > begin else None
