"""Run inside the guest: the engine's whole way on a kernel with nothing but cgroup v2.

Prints a line a step and ends with `all well`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from joey.engine.ends import UNSEEN
from joey.engine.interface import Attachment, Filter
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import ProgramNotFound
from joey.model.resources import Resources
from joey.model.spec import Device, Process, SandboxSpec

MIB = 1 << 20


async def output(attachment: Attachment) -> str:
    found = b""
    while piece := await attachment.read():
        found += piece[1]
    return found.decode()


def shell(text: str, **more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=("sh", "-c", text)), **more)  # type: ignore[arg-type]


async def run(engine: Engine, spec: SandboxSpec) -> tuple[int, str, bool]:
    started = await engine.run(spec, attach=True)
    assert started.attachment is not None
    text = await output(started.attachment)
    end = await started.attachment.wait()
    return end.code, text, end.oom


async def steps(engine: Engine) -> None:
    code, text, _ = await run(engine, shell("id -u; grep -c . /proc/self/cgroup; ls /sys/fs/cgroup | wc -l; exit 7"))
    assert (code, text.split()) == (7, ["0", "1", "0"]), (code, text)
    print("run: ids, cgroup namespace, exit code")
    limits = Resources(memory=32 * MIB, swap=0, cpus=0.5, pids=20)
    code, text, oom = await run(engine, shell("python3 -c 'bytearray(200 << 20)'; echo $?", resources=limits))
    assert "137" in text or oom or code == 137, (code, text, oom)
    print("memory limit")
    code, text, _ = await run(engine, shell("for i in $(seq 60); do sleep 3 & done; wait", resources=limits))
    assert "fork" in text.lower() or "resource" in text.lower(), text
    print("pids limit")
    code, text, _ = await run(engine, shell(": < /dev/fuse && echo open", devices=(Device(path="/dev/fuse"),)))
    assert "open" in text, text
    print("device named explicitly")
    spec = SandboxSpec(image="host", name="box", process=Process(argv=("sleep", "1000")))
    await engine.run(spec)
    got = await output(await engine.exec("box", Process(argv=("sh", "-c", "echo in; tty"), tty=True)))
    assert "in" in got and "/dev/pts/0" in got, got
    print("exec with a terminal")
    assert (await engine.pause("box")).state == "paused"
    assert (await engine.resume("box")).state == "running"
    usage = (await engine.stats(["box"]))[0].usage
    assert usage.memory_current and usage.cpu_ns and usage.pids_current == 1, usage
    print("pause, resume, stats")
    assert (await engine.stop("box", 0.2)).state == "exited"
    await engine.start("box")
    await engine.remove("box", force=True)
    print("stop, start again, remove")
    try:
        await engine.run(SandboxSpec(image="host", process=Process(argv=("nonesuch",))))
        raise AssertionError("ran")
    except ProgramNotFound:
        print("missing program")
    assert len(await engine.list(Filter(all=True))) == 4


async def launchers_end(engine: Engine) -> None:
    """They are replaced, sandboxes run on. This kernel does not tell how another's child ended once init has waited."""
    await engine.run(shell("sleep 1000", name="frozen"))
    await engine.pause("frozen")
    await engine.run(shell("sleep 0.5; exit 5", name="ends"))
    stays = (await engine.run(shell("sleep 1000", name="stays"))).sandbox
    shards = engine.machine.fleet.shards
    for shard in shards:
        os.kill(shard.launcher.pid, signal.SIGKILL)
    while not all(shard.life for shard in shards) or engine.machine.fleet._rescues:
        await asyncio.sleep(0.01)
    end = await engine.wait("ends")
    assert (end.code, end.error) in ((5, ""), (125, UNSEEN)), end
    attached = await engine.exec("stays", Process(argv=("sh", "-c", "exit 3")))
    assert (await attached.wait()).code == 3
    assert (await engine.inspect("stays")).sandbox.pid == stays.pid
    await engine.resume("frozen")
    for name in ("frozen", "stays"):
        await engine.kill(name, 9)
        end = await engine.wait(name)
        assert end.signal == 9 or (end.code, end.error) == (125, UNSEEN), end
    print("launchers killed:", "unknown" if end.error else "known", "ends")


async def main() -> None:
    instance = Instance.open(tempfile.mkdtemp(prefix="joey-guest-"))
    engine = Engine(instance, slots=1)
    await engine.open()
    print("engine open on", (await engine.node()).kernel)
    try:
        await steps(engine)
        await launchers_end(engine)
    finally:
        await engine.reset()
    left = list(Path("/sys/fs/cgroup").glob("joey*"))
    assert not left and not instance.home.exists(), left
    print("all well")


asyncio.run(main())
