"""Images from files: `load` (docker-archive, OCI layout as a directory or an archive; found out by itself) and
`import_` (a root file system becomes an image). The way back is joey.images.archive_write.

Blocks: to be called in a thread. The store stays whole whatever is given: blobs are verified, layers unpacked by the
jailed program, and the index is told last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from joey.images import compression, index, oci, reference
from joey.images.archive_read import Folder, open_archive
from joey.images.index import Descriptor, Platform
from joey.images.store import UNPACKING, Store, StoredImage
from joey.images.unpack import NORMAL, Limits, unpack
from joey.model.errors import ImageError, Invalid
from joey.model.image import Image, Layer

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"


def load(
    store: Store,
    source: Path | BinaryIO,
    *,
    name: str = "",
    platform: Platform | None = None,
    limits: Limits = NORMAL,
) -> list[StoredImage]:
    """Every image of an archive, in its order.

    name: for an archive that holds one image and does not say how it is called. Raises ImageError naming what is
    wrong, Invalid for `name`, Exhausted and its kin.
    """
    platform = platform or index.platform_of(os.uname().machine)
    given = [str(reference.parse(name, "name"))] if name else []
    with open_archive(source, store.root) as archive:
        if archive.has("index.json") and archive.has("oci-layout"):
            found = _load_oci(store, archive, platform, limits)
        elif archive.has("manifest.json"):
            found = _load_docker(store, archive, limits)
        else:
            raise ImageError(
                "archive", "has neither an index.json (OCI) nor a manifest.json (Docker): it holds no image",
                "joey image import reads a root file system",
            )  # fmt: skip
    if given and len(found) != 1:
        raise Invalid("name", f"the archive holds {len(found)} images, which have names of their own")
    for image in found if given else ():
        store.tag(image.digest, given[0])
    return [store.find(image.digest) for image in found]


def _json(archive: Folder, name: str) -> Any:
    with archive.open(name) as file:
        data = file.read(index.MAX_CONFIG + 1)
    if len(data) > index.MAX_CONFIG:
        raise ImageError("archive", f"{name} is larger than {index.MAX_CONFIG} bytes")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ImageError("archive", f"{name} is no JSON: {error}") from error


# --- OCI -------------------------------------------------------------------------------------------------------------


def _blob(archive: Folder, one: Descriptor) -> BinaryIO:
    kind, _, digits = reference.check_digest(one.digest).partition(":")
    return archive.open(f"blobs/{kind}/{digits}")


def _small(archive: Folder, one: Descriptor) -> bytes:
    with _blob(archive, one) as file:
        data = file.read(index.MAX_CONFIG + 1)
    if index.digest_of(data) != one.digest:
        raise ImageError(f"blob {one.short}", "its content has another digest", "the archive is damaged")
    return data


def _load_oci(store: Store, archive: Folder, platform: Platform, limits: Limits) -> list[StoredImage]:
    top = _json(archive, "index.json")
    entries = top.get("manifests") if isinstance(top, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ImageError("archive", "its index.json names no manifests")
    docker = _docker_names(archive)
    images = []
    for number, entry in enumerate(entries):
        one = index.descriptor(entry, f"archive manifests[{number}]")
        if one.media_type not in (*index.MANIFESTS, *index.INDEXES):
            continue
        manifest, kind = _manifest(archive, one, platform)
        parsed = index.parse(manifest, kind, one.short)
        assert isinstance(parsed, index.Manifest)
        config = _small(archive, parsed.config)
        names = _oci_names(entry.get("annotations")) or docker.get(parsed.config.digest, [])
        images.append(_enter(store, archive, names, manifest, kind, config, parsed, limits))
    if not images:
        raise ImageError("archive", "holds artifacts, but no image to run")
    return images


def _manifest(archive: Folder, one: Descriptor, platform: Platform) -> tuple[bytes, str]:
    """Through indexes to the manifest for the platform."""
    for _ in range(3):
        data = _small(archive, one)
        found = index.parse(data, one.media_type, one.short)
        if isinstance(found, index.Manifest):
            return data, found.media_type
        one = index.choose(found, platform, one.short)
    raise ImageError("archive", "its indexes are nested too deep")


def _oci_names(annotations: Any) -> list[str]:
    """What a manifest is called: in full, or as a reference; a mere tag is no name."""
    annotations = annotations if isinstance(annotations, dict) else {}
    for key in (FULL_NAME, REF_NAME):
        text = annotations.get(key)
        if isinstance(text, str) and (key == FULL_NAME or ":" in text or "/" in text):
            try:
                return [str(reference.parse(text))]
            except Invalid:
                continue
    return []


def _docker_names(archive: Folder) -> dict[str, list[str]]:
    """Config's digest → names, from the manifest.json that docker save adds to a layout."""
    if not archive.has("manifest.json"):
        return {}
    found = {}
    for entry in _entries(archive):
        found["sha256:" + entry["Config"].rpartition("/")[2].removesuffix(".json")] = _tags(entry)
    return found


