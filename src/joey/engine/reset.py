"""Remove everything an instance ever made, and say what there was."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from joey import images
from joey.engine import networks
from joey.engine.machine import demolish
from joey.host import trees
from joey.host.instance import Instance
from joey.host.launcher import connect
from joey.host.storage import Storage
from joey.model.errors import JoeyError
from joey.model.views import DiskUsage, ResetReport

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine


async def reset(engine: Engine) -> ResetReport:
    """First in order, as far as the engine is able to, then whatever is left by force."""
    instance = engine.instance
    boxes = len(tuple(engine.boxes))
    with contextlib.suppress(JoeyError, OSError, AttributeError):
        await engine.forks.clear()
        for pool in engine.pools():
            await engine.pool_remove(pool.name, owner=pool.owner)
        await asyncio.gather(*(engine.remove(box.id, force=True) for box in engine.boxes), return_exceptions=True)
        await engine.close(stop_launcher=True)
    launchers = await _stop_launchers(instance)
    links = await asyncio.to_thread(networks.demolish, instance)
    removed = await asyncio.to_thread(demolish, instance)
    removed["links"] = links
    removed["processes"] += launchers
    removed["sandboxes"] = boxes
    removed["files"] = _remove_files(instance)
    return ResetReport(removed={kind: count for kind, count in removed.items() if count})


async def _stop_launchers(instance: Instance) -> int:
    """End launchers of engines that are gone; what runs in them is removed with its cgroups."""
    count = 0
    found = [path for path in instance.run.glob("launcher-*") if path.is_socket()] if instance.run.is_dir() else []
    for path in found:
        with contextlib.suppress(OSError):
            launcher = await connect(path)
            await launcher.stop(force=True)
            count += 1
        path.unlink(missing_ok=True)
    return count


def _remove_files(instance: Instance) -> int:
    """Only what is ours; JOEY_HOME itself goes if it is empty then. Locks and sockets of a running daemon stay."""
    count = 0
    ours = (
        instance.logs, instance.images, instance.scratch, instance.disk, instance.volumes, instance.namespace_root,
        instance.home / "functions",
    )  # fmt: skip
    for path in ours:
        if path.exists():
            count += sum(len(files) for _, _, files in os.walk(path))
            trees.remove(path)
    for path in [
        *instance.home.glob("state.db*"),
        *instance.home.glob("functions.db*"),
        instance.home / "proxy.port",
        instance.home / "e2b.json",
        instance.home / "lambda.json",
        instance.home / "fc.json",
        instance.home / "docker.socket",
        instance.run / "launcher.log",
        instance.run / "facts.json",
    ]:
        if path.exists():
            path.unlink()
            count += 1
    instance.remove()
    return count


def disk_usage(instance: Instance, storage: Storage, boxes: Sequence[Box]) -> Sequence[DiskUsage]:
    """What takes room, a row a kind."""
    used = [(box.spec.storage, storage.usage(box.slot.name) or 0) for box in boxes if box.slot is not None]
    disk = sum(size for where, size in used if where == "disk")
    count, size = images.usage(instance)
    return (
        DiskUsage(kind="images", count=count, bytes=size),
        DiskUsage(kind="layers", count=len(used), bytes=disk, memory=sum(size for _, size in used) - disk),
        DiskUsage(kind="volumes", count=_volumes(instance), bytes=_bytes(instance.volumes)),
        DiskUsage(kind="logs", count=_entries(instance.logs), bytes=_bytes(instance.logs)),
        DiskUsage(kind="state", count=1, bytes=sum(p.stat().st_size for p in instance.home.glob("state.db*"))),
    )


def _volumes(instance: Instance) -> int:
    return sum(1 for _ in instance.volumes.glob("*/volume.json"))


def _entries(path: Path) -> int:
    return len(os.listdir(path)) if path.is_dir() else 0


def _bytes(path: Path) -> int:
    return trees.disk_usage(path) or 0
