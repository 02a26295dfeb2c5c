"""What containers have written (SizeRw), and that with their images (SizeRootFs)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from joey.api.facades.docker.base import Req
from joey.host import trees
from joey.model.errors import Conflict, JoeyError, NotFound

_MOST = 2_000_000
_AT_ONCE = 4


async def written(r: Req, id: str) -> int:
    """Bytes on the disk (or in memory, where the writable layer is there) of what a container has written.

    Raises NotFound; Conflict where there are too many files to count.
    """
    box = r.engine.find(id)  # type: ignore[attr-defined]
    snapshots = getattr(r.engine, "snapshots", None)
    upper: Path | None = snapshots.upper(box) if snapshots is not None else None
    if upper is None:
        return 0
    found = await asyncio.to_thread(_below, upper)
    if found is None:
        raise Conflict("size", f"{id[:12]} has written more than {_MOST} files: they are not counted")
    return found


def _below(upper: Path) -> int | None:
    """Without the directory itself: an empty layer is 0 bytes."""
    try:
        own = upper.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
    found = trees.disk_usage(upper, _MOST)
    return None if found is None else max(0, found - own)


async def of(r: Req, id: str, image: str) -> dict[str, int]:
    """The fields of a row or an inspect. image: its id. Raises as `written`."""
    total, below = await written(r, id), 0
    with contextlib.suppress(JoeyError):
        below = r.images.store.find(image).size
    return {"SizeRw": total, "SizeRootFs": below + total}


async def added(r: Req, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with these fields, counted a few at a time; without those that are gone meanwhile."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(row: dict[str, Any]) -> dict[str, Any] | None:
        async with turns:
            with contextlib.suppress(NotFound):
                return row | await of(r, row["Id"], row["ImageID"])
        return None

    return [row for row in await asyncio.gather(*map(one, rows)) if row is not None]
