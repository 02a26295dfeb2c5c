"""Somebody removes the instance's cgroups while the engine runs: the next start makes them again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.spec import Process, SandboxSpec

pytestmark = pytest.mark.timeout(60)


def test_a_start_repairs_them(joey_home: Path) -> None:
    async def main() -> None:
        engine = Engine(Instance.open(joey_home), slots=0)
        await engine.open()
        try:
            spec = SandboxSpec(image="host", process=Process(argv=("sh", "-c", "exit 3")))
            first = (await engine.run(spec)).sandbox
            assert (await engine.wait(first.id)).code == 3
            while engine.machine.cgroup.sweep():
                await asyncio.sleep(0.005)
            removed = 0
            for hierarchy in engine.machine.layout.hierarchies:
                try:
                    os.rmdir(engine.machine.cgroup.directory(hierarchy))
                    removed += 1
                except OSError:
                    pass  # the launchers themselves are in there
            assert removed
            boxes = await asyncio.gather(*(engine.run(spec) for _ in range(4)))
            assert {(await engine.wait(box.sandbox.id)).code for box in boxes} == {3}
            await engine.start(first.id)
            assert (await engine.wait(first.id)).code == 3
        finally:
            await engine.reset()

    asyncio.run(main())
