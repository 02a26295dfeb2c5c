"""What the calls need of `os`, under its names: importing os itself takes a millisecond, and a call may take twenty.

What is not here comes from os after all, which is imported then.
"""

from __future__ import annotations

import posix
from posix import *  # noqa: F403
from posix import _exit as _exit

_KIND, _DIRECTORY = 0o170000, 0o040000


def __getattr__(name):
    import os

    return getattr(os, name)


def variable(name):
    """Of the environment; "" for one that is not there."""
    return posix.environ.get(name.encode(), b"").decode(errors="replace")


def makedirs(name, mode=0o777, exist_ok=False):
    try:
        posix.mkdir(name, mode)
    except FileExistsError:
        if not exist_ok or not path.isdir(name):
            raise
    except FileNotFoundError:
        import os

        os.makedirs(name, mode, exist_ok=exist_ok)


class path:
    """Of POSIX paths that are str."""

    @staticmethod
    def exists(name):
        try:
            posix.stat(name)
        except (OSError, ValueError):
            return False
        return True

    @staticmethod
    def lexists(name):
        try:
            posix.lstat(name)
        except (OSError, ValueError):
            return False
        return True

    @staticmethod
    def isdir(name):
        try:
            return posix.stat(name).st_mode & _KIND == _DIRECTORY
        except (OSError, ValueError):
            return False

    @staticmethod
    def join(first, second):
        return second if second.startswith("/") else f"{first}{'' if first.endswith('/') else '/'}{second}"

    @staticmethod
    def dirname(name):
        above = name.rpartition("/")
        return above[0].rstrip("/") or above[1]

    @staticmethod
    def split(name):
        return path.dirname(name), name.rpartition("/")[2]

    @staticmethod
    def abspath(name):
        """Without "." and "..", which are taken off as words, as os.path.abspath does."""
        parts = []
        for part in path.join(posix.getcwd(), name).split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        return "/" + "/".join(parts)

    @staticmethod
    def realpath(name):
        """Links are followed by the kernel: what is not there has itself as its path."""
        try:
            fd = posix.open(name, posix.O_PATH | posix.O_CLOEXEC)
        except OSError:
            return path.abspath(name)
        try:
            return posix.readlink(f"/proc/self/fd/{fd}")
        finally:
            posix.close(fd)
