"""Hostile functions on the real engine: runtimes that speak for themselves, code that gets in pip's way."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from joey.functions.instance import StartFailed
from joey.model.errors import Invalid
from joey.model.function import FunctionSpec
from root.conftest import Lab
from root.test_fn_runtime import Starter, call, started  # noqa: F401
from root.test_fn_service import functions

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]

FRAMES = """
import os, struct, time
def frame(kind, number, payload=b""): return struct.pack("<IBI", len(payload), kind, number) + payload
def say(data):
    os.set_blocking(3, True)
    while data: data = data[os.write(3, data):]
"""


async def _lag(seconds: float) -> float:
    """The longest that this event loop did nothing else within that time."""
    loop, worst = asyncio.get_running_loop(), 0.0
    end = loop.time() + seconds
    while (begun := loop.time()) < end:
        await asyncio.sleep(0.005)
        worst = max(worst, loop.time() - begun)
    return worst


def test_who_ends_and_lets_a_child_go_on_talking_is_not_listened_to(lab: Lab, started: Starter) -> None:  # noqa: F811
    source = (
        FRAMES
        + """
def handler(event, context):
    keep = os.dup(3)
    if not os.fork():
        os.dup2(keep, 3)
        while True: say(frame(23, 0, b"\\1") * 20000)
    time.sleep(0.2)
    os._exit(1)
"""
    )

    async def work() -> None:
        async with started(source) as instance:
            asked = asyncio.ensure_future(call(instance))
            worst = await _lag(1.0)
            answer = await asked
            assert answer.failure is not None and answer.failure.type == "Runtime.ExitError"
            assert worst < 0.4, worst

    lab.do(work(), 30)


def test_pieces_of_a_byte_cost_the_engine_no_more_than_output(lab: Lab, started: Starter) -> None:  # noqa: F811
    source = (
        FRAMES
        + """
def handler(event, context):
    say(frame(19, 1, b"{}") + b"".join([frame(20, 1, b"x")] * 1))
    for _ in range(40): say(frame(20, 1, b"x") * 20000)
    time.sleep(60)
"""
    )

    async def work() -> None:
        async with started(source, timeout=30.0) as instance:
            answer = await call(instance, stream=True)
            assert answer.chunks is not None
            begun, used, count = time.monotonic(), time.process_time(), 0
            async for piece in answer.chunks:
                count += len(piece)
                if time.monotonic() - begun > 1:
                    break
            assert time.process_time() - used < 0.6
            await answer.chunks.aclose()  # type: ignore[attr-defined]

    lab.do(work(), 30)


@pytest.mark.parametrize("kind", ["init", "answer"])
def test_errors_that_are_too_deep_end_the_instance_at_once(lab: Lab, started: Starter, kind: str) -> None:  # noqa: F811
    deep = """b'{"errorType": "a", "errorMessage": "b", "more": ' + b"[" * 30000 + b"]" * 30000 + b"}")"""
    body = f"say(frame(17, 0, {deep})" if kind == "init" else f"def handler(event, context): say(frame(22, 1, {deep})"

    async def work() -> None:
        begun = time.monotonic()
        if kind == "init":
            with pytest.raises(StartFailed) as failed:
                async with started(FRAMES + body + "\ntime.sleep(60)\n"):
                    pass
            assert failed.value.failure.type == "Runtime.ProtocolError"
        else:
            async with started(FRAMES + body + "; time.sleep(60)\n", timeout=20.0) as instance:
                answer = await call(instance)
                assert answer.failure is not None and answer.failure.type == "Runtime.ProtocolError"
        assert time.monotonic() - begun < 5

    lab.do(work(), 30)


def test_code_is_not_what_pip_is(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    evil = "import pathlib; pathlib.Path('/tmp/packages/evil.py').write_text('')\n"
    files = {"app.py": "", "pip/__init__.py": "", "pip/__main__.py": evil, "logging.py": evil}

    async def work() -> None:
        async with functions(lab, tmp_path) as own:
            spec = FunctionSpec(name="f", handler="app.handler")
            with pytest.raises(Invalid, match="requirements"):
                await own.code(spec, files=files, packed=b"", requirements="no-such-thing-of-joeys", owner="")

    lab.do(work(), 60)
