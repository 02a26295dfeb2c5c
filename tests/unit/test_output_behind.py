"""A slow client of a program whose output is logged: it catches up from the log, and hardly anybody waits for it."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from joey.engine import output
from joey.engine.logs import Logs
from unit.test_output import every_descriptor_is_closed, rest, turns, world

pytestmark = pytest.mark.usefixtures(every_descriptor_is_closed.__name__)


async def _pour(program, total, client):
    """Write `total` bytes as a program that never waits longer than it must; → how many the kernel took in time."""
    os.set_blocking(program.stdout, False)
    written, idle = 0, 0
    while written < total and idle < 200:
        try:
            piece = b"%015d\n" % (written // 16) * 256
            written += os.write(program.stdout, piece[: min(len(piece), total - written)])
            idle = 0
        except BlockingIOError:
            idle += 1
            await asyncio.sleep(0.001 if idle > 20 else 0)
        while client is not None and client.queued:
            await client.read()
    return written


@world
async def test_a_slow_client_catches_up_from_the_log(start, monkeypatch):
    """The others and the program go on; it gets every byte in order, across rotations, also after the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Logs(Path(folder), max_bytes=3 << 20).log("x")
        log.begin()
        program = start(log=log)
        slow, fast = program.attach(), program.attach()
        total = 6 << 20
        assert await _pour(program, total, fast) == total, "nobody waits for the slow one"
        assert slow.behind is not None and slow.queued < 2 << 20
        reading = asyncio.ensure_future(rest(slow))
        await turns(3)
        os.set_blocking(program.stdout, True)
        os.write(program.stdout, b"last")
        program.end()
        got = (await reading)[1]
        assert len(got) == total + 4 and got.endswith(b"last") and slow.behind is None
        await slow.close()
        log.end()


@world
async def test_a_client_too_far_behind_holds_the_program(start, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        log = Logs(Path(folder), max_bytes=1 << 20).log("x")
        log.begin()
        program = start(log=log)
        slow = program.attach()
        total = 12 << 20
        first = await _pour(program, total, None)
        assert 3 << 20 < first < 6 << 20, (
            "the log keeps 2 MiB, the client 1, the reader's open file 1, the pipe the rest"
        )
        reading = asyncio.ensure_future(rest(slow))
        rest_of_it = await _pour(program, total - first, None)
        assert rest_of_it == total - first
        program.end()
        assert len((await reading)[1]) == total
        await slow.close()
        log.end()


@world
async def test_what_nobody_reads_is_poured_out_slowly(start, monkeypatch):
    """Without a client a program that writes without end waits; whoever attaches gets all at full speed."""
    pace = output.Pace()
    monkeypatch.setattr(output.Pace, "RATE", 1 << 20)
    monkeypatch.setattr(output, "_pace", pace)
    pace._credit = 0.0
    program = start()
    began = asyncio.get_running_loop().time()
    written = 0
    os.set_blocking(program.stdout, False)
    while asyncio.get_running_loop().time() - began < 0.4:
        try:
            written += os.write(program.stdout, bytes(1 << 16))
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert written < 8 << 20, "hundreds of MiB if it did not wait"
    client = program.attach()
    assert await _pour(program, 8 << 20, client) == 8 << 20, "it is read at once"
    program.end()
    await rest(client)
    await client.close()
