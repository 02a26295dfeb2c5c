"""A process in a sandbox that talks with the engine by a socket: nothing of it outlives either of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from joey.engine.channels import Channel
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec
from machine_state import eventually
from root.conftest import Lab
from root.test_recovery import home  # noqa: F401

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]
INIT = SandboxSpec(image="host", init=True, entrypoint=(), remove=True)
ECHO = """
import os, socket, sys
sock = socket.socket(fileno=int(os.environ["JOEY_CHANNEL_FD"]))
print("open:", sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)), flush=True)
while data := sock.recv(4096):
    sock.sendall(data.upper())
sys.exit(7)
"""


def python(text: str, **more: str) -> Process:
    return Process(argv=("python3", "-c", text), env=more)


async def received(channel: Channel) -> bytes:
    return await asyncio.get_running_loop().sock_recv(channel.sock, 4096)


async def lines(fd: int) -> bytes:
    """All that comes out of a pipe until its end."""
    out = b""
    while True:
        try:
            if not (piece := os.read(fd, 4096)):
                return out
            out += piece
        except BlockingIOError:
            await asyncio.sleep(0.01)


def test_it_talks_prints_and_ends(lab: Lab) -> None:
    async def talk() -> None:
        engine = lab.engine
        box = (await engine.run(INIT)).sandbox.id
        channel = await engine.channel(box, python(ECHO))
        await asyncio.get_running_loop().sock_sendall(channel.sock, b"hello")
        assert await received(channel) == b"HELLO"
        assert os.read(channel.out, 100) == b"open: [0, 1, 2, 3]\n"
        channel.sock.shutdown(1)
        exit = await channel.wait()
        assert (exit.code, exit.oom) == (7, False)
        assert await received(channel) == b"" and await lines(channel.err) == b""
        channel.close()
        killed = await engine.channel(box, python(ECHO))
        await killed.kill()
        assert (await killed.wait()).signal == signal.SIGKILL
        await killed.kill()
        killed.close()
        assert not await engine.processes(box)  # nobody else's business
        await engine.remove(box, force=True)

    lab.do(talk())


def test_closing_it_is_noticed_and_so_is_the_end_of_the_sandbox(lab: Lab) -> None:
    async def ends() -> None:
        engine = lab.engine
        box = (await engine.run(INIT)).sandbox.id
        closed, left = await engine.channel(box, python(ECHO)), await engine.channel(box, python(ECHO))
        closed.close()
        closed.close()
        assert not (await closed.wait()).signal  # by itself; what it then prints breaks a pipe
        await engine.remove(box, force=True)
        assert (await left.wait()).signal == signal.SIGKILL
        left.close()

    lab.do(ends())


def test_memory_and_wrong_requests_are_told(lab: Lab) -> None:
    async def wrong() -> None:
        engine = lab.engine
        spec = SandboxSpec(image="host", init=True, entrypoint=(), remove=True, resources=Resources(memory=32 << 20))
        box = (await engine.run(spec)).sandbox.id
        greedy = await engine.channel(box, python("x = bytearray(64 << 20)"))
        exit = await greedy.wait()
        assert (exit.signal, exit.oom) == (signal.SIGKILL, True)
        greedy.close()
        for process in (Process(), Process(argv=("cat",), stdin=True), Process(argv=("sh",), tty=True)):
            with pytest.raises(Invalid):
                await engine.channel(box, process)
        await engine.remove(box, force=True)
        idle = (await engine.create(INIT)).id
        with pytest.raises(Conflict):
            await engine.channel(idle, python(ECHO))
        await engine.remove(idle)

    lab.do(wrong())


def test_it_does_not_outlive_its_engine(home: Path) -> None:  # noqa: F811
    async def first() -> tuple[str, int]:
        engine = Engine(Instance.open(home))
        await engine.open()
        box = (await engine.run(INIT)).sandbox.id
        channel = await engine.channel(box, python(ECHO))
        await engine.close()
        assert (await channel.wait()).error
        return box, channel.pid

    async def second(box: str, pid: int) -> None:
        await eventually(lambda: not os.path.exists(f"/proc/{pid}") or _zombie(pid))
        engine = Engine(Instance.open(home))
        await engine.open()
        try:
            assert (await engine.inspect(box)).sandbox.state == "running"
            await eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        finally:
            await engine.reset()

    box, pid = asyncio.run(first())
    asyncio.run(second(box, pid))


def _zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"
