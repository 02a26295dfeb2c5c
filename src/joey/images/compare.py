"""Whether an unpacked layer is still what its archive holds: it is unpacked anew beside it, and both are read."""

from __future__ import annotations

import filecmp
import os
import stat
from pathlib import Path

from joey.host import trees
from joey.images import unpack
from joey.images.store import UNPACKING, Store
from joey.model.errors import JoeyError


def problem(store: Store, diff_id: str, blob: str) -> str:
    """What is wrong with the directory of a layer whose blob (a digest) is here and sound, "" for nothing. Takes the
    time and the room of unpacking it.
    """
    with store.busy(UNPACKING):
        directory = store.new_directory()
        try:
            with open(store.blob_path(blob), "rb") as file:
                unpack.unpack(file, directory, diff_id=diff_id, durable=False)
            different = difference(directory, store.layer_path(diff_id))
        except (OSError, JoeyError) as error:
            return f"cannot be compared: {error}"
        finally:
            trees.remove(directory)
    return f"is not what its archive holds: {different}" if different is not None else ""


def difference(one: Path, other: Path) -> str | None:
    """The first path, with a slash in front, at which two trees differ but for times; None for none. Raises OSError."""
    stack = [""]
    while stack:
        path = stack.pop()
        if not _alike(f"{one}{path}", f"{other}{path}"):
            return path or "/"
        if stat.S_ISDIR(os.lstat(f"{one}{path}").st_mode):
            here, there = set(os.listdir(f"{one}{path}")), set(os.listdir(f"{other}{path}"))
            if here != there:
                return f"{path}/{min(here ^ there)}"
            stack += [f"{path}/{name}" for name in here]
    return None


def _alike(one: str, other: str) -> bool:
    a, b = os.lstat(one), os.lstat(other)
    if (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) != (b.st_mode, b.st_uid, b.st_gid, b.st_rdev):
        return False
    if stat.S_ISLNK(a.st_mode):
        return os.readlink(one) == os.readlink(other)
    if _attributes(one) != _attributes(other):
        return False
    return not stat.S_ISREG(a.st_mode) or filecmp.cmp(one, other, shallow=False)


def _attributes(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
