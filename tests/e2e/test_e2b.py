"""The unmodified E2B SDK against the real engine (tests/scenarios_e2b.py), and what only the command line shows."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios_cli import PROGRAM

pytestmark = pytest.mark.leak_scope("module")
TESTS = Path(__file__).parents[1]
Packages = tuple[Path, "subprocess.Popen[bytes]"] | None


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="e", dir=homes))
    yield found
    subprocess.run(
        [*PROGRAM, "system", "reset", "-f"], env=of(found), check=True, stdout=subprocess.DEVNULL, timeout=60
    )
    assert list(found.glob("**/*")) == [], "reset left something"


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    """Of the JavaScript SDK: a folder, and what fetches them into it, beside the other tests, for it mostly waits."""
    npm = shutil.which("npm")
    if npm is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("js")
    for name in ("package.json", "scenarios.mjs"):
        shutil.copy(TESTS / "e2e/js" / name, folder)
    fetch = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(folder / "cache")]
    with subprocess.Popen(fetch, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as fetching:
        try:
            yield folder, fetching
        finally:
            fetching.kill()


def of(home: Path) -> dict[str, str]:
    return {**os.environ, "JOEY_HOME": str(home)}


def told(home: Path) -> dict[str, str]:
    """What `eval "$(joey env e2b)"` sets."""
    out = subprocess.run([*PROGRAM, "env", "e2b"], env=of(home), check=True, capture_output=True, text=True, timeout=60)
    assert out.stderr == ""
    lines = [line.removeprefix("export ").split("=", 1) for line in out.stdout.splitlines()]
    assert [name for name, _ in lines] == ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"]
    return dict(lines)


def scenarios(home: Path, *command: str) -> None:
    """A program against the engine of `home`."""
    done = subprocess.run(
        command, env={**os.environ, **told(home)}, capture_output=True, text=True, timeout=55, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr


def test_without_an_interpreter_the_command_is_said(home: Path) -> None:
    refused = subprocess.run(
        [*PROGRAM, "env", "--code-interpreter", "no/such", "e2b"], env=of(home), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode and "joey image bootstrap" in refused.stderr


def test_sandboxes_are_warm_before_anybody_asks(home: Path) -> None:
    told(home)
    for _ in range(50):
        out = subprocess.run([*PROGRAM, "pool", "ls", "--json"], env=of(home), check=True, capture_output=True).stdout
        if [one["name"] for one in json.loads(out) if one["ready"]] == ["e2b.base"]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"no pool: {out!r}")


def test_the_sdk(home: Path) -> None:
    scenarios(home, sys.executable, str(TESTS / "scenarios_e2b.py"))


def test_templates(home: Path) -> None:
    scenarios(home, sys.executable, str(TESTS / "scenarios_e2b_templates.py"))


@pytest.fixture(scope="module")
def interpreter(home: Path) -> Path:
    """run_code is done with this machine's own ipykernel (apt.txt)."""
    told(home)
    with_image = [*PROGRAM, "env", "--code-interpreter", "host", "e2b"]
    subprocess.run(with_image, env=of(home), check=True, stdout=subprocess.DEVNULL, timeout=60)
    return home


@pytest.fixture(scope="module")
def javascript(interpreter: Path, packages: Packages) -> "Iterator[subprocess.Popen[str] | str]":
    """What the JavaScript SDK does, beside the Python one; or why it does nothing."""
    node = shutil.which("node")
    if node is None or packages is None:
        yield "node or npm is not installed"
    elif packages[1].wait(40):
        yield "its packages cannot be had here"
    else:
        env, pipe = {**os.environ, **told(interpreter)}, subprocess.PIPE
        with subprocess.Popen(
            [node, "scenarios.mjs"], env=env, cwd=packages[0], stdout=pipe, stderr=pipe, text=True
        ) as running:
            try:
                yield running
            finally:
                running.kill()


def test_the_code_interpreter(interpreter: Path, javascript: object) -> None:
    scenarios(interpreter, sys.executable, str(TESTS / "scenarios_e2b_code.py"))


@pytest.mark.may_skip("node, npm and a registry of its packages are not everywhere")
def test_the_javascript_sdk(javascript: "subprocess.Popen[str] | str") -> None:
    if isinstance(javascript, str):
        pytest.skip(javascript)
    out, err = javascript.communicate(timeout=55)
    assert (javascript.returncode, out) == (0, "all of it\n"), err


