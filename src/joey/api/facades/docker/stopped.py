"""docker cp with a container that does not run: its files as a layer has them.

Reading: what it has changed becomes an image for a moment, as with export. Writing, before the first start: the files
become a layer of the image that it holds. One that has run is not written to: what it wrote covers its image's layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import BinaryIO

from joey.api import archives, transfer
from joey.api.facades.docker.base import Refused, Req
from joey.build import copying
from joey.build.trees import Item, Tree
from joey.images import commit, compression, layers, snapshot
from joey.images.store import StoredImage
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.views import FileInfo

_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}  # fmt: skip
_AS_THEY_ARE = copying.How(owner=None)


@contextlib.asynccontextmanager
async def tree_of(r: Req, id: str) -> AsyncIterator[Tree]:
    """All files of a container, as they are now; gone after the block. Raises Conflict where its image is no layers."""
    own, snapshots = r.images, getattr(r.engine, "snapshots", None)
    if snapshots is None or own.held(id) is None:
        raise Conflict("", f"container {id} is not running: of the image host only files of a running one are reached")
    image = await r.whole(snapshots.for_forks(r.engine.find(id)))  # type: ignore[attr-defined]
    try:
        with own.store.busy(image.digest, *image.diff_ids):
            yield Tree(await asyncio.to_thread(archives.tree, own, image))
    finally:
        snapshots.drop(image)


def info(tree: Tree, path: str, *, follow: bool) -> tuple[str, FileInfo]:
    """(where it is in the tree, what it is). Raises NotFound."""
    try:
        real = tree.real(path, last=follow)
        found = tree.stat(real)
        target = "" if found is None or not stat.S_ISLNK(found.st_mode) else tree.target(real)
    except OSError as error:
        raise NotFound("", f"{path}: {error.strerror}") from None
    if found is None:
        raise NotFound("", f"Could not find the file {path}")
    name = path.rstrip("/").rpartition("/")[2]
    return real, FileInfo(
        name=name, path=path, type=_KINDS[stat.S_IFMT(found.st_mode)], size=found.st_size,  # type: ignore[arg-type]
        mode=found.st_mode & 0o7777, uid=found.st_uid, gid=found.st_gid, modified=found.st_mtime, target=target,
    )  # fmt: skip


def packed(tree: Tree, real: str, name: str) -> Iterator[bytes]:
    """An archive of what is there, under `name`. Blocks."""
    return chain(copying.Writer(None, _AS_THEY_ARE).item(Item(tree, real, name), name, False), [copying.end()])


async def write(r: Req, id: str, path: str) -> None:
    """Unpack the body into a directory of a container that was never started. Raises Conflict if it was."""
    own, box = r.images, r.engine.find(id)  # type: ignore[attr-defined]
    held = own.held(id)
    if held is None or box.view().state != "created":
        raise Conflict("", f"container {id} is not running: files are put into one that runs, or was never started")
    snapshots, parent = getattr(r.engine, "snapshots", None), own.store.find(held)
    if snapshots is None:
        raise Refused("archive", "this engine keeps no images")
    tree = Tree(await asyncio.to_thread(archives.tree, own, parent))
    target, found = info(tree, path, follow=True)
    if found.type != "directory":
        raise Invalid("", f"extraction point is not a directory: {path}")
    settings = own.image(box.spec.image, id)

    def work(file: BinaryIO) -> StoredImage:
        with ExitStack() as stack:
            writer = copying.Writer(tree, _AS_THEY_ARE)
            pieces = chain(writer.extract(_Expanded(file), target), [copying.end()])  # type: ignore[arg-type]
            layer = commit.archive_layer(own.store, pieces, hold=lambda *ids: stack.enter_context(own.store.busy(*ids)))
            kept = snapshot.StoredLayer(layer.diff_id, layer.blob, layer.size, layer.entries)
            made = snapshot.enter(own.store, parent, kept, settings, source=snapshot.FORK, created_by="docker cp")
            layers.prepare(own.store, made)
            return made

    async def exchange(image: StoredImage) -> None:
        if box.view().state != "created" or own.held(id) != held:
            raise Conflict("", f"container {id} has been started meanwhile")
        own.exchange(id, image.digest)
        box.exchange(box.spec)

    with snapshots.growing(), own.store.busy(parent.digest, *parent.diff_ids):
        try:
            image = await transfer.received(r, own.store.root, "archive", work)
        except Invalid as error:
            raise Invalid("", error.message) from None
        try:
            await box.in_turn(exchange(image))
        finally:
            snapshots.collect()


class _Expanded:
    """A file, decompressed if need be, to be read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._pieces, self._rest = compression.expand(file), b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        size = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


__all__ = ["info", "packed", "tree_of", "write"]
