"""Images into files: docker-archive (for `docker load` and everything else), OCI layout as an archive or a directory.
Blocks: to be called in a thread, piece by piece.

What is written is what was pulled: the manifests and configurations byte for byte, so digests stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from joey.images import compression, index, reference
from joey.images.archive import FULL_NAME, REF_NAME
from joey.images.pack import header
from joey.images.store import Store, StoredImage
from joey.model.errors import ImageError, Invalid, from_os

Format = Literal["docker", "oci"]
FORMATS: tuple[Format, ...] = ("docker", "oci")
_PIECE = 1 << 20


def save(store: Store, refs: Sequence[str], how: Format = "docker") -> Iterator[bytes]:
    """The archive of the images `refs`, in pieces. Everything that can be refused is, before the first.

    Raises ImageError (not here, a blob of it is not here), Conflict, Invalid.
    """
    if not refs:
        raise Invalid("names", "name at least one image to save")
    images = [(ref, store.find(ref)) for ref in refs]
    for ref, image in images:
        for one in (image.config, *image.layers):
            if not store.has_blob(one.digest):
                raise ImageError(
                    "image", f"the compressed layer {one.short} of {ref} is no longer here", f"joey pull {ref}"
                )
    return _close(_docker(store, images) if how == "docker" else _oci(store, images))


def _close(members: Iterator[tuple[str, int, Iterator[bytes]]]) -> Iterator[bytes]:
    folders: set[str] = set()
    for name, size, content in members:
        for above in _above(name):
            if above not in folders:
                folders.add(above)
                yield header(above.encode() + b"/", b"5", 0o755, 0, 0, 0, 0, 0, b"", (0, 0), {})
        yield header(name.encode(), b"0", 0o644, 0, 0, size, 0, 0, b"", (0, 0), {})
        yield from content
        yield bytes(-size % 512)
    yield bytes(1024)


def _above(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(_PIECE):
            yield data


def _expanded(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from compression.expand(file)


def _text(name: str, value: object) -> tuple[str, int, Iterator[bytes]]:
    data = msgspec.json.encode(value)
    return name, len(data), iter((data,))


def _names(ref: str, image: StoredImage) -> list[str]:
    """The name it was asked for by, or all it has when it was an id."""
    try:
        full = str(reference.parse(ref))
    except Invalid:
        full = ""
    return [full] if full in image.names and "@" not in full else [name for name in image.names if "@" not in name]


# --- docker-archive --------------------------------------------------------------------------------------------------


def _docker(store: Store, images: Sequence[tuple[str, StoredImage]]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """manifest.json, configurations, and layers without compression, as every version of Docker reads them."""
    entries: dict[str, dict[str, object]] = {}
    written: set[str] = set()
    for ref, image in images:
        names = [reference.parse(name).familiar for name in _names(ref, image)]
        config = f"{image.config.digest[7:]}.json"
        layers = [f"{diff_id[7:]}.tar" for diff_id in image.diff_ids]
        entry = entries.setdefault(config, {"Config": config, "RepoTags": [], "Layers": layers})
        entry["RepoTags"] = list(dict.fromkeys([*entry["RepoTags"], *names]))  # type: ignore[misc]
        if config not in written:
            yield config, image.config.size, _read(store.blob_path(image.config.digest))
        for name, blob in zip(layers, image.layers, strict=True):
            if name not in written:
                path = store.blob_path(blob.digest)
                size = sum(len(piece) for piece in _expanded(path))  # the header comes first
                yield name, size, _expanded(path)
        written |= {config, *layers}
    yield _text("manifest.json", list(entries.values()))


# --- OCI -------------------------------------------------------------------------------------------------------------


def _index(images: Sequence[tuple[str, StoredImage]]) -> dict[str, object]:
    tags = [reference.parse(name).tag for ref, image in images for name in _names(ref, image)]
    entries: list[dict[str, object]] = []
    for ref, image in images:
        for name in _names(ref, image) or [""]:
            entry: dict[str, object] = {"mediaType": image.media_type, "digest": image.digest, "size": 0}
            if name:
                parsed = reference.parse(name)
                # Tools that look an image up go by the tag, unless that is ambiguous here.
                short = parsed.tag if tags.count(parsed.tag) == 1 else parsed.familiar
                entry["annotations"] = {FULL_NAME: name, REF_NAME: short}
            entries.append(entry)
    return {"schemaVersion": 2, "mediaType": index.OCI_INDEX, "manifests": entries}


def _oci(store: Store, images: Sequence[tuple[str, StoredImage]]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    yield _text("oci-layout", {"imageLayoutVersion": "1.0.0"})
    top = _index(images)
    sizes: dict[str, int] = {}
    for _, image in images:
        for digest in (image.digest, image.config.digest, *(one.digest for one in image.layers)):
            if digest not in sizes:
                path = store.blob_path(digest)
                sizes[digest] = path.stat().st_size
                yield f"blobs/sha256/{digest[7:]}", sizes[digest], _read(path)
    for entry in top["manifests"]:  # type: ignore[attr-defined]
        entry["size"] = sizes[entry["digest"]]
    yield _text("index.json", top)


def save_layout(store: Store, refs: Sequence[str], directory: Path) -> None:
    """An OCI layout in the new or empty directory `directory`. Raises as `save`, and Invalid naming `output`."""
    save(store, refs, "oci")  # what it refuses
    try:
        directory.mkdir(exist_ok=True)
        if any(directory.iterdir()):
            raise Invalid("output", f"{directory} is not empty")
        for name, _, content in _oci(store, [(ref, store.find(ref)) for ref in refs]):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.writelines(content)
    except OSError as error:
        raise from_os(f"write {directory}", error) from error


def write(pieces: Iterator[bytes], file: BinaryIO, how: compression.Kind = "none") -> int:
    """All pieces into a file, compressed; → bytes written. Raises HostFailed and its kin."""
    packer, total = compression.Compressor(how), 0
    try:
        for piece in pieces:
            total += file.write(packer.add(piece))
        return total + file.write(packer.end())
    except OSError as error:
        name = getattr(file, "name", "")
        raise from_os(f"write {os.fspath(name) if isinstance(name, str) else 'the archive'}", error) from error