def test_env_is_the_same_after_a_restart_and_revocable(home: Path) -> None:
    before = told(home)
    assert before["E2B_API_KEY"].startswith("e2b_") and (home / "e2b.json").stat().st_mode & 0o777 == 0o600
    pid = int((home / "run/daemon.lock").read_text())
    subprocess.run(["kill", str(pid)], check=True)
    while Path(f"/proc/{pid}/status").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)
    assert told(home) == before
    subprocess.run([*PROGRAM, "keys", "revoke", "joey env e2b"], env=of(home), check=True, stdout=subprocess.DEVNULL)
    after = told(home)
    assert after["E2B_API_URL"] == before["E2B_API_URL"] and after["E2B_API_KEY"] != before["E2B_API_KEY"]


def test_what_is_wrong_is_said_as_e2b_says_it(home: Path) -> None:
    url, key = told(home)["E2B_API_URL"], told(home)["E2B_API_KEY"]

    def answer(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, object]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url + path, body or None, named, method=method)
        try:
            with urllib.request.urlopen(request) as found:
                return found.status, json.load(found)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    assert answer("GET", "/v2/sandboxes")[0] == 401
    status, document = answer("GET", "/v2/sandboxes?state=dead", X_API_KEY=key)
    assert status == 400 and document["code"] == 400 and "state" in str(document["message"])
    for path in ("/v2/sandboxes?limit=0", "/v2/sandboxes?nextToken=x"):
        assert answer("GET", path, X_API_KEY=key)[0] == 400
    assert answer("POST", "/v3/templates", b"{}", X_API_KEY=key)[0] == 400
    status, document = answer("POST", "/volumes", b"{}", X_API_KEY=key)
    assert status == document["code"] == 501 and "not supported" in str(document["message"])
    assert answer("POST", "/sandboxes", b'{"templateID": "localhost/none:1"}', X_API_KEY=key)[0] == 404
    assert answer("PUT", "/templates/uploads/x/0123456789abcdef?token=1")[0] == 401
    assert answer("POST", "/sandboxes", b'{"templateID": 7}', X_API_KEY=key)[0] == 400
    assert answer("DELETE", "/sandboxes/" + "0" * 24, X_API_KEY=key)[0] == 404
    assert answer("GET", "/health", E2b_Sandbox_Id="0" * 24)[0] == 502
    made = answer("POST", "/v2/sandboxes", b'{"templateID": "base"}', X_API_KEY=key, Idempotency_Key="one")[1]
    assert answer("POST", "/v2/sandboxes", b'{"templateID": "base"}', X_API_KEY=key, Idempotency_Key="one")[1] == made
    id, token = str(made["sandboxID"]), str(made["envdAccessToken"])
    for given in ({}, {"X_Access_Token": "x"}, {"X_Access_Token": token[:-1] + "é".encode().decode("latin-1")}):
        assert answer("GET", "/files?path=/etc/passwd", E2b_Sandbox_Id=id, **given)[0] == 401
    assert answer("GET", f"/sandboxes/{id}", X_API_KEY=key, E2b_Sandbox_Id=id)[0] == 200  # as 2.10 asks
    for port, code in (("0", 400), ("x", 400), ("9", 502)):
        assert answer("GET", "/", E2b_Sandbox_Id=id, E2b_Sandbox_Port=port)[0] == code
    method, right = "/process.Process/", {"E2b_Sandbox_Id": id, "X_Access_Token": token}
    json_type = {"Content_Type": "application/json"}
    status, document = answer("POST", method + "SendSignal", b'{"process": {"pid": 1}}', **right, **json_type)
    assert status == 404 and document["code"] == "not_found"
    status, document = answer("POST", method + "SendSignal", b"{}", **right, **json_type)
    assert status == 400 and document["code"] == "invalid_argument"
    status, document = answer("POST", method + "List", b"", **right, Content_Type="application/proto")
    assert document["code"] == "unimplemented"
    assert answer("POST", method + "Start", b"\0\0\0\0\5{}", **right, Content_Type="application/connect+json")[0] == 400
    other = subprocess.run(
        [*PROGRAM, "keys", "create", "--e2b"], env=of(home), check=True, capture_output=True, text=True
    )
    stranger = other.stdout.strip()
    assert stranger.startswith("e2b_") and answer("GET", "/v2/sandboxes", X_API_KEY=stranger) == (200, [])
    for ask, path in (("GET", ""), ("DELETE", ""), ("POST", "/connect"), ("POST", "/pause"), ("POST", "/fork")):
        assert answer(ask, f"/sandboxes/{id}{path}", X_API_KEY=stranger)[0] == 404
    request = urllib.request.Request(f"{url}/sandboxes/{id}", headers={"X-API-KEY": key}, method="DELETE")
    with urllib.request.urlopen(request) as gone:
        assert gone.status == 204
