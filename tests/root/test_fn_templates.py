"""Instances that are forked from a warm process are as good as those that are started."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from joey.functions import wire
from joey.functions.instance import Instance, Paths, sandbox_spec
from joey.functions.wire import Head
from joey.model.function import FunctionSpec, Version
from joey.model.template import TemplateSpec
from joey.model.units import MIB
from root.conftest import Lab

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]
SOURCE = """
import os, random, sys, threading, time
BORN = time.monotonic()
def init(): print("initialized")
def handler(event, context):
    print("hello", event)
    if event == "exit": os._exit(3)
    if event == "memory": return len(bytearray(1 << 30))
    if event == "sleep": time.sleep(60)
    return [random.random(), os.environ["S"], os.environ["E"], os.getcwd(), BORN, context.function_name]
"""


@asynccontextmanager
async def warm(lab: Lab, folder: Path, source: str, **fields: Any) -> AsyncIterator[tuple[str, Version, Paths]]:
    """(state of the template "t", version, paths)"""
    folder.mkdir()
    (folder / "app.py").write_text(source)
    spec = FunctionSpec(**{"name": "f", "handler": "app.handler", "memory": 64 * MIB, **fields})
    version, paths = Version(spec=spec), Paths(folder)
    made = TemplateSpec(
        name="t", spec=sandbox_spec(version, paths), modules=("joey_runtime.event", "app"), code=str(folder)
    )
    view = await lab.engine.template_create(made)
    try:
        yield view.state, version, paths
    finally:
        await lab.engine.template_remove("t")


async def call(instance: Instance, event: Any, timeout: float = 10) -> wire.Answer:
    return await instance.invoke(Head("r"), json.dumps(event).encode(), timeout)


def test_forks_are_instances_like_others(lab: Lab, tmp_path: Path) -> None:
    async def work() -> None:
        fields: dict[str, Any] = {
            "env": {"E": "1"},
            "initializer": "app.init",
            "secrets": {"S": "2"},
        }
        async with warm(lab, tmp_path / "code", SOURCE, **fields) as (state, version, paths):
            assert state == "ready"
            found = []
            for _ in range(2):
                instance = await Instance.start(lab.engine, version, paths, template="t")
                answer = await call(instance, 1)
                assert answer.body is not None and answer.logs == b"hello 1\n", answer
                assert instance.work.logs == b"initialized\n"
                found.append(json.loads(answer.body))
                await instance.stop()
            (one, *same), (other, *too) = found
            assert one != other and same == too and same[:3] == ["2", "1", "/code"]

            async def misbehave(event: str, type: str, timeout: float = 10) -> None:
                instance = await Instance.start(lab.engine, version, paths, template="t")
                answer = await call(instance, event, timeout)
                assert answer.failure is not None and answer.failure.type == type, (event, answer)
                assert (await asyncio.wait_for(instance.gone, 5)).type == type
                await asyncio.wait_for(instance.removed, 10)

            await asyncio.gather(
                misbehave("exit", wire.EXIT_ERROR), misbehave("memory", wire.OUT_OF_MEMORY),
                misbehave("sleep", wire.TIMED_OUT, 0.3),
            )  # fmt: skip
            assert lab.engine.template("t").state == "ready"

    lab.do(work(), 40)


def test_what_cannot_be_forked_starts_without(lab: Lab, tmp_path: Path) -> None:
    threads = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"

    async def work() -> None:
        async with warm(lab, tmp_path / "code", threads + "def handler(e, c): return e") as (state, version, paths):
            assert state == "unsafe"
            for template in ("t", "gone"):
                instance = await Instance.start(lab.engine, version, paths, template=template)
                assert (await call(instance, 1)).body == b"1"
                await instance.stop()

    lab.do(work(), 40)
