"""A launcher of another version is met: what it runs goes on, what is new runs in one of ours."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import joey.native
from joey.engine import fleet, shard
from joey.engine.supervisor import Engine
from joey.host import launcher
from joey.host.instance import Instance
from joey.model.spec import Process, SandboxSpec
from joey.native import build
from joey.plan import encode
from machine_state import eventually
from root.test_recovery import consistent, reaper  # noqa: F401

pytestmark = pytest.mark.timeout(60)
SLEEP = SandboxSpec(image="host", process=Process(argv=("sleep", "1000")))
NEXT = 77


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launcher that runs plans of another version only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", f"-DPLAN_VERSION={NEXT} -O0")
        return build.build(build.PROGRAMS[0], tmp_path_factory.mktemp("another"))


async def before(home: Path, program: Path) -> dict[str, int]:
    """Sandboxes of the other version: name → pid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "VERSION", NEXT)
        patch.setattr(shard, "PLAN_VERSION", NEXT)
        patch.setattr(launcher, "binary", lambda name: program if name == "joey-launcher" else joey.native.binary(name))
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        pids = {}
        for name in ("stays", "ends"):
            script = "exec sleep 1000" if name == "stays" else "sleep 0.5; exit 9"
            spec = SandboxSpec(image="host", name=name, process=Process(argv=("sh", "-c", script)))
            pids[name] = (await engine.run(spec)).sandbox.pid or 0
        await engine.close()
        return pids


@pytest.mark.parametrize("remembers", [True, False], ids=["handed over", "drained"])
def test_sandboxes_of_another_launcher(
    joey_home: Path,
    another: Path,
    reaper: None,  # noqa: F811
    remembers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if remembers and not fleet._kernel_remembers():
        pytest.skip("this kernel does not tell how a process ended")
    monkeypatch.setattr(fleet, "_kernel_remembers", lambda: remembers)

    async def main() -> None:
        pids = await before(joey_home, another)
        engine = Engine(Instance.open(joey_home), slots=0)
        await engine.open()
        try:
            shards = engine.machine.fleet
            old = [one for one in shards.shards if one.outdated]
            assert bool(old) is not remembers
            new = (await engine.run(SLEEP)).sandbox
            assert not engine.find(new.id).launched.shard.outdated
            assert engine.find("stays").view().pid == pids["stays"]
            assert (await engine.wait("ends")).code == 9
            if remembers:
                attached = await engine.exec("stays", Process(argv=("sh", "-c", "exit 3")))
                assert (await attached.wait()).code == 3
                await attached.close()
            await engine.kill("stays", 9)
            assert (await engine.wait("stays")).signal == 9
            await eventually(lambda: not any(one.outdated for one in shards.shards))
            await eventually(lambda: not shards._rescues)
            assert [box.id for box in await consistent(engine)] == [new.id]
            assert not any(os.path.exists(f"/proc/{one.launcher.pid}") for one in old)
        finally:
            await engine.reset()

    asyncio.run(asyncio.wait_for(main(), 40))
