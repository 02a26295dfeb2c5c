"""Snapshots and commits of sandboxes: their files become images, in time that depends on what they have changed.

A sandbox stands still (its cgroup is frozen) only while its writable layer is copied; packing, hashing and syncing the
copy need nothing of it. Which slot is frozen is noted on disk, so that one whose engine ended meanwhile goes on.

A snapshot belongs to the owner of its sandbox: nobody else with a key sees it, lists it or makes sandboxes of it. Its
name is the owner's own too. What `joey commit` makes is an ordinary image.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from joey import images
from joey.engine.record import Phase
from joey.host.cgroup_files import CgroupError
from joey.images import changes, instructions, library, reference, snapshot, store_gc
from joey.images.store import StoredImage
from joey.model.errors import Broken, Conflict, ImageError, Invalid, JoeyError, NotFound
from joey.model.image import Image
from joey.model.snapshots import CommitBody, FileChange, Snapshot, SnapshotBody
from joey.model.spec import SandboxSpec

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine
    from joey.host.cgroup import InstanceCgroup
    from joey.host.instance import Instance

MOST = 1000
"""Snapshots that one owner of a key may have."""
MOST_CHANGES = 200_000
"""What one answer tells of."""
_OURS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
"""Files the engine writes: no part of what a sandbox has changed, as with Docker, which mounts them."""
_AT_ONCE = 4
"""Copies and walks under way, of an owner one: they take threads that others wait for, for as long as trees like."""
_COLLECT_SECONDS = 0.5
_log = logging.getLogger(__name__)


class _Done(NamedTuple):
    image: StoredImage
    entries: int
    size: int
    seconds: float
    paused: float


class Snapshots:
    """Of one engine; belongs to its loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._collecting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._forking = 0
        self._threads = asyncio.Semaphore(_AT_ONCE)
        self._turns: dict[str, asyncio.Lock] = {}

    @property
    def _library(self) -> library.Library:
        return library.of(self._engine.instance)

    # --- taking one --------------------------------------------------------------------------------------------------

    async def take(self, ref: str, body: SnapshotBody) -> Snapshot:
        """Raises NotFound, Conflict, Invalid naming `name`, ImageError, Exhausted and its kin."""
        box = self._engine.find(ref)
        name = body.name or f"snap-{secrets.token_hex(6)}"
        full = own_name(name, box.owner)
        if box.owner and len(self._of(box.owner)) >= MOST:
            raise Conflict("snapshots", f"this key has {MOST} already", "remove some")
        parent, settings = self._settings(box)
        done = await self._take(
            box, body.pause, parent, settings, names=[full], source=snapshot.SNAPSHOT + box.owner,
            created_by=f"joey snapshot {box.id[:12]}",
        )  # fmt: skip
        box.tell("snapshot", image=done.image.digest)
        return Snapshot(
            name=reference.parse(name).familiar, id=done.image.digest, created=done.image.created, size=done.size,
            image_size=done.image.size, entries=done.entries, owner=box.owner, seconds=done.seconds, paused=done.paused,
        )  # fmt: skip

    async def commit(self, ref: str, body: CommitBody) -> Snapshot:
        """An ordinary image, with the settings of the sandbox (`docker commit`). Raises as `take`, Invalid."""
        box = self._engine.find(ref)
        names = [str(reference.parse(body.name, "name"))] if body.name else []
        parent, _ = self._settings(box)
        settings = instructions.change(_as_run(box.spec, box.requested().image), body.changes)
        done = await self._take(
            box, body.pause, parent, settings, names=names, source="local", comment=body.message, author=body.author,
            created_by=" ".join(box.spec.process.argv) or "joey commit",
        )  # fmt: skip
        box.tell("commit", image=done.image.digest)
        return Snapshot(
            name=reference.parse(names[0]).familiar if names else "", id=done.image.digest, created=done.image.created,
            size=done.size, image_size=done.image.size, entries=done.entries, seconds=done.seconds, paused=done.paused,
        )  # fmt: skip

    async def for_forks(self, box: Box, pause: bool = True) -> StoredImage:
        """An image without a name, held until `drop`; it goes with the last sandbox made of it."""
        parent, settings = self._settings(box)
        self._forking += 1
        try:
            done = await self._take(
                box, pause, parent, settings, source=snapshot.FORK + box.owner, created_by=f"joey fork {box.id[:12]}"
            )
            if not self._library.store.hold(done.image.digest):
                raise Broken("image", "it was removed at once", "try again")
        finally:
            self._forking -= 1
        return done.image

    def drop(self, image: StoredImage) -> None:
        self._library.store.let_go(image.digest)
        self.collect()

    async def changes(self, ref: str) -> list[FileChange]:
        """What a sandbox has changed in its files, in order of path. Raises NotFound, HostFailed …"""
        box = self._engine.find(ref)
        upper, image = self.upper(box), box.requested().image
        if upper is None:
            return []
        layers = [Path(layer.source) for layer in image.layers]
        binds = [bind.target for bind in image.binds]
        async with self._turn(box.owner):
            found = await asyncio.to_thread(
                lambda: list(itertools.islice(changes.changes(upper, layers, binds), MOST_CHANGES + 1))
            )
        found = _without_ours(found)
        if len(found) > MOST_CHANGES:
            raise Conflict("changes", f"there are more than {MOST_CHANGES}", "joey export, and compare that")
        return found

    @contextlib.asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        """One at a time of an owner, few of all."""
        if len(self._turns) > 1000:
            self._turns = {whose: lock for whose, lock in self._turns.items() if lock.locked()}
        async with self._turns.setdefault(owner, asyncio.Lock()), self._threads:
            yield

    def upper(self, box: Box) -> Path | None:
        """Its writable layer, None while there is none."""
        if box.slot is None:
            return None
        path = self._engine.machine.storage.writable(box.slot.name, box.spec)
        return path if path.is_dir() else None

    def _settings(self, box: Box) -> tuple[StoredImage | None, Image]:
        """What its image is made of, and how programs run in that."""
        if box.spec.rootfs:
            remedy = "joey image import DIR NAME makes an image of the directory"
            raise Conflict("sandbox", "its root file system is a directory, which is no image", remedy)
        image = box.requested().image
        if images.local(box.spec):
            return None, image
        held = self._library.held(box.id)
        if held is None:
            raise ImageError("image", f"{box.spec.image} of {box.id[:12]} is not here", "joey image verify")
        return self._library.store.find(held), image

    async def _take(self, box: Box, pause: bool, parent: StoredImage | None, settings: Image, **about: object) -> _Done:
        """To its end, also if the caller leaves: threads are at work."""
        task = asyncio.ensure_future(self._make(box, pause, parent, settings, **about))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            self.collect()
            raise

    async def _make(self, box: Box, pause: bool, parent: StoredImage | None, settings: Image, **about: object) -> _Done:
        begun, store = time.perf_counter(), self._library.store
        paused = 0.0

        def copy(stack: ExitStack) -> snapshot.Taken:
            base, ours = box.slot.base if box.slot else 0, tuple(path.lstrip("/") for path in _OURS)
            return stack.enter_context(snapshot.taken(store, self.upper(box), base=base, without=ours))

        def finish(taken: snapshot.Taken) -> StoredImage:
            with taken.kept() as layer:
                return snapshot.enter(store, parent, layer, settings, **about)  # type: ignore[arg-type]

        async def hold_still() -> snapshot.Taken:
            nonlocal paused
            if box.record.phase is Phase.REMOVING:
                raise NotFound("sandbox", f"{box.name or box.id} is being removed")
            freeze = pause and box.record.phase is Phase.RUNNING and box.slot is not None
            if not freeze:
                return await asyncio.to_thread(copy, stack)
            assert box.slot is not None
            since = time.perf_counter()
            try:
                return await asyncio.to_thread(_frozen, self._engine, box.slot.name, lambda: copy(stack))
            finally:
                paused = time.perf_counter() - since

        stack = ExitStack()
        async with self._turn(box.owner):
            try:
                taken = await box.in_turn(hold_still())
                image = await asyncio.to_thread(finish, taken)
            finally:
                await asyncio.to_thread(stack.close)  # what is not kept may be a million files
            self._library.changed()
            return _Done(image, taken.found.entries, taken.found.size, time.perf_counter() - begun, paused)

    # --- whose they are ----------------------------------------------------------------------------------------------

    def admit(self, spec: SandboxSpec, owner: str) -> SandboxSpec:
        """The spec with a name of the owner's own snapshots spelled out. Raises ImageError for somebody else's."""
        if not owner or images.local(spec) or not spec.image or not self._library.exists:
            return spec
        found = self._library.seen_as(spec.image, owner)
        return spec if found == spec.image else msgspec.structs.replace(spec, image=found)

    def all(self, owner: str | None) -> Sequence[Snapshot]:
        """Newest first; None sees all."""
        return [_listed(self._library, one) for one in self._of(owner)]

    def find(self, name: str, owner: str | None) -> StoredImage:
        """By name or id. Raises NotFound, also for another owner's."""
        with contextlib.suppress(ImageError):
            if self._library.exists:
                found = self._library.store.find(self._library.seen_as(name, owner) if owner else name)
                if found.source.startswith(snapshot.SNAPSHOT):
                    return found
        raise NotFound("snapshot", f"{name!r} is not here")

    def view(self, name: str, owner: str | None) -> Snapshot:
        """One of them. Raises NotFound."""
        return _listed(self._library, self.find(name, owner))

    async def remove(self, name: str, owner: str | None) -> None:
        """The image goes with its last sandbox. Raises NotFound, Conflict if sandboxes use it."""
        found = self.find(name, owner)
        await self._library.remove(found.digest)

    def _of(self, owner: str | None) -> list[StoredImage]:
        if not self._library.exists:
            return []
        found = (one for one in self._library.store.all() if one.source.startswith(snapshot.SNAPSHOT))
        return [one for one in found if not owner or one.source == snapshot.SNAPSHOT + owner]

    # --- what nobody needs any more ----------------------------------------------------------------------------------

    def recover(self, paused: Iterable[str]) -> None:
        """At the engine's start. paused: slots of sandboxes that somebody has paused."""
        thaw_left(self._engine.instance, self._engine.machine.cgroup, paused)
        if self._library.exists:
            self.collect()

    def left(self, box: Box) -> None:
        """A sandbox is gone, and does not need its image any more."""
        if images.local(box.spec):
            return
        exchanged = self._library.held(box.id) in self._library.exchanged
        images.release(self._engine.instance, box.id)
        if exchanged or box.spec.image.startswith("sha256:"):
            self.collect()

    @contextlib.contextmanager
    def growing(self) -> Iterator[None]:
        """Inside, what is made to be forked from stays, though nothing holds it yet."""
        self._forking += 1
        try:
            yield
        finally:
            self._forking -= 1

    def collect(self) -> None:
        """Soon remove what was forked from and has no sandboxes any more."""
        if self._collecting is None:
            self._collecting = asyncio.get_running_loop().call_later(_COLLECT_SECONDS, self._collect_now)

    def _collect_now(self) -> None:
        self._collecting = None
        task = asyncio.ensure_future(self._sweep())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        if not self._library.exists:
            return
        if self._forking:
            self.collect()
            return
        try:
            self._library.flush()
            store = self._library.store
            with store.lock():
                gone = [one.digest for one in store.all() if one.source.startswith(snapshot.FORK) and not one.names]
                gone = [one for one in gone if not store.leases(one) and not store.is_busy(one)]
                store.forget_images(gone)
            if gone:
                await asyncio.to_thread(store_gc.sweep, store)
                self._library.changed()
        except JoeyError as error:
            _log.error("what sandboxes were forked from is left over: %s", error)

    async def close(self) -> None:
        if self._collecting is not None:
            self._collecting.cancel()
            self._collecting = None
        await asyncio.gather(*self._tasks, return_exceptions=True)


