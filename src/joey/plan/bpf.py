"""Classic BPF for seccomp: a program as a graph of shared nodes, laid out into `struct sock_filter`s.

Only what seccomp allows and the kernel's filter cache understands is used (kernel/seccomp.c, seccomp_check_filter and
seccomp_is_const_allow): load a word of seccomp_data, AND, the four conditional jumps, return. Jumps go forward only,
and the conditional ones reach 255 instructions; `layout` puts instructions so that most need no more, and bridges the
others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

LD_ABS = 0x20  # BPF_LD  | BPF_W   | BPF_ABS
JA = 0x05  # BPF_JMP | BPF_JA
JEQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JGT = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JGE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JSET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
RET = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_REACH = 255
_INSTRUCTION = struct.Struct("<HBBI")


class Instruction(NamedTuple):
    """`struct sock_filter` (linux/filter.h)."""

    code: int
    jt: int
    jf: int
    k: int


class FilterTooLong(ValueError):
    """The policy needs more than the 4096 instructions the kernel takes in one filter."""


# eq=False: nodes are compared by identity, and `Graph` sees to it that equal nodes are the same object.
@dataclass(frozen=True, slots=True, eq=False)
class Return:
    """End with SECCOMP_RET_* `value`."""

    value: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Load (LD_ABS, offset k) or mask (AND, k) the accumulator, then go on with `then`."""

    code: int
    k: int
    then: Node


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """Compare the accumulator with k by `code` (JEQ, JGT, JGE, JSET)."""

    code: int
    k: int
    yes: Node
    no: Node


Node: TypeAlias = Return | Step | Branch


class Graph:
    """Makes nodes, each different one once: equal endings of different calls are the same instructions."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], Node] = {}

    def ret(self, value: int) -> Node:
        """The node that returns `value`."""
        return self._made.setdefault((0, value), Return(value))

    def step(self, code: int, k: int, then: Node) -> Node:
        """LD_ABS or AND, then `then`. A step whose result is not looked at is left out."""
        if isinstance(then, Return) or (isinstance(then, Step) and then.code == LD_ABS):
            return then
        return self._made.setdefault((1, code, k, id(then)), Step(code, k, then))

    def branch(self, code: int, k: int, yes: Node, no: Node) -> Node:
        """A comparison; none where both ways lead to the same."""
        if yes is no:
            return yes
        return self._made.setdefault((2, code, k, id(yes), id(no)), Branch(code, k, yes, no))


def layout(root: Node) -> list[Instruction]:
    """The program of `root`. Raises FilterTooLong."""
    program = _Layout()
    for node in _endings_first(root):
        program.place(node)
        if len(program.backwards) > MAX_INSTRUCTIONS:
            count = f"more than {MAX_INSTRUCTIONS}"
            raise FilterTooLong(
                f"seccomp: the policy compiles to {count} instructions, the kernel takes no longer filter"
            )
    return program.backwards[::-1]


class _Layout:
    """Writes a program from its last instruction to its first, so that the place of every jump's target is known."""

    def __init__(self) -> None:
        self.backwards: list[Instruction] = []
        self._place: dict[Node, int] = {}  # how many instructions there were once it was written: distance from the end

    def place(self, node: Node) -> None:
        if isinstance(node, Return):
            self._write(Instruction(RET, 0, 0, node.value))
        elif isinstance(node, Step):
            self._bring_near(node.then, reach=0)
            self._write(Instruction(node.code, 0, 0, node.k))
        else:
            # Bringing one target near may push the other out of reach; twice is enough, for what is brought is
            # adjacent.
            for target in (node.yes, node.no, node.yes):
                self._bring_near(target, _REACH)
            self._write(Instruction(node.code, self._distance(node.yes), self._distance(node.no), node.k))
        self._place[node] = len(self.backwards)

    def _distance(self, target: Node) -> int:
        return len(self.backwards) - self._place[target]

    def _bring_near(self, target: Node, reach: int) -> None:
        """Make `target` reachable: a return is written once more (no longer, and faster), others get a JA to them."""
        distance = self._distance(target)
        if distance <= reach:
            return
        if isinstance(target, Return):
            self._write(Instruction(RET, 0, 0, target.value))
        else:
            self._write(Instruction(JA, 0, 0, distance))
        self._place[target] = len(self.backwards)

    def _write(self, instruction: Instruction) -> None:
        self.backwards.append(instruction)


def _endings_first(root: Node) -> Iterator[Node]:
    """Every node once, after all nodes it leads to; the `yes` side of a branch, or what a step leads to, last."""
    done: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            yield node
            continue
        stack.append((node, True))
        if isinstance(node, Step):
            stack.append((node.then, False))
        elif isinstance(node, Branch):
            stack += [(node.yes, False), (node.no, False)]


def encode(program: list[Instruction]) -> bytes:
    """The program as an array of `struct sock_filter`, little endian, 8 bytes each."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def decode(code: bytes) -> list[Instruction]:
    """The inverse of `encode`. Raises ValueError if `code` is not whole instructions."""
    if len(code) % _INSTRUCTION.size:
        raise ValueError(f"filter: {len(code)} bytes, not a multiple of {_INSTRUCTION.size}")
    return [Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(code)]
