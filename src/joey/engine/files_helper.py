"""joey-files processes: started in a sandbox when something is asked of its files, kept for a few seconds, at most
FILES_AT_ONCE at work in one sandbox. A helper that answers nonsense, or is left in the middle of an answer, is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from joey.engine import files_wire as wire
from joey.engine.files_users import Names
from joey.engine.launching import Launched, Launching, send_signal
from joey.host.launcher import sealed_program
from joey.model.errors import Broken, Busy, Conflict, Exhausted, JoeyError
from joey.plan import flags as f

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.store import Store

FILES_AT_ONCE = 4
WATCHES_AT_ONCE = 16
"""Of one sandbox: each is a process in it."""
IDLE_SECONDS = 5.0
STUCK_SECONDS = 60.0
"""Without a sign of a helper that shall do something: something inside has stopped it, or its file system hangs."""
_PIPE = 1 << 18
_chunk = memoryview(bytearray(1 << 18))
"""What is read lands here first: memory that is touched for the first time is dear (docs/limits.md)."""
_LARGEST = 1 << 20
_SIGKILL = 9


class Helper:
    """One process and the pipes to it. For one request at a time."""

    def __init__(self, launched: Launched) -> None:
        self.launched = launched
        self.clean = True  # between two requests
        self._loop = asyncio.get_running_loop()
        self._in, self._out = launched.fds[f.ROLE_STDIN], launched.fds[f.ROLE_STDOUT]
        self._buffer = bytearray()
        self._closed = False
        for fd in (self._in, self._out):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # EPERM: the user's pipes have enough
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def close(self) -> None:
        """End it: it notices that nobody is there. Done again: nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._in)
            os.close(self._out)

    async def send(self, data: bytes) -> bool:
        """Returns when the pipe has taken all of it: True; False if an answer has come meanwhile. Raises Gone."""
        self.clean = False
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:
                if self._buffer or self._fill():
                    return False
                await self._wait(self._in, self._out)
            except OSError as error:
                raise Gone from error
        return True

    @property
    def answered(self) -> bool:
        """Whether something of an answer is here."""
        return bool(self._buffer) or self._fill()

    async def frame(self, *, patient: bool = False) -> tuple[int, bytes]:
        """The next (kind, payload). patient: it may take for ever. Raises Gone, Garbled, Broken."""
        while True:
            if len(self._buffer) >= wire.ANSWER.size:
                kind, size = wire.ANSWER.unpack_from(self._buffer)
                if size > _LARGEST:
                    raise wire.Garbled
                end = wire.ANSWER.size + size
                if len(self._buffer) >= end:
                    payload = bytes(memoryview(self._buffer)[wire.ANSWER.size : end])
                    del self._buffer[:end]
                    self.clean = kind == wire.DONE and not self._buffer
                    return kind, payload
            if not self._fill():
                await self._wait(-1, self._out, None if patient else STUCK_SECONDS)

    def _fill(self) -> bool:
        try:
            size = os.readv(self._out, (_chunk,))
        except BlockingIOError:
            return False
        except OSError as error:
            raise Gone from error
        if not size:
            raise Gone
        self._buffer += _chunk[:size]
        return True

    async def _wait(self, write: int, read: int, seconds: float | None = STUCK_SECONDS) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        self._loop.add_reader(read, wake)
        if write >= 0:
            self._loop.add_writer(write, wake)
        timer = self._loop.call_later(seconds, future.cancel) if seconds is not None else None
        try:
            await future
        except asyncio.CancelledError:
            if timer is not None and self._loop.time() >= timer.when():
                raise Broken("files", f"the sandbox's file system gives no answer for {seconds:.0f} seconds") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._loop.remove_reader(read)
            if write >= 0:
                self._loop.remove_writer(write)


class Gone(Exception):
    """The helper has ended."""


