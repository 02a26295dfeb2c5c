"""Trees of files to tar archives and back, on the client's machine."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from joey.client.errors import Invalid

_IN_MEMORY = 8 << 20


def spool() -> IO[bytes]:
    """A temporary file, in memory while it is small."""
    return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)


def pack(folder: Path) -> IO[bytes]:
    """A tar archive of what is in `folder`; everything in it belongs to root."""
    archive = spool()

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name, filter=plain)
        archive.seek(0)
        return archive
    except BaseException:
        archive.close()
        raise


def unpack(archive: IO[bytes], folder: Path, strip: int = 0) -> None:
    """Unpack into `folder`, which is made: files, directories and links, all of them ours. `strip`: so many components
    of each name are left out.

    The archive is not trusted: nothing outside `folder` is written, whatever its names and links say, because every
    component is opened by itself and never through a link. Raises Invalid for what would reach out, and for devices.
    """
    archive.seek(0)
    folder.mkdir(parents=True, exist_ok=True)
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                _extract(tar, member, top, strip)
    except (tarfile.TarError, UnicodeError) as error:
        raise Invalid("path", f"the archive cannot be unpacked: {error}") from None
    finally:
        os.close(top)


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise Invalid("path", f"the archive names {name!r}, which would lie elsewhere")
    return parts


def _enter(top: int, parts: list[str], make: bool) -> int:
    """A descriptor of the directory at `parts` below `top`; no component may be a link."""
    here = os.dup(top)
    try:
        for part in parts:
            if make:
                try:
                    os.mkdir(part, dir_fd=here)
                except FileExistsError:
                    pass
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return here
    except OSError as error:
        os.close(here)
        raise Invalid("path", f"the archive writes below {'/'.join(parts)!r}: {error.strerror}") from None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, top: int, strip: int) -> None:
    *above, name = _parts(member.name)[strip:] or [""]
    if not name or member.isdir():
        folder = _enter(top, [*above, name] if name else [], make=True)
        os.close(folder)
        return
    folder = _enter(top, above, make=True)
    try:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        if member.issym():
            _check_link(member, len(above))
            os.symlink(member.linkname, name, dir_fd=folder)
        elif member.islnk():
            *there, target = _parts(member.linkname)[strip:] or [""]
            source = _enter(top, there, make=False)
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(source)
        elif member.isreg():
            mode = member.mode & 0o777 | 0o600
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
            content = tar.extractfile(member)
            with os.fdopen(fd, "wb") as file:
                if content is not None:
                    shutil.copyfileobj(content, file, 1 << 20)
        else:
            raise Invalid("path", f"{member.name!r} is neither file, directory nor link")
    except OSError as error:
        raise Invalid("local", f"{member.name}: {error.strerror}") from None
    finally:
        os.close(folder)


def _check_link(member: tarfile.TarInfo, depth: int) -> None:
    """A link may point only to what is in the archive's own tree."""
    for part in member.linkname.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0 or member.linkname.startswith("/"):
            raise Invalid("path", f"{member.name!r} is a link to {member.linkname!r}, outside of what was asked for")
