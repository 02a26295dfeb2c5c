"""The images of an instance: content by digest, unpacked layers by diff id, and an index of what belongs together.

    images.db                 the index (joey.images.store_schema)
    blobs/sha256/HEX          manifests, configurations, compressed layers, as they were served
    blobs/sha256/.part-HEX    one that is being fetched; a later pull goes on where it ends
    layers/HEX                an unpacked layer, by its diff id
    layers/.new-…             one that is being unpacked

What has its final name is whole: it was verified, synced and renamed. The index names only what has its final name, so
whatever moment the engine ends at, an image is there entirely or not at all. What the index does not name is removed
by `sweep`. Everything may be called from several threads; calls block for a disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from joey.host import trees
from joey.images import index, reference
from joey.images.index import Descriptor
from joey.images.store_schema import explain, open_database
from joey.model.errors import Conflict, ImageError, Invalid, from_os

_PIECE = 1 << 20
INGESTING = "ingesting"
"""Held busy by whoever writes a blob whose digest is not known yet."""
UNPACKING = "unpacking"
"""Held busy by whoever makes directories in layers/ that have no final name yet."""
_DESCRIPTORS = msgspec.json.Decoder(tuple[Descriptor, ...])
_SELECT = "SELECT digest, media_type, config, layers, diff_ids, platform, created, added, source FROM images"


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is here. digest: its manifest's, which is its id. added: seconds since the epoch. source: the
    repository it was pulled from, or a word for another origin.

    names: references that lead to it. created: as its configuration says. size: bytes of its unpacked layers.
    """

    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    platform: str
    created: str
    added: float
    source: str = ""
    names: tuple[str, ...] = ()
    size: int = 0


