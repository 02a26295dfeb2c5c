"""Who may have how much: sandboxes, promised memory and starts in flight, for each owner and for the node.

A ledger of what every sandbox takes. All of it belongs to the event loop and nothing here waits, so a check and its
entry are one step: concurrent requests cannot exceed a limit by one. Entries are set, not added to: whatever happens
twice (an end that is told again, a removal that is tried again) counts once, and an engine that starts has the same
figures again when it has entered its records.

What a sandbox promises is its memory limit, at most what the machine has; without a limit all the machine has. It is
promised while it runs, or is to run again by its restart policy.
"""

from __future__ import annotations

from collections.abc import Callable

from joey.model.errors import Busy, TooMany
from joey.model.limits import NO_LIMITS, Limits, NodeLimits
from joey.model.units import format_size
from joey.model.views import Check, Load

_RETRY_NODE, _RETRY_KEY = 2.0, 1.0


class _Total:
    """Of one owner, or of the node."""

    __slots__ = ("memory", "sandboxes", "starts")

    def __init__(self) -> None:
        self.sandboxes = self.memory = self.starts = 0


class _Entry:
    """Of one sandbox."""

    __slots__ = ("memory", "owner", "starting")

    def __init__(self, owner: str) -> None:
        self.owner, self.memory, self.starting = owner, 0, False


class Admission:
    """The ledger. `machine` (bytes of memory and swap), `node` and `limits` (of an owner; "" is the administrator, who
    has none) may be set at any time: what there is stays.
    """

    def __init__(self, machine: int = 1 << 62) -> None:
        self.machine = machine
        self.node = NodeLimits()
        self.limits: Callable[[str], Limits] = lambda owner: NO_LIMITS
        self._entries: dict[str, _Entry] = {}
        self._all = _Total()
        self._owners: dict[str, _Total] = {}

    # --- asked for ---------------------------------------------------------------------------------------------------

    def enter(self, id: str, owner: str) -> None:
        """One more sandbox. Raises TooMany (of its key), Busy (of the node), both naming the limit."""
        mine = self._owners.get(owner)
        have, most = mine.sandboxes if mine else 0, self.limits(owner).sandboxes if owner else None
        if most is not None and have >= most:
            raise _of_key("sandboxes", owner, f"may have {most} sandboxes and has {have}", "remove some")
        if self.node.sandboxes is not None and self._all.sandboxes >= self.node.sandboxes:
            raise _of_node("sandboxes", f"{self._all.sandboxes} sandboxes are all it may have", "max_sandboxes")
        self.keep(id, owner)

    def start(self, id: str, limit: int | None) -> None:
        """It is to run with that memory limit, and is being started until `started`. Raises TooMany, Busy."""
        entry = self._entries[id]
        mine = self._owners[entry.owner]
        if not entry.starting:
            most = self.limits(entry.owner).starts if entry.owner else None
            if most is not None and mine.starts >= most:
                raise _of_key("starts", entry.owner, f"has {mine.starts} starts under way, its limit", "wait for some")
            if self._all.starts >= self.node.starts:
                raise _of_node("starts", f"{self._all.starts} starts are under way already", "max_starts")
        self.resize(id, limit)
        if not entry.starting:
            entry.starting = True
            mine.starts += 1
            self._all.starts += 1

    def resize(self, id: str, limit: int | None) -> None:
        """It is to have that memory limit. Raises TooMany, Busy, only if that is more than it has."""
        entry, wanted = self._entries[id], self._promise(limit)
        more = wanted - entry.memory
        if more > 0:
            most = self.limits(entry.owner).memory if entry.owner else None
            have = self._owners[entry.owner].memory
            if most is not None and have + more > most:
                text = f"may be promised {format_size(most)} of memory: it has {format_size(have)}, and wants "
                text += format_size(more)
                raise _of_key("resources.memory", entry.owner, text, "remove some, or ask for less")
            if self._all.memory + more > self._most:
                text = f"{format_size(self._all.memory)} of {format_size(self._most)} of memory are promised already"
                raise _of_node("resources.memory", text, "memory_overcommit")
        self._set(entry, wanted)

    # --- what is so --------------------------------------------------------------------------------------------------

    def keep(self, id: str, owner: str) -> None:
        """There is that sandbox, whatever the limits say. Done again: nothing."""
        if id not in self._entries:
            self._entries[id] = _Entry(owner)
            mine = self._owners.setdefault(owner, _Total())
            mine.sandboxes += 1
            self._all.sandboxes += 1

    def hold(self, id: str, limit: int | None, *, runs: bool) -> None:
        """What it promises now: its limit if it runs or is to, else nothing. None there is: nothing."""
        entry = self._entries.get(id)
        if entry is not None:
            self._set(entry, self._promise(limit) if runs else 0)

    def started(self, id: str) -> None:
        """Its start is over, well or not."""
        entry = self._entries.get(id)
        if entry is not None and entry.starting:
            entry.starting = False
            self._owners[entry.owner].starts -= 1
            self._all.starts -= 1

    def leave(self, id: str) -> None:
        """It is gone. Done again: nothing."""
        entry = self._entries.get(id)
        if entry is None:
            return
        self.started(id)
        self._set(entry, 0)
        del self._entries[id]
        mine = self._owners[entry.owner]
        mine.sandboxes -= 1
        self._all.sandboxes -= 1
        if not mine.sandboxes:
            del self._owners[entry.owner]

    def load(self) -> Load:
        """What there is of what there may be."""
        return Load(
            sandboxes=self._all.sandboxes, sandboxes_limit=self.node.sandboxes, memory=self._all.memory,
            memory_limit=self._most, memory_overcommit=self.node.memory_overcommit, starts=self._all.starts,
            starts_limit=self.node.starts,
        )  # fmt: skip

    @property
    def _most(self) -> int:
        return int(self.machine * self.node.memory_overcommit)

    def _promise(self, limit: int | None) -> int:
        return self.machine if limit is None else min(limit, self.machine)

    def _set(self, entry: _Entry, memory: int) -> None:
        more = memory - entry.memory
        if more:
            entry.memory = memory
            self._owners[entry.owner].memory += more
            self._all.memory += more


def described(load: Load) -> Check:
    """A line of `joey doctor`."""
    most = load.sandboxes_limit
    sandboxes = f"{load.sandboxes} of {most} sandboxes" if most is not None else f"{load.sandboxes} sandboxes, no limit"
    memory = f"{format_size(load.memory)} of {format_size(load.memory_limit)} of memory promised"
    times = f"{load.memory_overcommit:g} times what there is"
    text = f"{sandboxes}; {memory} ({times}); {load.starts_limit} starts at a time"
    full = (most is not None and load.sandboxes >= most) or load.memory >= load.memory_limit
    if full:
        return Check(
            name="admission", state="limited", found=text, remedy="remove some, or raise the limits of daemon.toml"
        )
    return Check(name="admission", state="ok", found=text)


def _of_key(where: str, owner: str, text: str, remedy: str) -> TooMany:
    return TooMany(where, f"key {owner} {text}", f"{remedy}; the administrator gives keys", retry_after=_RETRY_KEY)


def _of_node(where: str, text: str, setting: str) -> Busy:
    remedy = f"come back later; the administrator may raise {setting} (daemon.toml)"
    return Busy(where, f"this node: {text}", remedy, retry_after=_RETRY_NODE)
