"""Daemon or launchers killed at every step of create, exec, pause, resume, stop, delete: nothing is lost or left.

`JOEY_ALL_FAILPOINTS=1 ./dev test tests/root/test_crash_points.py` goes through all of them; without it, through some.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from joey.engine import failpoints
from joey.engine.ends import UNSEEN
from joey.engine.interface import Filter
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import JoeyError
from joey.model.spec import Process, SandboxSpec
from machine_state import eventually
from root.test_recovery import consistent, home, reaper, replaced  # noqa: F401

pytestmark = pytest.mark.timeout(60)
SLEEP = SandboxSpec(image="host", process=Process(argv=("sleep", "1000")))
ACTIONS = "Persist Launch SendSignal Freeze Thaw NotifyWaiters Release ForgetChild RemoveRecord".split()
STEPS = [*(failpoints.STEPS.keys() - {"box.action", "launcher.adopt"}), *(f"box.{action}" for action in ACTIONS)]
EVERY = [
    f"{step}.{when}={action}@{number}"
    for step in sorted(STEPS) for when in ("before", "after") for action in ("kill", "launchers") for number in (1, 3)
]  # fmt: skip
SOME = [
    "box.Launch.before=kill@1", "launcher.run.before=launchers@12", "box.took.before=kill@2",
    "store.commit.after=kill@4", "launching.exec.after=kill@1", "cgroup.freeze.before=launchers@1",
    "slot.clear.after=kill@3", "box.RemoveRecord.before=kill@1",
]  # fmt: skip


async def story(engine: Engine, answered: dict[str, str]) -> None:
    """Everything that can happen to a sandbox. answered: name → what it was said to be, "" meanwhile."""

    async def keep(name: str) -> None:
        answered[name] = ""
        await engine.run(SandboxSpec(image="host", name=name, process=SLEEP.process))
        answered[name] = "running"

    await asyncio.gather(keep("stays"), keep("stops"), keep("goes"))
    end = await engine.run(SandboxSpec(image="host", name="ends", process=Process(argv=("sh", "-c", "exit 4"))))
    assert (await engine.wait(end.sandbox.id)).code in (4, 125)
    answered["ends"] = "exited"
    attached = await engine.exec("stays", Process(argv=("sh", "-c", "exit 3")))
    await attached.wait()
    await attached.close()
    answered["stays"] = ""
    await engine.pause("stays")
    answered["stays"] = "paused"
    answered["stays"] = ""
    await engine.resume("stays")
    answered["stays"] = "running"
    answered["stops"] = ""
    await engine.stop("stops", 0)
    answered["stops"] = "exited"
    answered["stops"] = ""
    await engine.start("stops")
    answered["stops"] = "running"
    answered["goes"] = ""
    await engine.remove("goes", force=True)
    answered["goes"] = "gone"


class Told(dict[str, str]):
    """What was answered, also told to who outlives us."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def __setitem__(self, name: str, state: str) -> None:
        os.write(self._fd, f"{name} {state}\n".encode())
        super().__setitem__(name, state)


def first(place: Path, point: str, fd: int) -> None:
    """The engine with the failpoint, in a process of its own."""

    async def main() -> None:
        engine = Engine(Instance.open(place), slots=1)
        try:
            await engine.open()
            await asyncio.wait_for(story(engine, Told(fd)), 20)
        except JoeyError:
            pass  # a launch whose launcher was killed; what was answered before holds
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    os.environ[failpoints.VARIABLE] = point
    asyncio.run(main())


def answers(place: Path, point: str) -> dict[str, str]:
    """What it had answered when it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            first(place, point, write)
        except BaseException as error:
            os.write(write, f"wrong {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(write)
    try:
        with os.fdopen(read) as lines:
            return dict(line.rstrip("\n").split(" ", 1) for line in lines)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("point", EVERY if os.environ.get("JOEY_ALL_FAILPOINTS") else SOME)
def test_killed_at(home: Path, reaper: None, point: str) -> None:  # noqa: F811
    said = answers(home, point)
    assert "wrong" not in said, said

    async def main() -> None:
        engine = Engine(Instance.open(home), slots=0)
        try:
            await engine.open()
            await consistent(engine)
            found = {box.name: box for box in await engine.list(Filter(all=True))}
            for name, state in said.items():
                if state == "gone":
                    assert name not in found
                elif state:
                    assert found[name].state == state, (name, found.get(name), said)
                if name == "ends" and name in found and found[name].exit is not None:
                    assert found[name].exit.code == 4 or UNSEEN == found[name].exit.error or not state
            await eventually(lambda: not engine.machine.pool.pending)
        finally:
            await engine.reset()

    asyncio.run(asyncio.wait_for(main(), 40))


def test_every_step_is_there_and_what_is_armed_is_checked() -> None:
    import importlib

    for module, path in failpoints.STEPS.values():
        owner: object = importlib.import_module(module)
        for name in path.split("."):
            owner = getattr(owner, name)
    one, other = failpoints.parse("store.commit.before=kill@2, box.Launch.after=sleep:0.5")
    assert (one.point, one.action, one.number, other.seconds) == ("store.commit.before", "kill", 2, 0.5)
    for wrong in ("store.commit=kill", "nothing.before=kill", "store.commit.before=jump", "store.commit.after=sleep"):
        with pytest.raises(ValueError, match="JOEY_FAILPOINTS"):
            failpoints.parse(wrong)
