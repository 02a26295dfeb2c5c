"""From a sandbox's writable layer to an image: what snapshots, `joey commit` and builds end with. Blocks: threads only.

    upper ──copy──► layers/.new-…  ──pack──► blob (uncompressed, its digest is the diff id) ──► layers/HEX, the index

Only the copy needs the sandbox to stand still. What costs time is what was written into it, whatever size its image
has. Killed at any moment nothing half is left: what has no final name is swept. (joey.images.commit makes layers of
archives; this way saves unpacking, and the sandbox stands still only for a copy.)
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from joey.host import sys as kernel
from joey.host import trees
from joey.images import archive, index, oci, upper
from joey.images.index import Descriptor
from joey.images.layers import GROWN
from joey.images.pack import Options, pack
from joey.images.store import INGESTING, UNPACKING, Store, StoredImage
from joey.model.errors import ImageError, from_os
from joey.model.image import Image

BASE_LABEL = "io.joey.base"
"""Label of an image whose layers lie on something that is no layer: `host`, this machine's own system."""
SNAPSHOT, FORK = GROWN
"""How `StoredImage.source` begins of a snapshot, and of what sandboxes are forked from; then the owner's id."""


class StoredLayer(msgspec.Struct, frozen=True):
    """A layer that is here: its blob (uncompressed) and its directory. size: bytes of its files."""

    diff_id: str
    blob: Descriptor
    size: int
    entries: int


@contextlib.contextmanager
def taken(
    store: Store, source: Path | int | None, *, base: int = 0, epoch: int | None = None, without: Collection[str] = ()
) -> Iterator[Taken]:
    """Copy a sandbox's upper directory now; inside the block it can be `kept`. What was not is removed at its end.

    source: None for a sandbox that has none yet: an empty layer. base: the first id of its slot. without: files
    to leave out. Raises as `joey.images.upper.copy`.
    """
    with store.busy(UNPACKING, INGESTING):
        directory = store.new_directory()
        try:
            if source is None:
                directory.mkdir(0o700)
                directory.chmod(0o755)
                found = upper.Copied(0, 0)
            else:
                found = upper.copy(source, directory, base=base, epoch=epoch, without=without)
            yield Taken(store, directory, found)
        finally:
            with contextlib.suppress(OSError):
                trees.remove(directory)


class Taken:
    """A copy that is no layer yet."""

    def __init__(self, store: Store, directory: Path, found: upper.Copied) -> None:
        self.store, self.directory, self.found = store, directory, found

    @contextlib.contextmanager
    def kept(self) -> Iterator[StoredLayer]:
        """Make it a layer of the store, synced; inside the block it is not swept, though no image names it yet.

        Raises Exhausted and its kin, ImageError.
        """
        store, temporary = self.store, self.store.blobs / f".new-{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with open(temporary, "xb") as file:
                for piece in pack(self.directory, Options(overlay=True)):
                    digest.update(piece)
                    size += file.write(piece)
                file.flush()
                kernel.syncfs(file.fileno())  # the layer's directory is on the same file system
            diff_id = f"sha256:{digest.hexdigest()}"
            with store.busy(diff_id):
                store.commit_blob(temporary, diff_id)
                store.adopt_layer(self.directory, diff_id, self.found.size, self.found.entries)
                yield StoredLayer(
                    diff_id, Descriptor(index.OCI_LAYERS["none"], diff_id, size), self.found.size, self.found.entries
                )
        except OSError as error:
            raise from_os("store a layer", error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def base_of(store: Store, image: StoredImage) -> str:
    """What the layers of a stored image lie on: "" nothing, "host"."""
    found = msgspec.json.decode(store.read_blob(image.config.digest))
    labels = (found.get("config") or {}).get("Labels") or {} if isinstance(found, dict) else {}
    return str(labels.get(BASE_LABEL, ""))


def on_host(image: Image, host: Image) -> Image:
    """An image whose layers lie on this machine's own system, as sandboxes get it."""
    labels = {name: value for name, value in image.labels.items() if name != BASE_LABEL}
    return msgspec.structs.replace(image, layers=(*host.layers, *image.layers), binds=host.binds, labels=labels)


def enter(
    store: Store,
    parent: StoredImage | None,
    layer: StoredLayer,
    settings: Image,
    *,
    names: Sequence[str] = (),
    source: str = "local",
    created_by: str = "",
    comment: str = "",
    author: str = "",
) -> StoredImage:
    """Enter the image of `parent`'s layers (None: this machine's own system) and `layer` on them.

    settings: how programs run in it; its layers do not count. Raises as archive.put.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    step = oci.Step(created=now, created_by=created_by, comment=comment)
    layers = [(layer.diff_id, layer.blob)]
    base, platform, steps, built = "host", index.platform_of(os.uname().machine), [step], {}
    if parent is not None:
        built = oci.for_builds(store.read_blob(parent.config.digest))
        layers = [*zip(parent.diff_ids, parent.layers, strict=True), *layers]
        platform, base = index.parse_platform(parent.platform), base_of(store, parent)
        steps = [*_history(store, parent), step]
    if base not in ("", "host"):
        raise ImageError("image", f"it lies on {base!r}, which this Joey does not know")
    if base:
        settings = msgspec.structs.replace(settings, labels={**settings.labels, BASE_LABEL: base})
    return archive.put(store, names, settings, layers, platform, now, steps, author, source, built)


def _history(store: Store, image: StoredImage) -> tuple[oci.Step, ...]:
    found = msgspec.json.decode(store.read_blob(image.config.digest))
    steps = found.get("history") if isinstance(found, dict) else None
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(steps or (), tuple[oci.Step, ...])
    return ()


__all__ = [
    "BASE_LABEL", "FORK", "SNAPSHOT", "StoredLayer", "Taken", "base_of", "enter", "on_host", "taken",
]  # fmt: skip
