"""The runtime inside, as an ordinary process of this machine: everything but the sandbox around it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from joey.engine.channels import Channel
from joey.functions import wire
from joey.functions.conversation import Conversation
from joey.functions.instance import RUNTIME, Paths, configuration
from joey.functions.wire import Answer, Failure, Head, StreamFailed
from joey.functions.work import Pending
from joey.model.function import FunctionSpec, Version


class Lab:
    """A runtime with its conversation."""

    def __init__(self, spec: FunctionSpec, code: Path) -> None:
        ours, theirs = socket.socketpair()
        out, err = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(RUNTIME / "bootstrap.py")], stdin=subprocess.DEVNULL, stdout=out[1], stderr=err[1],
            pass_fds=(theirs.fileno(),), cwd=code,
            env={"PATH": os.environ["PATH"], "JOEY_CHANNEL_FD": str(theirs.fileno())},
        )  # fmt: skip
        theirs.close()
        os.close(out[1])
        os.close(err[1])
        self.overdue: list[Pending] = []
        self.broken: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.printed: list[tuple[str, int, bytes]] = []

        async def kill() -> None:
            self.process.kill()

        self.talk = Conversation(
            Channel(ours, out[0], err[0], self.process.pid, kill),
            lambda *line: self.printed.append(line), self.overdue.append, self._broken, spec.concurrency,
        )  # fmt: skip
        config = configuration(Version(spec=spec), Paths())
        self.talk.configure({**config, "code": str(code)})

    def _broken(self, failure: Failure | None) -> None:
        if not self.broken.done():
            self.broken.set_result(failure)

    async def ready(self) -> Failure | None:
        """None, or why it is not."""
        await asyncio.wait((self.talk.ready, self.broken), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        return self.broken.result() if self.broken.done() else self.talk.ready.result()

    def begin(self, event: Any = None, *, raw: bytes | None = None, timeout: float = 5.0, **head: Any) -> Pending:
        body = json.dumps(event).encode() if raw is None else raw
        return self.talk.submit(Head(f"r{time.monotonic_ns()}", **head), body, timeout)

    async def call(self, event: Any = None, **more: Any) -> Answer:
        return await asyncio.wait_for(self.begin(event, **more).future, 10)

    async def result(self, event: Any = None, **more: Any) -> Any:
        answer = await self.call(event, **more)
        assert answer.failure is None, answer.failure
        assert answer.body is not None
        return json.loads(answer.body)

    def close(self) -> int:
        self.talk.finish()
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Lab]]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """opened(source, **fields of FunctionSpec): a runtime that is ready unless the block is told `ready=False`."""

    @contextlib.asynccontextmanager
    async def open(source: str, *, ready: bool = True, **fields: Any) -> AsyncIterator[Lab]:
        (tmp_path / "app.py").write_text(source)
        spec = FunctionSpec(**{"name": "f", "handler": "app.handler", **fields})
        lab = Lab(spec, tmp_path)
        try:
            if ready:
                assert await lab.ready() is None
            yield lab
        finally:
            lab.close()

    return open


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_the_runtime_is_python_3_8_and_imports_only_the_standard_library() -> None:
    known = sys.stdlib_module_names | {"bootstrap"}
    for path in RUNTIME.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= known
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "joey_runtime":
                assert (node.module or "").partition(".")[0] in known
        assert path.stat().st_mode & 0o444 == 0o444  # instances read it with ids of their own


def test_an_event_and_its_context(opened: Opener) -> None:
    source = """
import os
def handler(event, context):
    return {
        "event": event, "id": context.aws_request_id == context.request_id,
        "left": context.get_remaining_time_in_millis(), "name": context.function_name, "fc": context.function.name,
        "memory": context.memory_limit_in_mb, "client": context.client_context and context.client_context.custom,
        "env": os.environ["A"], "secret": os.environ["B"], "handler": os.environ["_HANDLER"],
        "fd": os.environ.get("JOEY_CHANNEL_FD"), "fc_more": [repr(context.function.timeout), context.service.name],
    }
