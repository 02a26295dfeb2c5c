"""COPY, ADD and WORKDIR: layers that need no sandbox."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from joey.build import copying, download, trees
from joey.build.dockerfile import Instruction
from joey.build.planner import expand
from joey.build.state import State
from joey.build.trees import Item, Tree
from joey.build.words import WordError, expand_document
from joey.build.workshop import Workshop
from joey.images import commit, compression
from joey.images.commit import MadeLayer
from joey.images.users import resolve_user
from joey.model.errors import Invalid

_GIT = re.compile(r"^(git@|git://|ssh://)|\.git(#.*)?$")
_URL = re.compile(r"^https?://")


class PlaceStep:
    """One COPY, ADD or WORKDIR. root: the tree its sources are in."""

    def __init__(self, shop: Workshop, state: State, one: Instruction, escape: str, root: Tree) -> None:
        self.shop, self.state, self.one, self.escape, self.root = shop, state, one, escape, root
        self.foreign = bool(one.flag("from"))
        self.items: list[Item] = []
        self.archives: list[Item] = []
        self.texts: list[tuple[str, bytes]] = []
        self.link = one.flag("link") == "true"
        self.base: Tree | None = None
        self.mode: int | None = None
        self.owner: tuple[int, int] | None = None if self.foreign else (0, 0)
        self.owned, self.owner_text = False, ""

    async def prepare(self) -> None:
        """Find out what is copied, and fetch what comes from elsewhere. Raises Invalid naming the line."""
        if self.one.keyword == "WORKDIR":
            self.sources, self.target = [], self._absolute(self._expanded(self.one.rest))
        else:
            *self.sources, target = self._words()
            self.target = self._absolute(target)
        self._options()
        await self._find()
        many = len(self.items) + len(self.archives) + len(self.texts) > 1
        if many and not self.target.endswith("/"):
            raise self.one.error(f"{self.one.keyword}: with several sources the target is a directory", "end it with /")

    def _words(self) -> list[str]:
        found = list(self.one.exec_form or self.one.rest.split())
        documents = {
            f"<<{mark}{quote}{one.name}{quote}"
            for one in self.one.heredocs
            for mark in ("", "-")
            for quote in ("", '"', "'")
        }
        found = [word for word in found if not (self.one.heredocs and word.lstrip("0123456789") in documents)]
        if len(found) + len(self.one.heredocs) < 2 or not found:
            raise self.one.error(f"{self.one.keyword} takes sources and a target", f"{self.one.keyword} src /app/")
        return [self._expanded(word) for word in found]

    def _expanded(self, text: str) -> str:
        return expand(self.one, text, self.state.values, self.escape)

    def _absolute(self, path: str) -> str:
        if not path:
            raise self.one.error(f"{self.one.keyword}: the target is empty")
        whole = posixpath.normpath(posixpath.join(self.state.cwd, path))
        return f"{whole}/".replace("//", "/") if path.endswith(("/", "/.")) or path == "." else whole

    def _options(self) -> None:
        if text := self._expanded(self.one.flag("chmod")):
            if not re.fullmatch(r"[0-7]{3,4}", text):
                raise self.one.error(f"{self.one.keyword}: --chmod={text} is no mode", "--chmod=755")
            self.mode = int(text, 8)
        if text := self._expanded(self.one.flag("chown")):
            self.owned, self.owner_text = True, text

    def _owner(self, text: str) -> tuple[int, int]:
        name, colon, group = text.partition(":")
        if name.isdecimal() and (not colon or group.isdecimal()):
            ids = int(name), int(group or name)
            if max(ids) > 0xFFFF:
                raise self.one.error(f"{self.one.keyword}: --chown={text}: ids go up to 65535")
            return ids
        if self.base is None:
            raise self.one.error(f"{self.one.keyword}: --chown={text}: there is no /etc/passwd", "give numbers")
        fd = os.open(self.base.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = resolve_user([fd], text)
        except Invalid as error:
            raise self.one.error(f"{self.one.keyword}: --chown={text}: {error.message}", error.remedy) from None
        finally:
            os.close(fd)
        return found.uid, found.gid

    # --- sources -----------------------------------------------------------------------------------------------------

    async def _find(self) -> None:
        for document in self.one.heredocs:
            text = document.content
            try:
                text = expand_document(text, self.state.values, self.escape) if document.expand else text
            except WordError as error:
                raise self.one.error(str(error)) from None
            self.texts.append((document.name, text.encode()))
        for source in self.sources:
            if self.one.keyword == "ADD" and _URL.match(source) and not _GIT.search(source):
                self.items.append(await self._fetched(source))
            elif self.one.keyword == "ADD" and _GIT.search(source):
                raise self.one.error(f"ADD: {source}: git repositories are not fetched", "clone in a RUN step")
            else:
                await self.shop.thread(lambda source=source: self._local(source))  # type: ignore[misc]

    async def _fetched(self, url: str) -> Item:
        if self.owner is None:
            self.owner = (0, 0)
        name = posixpath.basename(urlsplit(url).path)
        if not name and self.target.endswith("/"):
            raise self.one.error(f"ADD: {url} has no name of a file", "give the target a name")
        folder = self.shop.folder / f"fetched-{len(self.items)}-{self.one.line}"
        folder.mkdir(exist_ok=True)
        try:
            await download.fetch(url, folder / (name or "file"), self._expanded(self.one.flag("checksum")))
        except Invalid as error:
            raise self.one.error(f"ADD: {url}: {error.message}", error.remedy) from None
        return Item(Tree(folder), name or "file", name or "file")

    def _local(self, source: str) -> None:
        where = self.one.flag("from") or "the context"
        try:
            found = self.root.select(trees.inside(source))
        except (ValueError, OSError) as error:
            remedy = "only what is below it can be copied: build with a directory above as context"
            raise self.one.error(f"{self.one.keyword}: {error}", remedy if "outside" in str(error) else "") from None
        if not found:
            hint = "" if self.foreign else "is it left out by .dockerignore, or relative to another directory?"
            raise self.one.error(f"{self.one.keyword}: {source} is not in {where}", hint)
        for path in found:
            given = posixpath.basename(posixpath.normpath(source))
            name = given if len(found) == 1 and not set(given) & set("*?[") else posixpath.basename(path)
            item = Item(self.root, path, name or "root")
            if self.one.keyword == "ADD" and _is_archive(item):
                self.archives.append(item)
            else:
                self.items.append(item)

    # --- the key, and the layer --------------------------------------------------------------------------------------

    def key(self) -> list[Any]:
        """What its result depends on. Blocks for reading everything that is copied."""
        owners = self.foreign and not self.owned
        items = (*self.items, *self.archives)
        found = [(os.fsencode(one.name).hex(), trees.fingerprint(one, owners=owners)) for one in items]
        texts = [(name, data.decode()) for name, data in self.texts]
        base = None if self.link else self.state.diff_ids
        owner = [self.owner, self.owner_text]
        return [self.one.keyword, base, self.target, owner, self.mode, found, texts, len(self.archives)]

    def make(self) -> MadeLayer:
        """Blocks."""
        if not self.link:
            self.base = self.shop.tree(self.state)
        if self.owned:
            self.owner = self._owner(self.owner_text)
        try:
            return commit.archive_layer(self.shop.store, self._archive(), hold=self.shop.hold)
        except Invalid as error:
            if error.where in ("COPY", "ADD"):
                raise self.one.error(f"{self.one.keyword}: {error.message}", error.remedy) from None
            raise

    def _archive(self) -> Iterator[bytes]:
        how = copying.How(self.owner, self.mode, int(self.shop.now), self.shop.options.epoch)
        writer = copying.Writer(self.base, how)
        try:
            target = writer.target(self.target)
        except OSError as error:
            raise Invalid("COPY", f"{self.target}: {error.strerror}") from None
        folder = self.target.endswith("/")
        if self.one.keyword == "WORKDIR":
            if not writer.is_directory(target):
                yield from writer.above(target)
                yield from writer.directory(target)
        for name, data in self.texts:
            inside = folder or writer.is_directory(target)
            yield from writer.text(data, writer.target(f"{target}/{name}") if inside else target)
        for item in self.items:
            yield from writer.item(item, target, folder)
        for item in self.archives:
            plain = copying.Writer(
                self.base, copying.How(self.owner if self.owned else None, self.mode, how.now, how.epoch)
            )
            plain.made, plain.files = writer.made, writer.files
            with _expanded(item) as file:
                yield from plain.extract(file, target)
        yield copying.end()


@contextlib.contextmanager
def _expanded(item: Item) -> Iterator[BinaryIO]:
    """An archive without its compression: gzip, zstd, bzip2, xz or none."""
    with os.fdopen(item.tree.open(item.path), "rb") as file:
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"BZh"):
            yield cast(BinaryIO, bz2.BZ2File(file))
        elif head.startswith(b"\xfd7zXZ\0"):
            yield cast(BinaryIO, lzma.LZMAFile(file))
        else:
            yield cast(BinaryIO, _Pieces(compression.expand(file)))


class _Pieces:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest, self._at = pieces, b"", 0

    def read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            if self._at == len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest, self._at = piece, 0
            part = self._rest[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)


def _is_archive(item: Item) -> bool:
    """Whether ADD unpacks it: a file that is a tar archive, compressed or not."""
    found = item.tree.stat(item.path)
    if found is None or not os.path.isfile(item.tree.place(item.path)):
        return False
    try:
        with _expanded(item) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            return archive.next() is not None
    except (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError):  # Invalid is a ValueError
        return False
