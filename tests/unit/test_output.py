"""The pump of a process's streams: every byte to everybody, slow clients, grandchildren, terminals, input, no leak."""

import asyncio
import contextlib
import fcntl
import os
import pty
import termios
import time
import tty

import pytest

from joey.engine import output as module
from joey.engine.attached import HIGH, Attached
from joey.engine.output import Output
from joey.model.views import Exit


@pytest.fixture(autouse=True)
def every_descriptor_is_closed():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


async def ended():
    return Exit(code=3)


signals = []


async def signal(number):
    signals.append(number)


class Kept:
    """A log."""

    def __init__(self):
        self.pieces = []

    def write(self, stream, data):
        self.pieces.append((stream, data))

    def reader(self):
        return None  # nothing can be read again: who is slow holds all up


class Program:
    """The far ends of a process's streams, and the output that reads them."""

    def __init__(self, *, stdin=False, terminal=False, log=None, stack):
        self.stack = stack
        loop = asyncio.get_running_loop()
        if terminal:
            master, self.slave = pty.openpty()
            tty.setraw(self.slave)
            self.ends = {self.slave}
            self.output = Output(loop, terminal=master, log=log)
        else:
            stdin_read, stdin_write = os.pipe() if stdin else (-1, None)
            (out, self.stdout), (err, self.stderr) = os.pipe(), os.pipe()
            self.stdin = stdin_read
            self.ends = {self.stdout, self.stderr} | ({stdin_read} if stdin else set())
            self.output = Output(loop, stdin_write, out, err, log=log)
        stack.callback(self.clean)

    def attach(self, **options):
        attached = Attached(ended, signal, **options)
        self.output.attach(attached)
        return attached

    def close(self, *fds):
        for fd in fds or tuple(self.ends):
            self.ends.remove(fd)
            os.close(fd)

    def end(self):
        """The process ends, and with it its ends of the pipes."""
        self.close()
        self.output.exited()

    def clean(self):
        if self.ends:
            self.close()
        self.output.close()


def world(test):
    """Run an async test with a `start` that makes Programs."""

    def wrapped(monkeypatch):
        async def inside():
            with contextlib.ExitStack() as stack:

                def start(**options):
                    return Program(stack=stack, **options)

                await (test(start, monkeypatch) if "monkeypatch" in test.__code__.co_varnames else test(start))

        asyncio.run(inside())

    wrapped.__name__ = test.__name__
    return wrapped


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def rest(attached):
    """Everything until the end, the pieces of each stream joined."""
    got = {}
    while (piece := await attached.read()) is not None:
        assert 0 < len(piece[1]) <= 65536
        got[piece[0]] = got.get(piece[0], b"") + piece[1]
    return got


# ---- output


@world
async def test_output_reaches_log_and_attachments(start):
    log = Kept()
    program = start(log=log)
    clients = [program.attach(), program.attach()]
    os.write(program.stdout, b"out\n")
    os.write(program.stderr, b"err\n")
    program.end()
    assert [await rest(client) for client in clients] == [{1: b"out\n", 2: b"err\n"}] * 2
    assert sorted(log.pieces) == [(1, b"out\n"), (2, b"err\n")]
    await program.output.closed
    assert await clients[0].wait() == Exit(code=3)


@world
async def test_what_was_written_before_attaching_at_once_is_not_missed(start):
    program = start()
    os.write(program.stdout, b"early")
    client = program.attach()
    program.end()
    assert await rest(client) == {1: b"early"}


@world
async def test_a_later_attachment_gets_the_output_from_then_on(start):
    program = start(log=Kept())
    os.write(program.stdout, b"before")
    await turns()
    client = program.attach()
    os.write(program.stdout, b"after")
    program.end()
    assert await rest(client) == {1: b"after"}
    assert await rest(program.attach()) == {}


@world
async def test_without_log_and_client_output_is_dropped(start):
    program = start()
    for _ in range(100):
        os.write(program.stdout, b"x" * 60_000)  # would block if nobody read
        await turns(2)
    program.end()
    await program.output.closed


