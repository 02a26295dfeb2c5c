"""More tasks of the demo; see joey.bench.demo.problems."""

from __future__ import annotations

import random
from typing import Any

from joey.bench.demo.problems import Cases, Problem, _numbers, _problem, _word


def _roman(draw: random.Random) -> Cases:
    return [(n,) for n in (1, 4, 9, 40, 90, 400, 1994, 3999, *(draw.randint(1, 3999) for _ in range(6)))]


def _primes(draw: random.Random) -> Cases:
    return [(n,) for n in (0, 1, 2, 3, 4, 9, 25, *(draw.randint(5, 400) for _ in range(4)))]


def _caesar(draw: random.Random) -> Cases:
    cases: Cases = [("xyz", 3), ("Hello, World!", 13), ("abc", -1), ("abc", 27)]
    return cases + [(_word(draw, 12, "abcXYZ ,.w"), draw.randint(-30, 30)) for _ in range(5)]


def _matrix(draw: random.Random) -> Cases:
    def one(rows: int, columns: int) -> list[list[int]]:
        return [_numbers(draw, columns) for _ in range(rows)]

    sizes = [(1, 1), (2, 3), (3, 2), (3, 3), *((draw.randint(1, 6), draw.randint(1, 6)) for _ in range(4))]
    return [([],), *((one(*size),) for size in sizes)]


def _runs(draw: random.Random) -> Cases:
    drawn = [_word(draw, draw.randint(1, 30), "ab") for _ in range(5)]
    return [(text,) for text in ("", "a", "aab", "abba", "a" * 12, *drawn)]


def _search(draw: random.Random) -> Cases:
    cases: Cases = [([], 1), ([1], 1), ([1, 3], 3), ([1, 3], 2), ([1, 2, 3, 4, 5], 5)]
    for _ in range(5):
        ordered = sorted(set(_numbers(draw, 25)))
        cases.append((ordered, draw.choice([draw.choice(ordered), 99])))
    return cases


def _subarray(draw: random.Random) -> Cases:
    cases: Cases = [([-3, -1, -2],), ([1, -5, 4, 3],), ([5],), ([2, -1, 2],)]
    return cases + [(_numbers(draw, draw.randint(1, 40)),) for _ in range(5)]


def _words(draw: random.Random) -> Cases:
    drawn: list[Any] = [" ".join(_word(draw, 2, "ab") for _ in range(draw.randint(1, 25))) for _ in range(4)]
    return [(text, 2) for text in ("", "b a b a c", "The the THE end", *drawn)]


def _lcs(draw: random.Random) -> Cases:
    cases: Cases = [("", "a"), ("abc", "abc"), ("abcbdab", "bdcaba"), ("ab", "ba")]
    return cases + [(_word(draw, draw.randint(1, 14), "abcd"), _word(draw, 12, "abcd")) for _ in range(5)]


def _flatten(draw: random.Random) -> Cases:
    def nest(depth: int) -> list[Any]:
        return [nest(depth - 1) if depth and draw.random() < 0.5 else draw.randint(0, 9) for _ in range(3)]

    return [([],), ([[], [[]]],), ([1, [2, [3, [4]]]],), *((nest(draw.randint(1, 4)),) for _ in range(5))]


def _queens(draw: random.Random) -> Cases:
    return [(1,), (2,), (4,), (draw.randint(5, 6),)]


def _base(draw: random.Random) -> Cases:
    cases: Cases = [(0, 2), (255, 16), (-10, 3), (7, 8)]
    return cases + [(draw.randint(-9999, 9999), draw.randint(2, 16)) for _ in range(6)]


