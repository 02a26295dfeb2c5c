"""What functions print, as far as it is kept: the last 256 KiB of each, in memory, for `joey fn logs`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

KEPT = 256 << 10
_PIECE_COST = 200
"""What a piece takes beside its bytes."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A piece of output. number counts up; stream: 1 stdout, 2 stderr; request: "" where that is not known."""

    number: int
    at: float
    instance: str
    version: str
    request: str
    stream: int
    data: bytes


class Logs:
    """Of one function, all its instances."""

    __slots__ = ("_news", "_next", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: deque[Printed] = deque()
        self._size = 0
        self._next = 1
        self._news: asyncio.Event | None = None

    def add(self, instance: str, version: str, request: str, stream: int, data: bytes) -> None:
        """Somebody printed. What is oldest goes beyond KEPT."""
        self._pieces.append(Printed(self._next, time.time(), instance, version, request, stream, bytes(data)))
        self._next += 1
        self._size += len(data) + _PIECE_COST
        while self._size > KEPT and len(self._pieces) > 1:
            self._size -= len(self._pieces.popleft().data) + _PIECE_COST
        if self._news is not None:
            self._news.set()

    async def read(self, *, follow: bool = False, since: float = 0.0) -> AsyncIterator[Printed]:
        """What is kept, oldest first; with follow also what comes, without end."""
        place = 0
        while True:
            for piece in [piece for piece in self._pieces if piece.number > place and piece.at >= since]:
                place = piece.number
                yield piece
            if self._pieces and self._pieces[-1].number > place and self._pieces[-1].at >= since:
                continue
            if not follow:
                return
            if self._news is None or self._news.is_set():
                self._news = asyncio.Event()
            await self._news.wait()
