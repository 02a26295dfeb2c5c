"""Instances in real sandboxes: what they do, what they must not do, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from joey.engine.interface import Filter
from joey.functions import wire
from joey.functions.instance import LABEL, Instance, Paths, sweep
from joey.functions.wire import Head, StartFailed
from joey.model.errors import Busy, Invalid, Unenforceable
from joey.model.function import FunctionSpec, Version
from joey.model.units import MIB
from root.conftest import Lab

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]
Starter = Callable[..., AbstractAsyncContextManager[Instance]]


@pytest.fixture
def started(lab: Lab, tmp_path: Path) -> Starter:
    """started(files, **fields of FunctionSpec): an instance of app.handler. files: {name: text}, or app.py's text."""
    count = iter(range(100))

    @asynccontextmanager
    async def start(files: str | dict[str, str], **fields: Any) -> AsyncIterator[Instance]:
        code = tmp_path / f"code{next(count)}"
        code.mkdir()
        for name, text in ({"app.py": files} if isinstance(files, str) else files).items():
            (code / name).write_text(text)
            (code / name).chmod(0o755)
        python = fields.get("kind", "event") in ("event", "wsgi", "asgi")
        spec = FunctionSpec(**{"name": "f", **({"handler": "app.handler"} if python else {}), **fields})
        instance = await Instance.start(lab.engine, Version(spec=spec), Paths(code))
        try:
            yield instance
        finally:
            await instance.stop(0)
            assert instance.gone.done() and instance.id not in await ids(lab)

    return start


async def ids(lab: Lab) -> set[str]:
    return {one.id for one in await lab.engine.list(Filter(all=True))}


async def call(instance: Instance, event: Any = None, timeout: float | None = None, **head: Any) -> wire.Answer:
    return await instance.invoke(Head("r1", **head), json.dumps(event).encode(), timeout)


async def result(instance: Instance, event: Any = None) -> Any:
    answer = await call(instance, event)
    assert answer.failure is None and answer.body is not None, answer
    return json.loads(answer.body)


def test_an_instance_from_its_start_to_its_end(lab: Lab, started: Starter) -> None:
    source = """
import os
def init(context): open("/tmp/began", "w").write(context.function_name)
def handler(event, context):
    return {"event": event, "init": open("/tmp/began").read(), "secret": os.environ["S"], "uid": os.getuid(),
            "procs": len([pid for pid in os.listdir("/proc") if pid.isdigit()]), "cwd": os.getcwd()}
def bye(): print("bye")
"""

    async def work() -> None:
        fields = {"initializer": "app.init", "pre_stop": "app.bye", "secrets": {"S": "hidden"}}
        async with started(source, **fields) as instance:
            found = await result(instance, [1])
            assert found == {"event": [1], "init": "f", "secret": "hidden", "uid": 0, "procs": 2, "cwd": "/code"}
            detail = await lab.engine.inspect(instance.id)
            assert detail.sandbox.labels == {LABEL: "f", "joey.function.version": "$LATEST"}
            assert "hidden" not in repr(detail) and instance.ready and instance.in_flight == 0
            with pytest.raises(Invalid, match="body"):
                instance.submit(Head("r"), b"x" * (wire.MAX_BODY + 1))
            instance.submit(Head("r"), b"1")
            with pytest.raises(Busy):
                instance.submit(Head("r"), b"1")
            await instance.stop()
            assert instance.gone.result().type == wire.EXIT_ERROR and b"bye\n" in instance.work.logs
            late = await instance.submit(Head("r"), b"1")
            assert late.failure is not None and late.failure.type == wire.STOPPED
        assert not await sweep(lab.engine)

    lab.do(work())


@pytest.mark.parametrize(
    ("source", "fields", "type"),
    [
        ("import nothing_like_it", {}, wire.IMPORT_ERROR),
        ("import os; os._exit(9)", {}, wire.EXIT_ERROR),
        ("import time; time.sleep(60)", {"initializer_timeout": 0.4}, wire.INIT_TIMED_OUT),
        ("x = bytearray(1 << 30)", {"memory": 48 * MIB}, wire.OUT_OF_MEMORY),
    ],
)
def test_what_does_not_start_leaves_nothing(
    lab: Lab, started: Starter, source: str, fields: dict[str, Any], type: str
) -> None:
    async def work() -> None:
        before = await ids(lab)
        with pytest.raises(StartFailed) as caught:
            async with started(f"print('hello', flush=True)\n{source}\ndef handler(e, c): pass", **fields):
                pass
        assert caught.value.failure.type == type and b"hello" in caught.value.logs, caught.value.failure
        assert await ids(lab) == before

    lab.do(work())