def _enter(
    store: Store, archive: Folder, names: Sequence[str], manifest: bytes, kind: str, config: bytes,
    parsed: index.Manifest, limits: Limits,
) -> StoredImage:  # fmt: skip
    wanted = index.parse_config(config, parsed, parsed.config.short)
    held = (index.digest_of(manifest), parsed.config.digest, *(one.digest for one in parsed.layers), *wanted.diff_ids)
    with store.busy(*held, UNPACKING):
        store.ingest(config, parsed.config.digest)
        for one, diff_id in zip(parsed.layers, wanted.diff_ids, strict=True):
            if not store.has_blob(one.digest):
                with _blob(archive, one) as file:
                    store.ingest(file, one.digest)
            _layer(store, one.digest, diff_id, limits)
        return store.put_image(names, manifest, kind, source="load")


def _layer(store: Store, digest: str, diff_id: str, limits: Limits) -> str:
    """Have the layer of a blob that is here; → its diff id, which may not be known before."""
    if diff_id and store.has_layer(diff_id):
        return diff_id
    directory = store.new_directory()
    with open(store.blob_path(digest), "rb") as file:
        done = unpack(file, directory, limits=limits, diff_id=diff_id)
    store.adopt_layer(directory, done.diff_id, done.size, done.entries)
    return done.diff_id


# --- docker-archive --------------------------------------------------------------------------------------------------


def _entries(archive: Folder) -> list[dict[str, Any]]:
    found = _json(archive, "manifest.json")
    if not isinstance(found, list) or not found:
        raise ImageError("archive", "its manifest.json names no image")
    for entry in found:
        layers = entry.get("Layers") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str) or not isinstance(layers, list):
            raise ImageError("archive", "its manifest.json lacks Config or Layers")
        if not all(isinstance(layer, str) for layer in layers):
            raise ImageError("archive", "its manifest.json has layers that are no names")
    return found


def _tags(entry: dict[str, Any]) -> list[str]:
    names = []
    for text in entry.get("RepoTags") or ():
        try:
            names.append(str(reference.parse(text)))
        except (Invalid, TypeError, AttributeError):
            raise ImageError("archive", f"its manifest.json names an image {text!r}, which is no name") from None
    return names


def _load_docker(store: Store, archive: Folder, limits: Limits) -> list[StoredImage]:
    images = []
    for entry in _entries(archive):
        with archive.open(entry["Config"]) as file:
            config = file.read(index.MAX_CONFIG + 1)
        parts = []
        with store.busy(UNPACKING):
            for name in entry["Layers"]:
                with archive.open(name) as file:
                    head = compression.read_some(file, 6)[:6]
                with archive.open(name) as file:
                    blob = store.ingest(file)
                parts.append(Descriptor(index.DOCKER_LAYERS[compression.kind(head)], blob.digest, blob.size))
            manifest = oci.manifest(oci.describe(config, index.DOCKER_CONFIG), parts, docker=True)
            parsed = index.parse(manifest, index.DOCKER_MANIFEST, entry["Config"][:12])
            assert isinstance(parsed, index.Manifest)
            wanted = index.parse_config(config, parsed, parsed.config.short)
            with store.busy(parsed.config.digest, *(one.digest for one in parts), *wanted.diff_ids):
                store.ingest(config, parsed.config.digest)
                for one, diff_id in zip(parts, wanted.diff_ids, strict=True):
                    _layer(store, one.digest, diff_id, limits)
                images.append(store.put_image(_tags(entry), manifest, index.DOCKER_MANIFEST, source="load"))
    return images


# --- a root file system ----------------------------------------------------------------------------------------------


def import_(
    store: Store,
    stream: BinaryIO,
    name: str,
    *,
    settings: Image | None = None,
    platform: Platform | None = None,
    created: str = "1970-01-01T00:00:00Z",
    comment: str = "imported",
    limits: Limits = NORMAL,
) -> StoredImage:
    """An image of one layer, the archive `stream` as it is (compressed or not).

    settings: what its configuration says (env, argv, …); layers and name of it do not count. Raises as `load`.
    """
    full = str(reference.parse(name, "name"))
    platform = platform or index.platform_of(os.uname().machine)
    with store.busy(UNPACKING):
        blob = store.ingest(stream)
        with store.busy(blob.digest):
            with open(store.blob_path(blob.digest), "rb") as file:
                kind = compression.kind(file.read(6))
            diff_id = _layer(store, blob.digest, "", limits)
            with store.busy(diff_id):
                layer = Descriptor(index.OCI_LAYERS[kind], blob.digest, blob.size)
                steps = (oci.Step(created=created, created_by="joey image import", comment=comment),)
                like = settings or Image(name=name, layers=(Layer(diff_id, "/"),))
                return put(store, [full], like, [(diff_id, layer)], platform, created, steps)


def put(
    store: Store, names: Sequence[str], settings: Image, layers: Sequence[tuple[str, Descriptor]], platform: Platform,
    created: str, steps: Sequence[oci.Step], author: str = "", source: str = "local",
    built: Mapping[str, Any] | None = None,
) -> StoredImage:  # fmt: skip
    """Enter an image of layers that are here: what import, commit and build end with.

    layers: (diff id, descriptor of its blob), lowest first. built: see `oci.config`.
    """
    diff_ids = [diff_id for diff_id, _ in layers]
    config = oci.config(settings, diff_ids, platform, created=created, history=steps, author=author, built=built)
    described = oci.describe(config, index.OCI_CONFIG)
    manifest = oci.manifest(described, [blob for _, blob in layers])
    with store.busy(described.digest, index.digest_of(manifest)):
        store.ingest(config, described.digest)
        full = [str(reference.parse(name, "name")) for name in names]
        return store.put_image(full, manifest, index.OCI_MANIFEST, source=source)
