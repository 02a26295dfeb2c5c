"""Functions on the real engine: a burst, and back to nothing; instances that break; an engine that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from joey.bench import functions_queue
from joey.engine.interface import Filter
from joey.functions.deploy import Deployments
from joey.functions.instance import LABEL
from joey.functions.invocation import Invocation
from joey.functions.service import Functions
from joey.model.function import FunctionSpec
from root.conftest import Lab

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]

SOURCE = """
import os, time
def handler(event, context):
    if "sleep" in event: time.sleep(event["sleep"])
    if "exit" in event: os._exit(event["exit"])
    return {"pid": os.getpid(), "id": context.aws_request_id, "event": event}
"""


@asynccontextmanager
async def functions(lab: Lab, home: Path) -> AsyncIterator[Deployments]:
    own = Deployments(lab.engine, home)
    await own.open()
    try:
        yield own
    finally:
        await own.close()
        left = await lab.engine.list(Filter(all=True, labels={LABEL: None}))
        assert not left, "instances are left"


async def deploy(own: Deployments, name: str, source: str = SOURCE, **fields: Any) -> None:
    spec = FunctionSpec(name=name, handler="app.handler", **fields)
    code = await own.code(spec, files={"app.py": source}, packed=b"", requirements="", owner="")
    await own.put(spec, code, owner="")


async def call(own: Functions, name: str, **event: Any) -> Invocation:
    return await own.invoke(name, json.dumps(event).encode(), owner="")


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        met = condition()
        if await met if isinstance(met, Awaitable) else met:
            return
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("template", [False, True])
def test_from_nothing_to_many_and_back(lab: Lab, tmp_path: Path, template: bool) -> None:
    async def work() -> None:
        async with functions(lab, tmp_path) as own:
            await deploy(own, "f", template=template, timeout=20, keep_alive=0.2)
            await call(own, "f")
            done = await asyncio.gather(*(call(own, "f", sleep=0.5) for _ in range(24)))
            assert all(one.failure is None for one in done), done
            assert len({one.instance for one in done}) > 12
            answers = [json.loads(one.payload) for one in done]
            assert [one["id"] for one in answers] == [one.request_id for one in done]
            figures = own.get("f", owner="").figures
            assert (figures.invocations, figures.running, figures.waiting) == (25, 0, 0)
            assert figures.instances > 12 and 0 < figures.cold_starts <= 25
            seen = await own.measured(own.instances("f", owner=""), lab.engine)
            assert all(one.memory for one in seen)
            await own.set_scaling("f", {"max_instances": 1}, owner="")
            await until(lambda: own.get("f", owner="").figures.instances <= 1)
            await until(lambda: own.get("f", owner="").figures.instances == 0)

    lab.do(work(), 40)


def test_what_breaks_is_replaced_and_neighbours_do_not_notice(lab: Lab, tmp_path: Path) -> None:
    async def work() -> None:
        async with functions(lab, tmp_path) as own:
            await deploy(own, "f", timeout=1.0, max_instances=1)
            await deploy(own, "g", timeout=30, initializer_timeout=30)
            steady = asyncio.ensure_future(call(own, "g", sleep=2))
            first = await call(own, "f")
            assert (await call(own, "f", exit=3)).error_type == "Runtime.ExitError"
            assert (await call(own, "f", sleep=10)).error_type == "Sandbox.Timedout"
            after = await call(own, "f")
            assert after.failure is None and after.instance != first.instance
            [seen] = own.instances("f", owner="")
            pid = next(iter(own.pools(own.registry.find("f", ""))[0].members)).runner.pid  # type: ignore[attr-defined]
            if pid:
                os.kill(pid, signal.SIGKILL)
                await until(lambda: seen.id not in {one.id for one in own.instances("f", owner="")})
            again = await call(own, "f")
            assert again.failure is None
            assert (await steady).failure is None
            assert own.get("f", owner="").figures.errors == {"Runtime.ExitError": 1, "Sandbox.Timedout": 1}

    lab.do(work(), 40)


def test_code_that_cannot_be_loaded_and_its_repair(lab: Lab, tmp_path: Path) -> None:
    async def work() -> None:
        async with functions(lab, tmp_path) as own:
            await deploy(own, "f", "import nothing_of_that_name\ndef handler(event, context): pass\n")
            done = await asyncio.gather(*(call(own, "f") for _ in range(5)))
            assert {one.error_type for one in done} == {"Runtime.ImportModuleError"}
            assert all(json.loads(one.payload)["requestId"] == one.request_id for one in done)
            await deploy(own, "f")
            assert (await call(own, "f")).failure is None

    lab.do(work(), 40)


def test_what_an_engine_leaves_behind_the_next_one_removes(lab: Lab, tmp_path: Path) -> None:
    async def work() -> None:
        first = Deployments(lab.engine, tmp_path)
        await first.open()
        await deploy(first, "f", timeout=30, provisioned=2)
        await until(lambda: first.get("f", owner="").figures.instances == 2)
        old = {one.id for one in first.instances("f", owner="")}
        first.dispatcher._closing = True  # it is as if it had been killed
        first._closed = True
        async with functions(lab, tmp_path) as own:
            now = {one.id for one in await lab.engine.list(Filter(all=True, labels={LABEL: None}))}
            assert not old & now
            await until(lambda: own.get("f", owner="").figures.instances == 2)
            assert (await call(own, "f")).failure is None
        await first.store.close()

    lab.do(work(), 40)


def test_none_of_300_queued_invocations_is_lost_while_the_engine_is_killed() -> None:
    found = asyncio.run(functions_queue.run(Namespace(queue=300, kills=4)))
    assert (found["queued"], found["done"], found["lost"], found["failed"]) == (300, 300, 0, 0), found
    assert found["kills"] == 4
