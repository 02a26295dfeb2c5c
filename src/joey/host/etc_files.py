"""Files of /etc that the engine itself writes into a sandbox's writable layer: hosts, hostname, resolv.conf.

They are written before the sandbox runs, or runs again. What an earlier run of it left there is not trusted: no link is
followed, and a file that is there is replaced, not written to.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Mapping
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write(upper: Path, files: Mapping[str, str], owner: int) -> None:
    """Write `files` (name -> text) into `upper`/etc as the host's id `owner`; `upper` is made if need be. Where the
    sandbox has put something else in the place of /etc, or a directory in that of a file, that stays. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        upper.mkdir(parents=True)
        os.chown(upper, owner, owner)
    top = os.open(upper, _DIRECTORY)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir("etc", 0o755, dir_fd=top)
            os.chown("etc", owner, owner, dir_fd=top, follow_symlinks=False)
            os.chmod("etc", 0o755, dir_fd=top)  # whatever our umask is
        try:
            etc = os.open("etc", _DIRECTORY, dir_fd=top)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                return
            raise
        try:
            for name, text in files.items():
                _write(etc, name, text.encode(), owner)
        finally:
            os.close(etc)
    finally:
        os.close(top)


@functools.lru_cache(maxsize=512)
def lacks_hosts(layers: tuple[str, ...]) -> bool:
    """Whether an image (the directories of its layers, lowest first) has no /etc/hosts, or the empty one that is left
    where a builder had mounted its own: without one `localhost` is no name. An /etc that is a link is left alone.
    """
    for layer in reversed(layers):
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.lstat(f"{layer}/etc").st_mode):
                return False
            found = os.lstat(f"{layer}/etc/hosts")
            whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
            return whiteout or (stat.S_ISREG(found.st_mode) and not found.st_size)
    return True


def _write(folder: int, name: str, data: bytes, owner: int) -> None:
    try:
        fd = os.open(name, _NEW, 0o644, dir_fd=folder)
    except FileExistsError:
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            return
        fd = os.open(name, _NEW, 0o644, dir_fd=folder)
    try:
        os.write(fd, data)
        os.fchmod(fd, 0o644)
        os.fchown(fd, owner, owner)
    finally:
        os.close(fd)
