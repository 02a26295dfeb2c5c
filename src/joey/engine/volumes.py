"""Volumes: directories that outlive sandboxes, of one owner each, in as many sandboxes as he likes.

Which sandboxes use one is read from their specifications: a sandbox that exists, running or not, keeps its volumes.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from joey import images
from joey.host.volume import VolumeDirs
from joey.images import fill
from joey.model import codec
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound
from joey.model.spec import Mount, SandboxSpec, check_labels
from joey.model.volumes import Volume, VolumeBody, VolumesPruned

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
KEY_SIZE, KEY_MOST, KEY_COUNT = 1 << 30, 10 << 30, 100
"""Of an API key's volumes: bytes unless asked for otherwise, bytes at most, how many."""


class _Kept(msgspec.Struct):
    """What volume.json holds. filled: whether it got its first content, or needs none."""

    id: str
    name: str
    owner: str
    created: float
    size: int | None = None
    labels: dict[str, str] = {}
    filled: bool = False


class Volumes:
    """Of one engine; belongs to its loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dirs = VolumeDirs(engine.instance.volumes, engine.instance.scratch / ".volumes")
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def load(self) -> None:
        """At the engine's start. Raises Broken, HostFailed …"""
        self._engine.machine.launching.volumes = self.mounts
        for id, text in (await asyncio.to_thread(self._dirs.prepare)).items():
            try:
                found = msgspec.json.decode(text, type=_Kept)
            except msgspec.MsgspecError:  # not ours: stays where it is
                continue
            if found.id == id:
                self._kept[found.owner, found.name] = found

    # --- for people --------------------------------------------------------------------------------------------------

    async def create(self, body: VolumeBody, owner: str = "") -> Volume:
        """One that is there already, with the same size, is given back. Raises Invalid, Unenforceable naming `size`,
        Conflict (another size; too many).
        """
        name = body.name or secrets.token_hex(16)
        self._check(name, body, owner)
        async with self._lock(owner, name):
            kept = self._kept.get((owner, name))
            if kept is None:
                kept = await self._make(name, body, owner)
            elif body.size is not None and body.size != kept.size:
                raise Conflict("name", f"a volume {name} is there with another size ({kept.size})", "another name")
            return self._view(kept)

    def all(self, owner: str | None = None, labels: Mapping[str, str | None] | None = None) -> Sequence[Volume]:
        """In order of name; None sees all."""
        found = [one for (whose, _), one in self._kept.items() if owner is None or whose == owner]
        wanted = (labels or {}).items()
        found = [one for one in found if all(k in one.labels and v in (None, one.labels[k]) for k, v in wanted)]
        return [self._view(one) for one in sorted(found, key=lambda one: (one.owner, one.name))]

    async def inspect(self, name: str, owner: str | None = None) -> Volume:
        """With what is used of it. Raises NotFound."""
        kept = self._find(name, owner)
        used = await asyncio.to_thread(self._dirs.used, kept.id)
        return msgspec.structs.replace(self._view(kept), used=used)

    async def remove(self, name: str, owner: str | None = None) -> None:
        """Raises NotFound, Conflict naming the sandboxes that use it."""
        kept = self._find(name, owner)
        async with self._lock(kept.owner, kept.name):
            await self._remove(kept)

    async def prune(self, owner: str | None = None) -> VolumesPruned:
        """Remove all that no sandbox uses."""
        names: list[str] = []
        size = 0
        for (whose, name), kept in list(self._kept.items()):
            if (owner is None or whose == owner) and not self._users(kept):
                async with self._lock(whose, name):
                    if self._kept.get((whose, name)) is kept and not self._users(kept):
                        used: int | None = await asyncio.to_thread(self._dirs.used, kept.id)
                        size += used or 0
                        await self._remove(kept)
                        names.append(name)
        return VolumesPruned(names=tuple(names), bytes=size)

    # --- for sandboxes -----------------------------------------------------------------------------------------------

    async def prepare(self, box: Box) -> None:
        """Have the volumes of a sandbox that is being made. Raises Invalid, Unenforceable, Exhausted and its kin."""
        for number, mount in enumerate(box.spec.volumes):
            body = VolumeBody(name=mount.name)
            try:
                self._check(mount.name, body, box.owner)
                async with self._lock(box.owner, mount.name):
                    kept = self._kept.get((box.owner, mount.name)) or await self._make(mount.name, body, box.owner)
                    if not kept.filled:
                        await self._fill(kept, box, mount.target if mount.copy else "")
            except JoeyError as error:
                error.where = f"volumes[{number}].{error.where}"
                raise

    def mounts(self, spec: SandboxSpec, id: str) -> tuple[Mount, ...]:
        """What the sandbox of `id` ("" for one that is only thought of) is to mount for its volumes."""
        owner = self._engine.find(id).owner if id else ""
        found = []
        for one in spec.volumes:
            kept = self._kept.get((owner, one.name))
            if kept is None and id:
                raise NotFound("volumes", f"the volume {one.name!r} is gone", "make another sandbox")
            source = self._dirs.root if kept is None else self._dirs.data(kept.id)
            found.append(Mount(source=str(source), target=one.target, read_only=one.read_only, recursive=False))
        return tuple(found)

    def bytes(self) -> tuple[int, int]:
        """(how many, bytes on disk). Blocks."""
        return len(self._kept), sum(self._dirs.used(one.id) or 0 for one in list(self._kept.values()))

    # --- below -------------------------------------------------------------------------------------------------------

    def _check(self, name: str, body: VolumeBody, owner: str) -> None:
        if not NAME.fullmatch(name):
            raise Invalid("name", f"{name!r} is no name of a volume", "letters, digits, _ . -; first a letter or digit")
        check_labels(body.labels)
        if body.size is not None and body.size < 1:
            raise Invalid("size", f"{body.size} bytes: must be at least 1")
        if owner and body.size is not None and body.size > KEY_MOST:
            raise Invalid("size", f"{body.size} bytes are more than the {KEY_MOST} a key may ask for")
        if owner and (owner, name) not in self._kept and sum(whose == owner for whose, _ in self._kept) >= KEY_COUNT:
            raise Conflict("volumes", f"this key has {KEY_COUNT} already", "remove some")

    def _lock(self, owner: str, name: str) -> asyncio.Lock:
        if len(self._locks) > 1000:
            self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault((owner, name), asyncio.Lock())

    async def _make(self, name: str, body: VolumeBody, owner: str) -> _Kept:
        size = body.size if body.size is not None or not owner else KEY_SIZE
        kept = _Kept(secrets.token_hex(12), name, owner, time.time(), size, dict(body.labels))
        await asyncio.to_thread(self._dirs.make, kept.id, size, codec.encode(kept))
        self._kept[owner, name] = kept
        return kept

    async def _fill(self, kept: _Kept, box: Box, path: str) -> None:
        """First content: what the image has at `path`, "" for none. Nobody else uses it yet."""

        def work() -> None:
            data = self._dirs.data(kept.id)
            image = images.resolve(self._engine.instance, box.spec, box.id)
            fill.fill([Path(layer.source) for layer in image.layers], path, data, bounded=kept.size is not None)

        if path:
            await asyncio.to_thread(work)
        kept.filled = True
        await asyncio.to_thread(self._dirs.describe, kept.id, codec.encode(kept))

    async def _remove(self, kept: _Kept) -> None:
        if users := self._users(kept):
            who = ", ".join(users[:5]) + (" …" if len(users) > 5 else "")
            raise Conflict("volume", f"{kept.name} is used by {len(users)} sandboxes ({who})", "joey rm them first")
        del self._kept[kept.owner, kept.name]  # from now on a sandbox that names it gets another one
        try:
            await asyncio.to_thread(self._dirs.remove, kept.id)
        except BaseException:
            self._kept.setdefault((kept.owner, kept.name), kept)
            raise

    def _users(self, kept: _Kept) -> list[str]:
        mine = (box for box in self._engine.boxes if box.spec.volumes and box.owner == kept.owner)
        return [box.name or box.id for box in mine if any(one.name == kept.name for one in box.spec.volumes)]

    def _find(self, name: str, owner: str | None) -> _Kept:
        if owner is not None:
            found = [self._kept[owner, name]] if (owner, name) in self._kept else []
        else:
            found = [one for (_, called), one in self._kept.items() if called == name]
            found = [one for one in found if not one.owner] or found
        if not found:
            raise NotFound("volume", f"no volume is called {name!r}", "joey volume ls")
        if len(found) > 1:
            raise Conflict("volume", f"{len(found)} keys have a volume {name!r}")
        return found[0]

    def _view(self, kept: _Kept) -> Volume:
        return Volume(
            name=kept.name, owner=kept.owner, created=kept.created, size=kept.size, labels=kept.labels,
            users=tuple(self._users(kept)),
        )  # fmt: skip
