"""Output cut to a size that an agent can read: its beginning and its end, and between them what is missing."""

from __future__ import annotations

FLOOD = 64 << 20
"""Characters of a stream after which a command that does not stop printing is ended."""


class Flood(Exception):
    """A command has printed more than anybody will read."""


class Kept:
    """Text as it comes, of which `most` characters are kept: half from the beginning, half from the end."""

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._head, self._tail, self._seen = "", "", 0

    def add(self, text: str) -> None:
        """More of it. Raises Flood."""
        self._seen += len(text)
        room = self._half - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        if text:
            self._tail = (self._tail + text)[-self._half :]
        if self._seen > FLOOD:
            raise Flood

    @property
    def missing(self) -> int:
        """Characters that are not kept."""
        return self._seen - len(self._head) - len(self._tail)

    def __str__(self) -> str:
        if not self.missing:
            return self._head + self._tail
        return f"{self._head}\n[… {self.missing} characters left out …]\n{self._tail}"
