"""Memory that requests hold: bodies that are read whole and answers that are sent whole, until they are sent.

One request may hold some 64 MiB, and clients that send much or read nothing cost as many requests as they like. So
what is large is counted, by owner: beyond the limit the request fails and the engine goes on.
"""

from __future__ import annotations

from joey.model.errors import Busy, TooMany
from joey.model.units import format_size

SMALL = 256 << 10
"""What one request may hold uncounted."""
KEY_MOST, ADMIN_MOST = 256 << 20, 4 << 30


class Budget:
    """Bytes by owner; "" is the administrator."""

    def __init__(self, key: int = KEY_MOST, admin: int = ADMIN_MOST) -> None:
        self._key, self._admin = key, admin
        self._held: dict[str, int] = {}

    def take(self, owner: str, size: int) -> None:
        """Raises TooMany (429), Busy (503)."""
        most = self._key if owner else self._admin
        held = self._held.get(owner, 0)
        if held + size > most:
            text = f"requests under way hold {format_size(held)} already, {format_size(most)} at most"
            remedy = "ask for less at a time, with `limit` or as a stream, and read the answers"
            raise (TooMany if owner else Busy)("memory", text, remedy, retry_after=1)
        self._held[owner] = held + size

    def give(self, owner: str, size: int) -> None:
        """It is held no more."""
        left = self._held.get(owner, 0) - size
        if left > 0:
            self._held[owner] = left
        else:
            self._held.pop(owner, None)

    def held(self, owner: str) -> int:
        """Bytes."""
        return self._held.get(owner, 0)
