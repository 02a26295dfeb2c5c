"""Code as it comes: zips, tars, folders and inline text as a list of entries, and entries as a directory or a zip.

What comes is a stranger's. A path that leaves its root, goes through a link or is there twice is refused; so is a link
that leaves, anything that is neither file nor directory nor link, and more than fits (counted as it is unpacked, not as
the archive claims). Modes become 0644 and 0755, so that every instance can read what its own ids do not own.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tarfile import GNUTYPE_LONGLINK, GNUTYPE_LONGNAME, GNUTYPE_SPARSE, SOLARIS_XHDTYPE, XGLTYPE, XHDTYPE
from typing import IO, Literal, NamedTuple, NoReturn

from joey.model.errors import Invalid

MAX_ARCHIVE = 50 << 20
MAX_UNPACKED = 250 << 20
"""As of AWS Lambda."""
MAX_ENTRIES = 50_000
MAX_DEPTH = 100
"""Directories one in the other."""
_PIECE = 1 << 20
_LONGEST_LINK = 4096
_CENTRAL = b"PK\1\2"
"""How an entry of a zip's directory begins: all of it is read before the first file is."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those of which no more is unpacked at a time than is asked for (zipfile does that for no other one)."""
_IGNORED = frozenset((".git", "__pycache__", ".venv", ".mypy_cache", ".pytest_cache"))
"""Of a folder: what is made anew, or belongs to its author."""
_BEFORE = (XHDTYPE, XGLTYPE, SOLARIS_XHDTYPE, GNUTYPE_LONGNAME, GNUTYPE_LONGLINK)
_LONGEST_BEFORE = 1 << 20
_EPOCH = 315_532_800
"""1980-01-01, the first moment of a zip: every file is that old, so that the same code is the same bytes."""


class Entry(NamedTuple):
    """path: relative, with /. open: of a file. target: of a link."""

    path: str
    kind: Literal["file", "folder", "link"]
    executable: bool = False
    open: Callable[[], IO[bytes]] | None = None
    target: str = ""


def from_zip(source: bytes | Path) -> Iterator[Entry]:
    """Raises Invalid (field code) for what is no zip."""
    if isinstance(source, bytes):
        _check_size(len(source))
    _check_count(source)
    try:
        archive = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Invalid("code", f"is no zip: {error}") from error
    with archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: Unix
            if info.flag_bits & 1:
                raise Invalid("code", f"{info.filename!r} is encrypted")
            if info.compress_type not in _METHODS:
                raise Invalid("code", f"{info.filename!r} is neither stored nor deflated", "pack it with zip")
            if info.is_dir():
                yield Entry(info.filename, "folder")
            elif stat.S_ISLNK(mode):
                yield Entry(info.filename, "link", target=_link(archive, info))
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise Invalid("code", f"{info.filename!r} is neither a file nor a directory")
            else:
                yield Entry(info.filename, "file", bool(mode & 0o111), lambda info=info: archive.open(info))  # type: ignore[misc]


def from_tar(source: bytes | Path) -> Iterator[Entry]:
    """A tar archive, compressed or not. Raises Invalid (field code)."""
    if isinstance(source, bytes):
        _check_size(len(source))
    try:
        with tarfile.open(
            source if isinstance(source, Path) else None,
            "r:*",
            io.BytesIO(source) if isinstance(source, bytes) else None,
            tarinfo=_Member,
        ) as archive:
            for info in archive:
                if info.isdir():
                    yield Entry(info.name, "folder")
                elif info.issym():
                    yield Entry(info.name, "link", target=info.linkname)
                elif info.isfile():
                    yield Entry(info.name, "file", bool(info.mode & 0o111), lambda info=info: _member(archive, info))  # type: ignore[misc]
                else:
                    raise Invalid("code", f"{info.name!r} is neither a file nor a directory nor a symbolic link")
    except Invalid:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise Invalid("code", f"is no tar archive: {error}") from error


