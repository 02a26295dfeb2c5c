"""Ends that launchers may forget: each keeps what it has told until the engine says that it is on disk, or nobody's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from joey.engine.fleet import Fleet, Shard
from joey.host.launcher import LauncherGone
from joey.model.errors import JoeyError

DISMISS_SECONDS = 0.005
"""How long ends that are nobody's any more are gathered before the launcher is told."""
FORGET_AGAIN_SECONDS = 1.0
"""How often exits that could not be written to disk are tried again."""


class Acknowledgements:
    """Many are told to a launcher together."""

    def __init__(self, flush: Callable[[], Awaitable[object]], fleet: Fleet) -> None:
        """flush: returns once all that is known is on disk, raises JoeyError (and has logged it) if it cannot be."""
        self._flush = flush
        self._fleet = fleet
        self._to_forget: dict[Shard, list[int]] = {}
        self._forgetting: asyncio.Task[None] | None = None
        self._to_dismiss: dict[Shard, list[int]] = {}
        self._dismissing: asyncio.Task[None] | None = None
        self._open = True

    def add(self, shard: Shard, key: int, *, durable: bool = True) -> None:
        """Tell of the end of `key`, once all that is known of it is on disk; durable False: nothing ever is."""
        if not durable:
            self._to_dismiss.setdefault(shard, []).append(key)
            if self._dismissing is None or self._dismissing.done():
                self._dismissing = asyncio.ensure_future(self._dismiss())
            return
        self._to_forget.setdefault(shard, []).append(key)
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.ensure_future(self._forget())

    async def close(self) -> None:
        """Return when all is told but what cannot be written: the launchers keep that for the next engine."""
        self._open = False
        for task in (self._forgetting, self._dismissing):
            if task is not None:
                await task

    async def _dismiss(self) -> None:
        while self._to_dismiss:
            await asyncio.sleep(DISMISS_SECONDS)
            keys, self._to_dismiss = self._to_dismiss, {}
            await self._tell(keys)

    async def _forget(self) -> None:
        while self._to_forget:
            keys, self._to_forget = self._to_forget, {}
            try:
                await self._flush()
            except JoeyError:  # the launcher keeps them until they are on disk; the store has logged why
                for shard, some in keys.items():
                    self._to_forget.setdefault(shard, []).extend(some)
                if not self._open:
                    return
                await asyncio.sleep(FORGET_AGAIN_SECONDS)
                continue
            await self._tell(keys)

    async def _tell(self, keys: dict[Shard, list[int]]) -> None:
        for shard, some in keys.items():
            with contextlib.suppress(OSError, LauncherGone):
                await shard.launcher.forget(some)
            self._fleet.retire(shard)
