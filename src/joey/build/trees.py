"""A directory tree as the root of its own world: a build's context, or the files of an image. Links in it lead nowhere
outside: every path is followed by hand, component by component, below the root.

Nobody else writes to these trees while a build looks at them: a context is the build's own, layers never change.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from joey.images import pack
from joey.model import ignore

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LINKS = 40
_GLOB = re.compile(r"[*?\[]")


class Tree:
    """Paths are relative to the root, without a slash before or after; "" is the root itself."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, path: str) -> str:
        """The host's path of one that `real` gave."""
        return f"{self.root}/{path}" if path else str(self.root)

    def real(self, path: str, *, last: bool = True) -> str:
        """Where `path` leads, links followed below the root (the last component only with `last`); what is not there
        stays as it is written. Raises OSError ELOOP.
        """
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if done:
                    done.pop()
                continue
            here = "/".join([*done, part])
            try:
                found = os.lstat(self.place(here))
            except (FileNotFoundError, NotADirectoryError):
                done.append(part)
                continue
            if stat.S_ISLNK(found.st_mode) and (todo or last):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(self.place(here))
                if target.startswith("/"):
                    done = []
                todo += target.split("/")[::-1]
                continue
            done.append(part)
        return "/".join(done)

    def stat(self, path: str) -> os.stat_result | None:
        """Of what `real` gave; None if nothing is there."""
        try:
            return os.lstat(self.place(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def target(self, path: str) -> str:
        """Of a link. Raises OSError."""
        return os.readlink(self.place(path))

    def is_directory(self, path: str) -> bool:
        found = self.stat(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self.place(path)))

    def select(self, pattern: str) -> list[str]:
        """What a pattern (Go's filepath.Match) fits, in order; links are followed. Raises ValueError, OSError."""
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        found = [""]
        for part in parts:
            if _GLOB.search(part) is None:
                plain = part.replace("\\", "")
                found = [path for one in found if self.stat(path := self.real(f"{one}/{plain}")) is not None]
                continue
            fits = re.compile(ignore.regex(part), re.DOTALL)
            inner = [one for one in found if self.is_directory(one)]
            paths = [f"{one}/{name}" for one in inner for name in self.names(one) if fits.fullmatch(name)]
            found = [self.real(path) for path in paths if not self._loops(path)]
        return [one for one in found if self.stat(one) is not None]

    def _loops(self, path: str) -> bool:
        try:
            self.real(path)
        except OSError:
            return True
        return False

    def walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """What is below a directory, depth first, in order of name: (path below it, what it is). Raises OSError."""
        stack = [iter(self.names(path))]
        while stack:
            below = next(stack[-1], None)
            if below is None:
                stack.pop()
                continue
            here = f"{path}/{below}" if path else below
            found = os.lstat(self.place(here))
            yield below, found
            if stat.S_ISDIR(found.st_mode):
                stack.append(iter([f"{below}/{name}" for name in self.names(here)]))

    def open(self, path: str) -> int:
        return os.open(self.place(path), _FILE)

    def attributes(self, path: str, found: os.stat_result) -> dict[bytes, bytes]:
        """Extended attributes as pax records."""
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return {}
        fd = self.open(path)
        try:
            return pack.attributes(fd)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Item:
    """What is to be copied: of `tree` the `path`, under `name` where the target is a directory."""

    tree: Tree
    path: str
    name: str


def fingerprint(item: Item, *, owners: bool) -> str:
    """A digest of an item's content, names and modes; with `owners` also whose they are. Times do not count."""
    digest = hashlib.sha256()

    def add(below: str, path: str, found: os.stat_result) -> None:
        head = [below, oct(found.st_mode)]
        if owners:
            head += [str(found.st_uid), str(found.st_gid)]
        digest.update("\0".join(head).encode("utf-8", "surrogateescape") + b"\0\0")
        for key, value in sorted(item.tree.attributes(path, found).items()):
            digest.update(key + b"=%d:" % len(value) + value)
        if stat.S_ISREG(found.st_mode):
            digest.update(_content(item.tree, path))
        elif stat.S_ISLNK(found.st_mode):
            digest.update(os.fsencode(os.readlink(item.tree.place(path))) + b"\0")
        elif not stat.S_ISDIR(found.st_mode):
            digest.update(b"%d\0" % found.st_rdev)

    top = os.lstat(item.tree.place(item.path))
    directory = stat.S_ISDIR(top.st_mode)
    add("" if directory else item.name, item.path, top)
    if directory:
        for below, found in item.tree.walk(item.path):
            add(below, f"{item.path}/{below}" if item.path else below, found)
    return digest.hexdigest()


def _content(tree: Tree, path: str) -> bytes:
    with os.fdopen(tree.open(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def leave_out(root: Path, rules: ignore.Ignore) -> None:
    """Remove from a context what its .dockerignore names. Raises OSError."""
    tree = Tree(root)
    for below, found in sorted(tree.walk(""), key=lambda one: one[0].count("/"), reverse=True):
        if not rules.leaves_out(below):
            continue
        place = tree.place(below)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(place)
        elif not os.listdir(place):  # else it holds exceptions
            os.rmdir(place)


def inside(path: str) -> str:
    """A path of a context, relative to its root. Raises ValueError if it leads out of it."""
    clean = posixpath.normpath(path.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise ValueError(f"{path} is outside of the context")
    return "" if clean == "." else clean