class _Place:
    """What is kept of one sandbox's run."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.idle: list[Helper] = []
        self.gate = asyncio.Semaphore(FILES_AT_ONCE)
        self.watches = 0
        self.waiting = 0
        self.timer: asyncio.TimerHandle | None = None


class Helpers:
    """All of an engine's."""

    def __init__(self, launching: Launching, store: Store) -> None:
        self._launching = launching
        self._store = store
        self.names: dict[str, tuple[float, Names]] = {}
        """sandbox → when its users were read, and what they are called."""
        self._places: dict[str, _Place] = {}
        self._program = -1
        self._busy: set[Helper] = set()
        self._ending: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def helper(self, box: Box, *, reading: bool = False, watching: bool = False) -> AsyncIterator[Helper]:
        """A helper in `box` for the block. reading: also if it is paused. Raises Conflict if it does not run."""
        paused = self._check(box, reading)
        place = self._place(box)
        with self._counted(place, watching):
            async with contextlib.nullcontext() if watching else place.gate:
                self._check(box, reading)
                helper = place.idle.pop() if place.idle and not paused else await self._start(box, joined=not paused)
                self._busy.add(helper)
                try:
                    yield helper
                except (Gone, wire.Garbled) as error:
                    raise await self._explain(box, error) from error
                finally:
                    self._busy.discard(helper)
                    current = self._places.get(box.id) is place and box.record.key == place.key
                    if helper.clean and current and not paused and not watching:
                        self._keep(place, helper)
                    else:
                        self._end(helper)

    def _check(self, box: Box, reading: bool) -> bool:
        """Whether it is paused. Raises Conflict if that cannot be done in its state."""
        state = box.view().state
        if state not in ("running", "paused") or box.launched is None or box.slot is None:
            raise Conflict("state", f"cannot reach its files: it is {state}", "start it first")
        if state == "paused" and not reading:
            raise Conflict("state", "cannot change its files: it is paused", "resume it first")
        return state == "paused"

    @contextlib.contextmanager
    def _counted(self, place: _Place, watching: bool) -> Iterator[None]:
        if watching and place.watches >= WATCHES_AT_ONCE:
            raise Busy("watch", f"{place.watches} watches are open in this sandbox", "end one of them")
        if place.waiting >= 1024:
            raise Busy("files", "too many requests for this sandbox's files are waiting")
        place.watches += watching
        place.waiting += 1
        try:
            yield
        finally:
            place.watches -= watching
            place.waiting -= 1

    def _place(self, box: Box) -> _Place:
        place = self._places.get(box.id)
        if place is None or place.key != box.record.key:
            self.forget(box.id)
            place = self._places[box.id] = _Place(box.record.key)
        return place

    async def _start(self, box: Box, *, joined: bool) -> Helper:
        assert box.launched is not None and box.slot is not None
        request = box.requested()
        if self._program < 0:
            self._program = sealed_program("joey-files", 0o111)  # who executes what it may not read cannot be traced
        key = self._store.next_number("key")
        work = asyncio.ensure_future(
            self._launching.files(request, box.launched, box.slot, key, self._program, joined=joined)
        )
        try:
            launched = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_unwanted)
            raise
        except JoeyError as error:
            if not box.alive:
                raise Conflict("state", "cannot reach its files: it has just ended") from error
            raise
        return Helper(launched)

    async def _explain(self, box: Box, error: Exception) -> JoeyError:
        await asyncio.sleep(0.01)  # the sandbox's own end may be about to be told
        if not box.alive:
            return Conflict("state", "it has just ended")
        if isinstance(error, wire.Garbled):
            return Broken("files", "something inside the sandbox answered in our helper's place")
        reason = "the helper inside the sandbox was killed: by the sandbox's memory limit, or by a program in it"
        return Exhausted("path", reason, "free memory in it, or raise its limit")

    # --- ends --------------------------------------------------------------------------------------------------------

    def _keep(self, place: _Place, helper: Helper) -> None:
        place.idle.append(helper)
        if place.timer is not None:
            place.timer.cancel()
        place.timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._quiet, place)

    def _quiet(self, place: _Place) -> None:
        place.timer = None
        idle, place.idle = place.idle, []
        for helper in idle:
            helper.close()

    def _end(self, helper: Helper) -> None:
        """It may be in the middle of something, or stopped."""
        helper.close()
        if not helper.clean:
            self._ending.add(task := asyncio.ensure_future(_kill(helper.launched)))
            task.add_done_callback(self._ending.discard)

    def forget(self, sandbox: str) -> None:
        """A sandbox's run has ended."""
        place = self._places.pop(sandbox, None)
        self.names.pop(sandbox, None)
        if place is not None:
            if place.timer is not None:
                place.timer.cancel()
            self._quiet(place)

    async def close(self) -> None:
        """The engine closes."""
        for sandbox in tuple(self._places):
            self.forget(sandbox)
        for helper in tuple(self._busy):
            self._end(helper)
        if self._ending:
            await asyncio.wait(self._ending)
        if self._program >= 0:
            os.close(self._program)
            self._program = -1


async def _kill(launched: Launched) -> None:
    with contextlib.suppress(JoeyError, OSError):
        await send_signal(launched, _SIGKILL)


def _close_unwanted(work: asyncio.Future[Launched]) -> None:
    if not work.cancelled() and work.exception() is None:
        for fd in work.result().fds.values():
            os.close(fd)