BAD = {
    "exit": ("import os; os._exit(1)", wire.EXIT_ERROR, "Runtime exited with error: exit status 1"),
    "leave": ("import sys; sys.exit(0)", wire.EXIT_ERROR, "Runtime exited without providing a reason"),
    "crash": ("import ctypes; ctypes.string_at(0)", wire.EXIT_ERROR, "signal: segmentation fault"),
    "memory": ("x = bytearray(1 << 30)", wire.OUT_OF_MEMORY, "it used all of 64 MiB"),
    "time": ("import time; time.sleep(60)", wire.TIMED_OUT, "Task timed out after 0.60 seconds"),
    "noise": ("while True: print('noise' * 20)", wire.TIMED_OUT, "Task timed out after 0.60 seconds"),
    "shout": ("import os\n    while True: os.write(1, b'x' * 65536)", wire.TIMED_OUT, "Task timed out"),
    "bomb": (
        "import os\n    while True:\n        try: os.fork()\n        except OSError: pass",
        wire.TIMED_OUT,
        "Task",
    ),
    "deaf": (
        "import signal\n    signal.pthread_sigmask(0, range(1, 32))\n    while True: pass",
        wire.TIMED_OUT,
        "Task",
    ),
    "channel": ("import os; os.close(3)\n    while True: pass", wire.PROTOCOL_ERROR, "closed its channel"),
}


def test_whatever_a_handler_does_its_neighbour_works_on(lab: Lab, started: Starter) -> None:
    """All at once: each is told for what it is, its instance ends, and one beside them answers all the time."""
    handlers = "".join(f"def {name}(event, context):\n    {source}\n" for name, (source, _, _) in BAD.items())

    async def misbehave(name: str) -> None:
        _, type, message = BAD[name]
        seconds = 0.6 if type == wire.TIMED_OUT else 20.0
        fields = {"handler": f"app.{name}", "memory": 64 * MIB, "pids": 30, "timeout": seconds}
        async with started(handlers, **fields, initializer_timeout=20.0) as instance:
            answer = await call(instance)
            assert answer.failure is not None, name
            assert answer.failure.type == type and message in answer.failure.message, (name, answer.failure)
            assert (await asyncio.wait_for(instance.gone, 5)).type == type and not instance.ready
            if name in ("noise", "shout"):
                assert len(answer.logs) == wire.LOG_TAIL
            await asyncio.wait_for(instance.removed, 10)

    async def work() -> None:
        async with started("def handler(event, context): return event") as neighbour:
            bad = asyncio.gather(*map(misbehave, BAD))
            worst, count = 0.0, 0
            while not bad.done():
                began = time.monotonic()
                assert await result(neighbour, 1) == 1
                worst, count = max(worst, time.monotonic() - began), count + 1
                await asyncio.sleep(0.005)
            await bad
            assert count > 50 and worst < 1.0, (count, worst)

    lab.do(work(), 40)


def test_one_that_is_late_lets_the_others_in_its_instance_finish(lab: Lab, started: Starter) -> None:
    source = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event"

    async def work() -> None:
        async with started(source, concurrency=3) as instance:
            late, other = instance.submit(Head("a"), b"30", 0.3), instance.submit(Head("b"), b"0.8", 5.0)
            assert (await late).failure.type == wire.TIMED_OUT  # type: ignore[union-attr]
            assert not instance.ready and not other.done()
            assert (await other).body == b"0.8"
            assert (await asyncio.wait_for(instance.gone, 5)).type == wire.TIMED_OUT

    lab.do(work())


def test_a_sandbox_that_is_taken_away_and_a_stop_in_the_middle(lab: Lab, started: Starter) -> None:
    source = "import time\ndef handler(event, context): time.sleep(event); return 1"

    async def work() -> None:
        async with started(source) as instance:
            one = instance.submit(Head("a"), b"30")
            await lab.engine.remove(instance.id, force=True)
            assert (await asyncio.wait_for(one, 5)).failure.type == wire.EXIT_ERROR  # type: ignore[union-attr]
        async with started(source) as instance:
            one = instance.submit(Head("a"), b"0.2")
            await instance.stop()
            assert (await one).body == b"1"
        async with started(source) as instance:
            one = instance.submit(Head("a"), b"30")
            await instance.stop(0)
            assert (await one).failure.type == wire.STOPPED  # type: ignore[union-attr]

    lab.do(work())


def test_what_a_daemon_left_is_swept(lab: Lab, started: Starter) -> None:
    async def work() -> None:
        async with started("def handler(event, context): return 1") as instance:
            assert await sweep(lab.engine) == 1
            assert (await asyncio.wait_for(instance.gone, 5)).type == wire.EXIT_ERROR

    lab.do(work())