class _Member(tarfile.TarInfo):
    """A header of a stranger's: what stands before a file (long names, attributes) is read as a whole, and the map of a
    sparse file too.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _BEFORE and not 0 <= self.size <= _LONGEST_BEFORE:
            raise Invalid("code", f"a name or its attributes have {self.size} bytes, at most {_LONGEST_BEFORE}")
        if self.type == GNUTYPE_SPARSE:
            raise Invalid("code", f"{self.name!r} is sparse", "pack it without -S")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member

    def _sparse(self, *_: object) -> NoReturn:
        raise Invalid("code", f"{self.name!r} is sparse", "pack it without -S")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


def from_folder(folder: Path, *, everything: bool = False) -> Iterator[Entry]:
    """A directory of this machine, without what is made anew unless `everything`. Raises Invalid (field code)."""
    ignored = frozenset[str]() if everything else _IGNORED
    if not folder.is_dir():
        raise Invalid("code", f"{folder} is not a directory")
    for at, folders, files in os.walk(folder):
        inside = os.path.relpath(at, folder)
        for name in sorted((*folders, *files)):
            path, full = os.path.normpath(os.path.join(inside, name)), os.path.join(at, name)
            mode = os.lstat(full).st_mode
            if name in ignored:
                continue
            if stat.S_ISLNK(mode):
                yield Entry(path, "link", target=os.readlink(full))
            elif stat.S_ISDIR(mode):
                yield Entry(path, "folder")
            elif stat.S_ISREG(mode):
                yield Entry(path, "file", bool(mode & 0o111), lambda full=full: open(full, "rb"))  # type: ignore[misc]
            else:
                raise Invalid("code", f"{path!r} is neither a file nor a directory nor a symbolic link")
        folders[:] = [name for name in folders if name not in ignored and not os.path.islink(os.path.join(at, name))]


def from_inline(files: dict[str, str]) -> Iterator[Entry]:
    """{path: text}. A text that begins with #! is a program."""
    for path, text in files.items():
        data = text.encode("utf-8", "surrogatepass")
        yield Entry(path, "file", text.startswith("#!"), lambda data=data: io.BytesIO(data))  # type: ignore[misc]


def unpack(entries: Iterable[Entry], root: Path) -> int:
    """Make `entries` below the empty directory `root`; gives the bytes of all files. Raises Invalid (field code)."""
    seen: dict[str, str] = {}
    links: list[tuple[str, str]] = []
    size = 0
    for entry in entries:
        path = _checked(entry.path)
        if not path:
            continue
        if len(seen) >= MAX_ENTRIES:
            raise Invalid("code", f"more than {MAX_ENTRIES} files")
        if seen.get(path, "folder") != "folder" or (path in seen and entry.kind != "folder"):
            raise Invalid("code", f"{path!r} is in it twice")
        _parents(path, seen, root)
        seen[path] = entry.kind
        if entry.kind == "folder":
            os.makedirs(root / path, 0o755, exist_ok=True)
        elif entry.kind == "link":
            links.append((path, entry.target))
        else:
            size = _copy(entry, root / path, size)
    for path, target in links:  # last, so that nothing is written through one
        _check_target(path, target)
        os.symlink(target, root / path)
    return size


def _parents(path: str, seen: dict[str, str], root: Path) -> None:
    parent = os.path.dirname(path)
    if not parent or seen.get(parent) == "folder":
        return
    if parent in seen:
        raise Invalid("code", f"{path!r} lies below {parent!r}, which is no directory")
    _parents(parent, seen, root)
    seen[parent] = "folder"
    os.makedirs(root / parent, 0o755, exist_ok=True)


def _copy(entry: Entry, to: Path, size: int) -> int:
    assert entry.open is not None
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if entry.executable else 0o644)
    try:
        with open(fd, "wb") as target, entry.open() as source:
            os.fchmod(fd, 0o755 if entry.executable else 0o644)
            while piece := source.read(_PIECE):
                size += len(piece)
                if size > MAX_UNPACKED:
                    raise Invalid("code", f"is more than {MAX_UNPACKED >> 20} MiB unpacked", "put it into an image")
                target.write(piece)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid("code", f"{entry.path!r} cannot be unpacked: {error}") from error
    except Exception as error:  # zlib.error, lzma.LZMAError and what other codecs may raise
        if isinstance(error, OSError) and error.errno:
            raise
        raise Invalid("code", f"{entry.path!r} cannot be unpacked: {error}") from error
    os.utime(to, (_EPOCH, _EPOCH))
    return size


