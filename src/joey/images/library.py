"""What an engine and its API do with images: find, pull when needed, hold for a sandbox, push, remove, account for.

One `Library` an instance (`of`). Everything heavy (HTTP client, the registry's code) is imported at the first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from joey.images import config as configuration
from joey.images import reference, store_gc
from joey.images.index import Platform
from joey.images.store import Store, StoredImage
from joey.model import codec
from joey.model.errors import Conflict, ImageError, Invalid, JoeyError
from joey.model.image import Image

if TYPE_CHECKING:
    from joey.host.instance import Instance
    from joey.images.pull import Listener

Policy = Literal["missing", "always", "never"]
POLICIES: tuple[Policy, ...] = ("missing", "always", "never")
_REMEMBERED = 256
_GROUP_SECONDS = 0.02
_log = logging.getLogger(__name__)


class Library:
    """The images of an instance. Opens its store at the first use; belongs to one event loop."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._store: Store | None = None
        self._puller: Any = None
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self.exchanged: set[str] = set()
        """Images that sandboxes were given in the place of theirs, for as long as this engine runs."""
        self._seen: dict[tuple[str, str], str] = {}
        self._unwritten: dict[str, str | None] = {}
        self._writing: asyncio.TimerHandle | None = None

    @property
    def store(self) -> Store:
        """Raises Broken, Exhausted naming images.db."""
        if self._store is None:
            self._store = Store(self.instance.images)
        return self._store

    @property
    def exists(self) -> bool:
        """Whether there ever was an image: an instance that needs none has no store."""
        return self._store is not None or (self.instance.images / "images.db").exists()

    async def close(self) -> None:
        if self._puller is not None:
            await self._puller.close()
            self._puller = None
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self._store is not None:
            with contextlib.suppress(JoeyError):
                self.flush()
            self._store.close()
            self._store = None

    def config(self) -> configuration.RegistriesConfig:
        return configuration.load(self.instance.home)

    @property
    def puller(self) -> Any:
        """The joey.images.pull.Puller."""
        if self._puller is None:
            from joey.images.pull import Puller

            self._puller = Puller(self.store, self.config)
        return self._puller

    # --- for sandboxes -----------------------------------------------------------------------------------------------

    async def ensure(self, name: str, owner: str, policy: Policy = "missing", platform: Platform | None = None) -> None:
        """Have the image `name`, pulled as `policy` says, and hold it for `owner` until `release`.

        What an owner holds stays the same whatever becomes of the name. The lease is on disk a moment later; `recover`
        makes good what a crash before that has lost. Raises ImageError, RegistryFailed …
        """
        if owner in self._held:
            return
        digest = self._names.get(name, "") if policy == "missing" and platform is None else ""
        while not (digest and self.store.hold(digest)):
            digest = (await self.obtain(name, policy, platform)).digest
        self._held[owner] = digest
        self._note(owner, digest)
        self._remember(name, digest)
        if digest not in self._images and len((found := self.store.find(digest)).diff_ids) > 1:
            from joey.images import layers as stack

            await asyncio.to_thread(stack.prepare, self.store, found)

    async def obtain(
        self, name: str, policy: Policy = "missing", platform: Platform | None = None, listener: Listener | None = None
    ) -> StoredImage:
        """The image of a name: the one that is here, or pulled."""
        if policy != "always":
            try:
                found = self.store.find(name)
                if platform is None or found.platform.startswith(str(platform)):
                    return found
                if policy == "never":
                    raise ImageError("image", f"{name} is here for {found.platform}, not for {platform}")
            except ImageError as error:
                if policy == "never" or not reference.is_name(name):
                    raise ImageError("image", error.message, f"joey pull {name}") from None
        from joey.images.pull import nobody

        ref = reference.parse(name)
        found = await self.puller.pull(ref, platform, listener or nobody)
        if len(found.diff_ids) > 1:  # so that the first sandbox need not wait for it
            from joey.images import layers as stack

            await asyncio.to_thread(stack.prepare, self.store, found)
        self.changed()
        return found

    def image(self, name: str, owner: str = "") -> Image:
        """The model's image of a name, or of what `owner` holds. Blocks for a file or two the first time.

        Raises ImageError, Conflict, Invalid.
        """
        digest = self._held.get(owner, "") if owner else ""
        if not digest and not self.exists:
            raise ImageError("image", f"{name!r} is not here", f"joey pull {name}; or host, which is always there")
        if not digest:
            digest = self._names.get(name, "") or self.store.find(name).digest
            self._remember(name, digest)
        known = self._images.get(digest)
        if known is None:
            if len(self._images) > _REMEMBERED:
                self._images.clear()
            known = self._images[digest] = self._compose(self.store.find(digest))
        return known if known.name == name else _named(known, name)

    def held(self, owner: str) -> str | None:
        """The digest of the image that a sandbox holds."""
        return self._held.get(owner)

    # --- what is not everybody's -------------------------------------------------------------------------------------

    def seen_as(self, name: str, owner: str) -> str:
        """What the owner of a key means by `name`: one of his own snapshots goes before an image of that name.

        Raises ImageError as for what is not here if it is somebody else's snapshot.
        """
        known = self._seen.get((name, owner))
        if known is None:
            if len(self._seen) > _REMEMBERED:
                self._seen.clear()
            known = self._seen[name, owner] = self._see(name, owner)
        return known

    def _see(self, name: str, owner: str) -> str:
        with contextlib.suppress(Invalid, ImageError):
            parsed = reference.parse(name)
            if parsed.registry == reference.DEFAULT_REGISTRY and not parsed.digest:
                return self.store.find(own_name(parsed, owner)).digest
        try:
            found = self.store.find(name)
        except (ImageError, Invalid, Conflict):
            return name  # to be pulled, or refused in its place
        if not visible(found, owner):
            raise ImageError("image", f"{name!r} is not here", f"joey pull {name}")
        return name

    def short_name(self, image: StoredImage) -> str:
        """What the owner of a snapshot calls it, its id without a name."""
        if not image.names:
            return image.digest
        return reference.parse(image.names[0]).familiar.removeprefix(own_prefix(image.source.partition(":")[2]))

    def remember(self, digest: str, image: Image) -> None:
        """What sandboxes of a stored image are to get, instead of what its configuration says: for benchmarks."""
        self._images[digest] = image

    def _remember(self, name: str, digest: str) -> None:
        if len(self._names) > _REMEMBERED:
            self._names.clear()
        self._names[name] = digest

    def _compose(self, stored: StoredImage) -> Image:
        from joey.images import layers as stack
        from joey.images import oci, snapshot

        name = stored.names[0] if stored.names else stored.digest
        config = self.store.read_blob(stored.config.digest)
        if not snapshot.base_of(self.store, stored):
            return oci.image(name, config, stack.stack(self.store, stored))
        from joey import images

        return snapshot.on_host(
            oci.image(name, config, stack.stack(self.store, stored)), images.host_image(self.instance)
        )

    def release(self, owner: str) -> None:
        """A sandbox is gone. Nothing if it held nothing."""
        if (digest := self._held.pop(owner, None)) is not None:
            self.exchanged.discard(digest)
            self.store.let_go(digest)
            self._note(owner, None)

    def exchange(self, owner: str, digest: str) -> None:
        """From now on a sandbox that was not started yet holds another image. Raises ImageError if that is not here."""
        if not self.store.hold(digest):
            raise ImageError("image", f"{digest} is not here")
        self.release(owner)
        self._held[owner] = digest
        self.exchanged.add(digest)
        self._note(owner, digest)

    def _note(self, owner: str, digest: str | None) -> None:
        """Leases are written together with others: one alone costs more than the rest of a create's bookkeeping."""
        self._unwritten[f"sandbox:{owner}"] = digest
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(_GROUP_SECONDS, self._write)

    def _write(self) -> None:
        self._writing = None
        try:
            self.flush()
        except JoeyError as error:  # disk full: they are held in memory meanwhile
            _log.error("%s; trying again", error)
            self._writing = asyncio.get_running_loop().call_later(1.0, self._write)

    def flush(self) -> None:
        """Leases are on disk afterwards. Raises Broken, Exhausted."""
        if self._unwritten:
            self.store.write_leases(self._unwritten)
            self._unwritten = {}

    def recover(self, owners: Iterable[tuple[str, str]]) -> None:
        """At the engine's start. owners: (id, name of the image) of every sandbox there is: who is not among them has
        gone unseen, and whose lease was not written before a crash gets it now.
        """
        alive = dict(owners)
        if not self.exists:
            return
        store = self.store
        store.reconcile(f"sandbox:{one}" for one in alive)
        for owner, name in alive.items():
            if (digest := store.leased(f"sandbox:{owner}")) is None:
                try:
                    digest = store.find(name).digest
                except (ImageError, Invalid):
                    continue
                store.lease(f"sandbox:{owner}", digest)
            if store.hold(digest):
                self._held[owner] = digest
        swept = store_gc.sweep(store)
        if swept.layers or swept.blobs:
            _log.info("images: removed %d layers and %d blobs that nothing names", len(swept.layers), swept.blobs)

    def changed(self) -> None:
        """Names may lead elsewhere now, and directories that nothing needed may be gone."""
        self._names.clear()
        self._images.clear()
        self._seen.clear()

    # --- for people --------------------------------------------------------------------------------------------------

    async def push(self, name: str, target: str, listener: Listener, *, chunk: int = 0) -> str:
        """Push an image, under another name if `target` is one; → digest."""
        from joey.images.push import push

        image = self.store.find(name)
        return await push(self.store, image, reference.parse(target or name), self.config(), listener, chunk=chunk)

    def tag(self, name: str, new: str) -> str:
        full = self.store.tag(name, new)
        self.changed()
        return full

    async def remove(self, name: str, *, force: bool = False) -> tuple[list[str], list[str]]:
        """(names, images) removed; the content goes too."""
        self.flush()
        found = self.store.remove(name, force=force)
        self.changed()
        await asyncio.to_thread(store_gc.sweep, self.store)
        return found

    async def prune(self, *, all: bool = False) -> store_gc.Swept:
        self.flush()
        found = await asyncio.to_thread(store_gc.prune, self.store, all=all, parts=True)
        self.changed()
        return found

    def summary(self, image: StoredImage) -> dict[str, Any]:
        """What a list shows of an image."""
        self.flush()
        tops = self.store.tops()
        return {
            "id": image.digest, "names": [reference.parse(name).familiar for name in image.names],
            "digests": sorted({f"{reference.parse(n).repository}@{tops[n]}" for n in image.names if n in tops}),
            "config": image.config.digest, "platform": image.platform, "created": image.created,
            "added": image.added, "size": image.size, "layers": len(image.diff_ids),
            "sandboxes": len(self.store.leases(image.digest)),
        }  # fmt: skip

    def detail(self, name: str) -> dict[str, Any]:
        """All there is to know about an image."""
        image = self.store.find(name)
        config = codec.decode(dict, self.store.read_blob(image.config.digest))
        layers = [
            {"diff_id": diff_id, "blob": blob.digest, "media_type": blob.media_type, "compressed": blob.size,
             "size": self.store.layer_size(diff_id)}
            for diff_id, blob in zip(image.diff_ids, image.layers, strict=True)
        ]  # fmt: skip
        return {**self.summary(image), "media_type": image.media_type, "layers": layers, "oci": config}

    def history(self, name: str) -> list[dict[str, Any]]:
        """The steps an image was made in, the newest first; of each its layer's size."""
        image = self.store.find(name)
        config = codec.decode(dict, self.store.read_blob(image.config.digest))
        steps = config.get("history")
        sizes = [self.store.layer_size(diff_id) for diff_id in image.diff_ids]
        found = []
        for step in steps if isinstance(steps, list) else [{} for _ in sizes]:
            step = step if isinstance(step, dict) else {}
            size = 0 if step.get("empty_layer") or not sizes else sizes.pop(0)
            found.append({
                "created": step.get("created", ""), "created_by": step.get("created_by", ""), "size": size,
                "comment": step.get("comment", ""), "empty_layer": bool(step.get("empty_layer")),
            })  # fmt: skip
        return found[::-1]


def visible(image: StoredImage, owner: str) -> bool:
    """Whether the owner of a key ("" the administrator) may know of it: snapshots are their sandbox's owner's."""
    kind, _, whose = image.source.partition(":")
    return not owner or kind not in ("snapshot", "fork") or whose == owner


def own_prefix(owner: str) -> str:
    """Where names of an owner's snapshots are, apart from everybody's."""
    return f"localhost/joey-{owner}/" if owner else ""


def own_name(name: reference.Reference, owner: str) -> str:
    """The canonical name of an owner's own snapshot."""
    return str(reference.parse(own_prefix(owner) + name.familiar))


def _named(image: Image, name: str) -> Image:
    import msgspec

    return msgspec.structs.replace(image, name=name)


_libraries: dict[str, Library] = {}


def of(instance: Instance) -> Library:
    """The library of an instance; the same one for all who ask in this process."""
    key = str(instance.images)
    if key not in _libraries:
        _libraries[key] = Library(instance)
    return _libraries[key]


async def close(instance: Instance) -> None:
    """Close it, if anybody has asked for it."""
    if (found := _libraries.pop(str(instance.images), None)) is not None:
        await found.close()