@world
async def test_the_end_comes_only_with_the_process(start):
    program = start()
    client = program.attach()
    program.close()
    await program.output.closed
    reading = asyncio.ensure_future(client.read())
    await turns()
    assert not reading.done()
    program.output.exited()
    assert await reading is None and await client.read() is None


@world
async def test_a_piece_has_at_most_64_kib_and_busy_pipes_grow(start):
    program = start()
    client = program.attach()
    os.set_blocking(program.stdout, False)
    sent = 0
    for _ in range(40):
        with contextlib.suppress(BlockingIOError):
            sent += os.write(program.stdout, bytes(1 << 20))
        piece = await client.read()
        assert len(piece[1]) <= 65536
        sent -= len(piece[1])
    assert fcntl.fcntl(program.stdout, fcntl.F_GETPIPE_SZ) == 1 << 20
    program.end()
    assert len((await rest(client))[1]) == sent


# ---- slow clients


async def fill(fd, chunk=65536):
    """Write until nothing more is taken: how much was."""
    os.set_blocking(fd, False)
    sent = idle = 0
    while idle < 20:
        try:
            sent += os.write(fd, b"z" * chunk)
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0)
    return sent


@world
async def test_a_slow_client_makes_the_program_wait_and_nothing_is_lost(start):
    log = Kept()
    program = start(log=log)
    slow, fast = program.attach(), program.attach()
    reading = asyncio.ensure_future(rest(fast))
    sent = await fill(program.stdout)
    assert HIGH <= sent <= HIGH + (2 << 20)  # the queue and the pipe
    assert slow.queued <= HIGH + 65536 + 128
    half = 0
    while half < HIGH:
        half += len((await slow.read())[1])
    more = await fill(program.stdout)
    assert more > 0
    program.end()
    got = await rest(slow)
    assert half + len(got[1]) == sent + more == len((await reading)[1])
    assert sum(len(data) for _, data in log.pieces) == sent + more


@world
async def test_a_slow_client_that_leaves_holds_nobody_up(start):
    program = start()
    slow, fast = program.attach(), program.attach()
    reading = asyncio.ensure_future(rest(fast))
    sent = await fill(program.stdout)
    await slow.close()
    assert await slow.read() is None
    os.set_blocking(program.stdout, False)
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            sent += os.write(program.stdout, b"y" * 65536)
        await asyncio.sleep(0)
    program.end()
    assert len((await reading)[1]) == sent > 4 * HIGH


@world
async def test_many_tiny_pieces_count_for_what_they_take(start):
    program = start()
    client = program.attach()
    os.set_blocking(program.stdout, False)
    for _ in range(20_000):
        os.write(program.stdout, b"x")
        await asyncio.sleep(0)
        if program.output._blocked:
            break
    assert program.output._blocked and client.queued < HIGH + 1000
    program.end()
    await rest(client)


# ---- grandchildren


@world
async def test_a_grandchild_that_keeps_the_pipe_delays_the_end_by_the_grace_only(start, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.02)
    program = start()
    client = program.attach()
    os.write(program.stdout, b"last words")
    program.output.exited()
    begin = time.monotonic()
    assert await rest(client) == {1: b"last words"}
    assert 0.01 < time.monotonic() - begin < 5
    await program.output.closed
    with pytest.raises(BrokenPipeError):
        os.write(program.stdout, b"x")


