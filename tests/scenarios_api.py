"""What the HTTP API promises: tests/unit/test_api_fake.py runs it against the fake engine, tests/e2e/test_api.py on the
real one.

Fixture `api`: an Api, speaking to a running engine.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from joey.client.transport import Connection, Problem
from joey.model import frames

LONG = ["sh", "-c", 'trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done']


class Stream:
    """The client's end of a stream of frames."""

    def __init__(self, sock: Any, rest: bytes, headers: dict[str, str]) -> None:
        self.sock = socket.socket(fileno=sock.detach()) if not isinstance(sock, socket.socket) else sock
        self.sock.settimeout(20)
        self.headers = headers
        self._decoder = frames.Decoder()
        self._data = rest

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.sock.sendall(frames.frame(kind, payload))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while self._data or (data := self.sock.recv(1 << 16)):
            data, self._data = self._data or data, b""
            for kind, payload, _ in self._decoder.pieces(data):
                yield kind, payload

    def rest(self) -> dict[int, bytes]:
        """Everything up to the end, payloads of a kind together."""
        found: dict[int, list[bytes]] = {}
        for kind, payload in self:
            found.setdefault(kind, []).append(payload)
        self.close()
        return {kind: b"".join(pieces) for kind, pieces in found.items()}

    def until(self, kind: int, text: bytes = b"") -> bytes:
        """Read until a payload of `kind` holds `text`."""
        for found, payload in self:
            if found == kind and text in payload:
                return payload
        raise AssertionError(f"the stream ended without {kind} {text!r}")

    def close(self) -> None:
        self.sock.close()


class Api:
    """A client of the socket at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._streams: list[Stream] = []

    def __call__(self, method: str, path: str, value: object = None) -> Any:
        with Connection.open(self.path) as connection:
            return connection.call(method, path, value)

    def fails(self, method: str, path: str, value: object = None) -> Problem:
        """The problem a request is answered with."""
        with pytest.raises(Problem) as caught:
            self(method, path, value)
        return caught.value

    def stream(self, path: str, value: object = None) -> Stream:
        connection = Connection.open(self.path)
        try:
            sock, headers, rest = connection.upgrade("POST", path, value)
        except BaseException:
            connection.close()
            raise
        self._streams.append(Stream(sock, rest, headers))
        return self._streams[-1]

    def raw(self, data: bytes) -> bytes:
        """Everything the server answers to `data`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(self.path)
            sock.sendall(data)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer

    def run(self, *argv: str, **process: object) -> Stream:
        return self.stream("/v1/sandboxes", {"image": "host", "process": {"argv": list(argv), **process}})

    def box(self, **spec: Any) -> str:
        """The id of a sandbox that runs until SIGTERM and has printed `ready`."""
        process = {"argv": LONG, **spec.pop("process", {})}
        made: str = self("POST", "/v1/sandboxes", {"image": "host", "process": process, **spec})["id"]
        self.until(lambda: b"ready" in self.logs(made))
        return made

    def logs(self, ref: str, query: str = "") -> bytes:
        with Connection.open(self.path) as connection:
            headers = "Accept: text/plain\r\n"
            return connection.request("GET", f"/v1/sandboxes/{ref}/logs{query}", headers=headers).body()  # type: ignore[no-any-return]

    def until(self, met: Callable[[], object], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.01)

    def clean(self) -> None:
        for stream in self._streams:
            stream.close()
        for box in self("GET", "/v1/sandboxes?all=true"):
            self("DELETE", f"/v1/sandboxes/{box['id']}?force=true")


# ---- requests and problems


