"""Warm processes for functions: one for each version that starts often enough, made beside its first cold start.

What is imported in it is what `modules` names and the handler's own module, so that an instance is a fork and a few
messages. Secrets are not in it, so code of a function that has some may not be imported where they are missing: then
only `modules` are. A version whose template cannot be forked (threads, descriptors, an import that fails) starts as if
there were none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from joey.functions.instance import Paths, sandbox_spec
from joey.model import codec
from joey.model.errors import JoeyError, NotFound
from joey.model.function import PYTHON_KINDS, FunctionSpec, Version
from joey.model.template import TemplateSpec

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

MOST = 64
"""Templates at once, of all functions: each is a process with its libraries. Who was not started from longest goes."""
BERTHS = 2
PREFIX = "function-"
_OURS: dict[str, tuple[str, ...]] = {
    "event": (), "wsgi": ("joey_runtime.wsgi",), "asgi": ("joey_runtime.asgi", "joey_runtime.loop"),
}  # fmt: skip
"""Of the runtime: what a kind needs beyond the usual."""
_log = logging.getLogger(__name__)


class Templates:
    """Those of one daemon's functions."""

    def __init__(self, engine: Engine, most: int = MOST, berths: int = BERTHS) -> None:
        self._engine, self._most, self._berths = engine, most, berths
        self._making: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._removing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Remove what an earlier daemon made: the code may have gone meanwhile."""
        for view in self._engine.templates():
            if view.name.startswith(PREFIX):
                await self._remove((view.owner, view.name))

    async def close(self) -> None:
        """Leave them to `open`, or to the engine's reset."""
        for task in (*self._making.values(), *self._removing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, JoeyError):
                await task

    def of(self, version: Version, paths: Paths, owner: str) -> str:
        """The template an instance is to be forked from now, "" for none. Begins to make it, if there is to be one."""
        if not wanted(version.spec):
            return ""
        key = owner, name_of(version, paths)
        task = self._making.get(key)
        if task is None:
            self._begin(key, version, paths)
            return ""
        self._used.move_to_end(key)
        return key[1] if task.done() and task.result() else ""

    async def ready(self, version: Version, paths: Paths, owner: str) -> str:
        """The same, when it is known: for who has the time to wait for it."""
        if not self.of(version, paths, owner) and wanted(version.spec):
            await asyncio.wait((self._making[owner, name_of(version, paths)],))
        return self.of(version, paths, owner)

    def forget(self, version: Version, paths: Paths, owner: str) -> None:
        """The version is gone, or its code has changed."""
        self._drop((owner, name_of(version, paths)))

    def _begin(self, key: tuple[str, str], version: Version, paths: Paths) -> None:
        while len(self._used) >= self._most:
            self._drop(next(iter(self._used)))
        self._used[key] = None
        self._making[key] = asyncio.ensure_future(self._make(key, version, paths))

    async def _make(self, key: tuple[str, str], version: Version, paths: Paths) -> bool:
        owner, name = key
        try:
            view = await self._engine.template_create(template_spec(version, paths, name, self._berths), owner=owner)
        except JoeyError as error:
            _log.info("function %s has no template: %s", version.name, error)
            return False
        if view.state != "ready":
            _log.info("function %s has no template: it is %s, %s", version.name, view.state, view.reason)
            await self._remove(key)  # its sandbox serves nobody
            return False
        return True

    def _drop(self, key: tuple[str, str]) -> None:
        self._used.pop(key, None)
        task = self._making.pop(key, None)
        if task is not None:
            self._removing.add(gone := asyncio.ensure_future(self._after(task, key)))
            gone.add_done_callback(self._removing.discard)

    async def _after(self, making: asyncio.Task[bool], key: tuple[str, str]) -> None:
        await asyncio.wait((making,))
        await self._remove(key)

    async def _remove(self, key: tuple[str, str]) -> None:
        with contextlib.suppress(NotFound):
            await self._engine.template_remove(key[1], owner=key[0])


def wanted(spec: FunctionSpec) -> bool:
    """Whether instances are to be forked."""
    return spec.template and spec.kind in PYTHON_KINDS


def name_of(version: Version, paths: Paths) -> str:
    """Of the template: another one as soon as anything of it differs."""
    said = codec.encode(msgspec.structs.replace(template_spec(version, paths, "x"), berths=0))
    return f"{PREFIX}{version.spec.name[:64]}-{hashlib.sha256(said).hexdigest()[:16]}"


def template_spec(version: Version, paths: Paths, name: str, berths: int = BERTHS) -> TemplateSpec:
    """What the engine makes the template of."""
    spec = version.spec
    modules = [*_OURS[spec.kind], *spec.modules]
    if spec.concurrency > 1:
        modules.append("joey_runtime.threads")
    own = spec.handler.rpartition(".")[0].replace("/", ".")
    if own and not spec.secrets and own not in modules and all(part.isidentifier() for part in own.split(".")):
        modules.append(own)
    return TemplateSpec(
        name=name,
        spec=sandbox_spec(version, paths),
        python=spec.python,
        modules=tuple(modules),
        code=str(paths.code) if paths.code is not None else "",
        berths=berths,
    )
