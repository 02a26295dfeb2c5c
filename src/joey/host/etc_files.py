"""Files of /etc that the engine itself writes into a sandbox's writable layer: hosts, hostname, resolv.conf.

They are written before the sandbox runs, or runs again. What an earlier run of it left there is not trusted: no link is
followed, and a file that is there is replaced, not written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
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
