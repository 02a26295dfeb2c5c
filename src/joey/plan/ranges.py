"""A function over unsigned 32-bit numbers, constant on ranges, as a small and shallow tree of comparisons.

Why trees: installing a filter makes the kernel emulate it once for every system call number, and each call that is not
always allowed walks it again; see the figures in joey.plan.seccomp.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from joey.plan.bpf import JEQ, JGE, Graph, Node

_TOP = 0xFFFF_FFFF
_CHAIN = 3
"""Single numbers picked out of one range by JEQ after JEQ; more would make the path longer than splitting does."""


class Segment(NamedTuple):
    """Numbers `first` to `last`, both included, lead to `node`."""

    first: int
    last: int
    node: Node


def segments(starts: Iterable[tuple[int, Node]]) -> list[Segment]:
    """Ranges from their starts (ascending, the first 0, the last range ends at 2**32 - 1), equal neighbours merged."""
    merged: list[tuple[int, Node]] = []
    for start, node in starts:
        if not merged or merged[-1][1] is not node:
            merged.append((start, node))
    ends = [start - 1 for start, _ in merged[1:]] + [_TOP]
    return [Segment(start, end, node) for (start, node), end in zip(merged, ends, strict=True)]


def tree(graph: Graph, parts: list[Segment], dense: int = 0) -> Node:
    """Comparisons of the accumulator that lead to each range's node.

    dense: numbers below this count once each when the tree is balanced, those above hardly at all; 0 counts ranges.
    """
    if len(parts) == 1:
        return parts[0].node
    if _is_chain(parts):
        node = parts[0].node
        for island in reversed(parts[1::2]):
            node = graph.branch(JEQ, island.first, island.node, node)
        return node
    cut = _best_cut(parts, dense)
    left = [p._replace(last=min(p.last, cut - 1)) for p in parts if p.first < cut]
    right = [p._replace(first=max(p.first, cut)) for p in parts if p.last >= cut]
    return graph.branch(JGE, cut, tree(graph, right, dense), tree(graph, left, dense))


def _is_chain(parts: list[Segment]) -> bool:
    """One range with up to _CHAIN single numbers in it that lead elsewhere."""
    around = parts[0].node
    return (
        len(parts) % 2 == 1
        and len(parts) <= 2 * _CHAIN + 1
        and all(p.node is around for p in parts[::2])
        and all(p.first == p.last for p in parts[1::2])
    )


def _best_cut(parts: list[Segment], dense: int) -> int:
    """Where to split: near the middle by weight, and not beside a single number that one JEQ can pick out."""
    island = [
        0 < i < len(parts) - 1 and p.first == p.last and parts[i - 1].node is parts[i + 1].node
        for i, p in enumerate(parts)
    ]
    total = sum(_weight(p, dense) for p in parts)
    best, best_score = 0, float("inf")
    left = 0.0
    for i, part in enumerate(parts):
        weight = _weight(part, dense)
        if i:
            broken = island[i] or island[i - 1]
            score = abs(2 * left - total) / total + (0.6 if broken else 0.0)
            if score < best_score:
                best, best_score = part.first, score
        if 0 < i < len(parts) - 1 and island[i - 1] and island[i + 1] and part.first < part.last:
            # Inside the range between two such numbers: costs an instruction, keeps both cheap.
            score = max(0.0, abs(2 * left + weight - total) - weight) / total + 0.2
            if score < best_score:
                best, best_score = _inside(part, total / 2 - left, weight), score
        left += weight
    return best


def _weight(part: Segment, dense: int) -> float:
    return 1.0 if not dense else 0.1 + max(0, min(part.last + 1, dense) - part.first)


def _inside(part: Segment, wanted: float, weight: float) -> int:
    share = min(1.0, max(0.0, wanted / weight))
    return min(part.last, max(part.first + 1, part.first + round(share * (part.last - part.first))))
