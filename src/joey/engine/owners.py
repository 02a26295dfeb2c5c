"""Which sandboxes there are, by id and by name, and whose each is. Names are unique for each owner."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from joey.engine.interface import Filter
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.views import Sandbox

_ADJECTIVES = "amber bold brisk calm clever coral eager fair fleet gentle golden keen lively merry nimble".split()
_ANIMALS = (
    "bilby bettong dunnart kangaroo koala kowari ningaui numbat pademelon potoroo quoll quokka wallaby wombat".split()
)
_REMOVED_KEPT = 10_000
"""So many removed sandboxes may still serve as the cursor of a list."""


class Named(Protocol):
    """What the registry needs of a sandbox."""

    id: str
    name: str
    owner: str
    created: float

    def view(self) -> Sandbox: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """All sandboxes of an engine, in order of creation."""

    def __init__(self) -> None:
        self._by_id: dict[str, T] = {}
        self._by_name: dict[tuple[str, str], T] = {}
        self._removed: dict[str, float] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """All (owner, name) that are taken."""
        return frozenset(self._by_name)

    def get(self, id: str) -> T | None:
        """By its whole id."""
        return self._by_id.get(id)

    def add(self, box: T, *, named: bool = True) -> None:
        """Take in a sandbox. named: so that it is found by its name, which must have been free."""
        self._by_id[box.id] = box
        if named and box.name:
            self._by_name[box.owner, box.name] = box

    def claim(self, box: T, name: str) -> None:
        """Give it a name, any if `name` is empty, instead of the one it has. Raises Invalid, Conflict (taken)."""
        name = name or self._any_name(box.owner)
        _check_name(name)
        holder = self._by_name.get((box.owner, name))
        if holder is not None and holder is not box:
            raise Conflict("name", f"{name!r} is taken by {holder.id[:12]}", "remove that one, or choose another")
        self.unname(box)
        box.name = name
        self._by_name[box.owner, name] = box

    def unname(self, box: T) -> None:
        """Its name is free for another."""
        if self._by_name.get((box.owner, box.name)) is box:
            del self._by_name[box.owner, box.name]

    def drop(self, box: T) -> None:
        """It is no more."""
        self.unname(box)
        if self._by_id.pop(box.id, None) is not None:
            self._removed[box.id] = box.created
            if len(self._removed) > _REMOVED_KEPT:
                del self._removed[next(iter(self._removed))]

    def find(self, ref: str, owner: str | None = None) -> T:
        """The sandbox of an id, a name, or a unique prefix of an id (2 characters at least). owner: only that one's,
        None for any; then the administrator's own names go first. Raises NotFound, Conflict (not unique).
        """
        found = self._by_id.get(ref) or self._by_name.get((owner or "", ref))
        if found is not None and owner in (None, found.owner):
            return found
        if owner is None and (named := [box for (_, name), box in self._by_name.items() if name == ref]):
            if len(named) > 1:
                raise Conflict("sandbox", f"{len(named)} owners have a sandbox called {ref!r}", "give its id")
            return named[0]
        matches = [box for id, box in self._by_id.items() if id.startswith(ref) and owner in (None, box.owner)]
        if len(ref) < 2 or not matches:
            raise NotFound("sandbox", f"no sandbox has the id or name {ref!r}", "see `joey ps -a`")
        if len(matches) > 1:
            raise Conflict("sandbox", f"{ref!r} is the beginning of {len(matches)} ids", "give more of it")
        return matches[0]

    def list(self, filter: Filter) -> Sequence[Sandbox]:
        """Newest first. Raises Invalid for a cursor that was never an id, or of one removed long ago."""
        found = []
        for box in self._older(filter.cursor):
            if filter.owner in (None, box.owner) and matches(view := box.view(), filter):
                found.append(view)
                if len(found) == filter.limit:
                    break
        return found

    def _older(self, cursor: str) -> Iterator[T]:
        boxes = reversed(self._by_id.values())
        if not cursor:
            yield from boxes
        elif cursor in self._by_id:
            for box in boxes:
                if box.id == cursor:
                    break
            yield from boxes
        elif cursor in self._removed:
            yield from (box for box in boxes if box.created < self._removed[cursor])
        else:
            raise Invalid("cursor", f"{cursor!r} leads nowhere (any more)", "begin again without it")

    def _any_name(self, owner: str) -> str:
        while True:
            name = f"{random.choice(_ADJECTIVES)}-{random.choice(_ANIMALS)}-{random.randrange(1 << 20):05x}"
            if (owner, name) not in self._by_name:
                return name


def _check_name(name: str) -> None:
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum() and name[0].isalnum() and len(name) <= 128):
        remedy = "letters, digits, and _ . - after the first"
        raise Invalid("name", f"{name!r} is not a name for a sandbox", remedy)


def matches(view: Sandbox, filter: Filter) -> bool:
    """Whether a sandbox is one that the filter gives, but for owner, cursor and limit."""
    if filter.states:
        if view.state not in filter.states:
            return False
    elif not filter.all and view.state not in ("running", "paused"):
        return False
    tests = (
        not filter.names or any(name in view.name for name in filter.names),
        not filter.ids or any(view.id.startswith(id) for id in filter.ids),
        not filter.images or view.image in filter.images,
        all(key in view.labels and value in (None, view.labels[key]) for key, value in filter.labels.items()),
        not filter.exited or (view.exit is not None and view.exit.code in filter.exited),
    )
    return all(tests)
