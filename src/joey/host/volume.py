"""The directory of a volume, and how its size is bounded: by a project quota where the file system has them, else by a
file system of its own in a file, with a journal, for it is to last.

    volumes/ID/volume.json    what it is; a directory without it is none
    volumes/ID/data/          its content, unless
    volumes/ID/image.ext4     it has a size, and there are no quotas: then that is mounted at MOUNTS/ID, data/ in it
    volumes/.new-…, .gone-…   one that is being made or removed: swept

Files in it belong to the ids 0 to 65535 that sandboxes see them with (id-mapped mounts). Calls block.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from joey.host import loop, quota, storage, trees
from joey.host import sys as kernel
from joey.model.errors import Unenforceable, from_os

SMALLEST = 16 << 20
"""Bytes; below that a file system with a journal has little room for anything else."""
_JSON = "volume.json"


class VolumeDirs:
    """Those of one instance."""

    def __init__(self, root: Path, mounts: Path) -> None:
        self.root, self._mounts = root, mounts
        self._templates = root / ".templates"

    def prepare(self) -> dict[str, bytes]:
        """Make the place, remove what is half made or half removed; → ID → its volume.json. Raises HostFailed …"""
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)
            for name in os.listdir(self.root):
                if name.startswith((".new-", ".gone-")):
                    trees.remove(self.root / name)
            found = {}
            for name in os.listdir(self.root):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found[name] = (self.root / name / _JSON).read_bytes()
            return found
        except OSError as error:
            raise from_os("look for volumes", error) from error

    def make(self, id: str, size: int | None, about: bytes) -> None:
        """Raises Unenforceable naming `size`, HostFailed and its kin; nothing is left then."""
        temporary = self.root / f".new-{secrets.token_hex(8)}"
        try:
            temporary.mkdir(mode=0o700)
            if size is None or quota.enforced(self.root):
                (temporary / "data").mkdir()
                (temporary / "data").chmod(0o755)
                if size is not None:
                    quota.limit(temporary / "data", size)
            else:
                self._image(temporary / "image.ext4", size)
            self._write(temporary, about)
            os.rename(temporary, self.root / id)
            trees.sync(self.root)
        except OSError as error:
            raise from_os("make a volume", error) from error
        finally:
            with contextlib.suppress(OSError):
                trees.remove(temporary)

    def _image(self, path: Path, size: int) -> None:
        if size < SMALLEST:
            raise Unenforceable("size", f"{size} bytes are too small for a file system", f"at least {SMALLEST}")
        if not loop.supported():
            raise Unenforceable(
                "size",
                "the file system of the volumes has no project quotas, and there are no loop devices",
                "mount it with prjquota (ext4, xfs), or install e2fsprogs and the loop module, or give no size",
            )
        self._templates.mkdir(mode=0o700, exist_ok=True)
        loop.make_image(path, size // 4096 * 4096, self._templates, journal=True)

    def describe(self, id: str, about: bytes) -> None:
        """Write another volume.json, at once or not at all."""
        try:
            self._write(self.root / id, about)
        except OSError as error:
            raise from_os("write about a volume", error) from error

    def _write(self, directory: Path, about: bytes) -> None:
        temporary = directory / f"{_JSON}.new"
        with open(temporary, "wb") as file:
            file.write(about)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, directory / _JSON)
        trees.sync(directory)

    def data(self, id: str) -> Path:
        """The directory to mount; a file system in a file is mounted first. Raises HostFailed …"""
        image, place = self.root / id / "image.ext4", self._mounts / id
        try:
            if not image.exists():
                return self.root / id / "data"
            if not storage.is_mounted(place):
                self._mounts.mkdir(mode=0o700, exist_ok=True)
                tree = loop.mount_image(image, journal=True)
                kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, clear=kernel.MOUNT_ATTR_NOEXEC)
                storage.attach(tree, place)
            (place / "data").mkdir(mode=0o755, exist_ok=True)
            return place / "data"
        except OSError as error:
            raise from_os("mount a volume", error) from error

    def used(self, id: str) -> int | None:
        """Bytes, None where there are too many files to count."""
        place = self._mounts / id
        if storage.is_mounted(place):
            found = os.statvfs(place)
            return (found.f_blocks - found.f_bfree) * found.f_frsize
        if (self.root / id / "image.ext4").exists():
            return (self.root / id / "image.ext4").stat().st_blocks * 512
        return trees.disk_usage(self.root / id / "data")

    def remove(self, id: str) -> None:
        """Raises HostFailed and its kin."""
        gone = self.root / f".gone-{secrets.token_hex(8)}"
        try:
            storage.unmount(self._mounts / id)
            os.rename(self.root / id, gone)
            if (gone / "data").is_dir():
                with contextlib.suppress(OSError):
                    quota.forget(gone / "data")
            trees.remove(gone)
        except OSError as error:
            raise from_os("remove a volume", error) from error
