"""Invocations in flight: deadlines without a timer each, streams, and output that is read no faster than allowed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from joey.functions import intake, wire
from joey.functions.intake import Intake
from joey.functions.wire import Answer, Failure, Head, StreamFailed
from joey.functions.work import Pending, Stream, Work


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_each_is_told_when_its_own_time_is_over() -> None:
    async def work() -> None:
        late: list[Pending] = []
        broken: list[Failure | None] = []
        all_of_them = Work(None, late.append, broken.append)
        quiet = asyncio.Event()
        all_of_them.idle = quiet.set
        ones = [all_of_them.add(Head(str(n)), timeout) for n, timeout in enumerate((5.0, 0.06, 0.02, 0.04, 0.02))]
        all_of_them.settle(ones[4], Answer(body=b"in time"))
        assert (await ones[4].future).body == b"in time"
        ended: list[str] = []
        for one in ones[1:4]:
            one.future.add_done_callback(lambda _, one=one: ended.append(one.head.id))  # type: ignore[misc]
        await asyncio.wait([one.future for one in ones[1:4]])
        assert ended == ["2", "3", "1"] and [one.head.id for one in late] == ["2", "3", "1"]
        failure = ones[1].future.result().failure
        assert failure is not None and failure.type == wire.TIMED_OUT and failure.message.endswith("0.06 seconds")
        assert list(all_of_them.pending) == [ones[0].number] and not quiet.is_set()
        all_of_them.lose(wire.EXIT_ERROR, "gone")
        assert quiet.is_set() and (await ones[0].future).failure.message == "RequestId: 0 Error: gone"  # type: ignore[union-attr]
        all_of_them.settle(ones[0], Answer(body=b"too late"))
        assert not broken

    run(work())


def test_a_stream_gives_what_came_and_then_why_it_ended() -> None:
    async def work() -> None:
        taken: list[int] = []
        left: list[bool] = []
        stream = Stream(taken.append, lambda: left.append(True))
        for _ in range(10_000):
            stream.feed(b"a")
        stream.feed(b"b" * 100_000)
        assert (
            stream.held == 110_000 and len(stream._pieces) < 10
        )  # a piece for every byte would cost a hundred times that
        reader = asyncio.ensure_future(collect(stream))
        await asyncio.sleep(0)
        stream.end(Failure("E", "broke off"))
        got, failure = await reader
        assert got == b"a" * 10_000 + b"b" * 100_000 and failure is not None and failure.type == "E"
        assert sum(taken) == 110_000 and stream.held == 0
        await stream.aclose()
        assert not left  # it was over
        other = Stream(taken.append, lambda: left.append(True))
        await other.aclose()
        await other.aclose()
        assert left == [True] and not other.open

    run(work())


async def collect(stream: Stream) -> tuple[bytes, Failure | None]:
    got = b""
    try:
        async for piece in stream:
            got += piece
    except StreamFailed as failed:
        return got, failed.failure
    return got, None


def test_who_prints_too_much_is_not_read_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LOG_RATE", 10_000)
    monkeypatch.setattr(intake, "_PAUSE", 0.05)

    async def work() -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        got: list[bytes] = []
        taken = Intake({read: 1}, lambda stream, data: got.append(data))
        try:
            taken.spend(20_000)
            os.write(write, b"x" * 1000)
            await asyncio.sleep(0.02)
            assert not got
            while not got:
                await asyncio.sleep(0.01)
            os.write(write, b"last")
            taken.drain()
            os.close(write)
            assert got[-1] == b"last"
        finally:
            taken.close()
            os.close(read)

    run(work())
