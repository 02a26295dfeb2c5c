"""Snapshots, forks, commits and volumes by the commands and with API keys; engines that are killed in the middle."""

import http.client
import json
import os
import signal
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.test_image_cli import Joey

WRITE = "mkdir -p /work; echo one > /work/f; rm -f /etc/nsswitch.conf"


@pytest.fixture
def joey(joey_home: Path) -> Iterator[Joey]:
    joey = Joey(joey_home)
    yield joey
    joey("system", "reset", "-f")


def test_the_commands(joey: Joey) -> None:
    joey("run", "-d", "--name", "box", "host", "sleep", "100")
    joey("exec", "box", "sh", "-c", WRITE)
    assert joey("diff", "box").splitlines() == ["C /etc", "D /etc/nsswitch.conf", "A /work", "A /work/f"]
    assert joey("snapshot", "box", "mine:1") == "mine:1\n"
    assert joey("run", "--rm", "mine:1", "cat", "/work/f") == "one\n"
    listed = json.loads(joey("snapshots", "--json"))
    assert [(one["name"], one["size"], one["owner"]) for one in listed] == [("mine:1", 4, "")]
    assert "mine:1" in joey("snapshots")

    forks = joey("fork", "box", "3").split()
    assert len(set(forks)) == 3 and joey("exec", forks[2], "cat", "/work/f") == "one\n"
    joey("rm", "-f", *forks)
    assert "COUNT" in joey("fork", "box", "0", code=2)

    id = joey("commit", "-c", 'CMD ["cat", "/work/f"]', "-m", "why", "box", "app:2").strip()
    assert joey("run", "--rm", "app:2") == "one\n" and id.startswith("sha256:")
    assert "changes[0]" in joey("commit", "-c", "RUN x", "box", code=1)
    assert "used by" in joey("run", "--rm", "mine:1", "true") + _used(joey)
    joey("snapshots", "--remove", "mine:1")
    assert json.loads(joey("snapshots", "--json")) == []

    target = joey.home / "box.tar"
    joey("export", "-o", str(target), "box")
    with tarfile.open(target) as tar:
        assert "work/f" in tar.getnames() and "etc/nsswitch.conf" not in tar.getnames()
    target.unlink()


def _used(joey: Joey) -> str:
    joey("run", "-d", "--name", "user", "mine:1", "sleep", "100")
    said = joey("snapshots", "--remove", "mine:1", code=1)
    joey("rm", "-f", "user")
    return said


def test_volumes_by_the_commands(joey: Joey) -> None:
    assert joey("volume", "create", "--size", "16m", "--label", "a=b", "data") == "data\n"
    joey("run", "--rm", "-v", "data:/d", "host", "sh", "-c", "echo kept > /d/f")
    assert joey("run", "--rm", "--mount", "type=volume,src=data,dst=/d,readonly", "host", "cat", "/d/f") == "kept\n"
    joey("run", "-d", "--name", "box", "-v", "data:/d", "-v", "made:/m", "host", "sleep", "100")
    assert "box" in joey("volume", "rm", "data", code=1)
    [info] = json.loads(joey("volume", "inspect", "data"))
    assert (info["size"], info["users"], info["labels"]) == (16 << 20, ["box"], {"a": "b"}) and info["used"] > 0
    assert joey("volume", "ls", "-q").split() == ["data", "made"]
    joey("rm", "-f", "box")
    assert joey("volume", "prune", "-f").split() == ["data", "made"]
    assert "no volume is called" in joey("volume", "rm", "data", code=1)


