"""Volumes without a name: made for one container, marked by a label, removed with it by `rm -v` and `run --rm`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from joey.api.facades.docker import mounts
from joey.api.facades.docker.state import State
from joey.engine.interface import Engine
from joey.model.errors import JoeyError
from joey.model.spec import SandboxSpec
from joey.model.volumes import VolumeBody

LABEL = "com.docker.volume.anonymous"
WITH = "joey.docker.rm"
"""On those of containers that are removed at their end: they go too, whoever notices it."""


@contextlib.asynccontextmanager
async def made(
    engine: Engine, state: State, spec: SandboxSpec, sources: Sequence[str], names: Sequence[str]
) -> AsyncIterator[None]:
    """Directories of the host and volumes that a create needs are there inside; they go again if it fails."""
    own = getattr(engine, "volumes", None)
    labels = {LABEL: "", **({WITH: ""} if spec.remove else {})}
    there = mounts.make_sources(sources)
    state.making.update(names)
    try:
        for name in names:
            await own.create(VolumeBody(name=name, labels=labels), "")  # type: ignore[union-attr]
        yield
    except BaseException:
        mounts.drop_sources(there)
        await remove(engine, names)
        raise
    finally:
        state.making.difference_update(names)
    if names and spec.remove:
        follow(engine, state)


async def remove(engine: Engine, names: Sequence[str]) -> None:
    """Those that nobody uses any more."""
    own = getattr(engine, "volumes", None)
    for name in names:
        with contextlib.suppress(JoeyError):
            await own.remove(name, "")  # type: ignore[union-attr]


def of(engine: Engine, spec: SandboxSpec) -> list[str]:
    """Names of a container's volumes that were made for it alone."""
    own = getattr(engine, "volumes", None)
    if own is None or not spec.volumes:
        return []
    marked = {one.name for one in own.all("", {LABEL: None})}
    return [one.name for one in spec.volumes if one.name in marked]


def unused(engine: Engine, label: str = LABEL) -> list[str]:
    own = getattr(engine, "volumes", None)
    return [one.name for one in own.all("", {label: None}) if not one.users] if own is not None else []


async def sweep(engine: Engine, state: State) -> None:
    """Remove what containers that are gone by themselves have left."""
    await remove(engine, [name for name in unused(engine, WITH) if name not in state.making])


def follow(engine: Engine, state: State) -> None:
    """Sweep whenever a container is gone, from now on."""
    if state.sweeper is None or state.sweeper.done():
        state.sweeper = asyncio.ensure_future(_follow(engine, state))


async def _follow(engine: Engine, state: State) -> None:
    found: Any = engine.events(follow=True, types=("sandbox.removed",))
    try:
        async for _ in found:
            await sweep(engine, state)
            if not any_left(engine):
                return
    finally:
        await found.aclose()


def any_left(engine: Engine) -> bool:
    """Whether there is any that must be looked after."""
    own = getattr(engine, "volumes", None)
    return own is not None and bool(own.all("", {WITH: None}))
