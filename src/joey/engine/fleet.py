"""The launchers of one instance: several, so that no one process holds too many descriptors or children, and a worker.

The worker is one more launcher that starts nothing: it makes and clears slots, beside the launches instead of between
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping

from joey.engine.shard import HOST_LAYER, Running, Shard
from joey.host import orphans, sys
from joey.host.cgroup import InstanceCgroup
from joey.host.instance import Instance
from joey.host.launcher import Launcher, LauncherError, LauncherGone, connect, sealed_program, spawn
from joey.host.wire import UNKNOWN, Child
from joey.model.cgroup import CgroupLayout
from joey.model.errors import Broken, JoeyError, from_os
from joey.plan import setup
from joey.plan.encode import encode
from joey.plan.ops import Plan

CHILDREN_PER_LAUNCHER = 4000
"""Two descriptors each for output, of the 20,000 a process may have where root lacks CAP_SYS_RESOURCE (docs/limits.md).
"""
MAX_LAUNCHERS = 16
MAX_WIDTH = 4
"""Launchers that work side by side however many processors there are."""
WORKER = 99
"""Its number among the launchers."""
_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.1, 5.0
_log = logging.getLogger(__name__)


class Fleet:
    """All launchers of an instance. `on_exit(shard, child)` hears of every end; of one that nobody saw, for want of a
    launcher, `child.unknown` says so. held: copies of a child's streams that somebody has open, by role.
    """

    def __init__(self, instance: Instance, layout: CgroupLayout, cgroup: InstanceCgroup) -> None:
        self._on_exit: Callable[[Shard, Child], None] | None = None
        self._unheard: list[tuple[Shard, Child]] = []
        self.held: Callable[[int], Mapping[int, int]] = lambda key: {}
        self._instance = instance
        self._layout = layout
        self._cgroup = cgroup
        self._shards: dict[int, Shard] = {}
        self._worker: Shard | None = None
        self._starting = asyncio.Lock()
        self.width = min(MAX_WIDTH, os.cpu_count() or 1)
        self._keep: tuple[int, ...] = ()
        self._rescues: set[asyncio.Task[None]] = set()
        self._closed = False
        self._repairing = asyncio.Lock()
        self.repairs = 0
        self._places = self._found_places()

    def keep(self, fds: Iterable[int]) -> None:
        """Descriptors that every launcher shall hold open as long as it lives."""
        self._keep = tuple(fds)

    async def hold(self, fd: int) -> None:
        """One more that every launcher shall hold open, those that run as well."""
        self._keep = (*self._keep, fd)
        for shard in (*self._usable(), *self._workers()):
            with contextlib.suppress(LauncherGone):  # the next one is given all of them
                await _prepare(shard.launcher, setup.keep(len(self._keep) - 1), fd)

    @property
    def on_exit(self) -> Callable[[Shard, Child], None]:
        return self._on_exit or (lambda shard, child: None)

    @on_exit.setter
    def on_exit(self, listener: Callable[[Shard, Child], None]) -> None:
        """From now on it is told. A launcher repeats the ends it knows; those that nobody saw are repeated here."""
        self._on_exit = listener
        unheard, self._unheard = self._unheard, []
        for shard, child in unheard:
            asyncio.get_running_loop().call_soon(listener, shard, child)

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(self._shards.values())

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of our own besides the engine."""
        return tuple(s.launcher.pid for s in (*self._shards.values(), *self._workers()))

    async def adopt(self) -> None:
        """Connect to the launchers that an earlier engine left."""
        for number in (*range(WORKER), WORKER):
            try:
                shard = Shard(number, await connect(self._instance.launcher_socket(number)))
            except OSError:
                continue
            if number == WORKER and shard.outdated:  # it has no children
                with contextlib.suppress(OSError):
                    await shard.launcher.stop(force=True)
                shard.launcher.close()
                continue
            self._know(shard)
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                shard.find_layers()

    async def shard(self) -> Shard:
        """The launcher to start the next sandbox with: the least filled of as many as there are processors (their work
        overlaps, but for the kernel's mount locks), and of more when these are full.
        """
        if not self._enough():
            async with self._starting:
                if not self._enough():
                    number = next(n for n in range(WORKER) if n not in self._shards)
                    self._know(await self._start(number))
        return min(self._usable() or self._shards.values(), key=lambda s: s.children)

    def _enough(self) -> bool:
        usable, most = self._usable(), MAX_LAUNCHERS - sum(shard.gone for shard in self._shards.values())
        room = any(shard.children < CHILDREN_PER_LAUNCHER for shard in usable)
        return len(usable) >= most or (len(usable) >= self.width and room)

    def _usable(self) -> list[Shard]:
        return [shard for shard in self._shards.values() if not (shard.gone or shard.outdated)]

    def _workers(self) -> tuple[Shard, ...]:
        """The worker, if there is one."""
        return () if self._worker is None else (self._worker,)

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
        self._closed = True
        for task in tuple(self._rescues):
            task.cancel()
        for shard in (*self._shards.values(), *self._workers()):
            shard.launcher.on_gone = lambda: None
            shard.go_on()
            if stop or shard is self._worker:
                with contextlib.suppress(OSError):
                    await shard.launcher.stop()
                    self._instance.launcher_socket(shard.number).unlink(missing_ok=True)
            shard.launcher.close()
        self._shards.clear()
        self._worker = None

    def _found_places(self) -> list[int]:
        """Of the instance's cgroups, an inode number each; 0 for one that is not there."""
        found = []
        for hierarchy in self._layout.hierarchies:
            try:
                found.append(os.stat(self._cgroup.directory(hierarchy)).st_ino)
            except FileNotFoundError:
                found.append(0)
        return found

    async def repair(self, repairs: int) -> bool:
        """Make the instance's cgroups again where somebody has removed them, and have every launcher use those. Whether
        that was done since there had been so many `repairs`. Raises CgroupError, LauncherError, OSError.
        """
        async with self._repairing:
            if self._found_places() == self._places:
                return self.repairs != repairs
            self.repairs += 1
            _log.error("cgroups of this instance have been removed; they are made again")
            self._cgroup.create()
            plan = encode(setup.rebind(self._layout))
            for shard in (*self._usable(), *self._workers()):
                with contextlib.ExitStack() as stack:
                    trees = []
                    for hierarchy in self._layout.hierarchies:
                        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
                        trees.append(sys.open_tree(sys.AT_FDCWD, self._cgroup.directory(hierarchy), flags))
                        stack.callback(os.close, trees[-1])
                    with contextlib.suppress(LauncherGone):  # the next one finds them as they are
                        await shard.launcher.run(0, plan, trees)
            self._places = self._found_places()
            return True

    async def _start(self, number: int) -> Shard:
        return Shard(number, await self._start_launcher(number))

    async def _start_launcher(self, number: int) -> Launcher:
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
        return launcher

    async def _set_up(self, launcher: Launcher) -> None:
        boxes = {"memory": os.fspath(self._instance.scratch), "disk": os.fspath(self._instance.disk)}
        plan = setup.setup(self._layout, self._cgroup.name, os.fspath(self._instance.namespace_root), boxes)
        init = sealed_program("joey-init", 0o555)
        try:
            await _prepare(launcher, plan, init)
        finally:
            os.close(init)
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
        else:
            self._shards[shard.number] = shard
            shard.launcher.on_exit = lambda child: self._exited(shard, child)
            shard.launcher.on_gone = lambda: self._shard_gone(shard)
        if shard.launcher.lost:  # between its last answer and now
            asyncio.get_running_loop().call_soon(shard.launcher.on_gone)

    def _exited(self, shard: Shard, child: Child) -> None:
        shard.running.pop(child.key, None)
        if self._on_exit is not None:
            self._on_exit(shard, child)
        elif child.unknown:
            self._unheard.append((shard, child))

    # --- a launcher that ends ----------------------------------------------------------------------------------------

    def started(self, shard: Shard, key: int, running: Running, life: int) -> None:
        """A child was answered to, by the launcher of that `life`: perhaps its last words, and another is there now."""
        shard.running[key] = running
        if life != shard.life and not shard.gone:
            self._spawn(self._take_over(shard, {key: running}))

    def _shard_gone(self, shard: Shard) -> None:
        _log.error("launcher %d (pid %d) is gone", shard.number, shard.launcher.pid)
        shard.lose()
        self._spawn(self._rescue(shard))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._rescues.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self._rescues.discard)

    async def _rescue(self, shard: Shard) -> None:
        """A new launcher in its place. Its children have run on, and those that end from now on are known by pidfd."""
        pidfds = _claims(shard.running)
        try:
            launcher = await self._another(shard)
            if launcher is None:
                return
            shard.replace(launcher)
            life = shard.life
            self._know(shard)
            await self._take_over(shard, dict(shard.running), pidfds)
            if life != shard.life:
                return  # it is gone, too, and its own rescue goes on
            shard.go_on()
            for slot in {one.slot for one in shard.running.values()}:
                self._end_strangers(slot)
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    async def _another(self, shard: Shard) -> Launcher | None:
        """Tried until it can be had, or the engine closes."""
        pause = _PAUSE_SECONDS
        while not self._closed:
            try:
                return await self._start_launcher(shard.number)
            except JoeyError as error:
                _log.error("launcher %d cannot be replaced yet: %s", shard.number, error)
            except Exception:  # not a reason to leave its sandboxes to themselves
                _log.exception("launcher %d cannot be replaced yet", shard.number)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_SECONDS)
        return None

    async def _take_over(
        self, shard: Shard, children: Mapping[int, Running], pidfds: dict[int, int] | None = None, pause: float = 0.0
    ) -> None:
        """Hand `children` over. Those with which that fails, for want of descriptors perhaps, are tried again. pidfds:
        of some of them; each is closed, and gone from there, when it has been used.
        """
        await asyncio.sleep(pause)
        left: dict[int, Running] = {}
        for key, one in children.items():
            if pause and (self._closed or shard.running.get(key) is not one):
                continue  # it was found to have ended
            pidfd = pidfds.pop(key, None) if pidfds else None
            try:
                pidfd = _claim(one) if pidfd is None else pidfd
                if pidfd is None:
                    self._exited(shard, _unseen(key, one))
                else:
                    await self.hand_over(shard, key, one, pidfd, time.time())
            except LauncherGone:
                return  # it is gone, too; the next one finds them
            except OSError as error:
                if error.errno != errno.EEXIST:  # else it has been handed over already
                    _log.error("process %d of %s cannot be taken over yet: %s", one.pid, one.slot, error)
                    left[key] = one
            except Exception:  # whatever it is, the others wait for their launcher
                _log.exception("process %d of %s", one.pid, one.slot)
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        if left:
            self._spawn(self._take_over(shard, left, None, min(max(pause * 2, _PAUSE_SECONDS), _MOST_PAUSE_SECONDS)))

    async def hand_over(self, shard: Shard, key: int, running: Running, pidfd: int, started: float) -> None:
        """Have `shard` take over a process whose launcher is gone. Raises LauncherError, LauncherGone."""
        child = Child(key, int(started * 1e9), 0, running.pid)
        held = dict(self.held(key))
        reopened = {} if held else orphans.output_ends(running.pid)
        try:
            await shard.launcher.adopt(child, pidfd, held or reopened)
            shard.running[key] = running
        finally:
            for fd in reopened.values():
                os.close(fd)

    async def find(self, key: int, slot: str, started: float, pid: int | None = None) -> tuple[Shard, Child] | None:
        """A process whose launcher ended while no engine ran, now a child of another: the first of the sandbox in
        `slot`, or the one of exec that was `pid`. None if it has ended, too.
        """
        main = pid is None
        pid = orphans.find_main(self._cgroup, slot) if pid is None else pid
        if pid is None or not await _has_started(pid) or (pidfd := orphans.claim(slot, pid, main=main)) is None:
            return None
        try:
            shard = await self.shard()
            running = Running(pid, slot, main)
            await self.hand_over(shard, key, running, pidfd, started)
            return shard, Child(key, int(started * 1e9), 0, pid)
        finally:
            os.close(pidfd)

    def end_unanswered(self, slot: str) -> None:
        """Kill what nobody was told of: its start was under way when both engine and launcher ended."""
        self._end_strangers(slot, lasting=True)

    def _end_strangers(self, slot: str, *, lasting: bool = False) -> None:
        known = {one.pid for shard in self._shards.values() for one in shard.running.values()}
        with contextlib.suppress(OSError):
            orphans.end_strangers(self._cgroup, slot, known, lasting=lasting)

    async def move(self, shard: Shard, child: Child, running: Running, fds: Mapping[int, int]) -> Shard:
        """Of a launcher of another version: have one of ours take `child` over, where the kernel tells how it ends.
        Returns that one, or `shard`. Raises LauncherError, LauncherGone.
        """
        pidfd = None
        with contextlib.suppress(OSError):  # no more can be opened: it may stay where it is
            pidfd = _claim(running) if shard.outdated and _kernel_remembers() else None
        if pidfd is None:
            return shard
        try:
            new = await self.shard()
            if new.outdated:
                return shard
            await new.launcher.adopt(child, pidfd, fds)
        finally:
            os.close(pidfd)
        new.running[child.key] = running
        shard.running.pop(child.key, None)
        new.children, shard.children = new.children + 1, shard.children - 1
        await shard.launcher.disown(child.key)
        return new

    def retire(self, shard: Shard) -> None:
        """One of another version ends with the last of its children."""
        if shard.outdated and not shard.children and not shard.gone:
            self._shards.pop(shard.number, None)
            shard.launcher.on_gone = lambda: None
            self._spawn(self._stop(shard))

    async def _stop(self, shard: Shard) -> None:
        with contextlib.suppress(OSError):
            await shard.launcher.stop()
            self._instance.launcher_socket(shard.number).unlink(missing_ok=True)
        shard.launcher.close()

    def _worker_gone(self) -> None:
        self._worker = None


