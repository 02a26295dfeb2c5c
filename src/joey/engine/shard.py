"""One launcher as the engine sees it, whichever process it is at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import NamedTuple, TypeVar

from joey.host import sys
from joey.host.launcher import Done, Launcher, LauncherError, LauncherGone
from joey.host.wire import Child
from joey.model.image import Layer
from joey.plan import setup
from joey.plan.encode import VERSION as PLAN_VERSION
from joey.plan.encode import encode
from joey.plan.flags import ROLE_STDIN
from joey.plan.layout import layer_path

T = TypeVar("T")
_TRIES = 5
HOST_LAYER = "host-"
"""How ids of layers begin that are always attached."""


class Running(NamedTuple):
    """A child: pid of the host, name of its slot; main: the sandbox's first process, not one of exec."""

    pid: int
    slot: str
    main: bool


class Shard:
    """One launcher: its connection, what is attached in it, how many children it has. When the launcher ends, another
    takes its place, and its children over.
    """

    def __init__(self, number: int, launcher: Launcher) -> None:
        self.number = number
        self.launcher = launcher
        self.children = 0
        self.running: dict[int, Running] = {}
        """What a new launcher has to find again should this one end: by key, all that was answered to."""
        self.gone = False
        self.life = 0
        """How many launchers it has had before this one."""
        self.outdated = launcher.plans != PLAN_VERSION
        """Of another version: it keeps what it has, and starts nothing."""
        self._back = asyncio.Event()
        self._back.set()
        self._layers: dict[str, asyncio.Future[None]] = {}
        self._users: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, key: int, plan: bytes, fds: Sequence[int] = ()) -> Done:
        """Run an encoded plan. Raises LauncherError, LauncherGone."""
        await self._back.wait()
        return await self.launcher.run(key, plan, fds)

    async def ready(self) -> None:
        """Return when there is a launcher that knows its children."""
        await self._back.wait()

    async def signal(self, key: int, number: int, *, group: bool = False) -> None:
        """Signal a child (group: and its process group), of a launcher that has just ended by the next one. Raises
        LauncherError(ESRCH) if it has ended, LauncherGone if there is no next one.
        """
        await self._back.wait()
        await self._again(lambda: self.launcher.signal(key, number, group=group))

    async def fetch(self, key: int) -> dict[int, int]:
        """Copies of a child's descriptors by role; none if it is no more. Raises LauncherError, LauncherGone."""
        try:
            return await self._again(lambda: self.launcher.fetch(key))
        except LauncherError as error:
            if error.errno != errno.ENOENT:
                raise
            return {}

    async def list(self) -> list[Child]:
        """All children. Of a launcher that has just ended: those that the next one has been given."""
        return await self._again(lambda: self.launcher.list())

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Of the next launcher, when this one ends. Raises LauncherGone when one after the other does."""
        for left in reversed(range(_TRIES)):
            try:
                return await ask()
            except LauncherGone:
                if not left:
                    raise
            await asyncio.sleep(0)  # its end may have to be noticed first
            await self._back.wait()
        raise AssertionError

    def lose(self) -> None:
        """Its launcher is gone. Whoever asks for something waits for the next one."""
        self.gone = True
        self.life += 1
        self._layers.clear()
        self._back.clear()

    def replace(self, launcher: Launcher) -> None:
        """It has the next one, which does not know its children yet."""
        self.launcher, self.gone, self.outdated = launcher, False, False

    def go_on(self) -> None:
        """Whoever waits for the next one need not wait any more."""
        self._back.set()

    def end_input(self, key: int) -> None:
        """Drop the copy of a child's standard input that the launcher keeps for an engine that restarts."""
        self._let_go(key, 1 << ROLE_STDIN)

    def end_streams(self, key: int) -> None:
        """Drop its copies of all of a child's streams: nobody will read them any more."""
        self._let_go(key, 0xFF)

    def _let_go(self, key: int, roles: int) -> None:
        self._spawn(self._release(key, roles))

    async def _release(self, key: int, roles: int) -> None:
        await self._back.wait()
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
            if known.done() and self._layers.get(layer.id) is known:
                del self._layers[layer.id]
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