"""

    async def work() -> None:
        async with opened(source, env={"A": "1"}, secrets={"B": "2"}) as lab:
            found = await lab.result({"x": "ü"}, client_context={"custom": {"k": 1}})
            assert found["event"] == {"x": "ü"} and found["id"] is True and 4000 < found["left"] <= 5000
            assert (found["name"], found["fc"], found["memory"]) == ("f", "f", 128)
            assert (found["client"], found["env"], found["secret"]) == ({"k": 1}, "1", "2")
            assert (found["handler"], found["fd"], found["fc_more"]) == ("app.handler", None, ["3", ""])
            assert (await lab.result([])) and lab.close() == 0

    run(work())


def test_bytes_go_in_and_out_as_they_are(opened: Opener) -> None:
    source = (
        "def handler(event, context):\n    return {b'0': event, b'1': 'text', b'2': {'a': 1}, b'3': None}[event[:1]]"
    )

    async def work() -> None:
        async with opened(source, event_format="bytes") as lab:
            bodies = [(await lab.call(raw=raw)).body for raw in (b"0\xff\x00", b"1", b"2", b"3")]
            assert bodies == [b"0\xff\x00", b"text", b'{"a": 1}', b""]

    run(work())


@pytest.mark.parametrize(
    ("source", "fields", "type", "message"),
    [
        ("import nothing_of_that_name", {}, wire.IMPORT_ERROR, "No module named 'nothing_of_that_name'"),
        ("", {"handler": "nowhere.handler"}, wire.IMPORT_ERROR, "Unable to import module 'nowhere'"),
        ("def handler(:", {}, wire.SYNTAX_ERROR, "Syntax error in module 'app'"),
        ("x = 1", {}, wire.HANDLER_NOT_FOUND, "Handler 'handler' missing on module 'app'"),
        ("handler = 1", {}, wire.HANDLER_NOT_FOUND, "cannot be called"),
        ("x = 1", {"handler": "app"}, wire.MALFORMED_HANDLER, "Bad handler 'app'"),
        ("raise ValueError('no')", {}, "ValueError", "no"),
        ("import sys\nsys.exit(3)", {}, wire.EXIT_ERROR, "exit(3)"),
        ("def handler(e, c): pass\ndef init(c): raise KeyError('k')", {"initializer": "app.init"}, "KeyError", "'k'"),
        ("def handler(e, c): pass", {"initializer": "app.none"}, wire.HANDLER_NOT_FOUND, "'none'"),
        (
            "async def handler(scope, receive, send):\n    await receive()\n"
            "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})",
            {"kind": "asgi"}, wire.EXIT_ERROR, "no database",
        ),
    ],
)  # fmt: skip
def test_what_cannot_start(opened: Opener, source: str, fields: dict[str, Any], type: str, message: str) -> None:
    async def work() -> None:
        async with opened("print('here')\n" * ("(:" not in source) + source, ready=False, **fields) as lab:
            failure = await lab.ready()
            assert failure is not None and failure.type == type and message in failure.message
            assert b"[ERROR] " + type.encode() in lab.talk.logs
            assert lab.process.wait(5) == 1

    run(work())


@pytest.mark.parametrize(
    ("body", "type", "message"),
    [
        ("raise ValueError('bad ü')", "ValueError", "bad ü"),
        ("return {1, 2}", wire.MARSHAL_ERROR, "Object of type set is not JSON serializable"),
        ("return b'bytes'", wire.MARSHAL_ERROR, "Object of type bytes is not JSON serializable"),
        ("a = []; a.append(a); return a", wire.MARSHAL_ERROR, "Circular reference"),
        ("return 'x' * (6 * 1024 * 1024)", wire.RESPONSE_TOO_LARGE, "6291458 bytes"),
        ("return unknown", "NameError", "unknown"),
    ],
)
def test_what_a_handler_does_wrong_is_told_and_the_next_is_served(
    opened: Opener, body: str, type: str, message: str
) -> None:
    async def work() -> None:
        async with opened(f"def handler(event, context):\n    if event: return 'fine'\n    {body}") as lab:
            answer = await lab.call(0)
            assert answer.failure is not None and answer.body is None
            assert answer.failure.type == type and message in answer.failure.message
            if not type.startswith(("Runtime.", "Function.")):
                assert "app.py" in answer.failure.trace[0] and "joey" not in "".join(answer.failure.trace)
            assert f"[ERROR] {type}".encode() in answer.logs
            assert set(json.loads(answer.failure.json())) == {"errorType", "errorMessage", "stackTrace", "requestId"}
            assert await lab.result(1) == "fine"

    run(work())


def test_a_wrong_signature_and_an_event_that_is_no_json(opened: Opener) -> None:
    async def work() -> None:
        async with opened("def handler(event): return 1") as lab:
            assert "takes 1 positional argument but 2 were given" in (await lab.call(1)).failure.message
            assert (await lab.call(raw=b"{nonsense")).failure.type == wire.UNMARSHAL_ERROR
            assert (await lab.call(raw=b"[" * 200_000)).failure.type == wire.UNMARSHAL_ERROR

    run(work())


@pytest.mark.parametrize(("event_format", "shown"), [("json", False), ("bytes", True)])
def test_what_a_handler_logs_is_shown_as_its_cloud_does(opened: Opener, event_format: str, shown: bool) -> None:
    source = "import logging\ndef handler(event, context):\n    logging.getLogger().info('told')\n    return event"

    async def work() -> None:
        async with opened(source, event_format=event_format) as lab:
            assert (b"[INFO]\t" in (await lab.call(1)).logs) is shown

    run(work())


def test_what_is_printed_belongs_to_its_invocation(opened: Opener) -> None:
    source = """
