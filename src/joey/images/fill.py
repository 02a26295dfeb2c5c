"""The first content of a volume: a copy of what an image has at a path (as `docker run -v NAME:/path` does)."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from joey.images.overlay import enter, is_whiteout
from joey.images.upper import Copier, Level
from joey.model.errors import from_os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def fill(layers: Sequence[Path], path: str, target: Path, *, bounded: bool = False) -> int:
    """Copy the directory `path` of an overlay of `layers` (lowest first) into the empty directory `target`; → entries.

    Nothing if there is no such directory, or a link on the way to it. If it cannot be copied whole `target` is emptied
    again. bounded: the target has a size of its own, which may be used up. Raises ImageError, Exhausted and its kin.
    """
    opened: list[int] = []
    try:
        opened = [os.open(layer, _DIRECTORY) for layer in reversed(layers)]
        for part in filter(None, path.split("/")):
            below = enter(opened, part)
            for fd in opened:
                os.close(fd)
            opened = below
        if not opened:
            return 0
        into = os.open(target, _DIRECTORY)
        opened.append(into)
        if os.listdir(into):
            return 0
        return _Filler(into, bounded).fill(opened[:-1])
    except OSError as error:
        raise from_os("copy the image's files into the volume", error) from error
    finally:
        for fd in opened:
            os.close(fd)


class _Filler(Copier):
    """A copier that sees through layers."""

    def __init__(self, into: int, bounded: bool) -> None:
        super().__init__(0, None, *([0] if bounded else []), into=into)

    def fill(self, sources: Sequence[int]) -> int:
        try:
            self._merge(sources, self.top, "")
        except BaseException:
            _empty(self.top)
            raise
        return self.entries

    def _merge(self, sources: Sequence[int], into: int, path: str) -> None:
        done: set[str] = set()
        for number, source in enumerate(sources):
            for name in sorted(os.listdir(source)):
                if name in done:
                    continue
                done.add(name)
                found = os.stat(name, dir_fd=source, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    self._below(sources[number:], into, name, path)
                elif not is_whiteout(found):
                    self.entries += 1
                    self.member(Level(source, into, path, iter(())), name, found)
        self.settle(sources[0], into, os.fstat(sources[0]))

    def _below(self, sources: Sequence[int], into: int, name: str, path: str) -> None:
        opened = enter(sources, name)
        try:
            os.mkdir(name, 0o700, dir_fd=into)
            opened.append(os.open(name, _DIRECTORY, dir_fd=into))
            self.entries += 1
            self._merge(opened[:-1], opened[-1], f"{path}{name}/")
        finally:
            for fd in opened:
                os.close(fd)


def _empty(directory: int) -> None:
    import shutil

    for name in os.listdir(directory):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