def own_name(name: str, owner: str) -> str:
    """The canonical reference of a snapshot's name: of a key's owner below a registry that is none. Raises Invalid."""
    parsed = reference.parse(name, "name")
    if parsed.registry != reference.DEFAULT_REGISTRY or parsed.digest:
        raise Invalid("name", f"{name!r} names a registry or a digest", "a name and a tag, such as work:1")
    return library.own_name(parsed, owner) if owner else str(parsed)


def _as_run(spec: SandboxSpec, image: Image) -> Image:
    """The settings of a sandbox as those of an image (moby, daemon/commit.go: merge of container and image)."""
    process, given = spec.process, spec.entrypoint
    return msgspec.structs.replace(
        image,
        env={**image.env, **process.env},
        entrypoint=image.entrypoint if given is None else given,
        argv=process.argv or (image.argv if given is None else ()),
        cwd=process.cwd or image.cwd,
        user=process.user or image.user,
        labels={**image.labels, **spec.labels},
        stop_signal=spec.stop_signal if spec.stop_signal != "SIGTERM" else image.stop_signal,
    )


def _listed(own: library.Library, image: StoredImage) -> Snapshot:
    return Snapshot(
        name=own.short_name(image), id=image.digest, created=image.created, image_size=image.size,
        size=own.store.layer_size(image.diff_ids[-1]), owner=image.source.removeprefix(snapshot.SNAPSHOT),
    )  # fmt: skip


