"""What all operations share: registers, packing, and words for people."""

from __future__ import annotations

from joey.plan.ops.value import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType, Protocol

    Reg = NewType("Reg", int)
else:  # as in joey.plan.ops.value: an import of typing is half the start of a command
    Reg, Protocol = int, object
NO_REG = Reg(255)
LOCALS = 192
"""Registers below are a plan's own; those above belong to the launcher (KEEP)."""


class Blob(Protocol):
    """Where packed operations put their strings; each method returns an offset."""

    def string(self, text: str) -> int: ...
    def strings(self, items: tuple[str, ...]) -> int: ...
    def data(self, data: bytes) -> int: ...
    def numbers(self, items: tuple[int, ...]) -> int: ...
    def registers(self, items: tuple[Reg, ...]) -> int: ...


Packed = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""(registers, offsets, numbers), at most 4, 4 and 3 of them."""


class Op(Struct, frozen=True):
    """Base of all operations."""

    CODE = 0

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def describe(self) -> str:
        raise NotImplementedError

    def pack(self, blob: Blob) -> Packed:
        raise NotImplementedError


def fd(number: Reg) -> str:
    """The text that the launcher replaces by the number of the descriptor in a local register (WRITE, FSCONFIG,
    MOUNT).
    """
    # One byte, also for registers above 95, which is no character of its own in UTF-8.
    return "\x01" + bytes((32 + number,)).decode("utf-8", "surrogateescape")


def reg(number: Reg) -> str:
    return f"g{number - LOCALS}" if number >= LOCALS else f"r{number}"


def at(directory: Reg, path: str) -> str:
    return path or "." if directory == NO_REG else f"{reg(directory)}:{path}" if path else reg(directory)


def readable(text: str) -> str:
    """A string for people: register substitutions shown as {r1}."""
    out, rest = "", text
    while "\x01" in rest:
        before, _, rest = rest.partition("\x01")
        out, rest = f"{out}{before}{{r{(ord(rest[0]) & 0xFF) - 32}}}", rest[1:]
    return (out + rest).replace("\n", "\\n")
