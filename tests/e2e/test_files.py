"""Files and processes of a sandbox over HTTP, and `joey cp` and `joey top`, with the real engine."""

import base64
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from joey.client.transport import Connection, Problem
from joey.model import frames
from scenarios_api import Api
from scenarios_cli import PROGRAM

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="f", dir=homes))
    env = {**os.environ, "JOEY_HOME": str(home)}
    run = ["run", "-d", "--name", "box", "host", "sleep", "600"]
    subprocess.run([*PROGRAM, *run], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
    yield home
    subprocess.run([*PROGRAM, "system", "reset", "-f"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture
def api(home: Path) -> Api:
    return Api(str(home / "run/api.sock"))


FILES = "/v1/sandboxes/box/files"


def ask(api: Api, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, dict[str, str], bytes]:
    with Connection.open(api.path) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: joey\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        connection._send(head.encode() + body)
        response = connection._response()
        return response.status, response.headers, response.body()


def test_bytes(api: Api) -> None:
    status, _, info = ask(api, "PUT", f"{FILES}?path=/tmp/a/f&mode=640&user=5:6&parents=true", b"0123456789")
    assert status == 200 and json.loads(info).items() >= {"size": 10, "mode": 0o640, "uid": 5, "gid": 6}.items()
    assert ask(api, "GET", f"{FILES}?path=/tmp/a/f")[2] == b"0123456789"
    for asked, expected, told in (
        ("2-4", b"234", "bytes 2-4/10"), ("7-", b"789", "bytes 7-9/10"), ("-3", b"789", "bytes 7-9/10"),
        ("8-99", b"89", "bytes 8-9/10"),
    ):  # fmt: skip
        status, headers, body = ask(api, "GET", f"{FILES}?path=/tmp/a/f", headers=f"Range: bytes={asked}\r\n")
        assert (status, body, headers["content-range"]) == (206, expected, told)
    assert ask(api, "GET", f"{FILES}?path=/tmp/a/f", headers="Range: bytes=10-\r\n")[0] == 416
    told = ask(api, "GET", f"{FILES}?path=/tmp/a/f", headers="Range: bytes=10-\r\n")
    assert told[1]["content-range"] == "bytes */10" and b"has 10 bytes" in told[2]
    for bad in ("4-2", "x", "1-2,4-5"):
        assert ask(api, "GET", f"{FILES}?path=/tmp/a/f", headers=f"Range: bytes={bad}\r\n")[0] == 400
    large = os.urandom(5 << 20)
    assert ask(api, "PUT", f"{FILES}?path=/tmp/large", large)[0] == 200
    status, headers, body = ask(api, "GET", f"{FILES}?path=/tmp/large")
    assert body == large and headers["content-length"] == str(len(large))
    assert b"MemTotal" in ask(api, "GET", f"{FILES}?path=/proc/meminfo")[2]
    assert (
        ask(api, "PUT", f"{FILES}?path=/tmp/empty")[0] == 200 and ask(api, "GET", f"{FILES}?path=/tmp/empty")[2] == b""
    )


def test_names(api: Api) -> None:
    assert api("POST", f"{FILES}/mkdir?path=/tmp/n/m&parents=true&mode=700")["mode"] == 0o700
    ask(api, "PUT", f"{FILES}?path=/tmp/n/m/f%0Ag", b"x")
    assert [one["path"] for one in api("GET", f"{FILES}/list?path=/tmp/n&depth=2")] == ["/tmp/n/m", "/tmp/n/m/f\ng"]
    assert api("POST", f"{FILES}/move?path=/tmp/n/m/f%0Ag&to=/tmp/n/h")["path"] == "/tmp/n/h"
    assert api("POST", f"{FILES}/chmod?path=/tmp/n/h&mode=0600")["mode"] == 0o600
    assert api("POST", f"{FILES}/chown?path=/tmp/n/h&user=9")["uid"] == 9
    assert api("GET", f"{FILES}/stat?path=/tmp/n/h")["type"] == "file"
    assert api.fails("DELETE", f"{FILES}?path=/tmp/n").status == 409
    api("DELETE", f"{FILES}?path=/tmp/n&recursive=true")
    for method, path, status, field in (
        ("GET", "/stat?path=/tmp/n", 404, "path"), ("GET", "/stat", 400, "path"), ("GET", "/stat?path=x", 400, "path"),
        ("GET", "/list?path=/&depth=0", 400, "depth"), ("POST", "/chmod?path=/tmp&mode=9", 400, "mode"),
        ("POST", "/chown?path=/tmp&user=nobody-here", 400, "user"), ("GET", "?path=/tmp&more=1", 400, "more"),
        ("GET", "?path=/tmp", 400, "path"), ("GET", "?path=/tmp%00", 400, "path"), ("GET", "?path=/%ff", 400, "path"),
        ("GET", "/archive?path=/none", 404, "path"), ("GET", "/watch?path=/none", 404, "path"),
    ):  # fmt: skip
        found = api.fails(method, FILES + path)
        assert (found.status, found.field) == (status, field), path


def test_archive_and_watch(api: Api) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("up/f")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with Connection.open(api.path) as watching:
        events = watching.request("GET", f"{FILES}/watch?path=/srv&recursive=true").stream()
        assert ask(api, "PUT", f"{FILES}/archive?path=/srv", out.getvalue())[0] == 204
        assert json.loads(next(events).split(b"\n")[0]) == {"type": "created", "path": "/srv/up"}
    with tarfile.open(fileobj=io.BytesIO(ask(api, "GET", f"{FILES}/archive?path=/srv/up")[2])) as tar:
        assert tar.getnames() == ["up", "up/f"]
    status, _, body = ask(api, "PUT", f"{FILES}/archive?path=/srv", b"x" * 600)
    assert status == 400 and json.loads(body)["field"] == "body"


def test_run_in_one_round_trip(api: Api) -> None:
    path = "/v1/sandboxes/box/run"
    body = {"argv": ["sh", "-c", "cat; echo $A >&2; pwd; exit 3"], "env": {"A": "1"}, "cwd": "/usr"}
    found = api("POST", path, {**body, "input": base64.b64encode(b"in\n").decode()})
    assert (found["exit"]["code"], found["truncated"], found["timed_out"]) == (3, False, False)
    assert (base64.b64decode(found["stdout"]), base64.b64decode(found["stderr"])) == (b"in\n/usr\n", b"1\n")
    found = api("POST", path, {"argv": ["head", "-c", "1000000", "/dev/zero"], "limit": 10})
    assert found["truncated"] and base64.b64decode(found["stdout"]) == b"\0" * 10 and found["exit"]["code"] == 0
    found = api("POST", path, {"argv": ["sh", "-c", "echo a; exec sleep 100"], "timeout": 0.3})
    assert found["timed_out"] and found["exit"]["signal"] == 9 and base64.b64decode(found["stdout"]) == b"a\n"
    for bad, field in (
        ({"argv": []}, "argv"), ({"argv": ["true"], "timeout": -1}, "timeout"),
        ({"argv": ["true"], "limit": -1}, "limit"),
        ({"argv": ["true"], "input": "%"}, "input"), ({"argv": ["true"], "tty": True}, "tty"),
        ({"argv": ["true"], "colour": 1}, "colour"), ({"argv": ["no-such"]}, "argv"),
    ):  # fmt: skip
        assert api.fails("POST", path, bad).field == field


def test_processes(api: Api) -> None:
    base = "/v1/sandboxes/box/processes"
    made = api("POST", f"{base}?tag=mine", {"argv": ["sh", "-c", "echo one; cat; exit 5"], "stdin": True})
    path = f"{base}/{made['id']}"
    assert made["tag"] == "mine" and made["exit"] is None and made["sandbox"]
    assert ask(api, "POST", f"{path}/stdin", b"two\n")[0] == 204
    stream = api.stream(f"{path}/attach")
    assert stream.headers["joey-process"] == made["id"]
    stream.until(frames.STDOUT, b"one\n")
    stream.close()  # it goes on
    again = api.stream(f"{path}/attach")
    assert ask(api, "POST", f"{path}/stdin?close=true", b"three\n")[0] == 204
    found = again.rest()
    assert found[frames.STDOUT].endswith(b"three\n") and json.loads(found[frames.EXIT])["code"] == 5
    assert api("POST", f"{path}/wait")["code"] == 5 and api("GET", path)["exit"]["code"] == 5
    assert made["id"] in [one["id"] for one in api("GET", base)]
    sleeper = api("POST", base, {"argv": ["sleep", "100"]})
    assert api.fails("POST", f"{base}/{sleeper['id']}/stdin").status == 409
    assert api.fails("POST", f"{base}/{sleeper['id']}/resize?rows=1&cols=1").status == 409
    api("POST", f"{base}/{sleeper['id']}/signal?signal=TERM")
    assert api("POST", f"{base}/{sleeper['id']}/wait")["signal"] == 15
    assert api.fails("POST", f"{base}/{sleeper['id']}/signal").status == 409
    assert api.fails("GET", f"{base}/123456789").field == "process"
    with pytest.raises(Problem):
        api.stream(f"{base}/123456789/attach")


def test_cp(home: Path, tmp_path: Path) -> None:
    env = {**os.environ, "JOEY_HOME": str(home)}

    def joey(*words: str, code: int = 0, data: bytes | None = None) -> bytes:
        done = subprocess.run([*PROGRAM, *words], env=env, capture_output=True, timeout=60, input=data, check=False)
        assert done.returncode == code, (words, done.stderr)
        return done.stdout + done.stderr

    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_bytes(b"x" * 300_000)
    (tree / "d/f").chmod(0o751)
    (tree / "d/link").symlink_to("/etc/passwd")
    (tree / "odd\nname").write_text("")
    joey("cp", str(tree), "box:/tmp")
    joey("cp", str(tree), "box:/tmp/named")
    joey("cp", str(tree) + "/.", "box:tmp/named/d")
    joey("cp", str(tree / "d/f"), "box:/tmp/one")
    assert joey("exec", "box", "stat", "-c", "%a %u %s", "/tmp/tree/d/f") == b"751 0 300000\n"
    assert joey("exec", "box", "readlink", "/tmp/named/d/d/link") == b"/etc/passwd\n"
    joey("cp", "box:/tmp/tree", str(tmp_path / "back"))
    assert subprocess.run(["diff", "-r", "--no-dereference", str(tree), str(tmp_path / "back")]).returncode == 0
    assert (tmp_path / "back/d/f").stat().st_mode & 0o777 == 0o751
    (tmp_path / "dir").mkdir()
    joey("cp", "box:/tmp/one", str(tmp_path / "dir"))
    assert (tmp_path / "dir/one").stat().st_size == 300_000
    data = joey("cp", "box:/tmp/tree/d", "-")
    joey("exec", "box", "mkdir", "/tmp/in")
    joey("cp", "-", "box:/tmp/in", data=data)
    assert joey("exec", "box", "ls", "/tmp/in/d") == b"f\nlink\n"
    # A link that is there already on the host is replaced, not written through.
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "dir/one").unlink()
    (tmp_path / "dir/one").symlink_to(secret)
    joey("cp", "box:/tmp/one", str(tmp_path / "dir"))
    assert secret.read_text() == "mine" and not (tmp_path / "dir/one").is_symlink()
    for words, code in (
        (("box:/none", str(tmp_path)), 1), (("/none", "box:/tmp"), 1), (("a", "b"), 2), (("box:/a", "box:/b"), 2),
        ((str(tree), "box:/tmp/one"), 2), ((str(tree / "d/f"), "box:/tmp/none/"), 2), ((str(tree), "box:/no/x"), 1),
    ):  # fmt: skip
        joey("cp", *words, code=code)
    rows = joey("top", "box").decode().splitlines()
    assert rows[0].split()[:3] == ["PID", "PPID", "USER"] and rows[1].split()[0] == "1" and "sleep 600" in rows[1]
