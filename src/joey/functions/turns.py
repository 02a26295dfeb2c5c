"""Whose turn it is: round robin, first between owners, then between the functions of one. Pure.

A function with a thousand waiting invocations and one with a single one get the next start alternately, and an owner
with a hundred functions no more than one with one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class _Ring(Generic[K]):
    """Round robin over keys."""

    __slots__ = ("_keys", "_order")

    def __init__(self) -> None:
        self._order: deque[K] = deque()
        self._keys: set[K] = set()

    def add(self, key: K) -> None:
        if key not in self._keys:
            self._keys.add(key)
            self._order.append(key)

    def remove(self, key: K) -> None:
        if key in self._keys:
            self._keys.remove(key)
            self._order.remove(key)

    def next(self) -> K:
        key = self._order[0]
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

    def add(self, owner: str, key: K) -> None:
        """It wants. Done again: nothing."""
        ring = self._rings.get(owner)
        if ring is None:
            ring = self._rings[owner] = _Ring()
            self._owners.add(owner)
        ring.add(key)

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
