"""Cache directories of builds (RUN --mount=type=cache): below cache/ of the image store, by their id, until a prune."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from joey.host import trees
from joey.model.errors import from_os

_locks: dict[str, asyncio.Lock] = {}
_in_use: Counter[str] = Counter()
_deciding = threading.Lock()
"""A directory is not taken into use while it is decided to remove it, which threads do."""


@contextlib.asynccontextmanager
async def use(root: Path, id: str, sharing: str, uid: int, gid: int, mode: int | None) -> AsyncIterator[Path]:
    """The directory of a cache, for as long as a step runs. root: of the image store. sharing: "locked" waits for who
    uses it, "private" gives another directory then. uid, gid, mode: of a new one. Raises HostFailed and its kin.
    """
    path = root / "cache" / hashlib.sha256(id.encode()).hexdigest()[:32]
    if sharing == "private" and _in_use[str(path)]:
        path = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    async with _locks.setdefault(str(path), asyncio.Lock()) if sharing == "locked" else contextlib.nullcontext():
        with _deciding:
            _in_use[str(path)] += 1
        try:
            with _deciding:
                _make(path, uid, gid, mode)
            yield path
        finally:
            _in_use[str(path)] -= 1


def _make(path: Path, uid: int, gid: int, mode: int | None) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            path.mkdir()
            os.chown(path, uid, gid)
            path.chmod(0o755 if mode is None else mode)
    except OSError as error:
        raise from_os("make a cache directory", error) from error


def prune(root: Path) -> int:
    """Remove those that no step uses; → bytes freed. Raises OSError. Not by two at once."""
    gone = []
    with _deciding, contextlib.suppress(FileNotFoundError):
        for name in os.listdir(root / "cache"):
            path = root / "cache" / name
            if not _in_use[str(path)]:
                target = path.with_name(f".gone-{secrets.token_hex(8)}")
                path.rename(target)
                gone.append(target)
    freed = sum(trees.disk_usage(path) or 0 for path in gone)
    for path in gone:
        trees.remove(path)
    return freed
