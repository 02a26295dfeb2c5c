"""The daemon's end of a channel: invocations go out, answers and output come in. A warm one is one write and one read.

What comes is a stranger's: sizes are bounded, an unknown invocation is ignored, and whoever breaks the protocol is cut
off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from joey.functions import wire
from joey.functions.intake import Intake
from joey.functions.runtime.frames import CREDITS, HEADER, Frames
from joey.functions.wire import Answer, Failure, Head
from joey.functions.work import HELD, LogSink, Pending, Work, head_json

if TYPE_CHECKING:
    from joey.engine.channels import Channel

_CHUNK = memoryview(bytearray(256 << 10))
"""What is read lands here first: fresh memory is dear."""
_LAST_READS, _LAST_SECONDS = 64, 0.05
_MOST_UNREAD = 10_000
"""Pieces that wait for it: two for each invocation, and what it is given back of streams."""
_SMALL = 1024
"""A piece of a stream below this costs more than its bytes."""


class Conversation(Work):
    """With the runtime of one instance."""

    def __init__(
        self,
        channel: Channel,
        log: LogSink | None,
        overdue: Callable[[Pending], None],
        broken: Callable[[Failure | None], None],
        limit: int = 1,
    ) -> None:
        super().__init__(log, overdue, broken)
        self.channel = channel
        self._sock, self._fd = channel.sock, channel.sock.fileno()
        self._alone = limit == 1
        self._frames = Frames()
        self._out: list[bytes | memoryview] = []
        self._heads: dict[int, tuple[dict[str, Any], list[bytes]]] = {}
        self._open = True
        self._intake = Intake({channel.out: wire.STDOUT, channel.err: wire.STDERR}, self._raw)
        self._intake.add(self._fd, self._readable)

    def configure(self, config: dict[str, Any]) -> None:
        """What it needs to know, once."""
        self._write(wire.frame(wire.CONFIG, 0, msgspec.json.encode(config)))

    def submit(self, head: Head, body: bytes, timeout: float) -> Pending:
        """One write, as long as the channel takes it."""
        start = head_json(head, timeout) + b"\n"  # before it counts: what cannot be said is not under way
        one = self.add(head, timeout)
        size = len(start) + len(body)
        if size < 1 << 16:
            self._write(HEADER.pack(size, wire.INVOKE, one.number) + start + body)
        else:
            self._write(HEADER.pack(size, wire.INVOKE, one.number) + start, body)
        return one

    def cancel(self, one: Pending) -> None:
        """Tell the runtime, which may not be able to listen."""
        if one.number in self.pending and not one.cancelled:
            one.cancelled = True
            self._write(wire.frame(wire.CANCEL, one.number))

    def stop(self) -> None:
        """No more invocations: it ends when those it has are answered."""
        self._write(wire.frame(wire.STOP))

    # --- out ---------------------------------------------------------------------------------------------------------

    def _write(self, *pieces: bytes) -> None:
        if not self._open:
            return
        if self._out:
            self._out += pieces
            if len(self._out) > _MOST_UNREAD:
                self._loop.call_soon(self._end, Failure(wire.PROTOCOL_ERROR, "the runtime does not read"))
            return
        for at, piece in enumerate(pieces):
            try:
                sent = self._sock.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # its end is heard of by reading
            if sent < len(piece):
                self._out = [memoryview(piece)[sent:], *pieces[at + 1 :]]
                self._loop.add_writer(self._fd, self._more)
                return

    def _more(self) -> None:
        while self._out:
            piece = self._out[0]
            try:
                sent = self._sock.send(piece)
            except BlockingIOError:
                return
            except OSError:
                self._out.clear()
                break
            if sent < len(piece):
                self._out[0] = memoryview(piece)[sent:]
                return
            del self._out[0]
        self._loop.remove_writer(self._fd)

    # --- in ----------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            size = self._sock.recv_into(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._end(None)
            return
        try:
            for kind, number, payload in self._frames.feed(_CHUNK[:size]):
                if kind == wire.RESULT:
                    one = self.pending.get(number)
                    if one is None:
                        self._intake.spend(0)
                    elif one.stream is not None:
                        raise ValueError("two answers to one invocation")
                    else:
                        self._drain()
                        self.settle(one, Answer(body=payload))
                else:
                    self._take(kind, number, payload)
            if self._heads:
                self._open_streams()
        except (ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
            self._end(Failure(wire.PROTOCOL_ERROR, f"the runtime broke its protocol: {error}"))

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.LOG:
            self.printed(self.pending.get(number), 2 if payload[:1] == b"\2" else 1, payload[1:])
            self._intake.spend(len(payload))
        elif kind in (wire.READY, wire.INIT_ERROR):
            self._begin(kind, payload)
        elif (one := self.pending.get(number)) is None:
            self._intake.spend(0)  # answered already: its time was over
        elif kind == wire.HEAD:
            if one.stream is not None or number in self._heads:
                raise ValueError("two heads of one answer")
            self._heads[number] = wire.read_head(payload), []
        elif kind == wire.DATA:
            self._data(one, payload)
        elif kind == wire.DONE:
            self._drain()
            if number in self._heads:
                head, pieces = self._heads.pop(number)
                self.settle(one, Answer(head=head, body=b"".join(pieces)))
            elif one.stream is None:
                raise ValueError("the end of an answer that has not begun")
            else:
                self.finish_stream(one)
        elif kind == wire.ERROR:
            self._drain()
            self._heads.pop(number, None)
            self.refuse(one, wire.read_failure(payload, one.head.id))
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _begin(self, kind: int, payload: bytes) -> None:
        if self.ready.done():
            raise ValueError("it said twice whether it is ready")
        if kind == wire.READY:
            self.ready.set_result(None)
        else:
            self._drain()
            self._end(wire.read_failure(payload, ""))

    def _data(self, one: Pending, payload: bytes) -> None:
        if not payload:
            raise ValueError("an empty piece")
        if one.number in self._heads:
            self._heads[one.number][1].append(payload)
        elif one.stream is None:
            raise ValueError("a piece before its head")
        elif one.stream.held + len(payload) > HELD:
            raise ValueError("it sends more than it may")
        else:
            one.stream.feed(payload)
            if len(payload) < _SMALL:
                self._intake.spend(0)

    def _open_streams(self) -> None:
        heads, self._heads = self._heads, {}
        for number, (head, pieces) in heads.items():
            one = self.pending[number]
            credit = _Credit(self, number)
            stream = self.open(one, head, credit.took, lambda one=one: self.cancel(one))  # type: ignore[misc]
            for piece in pieces:
                stream.feed(piece)

    def _raw(self, stream: int, data: bytes) -> None:
        """Printed past Python: by a program it has started, or the interpreter itself."""
        one = next(iter(self.pending.values())) if len(self.pending) == 1 else None
        self.printed(one, stream, data)

    def _drain(self) -> None:
        """What was printed before an answer belongs to it, if it is the only one."""
        if self._alone:
            self._intake.drain()

    # --- its end -----------------------------------------------------------------------------------------------------

    def _end(self, failure: Failure | None) -> None:
        if self._open:
            self.finish()
            self._broken(failure)

    def finish(self) -> None:
        """No more is said; the channel is closed. Done again: nothing."""
        if self._open:
            self._open = False
            self._intake.drain()
            self._intake.close()
            self._loop.remove_writer(self._fd)
            self.channel.close()

    def last_words(self) -> None:
        """Its process has ended: read what it has said, which is a socket's full. A child of it may hold its channel
        open, and go on.
        """
        begun = self._loop.time()
        for _ in range(_LAST_READS):
            if not self._open:
                return
            self._readable()
            if self._loop.time() - begun > _LAST_SECONDS:
                break
        self._end(None)


class _Credit:
    """Gives back to a runtime what was read of its stream, a good part of the window at a time."""

    def __init__(self, conversation: Conversation, number: int) -> None:
        self._conversation, self._number = conversation, number
        self._owed = 0

    def took(self, size: int) -> None:
        self._owed += size
        if self._owed >= wire.WINDOW // 4:
            conversation = self._conversation
            if self._number in conversation.pending:
                conversation._write(wire.frame(wire.CREDIT, self._number, CREDITS.pack(self._owed)))
            self._owed = 0
