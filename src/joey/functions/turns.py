"""Whose turn it is: weighted round robin, first between owners, then between the functions of one. Pure.

A function with a thousand waiting invocations and one with a single one get the next start alternately, and an owner
with a hundred functions no more than one with one. Weights are whole turns: one with weight 3 has three in a row
(deficit round robin, Shreedhar and Varghese 1995, where everything costs the same).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class _Ring(Generic[K]):
    """Round robin over keys."""

    __slots__ = ("_left", "_order", "_weights")

    def __init__(self) -> None:
        self._order: deque[K] = deque()
        self._weights: dict[K, int] = {}
        self._left = 0

    def add(self, key: K, weight: int) -> None:
        if key not in self._weights:
            self._order.append(key)
        self._weights[key] = weight

    def remove(self, key: K) -> None:
        if self._weights.pop(key, None) is not None:
            if self._order[0] == key:
                self._left = 0
            self._order.remove(key)

    def next(self) -> K:
        key = self._order[0]
        self._left = (self._left or self._weights[key]) - 1
        if self._left <= 0:
            self._left = 0
            self._order.rotate(-1)
        return key

    def __len__(self) -> int:
        return len(self._order)


class Turns(Generic[K]):
    """Keys that want something, by owner. `next` says whose turn it is; who wants no more is removed."""

    __slots__ = ("_owners", "_rings")

    def __init__(self) -> None:
        self._owners: _Ring[str] = _Ring()
        self._rings: dict[str, _Ring[K]] = {}

    def add(self, owner: str, key: K, weight: int = 1) -> None:
        """It wants. Done again: nothing but the new weight (above 0)."""
        if weight < 1:
            raise ValueError(f"weight {weight}")
        ring = self._rings.get(owner)
        if ring is None:
            ring = self._rings[owner] = _Ring()
            self._owners.add(owner, 1)
        ring.add(key, weight)

    def remove(self, owner: str, key: K) -> None:
        """It wants no more. Not there: nothing."""
        ring = self._rings.get(owner)
        if ring is not None:
            ring.remove(key)
            if not ring:
                del self._rings[owner]
                self._owners.remove(owner)

    def next(self) -> K | None:
        """Whose turn it is; None if nobody wants. The turn counts as taken."""
        if not self._owners:
            return None
        return self._rings[self._owners.next()].next()

    def __len__(self) -> int:
        return sum(map(len, self._rings.values()))

    def __bool__(self) -> bool:
        return bool(self._rings)
