"""What can go, what it takes, and whether it is still what it was: prune, disk usage, verify.

A pull or a start of a sandbox that is under way holds what it needs (`Store.busy`, leases), and the names change only
under the store's lock, so what is removed here is needed by nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from joey.host import trees
from joey.images import caches, compare
from joey.images import layers as layers_merged
from joey.images.store import INGESTING, UNPACKING, Store, StoredImage
from joey.model.errors import from_os

PART_SECONDS = 86400.0
"""An interrupted download is kept so long for the next try."""
_sweeping = threading.Lock()


class Swept(msgspec.Struct, frozen=True):
    """What went. bytes: freed, layers as they were counted when unpacked."""

    images: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    blobs: int = 0
    bytes: int = 0


class Damage(msgspec.Struct, frozen=True):
    """One thing that is not what it should be, and the names of the images it belongs to."""

    what: str
    problem: str
    images: tuple[str, ...] = ()


def _needed(store: Store) -> tuple[set[str], set[str]]:
    """(blobs, diff ids) that some image or a step of a build names."""
    blobs, layers = set(store.tops().values()), set()
    for image in store.all():
        blobs |= {image.digest, image.config.digest, *(layer.digest for layer in image.layers)}
        layers |= set(image.diff_ids)
    for diff_id, blob in store.steps():
        blobs.add(blob)
        layers.add(diff_id)
    return blobs, layers


def prune(store: Store, *, all: bool = False, parts: bool = False) -> Swept:
    """Forget images without a name (all: every image) that no sandbox uses, and the steps and caches of builds, and
    sweep. parts: interrupted downloads too, however young.
    """
    store.forget_steps()
    try:
        with _sweeping:
            freed = caches.prune(store.root)
    except OSError as error:
        raise from_os("remove caches of builds", error) from error
    with store.lock():
        gone = [one for one in store.all() if (all or not one.names) and not store.leases(one.digest)]
        gone = [one for one in gone if not store.is_busy(one.digest)]
        store.forget_images(one.digest for one in gone)
    swept = sweep(store, parts=parts)
    names = tuple(name for one in gone for name in one.names)
    images = tuple(one.digest for one in gone)
    return msgspec.structs.replace(swept, images=images, names=names, bytes=swept.bytes + freed)


def sweep(store: Store, *, parts: bool = False) -> Swept:
    """Remove content that no image names and nobody is about to name. Who comes while another sweeps waits."""
    with _sweeping:
        return _sweep(store, parts)


def _sweep(store: Store, parts: bool) -> Swept:
    blobs, size = 0, 0
    condemned = []
    try:
        with store.lock():
            wanted, layers = _needed(store)
            dead = [one for one in store.known_layers() if one not in layers and not store.is_busy(one)]
            sizes = {one: store.layer_size(one) for one in dead}
            store.forget_layers(dead)
            for path in store.layers.iterdir():
                diff_id = f"sha256:{path.name}"
                if path.name.startswith((".new-", ".unpack-")) and store.is_busy(UNPACKING):
                    continue
                if not store.has_layer(diff_id):
                    # Out of the way at once; removing its files takes a while and needs no lock.
                    if not path.name.startswith(".gone-"):
                        path.rename(target := path.with_name(f".gone-{path.name.lstrip('.')}"))
                        path = target
                    condemned.append(path)
            for path in store.blobs.iterdir():
                digits = path.name.removeprefix(".part-")
                if store.is_busy(f"sha256:{digits}"):
                    continue
                if path.name.startswith(".new-"):
                    keep = store.is_busy(INGESTING)
                elif path.name.startswith("."):
                    keep = not parts and time.time() - path.stat().st_mtime < PART_SECONDS
                else:
                    keep = f"sha256:{digits}" in wanted
                if not keep:
                    size += path.stat().st_blocks * 512
                    path.unlink()
                    blobs += 1
        for path in condemned:
            trees.remove(path)
        layers_merged.sweep(store)
    except OSError as error:
        raise from_os("remove unused images", error) from error
    return Swept(layers=tuple(dead), blobs=blobs, bytes=size + sum(sizes.values()))


def usage(store: Store) -> dict[str, int]:
    """Bytes: layers (unpacked), blobs, reclaimable (what `prune(all=True)` would free)."""
    images = store.all()
    used = {diff_id for one in images if store.leases(one.digest) for diff_id in one.diff_ids}
    kept = {layer.digest for one in images if store.leases(one.digest) for layer in one.layers}
    layers = store.known_layers()
    blobs = {path.name: path.stat().st_blocks * 512 for path in store.blobs.iterdir()}
    total = sum(layers.values()) + sum(blobs.values())
    held = sum(size for one, size in layers.items() if one in used)
    held += sum(size for name, size in blobs.items() if f"sha256:{name}" in kept)
    return {
        "images": len(images), "layers": sum(layers.values()), "blobs": sum(blobs.values()),
        "reclaimable": total - held,
    }  # fmt: skip


def verify(
    store: Store, images: list[StoredImage] | None = None, *, repair: bool = False, full: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Damage]:  # fmt: skip
    """Hash every blob again and see that every layer is there; → what is wrong. repair: forget images that are damaged,
    so that a pull makes them anew. full: compare every unpacked layer, too, with its archive, where that was kept.
    Reads everything: seconds a GiB.
    """
    chosen = store.all() if images is None else images
    found: dict[str, Damage] = {}
    owners: dict[str, set[str]] = {}
    broken: dict[str, StoredImage] = {}
    checked: dict[str, str] = {}
    for image in chosen:
        label = ", ".join(image.names) or image.digest[7:19]
        things = [("manifest", image.digest, True), ("config", image.config.digest, True)]
        things += [("blob", layer.digest, False) for layer in image.layers]
        for kind, digest, required in things:
            if digest not in checked:
                if progress is not None:
                    progress(digest)
                checked[digest] = _blob_problem(store, digest, required)
            if checked[digest]:
                owners.setdefault(digest, set()).add(label)
                found[digest] = Damage(f"{kind} {digest}", checked[digest])
                broken[image.digest] = image
        for diff_id, layer in zip(image.diff_ids, image.layers, strict=True):
            if diff_id not in checked:
                whole = full and not checked[layer.digest]
                checked[diff_id] = _layer_problem(store, diff_id, layer.digest if whole else "")
            if checked[diff_id]:
                owners.setdefault(diff_id, set()).add(label)
                found[diff_id] = Damage(f"layer {diff_id}", checked[diff_id])
                broken[image.digest] = image
    if repair and broken:
        _repair(store, found, broken)
    return [msgspec.structs.replace(one, images=tuple(sorted(owners[key]))) for key, one in found.items()]


def _repair(store: Store, found: dict[str, Damage], broken: dict[str, StoredImage]) -> None:
    with store.lock():
        for key in found:
            if not store.has_layer(key):
                with contextlib.suppress(OSError):
                    store.blob_path(key).unlink()
            elif not store.layer_path(key).is_dir():
                store.forget_layers([key])
        gone = [one for one in broken.values() if not store.leases(one.digest)]
        store.forget_images(one.digest for one in gone)
        used = {diff_id for one in store.all() for diff_id in one.diff_ids}
        for diff_id in {diff_id for one in gone for diff_id in one.diff_ids} & found.keys() - used:
            with contextlib.suppress(OSError):  # it differs: out of the way of the one that comes; a sweep removes it
                store.layer_path(diff_id).rename(store.layers / f".gone-{diff_id[7:]}")
            store.forget_layers([diff_id])
    with contextlib.suppress(OSError):  # what was merged of them; another sweep finds it, too
        layers_merged.sweep(store)


def _layer_problem(store: Store, diff_id: str, blob: str) -> str:
    if not store.has_layer(diff_id) or not store.layer_path(diff_id).is_dir():
        return "is not there"
    return compare.problem(store, diff_id, blob) if blob and store.has_blob(blob) else ""


def _blob_problem(store: Store, digest: str, required: bool) -> str:
    try:
        found = hash_file(store.blob_path(digest))
    except FileNotFoundError:
        return "is not there" if required else ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if found == digest else f"has digest {found}"


def hash_file(path: Path) -> str:
    """The digest of a file. Raises OSError."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
