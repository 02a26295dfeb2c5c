"""From a registry into the store: fetch and unpack side by side, each layer once however many want it.

Order: manifest (an index first, if there is one), configuration, then the layers beside each other; of each, unpacking
reads what downloading has written so far. A layer that is here already, by its diff id, is not fetched. The image is
entered into the index when everything it names is verified and on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from joey.host import sys as kernel
from joey.host import trees
from joey.images import auth, index
from joey.images.config import RegistriesConfig
from joey.images.index import Descriptor, Platform
from joey.images.reference import Reference
from joey.images.registry import Repository
from joey.images.store import UNPACKING, Store, StoredImage
from joey.images.store_fetch import Follower, Growing, Interrupted
from joey.images.unpack import Unpacked, unpack
from joey.model.errors import Exhausted, ImageError, JoeyError, RegistryFailed, from_os

T = TypeVar("T")
_RESERVE = 64 << 20
"""Bytes of the disk that a pull leaves free."""


class Progress(msgspec.Struct, frozen=True):
    """What happens to one part. id: 12 digits of its digest, "" for the image as a whole.

    status: resolving, waiting, downloading, unpacking, done, exists. done, total: bytes.
    """

    id: str
    status: str
    done: int = 0
    total: int = 0


Listener = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """A listener that does not listen."""


class _Shared:
    """A layer that is on its way, and who waits for it. It ends when nobody does."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.last: Progress | None = None
        self.task: asyncio.Task[None]

    def tell(self, progress: Progress) -> None:
        self.last = progress
        for listener in self.listeners:
            listener(progress)


