"""Functions as people use them: `joey fn`, `@joey.function` and `Function`, with the real engine."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import joey
from scenarios_cli import Joey

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOEY_HOME", str(home))
    monkeypatch.delenv("JOEY_URL", raising=False)


def until(met: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


HELLO = """import sys
def handler(event, context):
    print("seen", event.get("name"), context.function_name)
    if event.get("wait"):
        import time
        time.sleep(event["wait"])
    if event.get("exit"):
        import os
        os._exit(7)
    if event.get("pieces"):
        return (f"piece {n}\\n" for n in range(event["pieces"]))
    return {"hello": event["name"]}
"""


def test_from_a_folder_to_an_answer_and_back(tmp_path: Path) -> None:
    run = Joey()
    (tmp_path / "app.py").write_text(HELLO)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/junk.pyc").write_bytes(b"x")
    assert run.out("fn", "deploy", "hello", str(tmp_path), "--timeout", "1", "-l", "team=x") == "hello"
    assert json.loads(run.out("fn", "invoke", "hello", '{"name": "you"}')) == {"hello": "you"}
    assert json.loads(run.out("fn", "invoke", "hello", "-", input=b'{"name": "me"}')) == {"hello": "me"}
    (tmp_path / "event.json").write_text('{"name": "file"}')
    done = run("fn", "invoke", "--logs", "hello", f"@{tmp_path}/event.json")
    assert json.loads(done.stdout) == {"hello": "file"} and b"seen file hello" in done.stderr
    assert run.out("fn", "invoke", "hello", '{"pieces": 3}') == "piece 0\npiece 1\npiece 2"
    done = run("fn", "invoke", "hello", "{}", code=1)
    assert done.stdout == b"" and b"joey: hello: KeyError: 'name'\n" in done.stderr and b"in handler" in done.stderr
    done = run("fn", "invoke", "hello", '{"name": 1, "wait": 20}', code=1)
    assert b"Sandbox.Timedout" in done.stderr
    done = run("fn", "invoke", "hello", '{"name": 1, "exit": 1}', code=1)
    assert b"Runtime.ExitError" in done.stderr
    assert json.loads(run.out("fn", "invoke", "hello", '{"name": "after"}')) == {"hello": "after"}
    assert "seen after hello" in run.out("fn", "logs", "hello")
    assert run.out("fn", "logs", "-n", "1", "hello") == "seen after hello"
    # Versions: 1 stays what it was.
    assert run.out("fn", "publish", "hello") == "1"
    (tmp_path / "app.py").write_text("def handler(event, context):\n    return 'two'\n")
    assert run.out("fn", "deploy", "hello", str(tmp_path), "--publish") == "hello:2"
    assert run.out("fn", "invoke", "hello", "{}") == '"two"'
    assert json.loads(run.out("fn", "invoke", "hello:1", '{"name": 1}')) == {"hello": 1}
    assert run.out("fn", "alias", "hello", "live", "1", "--weight", "2=1") == "hello:live"
    assert run.out("fn", "invoke", "hello:live", "{}") == '"two"'
    assert "live   1        2: 1" in run.out("fn", "alias", "hello")
    one = json.loads(run.out("fn", "inspect", "hello"))[0]
    assert one["spec"]["timeout"] == 1 and one["spec"]["tags"] == {"team": "x"} and one["aliases"] == ["live"]
    assert [row.split()[0] for row in run.out("fn", "versions", "hello").splitlines()] == [
        "VERSION",
        "$LATEST",
        "1",
        "2",
    ]
    assert run.out("fn", "alias", "--remove", "hello", "live") == "live"
    assert run.out("fn", "rm", "hello:1") == "hello:1"
    assert "hello" in run.out("fn", "ls") and run.out("fn", "ls", "-q") == "hello"
    assert run.out("fn", "rm", "hello") == "hello" and run.out("fn", "ls", "-q") == ""
    assert b"no function" in run("fn", "invoke", "hello", "{}", code=1).stderr


def test_later_and_by_itself() -> None:
    run = Joey()
    source = b"def handler(event, context):\n    if event == 'bad': raise ValueError('no')\n    return [event]\n"
    run("fn", "deploy", "later", "-", "--retries", "0", "--on-failure", "queue:dead", input=source)
    good = run.out("fn", "invoke", "--async", "later", "1")
    bad = run.out("fn", "invoke", "--async", "later", '"bad"')
    until(lambda: "running" not in run.out("fn", "tasks", "later") and "queued" not in run.out("fn", "tasks", "later"))
    rows = {row.split()[0]: row.split()[1] for row in run.out("fn", "tasks", "later").splitlines()}
    assert rows[good] == "succeeded" and rows[bad] == "failed"
    assert run.out("fn", "tasks", "later", "--state", "failed").split("\n")[1].startswith(bad)
    assert json.loads(run.out("fn", "task", bad))[0]["error"] == "ValueError"
    assert run.out("fn", "trigger", "later", "often", "--schedule", "rate(1 minute)", "--payload", "5") == "often"
    path = run.out("fn", "trigger", "later", "web", "--url", "--auth", "none")
    assert path.startswith("/fn/")
    table = run.out("fn", "trigger", "later")
    assert "rate(1 minute)" in table and path in table
    assert run.out("fn", "trigger", "--remove", "later", "often") == "often"
    assert b"schedule" in run("fn", "trigger", "later", "x", "--schedule", "sometimes", code=1).stderr
    run("fn", "scale", "later", "--provisioned", "2", "--max-instances", "3")
    until(lambda: run.out("fn", "instances", "later").count("$LATEST") >= 2)
    assert "max_instances  3" in run.out("fn", "scale", "later")
    run("fn", "scale", "later", "--provisioned", "0", "--max-instances", "none")
    run("fn", "rm", "later")


def test_layers_and_queues(tmp_path: Path) -> None:
    run = Joey()
    (tmp_path / "python").mkdir()
    (tmp_path / "python/shared.py").write_text("WORD = 'shared'\n")
    assert run.out("fn", "layer", "common", str(tmp_path)) == "common"
    assert run.out("fn", "layer").splitlines()[1].split()[0] == "common"
    source = b"import shared\ndef handler(event, context):\n    return shared.WORD + open(shared.__file__).read()[:4]\n"
    run("fn", "deploy", "layered", "-", "--layer", "common", "--on-success", "queue:heard", input=source)
    assert run.out("fn", "invoke", "layered", "{}") == '"sharedWORD"'
    run("fn", "invoke", "--async", "layered", "7")
    until(lambda: run.out("fn", "queue", "heard"))
    record = json.loads(run.out("fn", "queue", "--remove", "heard"))
    assert record["requestPayload"] == 7 and record["responsePayload"] == "sharedWORD"
    assert run.out("fn", "queue", "heard") == ""
    run("fn", "rm", "layered")
    assert run.out("fn", "layer", "--remove", "common") == "common" and "common" not in run.out("fn", "layer")


def test_a_deployment_that_fails_leaves_nothing(tmp_path: Path) -> None:
    run = Joey()
    (tmp_path / "app.zip").write_bytes(b"PK nothing")
    assert (
        b"joey: fn: the archive cannot be read" in run("fn", "deploy", "bad", str(tmp_path / "app.zip"), code=2).stderr
    )
    assert b"what is to be called" in run("fn", "deploy", "bad", str(tmp_path), code=2).stderr
    (tmp_path / "app.py").write_text("x = 1")
    assert b"memory" in run("fn", "deploy", "bad", str(tmp_path), "-m", "1k", code=1).stderr
    assert b"name its code" in run("fn", "deploy", "bad", code=2).stderr
    assert run.out("fn", "ls", "-q") == ""


@joey.function(memory="128m")
def square(x):
    if x < 0:
        raise ValueError(f"{x} is negative")
    return x * x


def test_a_function_of_this_program() -> None:
    assert square.remote(3) == 9 and square(4) == square.local(4) == 16
    assert square.map(range(20), concurrency=5) == [n * n for n in range(20)]
    with pytest.raises(joey.RemoteError, match="-2 is negative") as caught:
        square.remote(-2)
    assert caught.value.type == "ValueError" and "in square" in caught.value.traceback
    found = square.map([1, -1], on_error="return")
    assert found[0] == 1 and isinstance(found[1], joey.RemoteError)
    task = square.spawn(5)
    assert task.get(timeout=20) == 25 and task.info().state == "succeeded"

    async def work() -> None:
        assert await square.aremote(6) == 36
        assert await square.amap([1, 2]) == [1, 4]
        assert await (await square.aspawn(7)).aget(20) == 49

    asyncio.run(work())
    name = square.name
    assert joey.Function(name).info().spec.modules[-1] == "joey_shipped"
    again = joey.function(memory="128m")(square._work)
    assert again.name == name and again.remote(2) == 4, "the same function is found again"
    assert joey.Function(name).info().revision == joey.Function(name).info().revision
    assert square.remove() and not square.remove()


def test_trusted_results_and_functions_of_asyncio() -> None:
    @joey.function(trust=True, concurrency=10)
    async def both(x, *, y):
        await asyncio.sleep(0.05)
        return {x, y}

    assert both.remote(1, y=2) == {1, 2}
    assert both.spawn(3, y=4).get(20) == {3, 4}
    both.remove()


def test_by_name() -> None:
    code = {"app.py": "def handler(event, context):\n    print('heard')\n    return event['a'] + 1\n"}
    function = joey.Function.deploy("named", code, "app.handler", timeout=5, memory="64m")
    assert function.invoke({"a": 1}) == 2
    done = function.call(b'{"a": 2}', logs=True)
    assert done.value() == 3 and done.body == b"3" and "heard" in done.logs and done.request_id
    done = function.call(b"no json")
    assert done.error == "Runtime.UnmarshalError"
    assert function.spawn({"a": 5}).get(20) == 6
    with pytest.raises(joey.RemoteError, match="KeyError"):
        function.invoke({})
    joey.Function.deploy("named", env={"X": "1"})
    info = function.info()
    assert info.spec.env == {"X": "1"} and info.spec.timeout == 5, "what is not given stays"
    assert function.publish() == "1" and list(function.versions()) == ["1"]
    function.scale(max_instances=3, keep_alive=30)
    assert function.info().spec.max_instances == 3
    assert function.invoke({"a": 7}) == 8
    assert function.stop_instance(function.instances()[0].id) and not function.stop_instance("0" * 24)
    function.remove()
    with pytest.raises(joey.NotFound):
        function.invoke({})
