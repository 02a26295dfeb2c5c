"""What happened: the last events of the engine, for everybody who wants to know.

A ring in memory holds them; a reader holds no more than a place in it. Who falls behind the ring, or asks for what it
does not hold any more, is told how many he has missed by an event of type `events.lost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from joey.engine.record import Due, Idle, Phase, Record, Run
from joey.engine.record import Event as Cause
from joey.model.views import Event

KEPT = 10_000
LOST = "events.lost"
_AT_ONCE = 256

Data: TypeAlias = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a reader wants; all conditions hold. See `joey.engine.interface.Engine.events`."""

    types: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    labels: dict[str, str | None] = field(default_factory=dict)
    owner: str | None = None

    def __call__(self, event: Event) -> bool:
        labels = event.labels
        return (
            self.owner in (None, event.owner)
            and (not self.types or any(self._is(event.type, type) for type in self.types))
            and (not self.refs or any(ref == event.name or self._begins(event, ref) for ref in self.refs))
            and all(name in labels and value in (None, labels[name]) for name, value in self.labels.items())
        )

    @staticmethod
    def _is(found: str, wanted: str) -> bool:
        return found == wanted or (wanted.endswith(".") and found.startswith(wanted))

    @staticmethod
    def _begins(event: Event, ref: str) -> bool:
        return len(ref) >= 2 and event.sandbox.startswith(ref)


class Events:
    """The ring. number: gives each event its id, one more than the last, which was `last` before the first."""

    def __init__(self, number: Callable[[], int], last: int = 0, kept: int = KEPT) -> None:
        self._number = number
        self._ring: deque[Event] = deque(maxlen=kept)
        self._start = self._last = last
        self._news: asyncio.Future[None] | None = None
        self._closed = False

    def emit(
        self, type: str, *, sandbox: str = "", name: str = "", labels: dict[str, str] | None = None, owner: str = "",
        **data: str | int | float | bool | None,
    ) -> None:  # fmt: skip
        """Something happened now. Costs a few microseconds."""
        self._last = self._number()
        labels = {} if labels is None else labels
        id, at = self._last, time.time()
        event = Event(id=id, at=at, type=type, sandbox=sandbox, name=name, labels=labels, owner=owner, data=data)
        self._ring.append(event)
        self._wake()

    def close(self) -> None:
        """No more will come: readers that follow end."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def read(self, after: int | None, *, follow: bool, wanted: Callable[[Event], bool]) -> AsyncIterator[Event]:
        """Events above `after`, oldest first; with None what comes from now on, or without `follow` all there is."""
        place = after if after is not None else self._last if follow else self._oldest - 1
        while True:
            if place < self._oldest - 1:
                lost, place = self._oldest - 1 - place, self._oldest - 1
                yield Event(id=place, at=time.time(), type=LOST, data={"count": lost})
            for event in self._newer(place):
                place = event.id
                if wanted(event):
                    yield event
            if place < self._last:
                await asyncio.sleep(0)
            elif not follow or self._closed:
                return
            else:
                await self._more()

    async def _more(self) -> None:
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        with contextlib.suppress(asyncio.InvalidStateError):
            await asyncio.shield(self._news)

    @property
    def _oldest(self) -> int:
        """The id from which on everything is held, or would be."""
        if len(self._ring) == self._ring.maxlen:
            return self._ring[0].id
        return self._start + 1

    def _newer(self, place: int) -> Sequence[Event]:
        """Some of those above `place`, copied: the ring may turn while a reader takes its time. Ids follow one another,
        so the place of the first is known; a deque is quick at both ends.
        """
        if not self._ring or place >= self._last:
            return ()
        first = max(0, place + 1 - self._ring[0].id)
        return [self._ring[at] for at in range(first, min(first + _AT_ONCE, len(self._ring)))]


def told(before: Record, cause: Cause, after: Record) -> Sequence[tuple[str, Data]]:
    """What is told of a step of a sandbox's life: type (without `sandbox.`) and data of each event."""
    if before == after:
        return ()
    found: list[tuple[str, Data]] = []
    if isinstance(cause, (Due, Idle)) and after.run is not Run.LAUNCHING and after.run is not Run.QUEUED:
        found.append(("timeout", {"idle": isinstance(cause, Idle)}))
    if after.started is not None and after.started != before.started:  # it may have ended in the same step
        found.append(("started", {"restarts": after.restarts}))
    if after.health is not None and after.health != before.health:
        found.append(("health", {"health": after.health}))
    if after.phase is Phase.PAUSED and before.phase is not Phase.PAUSED:
        found.append(("paused", {}))
    if before.phase is Phase.PAUSED and after.phase is Phase.RUNNING:
        found.append(("resumed", {}))
    if before.run in (Run.LAUNCHING, Run.ALIVE) and after.run is Run.NONE and after.exit is not None:
        exit = after.exit
        if exit.oom:
            found.append(("oom", {}))
        found.append(("exited", {"code": exit.code, "signal": exit.signal, "oom": exit.oom, "error": exit.error}))
    if after.again_at is not None and before.again_at is None:
        found.append(("restarting", {"at": after.again_at, "restarts": after.restarts}))
    return found


__all__ = ["KEPT", "LOST", "Data", "Events", "Wanted", "told"]