import logging, os, sys
print("starting")
def handler(event, context):
    if event == "quiet":
        return None
    print("one", end="")
    sys.stderr.write("two\\n")
    logging.getLogger().warning("three")
    os.write(1, b"four\\n")
    os.system("echo five")
    if event == "much":
        for _ in range(1000):
            print("x" * 99)
        print("last")
"""

    async def work() -> None:
        async with opened(source) as lab:
            assert b"starting" in lab.talk.logs
            logs = (await lab.call("some")).logs
            for word in (b"one", b"two\n", b"[WARNING]\t", b"three", b"four\n", b"five\n"):
                assert word in logs, (word, logs)
            assert (await lab.call("quiet")).logs == b""
            much = (await lab.call("much")).logs
            assert len(much) == wire.LOG_TAIL and much.endswith(b"last\n")
            assert sum(len(data) for id, _, data in lab.printed if id) > 100_000
            assert {stream for _, stream, _ in lab.printed} == {1, 2}

    run(work())


@pytest.mark.parametrize(
    ("body", "status"),
    [("import os; os._exit(7)", 7), ("import sys; sys.exit(5)", 5), ("import os; os.kill(os.getpid(), 11)", -11)],
)
def test_who_leaves_in_the_middle_is_noticed(opened: Opener, body: str, status: int) -> None:
    async def work() -> None:
        async with opened(f"def handler(event, context):\n    print('bye', flush=True)\n    {body}") as lab:
            one = lab.begin()
            assert await lab.broken is None
            assert lab.process.wait(5) == status and not one.future.done()
            lab.talk.lose(wire.EXIT_ERROR, "gone")
            answer = await one.future
            assert answer.failure.type == wire.EXIT_ERROR and answer.logs == b"bye\n"
            assert answer.failure.message == f"RequestId: {one.head.id} Error: gone"

    run(work())


def test_a_child_that_the_handler_forks_has_no_part_in_the_channel(opened: Opener) -> None:
    source = """
import os
def handler(event, context):
    pid = os.fork()
    if pid == 0:
        print("from the child")
        return "child"
    os.waitpid(pid, 0)
    return "parent"
"""

    async def work() -> None:
        async with opened(source) as lab:
            assert [await lab.result() for _ in range(3)] == ["parent"] * 3
            assert any(b"from the child" in data for _, _, data in lab.printed)

    run(work())


def test_time_is_over(opened: Opener) -> None:
    async def work() -> None:
        async with opened("import time\ndef handler(event, context):\n    print('hm')\n    time.sleep(event)") as lab:
            fine, late = await lab.call(0, timeout=9.0), await lab.call(60, timeout=0.15)
            assert fine.failure is None and late.failure is not None and late.failure.type == wire.TIMED_OUT
            assert late.failure.message.endswith("Task timed out after 0.15 seconds") and late.logs == b"hm\n"
            assert [one.timeout for one in lab.overdue] == [0.15] and not lab.talk.pending
            lab.process.kill()

    run(work())


def test_streams_wait_for_their_reader_and_end_when_it_leaves(opened: Opener) -> None:
    source = """
def handler(event, context):
    try:
        for number in range(event):
            yield "%099d" % number + "\\n" if number % 2 else b"." * 100
        if event == 3:
            raise RuntimeError("in the middle")
    finally:
        print("closed at", number)