def test_health_and_node(api: Api) -> None:
    assert api("GET", "/v1/health")["status"] == "ok"
    node = api("GET", "/v1/node")
    assert node["cpus"] >= 1 and {check["state"] for check in node["checks"]} <= {"ok", "limited", "missing"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "image"),
        ({"image": "host", "rootfs": "/x"}, "image"),
        ({"image": "host", "colour": 1}, "colour"),
        ({"image": "host", "process": {"argvv": []}}, "process.argvv"),
        ({"image": "host", "resources": {"memroy": 1}}, "resources.memroy"),
        ({"image": "host", "resources": {"memory": 1}}, "resources.memory"),
        ({"image": "host", "resources": {"memory": "1g"}}, "resources.memory"),
        ({"image": "host", "resources": []}, "resources"),
        ({"image": "host", "resources": {"cpus": 0}}, "resources.cpus"),
        ({"image": "host", "process": {"capabilities": ["FLY"]}}, "process.capabilities"),
        ({"image": "host", "seccomp": "lax"}, "seccomp"),
        ({"image": "host", "seccomp": {"defaultAction": "SCMP_ACT_NOPE"}}, "seccomp.defaultAction"),
        ({"image": "host", "start": "yes"}, "start"),
        ({"image": "host", "process": {"argv": ["a\0b"]}}, "process.argv[0]"),
        ([], "body"),
    ],
)
def test_bad_bodies_name_the_field(api: Api, body: object, field: str) -> None:
    problem = api.fails("POST", "/v1/sandboxes", body)
    assert (problem.status, problem.field) == (400, field)
    assert problem.document["type"] == "/problems/invalid" and problem.document["exit_code"] == 125
    assert api("GET", "/v1/sandboxes?all=true") == []


def test_problems_are_problem_documents(api: Api) -> None:
    for request, body, status in (
        (b"GET /v1/nowhere HTTP/1.1", b"", 404),
        (b"PUT /v1/sandboxes HTTP/1.1", b"", 405),
        (b"GET /v1/sandboxes/nosuch HTTP/1.1", b"", 404),
        (b"GET /v1/sandboxes?colour=red HTTP/1.1", b"", 400),
        (b"POST /v1/sandboxes HTTP/1.1\r\nContent-Length: 9999999", b"{", 413),
        (b"POST /v1/sandboxes HTTP/1.1\r\nContent-Length: 3", b"{,}", 400),
    ):
        answer = api.raw(request + b"\r\nHost: joey\r\nConnection: close\r\n\r\n" + body)
        head, _, text = answer.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert b"application/problem+json" in head, head
        document = json.loads(text)
        assert document["status"] == status and document["title"] and document["type"].startswith("/problems/")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sandboxes?all=maybe", "/v1/sandboxes?all=1&all=1", "/v1/sandboxes?state=asleep", "/v1/sandboxes?limit=-1",
        "/v1/sandboxes/x?force=1", "/v1/health?x=1", "/v1/sandboxes/x/logs?tail=-1", "/v1/sandboxes/x/logs?since=now",
        "/v1/node?verbose", "/v1/sandboxes?limit=%FF", "/v1/sandboxes/x%00y",
    ],
)  # fmt: skip
def test_bad_queries_are_refused(api: Api, path: str) -> None:
    assert api.fails("GET", path).status == 400


def test_logs_of_neither_stream_are_refused(api: Api) -> None:
    assert api.fails("GET", f"/v1/sandboxes/{api.box()}/logs?stdout=0&stderr=0").field == "stdout"


@pytest.mark.parametrize(
    "path", ["kill?signal=99", "kill?signal=NOPE", "stop?timeout=-1", "stop?timeout=nan", "rename"]
)
def test_bad_verbs_are_refused(api: Api, path: str) -> None:
    assert api.fails("POST", f"/v1/sandboxes/{api.box()}/{path}").status == 400


def test_a_request_that_is_not_http(api: Api) -> None:
    assert b" 400 " in api.raw(b"\x16\x03\x01 hello\r\n\r\n").splitlines()[0]


def test_defaults_stay_when_one_limit_is_given(api: Api) -> None:
    box = api.box(resources={"memory": 64 << 20})
    resources = api("GET", f"/v1/sandboxes/{box}")["spec"]["resources"]
    assert (resources["memory"], resources["cpus"], resources["pids"], resources["swap"]) == (64 << 20, 1.0, 256, 0)


def test_null_takes_a_limit_away(api: Api) -> None:
    made = api("POST", "/v1/sandboxes", {"image": "host", "start": False, "resources": {"memory": None, "pids": None}})
    resources = api("GET", f"/v1/sandboxes/{made['id']}")["spec"]["resources"]
    assert (resources["memory"], resources["pids"], resources["swap"], resources["cpus"]) == (None, None, None, 1.0)


def test_references(api: Api) -> None:
    one = api.box(name="first")
    two = api.box(name="second")
    for ref in (one, one[:12], "first"):
        assert api("GET", f"/v1/sandboxes/{ref}")["sandbox"]["id"] == one
    assert api("GET", "/v1/sandboxes/second")["sandbox"]["id"] == two
    assert api.fails("GET", "/v1/sandboxes/zz").status == 404
    assert api.fails("GET", "/v1/sandboxes/%2e%2e").status == 404