class Puller:
    """Pulls for one store; on one event loop. `close` ends what is under way."""

    def __init__(self, store: Store, config: Callable[[], RegistriesConfig], machine: str = "") -> None:
        """config: asked anew for every pull, so that a changed file counts at once."""
        self.store = store
        self._config = config
        self._platform = index.platform_of(machine or os.uname().machine)
        self._layers: dict[str, _Shared] = {}
        self._repositories: dict[tuple[str, object], tuple[Repository, int]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._slots: asyncio.Semaphore | None = None
        self._sync: asyncio.Task[None] | None = None
        self._syncing = asyncio.Lock()

    async def close(self) -> None:
        tasks = [shared.task for shared in self._layers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown()

    async def pull(
        self, reference: Reference, platform: Platform | None = None, listener: Listener = nobody
    ) -> StoredImage:
        """The image of `reference`, fetched as far as it is not here. Raises ImageError, RegistryFailed, Exhausted …

        platform: another than this machine's own.
        """
        config = self._config()
        async with self._repository(reference, config) as repository:
            listener(Progress("", "resolving"))
            data, kind, top = await repository.manifest(reference.target)
            found = index.parse(data, kind, reference.familiar)
            if isinstance(found, index.Index):
                tops = (top, data, found.media_type)
                entry = index.choose(found, platform or self._platform, reference.familiar)
                data, kind, _ = await self._manifest(repository, entry)
                found = index.parse(data, kind or entry.media_type, reference.familiar)
                if isinstance(found, index.Index):
                    raise ImageError(f"image {reference.familiar}", "an index within an index is not supported")
            else:
                tops = (top, b"", "")
            return await self._image(reference, repository, found, data, tops, platform, config, listener)

    async def _manifest(self, repository: Repository, entry: Descriptor) -> tuple[bytes, str, str]:
        with contextlib.suppress(JoeyError):
            return self.store.read_blob(entry.digest, index.MAX_MANIFEST), entry.media_type, entry.digest
        return await repository.manifest(entry.digest, entry.size)

    async def _image(
        self, reference: Reference, repository: Repository, manifest: index.Manifest, data: bytes,
        tops: tuple[str, bytes, str], platform: Platform | None, config: RegistriesConfig, listener: Listener,
    ) -> StoredImage:  # fmt: skip
        name, digest = reference.familiar, index.digest_of(data)
        wanted = [manifest.config, *manifest.layers]
        for part in wanted:
            if not part.digest.startswith("sha256:"):
                raise ImageError(f"image {name}", f"{part.digest} is not of sha256, the only kind that is supported")
        with self.store.busy(digest, tops[0], *(part.digest for part in wanted)):
            text = await self._config_blob(repository, manifest.config)
            parsed = index.parse_config(text, manifest, name)
            self._check_platform(parsed.platform, platform, name)
            with self.store.busy(*parsed.diff_ids):
                await self._all_layers(reference, manifest, parsed.diff_ids, config, listener)
                if tops[1] and tops[0].startswith("sha256:") and not self.store.has_blob(tops[0]):
                    await finished(asyncio.to_thread(self.store.ingest, tops[1], tops[0], tops[2]))
                return await finished(
                    asyncio.to_thread(
                        lambda: self.store.put_image(
                            [str(reference)], data, manifest.media_type, top=tops[0], source=reference.repository
                        )
                    )
                )

    def _check_platform(self, found: Platform, asked: Platform | None, name: str) -> None:
        wanted = asked or self._platform
        known = found.os and found.architecture
        if known and (found.os, found.architecture) != (wanted.os, wanted.architecture):
            raise ImageError(
                f"image {name}", f"it is for {found}, not for {wanted}", f"--platform {found} if you mean it"
            )

    async def _config_blob(self, repository: Repository, blob: Descriptor) -> bytes:
        with contextlib.suppress(JoeyError):
            return self.store.read_blob(blob.digest)
        data = await repository.small(blob)
        await finished(asyncio.to_thread(self.store.ingest, data, blob.digest, blob.media_type))
        return data

    # --- layers ------------------------------------------------------------------------------------------------------

    async def _all_layers(
        self, reference: Reference, manifest: index.Manifest, diff_ids: tuple[str, ...], config: RegistriesConfig,
        listener: Listener,
    ) -> None:  # fmt: skip
        pairs = dict(zip(diff_ids, manifest.layers, strict=True))
        missing = {}
        for diff_id, blob in pairs.items():
            if self.store.has_layer(diff_id):
                listener(Progress(blob.short, "exists", blob.size, blob.size))
            else:
                missing[diff_id] = blob
                listener(Progress(blob.short, "waiting", 0, blob.size))
        self._check_space(reference, missing)
        await together(self._share(reference, diff_id, blob, config, listener) for diff_id, blob in missing.items())

    def _check_space(self, reference: Reference, missing: dict[str, Descriptor]) -> None:
        """Refuse at once what cannot fit: unpacked, a layer is hardly ever smaller than compressed."""
        need = sum(blob.size * 2 for blob in missing.values() if not self.store.has_blob(blob.digest)) + (
            _RESERVE if missing else 0
        )
        if need > (free := self.store.free_space()):
            raise Exhausted(
                f"image {reference.familiar}", f"it needs {need >> 20} MiB and more, and {free >> 20} MiB are free",
                f"free space on the file system of {self.store.root}: joey image prune",
            )  # fmt: skip

    async def _share(
        self, reference: Reference, diff_id: str, blob: Descriptor, config: RegistriesConfig, listener: Listener
    ) -> None:
        """Wait for a layer that somebody is fetching, or begin to. It goes on as long as anybody waits."""
        shared = self._layers.get(diff_id)
        if shared is None:
            shared = self._layers[diff_id] = _Shared()
            shared.task = asyncio.ensure_future(self._layer(reference, diff_id, blob, config, shared.tell))
        shared.listeners.append(listener)
        if shared.last is not None:
            listener(shared.last)
        try:
            await asyncio.shield(shared.task)
        finally:
            shared.listeners.remove(listener)
            if not shared.listeners or shared.task.done():
                if self._layers.get(diff_id) is shared:
                    del self._layers[diff_id]
                if not shared.task.done():
                    shared.task.cancel()
                    await asyncio.gather(shared.task, return_exceptions=True)

    async def _layer(
        self, reference: Reference, diff_id: str, blob: Descriptor, config: RegistriesConfig, tell: Listener
    ) -> None:
        if self._slots is None:
            self._slots = asyncio.Semaphore(config.parallel)
        with self.store.busy(blob.digest, diff_id, UNPACKING):
            async with self._slots:
                if self.store.has_layer(diff_id):
                    return
                if self.store.has_blob(blob.digest):
                    await self._stored(diff_id, blob, tell)
                    return
                async with self._repository(reference, config) as repository:
                    if await self._fetched(repository, diff_id, blob, config, tell):
                        return
                    # What was left of an earlier try was damaged: once more, from the start.
                    if not await self._fetched(repository, diff_id, blob, config, tell):
                        raise RegistryFailed(f"blob {blob.short}", "somebody changes it while it is written")

    async def _stored(self, diff_id: str, blob: Descriptor, tell: Listener) -> None:
        """Unpack a layer whose blob is here."""
        tell(Progress(blob.short, "unpacking", blob.size, blob.size))
        directory = self.store.new_directory()
        try:
            stream: BinaryIO = open(self.store.blob_path(blob.digest), "rb")
        except OSError as error:
            raise from_os(f"open blob {blob.short}", error) from error
        with stream:
            unpacking = self._in_thread(lambda: unpack(stream, directory, diff_id=diff_id, durable=False))
            try:
                await self._adopt(directory, await asyncio.shield(unpacking), diff_id, None, tell, blob)
            finally:
                await self._cleared(unpacking, directory)

    async def _fetched(
        self, repository: Repository, diff_id: str, blob: Descriptor, config: RegistriesConfig, tell: Listener
    ) -> bool:
        """Fetch and unpack a layer. False if a resumed download turned out to be damaged, and is gone now."""
        growing, directory = Growing(self.store, blob), self.store.new_directory()
        unpacking: asyncio.Future[Unpacked] | None = None
        try:
            await finished(self._in_thread(growing.open))
            stream = cast(BinaryIO, Follower(growing))
            unpacking = self._in_thread(lambda: unpack(stream, directory, diff_id=diff_id, durable=False))

            async def take(piece: bytes) -> None:
                await finished(self._in_thread(lambda: growing.write(piece)))
                tell(Progress(blob.short, "downloading", growing.have, blob.size))
                if unpacking is not None and unpacking.done() and unpacking.exception() is not None:
                    await unpacking  # a hostile archive need not be fetched to its end

            await repository.blob(blob, lambda: growing.have, take)
            try:
                growing.verify()
            except RegistryFailed:
                if growing.resumed:
                    return False
                raise
            tell(Progress(blob.short, "unpacking", blob.size, blob.size))
            done = await asyncio.shield(unpacking)
            await self._adopt(directory, done, diff_id, growing if config.keep_layers else None, tell, blob)
            if not config.keep_layers:
                growing.drop()
            return True
        except ImageError:
            if growing.resumed and growing.have < blob.size:
                growing.drop()  # its end is not known to be right; what makes no sense so far may be our own rest
                return False
            raise
        finally:
            growing.interrupt(Interrupted())
            try:
                if unpacking is not None:
                    await self._cleared(unpacking, directory)
            finally:
                growing.close()

    async def _cleared(self, unpacking: asyncio.Future[Unpacked], directory: Path) -> None:
        """The thread has ended, and what it made has been adopted or is gone."""
        with contextlib.suppress(Exception):
            await finished(unpacking)
        if directory.exists():
            await finished(asyncio.to_thread(trees.remove, directory))

    async def _adopt(
        self, directory: Path, done: Unpacked, diff_id: str, growing: Growing | None, tell: Listener, blob: Descriptor
    ) -> None:
        await self._synced()
        if growing is not None:
            await finished(asyncio.to_thread(growing.keep))
        await finished(asyncio.to_thread(self.store.adopt_layer, directory, diff_id, done.size, done.entries))
        tell(Progress(blob.short, "done", blob.size, blob.size))

    async def _synced(self) -> None:
        """What was written before this call is on disk afterwards. Several that wait share one syncfs(2)."""
        if self._sync is None:
            self._sync = asyncio.ensure_future(self._sync_once())
        await asyncio.shield(self._sync)

    async def _sync_once(self) -> None:
        async with self._syncing:
            self._sync = None  # who comes from now on may have written after it began

            def sync() -> None:
                fd = os.open(self.store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    kernel.syncfs(fd)
                except OSError as error:
                    raise from_os("write layers to disk", error) from error
                finally:
                    os.close(fd)

            await asyncio.to_thread(sync)

    def _in_thread(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """In threads of our own: unpacking waits for downloads, and must not keep the engine's from working."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(2 * self._config().parallel + 2, thread_name_prefix="joey-pull")
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.asynccontextmanager
    async def _repository(self, reference: Reference, config: RegistriesConfig) -> AsyncIterator[Repository]:
        """Connections and tokens for a repository, shared by all that pull from it and are the same to it."""
        key = (reference.repository, auth.given.get())
        repository, count = self._repositories.get(key) or (Repository(reference, config), 0)
        self._repositories[key] = (repository, count + 1)
        try:
            yield repository
        finally:
            repository, count = self._repositories[key]
            if count > 1:
                self._repositories[key] = (repository, count - 1)
            else:
                del self._repositories[key]
                await repository.__aexit__()


async def finished(awaitable: Awaitable[T]) -> T:
    """The result of what a thread does. When cancelled it still waits for the thread, which may use a descriptor that
    is about to be closed, or a directory that is about to be removed.
    """
    work = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        with contextlib.suppress(Exception):
            work.result()
        raise


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All beside each other; the first error cancels the others, waits for them, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


__all__ = ["Listener", "Progress", "Puller", "finished", "nobody", "together"]
