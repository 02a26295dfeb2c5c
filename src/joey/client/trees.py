"""Trees of files to tar archives and back, on the client's machine."""

from __future__ import annotations

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


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Unpack into `folder`, which is made. Raises Invalid for what would reach out of it."""
    if not hasattr(tarfile, "data_filter"):
        raise Invalid("local", "this Python cannot unpack what is not trusted", "Python 3.11.4 or newer")
    archive.seek(0)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                tar.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise Invalid("path", f"the archive cannot be unpacked here: {error}") from None