SERVER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.path = self.path.partition("?")[0]
        print("got", self.path, len(body), flush=True)
        if self.path == "/exit": os._exit(4)
        if self.path == "/sleep": time.sleep(60)
        if self.path == "/chunks":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            for _ in range(20): self.wfile.write(b"c350\\r\\n" + b"x" * 50000 + b"\\r\\n")
            self.wfile.write(b"0\\r\\n\\r\\n")
            return
        answer = body + self.headers.get("X-One", "").encode()
        self.send_response(500 if body == b'"fail"' else 200)
        self.send_header("Content-Length", str(len(answer))); self.send_header("X-Two", "2"); self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *args): pass
time.sleep(0.05)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
HTTP: dict[str, Any] = {"kind": "http", "command": ("python3", "/code/server.py"), "concurrency": 4}


def test_a_program_that_serves_http(lab: Lab, started: Starter) -> None:
    def http(path: str) -> dict[str, Any]:
        return {"method": "POST", "path": path, "query": "a=1", "headers": [["Host", "f"], ["X-One", "1"]]}

    async def work() -> None:
        async with started({"server.py": SERVER}, **HTTP) as instance:
            assert await result(instance, {"a": 1}) == {"a": 1}  # an event, posted to /invoke
            failed = await call(instance, "fail")
            assert failed.failure is not None and failed.failure.type == wire.HTTP_ERROR
            answers = await asyncio.gather(*(call(instance, n, http=http("/x")) for n in range(4)))
            assert [answer.body for answer in answers] == [b"%d1" % n for n in range(4)]
            assert answers[0].head is not None and answers[0].head["status"] == 200
            assert ["X-Two", "2"] in answers[0].head["headers"]
            chunks = await call(instance, 1, http=http("/chunks"))
            assert chunks.chunks is not None and sum([len(piece) async for piece in chunks.chunks]) == 1_000_000
            assert chunks.logs == b"got /chunks 1\n"
            bad = await call(instance, 1, http={**http("/x"), "headers": [["X", "a\r\nEvil: 1"]]})
            assert bad.failure is not None and bad.failure.type == wire.PROTOCOL_ERROR
            gone = await call(instance, 1, http=http("/exit"))
            assert gone.failure is not None and gone.failure.type == wire.EXIT_ERROR
            assert "exit status 4" in gone.failure.message
            await asyncio.wait_for(instance.gone, 5)
        async with started({"server.py": SERVER}, **HTTP) as instance:
            late = await call(instance, 1, 0.3, http=http("/sleep"))
            assert late.failure is not None and late.failure.type == wire.TIMED_OUT
        with pytest.raises(StartFailed) as caught:
            async with started({"server.py": "import time; time.sleep(9)"}, **HTTP, initializer_timeout=0.4):
                pass
        assert caught.value.failure.type == wire.INIT_TIMED_OUT
        with pytest.raises(StartFailed, match="nothing-there") as caught:
            async with started({"server.py": SERVER}, **{**HTTP, "command": ("/code/nothing-there",)}):
                pass
        assert caught.value.failure.type == wire.INVALID_ENTRYPOINT

    lab.do(work())


BOOTSTRAP = """#!/usr/bin/env python3
import json, os, socket, sys, time, http.client
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
base = "/2018-06-01/runtime/"
def ask(method, path, body=None, headers={}):
    api.request(method, base + path, body, headers)
    answer = api.getresponse()
    return answer, answer.read()
if os.environ.get("FAIL"):
    ask("POST", "init/error", json.dumps({"errorType": "Mine", "errorMessage": "not today", "stackTrace": []}))
    time.sleep(9)
while True:
    head, body = ask("GET", "invocation/next")
    id, event = head.headers["Lambda-Runtime-Aws-Request-Id"], json.loads(body)
    print("working at", event, flush=True)
    if event == "error":
        said = {"errorType": "Oops", "errorMessage": "no", "stackTrace": ["a"]}
        ask("POST", "invocation/%s/error" % id, json.dumps(said))
    elif event == "wrong":
        assert ask("POST", "invocation/unknown/response", b"1")[0].status == 400
        assert ask("GET", "nothing")[0].status == 404
        ask("POST", "invocation/%s/response" % id, b'"right"')
        assert ask("POST", "invocation/%s/response" % id, b"2")[0].status == 400
    elif event == "flood":
        many = [socket.create_connection(("127.0.0.1", 9001)) for _ in range(40)]
        for one in many[:20]: one.send(b"nonsense\\r\\n\\r\\n")
        ask("POST", "invocation/%s/response" % id, b'"still there"')
    elif event == "large":
        assert ask("POST", "invocation/%s/response" % id, b"x" * (6 << 20) + b"x")[0].status == 413
    elif event == "stream":
        def pieces():
            for _ in range(20): yield b"y" * 50000
        ask("POST", "invocation/%s/response" % id, pieces(), {"Lambda-Runtime-Function-Response-Mode": "streaming",
            "Content-Type": "text/plain"})
    elif event == "exit":
        os._exit(3)
    elif event == "sleep":
        time.sleep(60)
    else:
        left = int(head.headers["Lambda-Runtime-Deadline-Ms"]) / 1000 - time.time()
        ask("POST", "invocation/%s/response" % id, json.dumps([event, 2 < left <= 3, os.environ["_HANDLER"]]))
"""
RUNTIME: dict[str, Any] = {"kind": "runtime-api", "handler": "x.y", "runtime": "provided"}


