"""The engine's end of the launcher (native/launcher.c): start one, talk to it, lose it and find it again. asyncio.

All requests may be in flight at once; the launcher answers each with its number. Descriptors that come back belong to
the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from joey.host import wire
from joey.host.wire import Child
from joey.native import binary

_SOL_FDS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_ANCILLARY = socket.CMSG_SPACE(wire.MAX_FDS * 4)
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE (fcntl(2))
_F_ADD_SEALS = 1033
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_END_SECONDS = 5.0
_TRUNCATED = -2  # as the failed operation of an answer, in here


class Done(NamedTuple):
    """The answer to a plan: pid of the child (0 without one), and the descriptors marked by HOLD, in order of role."""

    pid: int
    fds: tuple[int, ...]


class LauncherError(OSError):
    """A request failed. `op` is the index of the plan's operation, -1 for the request as a whole."""

    def __init__(self, number: int, op: int) -> None:
        super().__init__(number, os.strerror(number))
        self.op = op


class Truncated(LauncherError):
    """It was done, but descriptors of the answer are lost: this process may not open any more."""


class LauncherGone(ConnectionError):
    """The launcher ended or closed the connection. What it ran goes on; see `spawn` and DESIGN."""


class Launcher:
    """One connection. `on_exit` is called for every child that has ended, until `forget`; `on_gone` when it is lost."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.plans = 0
        """PLAN_VERSION it was built with: it runs no others."""
        self.is_child = False
        self.on_exit: Callable[[Child], None] = lambda child: None
        self.on_gone: Callable[[], None] = lambda: None
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._next = 1
        self._waiting: dict[int, asyncio.Future[tuple[wire.Message, tuple[int, ...]]]] = {}
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop.add_reader(connection.fileno(), self._read)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def run(self, key: int, plan: bytes, fds: Sequence[int] = ()) -> Done:
        """Run an encoded plan; `fds` fill its first registers. Raises LauncherError, LauncherGone.

        Who is cancelled here must `disown` the key: the child may be there all the same.
        """
        try:
            if len(plan) <= wire.INLINE:
                message, got = await self._ask(wire.RUN, key, data=plan, fds=tuple(fds))
            else:
                with _sealed(plan) as memory:
                    message, got = await self._ask(wire.RUN, key, fds=(memory, *fds))
        except Truncated:
            await self._undo(key)
            raise
        return Done(message.value, got)

    async def _undo(self, key: int) -> None:
        """Of a child that runs, but whose descriptors we cannot hold: nobody shall hear of it."""
        with contextlib.suppress(LauncherError):
            await self.signal(key, signal.SIGKILL)
        with contextlib.suppress(LauncherError):
            await self.disown(key)

    async def signal(self, key: int, number: int, *, group: bool = False) -> None:
        """Signal a running child; group: all of the process group it leads. Raises LauncherError(ESRCH) if it has
        ended.
        """
        try:
            await self._ask(wire.SIGNAL, key, number | (wire.GROUP if group else 0))
        except LauncherError as error:
            if not group or error.errno != errno.EINVAL:
                raise
            await self._ask(wire.SIGNAL, key, number)  # one of an earlier version, which knows no groups

    async def fetch(self, key: int) -> dict[int, int]:
        """Copies of the descriptors held with a child: role → descriptor."""
        message, fds = await self._ask(wire.FETCH, key)
        roles = [role for role in range(8) if message.value >> role & 1]
        return dict(zip(roles, fds, strict=True))

    async def release(self, key: int, roles: int) -> None:
        """Let go of held descriptors: a mask of roles."""
        await self._ask(wire.RELEASE, key, roles)

    async def forget(self, keys: Sequence[int]) -> None:
        """Acknowledge exits: the launcher drops these children. Keys it does not know are fine."""
        await self._ask(wire.FORGET, data=struct.pack(f"<{len(keys)}Q", *keys))

    async def disown(self, key: int) -> None:
        """Drop a child that still runs: its end will be told to nobody."""
        await self._ask(wire.FORGET, key, 1)

    async def adopt(self, child: Child, pidfd: int, fds: Mapping[int, int]) -> None:
        """Take over a process that another launcher started: who it is (`pid`, `key`, `started_ns`), a pidfd of it
        and copies of its descriptors by role. Raises LauncherError(EEXIST) if the key is known.
        """
        roles = sum(1 << role for role in fds)
        await self._ask(wire.ADOPT, child.key, roles, child.pack(), (pidfd, *(fds[role] for role in sorted(fds))))

    async def list(self) -> list[Child]:
        """Every child it holds, running or not yet forgotten."""
        found: list[Child] = []
        while True:
            message, _ = await self._ask(wire.LIST, found[-1].key if found else 0)
            page = list(wire.children(message.data))
            if not page:
                return found
            found += page

    async def subscribe(self) -> None:
        """From now on `on_exit` is called, first for all that have ended already."""
        await self._ask(wire.SUBSCRIBE)

    async def stop(self, *, force: bool = False) -> None:
        """End the launcher, and wait until it has ended. Raises LauncherError(EBUSY) while it holds children, unless
        forced: they then run on as orphans.
        """
        try:
            await self._ask(wire.STOP, value=int(force))
        except LauncherGone:
            return
        self.close()
        await _wait_for_end(self.pid)

    @property
    def lost(self) -> bool:
        """Whether the connection is closed."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Drop the connection; the launcher and its children go on."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(LauncherGone("launcher connection closed"))

    # --- wire --------------------------------------------------------------------------------------------------------

    async def _ask(
        self, type: int, key: int = 0, value: int = 0, data: bytes = b"", fds: tuple[int, ...] = ()
    ) -> tuple[wire.Message, tuple[int, ...]]:
        if self._socket.fileno() < 0:
            raise LauncherGone("no launcher")
        request, self._next = self._next, self._next + 1
        future: asyncio.Future[tuple[wire.Message, tuple[int, ...]]] = self._loop.create_future()
        self._waiting[request] = future
        try:
            self._send(wire.pack(type, request, key, value, data), fds)
            message, got = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_drop)
            raise
        except OSError:  # not sent
            self._waiting.pop(request, None)
            raise
        if message.op == _TRUNCATED:
            raise Truncated(errno.EMFILE, -1)
        if message.error:
            _close(got)
            raise LauncherError(message.error, message.op)
        return message, got

    def _send(self, packet: bytes, fds: tuple[int, ...]) -> None:
        if self._unsent or not self._try_send(packet, fds):
            # The caller may close its descriptors as soon as its call is cancelled: keep copies until they are sent.
            self._unsent.append((packet, tuple(os.dup(fd) for fd in fds)))
            self._loop.add_writer(self._socket.fileno(), self._flush)

    def _try_send(self, packet: bytes, fds: tuple[int, ...]) -> bool:
        try:
            socket.send_fds(self._socket, [packet], list(fds)) if fds else self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self._lost()
        return True

    def _flush(self) -> None:
        while self._unsent:
            packet, fds = self._unsent[0]
            if not self._try_send(packet, fds):
                return
            if self._unsent:
                self._unsent.popleft()
                _close(fds)
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        for _ in range(64):
            try:
                packet, ancillary, flags, _ = self._socket.recvmsg(1 << 17, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self._lost()
                return
            message, fds = wire.unpack(packet), _received(ancillary)
            if flags & socket.MSG_CTRUNC:
                _close(fds)
                message, fds = message._replace(op=_TRUNCATED), ()
            self._handle(message, fds)

    def _handle(self, message: wire.Message, fds: tuple[int, ...]) -> None:
        if message.type == wire.EXITED:
            for child in wire.children(message.data):
                self.on_exit(child)
            return
        future = self._waiting.pop(message.request, None)
        if future is None or future.done():
            _close(fds)
        else:
            future.set_result((message, fds))

    def _lost(self) -> None:
        if self._socket.fileno() < 0:
            return
        unsent, self._unsent = self._unsent, deque()
        for _, fds in unsent:
            _close(fds)
        self.close()
        if self.is_child:
            _reap_later(self.pid)
        self.on_gone()


def _received(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds: tuple[int, ...] = ()
    for level, type, data in ancillary:
        if (level, type) == _SOL_FDS:
            fds += tuple(memoryview(data[: len(data) - len(data) % 4]).cast("i"))
    return fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _drop(future: asyncio.Future[tuple[wire.Message, tuple[int, ...]]]) -> None:
    """Nobody wants the answer any more."""
    if not future.cancelled() and future.exception() is None:
        _close(future.result()[1])


class _sealed:
    """A memfd with the plan that nobody can change any more."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> int:
        import fcntl

        self._fd = os.memfd_create("joey-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(self._data)
        while view:
            view = view[os.write(self._fd, view) :]
        fcntl.fcntl(self._fd, _F_ADD_SEALS, _SEALS)
        return self._fd

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def sealed_program(name: str, mode: int) -> int:
    """A program of ours in a memfd that nobody can change: no file of the host. mode: who may read and execute it.
    Raises OSError.
    """
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(binary(name).read_bytes())
        os.fchmod(fd, mode)  # seals do not stop extended attributes, which all sandboxes would have in common
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


# --- start and find --------------------------------------------------------------------------------------------------


async def connect(path: Path) -> Launcher:
    """Connect to a launcher that listens at `path`, perhaps of another version. Raises OSError if nobody is there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.fspath(path))
        connection.setblocking(False)
        launcher = Launcher(connection, 0)
    except BaseException:
        connection.close()
        raise
    try:
        message = await _hello(launcher)
    except BaseException:
        launcher.close()
        raise
    launcher.pid = message.value
    launcher.plans = message.key >> 32 or 1
    return launcher


async def _hello(launcher: Launcher) -> wire.Message:
    """Version 1 heard no other."""
    try:
        return (await launcher._ask(wire.HELLO, value=wire.VERSION))[0]
    except LauncherError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        return (await launcher._ask(wire.HELLO, value=1))[0]


async def spawn(path: Path, program: Path | None = None) -> Launcher:
    """Start a launcher that listens at `path` (replacing a dead one's socket) and connect to it.

    It is a session of its own and outlives this process. Raises OSError naming the program if it cannot be executed.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(16)
        executable = os.fspath(program or binary("joey-launcher"))
        listener.set_inheritable(True)
        pid = os.posix_spawn(
            executable, [executable, "--listen-fd", str(listener.fileno())], os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                # Not our own stderr: who waits for the end of our output must not wait for a launcher that outlives us.
                (os.POSIX_SPAWN_OPEN, 2, os.fspath(path.with_name("launcher.log")), _LOG_FLAGS, 0o600),
            ],
        )  # fmt: skip
    try:
        launcher = await connect(path)
    except BaseException as error:
        _reap_later(pid)
        if isinstance(error, ConnectionError):
            raise LauncherGone(f"{executable} ended at start: {error}") from error
        raise
    launcher.is_child = True
    return launcher


def _reap_later(pid: int) -> None:
    """No zombie when a launcher of ours ends, which it is about to do."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    loop.add_reader(fd, ended)


async def _wait_for_end(pid: int) -> None:
    """Return when process `pid` has ended, at the latest after some seconds."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, ended.cancel)
    try:
        await asyncio.wait((ended,), timeout=_END_SECONDS)
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        with contextlib.suppress(ChildProcessError):  # another process's child
            os.waitpid(pid, os.WNOHANG)


def is_gone(error: BaseException) -> bool:
    """Whether an operation failed because what it was for has ended (ESRCH)."""
    return isinstance(error, LauncherError) and error.errno == errno.ESRCH