def test_life(api: Api) -> None:
    made = api("POST", "/v1/sandboxes", {"image": "host", "start": False, "process": {"argv": LONG}})
    ref = f"/v1/sandboxes/{made['id']}"
    assert made["state"] == "created" and made["exit"] is None
    assert api("POST", f"{ref}/start")["state"] == "running"
    assert api.fails("POST", f"{ref}/start").status == 409
    assert api.fails("DELETE", ref).status == 409
    assert api("POST", f"{ref}/pause")["state"] == "paused"
    assert api("POST", f"{ref}/resume")["state"] == "running"
    api.until(lambda: b"ready" in api.logs(made["id"]))
    stopped = api("POST", f"{ref}/stop?timeout=5")
    assert stopped["state"] == "exited" and stopped["exit"]["code"] == 7 and stopped["pid"] is None
    assert api("POST", f"{ref}/wait")["code"] == 7
    assert api.fails("POST", f"{ref}/kill").status == 409
    assert api("DELETE", ref) is None
    assert api.fails("GET", ref).status == 404


def test_wait_is_given_up_when_the_client_leaves(api: Api) -> None:
    box = api.box()
    before = api("GET", "/v1/health")
    socks = []
    for _ in range(20):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(api.path)
        sock.sendall(f"POST /v1/sandboxes/{box}/wait HTTP/1.1\r\nHost: j\r\nContent-Length: 0\r\n\r\n".encode())
        socks.append(sock)
    for sock in socks:
        sock.close()
    assert api("GET", "/v1/health") == before
    assert api("POST", f"/v1/sandboxes/{box}/stop")["exit"]["code"] == 7


# ---- streams


def test_run_streams(api: Api) -> None:
    stream = api.run("sh", "-c", "echo out; echo err >&2; exit 3")
    box = stream.headers["joey-sandbox"]
    found = stream.rest()
    assert (found[frames.STDOUT], found[frames.STDERR]) == (b"out\n", b"err\n")
    end = json.loads(found[frames.EXIT])
    assert end["code"] == 3 and end["signal"] == 0 and end["oom"] is False
    assert api("GET", f"/v1/sandboxes/{box}")["sandbox"]["exit"]["code"] == 3


def test_a_launch_that_fails_is_a_problem_and_leaves_nothing(api: Api) -> None:
    with pytest.raises(Problem) as caught:
        api.run("no-such-program")
    assert caught.value.exit_code == 127 and caught.value.status == 422
    assert api("GET", "/v1/sandboxes?all=true") == []


def test_input_and_its_end(api: Api) -> None:
    stream = api.run("cat", stdin=True)
    stream.send(frames.STDIN, b"one ")
    stream.until(frames.STDOUT, b"one ")
    stream.send(frames.STDIN, b"two")
    stream.send(frames.STDIN_EOF)
    found = stream.rest()
    assert found[frames.STDOUT] == b"two" and json.loads(found[frames.EXIT])["code"] == 0


def test_credit_is_given_for_what_the_program_took(api: Api) -> None:
    stream = api.run("cat", stdin=True)
    stream.send(frames.STDIN, b"x" * 1000)
    credit = output = 0
    for kind, payload in stream:
        credit += int.from_bytes(payload, "big") if kind == frames.CREDIT else 0
        output += len(payload) if kind == frames.STDOUT else 0
        if credit == output == 1000:
            break
    stream.send(frames.STDIN_EOF)
    assert json.loads(stream.rest()[frames.EXIT])["code"] == 0


def test_signals_overtake_input_nobody_reads(api: Api) -> None:
    stream = api.run(*LONG, stdin=True)
    stream.until(frames.STDOUT, b"ready")
    stream.send(frames.STDIN, b"x" * frames.WINDOW)
    stream.send(frames.SIGNAL, (15).to_bytes(4, "big"))
    assert json.loads(stream.rest()[frames.EXIT])["code"] == 7


def test_a_client_that_breaks_the_window_only_harms_itself(api: Api) -> None:
    stream = api.run(*LONG, stdin=True)
    stream.until(frames.STDOUT, b"ready")
    stream.sock.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 64 << 20:
            sent += stream.sock.send(frames.frame(frames.STDIN, b"x" * 65536))
    assert sent < 8 << 20, "the server took in what it could not pass on"
    stream.close()


