"""The SDK against a server over the fake engine, both faces: tests/scenarios_sdk.py."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from joey import AsyncSandbox, Sandbox, errors
from joey.model.errors import Busy
from joey.testing.engine import FakeEngine
from joey.testing.serving import Served, serving
from scenarios_sdk import *  # noqa: F403


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="joey-sdk-") as home, serving(Path(home)) as server:
        yield server


@pytest.fixture(autouse=True)
def url(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOEY_URL", f"unix://{served.path}")


def test_a_busy_engine_is_asked_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = FakeEngine.run

    async def run(self, spec, **options):
        calls.append(spec)
        if len(calls) == 1:
            raise Busy("launch queue", "is full", retry_after=0.01)
        return await plain(self, spec, **options)

    monkeypatch.setattr(FakeEngine, "run", run)
    Sandbox.create().kill()
    assert len(calls) == 2


def test_a_create_whose_answer_was_lost_is_not_done_twice(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after the engine has made it: the SDK asks again under the same key."""
    from joey.client._sync.http import Http

    plain, lost = Http._answer, []

    def answer(self, wire):
        response = plain(self, wire)
        if not lost and response.status == 201:
            lost.append(True)
            raise errors.ConnectionLost("", "as if the engine had been killed")
        return response

    monkeypatch.setattr(Http, "_answer", answer)
    with Sandbox.create(metadata={"once": "1"}) as sandbox:
        assert lost and [one.id for one in Sandbox.list(metadata={"once": "1"})] == [sandbox.id]


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joey.client._sync.service.PATIENCE", 0)
    with pytest.raises(errors.Unreachable) as caught:
        next(iter(Sandbox.list(url=f"unix://{tmp_path}/no.sock")), None)
    assert "no.sock" in str(caught.value)


def test_many_tasks_share_connections(served: Served) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create() as sandbox:
            infos = await asyncio.gather(*(sandbox.get_info() for _ in range(200)))
            assert {info.id for info in infos} == {sandbox.id}
            assert len(sandbox._service.http._idle) <= 64

    asyncio.run(main())
