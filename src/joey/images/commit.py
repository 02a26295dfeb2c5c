"""Archives that were made here become layers of the store: a sandbox's upper directory (commit, snapshot, a RUN of a
build) and what a COPY writes.

The archive is read once: on its way into the jailed program that unpacks it, it is hashed and compressed. Blocks: to be
called in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from joey.images import compression, pack
from joey.images.index import OCI_LAYERS, Descriptor
from joey.images.store import INGESTING, UNPACKING, Store
from joey.images.unpack import unpack
from joey.model.errors import from_os

_LEVEL = 4
Hold = Callable[..., object]


class MadeLayer(msgspec.Struct, frozen=True):
    """A layer of the store. diff_id: of its archive. blob: as registries get it. entries: members of the archive, the
    root not counted.
    """

    diff_id: str
    blob: Descriptor
    entries: int
    size: int


def upper_layer(store: Store, upper: Path | int, *, hold: Hold, shift: int, epoch: int | None = None) -> MadeLayer:
    """What a sandbox has changed as a layer. upper: its overlay's upper directory, a path or a descriptor. shift: the
    base of its ids. epoch: no time is later (SOURCE_DATE_EPOCH). Raises ImageError, HostFailed and its kin.
    """
    pieces = pack.pack(upper, pack.Options(shift=shift, epoch=epoch, overlay=True))
    return archive_layer(store, pieces, hold=hold)


def archive_layer(store: Store, pieces: Iterator[bytes], *, hold: Hold) -> MadeLayer:
    """The layer of an archive without compression. hold: called with diff id and blob's digest before they are where a
    sweep could take them for garbage (Store.busy, for as long as no image names them). Raises as `unpack`.
    """
    with store.busy(INGESTING, UNPACKING):
        temporary = store.blobs / f".new-{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                tee = _Tee(pieces, file)
                directory = store.new_directory()
                done = unpack(cast(BinaryIO, tee), directory)
                digest, size = tee.finish()
                os.fsync(file.fileno())
            hold(done.diff_id, digest)
            store.adopt_layer(directory, done.diff_id, done.size, done.entries)
            store.commit_blob(temporary, digest)
        except OSError as error:
            raise from_os("store a layer", error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return MadeLayer(done.diff_id, Descriptor(OCI_LAYERS["gzip"], digest, size), done.entries, done.size)


class _Tee:
    """Reads the pieces, and writes them compressed to a file on the way."""

    def __init__(self, pieces: Iterator[bytes], file: BinaryIO) -> None:
        self._pieces, self._file, self._rest = pieces, file, b""
        self._digest, self._size = hashlib.sha256(), 0
        self._compressor = compression.Compressor("gzip", _LEVEL)

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
            self._put(self._compressor.add(piece))
        if 0 <= size < len(self._rest):
            data, self._rest = self._rest[:size], self._rest[size:]
        else:
            data, self._rest = self._rest, b""
        return data

    def finish(self) -> tuple[str, int]:
        """Whatever the reader has left, then the digest and size of what was written."""
        while self.read():
            pass
        self._put(self._compressor.end())
        self._file.flush()
        return f"sha256:{self._digest.hexdigest()}", self._size

    def _put(self, data: bytes) -> None:
        if data:
            self._digest.update(data)
            self._size += len(data)
            self._file.write(data)