def test_a_slow_reader_makes_the_program_wait(api: Api) -> None:
    stream = api.run("sh", "-c", "head -c 50000000 /dev/zero; echo done >&2")
    box = stream.headers["joey-sandbox"]
    time.sleep(0.3)  # nobody reads; whatever fits into buffers has been written by now
    assert api("GET", f"/v1/sandboxes/{box}")["sandbox"]["state"] == "running"
    found = stream.rest()
    assert len(found[frames.STDOUT]) == 50_000_000 and found[frames.STDERR] == b"done\n"


def test_a_client_that_leaves_costs_nothing(api: Api) -> None:
    stream = api.run("sh", "-c", "yes & echo ready; sleep 100")
    box = stream.headers["joey-sandbox"]
    stream.until(frames.STDOUT)
    stream.close()
    assert api("GET", f"/v1/sandboxes/{box}")["sandbox"]["state"] == "running"
    api("POST", f"/v1/sandboxes/{box}/kill")
    assert api("POST", f"/v1/sandboxes/{box}/wait")["code"] == 137


@pytest.mark.parametrize(
    "data",
    [
        b"\x09" + bytes(7),
        b"\x04\x00\x00\x00\x00\x00\x00\x01x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x00\xff\xff\xff\xff",
    ],
)
def test_nonsense_on_a_stream(api: Api, data: bytes) -> None:
    stream = api.run(*LONG)
    stream.until(frames.STDOUT, b"ready")
    stream.sock.sendall(data)
    found = stream.rest()
    assert json.loads(found[frames.ERROR])["status"] == 400
    assert frames.EXIT not in found


def test_attach(api: Api) -> None:
    box = api.box(process={"argv": ["sh", "-c", "echo ready; read x; echo got:$x; exit 5"], "stdin": True})
    one, two = api.stream(f"/v1/sandboxes/{box}/attach"), api.stream(f"/v1/sandboxes/{box}/attach")
    one.send(frames.STDIN, b"line\n")
    for stream in (one, two):
        found = stream.rest()
        assert found[frames.STDOUT] == b"got:line\n" and json.loads(found[frames.EXIT])["code"] == 5
    with pytest.raises(Problem) as caught:
        api.stream(f"/v1/sandboxes/{box}/attach")
    assert caught.value.status == 409


def test_terminal(api: Api) -> None:
    stream = api.run("sh", "-c", "stty size; read x; stty size", tty=True, stdin=True, rows=10, cols=20)
    stream.until(frames.STDOUT, b"10 20")
    stream.send(frames.RESIZE, b"\x00\x1e\x00\x28")
    stream.send(frames.STDIN, b"\n")
    assert b"30 40" in stream.rest()[frames.STDOUT]


def test_exec(api: Api) -> None:
    box = api.box(process={"env": {"A": "1"}, "cwd": "/usr"})
    path = f"/v1/sandboxes/{box}/processes"
    body = {"argv": ["sh", "-c", "echo $A$B; pwd; echo e >&2; exit 4"], "env": {"B": "2"}}
    found = api.stream(path, body).rest()
    assert (found[frames.STDOUT], found[frames.STDERR]) == (b"12\n/usr\n", b"e\n")
    assert json.loads(found[frames.EXIT])["code"] == 4
    assert api("POST", path, {"argv": ["sleep", "100"], "detach": True})["pid"] > 0
    assert api("POST", path, {"argv": ["true"]})["pid"] > 0
    assert api.fails("POST", path, {"argv": [], "detach": True}).field == "argv"
    assert api.fails("POST", path, {"argv": ["true"], "detach": True, "colour": 1}).field == "colour"
    with pytest.raises(Problem) as caught:
        api.stream(path, {"argv": ["no-such-program"]})
    assert caught.value.exit_code == 127


def test_exec_ends_before_the_sandbox(api: Api) -> None:
    """Each has its own output and end."""
    box = api.box()
    streams = [
        api.stream(f"/v1/sandboxes/{box}/processes", {"argv": ["sh", "-c", f"echo {n}; exit {n}"]}) for n in range(8)
    ]
    for n, stream in enumerate(streams):
        found = stream.rest()
        assert (found[frames.STDOUT], json.loads(found[frames.EXIT])["code"]) == (f"{n}\n".encode(), n)


