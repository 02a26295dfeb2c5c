"""An image from a directory of the host that holds a root file system (`--rootfs DIR`). It is never written to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from joey.host import sys as kernel
from joey.model.errors import ImageError
from joey.model.image import DEFAULT_PATH, Image, Layer


def prepare(path: str, home: Path | None = None) -> Image:
    """The image whose single layer is the directory `path` (absolute; symbolic links are followed now, not later).

    home: Joey's own directory, which must not lie inside: overlay cannot have its upper layer in a lower one, and state
    and sockets would show. Raises ImageError naming `rootfs`.
    """
    if not path.startswith("/"):
        raise ImageError("rootfs", f"{path!r} is not an absolute path")
    try:
        real = os.path.realpath(path, strict=True)
        fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise ImageError("rootfs", f"{path} is not a directory", "unpack the archive first") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError("rootfs", f"{path}: {reason}") from error
    os.close(fd)
    if not os.access(real, os.R_OK | os.X_OK):
        raise ImageError("rootfs", f"{path} cannot be read and searched by the engine")
    inside = os.path.realpath(home) if home is not None else "/"
    if os.path.commonpath([real, inside]) == real:
        raise ImageError(
            "rootfs", f"{path} holds Joey's own state ({inside})", "use a directory that holds only the system"
        )
    layer = Layer(identity("rootfs", real), real)
    return Image(name=path, layers=(layer,), env={"PATH": DEFAULT_PATH}, argv=("/bin/sh",))


def identity(word: str, path: str) -> str:
    """A layer id that starts with `word`: another one as soon as `path` is another directory.

    Inode numbers are used again, times of birth are not. Raises OSError.
    """
    found = os.stat(path)
    text = f"{path}\0{found.st_dev}\0{found.st_ino}\0{kernel.birth_time(path)}"
    return f"{word}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"
