"""Processes that exec started: they live and end beside a sandbox's main process, and leave no record."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from joey.engine.attached import Attached
from joey.engine.ends import exit_of_child
from joey.engine.launching import Launched, Launching, Request, check_signal, send_signal
from joey.engine.output import Output
from joey.engine.record import SIGKILL
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.errors import Conflict, Invalid, JoeyError, LaunchFailed
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Exit
from joey.plan import flags as f

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.store import Store
    from joey.host.wire import Child


_TURNS, _TURN_SECONDS = 20, 0.01


class _Exec:
    """One process. `ended` is done with its end."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launched: Launched | None = None
        self.output: Output | None = None

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    async def signal(self, number: int) -> None:
        check_signal(number)
        if self.launched is not None and not self.ended.done():
            await send_signal(self.launched, number)

    def end(self, exit: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(exit)
        if self.output is not None:
            self.output.exited()


class Execs:
    """All of them, by the launcher's key."""

    def __init__(self, launching: Launching, store: Store, forget: Callable[[Launched], None]) -> None:
        self._launching = launching
        self._store = store
        self._forget = forget
        self._known: dict[int, _Exec] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self, box: Box, process: Process, *, output: bool) -> Attached:
        """Run `process` in a running box. Raises JoeyError."""
        assert box.launched is not None and box.slot is not None
        if box.request is None:
            box.request = self._launching.complete(box.spec)
        spec = box.request.spec
        process = _within(process, spec, box.request.image.cwd)
        if not process.argv:
            raise Invalid("argv", "name a program to run")
        work = asyncio.ensure_future(self._start(box, box.request, process, output))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandon)
            raise

    async def _start(self, box: Box, request: Request, process: Process, output: bool) -> Attached:
        if box.launched is None or box.slot is None:
            raise Conflict("state", "cannot run a process in it: it has just ended")
        key, one, main = self._store.next_number("key"), _Exec(), box.launched
        self._known[key] = one
        devpts = process.tty and not box.devpts
        box.devpts = box.devpts or devpts  # the launcher runs plans in order: who comes next finds it
        try:
            one.launched = await self._launching.exec(
                process, request, main, box.slot, key, output=output, devpts=devpts
            )
        except BaseException as error:
            del self._known[key]
            box.devpts = box.devpts and not devpts
            if isinstance(error, JoeyError) and await _is_over(main, error):
                raise Conflict("state", "cannot run a process in it: it has just ended") from error
            raise
        one.launched.shard.children += 1
        fds = one.launched.fds
        one.output = Output(
            asyncio.get_running_loop(), fds.get(f.ROLE_STDIN), fds.get(f.ROLE_STDOUT), fds.get(f.ROLE_STDERR),
            fds.get(f.ROLE_TERMINAL), None, partial(one.launched.shard.end_input, key),
        )  # fmt: skip
        end_streams = partial(one.launched.shard.end_streams, key)
        attached = Attached(one.wait, one.signal, pid=one.launched.pid, owner=end_streams)
        one.output.attach(attached)
        if one.ended.done():  # its end was told together with its beginning
            one.output.exited()
            self._forget(one.launched)
        return attached

    def _abandon(self, work: asyncio.Future[Attached]) -> None:
        """Who asked for it has gone away: end it."""
        if not work.cancelled() and work.exception() is None:
            self._ending.add(task := asyncio.ensure_future(_end(work.result())))
            task.add_done_callback(self._ending.discard)

    def leave(self) -> None:
        """The engine closes; what runs goes on without us."""
        for one in self._known.values():
            if one.output is not None:
                one.output.close()

    def ended(self, child: Child) -> bool:
        """A child has ended; whether it was one of ours."""
        one = self._known.pop(child.key, None)
        if one is None:
            return False
        one.end(exit_of_child(child))
        if one.launched is not None:
            self._forget(one.launched)
        return True

    def output(self, key: int) -> Output | None:
        """The streams of one of ours."""
        one = self._known.get(key)
        return one.output if one is not None else None


async def _is_over(main: Launched, error: JoeyError) -> bool:
    """Whether the sandbox's first process, and so all in it, has ended: perhaps a moment after `error`, if that is one
    of those that a namespace gives whose first process is about to end (pid_namespaces(7)).
    """
    dying = isinstance(error, LaunchFailed) and error.errno in (errno.ENOMEM, errno.ECANCELED, errno.ESRCH)
    for _ in range(_TURNS if dying else 1):
        try:
            await main.shard.signal(main.key, 0)
        except OSError:
            return True
        await asyncio.sleep(_TURN_SECONDS if dying else 0)
    return False


async def _end(attached: Attached) -> None:
    await attached.close()
    with contextlib.suppress(JoeyError):
        await attached.signal(SIGKILL)


def _within(process: Process, spec: SandboxSpec, image_cwd: str) -> Process:
    """What exec says nothing about is as for the main process; and it never has more power than that one."""
    main, asked = spec.process, process.capabilities
    held = tuple(name for name in asked if name in main.capabilities)
    return replace(
        process,
        capabilities=main.capabilities if asked == DEFAULT_CAPABILITIES else held,
        no_new_privileges=process.no_new_privileges or main.no_new_privileges,
        cwd=process.cwd or main.cwd or image_cwd,
        user=process.user or main.user,
        rlimits=process.rlimits or main.rlimits,
        env={**main.env, **process.env},
    )