def test_signal_to_exec(api: Api) -> None:
    stream = api.stream(f"/v1/sandboxes/{api.box()}/processes", {"argv": LONG})
    stream.until(frames.STDOUT, b"ready")
    stream.send(frames.SIGNAL, (15).to_bytes(4, "big"))
    assert json.loads(stream.rest()[frames.EXIT])["code"] == 7


def test_logs_as_frames_and_as_text(api: Api) -> None:
    stream = api.run("sh", "-c", "echo out; sleep 0.05; echo err >&2; sleep 0.05; printf last")
    box = stream.headers["joey-sandbox"]
    stream.rest()
    with Connection.open(api.path) as connection:
        response = connection.request("GET", f"/v1/sandboxes/{box}/logs")
        assert response.headers["content-type"] == frames.MEDIA_TYPE
        pieces = [piece for data in response.stream() for piece in frames.Decoder().pieces(data)]
        assert b"".join(p for kind, p, _ in pieces if kind == 1) == b"out\nlast"
        assert b"".join(p for kind, p, _ in pieces if kind == 2) == b"err\n"
    assert api.logs(box) == b"out\nerr\nlast"
    assert api.logs(box, "?stderr=false&tail=1") == b"last"
    lines = api.logs(box, "?timestamps=true").splitlines()
    assert [line.split(b"Z ")[1] for line in lines] == [b"out", b"err", b"last"]
    assert api.fails("GET", "/v1/sandboxes/nosuch/logs").status == 404


def test_logs_follow_until_the_client_leaves(api: Api) -> None:
    box = api.box()
    with Connection.open(api.path) as connection:
        pieces = connection.request("GET", f"/v1/sandboxes/{box}/logs?follow=true").stream()
        assert b"ready" in next(pieces)
    assert api("POST", f"/v1/sandboxes/{box}/stop")["exit"]["code"] == 7


def test_many_at_once(api: Api) -> None:
    streams = [api.run("sh", "-c", f"echo {n}") for n in range(16)]
    waiting = {stream.sock: n for n, stream in enumerate(streams)}
    assert select.select(list(waiting), [], [], 10)[0]
    assert [stream.rest()[frames.STDOUT] for stream in streams] == [f"{n}\n".encode() for n in range(16)]


def test_list_filters(api: Api) -> None:
    one = api.box(name="alpha", labels={"k": "1"})
    two = api.box(name="beta", labels={"k": "2"})
    three = api("POST", "/v1/sandboxes", {"image": "host", "name": "gamma", "start": False})["id"]

    def ids(query: str) -> list[str]:
        return [row["id"] for row in api("GET", f"/v1/sandboxes{query}")]

    assert ids("") == [two, one] and ids("?all=true") == [three, two, one]
    assert ids("?all=true&limit=1") == [three]
    assert ids("?label=k%3D1") == [one] and ids("?label=k") == [two, one] and ids("?label=k%3D3") == []
    assert ids("?name=et") == [two] and ids("?state=created") == [three]
    assert ids(f"?id={one[:8]}&id={two[:8]}") == [two, one]
    assert ids("?image=nosuch") == []


def test_explain_and_stats_and_disk(api: Api) -> None:
    assert "exec" in api("POST", "/v1/explain", {"image": "host", "process": {"argv": ["true"]}})["plan"].lower()
    assert api("GET", "/v1/sandboxes?all=true") == []
    box = api.box()
    (found,) = api("GET", "/v1/stats")
    assert found["id"] == box == api("GET", f"/v1/sandboxes/{box}/stats")["id"] and found["usage"]["cpu_ns"] > 0
    assert api("GET", f"/v1/stats?id={box}")[0]["usage"]["memory_current"] > 0
    assert {row["kind"] for row in api("GET", "/v1/disk")}


def test_files_come_with_the_create(api: Api) -> None:
    files = {"/tmp/new/a": "aGVsbG8=", "/tmp/empty": ""}
    made = api("POST", "/v1/sandboxes", {"image": "host", "process": {"argv": LONG}, "files": files})
    for path, content in (("/tmp/new/a", b"hello"), ("/tmp/empty", b"")):
        with Connection.open(api.path) as connection:
            found = connection.request("GET", f"/v1/sandboxes/{made['id']}/files?path={path}").body()
        assert found == content
    before = len(api("GET", "/v1/sandboxes?all=1"))
    body = {"image": "host", "process": {"argv": LONG}, "files": {"/etc": "aGVsbG8="}}
    assert api.fails("POST", "/v1/sandboxes", body).field == "path"
    assert len(api("GET", "/v1/sandboxes?all=1")) == before, "a sandbox without its files was left"


