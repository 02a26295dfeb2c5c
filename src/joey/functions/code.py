"""Where the code of functions lies: directories named by what is in them, made once and never changed.

DIR/sha256-…           a tree of code, or of a layer; mounted read-only at /code
DIR/layers-…           layers one over the other, mounted at /opt
DIR/requirements-…     what a requirements.txt asks for, as it was installed once in a sandbox
DIR/.making-…          not finished: removed when the store is opened
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from joey.functions import archives
from joey.functions.archives import Entry
from joey.functions.instance import LAYERS_AT, RUNTIME_AT, Paths
from joey.functions.requirements import install
from joey.model.errors import Exhausted, Invalid, NotFound, from_os
from joey.model.function import FunctionSpec

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

T = TypeVar("T")
_RUNTIME_NAME = os.path.relpath(RUNTIME_AT, LAYERS_AT)
RESERVE = 512 << 20
"""Bytes of the disk that stay free."""
_AT_ONCE = 2
"""Archives that are packed or unpacked: others of the daemon's threads are not for that."""
YOUNG_SECONDS = 600.0
"""What is younger is not collected: whoever made it may not have named it yet."""


@dataclass(frozen=True, slots=True)
class Code:
    """digest: what FunctionSpec.code and .layers hold. sha256: base64, of the archive as it came, or of the one that
    `archive` gives (AWS Lambda's CodeSha256). size: of that archive. unpacked: bytes of all files.
    """

    digest: str
    sha256: str
    size: int
    unpacked: int


