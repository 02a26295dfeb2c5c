"""The launchers of one instance: several, so that no one process holds too many descriptors or children, and a worker.

The worker is one more launcher that starts nothing: it makes and clears slots, beside the launches instead of between
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

from joey.host import sys
from joey.host.cgroup import InstanceCgroup
from joey.host.instance import Instance
from joey.host.launcher import Done, Launcher, LauncherError, LauncherGone, connect, spawn
from joey.host.wire import Child
from joey.model.cgroup import CgroupLayout
from joey.model.errors import Broken, JoeyError, from_os
from joey.model.image import Layer
from joey.native import binary
from joey.plan import setup
from joey.plan.encode import encode
from joey.plan.flags import ROLE_STDIN
from joey.plan.layout import layer_path
from joey.plan.ops import Plan

CHILDREN_PER_LAUNCHER = 4000
"""Two descriptors each for output, of the 20,000 a process may have where root lacks CAP_SYS_RESOURCE (docs/limits.md).
"""
MAX_LAUNCHERS = 16
MAX_WIDTH = 4
"""Launchers that work side by side however many processors there are."""
HOST_LAYER = "host-"
"""How ids of layers begin that are always attached."""
WORKER = 99
"""Its number among the launchers."""
_SEALS = 0x1 | 0x2 | 0x4 | 0x8


class Shard:
    """One launcher: its connection, what is attached in it, how many children it has."""

    def __init__(self, number: int, launcher: Launcher) -> None:
        self.number = number
        self.launcher = launcher
        self.children = 0
        self.gone = False
        self._layers: dict[str, asyncio.Future[None]] = {}
        self._users: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, key: int, plan: bytes, fds: Sequence[int] = ()) -> Done:
        """Run an encoded plan. Raises LauncherError, LauncherGone."""
        return await self.launcher.run(key, plan, fds)

    def end_input(self, key: int) -> None:
        """Drop the copy of a child's standard input that the launcher keeps for an engine that restarts."""
        self._let_go(key, 1 << ROLE_STDIN)

    def end_streams(self, key: int) -> None:
        """Drop its copies of all of a child's streams: nobody will read them any more."""
        self._let_go(key, 0xFF)

    def _let_go(self, key: int, roles: int) -> None:
        self._spawn(self._release(key, roles))

    async def _release(self, key: int, roles: int) -> None:
        with contextlib.suppress(LauncherError, LauncherGone):  # it has ended
            await self.launcher.release(key, roles)

    async def attach(self, layer: Layer) -> None:
        """Make a layer reachable, once. Raises OSError for a source that cannot be opened."""
        known = self._layers.get(layer.id)
        if known is None:
            known = self._layers[layer.id] = asyncio.ensure_future(self._attach(layer))
        try:
            await asyncio.shield(known)
        except BaseException:
            if known.done():
                self._layers.pop(layer.id, None)
            raise

    async def _attach(self, layer: Layer) -> None:
        tree = sys.open_tree(sys.AT_FDCWD, layer.source, sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE)
        try:
            await self.run(0, encode(setup.attach(layer)), (tree,))
        except LauncherError:
            with contextlib.suppress(OSError):
                await self.run(0, encode(setup.abandon(layer)))
            raise
        finally:
            os.close(tree)

    def use(self, layers: Iterable[Layer]) -> None:
        """A sandbox is going to be of `layers`."""
        self._users.update(layer.id for layer in layers)

    def leave(self, layers: Iterable[Layer]) -> None:
        """It has ended, or never began. Layers that nobody uses any more are detached, but for those of the host."""
        for layer in layers:
            self._users[layer.id] -= 1
            if self._users[layer.id] <= 0:
                del self._users[layer.id]
                self._detach(layer.id)

    def _detach(self, id: str) -> None:
        known = self._layers.pop(id, None)
        if known is not None and known.done() and known.exception() is None:
            self._spawn(self._do_detach(id))

    async def _do_detach(self, id: str) -> None:
        with contextlib.suppress(LauncherError, LauncherGone):
            await self.run(0, encode(setup.detach(id)))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """In the background. The launcher does what it is asked for in order."""
        self._ending = {task for task in self._ending if not task.done()}
        self._ending.add(asyncio.ensure_future(work))

    def find_layers(self) -> None:
        """Of a launcher that an earlier engine left: what it has attached, so that it is not attached again."""
        loop, prefix = asyncio.get_running_loop(), layer_path("")
        with open(f"/proc/{self.launcher.pid}/mountinfo") as mounts:
            points = {line.split(" ", 5)[4] for line in mounts}
        for point in points:
            if point.startswith(prefix) and "/" not in (id := point.removeprefix(prefix)):
                self._layers[id] = loop.create_future()
                self._layers[id].set_result(None)
                if not id.startswith(HOST_LAYER):  # what runs of it has copies of its own
                    self._detach(id)


