"""Invocations in flight of one instance, whatever the instance is made of: deadlines, output, answers.

Nothing here is a task, and an invocation costs no timer: one timer of the instance stands at the earliest deadline it
knows of, and looks again when it goes off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import msgspec

from joey.functions import wire
from joey.functions.wire import Answer, Failure, Head, StreamFailed

LogSink = Callable[[str, int, bytes], None]
"""(request's id or "", 1 stdout or 2 stderr, bytes): all that is printed, as it comes."""
HELD = wire.WINDOW + wire.MAX_DATA
"""Bytes of a stream that wait for its reader, at most."""
_SMALL = 4096


class Pending:
    """One invocation. `number`: the instance's own for it."""

    __slots__ = ("answer", "cancelled", "due", "future", "head", "logs", "number", "started", "stream", "timeout")

    def __init__(self, number: int, head: Head, timeout: float, future: asyncio.Future[Answer]) -> None:
        self.number, self.head, self.timeout, self.future = number, head, timeout, future
        self.started = monotonic()
        self.due = self.started + timeout
        self.logs = b""
        self.stream: Stream | None = None
        self.answer: Answer | None = None
        self.cancelled = False

    def printed(self, data: bytes) -> None:
        """Keep the end of what it prints."""
        self.logs = (self.logs + data)[-wire.LOG_TAIL :]


class Stream(AsyncIterator[bytes]):
    """An answer's pieces, to be read once. took(bytes): so many were; left(): nobody will read the rest."""

    def __init__(self, took: Callable[[int], None], left: Callable[[], None]) -> None:
        self._took, self._left = took, left
        self._pieces: deque[bytes | bytearray] = deque()
        self.held = 0
        self._ended: Failure | bool = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def open(self) -> bool:
        """Whether more may come, and somebody wants it."""
        return not self._ended

    def feed(self, data: bytes) -> None:
        """The next piece. Small ones that wait become one: each would cost far more than its bytes."""
        last = self._pieces[-1] if self._pieces else b""
        if isinstance(last, bytearray) and len(last) < _SMALL:
            last += data
        else:
            self._pieces.append(bytearray(data) if len(data) < _SMALL else data)
        self.held += len(data)
        self._wake()

    def end(self, failure: Failure | None = None) -> None:
        """All of it, or why there is no more."""
        if not self._ended:
            self._ended = failure or True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if isinstance(self._ended, Failure):
                raise StreamFailed(self._ended)
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        piece = bytes(self._pieces.popleft())
        self.held -= len(piece)
        self._took(len(piece))
        return piece

    async def aclose(self) -> None:
        """Leave; at its end: nothing."""
        self._pieces.clear()
        if not self._ended:
            self._ended = True
            self._left()


class Work:
    """All of an instance's. overdue(one): its time is over, and it has been answered so. broken(failure or None): it
    takes no more and answers nothing; None: because its process has ended.
    """

    def __init__(
        self, log: LogSink | None, overdue: Callable[[Pending], None], broken: Callable[[Failure | None], None]
    ) -> None:
        self.pending: dict[int, Pending] = {}
        self.logs = b""
        """The last that was printed by no invocation: while it started, or in between."""
        self.log = log
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._overdue, self._broken = overdue, broken
        self.idle: Callable[[], None] | None = None
        """Called when the last one in flight is over."""
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = float("inf")

    def submit(self, head: Head, body: bytes, timeout: float) -> Pending:
        """Begin an invocation; its `future` gets the answer."""
        raise NotImplementedError

    def cancel(self, one: Pending) -> None:
        """Nobody wants its answer. It is in flight until whoever works at it has said so."""
        raise NotImplementedError

    def stop(self) -> None:
        """No more invocations: it may end by itself."""

    def finish(self) -> None:
        """Nothing more is sent or read. Done again: nothing."""
        raise NotImplementedError

    def last_words(self) -> None:
        """Its process has ended: read what it has said, then `finish` and tell."""
        raise NotImplementedError

    def add(self, head: Head, timeout: float) -> Pending:
        """A new one."""
        self._number = number = self._number % 0xFFFF_FFFF + 1
        one = self.pending[number] = Pending(number, head, timeout, self._loop.create_future())
        if one.due < self._armed:
            self._arm(one.due)
        return one

    def settle(self, one: Pending, answer: Answer) -> None:
        """Its answer, all of it."""
        if self.pending.pop(one.number, None) is None:
            return
        answer.logs, answer.seconds = one.logs, monotonic() - one.started
        if not one.future.done():
            one.future.set_result(answer)
        if not self.pending and self.idle is not None:
            self.idle()

    def fail(self, one: Pending, type: str, message: str) -> None:
        """It gets no answer, or no more of one."""
        request = one.head.id
        self.refuse(one, Failure(type, f"RequestId: {request} Error: {message}", request_id=request))

    def refuse(self, one: Pending, failure: Failure) -> None:
        """The same with a failure of the function's own."""
        if one.stream is not None:
            self.finish_stream(one, failure)
        else:
            self.settle(one, Answer(failure=failure))

    def open(self, one: Pending, head: dict[str, Any], took: Callable[[int], None], left: Callable[[], None]) -> Stream:
        """Its answer is a stream; what comes is for `Stream.feed`, and at the end for `finish_stream`."""
        one.stream = stream = Stream(took, left)
        one.answer = Answer(head=head, chunks=stream, logs=one.logs, seconds=monotonic() - one.started)
        if not one.future.done():
            one.future.set_result(one.answer)
        elif one.future.cancelled():
            left()
        return stream

    def finish_stream(self, one: Pending, failure: Failure | None = None) -> None:
        """The end of its stream."""
        if self.pending.pop(one.number, None) is None:
            return
        assert one.stream is not None and one.answer is not None
        one.answer.logs, one.answer.seconds = one.logs, monotonic() - one.started
        one.stream.end(failure)
        if not self.pending and self.idle is not None:
            self.idle()

    def lose(self, type: str, message: str) -> None:
        """Nothing more will come."""
        for one in tuple(self.pending.values()):
            self.fail(one, type, message)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def printed(self, one: Pending | None, stream: int, data: bytes) -> None:
        """Output, of an invocation if that is known."""
        if one is not None:
            one.printed(data)
            request = one.head.id
        else:
            self.logs = (self.logs + data)[-wire.LOG_TAIL :]
            request = ""
        if self.log is not None:
            self.log(request, stream, data)

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = due
        self._timer = self._loop.call_later(max(0.0, due - monotonic()), self._look)

    def _look(self) -> None:
        self._timer, self._armed = None, float("inf")
        now = monotonic()
        for one in tuple(self.pending.values()):
            if one.due <= now and one.due:
                one.due = 0.0  # told once
                self.fail(one, wire.TIMED_OUT, f"Task timed out after {one.timeout:.2f} seconds")
                self._overdue(one)
        due = min((one.due for one in self.pending.values() if one.due), default=0.0)
        if due and due < self._armed:
            self._arm(due)


def head_json(head: Head, timeout: float) -> bytes:
    """What an INVOKE begins with."""
    fields: dict[str, Any] = {"id": head.id, "t": timeout}
    if head.stream:
        fields["stream"] = True
    for name in ("http", "client_context", "trace", "arn"):
        if value := getattr(head, name):
            fields[name] = value
    return _encode(fields)


_encode = msgspec.json.Encoder().encode