@world
async def test_after_the_grace_a_slow_client_still_gets_all_that_was_written(start, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    program = start()
    client = program.attach()
    sent = await fill(program.stdout)
    program.output.exited()
    await turns(20)
    assert not program.output.closed.done()
    assert len((await rest(client))[1]) == sent
    await program.output.closed


@world
async def test_a_grandchild_that_never_stops_writing_is_cut_off(start, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    program = start()
    client = program.attach()
    os.set_blocking(program.stdout, False)
    os.write(program.stdout, b"b" * 65536)
    real = os.read

    def read_and_fill_up(fd, size):
        data = real(fd, size)
        with contextlib.suppress(BlockingIOError):
            os.write(program.stdout, b"b" * 65536)
        return data

    monkeypatch.setattr(os, "read", read_and_fill_up)
    program.output.exited()
    assert len((await rest(client))[1]) <= 4 << 20


@world
async def test_the_grace_ends_also_when_the_last_turn_emptied_the_pipe(start, monkeypatch):
    monkeypatch.setattr(module, "_PIECES_A_TURN", 1)
    monkeypatch.setattr(module, "GRACE_SECONDS", 30.0)
    program = start()
    os.write(program.stdout, b"x")
    client = program.attach()
    program.output.exited()
    program.output._grace_over()
    assert len(program.output._streams) == 1  # stderr had nothing, of stdout it is not known yet
    assert await rest(client) == {1: b"x"}


def test_the_grace_is_a_second():
    assert module.GRACE_SECONDS == 1.0


# ---- input


@world
async def test_input_is_written_and_ended(start):
    program = start(stdin=True)
    client, other = program.attach(), program.attach()
    await client.write(b"hello ")
    await other.write(b"world")
    await client.close_stdin()
    await client.close_stdin()
    await other.write(b"too late")
    assert os.read(program.stdin, 100) == b"hello world" and os.read(program.stdin, 100) == b""
    program.end()


@world
async def test_a_full_pipe_makes_the_writer_wait_and_the_end_of_file_too(start):
    program = start(stdin=True)
    client = program.attach()
    data = os.urandom(300_000)
    writing = asyncio.ensure_future(client.write(data))
    await turns()
    assert not writing.done()
    await client.close_stdin()
    got = b""
    while piece := await asyncio.to_thread(os.read, program.stdin, 50_000):
        got += piece
    await writing
    assert got == data
    program.end()


@world
async def test_writers_that_wait_are_let_go(start):
    program = start(stdin=True)
    leaving, staying = program.attach(), program.attach()
    writing = [asyncio.ensure_future(client.write(bytes(300_000))) for client in (leaving, staying)]
    await turns()
    await leaving.close()
    await writing[0]
    await turns()
    assert not writing[1].done()
    program.close(program.stdin)  # nobody will read it
    await writing[1]
    await staying.write(b"discarded")
    program.end()


@world
async def test_the_end_of_the_process_lets_writers_go(start):
    program = start(stdin=True)
    client = program.attach()
    writing = asyncio.ensure_future(client.write(bytes(300_000)))
    await turns()
    program.output.exited()
    await writing


@world
async def test_a_writer_that_is_cancelled_leaves_the_others_alone(start):
    program = start(stdin=True)
    client, other = program.attach(), program.attach()
    first, second = (asyncio.ensure_future(one.write(bytes(100_000))) for one in (client, other))
    await turns()
    first.cancel()
    received = 0
    while not second.done():
        received += len(os.read(program.stdin, 10_000))
        await turns()
    assert received >= 100_000
    with pytest.raises(asyncio.CancelledError):
        await first
    program.end()


@world
async def test_no_input_at_all(start):
    program = start()
    client = program.attach()
    await client.write(b"discarded")
    await client.close_stdin()
    await client.resize(1, 1)
    program.end()


# ---- terminals


@world
async def test_a_terminal(start):
    program = start(terminal=True)
    client = program.attach()
    await client.resize(33, 111)
    assert termios.tcgetwinsize(program.slave) == (33, 111)
    await client.write(b"typed\n")
    assert os.read(program.slave, 100) == b"typed\n"
    await client.close_stdin()  # nothing
    await client.write(b"more\n")
    assert os.read(program.slave, 100) == b"more\n"
    os.write(program.slave, b"shown")
    assert await client.read() == (1, b"shown")
    program.close()  # reading gives EIO now
    await program.output.closed
    program.output.exited()
    assert await client.read() is None
    await client.resize(1, 1)
    await client.write(b"nobody")


@world
async def test_a_terminal_that_somebody_keeps_open(start, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.01)
    program = start(terminal=True)
    client = program.attach()
    os.write(program.slave, b"shown")
    program.output.exited()
    assert await rest(client) == {1: b"shown"}


@world
async def test_a_full_terminal_makes_the_writer_wait(start):
    program = start(terminal=True)
    client = program.attach()
    writing = asyncio.ensure_future(client.write(b"k" * 100_000))
    await turns()
    assert not writing.done()
    got = 0
    while got < 100_000:
        got += len(await asyncio.to_thread(os.read, program.slave, 4096))
    await writing
    program.end()


# ---- attachments of their own


@world
async def test_attached_before_there_is_a_process(start):
    client = Attached(ended, signal)
    await client.resize(12, 34)
    reading, writing = asyncio.ensure_future(client.read()), asyncio.ensure_future(client.write(b"input"))
    await turns()
    assert not reading.done() and not writing.done()
    program = start(terminal=True)
    program.output.attach(client)
    await writing
    assert os.read(program.slave, 100) == b"input" and termios.tcgetwinsize(program.slave) == (12, 34)
    os.write(program.slave, b"hi")
    assert await reading == (1, b"hi")
    program.end()
    assert await client.read() is None


@world
async def test_end_of_file_before_there_is_a_process(start):
    client = Attached(ended, signal)
    await client.close_stdin()
    program = start(stdin=True)
    program.output.attach(client)
    assert os.read(program.stdin, 10) == b""
    program.end()


@world
async def test_a_process_that_never_comes(start):
    for finish in (lambda client: client.end(), lambda client: asyncio.ensure_future(client.close())):
        client = Attached(ended, signal)
        tasks = [asyncio.ensure_future(client.read()), asyncio.ensure_future(client.write(b"x"))]
        await turns()
        finish(client)
        assert await asyncio.gather(*tasks) == [None, None]


@world
async def test_closing_ends_a_read_and_only_that_attachment(start):
    program = start()
    client, other = program.attach(), program.attach()
    reading = asyncio.ensure_future(client.read())
    await turns()
    await client.close()
    await client.close()
    assert await reading is None
    os.write(program.stdout, b"x")
    program.end()
    assert await rest(other) == {1: b"x"}


@world
async def test_closing_the_owner_closes_the_pipes(start):
    program = start(stdin=True)
    told: list[int] = []
    client = program.attach(owner=lambda: told.append(1))
    await client.close()
    await client.close()
    assert told == [1]
    await program.output.closed
    with pytest.raises(BrokenPipeError):
        os.write(program.stdout, b"x")
    assert os.read(program.stdin, 1) == b""


@world
async def test_a_cancelled_read_loses_nothing(start):
    program = start()
    client = program.attach()
    reading = asyncio.ensure_future(client.read())
    await turns()
    os.write(program.stdout, b"x")
    reading.cancel()
    program.end()
    assert await rest(client) == {1: b"x"}


@world
async def test_signal_and_pid_are_the_engines(start):
    client = start().attach(pid=77)
    await client.signal(10)
    assert signals.pop() == 10 and client.pid == 77


@world
async def test_closed_and_exited_twice(start):
    program = start(stdin=True)
    program.end()
    program.output.exited()
    program.output.close()
    program.output.close()
    await program.output.closed


@world
async def test_no_streams_at_all(start):
    output = Output(asyncio.get_running_loop())
    client = Attached(ended, signal)
    output.attach(client)
    await output.closed
    output.exited()
    assert await client.read() is None


@world
async def test_a_thousand_at_once_are_cheap(start):
    programs = [start() for _ in range(1000)]
    for program in programs:
        os.write(program.stdout, b"hello\n")
    begin = time.thread_time()
    clients = [program.attach() for program in programs]
    await turns(2)
    for program in programs:
        program.end()
    for client in clients:
        assert await rest(client) == {1: b"hello\n"}
    assert time.thread_time() - begin < 0.5  # a tenth of it on an idle machine
