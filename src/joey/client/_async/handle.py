"""A command that runs: its output as it comes, its input, its end."""

from __future__ import annotations

import codecs
import signal as _signal
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from joey.client._async.http import Frames
from joey.client._async.net import Callback, notify, sleep
from joey.client._async.service import Service, decode, query, quote
from joey.client.errors import (
    CommandExit,
    Conflict,
    ConnectionLost,
    Invalid,
    JoeyError,
    NotFound,
    Timeout,
    from_problem,
)
from joey.client.types import CommandResult, Exit
from joey.model import frames

LIMIT = 64 << 20
"""Bytes of output that a CommandResult keeps; what is beyond is only passed to callbacks."""
RECONNECT_SECONDS = 30.0
_INTERACTIVE_PAUSE = 0.002
_NAMES = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}


class CommandHandle:
    """A command inside a sandbox, from `commands.run(background=True)`, `commands.connect` or `pty.create`.

    id: names it for ever. pid: of the host (0 where it is not known). Iterate over it for (stream, text) pairs as they
    come, or `wait` for its end. If the engine restarts meanwhile, the handle finds the command again by its id.
    """

    def __init__(self, service: Service, sandbox: str, id: str, pid: int = 0, stream: Frames | None = None) -> None:
        self.id = id
        self.pid = pid
        self._service, self._sandbox, self._stream = service, sandbox, stream
        self._end: Exit | None = None
        self._kept: dict[int, bytearray] = {frames.STDOUT: bytearray(), frames.STDERR: bytearray()}
        self._limit = LIMIT
        self._truncated = False
        self._decoders = {kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in _NAMES}
        self._early: list[tuple[int, bytes]] = []  # came while we waited for room for input
        self._receiving = False
        self._raw = False

    def __repr__(self) -> str:
        return f"<CommandHandle {self.id} of {self._sandbox[:12]}{'' if self._end is None else ', ended'}>"

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while that is not known here."""
        return None if self._end is None else self._end.code

    async def wait(
        self,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Its end, with all output that came to this handle. Callbacks get text (of a terminal: bytes) as it comes.

        timeout: seconds from now. Raises Timeout (the command goes on), CommandExit with `check`, ConnectionLost.
        """
        end = None if timeout is None else time.monotonic() + timeout
        callbacks = {frames.STDOUT: on_stdout, frames.STDERR: on_stderr}
        while self._end is None:
            found = await self._next(end)
            for kind, data in found:
                if (callback := callbacks[kind]) is not None:
                    await notify(callback, data if self._raw else self._decoders[kind].decode(data))
        result = self._result()
        if check and result.exit_code != 0:
            raise CommandExit(result)
        return result

    async def __aiter__(self) -> AsyncIterator[tuple[str, str]]:
        """("stdout" or "stderr", text) as it comes, until it has ended."""
        while self._end is None:
            for kind, data in await self._next(None):
                if text := self._decoders[kind].decode(data):
                    yield _NAMES[kind], text

    async def send_stdin(self, data: str | bytes) -> None:
        """Feed its standard input; returns when all is on its way. It must have been started with stdin=True.

        Raises ConnectionLost, NotFound if it has ended long ago.
        """
        data = data.encode() if isinstance(data, str) else data
        if self._stream is None:
            await (await self._service.open("POST", self._path("/stdin"), bytes(data))).read()
            return
        left = memoryview(data)
        while left and self._end is None:
            left = left[await self._stream.feed(left) :]
            if left and not self._stream.credit:
                if self._receiving:
                    await sleep(_INTERACTIVE_PAUSE)  # somebody else waits for output, and takes the credit
                else:
                    self._early += await self._receive(None)

    async def close_stdin(self) -> None:
        """End of its standard input."""
        if self._stream is None:
            await self._service.call("POST", self._path("/stdin", close=True))
        elif self._end is None:
            await self._stream.send(frames.frame(frames.STDIN_EOF))

    async def kill(self, signal: int | str = _signal.SIGKILL) -> bool:
        """Send it a signal; whether it was still there to get it."""
        number = number_of(signal)
        if self._end is not None:
            return False
        if not self.id:
            assert self._stream is not None
            await self._stream.send(frames.signal(number))
            return True
        try:
            await self._service.call("POST", self._path("/signal", signal=number))
        except (NotFound, Conflict):
            return False
        return True

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal."""
        if self._stream is not None and self._end is None:
            await self._stream.send(frames.resize(rows, cols))
        elif self._end is None:
            await self._service.call("POST", self._path("/resize", rows=rows, cols=cols))

    async def disconnect(self) -> None:
        """Stop following it; it goes on. `commands.connect(id)` follows it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # ---- below

    def _path(self, verb: str = "", **values: Any) -> str:
        return f"/v1/sandboxes/{self._sandbox}/processes/{quote(self.id)}{verb}{query(values)}"

    def _result(self) -> CommandResult:
        assert self._end is not None
        kept = self._kept
        return CommandResult(self._end, bytes(kept[frames.STDOUT]), bytes(kept[frames.STDERR]), self._truncated)

    async def _next(self, deadline: float | None) -> list[tuple[int, bytes]]:
        """Output that has come, kept already. Raises Timeout once `deadline` (monotonic) has passed."""
        found = await self.pieces(deadline)
        for kind, data in found:
            if len(data) > self._limit:
                self._truncated = True
                data = data[: self._limit]
            self._limit -= len(data)
            self._kept[kind] += data
        return found

    async def pieces(self, deadline: float | None = None) -> list[tuple[int, bytes]]:
        """(1 stdout or 2 stderr, bytes) that have come, perhaps none; nothing of it is kept.

        Raises Timeout once `deadline` (time.monotonic) has passed.
        """
        if self._early:
            found, self._early = self._early, []
            return found
        seconds = None if deadline is None else deadline - time.monotonic()
        if seconds is not None and seconds <= 0:
            raise self._timed_out()
        return await self._receive(seconds)

    def _timed_out(self) -> Timeout:
        """What to raise when a limit has passed."""
        kept = self._kept
        out, err = bytes(kept[frames.STDOUT]), bytes(kept[frames.STDERR])
        return Timeout("timeout", "the command has not ended in time", stdout=out, stderr=err)

    async def _receive(self, seconds: float | None) -> list[tuple[int, bytes]]:
        """Pieces of output; the end is noted. Attaches, again if need be."""
        self._receiving = True
        try:
            if self._stream is None:
                await self._attach()
                if self._stream is None:
                    return []
            try:
                found = await self._stream.receive(seconds)
            except ConnectionLost:
                if not self.id or self._stream.ended:
                    raise
                self._stream = None
                await self._again()
                return []
        except BaseException as error:
            if not isinstance(error, JoeyError) and self._stream is not None and not self.id:
                self._stream.close()
            raise
        finally:
            self._receiving = False
        return [one for one in found if not self._noted(*one)]

    def _noted(self, kind: int, payload: bytes) -> bool:
        if kind in _NAMES:
            return False
        assert self._stream is not None
        if kind == frames.EXIT:
            self._end = decode(Exit, payload)
            self._stream.close()
        elif kind == frames.ERROR:
            self._stream.close()
            document = msgspec.json.decode(payload)
            raise from_problem(document.get("status", 500), document)
        return True

    async def _attach(self) -> None:
        try:
            self._stream, _ = await self._service.upgrade(self._path("/attach"), safe=True)
        except Conflict:  # it has ended
            self._end = await self._service.call("POST", self._path("/wait"), kind=Exit, safe=True)

    async def _again(self) -> None:
        """Find it again after the connection broke: the engine may be restarting."""
        end = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                await self._attach()
                return
            except ConnectionLost:
                if time.monotonic() > end:
                    raise
            await sleep(0.1)


def number_of(signal: int | str) -> int:
    """The number of a signal given as 15, "TERM" or "SIGTERM". Raises Invalid."""
    if isinstance(signal, int):
        return int(signal)
    name = signal.upper().removeprefix("SIG")
    found = getattr(_signal, "SIG" + name, None) if name.isidentifier() else None
    if name.isdigit():
        return int(name)
    if not isinstance(found, int):
        raise Invalid("signal", f"{signal!r} is no signal", "its name or number: TERM, 15")
    return int(found)
