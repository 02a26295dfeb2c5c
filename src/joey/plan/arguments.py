"""Conditions on system call arguments as a decision over 32-bit words, which is all that cBPF can load.

An argument is two words of struct seccomp_data, the lower first (little endian). Every way through remembers which
word the accumulator holds, so that nothing is loaded twice. Alternatives that compare one argument with constants
become one set of numbers and a tree over it: forty rules "argument 0 is this family" are a handful of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from joey.model.seccomp import U32, U64, ArgTest, Op
from joey.plan.bpf import AND, JEQ, JSET, LD_ABS, Graph, Node
from joey.plan.ranges import segments, tree

_ARGS = 16  # offset of args[0] in struct seccomp_data
Held: TypeAlias = int | None
"""Offset of the word in the accumulator; None: some other value."""
Exit: TypeAlias = Callable[[Held], Node]
Intervals: TypeAlias = list[tuple[int, int]]
"""Sorted, disjoint (first, last), both included."""


def decide(graph: Graph, rules: Sequence[tuple[tuple[ArgTest, ...], Node]], otherwise: Node, bits: int) -> Node:
    """The node of the first rule all of whose conditions hold, else `otherwise`. bits: size of the ABI's arguments."""
    words = {offset for tests, _ in rules for test in tests for offset in (_low(test.index), _high(test.index))}
    after: dict[Held, Node] = dict.fromkeys([None, *words], otherwise)
    # From the last rule to the first, each for every word the accumulator may hold when it is reached.
    for tests, node in reversed(_as_sets(rules, bits)):
        after = {held: _rule(graph, tests, node, after, held, bits) for held in after}
    return after[None]


_Set: TypeAlias = tuple[int, int, Intervals]
"""(argument, word size, values): one alternative or several, told apart by constants alone."""
_Test: TypeAlias = ArgTest | _Set


def _as_sets(rules: Sequence[tuple[tuple[ArgTest, ...], Node]], bits: int) -> list[tuple[list[_Test], Node]]:
    """Rules with one condition each, beside each other and with the same answer, joined per argument."""
    joined: list[tuple[list[_Test], Node]] = []
    open_sets: dict[tuple[int, int], Intervals] = {}
    answer: Node | None = None
    for tests, node in rules:
        if node is not answer:
            open_sets, answer = {}, node
        converted = [_convert(test, bits) for test in tests]
        if len(converted) == 1 and isinstance(converted[0], tuple):
            index, size, values = converted[0]
            if (index, size) in open_sets:
                wanted = open_sets[index, size]
                wanted[:] = _union([*wanted, *values])
                continue
            open_sets[index, size] = values
        joined.append((converted, node))
    return joined


def _convert(test: ArgTest, bits: int) -> _Test:
    """A comparison with constants as a set of values of 32 (lower word only) or 64 bits; other masks stay tests."""
    if test.op is Op.MASKED_EQ:
        mask, value = (test.value, test.value_two) if bits == 64 else (test.value & U32, test.value_two & U32)
        if value & ~mask:
            return (test.index, 32, [])
        if mask == U32:
            return (test.index, 32, [(value, value)])
        return ArgTest(test.index, Op.MASKED_EQ, mask, value)
    top = U64 if bits == 64 else U32
    value = test.value & top
    below: Intervals = [(0, value - 1)] if value else []
    above: Intervals = [(value + 1, top)] if value < top else []
    equal: Intervals = [(value, value)]
    values = {
        Op.EQ: equal,
        Op.NE: below + above,
        Op.LT: below,
        Op.LE: below + equal,
        Op.GT: above,
        Op.GE: equal + above,
    }[test.op]
    return (test.index, bits, _union(values))