def test_a_program_that_asks_lambdas_runtime_api(lab: Lab, started: Starter) -> None:
    async def work() -> None:
        async with started({"bootstrap": BOOTSTRAP}, **RUNTIME) as instance:
            for number in range(3):
                assert await result(instance, number) == [number, True, "x.y"]
            error = await call(instance, "error")
            assert error.failure is not None and (error.failure.type, error.failure.trace) == ("Oops", ["a"])
            assert error.logs == b"working at error\n"
            assert await result(instance, "wrong") == "right"
            assert await result(instance, "flood") == "still there"
            large = await call(instance, "large")
            assert large.failure is not None and large.failure.type == wire.RESPONSE_TOO_LARGE
            stream = await call(instance, "stream", stream=True)
            assert stream.chunks is not None and stream.head == {"content_type": "text/plain"}
            assert sum([len(piece) async for piece in stream.chunks]) == 1_000_000
            whole = await call(instance, "stream")
            assert whole.body is not None and len(whole.body) == 1_000_000
            gone = await call(instance, "exit")
            assert gone.failure is not None and "exit status 3" in gone.failure.message
        async with started({"bootstrap": BOOTSTRAP}, **RUNTIME) as instance:
            late = await call(instance, "sleep", 0.2)
            assert late.failure is not None and late.failure.type == wire.TIMED_OUT
        with pytest.raises(StartFailed) as caught:
            async with started({"bootstrap": BOOTSTRAP}, **RUNTIME, env={"FAIL": "1"}):
                pass
        assert (caught.value.failure.type, caught.value.failure.message) == ("Mine", "not today")

    lab.do(work())


NODE = """#!/usr/bin/env node
const http = require("http"), base = "/2018-06-01/runtime/";
const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":"), agent = new http.Agent({keepAlive: true});
function ask(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({host, port, method, path: base + path, agent}, answer => {
      const parts = [];
      answer.on("data", part => parts.push(part));
      answer.on("end", () => resolve([answer.headers, Buffer.concat(parts).toString()]));
    });
    request.on("error", reject);
    request.end(body);
  });
}
(async () => {
  const [file, name] = process.env._HANDLER.split(".");
  const handler = require(process.env.LAMBDA_TASK_ROOT + "/" + file)[name];
  for (;;) {
    const [head, event] = await ask("GET", "invocation/next"), id = head["lambda-runtime-aws-request-id"];
    try {
      const result = await handler(JSON.parse(event), {awsRequestId: id});
      await ask("POST", `invocation/${id}/response`, JSON.stringify(result));
    } catch (error) {
      const said = {errorType: error.name, errorMessage: error.message, stackTrace: error.stack.split("\\n").slice(1)};
      await ask("POST", `invocation/${id}/error`, JSON.stringify(said));
    }
  }
})();
"""
NODE_INDEX = """
exports.handler = async (event, context) => {
  console.log("hello from node", context.awsRequestId);
  if (event === "fail") throw new TypeError("not that");
  return {event, node: process.version};
};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed: apt-get install nodejs")
def test_a_handler_of_node(lab: Lab, started: Starter) -> None:
    fields = {**RUNTIME, "handler": "index.handler", "runtime": "nodejs", "memory": 256 * MIB}

    async def work() -> None:
        async with started({"bootstrap": NODE, "index.js": NODE_INDEX}, **fields) as instance:
            for number in range(3):
                answer = await call(instance, number)
                assert answer.body is not None, answer
                assert json.loads(answer.body)["event"] == number and answer.logs == b"hello from node r1\n"
            failed = await call(instance, "fail")
            assert failed.failure is not None
            assert (failed.failure.type, failed.failure.message) == ("TypeError", "not that")

    lab.do(work())


def test_the_runtime_api_needs_a_network_of_its_own(lab: Lab, started: Starter) -> None:
    async def work() -> None:
        with pytest.raises(Unenforceable, match="network"):
            async with started({"bootstrap": BOOTSTRAP}, **RUNTIME, network="host"):
                pass

    lab.do(work())
