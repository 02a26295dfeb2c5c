"""A blob on its way into the store: written and hashed by threads, read by others as it grows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading

from joey.images.index import Descriptor
from joey.images.store import Store
from joey.model.errors import RegistryFailed, from_os

_PIECE = 1 << 20


class Interrupted(Exception):
    """Whoever wrote the blob has given up; its readers stop."""


class Growing:
    """The file of a blob that is being fetched. What an earlier engine left is gone on with.

    `write` and `open` block; readers may be in any thread.
    """

    def __init__(self, store: Store, blob: Descriptor) -> None:
        self.store, self.blob = store, blob
        self.path = store.part_path(blob.digest)
        self.have = 0
        self.resumed = 0
        self._fd = -1
        self._digest = hashlib.sha256()
        self._changed = threading.Condition()
        self._ended: BaseException | None = None

    def open(self) -> None:
        """Make the file, or hash what is there of it. Raises what from_os gives."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            there = os.fstat(self._fd).st_size
            if there > self.blob.size:
                os.ftruncate(self._fd, 0)
                there = 0
            while self.have < there:
                piece = os.pread(self._fd, _PIECE, self.have)
                if not piece:
                    break
                self._digest.update(piece)
                self._grow(len(piece))
            self.resumed = self.have
        except OSError as error:
            raise from_os(f"fetch blob {self.blob.short}", error) from error

    def write(self, piece: bytes) -> None:
        """Append. Raises what from_os gives; where the disk is full, what was fetched is given up."""
        view, at = memoryview(piece), self.have
        try:
            while view:
                count = os.pwrite(self._fd, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise from_os(f"write blob {self.blob.short}", error) from error
        self._digest.update(piece)
        self._grow(len(piece))

    def _grow(self, count: int) -> None:
        with self._changed:
            self.have += count
            self._changed.notify_all()

    def verify(self) -> None:
        """Raises RegistryFailed if it is not what its digest says; it is removed then."""
        found = f"sha256:{self._digest.hexdigest()}"
        if self.have != self.blob.size or found != self.blob.digest:
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise RegistryFailed(
                f"blob {self.blob.short}", f"what came has digest {found}, not {self.blob.digest}", "pull again"
            )

    def keep(self) -> None:
        """Give it its final name; it was verified and synced. Raises what from_os gives."""
        try:
            self.store.commit_blob(self.path, self.blob.digest)
        except OSError as error:
            raise from_os(f"keep blob {self.blob.short}", error) from error

    def drop(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def interrupt(self, error: BaseException) -> None:
        """Readers that want more than there is stop."""
        with self._changed:
            self._ended = error
            self._changed.notify_all()

    def close(self) -> None:
        self.interrupt(Interrupted())
        with self._changed:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def read(self, at: int, size: int) -> bytes:
        """Bytes from `at`, as soon as there are any; none at the end. Raises Interrupted."""
        with self._changed:
            while self.have <= at < self.blob.size and self._ended is None:
                self._changed.wait()
            if self.have <= at < self.blob.size:
                raise Interrupted from self._ended
            fd = os.dup(self._fd) if self._fd >= 0 else -1
        if fd < 0:
            raise Interrupted
        try:
            return os.pread(fd, min(size, self.have - at), at)
        finally:
            os.close(fd)


class Follower:
    """A growing blob as a file object that is read to the end."""

    def __init__(self, growing: Growing) -> None:
        self._growing, self._at = growing, 0

    def read(self, size: int = -1) -> bytes:
        data = self._growing.read(self._at, size if 0 <= size else self._growing.blob.size)
        self._at += len(data)
        return data