class Store:
    """The content store below a directory. Raises what joey.model.errors.from_os gives for a disk that fails."""

    def __init__(self, root: Path) -> None:
        """Open it, made if need be. Raises Broken, Exhausted naming the file."""
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.layers = root / "layers"
        try:
            for path in (self.blobs, self.layers):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise from_os("make the image store", error) from error
        self._path = root / "images.db"
        self._db = open_database(self._path)
        self._lock = threading.RLock()
        self._busy: Counter[str] = Counter()
        self._known = {row[0] for row in self._db.execute("SELECT digest FROM images")}
        self._layers = {row[0]: row[1] for row in self._db.execute("SELECT diff_id, size FROM layers")}

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise explain(self._path, error) from error

    # --- blobs -------------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be. Raises Invalid for what is no digest of sha256."""
        reference.check_digest(digest)
        kind, _, digits = digest.partition(":")
        if kind != "sha256":
            raise Invalid("digest", f"{digest} is not of sha256, the only kind this store keeps")
        return self.blobs / digits

    def part_path(self, digest: str) -> Path:
        path = self.blob_path(digest)
        return path.with_name(f".part-{path.name}")

    def has_blob(self, digest: str) -> bool:
        return self.blob_path(digest).exists()

    def read_blob(self, digest: str, limit: int = index.MAX_CONFIG) -> bytes:
        """A small blob, verified. Raises ImageError: not there, larger than `limit`, damaged."""
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            raise ImageError(f"blob {digest[7:19]}", "is not here", "joey image verify, or pull again") from None
        except OSError as error:
            raise from_os(f"read blob {digest[7:19]}", error) from error
        if len(data) > limit or index.digest_of(data) != digest:
            raise ImageError(f"blob {digest[7:19]}", "is damaged", "joey image verify --repair, then pull again")
        return data

    def ingest(self, source: bytes | BinaryIO, expected: str | None = None, media_type: str = "") -> Descriptor:
        """Store a blob; → its descriptor. Raises ImageError if it does not have the digest `expected`."""
        with self.busy(INGESTING):
            return self._ingest(source, expected, media_type)

    def _ingest(self, source: bytes | BinaryIO, expected: str | None, media_type: str) -> Descriptor:
        temporary = self.blobs / f".new-{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                digest, size = hashlib.sha256(), 0
                for piece in (source,) if isinstance(source, bytes) else iter(lambda: source.read(_PIECE), b""):
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
                found = f"sha256:{digest.hexdigest()}"
                if expected is not None and found != expected:
                    raise ImageError(f"blob {expected[7:19]}", f"what was given has digest {found}")
                file.flush()
                os.fsync(file.fileno())
            self.commit_blob(temporary, found)
        except OSError as error:
            raise from_os("store a blob", error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return Descriptor(media_type, found, size)

    def commit_blob(self, path: Path, digest: str) -> None:
        """Give a verified and synced file its final name. Raises OSError."""
        os.rename(path, self.blob_path(digest))
        trees.sync(self.blobs)

    # --- layers ------------------------------------------------------------------------------------------------------

    def layer_path(self, diff_id: str) -> Path:
        """Where an unpacked layer is, or would be."""
        kind, _, digits = reference.check_digest(diff_id).partition(":")
        if kind != "sha256":
            raise Invalid("diff id", f"{diff_id} is not of sha256, the only kind this store keeps")
        return self.layers / digits

    def has_layer(self, diff_id: str) -> bool:
        return diff_id in self._layers

    def layer_size(self, diff_id: str) -> int:
        return self._layers.get(diff_id, 0)

    def new_directory(self) -> Path:
        """A name in layers/ that is not taken; what is left there is swept."""
        return self.layers / f".new-{secrets.token_hex(8)}"

    def adopt_layer(self, directory: Path, diff_id: str, size: int, entries: int) -> Path:
        """Make an unpacked, synced tree the layer of `diff_id`; of two, the first stays. → its path."""
        target = self.layer_path(diff_id)
        with self._lock:
            try:
                if diff_id in self._layers:
                    trees.remove(directory)
                    return target
                if target.exists():  # the engine ended before the index was told
                    trees.remove(target)
                os.rename(directory, target)
                trees.sync(self.layers)
            except OSError as error:
                raise from_os(f"keep layer {diff_id[7:19]}", error) from error
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)", (diff_id, size, entries, time.time()))
            self._layers[diff_id] = size
        return target

    # --- images ------------------------------------------------------------------------------------------------------

    def put_image(
        self, names: Iterable[str], manifest: bytes, media_type: str, *, top: str = "", source: str = ""
    ) -> StoredImage:
        """Enter an image whose configuration and layers are here. names: canonical references, which from now on lead
        to it. top: digest of the index it came from. Raises ImageError naming what is missing.
        """
        digest = index.digest_of(manifest)
        parsed = index.parse(manifest, media_type, digest[7:19])
        if not isinstance(parsed, index.Manifest):
            raise ImageError(f"image {digest[7:19]}", "an index is no image")
        config = index.parse_config(self.read_blob(parsed.config.digest), parsed, digest[7:19])
        for diff_id in config.diff_ids:
            if not self.has_layer(diff_id):
                raise ImageError(f"image {digest[7:19]}", f"its layer {diff_id[7:19]} is not here")
        if not self.has_blob(digest):
            self.ingest(manifest, digest, media_type)
        encode = msgspec.json.encode
        row = (
            digest, parsed.media_type, encode(parsed.config).decode(), encode(parsed.layers).decode(),
            encode(config.diff_ids).decode(), str(config.platform), config.created, time.time(), source,
        )  # fmt: skip
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            for name in names:
                db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (name, digest, top or digest))
        with self._lock:
            self._known.add(digest)
        found = self._one("digest = ?", digest)
        assert found is not None
        return found

    def all(self) -> list[StoredImage]:
        """Every image, the newest first."""
        return self._images("ORDER BY added DESC, digest")

    def find(self, ref: str) -> StoredImage:
        """The image of a name, a digest, or a unique beginning of a digest (of manifest or config, 4 digits or more).
        Raises ImageError, Conflict (several), Invalid (no name).
        """
        digits = ref.removeprefix("sha256:")
        if "@" not in ref and 4 <= len(digits) <= 64 and not set(digits) - set("0123456789abcdef"):
            named = self._named(ref) if len(digits) < 64 and digits == ref else None
            if named is not None:
                return named
            found = self._images("WHERE digest LIKE ?1 OR config LIKE ?2", f"sha256:{digits}%", f'%"sha256:{digits}%')
            if len({one.config.digest for one in found}) == 1:  # saved and loaded: the same layers, packed anew
                found.sort(key=lambda one: (bool(one.names), one.added))
                del found[:-1]
            if len(found) > 1:
                raise Conflict("image", f"{ref!r} is the beginning of {len(found)} ids", "give more of it")
            if found:
                return found[0]
            if ref.startswith("sha256:") or len(digits) == 64:
                raise ImageError("image", f"no image has the id {ref}", "joey image ls")
        named = self._named(ref)
        if named is None:
            raise ImageError("image", f"{ref!r} is not here", f"joey pull {ref}")
        return named

    def _named(self, ref: str) -> StoredImage | None:
        name = reference.parse(ref)
        if name.digest:
            found = self._one("digest = (SELECT image FROM names WHERE name = ?)", str(name))
            if found is None:
                of = f"{name.repository}%"
                row = "SELECT image FROM names WHERE (top = ? OR image = ?) AND name LIKE ?"
                found = self._one(f"digest = ({row} LIMIT 1)", name.digest, name.digest, of)
            return found
        return self._one("digest = (SELECT image FROM names WHERE name = ?)", str(name))

    def top(self, name: str) -> str:
        """The digest that the registry gave the reference `name` (canonical), "" if it is not here."""
        with self._lock:
            row = self._db.execute("SELECT top FROM names WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def tops(self) -> dict[str, str]:
        """Reference -> digest of the registry, for all."""
        with self._lock:
            return dict(self._db.execute("SELECT name, top FROM names"))

    def _one(self, where: str, *values: str) -> StoredImage | None:
        found = self._images(f"WHERE {where}", *values)
        return found[0] if found else None

    def _images(self, clause: str, *values: str) -> list[StoredImage]:
        with self._lock:
            try:
                rows = self._db.execute(f"{_SELECT} {clause}", values).fetchall()
                names: dict[str, list[str]] = {}
                for name, image in self._db.execute("SELECT name, image FROM names ORDER BY name"):
                    names.setdefault(image, []).append(name)
            except sqlite3.Error as error:
                raise explain(self._path, error) from error
        return [self._image(row, tuple(names.get(row[0], ()))) for row in rows]

    def _image(self, row: Sequence[str], names: tuple[str, ...]) -> StoredImage:
        diff_ids = msgspec.json.decode(row[4], type=tuple[str, ...])
        return StoredImage(
            digest=row[0], media_type=row[1], config=msgspec.json.decode(row[2], type=Descriptor),
            layers=_DESCRIPTORS.decode(row[3]), diff_ids=diff_ids, platform=row[5], created=row[6],
            added=float(row[7]), source=row[8], names=names, size=sum(map(self.layer_size, set(diff_ids))),
        )  # fmt: skip

    def tag(self, ref: str, name: str) -> str:
        """Another name for an image; → the name in full. Raises as `find`, and Invalid for a name with a digest."""
        new = reference.parse(name, "name")
        if new.digest:
            raise Invalid("name", f"{name!r} has a digest, which cannot be chosen", "a name and a tag")
        image = self.find(ref)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (str(new), image.digest, image.digest))
        return str(new)

    def remove(self, ref: str, *, force: bool = False) -> tuple[list[str], list[str]]:
        """Remove a name, or with an id an image and all its names; → (names removed, images removed).

        The image goes with its last name. Raises Conflict if a sandbox uses it (force takes the name all the same, and
        the content stays until the sandbox is gone) or an id has several names.
        """
        image = self.find(ref)
        by_id = not reference.is_name(ref) or str(reference.parse(ref)) not in image.names
        names = list(image.names) if by_id else [str(reference.parse(ref))]
        if by_id and len(names) > 1 and not force:
            raise Conflict("image", f"{ref} has the names {', '.join(names)}", "remove them by name, or use --force")
        last = len(names) == len(image.names)
        users = self.leases(image.digest)
        if last and users and not force:
            who = ", ".join(sorted(user.removeprefix("sandbox:")[:12] for user in users)[:5])
            raise Conflict("image", f"{ref} is used by {len(users)} sandboxes ({who})", "joey rm them, or use --force")
        with self._transaction() as db:
            gone = last and not users and not self.is_busy(image.digest)
            for name in names:
                db.execute("DELETE FROM names WHERE name = ?", (name,))
            if gone:
                db.execute("DELETE FROM images WHERE digest = ?", (image.digest,))
                self._known.discard(image.digest)
        return names, [image.digest] if gone else []

    # --- who needs what ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def busy(self, *digests: str) -> Iterator[None]:
        """Inside the block nothing of these (blobs and diff ids) is swept."""
        with self._lock:
            self._busy.update(digests)
        try:
            yield
        finally:
            with self._lock:
                self._busy.subtract(digests)
                self._busy += Counter()

    def hold(self, digest: str) -> bool:
        """As `busy` for an image, until `let_go`. False if it is not here (any more). Costs a microsecond."""
        with self._lock:
            if digest in self._known:
                self._busy[digest] += 1
                return True
            return False

    def let_go(self, digest: str) -> None:
        """Once for each `hold`."""
        with self._lock:
            self._busy[digest] -= 1

    def is_busy(self, digest: str) -> bool:
        return self._busy[digest] > 0

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """Nobody else changes the store inside the block."""
        return self._lock

    def lease(self, owner: str, digest: str) -> None:
        """`owner` needs the image of manifest `digest` until it is released."""
        self.write_leases({owner: digest})

    def release(self, owner: str) -> None:
        """All that `owner` needed; nothing if there is none."""
        self.write_leases({owner: None})

    def write_leases(self, leases: Mapping[str, str | None]) -> None:
        """owner -> digest of what it needs now, None for nothing."""
        with self._transaction() as db:
            db.executemany("DELETE FROM leases WHERE owner = ?", [(owner,) for owner in leases])
            db.executemany("INSERT INTO leases VALUES (?, ?)", [pair for pair in leases.items() if pair[1] is not None])

    def leased(self, owner: str) -> str | None:
        """The image `owner` has a lease of."""
        with self._lock:
            row = self._db.execute("SELECT image FROM leases WHERE owner = ?", (owner,)).fetchone()
        return row[0] if row else None

    def leases(self, digest: str) -> list[str]:
        """Who needs an image."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT owner FROM leases WHERE image = ?", (digest,))]

    def reconcile(self, owners: Iterable[str]) -> None:
        """Release everybody who is not in `owners`: those whose end nobody saw."""
        alive = set(owners)
        with self._transaction() as db:
            known = [row[0] for row in db.execute("SELECT DISTINCT owner FROM leases")]
            db.executemany("DELETE FROM leases WHERE owner = ?", [(one,) for one in known if one not in alive])

    def free_space(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.root).free

    # --- steps of builds ---------------------------------------------------------------------------------------------

    def keep_step(self, key: str, diff_id: str, blob: Descriptor | None, when: float) -> None:
        """Remember which layer a build's step made at `when` (seconds); "" and None: it changed no file."""
        row = (key, diff_id, msgspec.json.encode(blob).decode() if blob else "", when)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)", row)

    def step(self, key: str) -> tuple[str, Descriptor | None, float] | None:
        """(diff id, blob, when in seconds) of a step that was done before and whose layer is still here."""
        with self._lock:
            row = self._db.execute("SELECT diff_id, blob, added FROM steps WHERE key = ?", (key,)).fetchone()
            if row is None or (row[0] and row[0] not in self._layers):
                return None
        blob = msgspec.json.decode(row[1], type=Descriptor) if row[1] else None
        return (row[0], blob, row[2]) if blob is None or self.has_blob(blob.digest) else None

    def steps(self) -> list[tuple[str, str]]:
        """(diff id, digest of the blob) of every step that is remembered."""
        with self._lock:
            rows = self._db.execute("SELECT diff_id, blob FROM steps WHERE diff_id != ''").fetchall()
        return [(row[0], msgspec.json.decode(row[1], type=Descriptor).digest) for row in rows]

    def forget_steps(self) -> None:
        """All of them; what only they needed goes with the next sweep."""
        with self._transaction() as db:
            db.execute("DELETE FROM steps")

    # --- for store_gc ------------------------------------------------------------------------------------------------

    def forget_images(self, digests: Iterable[str]) -> None:
        """Images without names and leases are forgotten; their content goes with the next sweep."""
        with self._transaction() as db:
            rows = [(digest,) for digest in digests]
            db.executemany("DELETE FROM names WHERE image = ?", rows)
            db.executemany("DELETE FROM images WHERE digest = ?", rows)
            self._known.difference_update(row[0] for row in rows)

    def forget_layers(self, diff_ids: Iterable[str]) -> None:
        gone = list(diff_ids)
        with self._transaction() as db:
            db.executemany("DELETE FROM layers WHERE diff_id = ?", [(one,) for one in gone])
        for one in gone:
            self._layers.pop(one, None)

    def known_layers(self) -> dict[str, int]:
        """diff id -> bytes."""
        return dict(self._layers)
