"""What a sandbox has changed in its image's files: the overlay's upper directory against the layers below it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from joey.images.overlay import is_opaque, is_whiteout
from joey.model.errors import from_os
from joey.model.snapshots import FileChange

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 1000
_MADE = ("proc", "dev", "sys")
"""Mount points that every sandbox gets."""


def changes(upper: Path, layers: Sequence[Path], binds: Sequence[str] = ()) -> Iterator[FileChange]:
    """In order of path, as `docker diff`: what lies below an added directory is listed too.

    layers: lowest first. binds: paths inside that lie over the overlay. The sandbox may run: what it changes meanwhile
    is told or not. Raises HostFailed and its kin.
    """
    opened: list[int] = []
    try:
        for path in (upper, *reversed(layers)):
            opened.append(os.open(path, _DIRECTORY))
        skip = {f"/{name}" for name in _MADE} | {path.rstrip("/") for path in binds}
        yield from _walk(opened[0], opened[1:], "/", skip, 0)
    except OSError as error:
        raise from_os("compare with the image", error) from error
    finally:
        for fd in opened:
            os.close(fd)


def _walk(upper: int, lowers: Sequence[int], prefix: str, skip: set[str], depth: int) -> Iterator[FileChange]:
    opaque = is_opaque(upper)
    names = set(os.listdir(upper))
    gone = _below(lowers) - names if opaque and lowers else set()
    for name in sorted(names | gone):
        path = prefix + name
        if name in gone:
            yield FileChange("D", path)
            continue
        try:
            found = os.stat(name, dir_fd=upper, follow_symlinks=False)
        except FileNotFoundError:
            continue
        below = _find(lowers, name)
        if is_whiteout(found):
            if below is not None:
                yield FileChange("D", path)
        elif not stat.S_ISDIR(found.st_mode):
            yield FileChange("A" if below is None else "C", path)
        elif depth < _DEPTH:
            yield from _directory(upper, lowers, name, path, skip, depth, below)


def _directory(
    upper: int, lowers: Sequence[int], name: str, path: str, skip: set[str], depth: int, below: os.stat_result | None
) -> Iterator[FileChange]:
    opened: list[int] = []
    try:
        opened.append(os.open(name, _DIRECTORY, dir_fd=upper))
        if path not in skip or os.listdir(opened[0]):
            yield FileChange("A" if below is None else "C", path)
        for lower in lowers if below is not None and stat.S_ISDIR(below.st_mode) else ():
            try:
                opened.append(os.open(name, _DIRECTORY, dir_fd=lower))
            except FileNotFoundError:
                continue
            except OSError:  # something else, or a whiteout: it hides what is below
                break
            if is_opaque(opened[-1]):
                break
        yield from _walk(opened[0], opened[1:], f"{path}/", skip, depth + 1)
    except FileNotFoundError:
        return
    finally:
        for fd in opened:
            os.close(fd)


def _find(lowers: Sequence[int], name: str) -> os.stat_result | None:
    """What the layers show under that name."""
    for lower in lowers:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=lower, follow_symlinks=False)
            return None if is_whiteout(found) else found
    return None


def _below(lowers: Sequence[int]) -> set[str]:
    names: set[str] = set()
    for lower in lowers:
        names.update(os.listdir(lower))
    return {name for name in names if _find(lowers, name) is not None}
