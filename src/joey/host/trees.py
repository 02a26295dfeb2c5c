"""Directory trees that a hostile program has made: measure and remove them. Any depth, a handful of descriptors, no
recursion, and never out of the tree: every step is relative to an open directory and follows no link.
"""

from __future__ import annotations

import errno
import os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def sync(directory: str | os.PathLike[str]) -> None:
    """Make what was made or renamed in a directory last (fsync(2)). Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove whatever is at `path`; nothing there is fine. Raises OSError.

    Deep trees are made flat: what a directory holds is moved up to the top before it is removed, so that no path gets
    long. Only for trees in which nobody works any more.
    """
    try:
        os.unlink(path)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    fd = os.open(path, _DIRECTORY)
    try:
        _empty(fd)
    finally:
        os.close(fd)
    os.rmdir(path)


def _empty(top: int) -> None:
    moved = 0
    while names := os.listdir(top):
        for name in names:
            if _remove_simple(top, name):
                continue
            inner = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                for child in os.listdir(inner):
                    if not _remove_simple(inner, child):
                        moved = _move_up(inner, child, top, moved)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _remove_simple(directory: int, name: str) -> bool:
    """Remove a file or an empty directory; whether that was enough."""
    try:
        os.unlink(name, dir_fd=directory)
        return True
    except (IsADirectoryError, PermissionError):
        pass
    try:
        os.rmdir(name, dir_fd=directory)
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise


def _move_up(directory: int, name: str, top: int, number: int) -> int:
    while True:
        number += 1
        try:
            os.rename(name, f".removed-{number}", src_dir_fd=directory, dst_dir_fd=top)
            return number
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def disk_usage(path: str | os.PathLike[str], most: int = 200_000) -> int | None:
    """Bytes of blocks that the tree at `path` occupies, as du(1); hard links count once. None above `most` entries.

    Works on a tree that is being changed; what moves meanwhile may be counted or not.
    """
    try:
        current = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return 0
    try:
        return _measure(current, most)
    finally:
        os.close(current)


def _measure(top: int, most: int) -> int | None:
    """Depth first with one descriptor: down by name, up by "..", checked against where we came from."""
    seen: set[tuple[int, int]] = set()
    current = os.dup(top)
    trail: list[tuple[tuple[int, int], list[str]]] = []
    try:
        size, waiting = _scan(current, seen, most)
        total = os.fstat(top).st_blocks * 512 + size
        while (waiting or trail) and len(seen) <= most:
            here = _key(current)
            if not waiting:
                expected, waiting = trail.pop()
                current = _swap(current, "..", 0)
                if _key(current) != expected:  # somebody moved the directory we were in
                    return total
                continue
            try:
                current = _swap(current, waiting.pop(), os.O_NOFOLLOW)
            except OSError:
                continue
            trail.append((here, waiting))
            size, waiting = _scan(current, seen, most)
            total += size
        return total if len(seen) <= most else None
    finally:
        os.close(current)


def _swap(fd: int, name: str, flags: int) -> int:
    new = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags, dir_fd=fd)
    os.close(fd)
    return new


def _key(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _scan(directory: int, seen: set[tuple[int, int]], most: int) -> tuple[int, list[str]]:
    """(bytes of the entries, names of directories) of one directory; stops when more than `most` have been seen."""
    total, folders = 0, []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            key = (found.st_dev, found.st_ino)
            if key in seen:
                continue
            seen.add(key)
            if len(seen) > most:
                break
            total += found.st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
    return total, folders