"""

    async def work() -> None:
        async with opened(source) as lab:
            answer = await lab.call(10_000, stream=True)
            assert answer.head == {"content_type": "application/octet-stream"}
            assert len(b"".join([piece async for piece in answer.chunks])) == 1_000_000
            joined = await lab.call(10)
            assert joined.chunks is None and len(joined.body) == 1000

            broken = await lab.call(3, stream=True)
            failure = broken.failure  # if all of it has come at once
            if failure is None:
                with pytest.raises(StreamFailed) as caught:
                    [piece async for piece in broken.chunks]
                failure = caught.value.failure
            assert failure.type == "RuntimeError"

            endless = await lab.call(1 << 30, stream=True)
            await asyncio.sleep(0.1)
            assert endless.chunks.held <= wire.WINDOW + wire.MAX_DATA  # nobody reads: it waits
            await endless.chunks.aclose()
            assert len((await lab.call(2)).body) == 200  # and is free again
            assert any(b"closed at" in data for _, _, data in lab.printed)

    run(work())


def test_an_answer_that_nobody_wants(opened: Opener) -> None:
    async def work() -> None:
        async with opened("import time\ndef handler(event, context): time.sleep(event); return event") as lab:
            one = lab.begin(0.2)
            lab.talk.cancel(one)
            assert len(lab.talk.pending) == 1  # the handler cannot be interrupted
            assert await lab.result(0) == 0 and not lab.talk.pending

    run(work())


@pytest.mark.parametrize(
    "source",
    [
        "import time\ndef handler(event, context):\n    print('in', event)\n    time.sleep(0.2)\n    return event",
        "import asyncio\nasync def handler(event, context):\n    print('in', event)\n    await asyncio.sleep(0.2)\n"
        "    return event",
    ],
)
def test_several_at_once(opened: Opener, source: str) -> None:
    async def work() -> None:
        async with opened(source, concurrency=20) as lab:
            began = time.monotonic()
            answers = await asyncio.gather(*(lab.call(number) for number in range(20)))
            assert [json.loads(answer.body) for answer in answers] == list(range(20))
            assert time.monotonic() - began < 2
            assert [answer.logs for answer in answers] == [b"in %d\n" % number for number in range(20)]

    run(work())


def test_streams_of_several_at_once_do_not_hold_each_other_up(opened: Opener) -> None:
    sync = "def handler(event, context):\n    for _ in range(event): yield b'x' * 10000"
    asynchronous = "async def handler(event, context):\n    for _ in range(event): yield b'x' * 10000"

    async def work() -> None:
        for source in (sync, asynchronous):
            async with opened(source, concurrency=4) as lab:
                stuck = await lab.call(10_000, stream=True)
                for _ in range(3):
                    answer = await lab.call(300, stream=True)
                    assert sum([len(piece) async for piece in answer.chunks]) == 3_000_000
                await stuck.chunks.aclose()
                for _ in range(100):
                    if not lab.talk.pending:
                        break
                    await asyncio.sleep(0.02)
                assert not lab.talk.pending

    run(work())


def test_whether_a_hook_takes_the_context() -> None:
    from joey.functions.runtime import loader

    class Both:
        def none(self) -> None: ...
        def one(self, context: Any) -> None: ...
        def __call__(self, context: Any) -> None: ...

    fine = (lambda context: None, lambda *args: None, lambda context=None: None, Both().one, Both(), print)
    assert [loader.takes(one) for one in fine] == [True] * 6
    assert [loader.takes(one) for one in (lambda: None, Both().none, lambda *, context=None: None)] == [False] * 3


def test_the_end_that_is_asked_for(opened: Opener) -> None:
    source = """
import time
started = []
def init(): started.append(1)
def handler(event, context):
    time.sleep(0.1)
    return started
def bye(context): print("good bye", context.function_name)
"""

    async def work() -> None:
        for concurrency in (1, 3):
            fields = {"initializer": "app.init", "pre_stop": "app.bye", "concurrency": concurrency}
            async with opened(source, **fields) as lab:
                one = lab.begin()
                lab.talk.stop()
                assert (await one.future).body == b"[1]"
                assert await lab.broken is None and lab.process.wait(5) == 0
                assert b"good bye f\n" in lab.talk.logs

    run(work())


HTTP = {
    "method": "POST", "path": "/a%20b", "query": "x=1", "client": "10.0.0.1",
    "headers": [["Host", "h:80"], ["X-One", "1"], ["X-One", "2"], ["Content-Type", "text/plain"]],
}  # fmt: skip


def test_wsgi(opened: Opener) -> None:
    source = """
