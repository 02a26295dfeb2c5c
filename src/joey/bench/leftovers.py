"""What of an instance is really there, by asking the kernel and the file system, not the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from joey.host import nft
from joey.host.instance import Instance
from joey.host.netlink import NETLINK_ROUTE, Link
from joey.host.netlink_route import routes

_NAMESPACES = ("net:[", "user:[", "mnt:[", "pid:[", "ipc:[", "uts:[", "cgroup:[")


def cgroup_mounts() -> list[str]:
    """Where cgroup hierarchies are mounted here (proc(5), mountinfo)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            found.append(left.split(" ")[4])
    return found


def cgroups_named(name: str) -> list[str]:
    """Every cgroup called `name` at the top of a hierarchy or one level below, and all below those."""
    found: list[str] = []
    for top in cgroup_mounts():
        for start in (Path(top, name), *_below_own(top, name)):
            if start.is_dir():
                found += [folder for folder, _, _ in os.walk(start)]
    return found


def _below_own(top: str, name: str) -> list[Path]:
    """Where a subtree may also be: below the cgroup this process was put into (a delegated one)."""
    places = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        path = line.split(":", 2)[2].strip("/")
        if path:
            places.append(Path(top, path, name))
    return places


def processes_in(cgroups: list[str]) -> set[int]:
    """Pids in the given cgroups."""
    pids: set[int] = set()
    for folder in cgroups:
        with contextlib.suppress(OSError):
            pids.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return pids


def descendants(pid: int) -> set[int]:
    """All processes below `pid`, dead ones nobody has waited for included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                rest = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(rest[1]), []).append(int(name))
    found: set[int] = set()
    pending = [pid]
    while pending:
        for child in children.get(pending.pop(), []):
            found.add(child)
            pending.append(child)
    return found


def namespace_descriptors() -> int:
    """Open descriptors of this process that keep a namespace alive."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith(_NAMESPACES)
    return count


def entries_below(folder: Path) -> int:
    """Files and directories below `folder`, itself not counted."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def _routes() -> set[object]:
    """IPv4 routes of this thread's network namespace; an address has one in the local table."""
    with Link(NETLINK_ROUTE) as link:
        return set(routes(link))


def _has_table(name: str) -> bool:
    """False also where the kernel has no nf_tables."""
    try:
        with nft.open_link() as link:
            return nft.Table(name).exists(link)
    except OSError:
        return False


class Watch:
    """What there was before an instance was opened; `count` says what is there beyond it."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._children = descendants(os.getpid())
        self._descriptors = namespace_descriptors()
        self._links = {name for _, name in socket.if_nameindex()}
        self._routes = _routes()

    def count(self) -> dict[str, int]:
        """kind -> number, for kinds of which something is there: processes (zombies too), cgroups, mounts, namespaces
        held by descriptors, network links, routes (of addresses, too), our nft table, files and directories in the
        instance's home.
        """
        cgroups = cgroups_named(self._instance.name)
        home = os.fspath(self._instance.home)
        mounts = sum(f" {home}" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
        found = {
            "processes": len((processes_in(cgroups) | descendants(os.getpid())) - self._children - {os.getpid()}),
            "cgroups": len(cgroups),
            "mounts": mounts,
            "namespaces": max(0, namespace_descriptors() - self._descriptors),
            "links": len({name for _, name in socket.if_nameindex()} - self._links),
            "routes and addresses": len(_routes() - self._routes),
            "nft tables": int(_has_table(self._instance.name)),
            "directories": entries_below(self._instance.home),
        }
        return {kind: number for kind, number in found.items() if number}

    async def gone(self, seconds: float = 30.0) -> dict[str, int]:
        """Wait until nothing is left, at most so long; what is left then."""
        deadline = time.monotonic() + seconds
        pause = 0.005
        while (left := self.count()) and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return left


def busy_cleaners() -> list[str]:
    """Kernel workers at work on what tear-down leaves behind (network namespaces, cgroups), by their names.

    A worker's name tells its queue, with `+` while it works on it (wq_worker_comm in kernel/workqueue.c).
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                comm = Path("/proc", name, "comm").read_text().strip()
                if comm.startswith("kworker") and ("+netns" in comm or "+cgroup" in comm):
                    found.append(comm)
    return found


async def settle(seconds: float = 10.0) -> None:
    """Wait until the kernel has finished taking down what went before, at most so long."""
    deadline = time.monotonic() + seconds
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        quiet = 0 if busy_cleaners() else quiet + 1
        await asyncio.sleep(0.02)