MORE: tuple[Problem, ...] = (
    _problem(
        "roman", _roman,
        ("""
        def roman(number):
            signs = zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
                        "M CM D CD C XC L XL X IX V IV I".split())
            text = ""
            for value, sign in signs:
                text += sign * (number // value)
                number %= value
            return text
        """,),
        ("""
        def roman(number):
            text = ""
            for value, sign in zip((1000, 500, 100, 50, 10, 5, 1), "MDCLXVI"):
                text += sign * (number // value)
                number %= value
            return text
        """,),
    ),
    _problem(
        "primes_below", _primes,
        ("""
        def primes_below(limit):
            return [n for n in range(2, limit) if all(n % d for d in range(2, int(n ** 0.5) + 1))]
        """, """
        def primes_below(limit):
            sieve = [True] * limit
            for number in range(2, limit):
                for multiple in range(number * number, limit, number):
                    sieve[multiple] = False
            return [n for n in range(2, limit) if sieve[n]]
        """),
        ("""
        def primes_below(limit):
            return [n for n in range(2, limit + 1) if all(n % d for d in range(2, n))]
        """, """
        def primes_below(limit):
            return [n for n in range(2, limit) if all(n % d for d in range(2, int(n ** 0.5)))]
        """),
    ),
    _problem(
        "caesar", _caesar,
        ("""
        def caesar(text, shift):
            def turn(char):
                if not char.isalpha():
                    return char
                first = ord("A") if char.isupper() else ord("a")
                return chr((ord(char) - first + shift) % 26 + first)
            return "".join(map(turn, text))
        """,),
        ("""
        def caesar(text, shift):
            return "".join(chr(ord(c) + shift) if c.isalpha() else c for c in text)
        """, """
        def caesar(text, shift):
            return "".join(chr((ord(c) - 97 + shift) % 26 + 97) if c.isalpha() else c for c in text)
        """),
    ),
    _problem(
        "transpose", _matrix,
        ("""
        def transpose(matrix):
            return [list(column) for column in zip(*matrix)]
        """, """
        def transpose(matrix):
            return [[row[c] for row in matrix] for c in range(len(matrix[0]))] if matrix else []
        """),
        ("""
        def transpose(matrix):
            size = len(matrix)
            return [[matrix[c][r] for c in range(size)] for r in range(size)]
        """, """
        def transpose(matrix):
            return [list(column) for column in zip(*matrix[::-1])]
        """),
    ),
    _problem(
        "run_lengths", _runs,
        ("""
        from itertools import groupby

        def run_lengths(text):
            return [(char, len(list(group))) for char, group in groupby(text)]
        """, """
        def run_lengths(text):
            runs = []
            for char in text:
                if runs and runs[-1][0] == char:
                    runs[-1] = (char, runs[-1][1] + 1)
                else:
                    runs.append((char, 1))
            return runs
        """),
        ("""
        def run_lengths(text):
            return [(char, text.count(char)) for char in dict.fromkeys(text)]
        """, """
        def run_lengths(text):
            runs, last, count = [], text[0], 0
            for char in text:
                if char == last:
                    count += 1
                else:
                    runs.append((last, count))
                    last, count = char, 1
            return runs
        """),
    ),
    _problem(
        "find_sorted", _search,
        ("""
        from bisect import bisect_left

        def find_sorted(items, wanted):
            index = bisect_left(items, wanted)
            return index if index < len(items) and items[index] == wanted else -1
        """, """
        def find_sorted(items, wanted):
            low, high = 0, len(items)
            while low < high:
                middle = (low + high) // 2
                if items[middle] < wanted:
                    low = middle + 1
                else:
                    high = middle
            return low if low < len(items) and items[low] == wanted else -1
        """),
        ("""
        def find_sorted(items, wanted):
            low, high = 0, len(items) - 1
            while low < high:
                middle = (low + high) // 2
                if items[middle] == wanted:
                    return middle
                low, high = (middle + 1, high) if items[middle] < wanted else (low, middle - 1)
            return -1
        """,),
    ),
    _problem(
        "best_sum", _subarray,
        ("""
        def best_sum(numbers):
            best = here = numbers[0]
            for number in numbers[1:]:
                here = max(number, here + number)
                best = max(best, here)
            return best
        """,),
        ("""
        def best_sum(numbers):
            best = here = 0
            for number in numbers:
                here = max(0, here + number)
                best = max(best, here)
            return best
        """, """
        def best_sum(numbers):
            return sum(n for n in numbers if n > 0) or max(numbers)
        """),
    ),
    _problem(
        "top_words", _words,
        ("""
        def top_words(text, count):
            words = text.lower().split()
            ranked = sorted(set(words), key=lambda word: (-words.count(word), word))
            return ranked[:count]
        """, """
        from collections import Counter

        def top_words(text, count):
            found = Counter(text.lower().split())
            return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))][:count]
        """),
        ("""
        from collections import Counter

        def top_words(text, count):
            return [word for word, _ in Counter(text.lower().split()).most_common(count)]
        """, """
        from collections import Counter

        def top_words(text, count):
            found = Counter(text.split())
            return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))][:count]
        """),
    ),
    _problem(
        "common_length", _lcs,
        ("""
        def common_length(left, right):
            row = [0] * (len(right) + 1)
            for a in left:
                before = row[:]
                for index, b in enumerate(right):
                    row[index + 1] = before[index] + 1 if a == b else max(before[index + 1], row[index])
            return row[-1]
        """,),
        ("""
        def common_length(left, right):
            return len(set(left) & set(right))
        """, """
        def common_length(left, right):
            found = 0
            for char in left:
                if char in right:
                    found, right = found + 1, right[right.index(char) + 1:]
            return found
        """),
    ),
    _problem(
        "flatten", _flatten,
        ("""
        def flatten(items):
            flat = []
            for item in items:
                flat += flatten(item) if isinstance(item, list) else [item]
            return flat
        """, """
        def flatten(items):
            flat, stack = [], list(items)
            while stack:
                item = stack.pop()
                if isinstance(item, list):
                    stack += item
                else:
                    flat.append(item)
            return flat[::-1]
        """),
        ("""
        def flatten(items):
            return [inner for item in items for inner in (item if isinstance(item, list) else [item])]
        """,),
    ),
    _problem(
        "queens", _queens,
        ("""
        def queens(size, row=0, columns=(), up=(), down=()):
            if row == size:
                return 1
            free = (c for c in range(size) if c not in columns and row + c not in up and row - c not in down)
            return sum(queens(size, row + 1, (*columns, c), (*up, row + c), (*down, row - c)) for c in free)
        """,),
        ("""
        def queens(size, row=0, columns=(), up=()):
            if row == size:
                return 1
            free = (c for c in range(size) if c not in columns and row + c not in up)
            return sum(queens(size, row + 1, (*columns, c), (*up, row + c)) for c in free)
        """,),
    ),
    _problem(
        "in_base", _base,
        ("""
        def in_base(number, base):
            digits, rest = "", abs(number)
            while rest:
                digits = "0123456789abcdef"[rest % base] + digits
                rest //= base
            return ("-" if number < 0 else "") + (digits or "0")
        """,),
        ("""
        def in_base(number, base):
            digits = ""
            while number > 0:
                digits = "0123456789abcdef"[number % base] + digits
                number //= base
            return digits or "0"
        """, """
        def in_base(number, base):
            digits, rest = "", abs(number)
            while rest:
                digits = str(rest % base) + digits
                rest //= base
            return ("-" if number < 0 else "") + (digits or "0")
        """),
    ),
)  # fmt: skip
