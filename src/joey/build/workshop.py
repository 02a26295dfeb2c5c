"""What the steps of one build share: the engine, the store, the context, and what is held until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from joey.build.state import State, rfc3339
from joey.build.trees import Tree
from joey.images import index, layers, oci
from joey.images.commit import MadeLayer
from joey.images.library import Library
from joey.images.store import Store, StoredImage
from joey.model.errors import ImageError, JoeyError

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]
Room = Callable[[], Awaitable[None]]
_PATIENCE = 3.0
LABEL = "joey.build"
"""The label of a step's sandbox."""
SECRET = ".secret-"
"""How files of secrets begin in the memory that sandboxes share."""
STEP = "build step"
"""`StoredImage.source` of what is only there while a build goes on."""
NETWORKS = ("default", "none", "host", "nat")
DEFAULT_NETWORK = "nat"
"""What RUN gets without --network (docs/build.md says why)."""


async def _at_once() -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What a build was asked for. arguments: --build-arg. epoch: SOURCE_DATE_EPOCH, seconds. secrets: id -> content.

    owner, memory: of a key's build, whose steps count against its limits: their sandboxes are the key's, have so many
    bytes, files they write included, and may gain no privileges.
    """

    tags: tuple[str, ...] = ()
    target: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    no_cache: bool = False
    pull: bool = False
    network: str = "default"
    platform: str = ""
    epoch: int | None = None
    secrets: dict[str, bytes] = field(default_factory=dict)
    owner: str = ""
    memory: int = 0


def forget_steps(store: Store) -> None:
    """Forget the images that are only there for steps, and that nobody uses."""
    with store.lock():
        gone = [one.digest for one in store.all() if one.source == STEP and not one.names]
        gone = [one for one in gone if not store.is_busy(one) and not store.leases(one)]
        store.forget_images(gone)


class Workshop:
    """folder: the build's own directory below the image store, on disk. context: what COPY copies from."""

    def __init__(
        self, engine: Engine, library: Library, folder: Path, options: Options, tell: Tell, room: Room = _at_once
    ) -> None:
        """tell: is told of progress. room: returns when more can be told: a step's output waits for a slow reader."""
        self.engine, self.library, self.folder, self.options, self.tell = engine, library, folder, options, tell
        self.room = room
        self.store: Store = library.store
        self.context = Tree(folder / "context")
        self.id = secrets.token_hex(6)
        self._stack = contextlib.ExitStack()
        self._steps: set[str] = set()

    # --- holding on --------------------------------------------------------------------------------------------------

    def hold(self, *digests: str) -> None:
        """Nothing of these is swept before the build ends."""
        self._stack.enter_context(self.store.busy(*digests))

    async def close(self) -> None:
        """Let everything go, and forget what was only there for steps."""
        self._stack.close()
        end = time.monotonic() + _PATIENCE
        # The engine lets the image of a sandbox go a moment after it is removed.
        while any(map(self.store.is_busy, self._steps)) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.library.flush()
        await asyncio.to_thread(forget_steps, self.store)
        self.library.changed()

    @property
    def now(self) -> float:
        """The time of what is made now: SOURCE_DATE_EPOCH, if there is one."""
        return time.time() if self.options.epoch is None else float(self.options.epoch)

    # --- images of states --------------------------------------------------------------------------------------------

    def put(self, state: State, names: tuple[str, ...] = (), source: str = STEP) -> StoredImage:
        """A state as an image of the store, held. Blocks."""
        config = state.encoded()
        described = oci.describe(config, index.OCI_CONFIG)
        manifest = oci.manifest(described, [blob for _, blob in state.layers])
        digest = index.digest_of(manifest)
        self.hold(digest, described.digest)
        if source != STEP:  # it may have been one until now
            with contextlib.suppress(JoeyError):
                if self.store.find(digest).source == STEP:
                    self.store.forget_images([digest])
        self.store.ingest(config, described.digest)
        made = self.store.put_image(names, manifest, index.OCI_MANIFEST, source=source)
        if made.source == STEP and not made.names:  # else it is an image that is to stay, and others may use it
            self._steps.add(digest)
        return made

    def tree(self, state: State) -> Tree | None:
        """The files of a state as one directory; None without any. Blocks."""
        if not state.layers:
            return None
        return self.files(self.put(state))

    def files(self, image: StoredImage) -> Tree:
        """The files of an image as one directory. Blocks."""
        self.hold(image.digest, *image.diff_ids)
        if not image.diff_ids:
            raise ImageError("image", f"{image.digest[7:19]} has no files")
        layers.prepare(self.store, image, whole=True)
        found = layers.stack(self.store, image)
        if len(found) != 1:
            raise ImageError("image", f"the layers of {image.digest[7:19]} cannot be merged", "see the engine's log")
        return Tree(Path(found[0].source))

    # --- steps that make a layer -------------------------------------------------------------------------------------

    async def layer(self, state: State, text: str, key: list[Any], work: Callable[[], Any]) -> bool:
        """Add the layer of a step to a state; → whether it was done before. work: makes it (→ MadeLayer, awaitable)."""
        digest = hashlib.sha256(msgspec.json.encode([1, self.options.epoch, *key])).hexdigest()
        known = None if self.options.no_cache else self.store.step(digest)
        if known is not None:
            diff_id, blob, when = known
            if blob is not None:
                self.hold(diff_id, blob.digest)
                known = self.store.step(digest)  # it may have gone just before
        if known is None:
            made: MadeLayer = await work()  # which has held what it made
            when = self.now
            diff_id, blob = (made.diff_id, made.blob) if made.entries else ("", None)
            self.store.keep_step(digest, diff_id, blob, when)
        if blob is not None:
            state.layers.append((diff_id, blob))
        state.note(text, empty=blob is None, created=rfc3339(when))
        return known is not None

    async def thread(self, work: Callable[[], T]) -> T:
        """Do `work` beside the loop, to its end even if the build is given up."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise
