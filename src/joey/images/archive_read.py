"""What lies in an archive of images, by name: a directory, or a tar archive in a file, perhaps compressed outside.

Names come from strangers: in a directory they are opened below it and through no link (openat2), in an archive they
are only looked up.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

from joey.host import sys as kernel
from joey.images import compression
from joey.model.errors import ImageError, from_os

_MOST_MEMBERS = 20_000
_MOST_LINKS = 8
_RESERVE = 512 << 20


class Folder:
    """A directory with files in it (OCI layout)."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os(f"open {path}", error) from error

    def open(self, name: str) -> BinaryIO:
        """A file. Raises ImageError naming it."""
        resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
        try:
            fd = kernel.openat2(self._fd, name, os.O_RDONLY | os.O_NONBLOCK, resolve=resolve)
        except OSError as error:
            raise ImageError(
                "archive", f"{name}: {os.strerror(error.errno or 0)}", "the layout is not whole"
            ) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError("archive", f"{name} is not a regular file")
        return open(fd, "rb")

    def has(self, name: str) -> bool:
        try:
            self.open(name).close()
        except ImageError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Archive(Folder):
    """A tar archive in a seekable file without compression."""

    def __init__(self, file: BinaryIO, owned: Sequence[BinaryIO] = ()) -> None:
        """owned: what is closed with it, or at once if this raises."""
        self._owned = owned
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(fileobj=file, mode="r:")
            for number, member in enumerate(self._tar):
                if number >= _MOST_MEMBERS:
                    raise ImageError("archive", f"has more than {_MOST_MEMBERS} members: this is no archive of images")
                self._members[_plain(member.name)] = member
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise ImageError("archive", f"is no archive of images: {error}") from error

    def open(self, name: str) -> BinaryIO:
        """A file; links among members are followed, as old docker save made them for layers that come twice."""
        member = self._members.get(_plain(name))
        for _ in range(_MOST_LINKS):
            if member is None or not (member.issym() or member.islnk()):
                break
            base = PurePosixPath(_plain(member.name)).parent if member.issym() else PurePosixPath()
            member = self._members.get(_plain(os.path.normpath(base / member.linkname)))
        if member is None or not member.isreg():
            raise ImageError("archive", f"there is no file {name} in it", "the archive is not whole")
        file: Any = self._tar.extractfile(member)
        return io.BufferedReader(_Exact(file, member.size, name), 1 << 18)

    def close(self) -> None:
        self._tar.close()
        for file in self._owned:
            file.close()


class _Exact(io.RawIOBase):
    """A member that says so when the archive ends before it does."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file, self._left, self._name = file, size, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except tarfile.TarError as error:
            raise ImageError("archive", f"{self._name}: {error}") from error
        if len(data) < min(len(buffer), self._left):
            raise ImageError("archive", f"ends in the middle of {self._name}", "get it again")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/").rstrip("/")


def open_archive(source: Path | BinaryIO, scratch: Path) -> Folder:
    """Whatever it is. scratch: a directory for a copy of what is compressed or cannot be searched. The caller closes.

    Raises ImageError, HostFailed and its kin.
    """
    owned: list[BinaryIO] = []
    try:
        if isinstance(source, Path):
            if source.is_dir():
                return Folder(source)
            source = open(source, "rb")
            owned.append(source)
        if source.seekable():
            head = source.read(6)
            source.seek(0)
            if compression.kind(head) == "none":
                return Archive(source, owned)
        owned.append(copy := tempfile.TemporaryFile(dir=scratch))
        _copy(source, copy, scratch)
        return Archive(copy, owned)
    except BaseException as error:
        for file in owned:
            file.close()
        if isinstance(error, OSError):
            raise from_os("read the archive", error) from error
        raise


def _copy(source: BinaryIO, copy: BinaryIO, scratch: Path) -> None:
    free = shutil.disk_usage(scratch).free
    for piece in compression.expand(source):
        free -= len(piece)
        if free < _RESERVE:
            raise ImageError("archive", "the disk is too full for it", "free space")
        copy.write(piece)
    copy.seek(0)