def test_many_at_once_and_what_happened_to_them(api: Api) -> None:
    spec = {"image": "host", "process": {"argv": ["true"]}, "labels": {"batch": "1"}}
    with Connection.open(api.path) as connection:
        lines = connection.request("POST", "/v1/sandboxes/batch", {"count": 5, "spec": spec}).body().splitlines()
    made = {json.loads(line)["sandbox"]["id"] for line in lines}
    assert len(made) == 5
    for one in made:
        assert api("POST", f"/v1/sandboxes/{one}/wait")["code"] == 0

    def events() -> list[Any]:
        with Connection.open(api.path) as connection:
            body = connection.request("GET", "/v1/events?after=0&label=batch=1&type=sandbox.exited").body()
        return [json.loads(line) for line in body.splitlines()]

    api.until(lambda: {event["sandbox"] for event in events()} >= made)
    assert [event["id"] for event in events()] == sorted(event["id"] for event in events())


def test_limits_and_labels_change_while_it_runs(api: Api) -> None:
    box = api.box(labels={"a": "1", "b": "2"})
    changed = api("PATCH", f"/v1/sandboxes/{box}", {"resources": {"pids": 77}, "labels": {"a": None, "c": "3"}})
    assert changed["labels"] == {"b": "2", "c": "3"}
    assert api("GET", f"/v1/sandboxes/{box}")["spec"]["resources"]["pids"] == 77
    assert api.fails("PATCH", f"/v1/sandboxes/{box}", {"resources": {"pids": -5}}).status == 400
    assert api.fails("PATCH", f"/v1/sandboxes/{box}", {"colour": 1}).field == "colour"


def test_private_networks(api: Api) -> None:
    made = api("POST", "/v1/networks", {"name": "backend", "labels": {"team": "a"}})
    assert (made["name"], made["internal"], made["labels"], made["members"]) == ("backend", False, {"team": "a"}, [])
    assert api.fails("POST", "/v1/networks", {"name": "backend"}).status == 409
    for wrong in ({"name": "host"}, {"name": ""}, {"name": "a/b"}, {"name": "x", "colour": 1}, {}):
        assert api.fails("POST", "/v1/networks", wrong).status == 400, wrong
    member = {"image": "host", "network": "backend", "start": False, "name": "member"}
    api("POST", "/v1/sandboxes", member)
    assert [one["name"] for one in api("GET", "/v1/networks/backend")["members"]] == ["member"]
    assert [one["name"] for one in api("GET", "/v1/networks")] == ["backend"]
    api("DELETE", "/v1/sandboxes/member")
    api("DELETE", "/v1/networks/backend")
    assert api.fails("GET", "/v1/networks/backend").status == 404
    assert api.fails("POST", "/v1/sandboxes", {"image": "host", "network": "no network"}).field == "network"


def test_a_policy_is_part_of_the_specification(api: Api) -> None:
    rule = {"action": "allow", "cidr": "10.1.0.0/16", "protocol": "tcp", "ports": "80-90"}
    network = {"mode": "nat", "policy": {"internet": False, "rules": [rule]}, "ports": [{"container": 80}]}
    box = api("POST", "/v1/sandboxes", {"image": "host", "network": network, "start": False})
    assert (box["network"], box["address"], box["ports"]) == ("nat", "", [])
    path = f"/v1/sandboxes/{box['id']}"
    policy = api("GET", path)["spec"]["network"]["policy"]
    assert policy["internet"] is False and policy["rules"][0]["ports"] == "80-90"
    api("PATCH", path, {"network": {"internet": True, "connections": 7}})
    policy = api("GET", path)["spec"]["network"]["policy"]
    assert (policy["internet"], policy["connections"], len(policy["rules"])) == (True, 7, 1)
    assert api.fails("PATCH", path, {"network": {"rules": [{"action": "permit"}]}}).field == "network.rules[0].action"
    api("DELETE", path)
    wrong = {"mode": "none", "ports": [{"container": 80}]}
    assert api.fails("POST", "/v1/sandboxes", {"image": "host", "network": wrong}).field == "network.ports"
