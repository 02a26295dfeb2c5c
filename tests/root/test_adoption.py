"""A launcher ends, and whatever kind of sandbox it ran runs on, is served as ever, and its end is known and right."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from joey.engine.interface import Attachment
from joey.engine.supervisor import Engine
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec
from machine_state import eventually
from root.test_recovery import consistent, home, kill_launchers, opened, reaper, replaced  # noqa: F401

pytestmark = pytest.mark.timeout(60)
SMALL = Resources(memory=24 << 20, swap=0, pids=64, cpus=1.0)
BUSY = "while :; do sleep 0.01; done"
WRITTEN_TO = {
    "tty": SandboxSpec(
        process=Process(argv=("sh", "-c", "stty -echo; read x; echo got $x; read y; exit $y"), tty=True)
    ),
    "typing": SandboxSpec(process=Process(argv=("sh", "-c", "read x; echo got $x; read y; exit $y"), stdin=True)),
    "hungry": SandboxSpec(
        process=Process(argv=("sh", "-c", "read x; exec tail /dev/zero"), stdin=True), resources=SMALL
    ),
}
ALONE = {
    "paused": SandboxSpec(process=Process(argv=("sh", "-c", BUSY))),
    "full": SandboxSpec(
        process=Process(argv=("sh", "-c", f"head -c 20000000 /dev/zero > /tmp/x; {BUSY}")), resources=SMALL
    ),
    "init": SandboxSpec(process=Process(argv=("sleep", "1000")), init=True),
    "zero": SandboxSpec(process=Process(argv=("sh", "-c", f"trap 'exit 0' USR1; {BUSY}"))),
    "seven": SandboxSpec(process=Process(argv=("sh", "-c", f"trap 'exit 7' USR1; {BUSY}"))),
    "below init": SandboxSpec(process=Process(argv=("sh", "-c", f"trap 'exit 8' USR1; {BUSY}")), init=True),
}
ENDS = {"zero": 0, "seven": 7, "below init": 8}


def named(name: str, spec: SandboxSpec) -> SandboxSpec:
    return msgspec.structs.replace(spec, image="host", name=name.replace(" ", "-"))


async def every_kind(engine: Engine) -> dict[str, Attachment]:
    """A sandbox of every kind, and the attachments of those one writes to."""
    await asyncio.gather(*(engine.run(named(name, one)) for name, one in ALONE.items()))
    await engine.pause("paused")
    starts = await asyncio.gather(*(engine.run(named(name, one), attach=True) for name, one in WRITTEN_TO.items()))
    return {started.sandbox.name: started.attachment for started in starts if started.attachment is not None}


async def serves(engine: Engine, names: list[str]) -> None:
    """Exec works in each, its status is right."""
    for number, name in enumerate(names):
        attached = await engine.exec(name, Process(argv=("sh", "-c", f"exit {number}")))
        assert (await attached.wait()).code == number
        await attached.close()


async def ends_right(engine: Engine) -> None:
    await engine.resume("paused")
    await serves(engine, ["paused", "full", "init", "zero", "seven", "below-init"])
    for name, code in ENDS.items():
        ref = name.replace(" ", "-")
        await engine.kill(ref, signal.SIGUSR1)
        end = await engine.wait(ref)
        assert (end.code, end.error) == (code, ""), (name, end)
    for name, number in (("paused", 9), ("full", 9), ("init", 9)):
        await engine.kill(name, number)
        end = await engine.wait(name)
        assert (end.signal, end.error, end.oom) == (number, "", False), (name, end)


def test_every_kind_of_sandbox_outlives_its_launcher(home: Path) -> None:  # noqa: F811
    async def main() -> None:
        engine = await opened(home)
        clients = await every_kind(engine)
        pending = [asyncio.ensure_future(engine.exec("zero", Process(argv=("sleep", "1000")))) for _ in range(3)]
        waiting = {name: asyncio.ensure_future(engine.wait(name)) for name in clients}
        await asyncio.sleep(0)
        await replaced(engine, kill_launchers(engine))
        found = await asyncio.gather(*pending, return_exceptions=True)
        await consistent(engine, execs=sum(not isinstance(one, BaseException) for one in found))
        for name, last in (("tty", b"5\n"), ("typing", b"6\n")):
            await clients[name].write(b"hello\n")
            piece = await clients[name].read()
            assert piece is not None and piece[1].strip() == b"got hello"
            await clients[name].write(last)
        assert ((await waiting["tty"]).code, (await waiting["typing"]).code) == (5, 6)
        await clients["hungry"].write(b"\n")
        end = await waiting["hungry"]
        assert end.oom and end.signal == 9 and not end.error, end
        await ends_right(engine)
        await engine.reset()

    asyncio.run(main())


def test_and_so_when_no_engine_was_there(home: Path) -> None:  # noqa: F811
    """Those with a terminal or an open standard input end of that (decision 0003), by themselves."""

    async def main() -> None:
        engine = await opened(home)
        await every_kind(engine)
        kept = await engine.exec("zero", Process(argv=("sh", "-c", f"trap 'exit 9' USR1; {BUSY}")), keep=True)
        pids = {box.name: box.pid for box in [engine.find(name).view() for name in ("paused", "full", "init", "zero")]}
        launchers = [shard.launcher.pid for shard in engine.machine.fleet.shards]
        await engine.close()
        for pid in launchers:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in launchers))
        engine = await opened(home)
        assert engine.find("paused").view().state == "paused"
        assert {name: engine.find(name).view().pid for name in pids} == pids
        ends = await asyncio.gather(*(engine.wait(name) for name in ("tty", "typing")))
        assert all(end.code for end in ends), "its input ended"
        await engine.signal_process("zero", kept.id, signal.SIGUSR1)
        assert (await engine.wait_process("zero", kept.id)).code == 9
        await ends_right(engine)
        await engine.reset()

    asyncio.run(main())
