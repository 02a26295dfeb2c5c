"""Sandboxes started ahead: a warm pool of a key's for each template it uses, made at the first use, or, of what keys
mostly ask for, when the key is first seen; removed when nothing has been made of that template for ten minutes. A key
with limits of its own has none: they would count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING

import msgspec

from joey.api.facades.e2b.kinds import OWN_ENV, Kind
from joey.model.errors import JoeyError, NotFound
from joey.model.limits import NO_LIMITS
from joey.model.network import NetworkPolicy, NetworkSpec
from joey.model.pool import PoolSpec, check
from joey.model.spec import SandboxSpec
from joey.model.views import Sandbox

if TYPE_CHECKING:
    from joey.api.service import Service

PREFIX = "e2b."
IDLE_SECONDS = 600.0
_SIZE, _HEAVY_SIZE = 4, 2
_INTERPRETER_BYTES = 2 << 30
"""Of the machine's memory, for each interpreter that waits, which takes some 130 MB. There is one for each processor
at most, for they take a second of one, each, to import what data work begins with.
"""
_HEAVY_SECONDS = 0.5
"""After a cold start of a program: members would slow it down."""
log = logging.getLogger("joey.daemon")


class Warmth:
    """The pools of the façade. used: when each was last of use, by (owner, name)."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._engine = service.engine
        self.used: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Pools that an earlier engine had go when they are not used either."""
        now = time.monotonic()
        for pool in self._engine.pools():
            if pool.name.startswith(PREFIX):
                self.used[pool.owner, pool.name] = now
        self._again()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self, kind: Kind, spec: SandboxSpec, owner: str) -> Sandbox:
        """A sandbox of `spec`, a warm one if there is one that can become it."""
        if not kind.warm or self._service.access.limits(owner) != NO_LIMITS:
            return (await self._engine.run(spec, owner=owner)).sandbox
        wanted = self._spec(kind, spec)
        name = wanted.name
        pool = self._fitting(name, spec, owner)
        sandbox = (await self._engine.run(spec, owner=owner, pool=pool)).sandbox
        self.used[owner, name] = time.monotonic()
        if not pool:
            self._beside(self._make(wanted, owner, _HEAVY_SECONDS if kind.argv else 0.0))
        return sandbox

    def ahead(self, kind: Kind, spec: SandboxSpec, owner: str) -> None:
        """A pool of what `run` may be asked for soon."""
        if not kind.warm or self._service.access.limits(owner) != NO_LIMITS:
            return
        wanted = self._spec(kind, spec)
        self.used[owner, wanted.name] = time.monotonic()
        self._beside(self._make(wanted, owner, 0.0))

    def _spec(self, kind: Kind, spec: SandboxSpec) -> PoolSpec:
        """What members are: without what a request may choose."""
        process = msgspec.structs.replace(spec.process, env=OWN_ENV)
        plain = msgspec.structs.replace(
            spec, process=process, labels={}, timeout=None, on_timeout="kill",
            network=NetworkSpec(mode="nat", policy=NetworkPolicy()), proxy_token=None,
        )  # fmt: skip
        name = _name(kind.key)
        size = _HEAVY_SIZE if kind.argv else _SIZE
        if kind.interpreter:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            size = min(_SIZE, len(os.sched_getaffinity(0)), max(1, memory // _INTERPRETER_BYTES))
        return PoolSpec(name=name, spec=plain, size=size, max_starting=min(size, 2), late_env=True)

    def _fitting(self, name: str, spec: SandboxSpec, owner: str) -> str:
        """The pool, if its members can become `spec`."""
        try:
            pool = self._engine.pool(name, owner)
            check(name, pool.spec, spec, late_env=True)
        except JoeyError:
            return ""
        return name

    async def _make(self, wanted: PoolSpec, owner: str, seconds: float) -> None:
        """Make it after some seconds, unless it is there and this request only was an unusual one."""
        await asyncio.sleep(seconds)
        try:
            pool = self._engine.pool(wanted.name, owner)
            if (pool.spec, pool.size) == (wanted.spec, wanted.size):
                return
        except NotFound:
            pass
        try:
            await self._engine.pool_create(wanted, owner=owner)
        except JoeyError as error:
            log.warning("e2b: no warm pool %s: %s", wanted.name, error)

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS / 10, self._tick)

    def _tick(self) -> None:
        self._beside(self._sweep())
        self._again()

    async def _sweep(self) -> None:
        """Remove pools that nobody uses."""
        now = time.monotonic()
        for (owner, name), used in list(self.used.items()):
            if now - used > IDLE_SECONDS:
                await self._drop(owner, name)

    async def forget(self, template: str) -> None:
        """Before a template is deleted: its members hold images."""
        for owner, name in list(self.used):
            if name == _name(template):
                await self._drop(owner, name)

    async def _drop(self, owner: str, name: str) -> None:
        self.used.pop((owner, name), None)
        with contextlib.suppress(JoeyError):
            await self._engine.pool_remove(name, owner=owner)


def _name(template: str) -> str:
    return PREFIX + re.sub(r"[^A-Za-z0-9._-]", "-", template)[:100]
