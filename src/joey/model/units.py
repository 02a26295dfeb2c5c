"""Sizes and durations as people write them.

Suffixes are Docker's: `b k m g t p`, any case, optionally followed by `b` or `ib`; all of them are powers of 1024
(https://docs.docker.com/reference/cli/docker/container/run/#memory).
"""

from __future__ import annotations

import re

_EXPONENT = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_MAX = 1 << 63

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def parse_size(text: str | int, field: str = "size") -> int:
    """Bytes of `"512m"`, `"1.5g"`, `"4096"` or a plain int; rounded down to whole bytes.

    Raises ValueError naming `field` for anything else, for a negative number and for 2**63 or more.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{field}: {text!r} is not a size: give bytes or a number with b, k, m, g or t, such as 512m")
    if isinstance(text, int):
        value = text
    else:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{field}: {text!r} is not a size: give a number with b, k, m, g or t, such as 512m or 1.5g"
            )
        whole, _, part = match[1].partition(".")
        scale = 1 << (10 * _EXPONENT[match[2].lower()])
        # In whole numbers: a float would lose bytes above 2**53.
        value = int(whole or "0") * scale + (int(part) * scale // 10 ** len(part) if part else 0)
    if not 0 <= value < _MAX:
        raise ValueError(f"{field}: {text!r} is out of range: 0 bytes to less than {_MAX}")
    return value


def format_size(size: int) -> str:
    """A size in bytes for people, rounded down to three significant digits: `512MiB`, `1.5GiB`, `17B`."""
    exponent = min(5, max(0, size.bit_length() - 1) // 10)
    hundredths = size * 100 >> 10 * exponent
    digits = 0 if hundredths >= 10_000 else 1 if hundredths >= 1_000 else 2
    shown = f"{hundredths // 10 ** (2 - digits) / 10**digits:.{digits}f}"
    if digits:
        shown = shown.rstrip("0").rstrip(".")
    return shown + ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[exponent]


def parse_cpu_list(text: str, field: str = "cpuset") -> frozenset[int]:
    """The numbers of a kernel list such as `0-2,7` (cpuset(7), "List format", without the `:stride` form).

    Raises ValueError naming `field` for an empty list, a bad number or a descending range.
    """
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if match is None:
            raise ValueError(f"{field}: {text!r} is not a list of numbers such as 0-2,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{field}: {text!r}: the range {part.strip()} descends")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def format_cpu_list(numbers: frozenset[int] | set[int]) -> str:
    """The shortest kernel list of `numbers`: {0, 1, 2, 7} is `0-2,7`; nothing is the empty string."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
