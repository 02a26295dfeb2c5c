"""A launcher takes over what another has started: heard of, signalled, held, and its end known as far as it can be."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterator

import pytest

from native.wire import CHILD, FAST, NO_REG, Client, drain, op, read_line

PR_SET_CHILD_SUBREAPER = 36
FOREVER = "exec sleep 1000"
COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"
UNKNOWN = 1
NEWER = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)
"""Whether the kernel remembers ends for those who hold a pidfd."""


@pytest.fixture
def reaper() -> Iterator[None]:
    """We are who orphans come to: we decide when one is waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def orphan(start, script: str = FOREVER) -> int:
    """A process whose launcher is gone: its pid. It is ours to wait for."""
    first = start()
    shell = op("EXEC", s=("/bin/sh", ["sh", "-c", script], [], ""))
    reply = first.connect().run(7, [op("CLONE", n=(FAST,)), op("STDIO", s=([], [])), shell])
    assert reply.error == 0
    first.process.kill()
    first.process.wait()
    return reply.value


def adopt(client: Client, pid: int, key: int = 7, roles: int = 0, fds: tuple[int, ...] = ()) -> int:
    """The error, 0 if it was taken over."""
    pidfd = os.pidfd_open(pid)
    try:
        data = CHILD.pack(key, 12345, 0, pid, 0, 0, 0, 0, 0, 0)
        return client.ask("ADOPT", key, roles, data, (pidfd, *fds)).error
    finally:
        os.close(pidfd)


def flags(client: Client, key: int) -> int:
    """Of an exit, asked for again."""
    reply = client.ask("LIST", key - 1)
    return CHILD.unpack_from(reply.data)[9]


@pytest.mark.parametrize("end", ["code", "signal"])
def test_its_end_is_known_before_and_after_it_is_waited_for(start, reaper, end):
    pid = orphan(start, "sleep 0.1; exit 7" if end == "code" else FOREVER)
    client = start().connect()
    assert client.ask("SUBSCRIBE").error == 0
    assert adopt(client, pid) == 0
    if end == "signal":
        assert client.ask("SIGNAL", 7, signal.SIGTERM).error == 0
    gone = client.wait_exit(7)
    assert (gone.pid, gone.status) == (pid, signal.SIGTERM if end == "signal" else 7 << 8)
    assert flags(client, 7) == 0
    assert client.ask("SIGNAL", 7, 0).error == errno.ESRCH
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    data = CHILD.pack(8, 1, 0, pid, 0, 0, 0, 0, 0, 0)
    assert client.ask("ADOPT", 8, 0, data, (pidfd,)).error == 0
    os.close(pidfd)
    assert client.wait_exit(8).status == (gone.status if NEWER else 0)
    assert flags(client, 8) == (0 if NEWER else UNKNOWN)


def test_listed_held_entered_and_forgotten_as_its_own(start, reaper):
    pid = orphan(start)
    here = start()
    client = here.connect()
    client.list()
    before = here.fds().keys()
    read, write = os.pipe()
    assert adopt(client, pid, roles=1 << 1, fds=(read,)) == 0
    os.close(read)
    assert adopt(client, pid) == errno.EEXIST
    (child,) = client.list()
    assert (child.key, child.pid, child.started_ns, child.exited_ns, child.held) == (7, pid, 12345, 0, 2)
    (copy,) = client.ask("FETCH", 7).fds
    os.write(write, b"kept")
    os.close(write)
    assert drain(copy) == b"kept"
    assert client.run(0, [op("CHILD", 0, n=(7,))]).error == 0
    assert client.ask("FORGET", 7, 1).error == 0
    assert client.list() == []
    assert here.fds().keys() == before
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_is_no_process_is_refused(start, reaper):
    client = start().connect()
    data = CHILD.pack(7, 1, 0, os.getpid(), 0, 0, 0, 0, 0, 0)
    null = os.open("/dev/null", os.O_RDONLY)
    pidfd = os.pidfd_open(os.getpid())
    assert client.ask("ADOPT", 7, 0, data, (null,)).error == errno.EBADF
    assert client.ask("ADOPT", 7, 0, data).error == errno.EINVAL
    assert client.ask("ADOPT", 0, 0, data, (pidfd,)).error == errno.EINVAL
    assert client.ask("ADOPT", 7, 1, data, (pidfd,)).error == errno.EINVAL
    assert client.ask("ADOPT", 7, 1 << 8, data, (pidfd,)).error == errno.EBADMSG
    assert client.ask("ADOPT", 7, 0, data[:-1], (pidfd,)).error == errno.EBADMSG
    assert client.list() == []
    os.close(null)
    os.close(pidfd)


def test_a_pipe_that_lasts_is_read_on_by_another(start, reaper):
    """All read ends close while the program writes: it gets no SIGPIPE, and nothing it wrote is lost."""
    first = start()
    client = first.connect()
    pipe = [op("PIPE", 0, 1, n=(os.O_CLOEXEC, 1)), op("HOLD", 0, n=(1, 1))]
    plan = [
        *pipe,
        op("CLONE", n=(FAST,)),
        op("STDIO", NO_REG, 1, 1, s=([], [])),
        op("EXEC", s=("/bin/sh", ["sh", "-c", COUNT], [], "")),
    ]
    reply = client.run(7, plan)
    if reply.error:
        pytest.fail(os.strerror(reply.error))
    pid = reply.value
    first.process.kill()
    first.process.wait()
    time.sleep(0.1)
    again = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY)
    assert read_line(again).startswith(b"0\n1\n")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while os.read(again, 4096):
        pass
    os.close(again)


@pytest.mark.parametrize("when", ["before:2", "after:2", "op:3"])
def test_failpoints(program, privileged, when):
    from native.wire import launcher

    with launcher(program, env={"JOEY_LAUNCHER_DIE": when}) as here:
        client = here.connect()
        assert client.ask("HELLO", value=2).error == 0
        if when == "after:2":
            assert client.ask("LIST").error == 0
        elif when == "before:2":
            with pytest.raises(ConnectionError):
                client.ask("LIST")
        else:
            with pytest.raises(ConnectionError):
                client.run(0, [op("PIPE", 0, 1)] * 3)
        assert here.process.wait(5) == -signal.SIGKILL