def _checked(path: str) -> str:
    """The path without needless parts, "" for the root itself. Raises Invalid."""
    if "\0" in path or len(path) > 4000:
        raise Invalid("code", "a path is too long, or has a NUL in it")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise Invalid("code", f"{path!r} leads out of the archive")
    if len(parts) > MAX_DEPTH:
        raise Invalid("code", f"{path[:100]!r}…: more than {MAX_DEPTH} directories, one in the other")
    if not path.isascii() and _unspeakable(path):
        raise Invalid("code", f"{path[:100]!a}: is no name for a file")
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise Invalid("code", f"{path[:100]!r}…: a name is too long")
    return "/".join(parts)


def _unspeakable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return True
    return False


def _link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Where it leads; of the size that the archive claims nothing is believed."""
    try:
        with archive.open(info) as file:
            data = file.read(_LONGEST_LINK + 1)
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise Invalid("code", f"{info.filename!r} cannot be unpacked: {error}") from error
    if len(data) > _LONGEST_LINK:
        raise Invalid("code", f"{info.filename!r} is a link to too long a path")
    return os.fsdecode(data)


def _check_target(path: str, target: str) -> None:
    """Up first, then down: then no chain of links leads out, whatever they point to."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if not target or "\0" in target or target.startswith("/") or ".." in parts[up:] or up > path.count("/"):
        raise Invalid("code", f"the link {path!r} leads out of the archive, to {target!r}")


def _check_count(source: bytes | Path) -> None:
    """A zip of a million empty files is 45 MiB, and half a gigabyte once it has been looked through."""
    if isinstance(source, bytes):
        count = source.count(_CENTRAL)
    else:
        with source.open("rb") as file:
            count = sum(piece.count(_CENTRAL) for piece in iter(lambda: file.read(_PIECE), b""))
    if count > 2 * MAX_ENTRIES:
        raise Invalid("code", f"more than {MAX_ENTRIES} files")


def _check_size(size: int) -> None:
    if size > MAX_ARCHIVE:
        raise Invalid("code", f"{size} bytes, at most {MAX_ARCHIVE >> 20} MiB", "put it into an image, or layers")


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(info)
    assert found is not None
    return found


def digest(root: Path) -> tuple[str, int, int]:
    """("sha256:…" of a tree's names, kinds, executable bits and contents; bytes of its files; their number)."""
    total, size, count = hashlib.sha256(), 0, 0
    for path, full in walk(root):
        mode = os.lstat(full).st_mode
        if stat.S_ISLNK(mode):
            kind, content = b"l", hashlib.sha256(os.fsencode(os.readlink(full))).digest()
        elif stat.S_ISDIR(mode):
            kind, content = b"d", b""
        else:
            kind = b"x" if mode & 0o111 else b"f"
            with open(full, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            size, count = size + os.lstat(full).st_size, count + 1
        name = os.fsencode(path)
        total.update(b"%d:%b%b%d:%b" % (len(name), name, kind, len(content), content))
    return "sha256:" + total.hexdigest(), size, count


def walk(root: Path) -> Iterator[tuple[str, str]]:
    """(path below root, whole path) of everything in it, in order; links are not followed."""
    found = []
    for at, folders, files in os.walk(root):
        for name in (*folders, *files):
            full = os.path.join(at, name)
            found.append((os.path.relpath(full, root), full))
    return iter(sorted(found))


def to_zip(root: Path) -> bytes:
    """A tree as a zip: the same tree gives the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, full in walk(root):
            mode = os.lstat(full).st_mode
            folder = stat.S_ISDIR(mode)
            info = zipfile.ZipInfo(path + "/" * folder, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.compress_type = 3, zipfile.ZIP_DEFLATED
            kind = stat.S_IFMT(mode) | (0o755 if mode & 0o111 or folder else 0o644)
            info.external_attr = kind << 16 | (0x10 if folder else 0)
            if stat.S_ISLNK(mode):
                archive.writestr(info, os.fsencode(os.readlink(full)))
            else:
                archive.writestr(info, b"" if folder else Path(full).read_bytes())
    return made.getvalue()
