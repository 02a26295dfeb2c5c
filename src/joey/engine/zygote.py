"""The engine's side of a template's warm process: its settings, its answer, and requests to fork. What it says is said
by a stranger.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from joey.engine.channels import Channel
from joey.model.errors import Broken

_LONGEST = 64 << 10
_PRINTED = 4096
_PIECE, _PAUSE = 1 << 16, 0.05
"""So much of its output at a time is read at most, and after as much no more for so many seconds."""
_TAKEN_SECONDS = 10.0
_SIZE = struct.Struct(">I")
_HELLO, _BORN = b"\1", b"\2"
_CREDENTIALS = struct.Struct("=iII")
"""struct ucred: pid, uid, gid."""


class Answer(msgspec.Struct, frozen=True):
    """What it says once it has imported all (functions/runtime/zygote.py: `warm`)."""

    state: str
    reason: str = ""
    python: str = ""
    seconds: float = 0.0


class Zygote:
    """One warm process. `printed`: the end of what it has written on its output."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.printed = b""
        self._owed = 0
        self._loop = asyncio.get_running_loop()
        self._reading = {channel.out, channel.err}
        for fd in tuple(self._reading):
            self._loop.add_reader(fd, self._read, fd)

    def _read(self, fd: int) -> None:
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        if not piece:
            self._leave(fd)
            return
        self.printed = (self.printed + piece)[-_PRINTED:]
        self._owed += len(piece) + 256
        if self._owed >= _PIECE:
            self._owed = 0
            self._loop.remove_reader(fd)
            self._loop.call_later(_PAUSE, self._resume, fd)

    def _resume(self, fd: int) -> None:
        if fd in self._reading:
            self._loop.add_reader(fd, self._read, fd)

    def _leave(self, fd: int) -> None:
        if fd in self._reading:
            self._reading.discard(fd)
            self._loop.remove_reader(fd)

    async def warm(self, settings: dict[str, object], seconds: float) -> Answer:
        """Have it import everything. Raises Broken if it ends, or takes longer than `seconds`."""
        sock = self.channel.sock
        data = json.dumps(settings).encode()
        try:
            async with asyncio.timeout(seconds):
                await self._loop.sock_sendall(sock, _SIZE.pack(len(data)) + data)
                size = _SIZE.unpack(await self._exactly(_SIZE.size))[0]
                if size > _LONGEST:
                    raise Broken("template", "its process answers nonsense")
                return msgspec.json.decode(await self._exactly(size), type=Answer)
        except TimeoutError:
            raise Broken("template", f"its process is not warm after {seconds:.0f} seconds{self.why}") from None
        except (OSError, EOFError):
            raise Broken("template", f"its process ended while it was warmed{self.why}") from None
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Broken("template", f"its process answers nonsense: {error}") from None

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self._loop.sock_recv(self.channel.sock, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    @property
    def why(self) -> str:
        """The last line it has printed, for messages."""
        lines = self.printed.decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def fork(self, fds: Sequence[int]) -> None:
        """Ask for a child. Raises Broken if it is gone, or takes no more requests."""
        try:
            socket.send_fds(self.channel.sock, [b"F"], list(fds))
        except OSError as error:
            raise Broken("template", f"its process takes no requests: {error.strerror}") from None

    def close(self) -> None:
        """It ends: there is nobody any more for whom to fork. Done again: nothing."""
        for fd in tuple(self._reading):
            self._leave(fd)
        self.channel.close()


async def born(channel: Channel, move: Callable[[int], Awaitable[None]], seconds: float) -> None:
    """Learn of a child who it is, move it, and let it go on. Its socket has SO_PASSCRED. Raises Broken."""
    try:
        async with asyncio.timeout(seconds):
            pid = await _sender(channel.sock)
            await move(pid)
    except TimeoutError:
        raise Broken("fork", f"the template's child has not come within {seconds:.0f} seconds") from None
    except OSError as error:
        raise Broken("fork", f"the template's child has ended at once{_words(channel)}") from error
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    try:
        channel.sock.send(_BORN)
    except OSError as error:
        raise Broken("fork", f"the template's child has ended at once{_words(channel)}") from error


async def _sender(sock: socket.socket) -> int:
    """Who sends the next byte, which is _BORN: by his number in our pid namespace. Raises OSError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())
    # There is room for credentials and no more; what else is sent along the kernel drops (unix(7)).
    byte, more, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, data in more:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and byte == _BORN:
            pid: int = _CREDENTIALS.unpack(data)[0]
            if pid > 0:
                return pid
    raise ConnectionResetError("it has not come")


def _words(channel: Channel) -> str:
    try:
        said = os.read(channel.err, _PRINTED).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f": {said[-300:]}" if said else ""


async def hello(channel: Channel, seconds: float) -> None:
    """Return when a child is all that it shall be. Raises Broken saying why there is none."""
    try:
        async with asyncio.timeout(seconds):
            got = await asyncio.get_running_loop().sock_recv(channel.sock, 1)
    except TimeoutError:
        raise Broken("fork", f"the template's child has not come within {seconds:.0f} seconds") from None
    except OSError:
        got = b""
    if got != _HELLO:
        raise Broken("fork", f"the template's child has ended at once{_words(channel)}")


async def tell(channel: Channel, env: dict[str, str], *, main: bool) -> None:
    """Tell a child on its own channel what it is for. main: its sandbox ends with it. Raises Broken if it is gone."""
    data = json.dumps({"env": env, "main": main}).encode()
    try:
        async with asyncio.timeout(_TAKEN_SECONDS):
            await asyncio.get_running_loop().sock_sendall(channel.sock, _SIZE.pack(len(data)) + data)
    except TimeoutError:
        raise Broken("fork", "the template's child does not take what it is for", "try again") from None
    except OSError as error:
        raise Broken("fork", f"the template's child has ended: {error.strerror}", "try again") from None