class Fleet:
    """All launchers of an instance. `on_exit(shard, child)` hears of every end, `on_gone(shard)` of a lost launcher."""

    def __init__(self, instance: Instance, layout: CgroupLayout, cgroup: InstanceCgroup) -> None:
        self.on_exit: Callable[[Shard, Child], None] = lambda shard, child: None
        self.on_gone: Callable[[Shard], None] = lambda shard: None
        self._instance = instance
        self._layout = layout
        self._cgroup = cgroup
        self._shards: dict[int, Shard] = {}
        self._worker: Shard | None = None
        self._starting = asyncio.Lock()
        self.width = min(MAX_WIDTH, os.cpu_count() or 1)
        self._keep: tuple[int, ...] = ()

    def keep(self, fds: Iterable[int]) -> None:
        """Descriptors that every launcher shall hold open as long as it lives."""
        self._keep = tuple(fds)

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(self._shards.values())

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of our own besides the engine."""
        return tuple(s.launcher.pid for s in (*self._shards.values(), *([self._worker] if self._worker else [])))

    async def adopt(self) -> None:
        """Connect to the launchers that an earlier engine left."""
        for number in (*range(MAX_LAUNCHERS), WORKER):
            try:
                shard = Shard(number, await connect(self._instance.launcher_socket(number)))
            except OSError:
                continue
            self._know(shard)
            shard.find_layers()

    async def shard(self) -> Shard:
        """The launcher to start the next sandbox with: the least filled of as many as there are processors (their work
        overlaps, but for the kernel's mount locks), and of more when these are full.
        """
        if not self._enough():
            async with self._starting:
                if not self._enough():
                    number = next(n for n in range(MAX_LAUNCHERS + 1) if n not in self._shards)
                    self._know(await self._start(number))
        return min(self._shards.values(), key=lambda s: s.children)

    def _enough(self) -> bool:
        count = len(self._shards)
        room = any(shard.children < CHILDREN_PER_LAUNCHER for shard in self._shards.values())
        return count >= MAX_LAUNCHERS or (count >= self.width and room)

    async def worker(self) -> Shard:
        """The launcher for slots."""
        if self._worker is None:
            async with self._starting:
                if self._worker is None:
                    self._know(await self._start(WORKER))
        assert self._worker is not None
        return self._worker

    def get(self, number: int) -> Shard | None:
        return self._shards.get(number)

    async def close(self, *, stop: bool) -> None:
        """Drop the connections; with `stop`, end every launcher that holds no child."""
        for shard in [*self._shards.values(), *([self._worker] if self._worker else [])]:
            shard.launcher.on_gone = lambda: None
            if stop or shard is self._worker:
                with contextlib.suppress(OSError):
                    await shard.launcher.stop()
                    self._instance.launcher_socket(shard.number).unlink(missing_ok=True)
            shard.launcher.close()
        self._shards.clear()
        self._worker = None

    async def _start(self, number: int) -> Shard:
        """Only a launcher that is set up gets the name under which a later engine will find it."""
        path = self._instance.launcher_socket(number)
        new = path.with_suffix(".new")
        try:
            launcher = await spawn(new)
        except OSError as error:
            new.unlink(missing_ok=True)
            if isinstance(error, LauncherGone):
                raise Broken("start a launcher", str(error), f"see {self._instance.run / 'launcher.log'}") from error
            raise from_os("start a launcher", error) from error
        try:
            await self._set_up(launcher)
            new.rename(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                await launcher.stop(force=True)
            launcher.close()
            new.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise from_os("prepare a launcher", error) from error
            raise
        return Shard(number, launcher)

    async def _set_up(self, launcher: Launcher) -> None:
        boxes = {"memory": os.fspath(self._instance.scratch), "disk": os.fspath(self._instance.disk)}
        plan = setup.setup(self._layout, self._cgroup.name, os.fspath(self._instance.namespace_root), boxes)
        with _init_program() as init:
            await _prepare(launcher, plan, init)
        for register, fd in enumerate(self._keep):
            await _prepare(launcher, setup.keep(register), fd)
        for directory in self._cgroup.launcher_directories:
            with open(f"{directory}/cgroup.procs", "w") as procs:
                procs.write(str(launcher.pid))
        await launcher.subscribe()

    def _know(self, shard: Shard) -> None:
        if shard.number == WORKER:
            self._worker = shard
            shard.launcher.on_gone = self._worker_gone
            return
        self._shards[shard.number] = shard
        shard.launcher.on_exit = lambda child: self.on_exit(shard, child)
        shard.launcher.on_gone = lambda: self._shard_gone(shard)

    def _shard_gone(self, shard: Shard) -> None:
        self._shards.pop(shard.number, None)
        shard.gone = True
        self.on_gone(shard)

    def _worker_gone(self) -> None:
        self._worker = None


async def _prepare(launcher: Launcher, plan: Plan, fd: int) -> None:
    try:
        await launcher.run(0, encode(plan), (fd,))
    except LauncherError as error:
        raise refused(plan, error, "prepare the launcher") from error


@contextlib.contextmanager
def _init_program() -> Iterator[int]:
    """joey-init in a memfd that nobody can change: what runs as PID 1 is no file of the host."""
    fd = os.memfd_create("joey-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(binary("joey-init").read_bytes())
        os.fchmod(fd, 0o555)  # seals do not stop extended attributes, which all sandboxes would have in common
        fcntl.fcntl(fd, 1033, _SEALS)
        yield fd
    finally:
        os.close(fd)


def refused(plan: Plan, error: LauncherError, what: str) -> JoeyError:
    """The error for a plan of the engine's own that failed. what: says so if no operation is to blame."""
    step = f"{what}: op {error.op} {plan.ops[error.op].describe()}" if 0 <= error.op < len(plan.ops) else what
    return from_os(step, OSError(error.errno, error.strerror))
