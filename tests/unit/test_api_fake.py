"""The HTTP API over the fake engine: tests/scenarios_api.py, and what needs to look inside the server."""

import asyncio
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from joey.client.transport import Connection, Problem
from joey.engine.interface import Engine, Filter, Started
from joey.model import frames
from joey.model.errors import Busy
from joey.model.spec import SandboxSpec
from joey.testing.engine import FakeEngine
from joey.testing.serving import Served, serving
from scenarios_api import *  # noqa: F403
from scenarios_api import LONG, Api


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="joey-api-") as home, serving(Path(home)) as server:
        yield server


@pytest.fixture
def api(served: Served) -> Iterator[Api]:
    client = Api(served.path)
    yield client
    client.clean()


def test_the_fake_is_an_engine() -> None:
    engine: Engine = FakeEngine()  # mypy holds it to the interface
    names = {name for name in vars(Engine) if not name.startswith("_")}
    assert names and all(callable(getattr(engine, name)) for name in names)


def test_the_socket_is_its_owners(served: Served) -> None:
    mode = os.stat(served.path)
    assert stat.S_IMODE(mode.st_mode) == 0o600 and stat.S_ISSOCK(mode.st_mode)


def test_paths_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    with serving(deep) as server, Connection.open(server.path) as connection:
        assert len(server.path) > 108
        assert connection.call("GET", "/v1/health")["status"] == "ok"


def test_a_client_that_leaves_while_its_sandbox_is_made(tmp_path: Path) -> None:
    """Nobody would know the id: it must not stay."""

    class Slow(FakeEngine):
        begun = asyncio.Event()

        async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "") -> Started:
            started = await super().run(spec, attach=attach, owner=owner)
            self.begun.set()
            await asyncio.sleep(0.1)
            return started

    engine = Slow()
    with serving(tmp_path, lambda: engine) as server:
        client = Connection.open(server.path)
        body = b'{"image":"host","process":{"argv":["sleep","100"]}}'
        head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: j\r\nConnection: Upgrade\r\nUpgrade: {frames.NAME}\r\n"
        client._send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.call(asyncio.wait_for(engine.begun.wait(), 5))
        client.close()
        Api(server.path).until(lambda: server.call(engine.list(Filter(all=True))) == [])


def test_busy_says_when_to_come_back(tmp_path: Path) -> None:
    class Full(FakeEngine):
        async def create(self, spec: SandboxSpec, *, owner: str = "") -> object:  # type: ignore[override]
            raise Busy("queue", "1024 launches are waiting", "try again", retry_after=2.4)

    with serving(tmp_path, Full) as server:
        head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: j\r\nConnection: close\r\nContent-Length: 16\r\n\r\n"
        answer = Api(server.path).raw(head + b'{"image":"host"}')
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 2\r\n" in answer


def test_a_defect_is_reported_under_a_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Defective(FakeEngine):
        async def node(self) -> object:  # type: ignore[override]
            raise ZeroDivisionError("secret detail")

    with serving(tmp_path, Defective) as server:
        problem = Api(server.path).fails("GET", "/v1/node")
    assert problem.status == 500 and "secret detail" not in str(problem.document)
    mark = problem.detail.split()[1]
    assert any(mark in record.getMessage() and record.exc_info for record in caplog.records)


def test_a_defect_in_a_stream_ends_it_with_an_error(tmp_path: Path) -> None:
    class Defective(FakeEngine):
        async def attach(self, ref: str) -> object:  # type: ignore[override]
            attachment = await super().attach(ref)

            async def read() -> None:
                raise ZeroDivisionError

            attachment.read = read  # type: ignore[method-assign]
            return attachment

    with serving(tmp_path, Defective) as server:
        found = Api(server.path).run("sleep", "100").rest()
        assert b'"status":500' in found[frames.ERROR]


def test_reset_ends_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        api = Api(server.path)
        api.box()
        assert api("POST", "/v1/reset") == {"removed": {"sandboxes": 1}}
        api.until(lambda: not Path(server.path).exists())


def test_streams_end_when_the_server_does(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        stream = Api(server.path).run(*LONG)
        stream.until(frames.STDOUT, b"ready")
        assert Api(server.path)("POST", "/v1/shutdown")["pid"] == os.getpid()
        assert stream.sock.recv(100) == b""
        stream.close()


def test_nothing_is_left_behind(no_leaks: None, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        api = Api(server.path)
        box = api.box()
        for _ in range(5):
            stream = api.stream(f"/v1/sandboxes/{box}/attach")
            other = api.stream(f"/v1/sandboxes/{box}/processes", {"argv": ["sleep", "100"]})
            stream.close()
            other.close()
        with pytest.raises(Problem):
            api.run("no-such-program")
        api.clean()


def test_a_thousand_streams_cost_no_memory_for_good(tmp_path: Path) -> None:
    """Connections that were taken over are forgotten by the HTTP server too."""
    with serving(tmp_path) as server:
        api = Api(server.path)
        box = api.box()
        for _ in range(50):
            api.stream(f"/v1/sandboxes/{box}/attach").close()

        async def protocols() -> int:
            import gc

            from aiohttp.web_protocol import RequestHandler

            await asyncio.sleep(0.05)
            gc.collect()
            return sum(isinstance(thing, RequestHandler) for thing in gc.get_objects())

        assert server.call(protocols()) < 10