def _union(intervals: Intervals) -> Intervals:
    result: Intervals = []
    for first, last in sorted(intervals):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def _rule(graph: Graph, tests: list[_Test], node: Node, after: dict[Held, Node], held: Held, bits: int) -> Node:
    """All of `tests` hold: `node`; else what `after` has for the word then held."""

    made: dict[tuple[int, Held], Node] = {}  # a test has many exits; without this their number would multiply

    def test_from(position: int, now: Held) -> Node:
        if position == len(tests):
            return node
        if (position, now) not in made:
            made[position, now] = _test(
                graph, tests[position], now, lambda then: test_from(position + 1, then), after.__getitem__, bits
            )
        return made[position, now]

    return test_from(0, held)


def _test(graph: Graph, test: _Test, held: Held, yes: Exit, no: Exit, bits: int) -> Node:
    if isinstance(test, ArgTest):
        return _masked(graph, test, held, yes, no, bits)
    index, size, values = test
    if size == 32:
        return _word_in(graph, _low(index), _pieces(values, U32), held, yes, no)
    return _in_64(graph, index, values, held, yes, no)


def _in_64(graph: Graph, index: int, values: Intervals, held: Held, yes: Exit, no: Exit) -> Node:
    """The upper word picks, for each of its values, all, nothing or a set of lower words."""
    high, low = _high(index), _low(index)
    starts: list[tuple[int, Node]] = []
    edges = sorted(
        {0, *(e >> 32 for first, last in values for e in (first, last)), *((last >> 32) + 1 for _, last in values)}
    )
    edges = sorted({e for edge in edges for e in (edge, edge + 1) if e <= U32})
    for edge in edges:
        inside = _pieces(_clip(values, edge << 32), U32)
        starts.append((edge, _word_in(graph, low, inside, high, yes, no)))
    return _load(graph, high, held, tree(graph, segments(starts)))


def _clip(values: Intervals, base: int) -> Intervals:
    """The part of `values` whose upper word is that of `base`, less it."""
    clipped = [(max(first, base) - base, min(last, base + U32) - base) for first, last in values]
    return [(first, last) for first, last in clipped if first <= last]


def _pieces(values: Intervals, top: int) -> list[tuple[int, bool]]:
    """(start, whether in the set) over 0 to top."""
    pieces = [(0, False)]
    for first, last in values:
        pieces.append((first, True))
        if last < top:
            pieces.append((last + 1, False))
    return pieces[1:] if len(pieces) > 1 and pieces[1][0] == 0 else pieces


def _word_in(graph: Graph, offset: int, pieces: list[tuple[int, bool]], held: Held, yes: Exit, no: Exit) -> Node:
    if len(pieces) == 1:
        return yes(held) if pieces[0][1] else no(held)
    ways = {True: yes(offset), False: no(offset)}
    return _load(graph, offset, held, tree(graph, segments([(start, ways[inside]) for start, inside in pieces])))


def _masked(graph: Graph, test: ArgTest, held: Held, yes: Exit, no: Exit, bits: int) -> Node:
    words = [(_low(test.index), test.value & U32, test.value_two & U32)]
    if bits == 64:
        words.append((_high(test.index), test.value >> 32, test.value_two >> 32))
    words = [word for word in words if word[1]]

    def word_from(position: int, now: Held) -> Node:
        if position == len(words):
            return yes(now)
        offset, mask, value = words[position]
        if value == 0:  # no bit of the mask is set; leaves the word in the accumulator
            return _load(graph, offset, now, graph.branch(JSET, mask, no(offset), word_from(position + 1, offset)))
        if mask == U32:
            return _load(graph, offset, now, graph.branch(JEQ, value, word_from(position + 1, offset), no(offset)))
        if value == mask and mask & (mask - 1) == 0:  # a single bit that must be set
            return _load(graph, offset, now, graph.branch(JSET, mask, word_from(position + 1, offset), no(offset)))
        compare = graph.branch(JEQ, value, word_from(position + 1, None), no(None))
        return _load(graph, offset, now, graph.step(AND, mask, compare))

    return word_from(0, held)


def _load(graph: Graph, offset: int, held: Held, then: Node) -> Node:
    return then if held == offset else graph.step(LD_ABS, offset, then)


def _low(index: int) -> int:
    return _ARGS + 8 * index


def _high(index: int) -> int:
    return _ARGS + 8 * index + 4