def _claim(one: Running) -> int | None:
    """Raises OSError if no more may be opened."""
    return orphans.claim(one.slot, one.pid, main=one.main)


def _claims(running: Mapping[int, Running]) -> dict[int, int]:
    """Of as many as may be opened, the others when it is their turn."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for key, one in running.items():
            if (pidfd := _claim(one)) is not None:
                found[key] = pidfd
    return found


async def _has_started(pid: int) -> bool:
    """Who was just being started goes on by itself, and soon has executed or failed."""
    for _ in range(20):
        if not orphans.is_starting(pid):
            return True
        await asyncio.sleep(0.01)
    return False


def _kernel_remembers() -> bool:
    """Whether a pidfd tells how a process ended that another has waited for (PIDFD_INFO_EXIT, Linux 6.15)."""
    return tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)


def _unseen(key: int, one: Running) -> Child:
    """How nobody knows it ended."""
    now = time.time_ns()
    return Child(key, now, now, one.pid, flags=UNKNOWN)


async def _prepare(launcher: Launcher, plan: Plan, fd: int) -> None:
    try:
        await launcher.run(0, encode(plan), (fd,))
    except LauncherError as error:
        raise refused(plan, error, "prepare the launcher") from error


def refused(plan: Plan, error: LauncherError, what: str) -> JoeyError:
    """The error for a plan of the engine's own that failed. what: says so if no operation is to blame."""
    step = f"{what}: op {error.op} {plan.ops[error.op].describe()}" if 0 <= error.op < len(plan.ops) else what
    return from_os(step, OSError(error.errno, error.strerror))


__all__ = ["HOST_LAYER", "WORKER", "Fleet", "Running", "Shard", "refused"]
