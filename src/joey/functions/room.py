"""What functions of one key take of the daemon's memory: descriptions of all versions, aliases, triggers, layers."""

from __future__ import annotations

from collections import Counter

from joey.model.errors import TooMany

MOST = 64 << 20
"""Bytes of one key, as they are in the database."""
_COST = 512
"""What each takes beside that."""
What = tuple[str, str, str, str]
"""(owner, function, kind, name)"""


class Room:
    """A ledger: entries are set, not added. The administrator's are not limited."""

    def __init__(self) -> None:
        self._sizes: dict[What, int] = {}
        self._of: Counter[str] = Counter()

    def take(self, what: What, size: int) -> None:
        """It has so many bytes now. Raises TooMany, nothing has changed then."""
        owner, more = what[0], size + _COST - self._sizes.get(what, 0)
        if owner and more > 0 and self._of[owner] + more > MOST:
            text = f"what functions of this key are takes {MOST >> 20} MiB already"
            raise TooMany("functions", text, "remove functions or old versions")
        self.set(what, size)

    def set(self, what: What, size: int) -> None:
        """The same of what is there already."""
        self.give(what)
        self._sizes[what] = size + _COST
        self._of[what[0]] += size + _COST

    def give(self, what: What) -> None:
        """It is no more. Not there: nothing."""
        self._of[what[0]] -= self._sizes.pop(what, 0)

    def forget(self, owner: str, name: str) -> None:
        """A function is no more."""
        for what in [what for what in self._sizes if what[:2] == (owner, name)]:
            self.give(what)
