"""Private networks: which there are, whose, and who is called what in each. No I/O; the engine's and the fake's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from joey.model.errors import Conflict, NotFound, TooMany
from joey.model.network import PrivateNetwork
from joey.model.spec import check_labels
from joey.model.value import Value
from joey.model.views import NetworkMember, NetworkView
from joey.network.names import Members

KEY_COUNT = 100
"""Private networks of one API key."""


class Kept(Value, frozen=True, kw_only=True):
    """A private network as it is stored. number: its own in the packet filter, never 0."""

    number: int
    network: PrivateNetwork
    owner: str = ""
    created: float = 0.0


class PrivateNetworks:
    """Names are unique for each owner. members_of: the sandboxes that refer to a network. saved, deleted: told of what
    is to be stored.
    """

    def __init__(
        self,
        members_of: Callable[[str, str], Iterable[NetworkMember]],
        saved: Callable[[Kept], None] = lambda kept: None,
        deleted: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._kept: dict[tuple[str, str], Kept] = {}
        self._members: dict[int, Members] = {}
        self._members_of, self._saved, self._deleted = members_of, saved, deleted

    def load(self, kept: Iterable[Kept]) -> None:
        """Those of an earlier engine."""
        self._kept.update({(one.owner, one.network.name): one for one in kept})

    def create(self, network: PrivateNetwork, owner: str = "") -> NetworkView:
        """Raises Conflict if the owner has one of that name, TooMany, Invalid naming labels."""
        check_labels(network.labels)
        if (owner, network.name) in self._kept:
            raise Conflict("name", f"there is a network {network.name!r} already", "joey network ls")
        if owner and sum(one.owner == owner for one in self._kept.values()) >= KEY_COUNT:
            raise TooMany("networks", f"this key has {KEY_COUNT} already", "remove some")
        taken = {one.number for one in self._kept.values()}
        number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        kept = Kept(number=number, network=network, owner=owner, created=time.time())
        self._kept[owner, network.name] = kept
        self._saved(kept)
        return self._view(kept)

    def find(self, name: str, owner: str | None) -> Kept:
        """By name among an owner's; None is the administrator, who sees those of others too if the name is only
        theirs. Raises NotFound, Conflict if several have one.
        """
        if (kept := self._kept.get((owner or "", name))) is not None:
            return kept
        found = [one for one in self._kept.values() if one.network.name == name] if owner is None else []
        if len(found) > 1:
            raise Conflict("network", f"{len(found)} owners have a network {name!r}")
        if not found:
            raise NotFound("network", f"there is no network {name!r}", f"joey network create {name}")
        return found[0]

    def list(self, owner: str | None) -> list[NetworkView]:
        """In order of name; None: everybody's."""
        chosen = [one for one in self._kept.values() if owner is None or one.owner == owner]
        return [self._view(one) for one in sorted(chosen, key=lambda one: (one.network.name, one.owner))]

    def inspect(self, name: str, owner: str | None) -> NetworkView:
        """Raises NotFound."""
        return self._view(self.find(name, owner))

    def remove(self, name: str, owner: str | None) -> None:
        """Raises NotFound, Conflict while a running sandbox is in it."""
        kept = self.find(name, owner)
        running = [one.name for one in self._members_of(name, kept.owner) if one.address]
        if running:
            raise Conflict("network", f"{name} is in use by {', '.join(sorted(running)[:5])}", "end them first")
        del self._kept[kept.owner, name]
        self._members.pop(kept.number, None)
        self._deleted(kept.number)

    def members(self, number: int) -> Members:
        """The names of a network: one value as long as it exists."""
        return self._members.setdefault(number, Members())

    def _view(self, kept: Kept) -> NetworkView:
        one = kept.network
        return NetworkView(
            name=one.name, internal=one.internal, labels=one.labels, created=kept.created, owner=kept.owner,
            members=tuple(self._members_of(one.name, kept.owner)),
        )  # fmt: skip


class WithNetworks:
    """What the interface of an engine says of private networks."""

    private: PrivateNetworks

    async def _networks_kept(self) -> None:
        """Return when what was changed is on disk."""

    async def network_create(self, network: PrivateNetwork, *, owner: str = "") -> NetworkView:
        """See the interface."""
        made = self.private.create(network, owner)
        await self._networks_kept()
        return made

    def network_list(self, owner: str | None = None) -> Sequence[NetworkView]:
        """See the interface."""
        return self.private.list(owner)

    def network(self, name: str, owner: str | None = None) -> NetworkView:
        """See the interface."""
        return self.private.inspect(name, owner)

    async def network_remove(self, name: str, *, owner: str | None = None) -> None:
        """See the interface."""
        self.private.remove(name, owner)
        await self._networks_kept()