# --- standing still --------------------------------------------------------------------------------------------------


def _frozen(engine: Engine, slot: str, work: object) -> snapshot.Taken:
    """Do `work` while nothing in `slot` runs. Raises Broken if it cannot be stopped."""
    cgroup, note = engine.machine.cgroup, _note(engine.instance, slot)
    try:
        note.touch()
        try:
            cgroup.freeze(slot)
        except (CgroupError, TimeoutError) as error:
            raise Broken("freeze", str(error), "try again, or without pause") from error
        try:
            return work()  # type: ignore[operator, no-any-return]
        finally:
            with contextlib.suppress(CgroupError):  # it was killed meanwhile
                cgroup.thaw(slot)
    finally:
        note.unlink(missing_ok=True)


def _note(instance: Instance, slot: str) -> Path:
    return instance.run / f"still-{slot}"


def thaw_left(instance: Instance, cgroup: InstanceCgroup, paused: Iterable[str]) -> None:
    """At the engine's start: sandboxes that stood still for a snapshot when an earlier one ended go on.

    paused: slots of those that somebody has paused.
    """
    kept = frozenset(paused)
    for note in instance.run.glob("still-*"):
        slot = note.name.removeprefix("still-")
        if slot not in kept:
            with contextlib.suppress(CgroupError):
                cgroup.thaw(slot)
        note.unlink(missing_ok=True)


def _without_ours(found: list[FileChange]) -> list[FileChange]:
    """But for the files of /etc that the engine writes itself, which Docker does not show either."""
    kept = [one for one in found if one.path not in _OURS]
    others = any(one.path.startswith("/etc/") for one in kept)
    return kept if others or len(kept) == len(found) else [one for one in kept if one.path != "/etc"]
