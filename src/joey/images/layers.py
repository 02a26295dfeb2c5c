"""The layers of an image as one directory, made of hard links: merged/CHAIN below the image store.

An overlay of ten lower directories takes twice to three times as long to start as one of a single directory: each is
cloned, id-mapped, attached, and looked into at every miss of a name (`joey bench layers`; docs/decisions/0005). So the
layers are merged once, when an image of several is first used: a directory tree of its own whose files are the very
inodes of the layers. That costs directories and names, no data, and page cache is shared as before, also between
images that share layers. It also lifts overlay's bound on the number of layers, and whiteouts end here.

What cannot be merged (more links to a file than the file system counts, no inodes left) is used as it is, a lower
directory a layer: slower, never an error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from joey.host import trees
from joey.images.overlay import enter, is_opaque, is_whiteout
from joey.images.store import UNPACKING, Store, StoredImage
from joey.model.image import Layer

_log = logging.getLogger(__name__)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = ".new-"
_GONE = ".gone-"
GROWN = ("snapshot:", "fork:")
"""How `StoredImage.source` begins where layers were put on another image that is in use already."""
_APART = 4


def chain_id(diff_ids: Sequence[str]) -> str:
    """What a stack of layers is called (image-spec config.md, "Layer ChainID"): "sha256:" and 64 digits."""
    return _chains(diff_ids)[-1]


def stack(store: Store, image: StoredImage) -> tuple[Layer, ...]:
    """What sandboxes of an image are to mount, lowest first: one directory if `prepare` has made it, or the lower
    layers as one and what was added by snapshots.

    A layer that comes twice covers what its lower copy says, and overlay takes a directory once.
    """
    below, rest = _merged(store, image)
    ids = tuple(dict.fromkeys(reversed(rest)))[::-1]
    first = (Layer(f"merged-{below.name}", str(below)),) if below is not None else ()
    return (*first, *(Layer(f"sha256-{one[7:]}", str(store.layer_path(one))) for one in ids))


def _merged(store: Store, image: StoredImage) -> tuple[Path | None, tuple[str, ...]]:
    """The directory of as many of its lowest layers as there is one for, and the layers above."""
    chains = _chains(image.diff_ids)
    for count in range(len(chains), 1, -1):
        path = store.root / "merged" / chains[count - 1][7:]
        if path.is_dir():
            return path, image.diff_ids[count:]
    return None, image.diff_ids


def _chains(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of the lowest layer, of the lowest two …"""
    found = list(diff_ids[:1])
    for diff_id in diff_ids[1:]:
        found.append("sha256:" + hashlib.sha256(f"{found[-1]} {diff_id}".encode()).hexdigest())
    return found


def prepare(store: Store, image: StoredImage, *, whole: bool = False) -> bool:
    """Merge the layers of an image, once; → whether there is one directory for it now. Blocks: about 10 µs a file.

    A few layers that snapshots have put on top stay apart, unless it is to be `whole`: a start from them shall not take
    time for every file of the image below.
    """
    path = _place(store, image)
    if path is None or path.is_dir():
        return True
    if not whole and image.source.startswith(GROWN) and len(stack(store, image)) <= _APART:
        return False
    with store.busy(*image.diff_ids, image.digest, UNPACKING):
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            merge([store.layer_path(one) for one in image.diff_ids], path)
            return True
        except (OSError, RecursionError) as error:
            _log.warning("layers of %s stay apart, which starts slower: %s", image.digest[7:19], error)
            return False


def _place(store: Store, image: StoredImage) -> Path | None:
    if len(image.diff_ids) < 2:
        return None
    return store.root / "merged" / chain_id(image.diff_ids)[7:]


def sweep(store: Store) -> int:
    """Remove what no image needs; → how many. Raises OSError. Not by two at once."""
    folder, gone = store.root / "merged", []
    with store.lock(), contextlib.suppress(FileNotFoundError):  # else an image could come that takes one to be there
        images = store.all()
        kept = {path.name for image in images if (path := _place(store, image)) is not None}
        kept |= {chain[7:] for image in images if image.source.startswith(GROWN) for chain in _chains(image.diff_ids)}
        for name in os.listdir(folder):
            if name in kept or (name.startswith(_NEW) and store.is_busy(UNPACKING)):
                continue
            if not name.startswith(_GONE):
                os.rename(folder / name, folder / f"{_GONE}{name.lstrip('.')}")
                name = f"{_GONE}{name.lstrip('.')}"
            gone.append(folder / name)
    for path in gone:
        trees.remove(path)
    return len(gone)


def merge(layers: Sequence[Path], target: Path) -> None:
    """Make the directory `target` (not there yet) what an overlay of `layers`, lowest first, shows.

    All in one file system. Raises OSError; nothing is left then. Nothing need be synced: it is all names, which a
    journal keeps in order before the last one, the rename.
    """
    temporary = target.with_name(f"{_NEW}{secrets.token_hex(8)}")
    opened: list[int] = []
    try:
        temporary.mkdir(mode=0o700)
        for path in reversed(layers):
            opened.append(os.open(path, _DIRECTORY))
        into = os.open(temporary, _DIRECTORY)
        opened.append(into)
        _merge(_visible(opened[:-1]), into)
        with contextlib.suppress(FileExistsError):
            os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():  # somebody else was first
            raise
    finally:
        for fd in opened:
            os.close(fd)
        with contextlib.suppress(OSError):
            trees.remove(temporary)


def _visible(directories: Sequence[int]) -> list[int]:
    """Of the same directory in several layers, highest first, those that are not hidden by an opaque one."""
    for number, fd in enumerate(directories):
        if is_opaque(fd):
            return list(directories[: number + 1])
    return list(directories)


def _merge(sources: Sequence[int], into: int) -> None:
    """sources: descriptors of the directory in the layers that have it, highest first."""
    done: set[str] = set()
    for number, source in enumerate(sources):
        with os.scandir(source) as found:
            entries = list(found)
        for entry in entries:
            name = entry.name
            if name in done:
                continue
            done.add(name)
            if entry.is_dir(follow_symlinks=False):
                _merge_directory(sources[number:], into, name)
            elif not _is_whiteout(entry, source):
                os.link(name, name, src_dir_fd=source, dst_dir_fd=into, follow_symlinks=False)
    _copy_metadata(sources[0], into)


def _merge_directory(sources: Sequence[int], into: int, name: str) -> None:
    opened = enter(sources, name)
    try:
        os.mkdir(name, 0o700, dir_fd=into)
        opened.append(os.open(name, _DIRECTORY, dir_fd=into))
        _merge(opened[:-1], opened[-1])
    finally:
        for fd in opened:
            os.close(fd)


def _is_whiteout(entry: os.DirEntry[str], directory: int) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(os.stat(entry.name, dir_fd=directory, follow_symlinks=False))


def _copy_metadata(source: int, into: int) -> None:
    found = os.fstat(source)
    if found.st_uid or found.st_gid:
        os.fchown(into, found.st_uid, found.st_gid)
    os.fchmod(into, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(("trusted.overlay.", "security.selinux")):
            os.setxattr(into, name, os.getxattr(source, name))
    os.utime(into, ns=(found.st_atime_ns, found.st_mtime_ns))
