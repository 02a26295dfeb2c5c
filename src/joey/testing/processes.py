"""Child processes with asyncio pipes and terminals, for the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import termios
import time
from typing import Literal

from joey.model.errors import CannotExecute, Invalid, LaunchFailed, ProgramNotFound
from joey.model.spec import Process
from joey.model.views import Exit

Piece = tuple[Literal[1, 2], bytes]
_PIECE = 65536
_LIMIT = 1 << 20


class Child:
    """One process: descriptors that never block, and its end by pidfd."""

    def __init__(self, program: str, process: Process, env: dict[str, str], *, discard: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._outputs: dict[int, Literal[1, 2]] = {}
        self.stdin = -1
        self._terminal = -1
        self._code: asyncio.Future[Exit] = self._loop.create_future()
        far: list[int] = []
        if discard:
            stdio = [subprocess.DEVNULL] * 3
        elif process.tty:
            near, slave = pty.openpty()
            far = [slave]
            self._terminal = self.stdin = near
            self._outputs[near] = 1
            self.resize(process.rows, process.cols)
            stdio = [slave] * 3
        else:
            stdio, far = self._pipes(process.stdin)
        terminal = self._terminal >= 0
        try:
            self._popen = subprocess.Popen(
                # setsid(1) takes the terminal; a preexec_fn would be a fork in a process with threads.
                ["setsid", "--ctty", program, *process.argv[1:]] if terminal else process.argv,
                executable=None if terminal else program,
                env=env,
                cwd=process.cwd or "/",
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                start_new_session=not terminal,
            )
        finally:
            for fd in far:
                os.close(fd)
        self.pid = self._popen.pid
        for fd in {*self._outputs, self.stdin} - {-1}:
            os.set_blocking(fd, False)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _pipes(self, stdin: bool) -> tuple[list[int], list[int]]:
        out, err = os.pipe(), os.pipe()
        self._outputs = {out[0]: 1, err[0]: 2}
        if not stdin:
            return [subprocess.DEVNULL, out[1], err[1]], [out[1], err[1]]
        far, self.stdin = os.pipe()
        return [far, out[1], err[1]], [far, out[1], err[1]]

    def _ended(self) -> None:
        code = self._popen.poll()
        if code is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # as when process 1 of a pid namespace ends
        self._code.set_result(Exit(code=128 - code if code < 0 else code, signal=max(0, -code), at=time.time()))

    async def read(self) -> Piece | None:
        """The next piece of any output; None when all are closed, or soon after the process's end."""
        while self._outputs:
            for fd, stream in list(self._outputs.items()):
                try:
                    data = os.read(fd, _PIECE)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: the terminal's other side is closed
                    data = b""
                if data:
                    return stream, data
                self._drop(fd)
            if self._outputs and not await self._readable() and self._code.done():
                break
        return None

    def _drop(self, fd: int) -> None:
        del self._outputs[fd]
        if fd != self._terminal:
            os.close(fd)

    async def _readable(self) -> bool:
        """Whether something can be read; False if nothing came for half a second."""
        ready = asyncio.Event()
        for fd in self._outputs:
            self._loop.add_reader(fd, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), 0.5)
            return True
        except TimeoutError:
            return False
        finally:
            for fd in self._outputs:
                self._loop.remove_reader(fd)

    async def write(self, data: bytes) -> None:
        """To its standard input, waiting for room."""
        view = memoryview(data)
        while view and self.stdin >= 0:
            try:
                view = view[os.write(self.stdin, view) :]
            except BlockingIOError:
                ready = asyncio.Event()
                self._loop.add_writer(self.stdin, ready.set)
                try:
                    await ready.wait()
                finally:
                    self._loop.remove_writer(self.stdin)
            except OSError:
                return

    def close_stdin(self) -> None:
        """End of its input."""
        if self.stdin >= 0 and self.stdin != self._terminal:
            os.close(self.stdin)
            self.stdin = -1

    def resize(self, rows: int, cols: int) -> None:
        """Of its terminal."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def kill(self, number: int) -> None:
        """Nothing if it has ended."""
        if not 1 <= number <= signal.SIGRTMAX:
            raise Invalid("signal", f"{number} is no signal")
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> Exit:
        """Its end."""
        return await asyncio.shield(self._code)

    def close(self) -> None:
        """Close everything still open."""
        for fd in list(self._outputs):
            self._drop(fd)
        self.close_stdin()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = self.stdin = -1


class FakeAttachment:
    """One client's end. Of a main process it is fed by the engine; with `pump` it reads the process itself (exec)."""

    def __init__(self, child: Child | None, among: list[FakeAttachment], *, pump: bool = False) -> None:
        self._child = child
        self._among = among
        self._pump = pump
        self._pieces: list[Piece] = []
        self._held = 0
        self._end: Exit | None = None
        self._changed = asyncio.Condition()
        self._closed = False
        self.pid = child.pid if child is not None else 0
        self.id = ""

    def bind(self, child: Child) -> None:
        """The sandbox it waits for has started."""
        self._child, self.pid = child, child.pid

    async def put(self, piece: Piece) -> None:
        """From the engine. Waits while this client is too slow, and with it the program."""
        async with self._changed:
            while self._held > _LIMIT and not self._closed:
                await self._changed.wait()
            if not self._closed:
                self._pieces.append(piece)
                self._held += len(piece[1])
                self._changed.notify_all()

    def finish(self, end: Exit) -> None:
        """From the engine: no more will come."""
        self._end = end
        self._wake()

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        asyncio.ensure_future(wake())  # noqa: RUF006

    async def read(self) -> Piece | None:
        """See the interface."""
        if self._pump:
            assert self._child is not None
            return await self._child.read()
        async with self._changed:
            while not self._pieces and self._end is None and not self._closed:
                await self._changed.wait()
            if not self._pieces:
                return None
            piece = self._pieces.pop(0)
            self._held -= len(piece[1])
            self._changed.notify_all()
            return piece

    async def write(self, data: bytes) -> None:
        """See the interface."""
        if self._child is not None:
            await self._child.write(data)

    async def close_stdin(self) -> None:
        """See the interface."""
        if self._child is not None:
            self._child.close_stdin()

    async def resize(self, rows: int, cols: int) -> None:
        """See the interface."""
        if self._child is not None:
            self._child.resize(rows, cols)

    async def signal(self, number: int) -> None:
        """See the interface."""
        if self._child is not None:
            self._child.kill(number)

    async def wait(self) -> Exit:
        """See the interface."""
        if self._pump:
            assert self._child is not None
            return await self._child.wait()
        async with self._changed:
            while self._end is None:
                await self._changed.wait()
        return self._end

    async def close(self) -> None:
        """See the interface."""
        self._closed = True
        if self in self._among:
            self._among.remove(self)
        if self._pump and self._child is not None:
            self._child.close()
        async with self._changed:
            self._changed.notify_all()


def launch(process: Process, env: dict[str, str], *, discard: bool = False) -> Child:
    """Start a program, or say why that cannot be, in the real engine's words."""
    path = env.get("PATH", os.defpath + ":/usr/local/bin:/sbin:/usr/sbin")
    name = process.argv[0]
    found = name if "/" in name and os.path.exists(name) else shutil.which(name, mode=os.F_OK, path=path)
    if found is None:
        raise ProgramNotFound("process.argv[0]", f"no program {name!r} in the sandbox", "check the name and PATH")
    if not os.access(found, os.X_OK) or os.path.isdir(found):
        raise CannotExecute("process.argv[0]", f"{found} cannot be executed", "chmod +x it")
    if process.cwd and not os.path.isdir(process.cwd):
        raise LaunchFailed("process.cwd", f"{process.cwd} is not a directory in the sandbox")
    return Child(found, process, {"PATH": path} | env, discard=discard)