class CodeStore:
    """All code of one daemon. Blocking work is done in threads. Raises Invalid, NotFound, HostFailed and its kin."""

    def __init__(self, path: Path, engine: Engine | None = None) -> None:
        """engine: for requirements."""
        self.path = path
        self._engine = engine
        self._installing: dict[str, asyncio.Future[Path]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, "joey-code")

    def open(self) -> None:
        """Make the directory, and remove what was not finished."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.path.glob(".making-*"):
            shutil.rmtree(left, ignore_errors=True)

    async def add_zip(self, source: bytes | Path) -> Code:
        """A zip, in memory or a file."""
        return await self._in_thread(lambda: self._add(archives.from_zip(source), source))

    async def add_tar(self, source: bytes | Path) -> Code:
        """A tar archive, compressed or not."""
        return await self._in_thread(lambda: self._add(archives.from_tar(source), None))

    async def add_folder(self, folder: Path) -> Code:
        """A directory of this machine."""
        return await self._in_thread(lambda: self._add(archives.from_folder(folder), None))

    async def add_inline(self, files: dict[str, str]) -> Code:
        """{path: text}."""
        return await self._in_thread(lambda: self._add(archives.from_inline(files), None))

    async def archive(self, digest: str) -> bytes:
        """The code as a zip."""
        folder = self.folder(digest)
        return await self._in_thread(lambda: archives.to_zip(folder))

    async def read(self, digest: str, path: str) -> bytes | None:
        """A file of it, None if it has none of that name (a link counts as none)."""
        folder = self.folder(digest)

        def find() -> bytes | None:
            full = folder / path
            if os.path.realpath(full) != os.path.join(os.path.realpath(folder), path) or not full.is_file():
                return None
            return full.read_bytes()

        return await self._in_thread(find)

    def folder(self, digest: str) -> Path:
        """Where a tree lies. Raises NotFound."""
        folder = self.path / digest.replace(":", "-")
        if not digest.startswith("sha256:") or "/" in digest or not folder.is_dir():
            raise NotFound("code", f"no code {digest[:80]!r} is here", "upload it")
        return folder

    def paths(self, spec: FunctionSpec) -> Paths:
        """Where a function's code lies, as `prepare` has left it. Raises NotFound."""
        layers = None
        if spec.layers:
            layers = self.path / _merged_name(spec.layers)
            if not layers.is_dir():
                raise NotFound("layers", "these layers have not been put together", "call prepare first")
        return Paths(self.folder(spec.code) if spec.code else None, layers)

    async def prepare(self, spec: FunctionSpec) -> Paths:
        """The same, made if need be: to be awaited when a version is made, not when an instance starts."""
        folders = [self.folder(digest) for digest in spec.layers]
        merged = self.path / _merged_name(spec.layers)
        if folders and not merged.is_dir():
            await self._in_thread(lambda: self._merge(folders, merged))
        return self.paths(spec)

    async def with_requirements(
        self, digest: str, text: str | None = None, *, image: str = "", python: str = "python3", owner: str = ""
    ) -> Code:
        """The code with what it requires beside it. text: a requirements.txt, None: the code's own, and the code as it
        is if it has none. It is installed in a sandbox of `image` with network, by pip, once. Raises Invalid (field
        requirements) with pip's last words.
        """
        if text is None:
            found = await self.read(digest, "requirements.txt")
            if found is None:
                return await self._describe(digest)
            text = found.decode("utf-8", "replace")
        if not text.strip():
            return await self._describe(digest)
        local = any(line.strip().startswith((".", "/", "-")) for line in text.splitlines())
        # An owner's own: his code lies in the sandbox that installs, and what his image is called he decides.
        key = hashlib.sha256("\0".join((owner, text, image, python, digest if local else "")).encode()).hexdigest()
        installed = self.path / f"requirements-{key}"
        if not installed.is_dir():
            await self._install(digest, text, installed, image, python, owner)
        own = self.folder(digest)

        def both() -> Iterator[Entry]:
            mine = {entry.path for entry in archives.from_folder(own)}
            yield from archives.from_folder(own)
            for entry in archives.from_folder(installed, everything=True):
                if entry.path not in mine:
                    yield entry

        return await self._in_thread(lambda: self._add(both(), None))

    async def _install(self, digest: str, text: str, to: Path, image: str, python: str, owner: str) -> None:
        if self._engine is None:
            raise Invalid("requirements", "cannot be installed here: there is no engine")
        if (running := self._installing.get(to.name)) is not None:
            await asyncio.shield(running)
            return
        self._installing[to.name] = mine = asyncio.get_running_loop().create_future()
        try:
            tar = await install(self._engine, self.folder(digest), text, image, python, owner, self.path)
            try:
                await self._in_thread(lambda: self._make(_below(archives.from_tar(tar)), to))
            finally:
                tar.unlink(missing_ok=True)
            mine.set_result(to)
        except BaseException as error:
            mine.set_exception(error if isinstance(error, Exception) else Invalid("requirements", "was given up"))
            mine.exception()  # nobody else may be waiting
            raise
        finally:
            del self._installing[to.name]

    async def collect(self, keep: Iterable[FunctionSpec]) -> int:
        """Remove what none of `keep` uses (those of live instances too), but what is young; gives how many."""
        kept = set()
        for spec in keep:
            kept |= {digest.replace(":", "-") for digest in (spec.code, *spec.layers)} | {_merged_name(spec.layers)}

        def remove() -> int:
            count, old = 0, time.time() - YOUNG_SECONDS
            for folder in self.path.iterdir():
                if folder.name not in kept and not folder.name.startswith(".") and folder.stat().st_ctime < old:
                    doomed = self.path / f".making-{secrets.token_hex(8)}"
                    folder.rename(doomed)
                    shutil.rmtree(doomed)
                    count += 1
            return count

        return await self._in_thread(remove)

    # --- in threads --------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            raise from_os("store code", error) from error

    async def _describe(self, digest: str) -> Code:
        folder = self.folder(digest)

        def describe() -> Code:
            packed = archives.to_zip(folder)
            return Code(digest, _base64(hashlib.sha256(packed).digest()), len(packed), archives.digest(folder)[1])

        return await self._in_thread(describe)

    def _add(self, entries: Iterable[Entry], source: bytes | Path | None) -> Code:
        with self._making() as folder:
            archives.unpack(entries, folder)
            digest, unpacked, count = archives.digest(folder)
            if not count:
                raise Invalid("code", "there is no file in it")
            self._keep(folder, self.path / digest.replace(":", "-"))
        if source is None:
            source = archives.to_zip(self.folder(digest))
        if isinstance(source, Path):
            with source.open("rb") as file:
                return Code(
                    digest, _base64(hashlib.file_digest(file, "sha256").digest()), source.stat().st_size, unpacked
                )
        return Code(digest, _base64(hashlib.sha256(source).digest()), len(source), unpacked)

    def _make(self, entries: Iterable[Entry], to: Path) -> None:
        with self._making() as folder:
            archives.unpack(entries, folder)
            self._keep(folder, to)

    def _merge(self, folders: list[Path], to: Path) -> None:
        """Later layers over earlier ones. Files are the same inodes: nothing writes to either."""
        with self._making() as made:
            size = 0
            for folder in folders:
                for path, full in archives.walk(folder):
                    target = made / path
                    if os.path.isdir(full) and not os.path.islink(full):
                        if os.path.lexists(target) and (os.path.islink(target) or not target.is_dir()):
                            target.unlink()
                        target.mkdir(0o755, exist_ok=True)
                        continue
                    size += os.lstat(full).st_size
                    if size > archives.MAX_UNPACKED:
                        raise Invalid("layers", f"are more than {archives.MAX_UNPACKED >> 20} MiB together")
                    _clear(target)
                    os.link(full, target, follow_symlinks=False)
            _clear(made / _RUNTIME_NAME)
            (made / _RUNTIME_NAME).mkdir(0o755)
            self._keep(made, to)

    @contextmanager
    def _making(self) -> Iterator[Path]:
        """An empty directory, where there is room for what may come. Raises Exhausted."""
        found = os.statvfs(self.path)
        if found.f_bavail * found.f_frsize < RESERVE + _AT_ONCE * archives.MAX_UNPACKED:
            raise Exhausted(str(self.path), f"less than {RESERVE >> 20} MiB would stay free", "room on that disk")
        folder = self.path / f".making-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, folder: Path, name: Path) -> None:
        """Give what was made its name; somebody may have made the same."""
        for _, full in archives.walk(folder):
            if os.path.isdir(full) and not os.path.islink(full):
                os.chmod(full, 0o755)
        try:
            folder.rename(name)
        except OSError:
            if not name.is_dir():
                raise
            os.utime(name)


def _below(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Those in the one directory that an archive is of."""
    for entry in entries:
        _, slash, rest = entry.path.partition("/")
        if slash:
            yield entry._replace(path=rest)


def _clear(path: Path) -> None:
    if os.path.islink(path) or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _merged_name(layers: tuple[str, ...]) -> str:
    return "layers-" + hashlib.sha256("\n".join(layers).encode()).hexdigest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


__all__ = ["Code", "CodeStore", "Paths"]
