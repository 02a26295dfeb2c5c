"""What of functions is on the client's side: packing, the shipped module, and the load of the benchmark."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import joey
from joey.bench.functions_load import Reply, parse
from joey.cli import fn, fn_deploy, main
from joey.cli.fn_deploy import _handled, settings
from joey.cli.options import UsageError
from joey.client._async.function import failure
from joey.client.function import value
from joey.client.package import pack, requires


def names(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


def test_a_folder_without_what_is_ignored(tmp_path: Path) -> None:
    for path in ("app.py", "lib/util.py", "lib/__pycache__/util.cpython-311.pyc", ".git/HEAD", "notes.txt", "run.sh"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "link").symlink_to("app.py")
    (tmp_path / "linked").symlink_to("lib")
    (tmp_path / ".joeyignore").write_text("*.txt\n")
    data = pack(tmp_path)
    assert names(data) == [".joeyignore", "app.py", "link", "linked", "run.sh", "lib/util.py"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        modes = {one.filename: one.external_attr >> 16 for one in archive.infolist()}
        assert archive.read("link") == b"app.py"
    assert modes["run.sh"] == 0o100755 and modes["app.py"] == 0o100644 and modes["link"] == 0o120777
    os.utime(tmp_path / "app.py", (1, 1))
    assert pack(tmp_path) == data, "the same files are the same bytes"


def test_other_code_and_requirements(tmp_path: Path) -> None:
    assert names(pack({"b.py": "2", "a.py": b"1"})) == ["a.py", "b.py"]
    (tmp_path / "one.py").write_text("x = 1")
    assert names(pack(tmp_path / "one.py")) == ["one.py"]
    data = pack({"app.py": "1", "requirements.txt": "old"}, "requests\n")
    assert names(data) == ["app.py", "requirements.txt"] and requires(data) == "requests\n"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("requirements.txt") == b"requests\n"
    assert not requires(pack({"app.py": "1"}))
    (tmp_path / "no.zip").write_text("text")
    with pytest.raises(ValueError, match="is no zip"):
        pack(str(tmp_path / "no.zip"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither"):
        pack(tmp_path)


def shipped(folder: Path, event: dict[str, object], python: list[int] | None = None) -> dict[str, object]:
    """What the shipped handler answers, or its exception, in a Python of its own."""
    script = (
        "import json, sys, joey_shipped\n"
        "try: print(json.dumps(joey_shipped.handler(json.loads(sys.argv[1]), None)))\n"
        "except Exception as error: print(json.dumps({'error': repr(error)}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{script}", json.dumps(event)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def event(*args: object, **named: object) -> dict[str, object]:
    return {"call": base64.b64encode(pickle.dumps((args, named), 4)).decode()}


def test_what_runs_inside(tmp_path: Path) -> None:
    offset = 10

    @joey.function(requirements=["requests==2.0"])
    def work(x, y=0):
        return (x + y + offset, "text")

    digest, data = work._package()
    assert work(1) == (11, "text") and work.local(1, y=2) == (13, "text")
    assert work.name == f"work-{digest[:16]}" and requires(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "cloudpickle/cloudpickle.py").exists()
    assert shipped(tmp_path, event(1, y=5)) == {"value": [16, "text"]}
    trusted = shipped(tmp_path, {**event(1), "trust": True})
    assert value(trusted, True) == (11, "text")
    with pytest.raises(joey.RemoteError):
        value(trusted, False)
    with pytest.raises(joey.RemoteError):
        value("something else", True)
    about = json.loads((tmp_path / "joey_function.json").read_text())
    assert about["python"] == list(sys.version_info[:2])
    (tmp_path / "joey_function.json").write_text(json.dumps({"python": [3, 1]}))
    done = subprocess.run(
        [sys.executable, "-c", "import joey_shipped"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert b"equal versions of Python only: there 3.1" in done.stderr


def test_what_is_no_plain_data(tmp_path: Path) -> None:
    @joey.function
    def work():
        return {1, 2}

    with zipfile.ZipFile(io.BytesIO(work._package()[1])) as archive:
        archive.extractall(tmp_path)
    assert "a set that is not plain data" in str(shipped(tmp_path, event()))


def test_an_asynchronous_function(tmp_path: Path) -> None:
    @joey.function(name="given")
    async def work(x):
        return x + 1

    assert work.name == "given"
    with zipfile.ZipFile(io.BytesIO(work._package()[1])) as archive:
        archive.extractall(tmp_path)
    script = f"import asyncio, joey_shipped; print(asyncio.run(joey_shipped.handler({event(1)!r}, None)))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'value': 2}\n"


def test_failures_are_exceptions() -> None:
    body = b'{"errorType": "KeyError", "errorMessage": "x", "stackTrace": ["a\\n", "b\\n"]}'
    error = failure("KeyError", body)
    assert isinstance(error, joey.RemoteError) and (error.type, error.traceback) == ("KeyError", "a\nb\n")
    assert isinstance(failure("Sandbox.Timedout", b'{"errorMessage": "late"}'), joey.Timeout)
    assert "no json" in str(failure("Unhandled", b"no json"))


def test_every_option_of_deploy_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that the parser gives to its value."""
    sent: list[dict[str, object]] = []
    monkeypatch.setattr(fn_deploy, "deploy", lambda values, words: sent.append(settings(values)))
    monkeypatch.setitem(fn.VERBS, "deploy", (fn_deploy.deploy, *fn.VERBS["deploy"][1:]))
    elsewhere = {"--requirements", "--publish"}  # of the code, and afterwards
    values = {
        "--kind": "http", "--port": "9000", "--env": "A=1", "--env-file": os.devnull, "--secret": "A=1", "--cpus": "2",
        "--memory": "256m", "--disk": "50m", "--timeout": "9", "--concurrency": "2", "--network": "nat",
        "--allow": "10.0.0.0/8", "--deny": "10.0.0.0/8", "--internet": "no", "--bandwidth-in": "1m",
        "--bandwidth-out": "1m", "--connections": "9", "--label": "a=b", "--retries": "1", "--on-success": "queue:q",
        "--on-failure": "queue:q", "--no-template": None,
    }  # fmt: skip
    for option in fn_deploy.OPTIONS:
        names = set() if isinstance(option, str) else {name for name in option[0].split() if name.startswith("--")}
        for name in sorted(names - elsewhere):
            value = values.get("--network" if name == "--net" else name, "word")
            main(["fn", "deploy", "name", name, *([value] if value is not None else [])])
            assert sent.pop(), f"{name} asks for nothing"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("invoke f --async --logs", "--async does not wait"), ("invoke f --async --json", "--async does not wait"),
        ("trigger f t --qualifier 1", "--qualifier goes with"), ("trigger f t --url --payload 1", "--payload goes"),
        ("trigger f t --schedule rate(1minute) --auth none", "--auth goes with"),
        ("alias f live --weight 2=0.1", "--weight goes"), ("alias f live --remove --weight 2=0.1", "--weight goes"),
        ("trigger f t --method GET", "--method goes with"), ("trigger f t --schedule x --method GET", "--method goes"),
        ("tasks t --stop --state failed", "--stop takes ids"), ("scale f:1 --reserved 2", "--reserved is the whole"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(line: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fn", *line.split()]) == 2
    assert said in capfd.readouterr().err


def test_options_of_deploy(tmp_path: Path) -> None:
    given = {
        "memory": "256m", "cpus": "0.5", "timeout": "10", "env": ["A=1"], "secret": ["S=2"], "module": ["numpy"],
        "retries": "0", "on_failure": "queue:dead", "kind": "wsgi", "no_template": True, "label": ["team=x"],
        "command": ["node", "a.js"], "rules": [("--allow", "10.0.0.0/8")],
    }  # fmt: skip
    body = settings(given)
    assert body.pop("network")["policy"]
    assert body == {
        "memory": 256 << 20, "cpus": 0.5, "timeout": 10, "env": {"A": "1"}, "secrets": {"S": "2"}, "modules": ["numpy"],
        "async": {"max_retries": 0, "on_failure": "queue:dead"}, "kind": "wsgi", "template": False,
        "tags": {"team": "x"}, "command": ["node", "a.js"],
    }  # fmt: skip
    with pytest.raises(UsageError, match="--kind"):
        settings({"kind": "lambda"})
    assert _handled({}, "/x/work.py")["handler"] == "work.handler"
    assert _handled({"kind": "asgi"}, "-")["handler"] == "app.app"
    (tmp_path / "lambda_function.py").touch()
    assert _handled({}, str(tmp_path))["handler"] == "lambda_function.lambda_handler"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("lib/app.py", "")
        archive.writestr("main.py", "")
    assert _handled({}, str(tmp_path / "x.zip"))["handler"] == "main.handler"
    (tmp_path / "no.zip").touch()
    assert _handled({}, str(tmp_path / "no.zip")) == {}
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.py").touch()
    for handler, after in (("pack.mine.go", None), ("gone.go", "lambda_function.lambda_handler")):
        before = {"kind": "event", "handler": handler}
        assert _handled({}, str(tmp_path), before).get("handler") == after
        assert _handled({"kind": "wsgi"}, str(tmp_path), before)["handler"] == "lambda_function.app"
    assert _handled({}, "work.py", {"kind": "wsgi", "handler": "old.app"})["handler"] == "work.app"
    assert _handled({}, "work.py", {"kind": "http", "handler": ""}) == {}
    assert _handled({"handler": "a.b"}, str(tmp_path)) == {"handler": "a.b"}
    assert _handled({"kind": "http"}, str(tmp_path)) == {"kind": "http"}


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42", Reply(200, "", b"42")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n4", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Reply(204, "", b"")),
        (b"HTTP/1.1 200 OK\r\nJoey-Function-Error: E\r\ncontent-length: 0\r\n\r\n", Reply(200, "E", b"")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", None),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            Reply(200, "", b"1\r\nx\r\n0\r\n\r\n"),
        ),
    ],
)
def test_answers_are_whole_or_not_yet(data: bytes, reply: Reply | None) -> None:
    assert parse(data) == reply