class Caller:
    """Requests on the engine's socket, with a key."""

    def __init__(self, joey: Joey, key: str) -> None:
        self.path, self.key = str(joey.home / "run" / "api.sock"), key

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        connection = http.client.HTTPConnection("joey", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"X-API-Key": self.key, "Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(text) if is_json and b"\n" not in text else text


def test_one_keys_snapshots_and_volumes_are_not_anothers(joey: Joey) -> None:
    keys = [json.loads(joey("keys", "create", "--json"))["key"] for _ in "ab"]
    alice, bob = (Caller(joey, key) for key in keys)
    made = {"image": "host", "entrypoint": [], "init": True, "volumes": [{"name": "v", "target": "/v"}]}
    status, box = alice("POST", "/v1/sandboxes", {**made, "files": {"/work/f": "b25l"}})
    assert status == 201
    assert isinstance(box, dict)
    status, snapshot = alice("POST", f"/v1/sandboxes/{box['id']}/snapshot", {"name": "mine:1"})
    assert status == 201 and isinstance(snapshot, dict) and snapshot["name"] == "mine:1"
    status, again = alice("POST", "/v1/sandboxes", {"image": "mine:1", "entrypoint": [], "init": True})
    assert status == 201 and isinstance(again, dict)
    assert alice("GET", f"/v1/sandboxes/{again['id']}/files?path=/work/f")[1] == b"one"
    assert [one["id"] for one in alice("GET", "/v1/images")[1]] == [snapshot["id"]]  # type: ignore[attr-defined]
    hidden = snapshot["id"]
    for method, path in (
        ("POST", f"/v1/sandboxes/{box['id']}/snapshot"), ("POST", f"/v1/sandboxes/{box['id']}/fork"),
        ("GET", f"/v1/sandboxes/{box['id']}/changes"), ("GET", f"/v1/sandboxes/{box['id']}/export"),
        ("GET", "/v1/snapshots/mine:1"), ("DELETE", "/v1/snapshots/mine:1"), ("DELETE", f"/v1/snapshots/{hidden}"),
        ("GET", f"/v1/images/{hidden}"), ("GET", f"/v1/images/{hidden}/history"),
        ("GET", f"/v1/images/{hidden}/export"), ("GET", f"/v1/images/save?name={hidden}"),
        ("GET", f"/v1/images/{hidden}/diff?from={hidden}"),
        ("GET", "/v1/volumes/v"), ("DELETE", "/v1/volumes/v"),
    ):  # fmt: skip
        assert bob(method, path)[0] == 404, path
    assert bob("POST", "/v1/sandboxes", {"image": hidden})[0] == 404
    for path in ("/v1/snapshots", "/v1/volumes", "/v1/images"):
        assert bob("GET", path) == (200, [])
    assert alice("POST", f"/v1/sandboxes/{box['id']}/commit", {})[0] == 403
    assert alice("POST", "/v1/sandboxes", {"image": "host", "mounts": [{"source": "/", "target": "/x"}]})[0] == 403
    status, lines = alice("POST", f"/v1/sandboxes/{box['id']}/fork", {"count": 2})
    assert status == 200 and isinstance(lines, bytes)
    assert {json.loads(line)["sandbox"]["owner"] for line in lines.splitlines()} == {box["owner"]}
    assert joey("volume", "ls", "-q") == "v\n" and "mine:1" in joey("snapshots")
    assert alice("DELETE", "/v1/volumes/v")[0] == 409


def test_an_engine_killed_in_the_middle_leaves_nothing_half(joey: Joey) -> None:
    joey(
        "run",
        "-d",
        "--name",
        "box",
        "-m",
        "512m",
        "host",
        "sh",
        "-c",
        "while :; do date +%s%N > /tick; sleep 0.01; done",
    )
    joey("exec", "box", "sh", "-c", "head -c 60M /dev/urandom > /big")
    for pause in (0.01, 0.06):
        call = Caller(joey, "")
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(call.path)
        connection.sendall(b"POST /v1/sandboxes/box/snapshot HTTP/1.1\r\nHost: joey\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.005 + pause)
        os.kill(int((joey.home / "run" / "daemon.lock").read_text()), signal.SIGKILL)
        connection.close()
        first = joey("exec", "box", "cat", "/tick")  # of an engine that took over
        deadline = time.monotonic() + 5
        while (now := joey("exec", "box", "cat", "/tick")) == first and time.monotonic() < deadline:
            pass
        assert now != first, "it stands still"
        for kind in ("layers", "blobs/sha256"):
            folder = joey.home / "images" / kind
            assert not folder.exists() or not [one for one in os.listdir(folder) if one.startswith(".new")]
    assert not list((joey.home / "run").glob("still-*"))
    name = joey("snapshot", "box").strip()
    assert joey("run", "--rm", name, "sh", "-c", "wc -c < /big") == f"{60 << 20}\n"
