"""The tasks of the demo: small programming problems with right and wrong solutions, as people hand them in.

`inputs` draws the arguments of one sandbox's tests from its own seed. Some cases are always there, chosen so that every
wrong solution fails at least one; tests/unit/test_bench_demo.py holds each solution to what it is said to be.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

Cases = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Problem:
    """`name`: of the function to write. `right`, `wrong`: sources that define it; right[0] gives what is expected."""

    name: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    inputs: Callable[[random.Random], Cases]


def _problem(
    name: str, inputs: Callable[[random.Random], Cases], right: tuple[str, ...], wrong: tuple[str, ...]
) -> Problem:
    clean = [tuple(dedent(source).strip() + "\n" for source in sources) for sources in (right, wrong)]
    return Problem(name, clean[0], clean[1], inputs)


def _numbers(draw: random.Random, count: int, low: int = -50, high: int = 50) -> list[int]:
    return [draw.randint(low, high) for _ in range(count)]


def _word(draw: random.Random, count: int, letters: str = "abcdefgh") -> str:
    return "".join(draw.choice(letters) for _ in range(count))


def _two_sum(draw: random.Random) -> Cases:
    cases: Cases = [([3, 3], 6), ([1, 2, 3], 100), ([], 0), ([5], 10)]
    for _ in range(6):
        numbers = _numbers(draw, draw.randint(2, 30))
        cases.append((numbers, draw.choice([sum(draw.sample(numbers, 2)), 1000])))
    return cases


def _anagrams(draw: random.Random) -> Cases:
    drawn = [([_word(draw, 3, "abc") for _ in range(draw.randint(1, 20))],) for _ in range(4)]
    return [([],), (["ab", "ba", "aab", "abb"],), (["b", "a", "b"],), *drawn]


def _rotate(draw: random.Random) -> Cases:
    cases: Cases = [([1, 2, 3], 1), ([1, 2, 3], 4), ([], 3), ([1, 2, 3, 4], -1)]
    return cases + [(_numbers(draw, draw.randint(1, 12)), draw.randint(0, 40)) for _ in range(5)]


def _balanced(draw: random.Random) -> Cases:
    fixed = ["", "()", "([)]", "(((", ")(", "{[()]}", "]"]
    return [(text,) for text in [*fixed, *(_word(draw, draw.randint(2, 12), "()[]{}") for _ in range(5))]]


def _merge(draw: random.Random) -> Cases:
    cases: Cases = [([],), ([(1, 4), (4, 5)],), ([(5, 6), (1, 2)],), ([(1, 10), (2, 3)],)]
    for _ in range(4):
        starts = _numbers(draw, draw.randint(1, 8), 0, 60)
        cases.append(([(start, start + draw.randint(0, 9)) for start in starts],))
    return cases


def _change(draw: random.Random) -> Cases:
    cases: Cases = [([1, 3, 4], 6), ([2], 3), ([5], 0), ([1, 2, 5], 11)]
    return cases + [(sorted(draw.sample(range(1, 15), 3)), draw.randint(1, 60)) for _ in range(5)]


def _paths(draw: random.Random) -> Cases:
    chain = {0: [1], 1: [2], 2: []}
    cases: Cases = [(chain, 0, 2), (chain, 2, 0), ({0: [0]}, 0, 0), ({0: [1], 1: [0, 2], 2: []}, 0, 2)]
    for _ in range(4):
        size = draw.randint(3, 12)
        graph = {node: draw.sample(range(size), draw.randint(0, 3)) for node in range(size)}
        cases.append((graph, 0, size - 1))
    return cases


def _median(draw: random.Random) -> Cases:
    cases: Cases = [([1],), ([1, 2],), ([3, 1, 2],), ([10, 2, 9, 100],)]
    return cases + [(_numbers(draw, draw.randint(1, 20)),) for _ in range(5)]


PROBLEMS: tuple[Problem, ...] = (
    _problem(
        "two_sum", _two_sum,
        ("""
        def two_sum(numbers, target):
            seen = {}
            for index, number in enumerate(numbers):
                if target - number in seen:
                    return True
                seen[number] = index
            return False
        """, """
        def two_sum(numbers, target):
            ordered = sorted(numbers)
            low, high = 0, len(ordered) - 1
            while low < high:
                found = ordered[low] + ordered[high]
                if found == target:
                    return True
                low, high = (low + 1, high) if found < target else (low, high - 1)
            return False
        """),
        ("""
        def two_sum(numbers, target):
            return any(target - number in numbers for number in numbers)
        """, """
        def two_sum(numbers, target):
            known = set(numbers)
            return any(target - n in known and target - n != n for n in known)
        """),
    ),
    _problem(
        "group_anagrams", _anagrams,
        ("""
        def group_anagrams(words):
            groups = {}
            for word in words:
                groups.setdefault("".join(sorted(word)), []).append(word)
            return sorted(sorted(group) for group in groups.values())
        """,),
        ("""
        def group_anagrams(words):
            groups = {}
            for word in words:
                groups.setdefault(frozenset(word), []).append(word)
            return sorted(sorted(group) for group in groups.values())
        """, """
        def group_anagrams(words):
            groups = {}
            for word in set(words):
                groups.setdefault("".join(sorted(word)), []).append(word)
            return sorted(sorted(group) for group in groups.values())
        """),
    ),
    _problem(
        "rotate", _rotate,
        ("""
        def rotate(items, steps):
            if not items:
                return []
            steps %= len(items)
            return items[-steps:] + items[:-steps] if steps else list(items)
        """, """
        from collections import deque

        def rotate(items, steps):
            line = deque(items)
            line.rotate(steps)
            return list(line)
        """),
        ("""
        def rotate(items, steps):
            return items[-steps:] + items[:-steps]
        """, """
        def rotate(items, steps):
            steps %= len(items)
            return items[steps:] + items[:steps]
        """),
    ),
    _problem(
        "balanced", _balanced,
        ("""
        def balanced(text):
            stack = []
            for char in text:
                if char in "([{":
                    stack.append(char)
                elif not stack or "([{".index(stack.pop()) != ")]}".index(char):
                    return False
            return not stack
        """, """
        def balanced(text):
            before = None
            while before != text:
                before = text
                for pair in ("()", "[]", "{}"):
                    text = text.replace(pair, "")
            return text == ""
        """),
        ("""
        def balanced(text):
            return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))
        """, """
        def balanced(text):
            stack = []
            for char in text:
                if char in "([{":
                    stack.append(char)
                elif "([{".index(stack.pop()) != ")]}".index(char):
                    return False
            return True
        """),
    ),
    _problem(
        "merge_spans", _merge,
        ("""
        def merge_spans(spans):
            merged = []
            for start, end in sorted(spans):
                if merged and start <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
                else:
                    merged.append((start, end))
            return merged
        """,),
        ("""
        def merge_spans(spans):
            merged = []
            for start, end in spans:
                if merged and start <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
                else:
                    merged.append((start, end))
            return merged
        """, """
        def merge_spans(spans):
            merged = []
            for start, end in sorted(spans):
                if merged and start <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], end)
                else:
                    merged.append((start, end))
            return merged
        """),
    ),
    _problem(
        "fewest_coins", _change,
        ("""
        def fewest_coins(coins, amount):
            best = [0] + [None] * amount
            for value in range(1, amount + 1):
                known = [best[value - c] for c in coins if c <= value and best[value - c] is not None]
                best[value] = 1 + min(known) if known else None
            return best[amount]
        """, """
        from functools import cache

        def fewest_coins(coins, amount):
            @cache
            def solve(rest):
                if rest == 0:
                    return 0
                found = [solve(rest - coin) for coin in coins if coin <= rest]
                found = [count for count in found if count is not None]
                return min(found) + 1 if found else None
            return solve(amount)
        """),
        ("""
        def fewest_coins(coins, amount):
            count = 0
            for coin in sorted(coins, reverse=True):
                count += amount // coin
                amount %= coin
            return count if amount == 0 else None
        """,),
    ),
    _problem(
        "shortest_path", _paths,
        ("""
        def shortest_path(graph, start, goal):
            edge, seen, steps = {start}, {start}, 0
            while edge:
                if goal in edge:
                    return steps
                edge = {n for node in edge for n in graph[node]} - seen
                seen |= edge
                steps += 1
            return None
        """, """
        from collections import deque

        def shortest_path(graph, start, goal):
            queue, distance = deque([start]), {start: 0}
            while queue:
                node = queue.popleft()
                if node == goal:
                    return distance[node]
                for near in graph[node]:
                    if near not in distance:
                        distance[near] = distance[node] + 1
                        queue.append(near)
        """),
        ("""
        def shortest_path(graph, start, goal):
            if start == goal:
                return 0
            found = [shortest_path(graph, near, goal) for near in graph[start]]
            found = [steps for steps in found if steps is not None]
            return 1 + min(found) if found else None
        """, """
        def shortest_path(graph, start, goal):
            edge, seen, steps = {start}, {start}, 1
            while edge:
                edge = {n for node in edge for n in graph[node]}
                if goal in edge:
                    return steps
                if edge <= seen:
                    return None
                seen |= edge
                steps += 1
        """),
    ),
    _problem(
        "median", _median,
        ("""
        def median(numbers):
            ordered, middle = sorted(numbers), len(numbers) // 2
            return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        """, """
        import statistics

        def median(numbers):
            return statistics.median(numbers)
        """),
        ("""
        def median(numbers):
            return sorted(numbers)[len(numbers) // 2]
        """, """
        def median(numbers):
            middle = len(numbers) // 2
            return numbers[middle] if len(numbers) % 2 else (numbers[middle - 1] + numbers[middle]) / 2
        """),
    ),
)  # fmt: skip