def handler(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise ValueError("no")
    write = start_response("201 Created", [("X-Two", "2"), ("Set-Cookie", "a"), ("Set-Cookie", "b")])
    names = "REQUEST_METHOD PATH_INFO QUERY_STRING HTTP_X_ONE CONTENT_TYPE SERVER_NAME CONTENT_LENGTH"
    said = [environ[name] for name in names.split()]
    said += [environ["wsgi.input"].read().decode(), environ["fc.context"].request_id[:1]]
    if environ["QUERY_STRING"] == "stream":
        return (b"x" * 1000 for _ in range(5))
    return ["|".join(said).encode()]
"""

    async def work() -> None:
        async with opened(source, kind="wsgi") as lab:
            answer = await lab.call(raw=b"body", http=HTTP)
            assert answer.body == b"POST|/a b|x=1|1,2|text/plain|h|4|body|r"
            assert answer.head == {"status": 201, "headers": [["X-Two", "2"], ["Set-Cookie", "a"], ["Set-Cookie", "b"]]}
            assert (await lab.call(raw=b"", http={**HTTP, "path": "/fail"})).failure.type == "ValueError"
            streamed = await lab.call(raw=b"", http={**HTTP, "query": "stream"})
            body = streamed.body if streamed.chunks is None else b"".join([one async for one in streamed.chunks])
            assert body == b"x" * 5000

    run(work())


def test_asgi(opened: Opener) -> None:
    source = """
import asyncio
async def handler(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["began"] = "yes"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        print("shut down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    if scope["path"] == "/nothing":
        return
    await send({"type": "http.response.start", "status": 202, "headers": [(b"x-two", b"2")]})
    said = [scope["method"], scope["path"], scope["query_string"].decode(), message["body"].decode()]
    said.append(scope["state"]["began"])
    if scope["query_string"] == b"stream":
        for _ in range(5):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body"})
    else:
        await send({"type": "http.response.body", "body": "|".join(said).encode()})
"""

    async def work() -> None:
        async with opened(source, kind="asgi", concurrency=5) as lab:
            answer = await lab.call(raw=b"body", http=HTTP)
            assert answer.body == b"POST|/a b|x=1|body|yes"
            assert answer.head == {"status": 202, "headers": [["x-two", "2"]]}
            nothing = await lab.call(raw=b"", http={**HTTP, "path": "/nothing"})
            assert "before it had answered" in nothing.failure.message
            streamed = await lab.call(raw=b"", http={**HTTP, "query": "stream"})
            assert b"".join([one async for one in streamed.chunks]) == b"x" * 5000
            lab.talk.stop()
            assert await lab.broken is None and b"shut down\n" in lab.talk.logs

    run(work())


def test_modules_of_the_code_are_not_taken_for_the_runtimes(opened: Opener, tmp_path: Path) -> None:
    for name in ("serve", "frames", "link", "event", "loader", "context"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")

    async def work() -> None:
        source = (
            "import serve, frames, link, event, loader, context\ndef handler(e, c): return [serve.MINE, event.MINE]"
        )
        async with opened(source) as lab:
            assert await lab.result() == [True, True]

    run(work())


def test_who_breaks_the_protocol_is_cut_off(opened: Opener) -> None:
    attacks = {
        "an unknown kind": "s.send(struct.pack('<IBI', 0, 99, 1))",
        "a frame without end": "s.send(struct.pack('<IBI', 1 << 30, 18, 1))",
        "ready twice": "s.send(struct.pack('<IBI', 2, 16, 0) + b'{}')",
        "a head that is no JSON": "s.send(struct.pack('<IBI', 3, 19, 1) + b'{{{')",
        "pieces without a head": "s.send(struct.pack('<IBI', 1, 20, 1) + b'x')",
    }

    async def work() -> None:
        for name, attack in attacks.items():
            source = f"""
import os, socket, struct
def handler(event, context):
    fd, = (fd for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)
           and os.readlink("/proc/self/fd/" + fd).startswith("socket"))
    s = socket.socket(fileno=int(fd))
    {attack}
    s.detach()
"""
            async with opened(source) as lab:
                lab.begin()
                failure = await asyncio.wait_for(lab.broken, 5)
                assert failure is not None and failure.type == wire.PROTOCOL_ERROR, name

    run(work())
