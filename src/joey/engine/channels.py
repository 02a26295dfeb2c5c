"""Channels: a process in a sandbox and the socket on which it talks with the engine, for what runs there on our behalf
(a function's runtime).

It is an exec whose descriptor 3 is one end of a stream socket; the other one, and the read ends of its output, are the
engine's alone. So nothing of it outlives the engine: the process reads the end of its channel, and an engine that comes
after this one knows nothing of it. What it says is said by a stranger: take bytes, never descriptors (recv, not
recvmsg).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from joey.engine import looking
from joey.engine.ends import exit_of_child
from joey.engine.execs import within
from joey.engine.launching import Launched, Request, send_signal
from joey.engine.record import SIGKILL, Phase
from joey.model.errors import Conflict, Invalid, JoeyError
from joey.model.spec import Process
from joey.model.views import Exit
from joey.plan import flags as f

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine
    from joey.host.wire import Child

CHANNEL_FD = "JOEY_CHANNEL_FD"
_LOST = "its channel was closed"


class _Killer(Protocol):
    async def __call__(self) -> None: ...


class Channel:
    """The engine's end. `sock`: to talk with it, non-blocking; `out`, `err`: read ends of its output, non-blocking.

    pid: of the host; 0 where only the sandbox knows.
    """

    def __init__(self, sock: socket.socket, out: int, err: int, pid: int, kill: _Killer) -> None:
        self.sock, self.out, self.err, self.pid = sock, out, err, pid
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._kill = kill
        sock.setblocking(False)
        for fd in (out, err):
            os.set_blocking(fd, False)

    async def wait(self) -> Exit:
        """Its end."""
        return await asyncio.shield(self.ended)

    async def kill(self) -> None:
        """End it, and the process group it leads; nothing when it has ended."""
        if not self.ended.done():
            await self._kill()

    def end(self, exit: Exit) -> None:
        """For whoever hears of its end."""
        if not self.ended.done():
            self.ended.set_result(exit)

    def close(self) -> None:
        """Close our ends; it notices. It is not killed. Whoever reads them has stopped before. Done again: nothing."""
        if self.sock.fileno() >= 0:
            self.sock.close()
            os.close(self.out)
            os.close(self.err)


class Channels:
    """All plain ones of an engine, by the launcher's key."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._early: dict[int, Child | None] = {}
        self._known: dict[int, tuple[Channel, Launched, Box, int]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, box: Box, process: Process, request: Request | None = None) -> Channel:
        """Run `process` in a running box; with `request`, as that says and with what powers it asks for itself. Raises
        JoeyError.
        """
        if process.tty or process.stdin:
            raise Invalid("tty" if process.tty else "stdin", "a process with a channel has neither")
        if not process.argv:
            raise Invalid("argv", "name a program to run")
        work = asyncio.ensure_future(self._open(box, process, request))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandon)
            raise

    async def _open(self, box: Box, process: Process, request: Request | None) -> Channel:
        if box.record.phase is not Phase.RUNNING or box.launched is None or box.slot is None:
            raise Conflict("state", f"cannot run a process in it: it is {box.view().state}", "start or resume it first")
        if request is None:
            request = box.requested()
            process = within(process, request.spec, request.image.cwd)
        process = replace(process, env={**process.env, CHANNEL_FD: "3"})
        launching, key = self._engine.machine.launching, self._engine.store.next_number("key")
        kills = looking.oom_kills(self._engine, box)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._early[key] = None
        try:
            with theirs:
                launched = await launching.exec(
                    process, request, box.launched, box.slot, key, output=True, devpts=False, channel=theirs.fileno()
                )
        except BaseException as error:
            del self._early[key]
            ours.close()
            if isinstance(error, JoeyError) and not box.alive:
                raise Conflict("state", "cannot run a process in it: it has just ended") from error
            raise
        launched.shard.children += 1
        out, err = launched.fds[f.ROLE_STDOUT], launched.fds[f.ROLE_STDERR]
        channel = Channel(ours, out, err, launched.pid, lambda: send_signal(launched, SIGKILL, group=True))
        self._known[key] = channel, launched, box, kills
        if (child := self._early.pop(key)) is not None:
            self.ended(child)
        return channel

    def ended(self, child: Child) -> bool:
        """A child has ended; whether it was one of these."""
        if child.key in self._early:
            self._early[child.key] = child
            return True
        known = self._known.pop(child.key, None)
        if known is None:
            return False
        channel, launched, box, kills = known
        killed = not child.unknown and child.status & 0x7F == SIGKILL
        channel.end(exit_of_child(child, oom=killed and looking.oom_kills(self._engine, box) > kills))
        self._engine.forget(launched, durable=False)
        return True

    def _abandon(self, work: asyncio.Future[Channel]) -> None:
        if not work.cancelled() and work.exception() is None:
            channel = work.result()
            channel.close()
            self._ending.add(task := asyncio.ensure_future(_kill(channel)))
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """The engine closes: those that are open end with it."""
        for channel, *_ in tuple(self._known.values()):
            channel.close()
            channel.end(Exit(code=125, at=time.time(), error=_LOST))
        if self._ending:
            await asyncio.wait(self._ending)


async def _kill(channel: Channel) -> None:
    with contextlib.suppress(JoeyError, OSError):
        await channel.kill()
