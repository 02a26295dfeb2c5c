"""What every request goes through: keys, owners, limits of size and time, idempotency; and lists, batches, events."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joey.api.auth import Access, KeyBody
from joey.api.config import Settings
from joey.api.database import Database
from joey.api.idempotency import Idempotency, KeyReused
from joey.client.transport import Connection, Problem
from joey.engine.interface import Filter
from joey.model.errors import Conflict
from joey.model.spec import Process, SandboxSpec
from joey.testing.engine import FakeEngine
from joey.testing.serving import Served, serving

SLEEP = {"image": "host", "process": {"argv": ["sleep", "100"]}}


Answer = tuple[int, dict[str, str], bytes]


class Client:
    """Calls with a key."""

    def __init__(self, path: str, key: str = "") -> None:
        self.path = path
        self.headers = f"Authorization: Bearer {key}\r\n" if key else ""

    def request(
        self, method: str, path: str, value: object = None, headers: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        with Connection.open(self.path) as connection:
            answer = connection.request(method, path, value, self.headers + headers)
            return answer.status, answer.headers, answer.body()

    def __call__(self, method: str, path: str, value: object = None) -> Any:
        with Connection.open(self.path) as connection:
            return connection.request(method, path, value, self.headers).json()

    def fails(self, method: str, path: str, value: object = None, headers: str = "") -> Problem:
        with pytest.raises(Problem) as caught:
            self.request(method, path, value, headers)
        return caught.value


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("api"), settings=Settings(body_timeout=0.3, header_timeout=0.5)) as server:
        yield server


@pytest.fixture
def admin(served: Served) -> Iterator[Client]:
    client = Client(served.path)
    yield client
    for box in client("GET", "/v1/sandboxes?all=1"):
        client("DELETE", f"/v1/sandboxes/{box['id']}?force=1")


def raw(path: str, *pieces: bytes, pause: float = 0.0) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        for piece in pieces:
            sock.sendall(piece)
            threading.Event().wait(pause)
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer


# ---- keys


@pytest.mark.parametrize(
    "header", ["Authorization: Bearer joey_00\r\n", "Authorization: Basic eA==\r\n", "X-API-Key: \r\n"]
)
def test_a_wrong_key_is_refused_even_on_the_unix_socket(admin: Client, header: str) -> None:
    head = f"GET /v1/sandboxes HTTP/1.1\r\nHost: j\r\n{header}Connection: close\r\n\r\n".encode()
    answer = raw(admin.path, head)
    assert answer.startswith(b"HTTP/1.1 401 ") and b'\r\nWWW-Authenticate: Bearer realm="joey"\r\n' in answer
    assert b"application/problem+json" in answer


def test_a_key_sees_its_own_sandboxes_only(admin: Client) -> None:
    made = [admin("POST", "/v1/keys", {"name": name}) for name in ("first", "second")]
    first, second = (Client(admin.path, key["key"]) for key in made)
    mine = first("POST", "/v1/sandboxes", {**SLEEP, "name": "box"})
    other = second("POST", "/v1/sandboxes", {**SLEEP, "name": "box"})
    assert mine["owner"] == made[0]["id"] != other["owner"]
    assert [box["id"] for box in first("GET", "/v1/sandboxes")] == [mine["id"]]
    assert [box["id"] for box in first("GET", "/v1/stats")] == [mine["id"]]
    assert first("GET", "/v1/sandboxes/box")["sandbox"]["id"] == mine["id"]
    routes = [route for route in served_table() if "{ref}" in route.path and not (route.query or route.admin)]
    paths = [(route.method, route.path) for route in routes]
    assert len(paths) > 5
    for method, path in paths:
        problem = first.fails(method, path.replace("{ref}", other["id"]).replace("{id}", "1"))
        assert (problem.status, problem.document["type"]) == (404, "/problems/not-found"), path
    assert first.fails("GET", f"/v1/stats?id={other['id']}").status == 404
    assert {box["id"] for box in admin("GET", "/v1/sandboxes")} == {mine["id"], other["id"]}
    for key in made:
        admin("DELETE", f"/v1/keys/{key['id']}")
    assert first.fails("GET", "/v1/sandboxes").status == 401


def served_table() -> Any:
    from joey.api.table import table

    return table()


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("mounts", {"mounts": [{"source": "/etc", "target": "/x"}]}),
        ("rootfs", {"image": "", "rootfs": "/"}),
        ("devices", {"devices": [{"path": "/dev/kvm"}]}),
        ("network", {"network": "host"}),
        ("network", {"network": {"mode": "host"}}),
        ("network.ports[0].host", {"network": {"mode": "nat", "ports": [{"container": 80, "host": 80}]}}),
        ("network.dns[0]", {"network": {"mode": "nat", "dns": ["192.168.1.1"]}}),
        (
            "network.policy.rules[1].cidr",
            {
                "network": {
                    "mode": "nat",
                    "policy": {
                        "rules": [
                            {"action": "deny", "cidr": "10.0.0.0/8"},
                            {"action": "allow", "cidr": "169.254.169.254"},
                        ]
                    },
                }
            },
        ),
        ("seccomp", {"seccomp": "unconfined"}),
        ("oom_score_adj", {"oom_score_adj": -1}),
        ("masked_paths", {"masked_paths": []}),
        ("resources.pids", {"resources": {"pids": None}}),
        ("process.capabilities", {"process": {"argv": ["true"], "capabilities": ["CAP_SYS_ADMIN"]}}),
        ("process.no_new_privileges", {"process": {"argv": ["true"], "no_new_privileges": False}}),
    ],
)
def test_a_key_reaches_nothing_of_the_host(admin: Client, field: str, spec: dict[str, Any]) -> None:
    key = admin("POST", "/v1/keys")
    tenant = Client(admin.path, key["key"])
    problem = tenant.fails("POST", "/v1/sandboxes", {**SLEEP, **spec})
    assert (problem.status, problem.field) == (403, field)
    batch = tenant.fails("POST", "/v1/sandboxes/batch", {"specs": [SLEEP, {**SLEEP, **spec}]})
    assert (batch.status, batch.field) == (403, f"specs[1].{field}")
    admin("DELETE", f"/v1/keys/{key['id']}")


def test_a_key_gains_nothing_later(admin: Client) -> None:
    key = admin("POST", "/v1/keys", {"name": "later too"})
    tenant = Client(admin.path, key["key"])
    box = tenant("POST", "/v1/sandboxes", SLEEP)["id"]
    more = {"argv": ["true"], "capabilities": ["CAP_SYS_ADMIN"]}
    for path, field in (("processes", "capabilities"), ("run", "capabilities")):
        problem = tenant.fails("POST", f"/v1/sandboxes/{box}/{path}", more)
        assert (problem.status, problem.field) == (403, field)
    problem = tenant.fails("PATCH", f"/v1/sandboxes/{box}", {"resources": {"pids": None}})
    assert (problem.status, problem.field) == (403, "resources.pids")
    pool = {"spec": {"image": "host", "network": "host"}}
    assert tenant.fails("PUT", "/v1/pools/p", pool).field == "spec.network"
    tenant.request("DELETE", f"/v1/sandboxes/{box}?force=true")
    admin("DELETE", f"/v1/keys/{key['id']}")


def test_a_key_opens_no_protected_range_later_either(admin: Client) -> None:
    tenant = Client(admin.path, admin("POST", "/v1/keys", {"name": "later"})["key"])
    box = tenant("POST", "/v1/sandboxes", {**SLEEP, "network": "nat"})
    opened = {"network": {"internet": False, "rules": [{"action": "deny", "domain": "a.example"},
                                                       {"action": "allow", "cidr": "10.0.0.0/8"}]}}  # fmt: skip
    problem = tenant.fails("PATCH", f"/v1/sandboxes/{box['id']}", opened)
    assert (problem.status, problem.field) == (403, "network.rules[1].cidr")
    admin("PATCH", f"/v1/sandboxes/{box['id']}", opened)
    tenant("DELETE", f"/v1/sandboxes/{box['id']}?force=true")
    admin("DELETE", "/v1/keys/later")


def test_private_networks_of_a_key_are_its_own(admin: Client) -> None:
    tenant = Client(admin.path, admin("POST", "/v1/keys", {"name": "net"})["key"])
    admin("POST", "/v1/networks", {"name": "back"})
    assert tenant("GET", "/v1/networks") == [] and tenant.fails("GET", "/v1/networks/back").status == 404
    assert tenant.fails("DELETE", "/v1/networks/back").status == 404
    tenant("POST", "/v1/networks", {"name": "back", "internal": True})
    assert [one["internal"] for one in tenant("GET", "/v1/networks")] == [True]
    assert len(admin("GET", "/v1/networks")) == 2
    tenant("DELETE", "/v1/networks/back")
    admin("DELETE", "/v1/networks/back")
    admin("DELETE", "/v1/keys/net")


def test_what_is_the_administrators(admin: Client) -> None:
    tenant = Client(admin.path, admin("POST", "/v1/keys", {"name": "t"})["key"])
    chief = Client(admin.path, admin("POST", "/v1/keys", {"name": "c", "admin": True})["key"])
    for route in served_table():
        if route.admin and not route.variables:
            assert tenant.fails(route.method, route.path).status == 403, route.path
    assert {key["name"] for key in chief("GET", "/v1/keys")} == {"t", "c"}
    assert all("key" not in key for key in chief("GET", "/v1/keys"))
    for name in "tc":
        admin("DELETE", f"/v1/keys/{name}")
    assert admin.fails("DELETE", "/v1/keys/t").status == 404


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    database = Database(tmp_path / "api.db")
    made = Access(database).create(KeyBody(name="x"))
    assert (tmp_path / "api.db").stat().st_mode & 0o777 == 0o600
    database.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert made.key.encode() not in files and made.key[5:].encode() not in files
    again = Database(tmp_path / "api.db")
    access = Access(again)
    found = access.find(made.key)
    assert found is not None and found.id == made.id and access.find(made.key + "0") is None
    again.close()


# ---- idempotency


def test_a_create_sent_again_has_the_first_answer(admin: Client) -> None:
    first = admin.request("POST", "/v1/sandboxes", SLEEP, "Idempotency-Key: one\r\n")
    again = admin.request("POST", "/v1/sandboxes", SLEEP, "Idempotency-Key: one\r\n")
    assert (
        first[2] == again[2] and again[1]["idempotency-replayed"] == "true" and "idempotency-replayed" not in first[1]
    )
    assert admin.fails("POST", "/v1/sandboxes", {**SLEEP, "name": "b"}, "Idempotency-Key: one\r\n").status == 422
    assert len(admin("GET", "/v1/sandboxes")) == 1


def test_what_failed_may_be_tried_again(admin: Client) -> None:
    body = {**SLEEP, "name": "held"}
    holder = admin("POST", "/v1/sandboxes", body)
    assert admin.fails("POST", "/v1/sandboxes", body, "Idempotency-Key: two\r\n").status == 409
    admin("DELETE", f"/v1/sandboxes/{holder['id']}?force=1")
    assert admin.request("POST", "/v1/sandboxes", body, "Idempotency-Key: two\r\n")[0] == 201


def test_idempotency_survives_a_restart_and_duplicates_wait(tmp_path: Path) -> None:
    done = []

    async def work() -> tuple[int, bytes]:
        await asyncio.sleep(0)
        done.append(1)
        return 201, b"{}"

    async def broken() -> tuple[int, bytes]:
        raise ZeroDivisionError

    async def main() -> None:
        database = Database(tmp_path / "api.db")
        kept = Idempotency(database)
        answers = await asyncio.gather(*(kept.answer("", "k", b"x", work) for _ in range(5)))
        assert [answer[2] for answer in answers] == [False, True, True, True, True] and done == [1]
        with pytest.raises(ZeroDivisionError):
            await kept.answer("", "bad", b"x", broken)
        assert (await kept.answer("other", "k", b"y", work))[2] is False
        await kept._begin(("", "lost"), b"")  # the engine was killed while it worked on this one
        database.close()
        again = Idempotency(Database(tmp_path / "api.db"))
        assert await again.answer("", "k", b"x", work) == (201, b"{}", True)
        assert await again.answer("", "bad", b"x", work) == (201, b"{}", False)
        with pytest.raises(KeyReused):
            await again.answer("", "k", b"z", work)
        with pytest.raises(Conflict, match="not known"):
            await again.answer("", "lost", b"", work)
        again._database.close()

    asyncio.run(main())
    assert len(done) == 3


def test_a_client_that_leaves_finds_its_sandbox_by_the_key(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        begun = threading.Event()

        async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "") -> Any:
            self.begun.set()
            await asyncio.sleep(0.1)
            return await super().run(spec, attach=attach, owner=owner)

    engine = Slow()
    with serving(tmp_path, lambda: engine) as server:
        body = b'{"image":"host","process":{"argv":["sleep","100"]}}'
        head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: j\r\nIdempotency-Key: k\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.path)
            sock.sendall(head.encode() + body)
            assert engine.begun.wait(5)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.path)
            sock.sendall(head.encode() + body)
            assert b"Idempotency-Replayed: true" in sock.recv(65536)
        assert len(server.call(engine.list(Filter(all=True)))) == 1


# ---- sizes and times


def test_oversize_bodies_and_heads(admin: Client) -> None:
    head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: j\r\nConnection: close\r\n"
    assert b" 413 " in raw(admin.path, head + b"Content-Length: 999999999\r\n\r\n")[:20]
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    try:
        answer = raw(admin.path, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 8)
        assert b" 413 " in answer[:20]
    except ConnectionError:
        pass  # refused while it was still sending
    assert b" 400 " in raw(admin.path, head + b"X: " + b"a" * 20000 + b"\r\n\r\n")[:20]
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(200))
    answer = raw(admin.path, head + many + b"\r\n")
    assert b" 400 " in answer[:20] and b"application/problem+json" in answer
    assert admin("GET", "/v1/health")["status"] == "ok"


def test_slow_clients_are_let_go(admin: Client) -> None:
    begun = time.monotonic()
    assert raw(admin.path, b"GET /v1/health HTTP/1.1\r\nX-") == b""
    body = raw(
        admin.path, b"POST /v1/sandboxes HTTP/1.1\r\nHost: j\r\nContent-Length: 100\r\n\r\n", b"{", b" ", pause=0.1
    )
    assert body.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in body
    assert time.monotonic() - begun < 5


def test_more_requests_than_may_be_in_flight_are_told_to_come_back(tmp_path: Path) -> None:
    class Stuck(FakeEngine):
        entered = threading.Event()

        async def node(self) -> Any:
            self.entered.set()
            await asyncio.Event().wait()

    engine = Stuck()
    with serving(tmp_path, lambda: engine, settings=Settings(max_requests=1)) as server:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.path)
            sock.sendall(b"GET /v1/node HTTP/1.1\r\nHost: j\r\n\r\n")
            assert engine.entered.wait(5)
            problem = Client(server.path).fails("GET", "/v1/sandboxes")
            assert (problem.status, problem.document["type"]) == (503, "/problems/busy")
            assert Client(server.path)("GET", "/v1/health")["status"] == "ok"
            assert Client(server.path).fails("GET", "/v1/health?ready").status == 503
        assert Client(server.path).fails("GET", "/v1/nothing").status == 404
        for _ in range(200):  # the one that left makes room
            try:
                assert Client(server.path)("GET", "/v1/sandboxes") == []
                break
            except Problem:
                time.sleep(0.01)
        else:
            pytest.fail("a client that left still counts")


def test_one_key_does_not_take_all_the_room(tmp_path: Path) -> None:
    with serving(tmp_path, settings=Settings(max_requests_per_key=1)) as server:
        admin = Client(server.path)
        first, second = (Client(server.path, admin("POST", "/v1/keys", {"name": name})["key"]) for name in "ab")
        box = first("POST", "/v1/sandboxes", SLEEP)["id"]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.path)
            head = f"GET /v1/sandboxes/{box}/logs?follow=1 HTTP/1.1\r\nHost: j\r\n{first.headers}\r\n"
            sock.sendall(head.encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
            assert first.fails("GET", "/v1/node").status == 429
            assert second("GET", "/v1/sandboxes") == []
        for _ in range(300):
            with contextlib.suppress(Problem):
                assert [one["id"] for one in first("GET", "/v1/sandboxes")] == [box]
                return
            time.sleep(0.01)
        pytest.fail("a stream whose client left still counts")


@pytest.mark.parametrize("leave", ["close", "half-close", "reset"])
def test_clients_that_leave_in_the_middle_cost_nothing(admin: Client, served: Served, leave: str) -> None:
    box = admin("POST", "/v1/sandboxes", SLEEP)["id"]

    async def cost() -> tuple[int, int]:
        service_tasks = [task for task in asyncio.all_tasks() if "handle" in repr(task.get_coro())]
        return len(service_tasks), len(os.listdir("/proc/self/fd"))

    def settled(wanted: tuple[int, int]) -> bool:
        for _ in range(300):
            tasks, fds = served.call(cost())
            if tasks <= wanted[0] and fds <= wanted[1]:
                return True
            time.sleep(0.01)
        return False

    before = served.call(cost())
    for path in (f"/v1/sandboxes/{box}/logs?follow=1", f"/v1/sandboxes/{box}/wait", "/v1/events?follow=1"):
        if "events" in path and not hasattr(FakeEngine, "events"):
            continue
        method = "POST" if path.endswith("wait") else "GET"
        socks = []
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(served.path)
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: j\r\n\r\n".encode())
            socks.append(sock)
        if method == "GET":
            assert socks[-1].recv(12) == b"HTTP/1.1 200"
        for sock in socks:
            if leave == "half-close":
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            elif leave == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        assert settled(before), path


@pytest.mark.parametrize("path", ["/%0A", "/v1/sandboxes/%0a", "/v1/%2e%2e/v1/health", "/v1/../v1/health", "/\xff"])
def test_odd_paths_are_problems_too(admin: Client, path: str) -> None:
    answer = raw(admin.path, f"GET {path} HTTP/1.1\r\nHost: j\r\nConnection: close\r\n\r\n".encode())
    assert answer.split()[1] in (b"404", b"400") and b"application/problem+json" in answer


# ---- lists, batches, files, metrics


def test_a_batch_answers_each_as_it_is_ready(admin: Client) -> None:
    specs = [SLEEP, {**SLEEP, "name": "x"}, {**SLEEP, "name": "x"}]
    lines = [
        json.loads(line) for line in admin.request("POST", "/v1/sandboxes/batch", {"specs": specs})[2].splitlines()
    ]
    assert sorted(line["index"] for line in lines) == [0, 1, 2]
    assert [line["error"]["status"] for line in lines if "error" in line] == [409]
    many = admin.request("POST", "/v1/sandboxes/batch", {"count": 30, "spec": {**SLEEP, "start": False}})[2]
    assert many.count(b"\n") == 30 and many.count(b'"created"') >= 30
    assert len(admin("GET", "/v1/sandboxes?all=1")) == 32


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "count"), ({"count": 0, "spec": SLEEP}, "count"), ({"count": True, "spec": SLEEP}, "count"),
        ({"count": 2}, "spec"), ({"count": 2, "spec": {**SLEEP, "name": "x"}}, "spec.name"),
        ({"specs": []}, "specs"), ({"specs": [1]}, "specs"),
        ({"specs": [SLEEP], "count": 1}, "specs"), ({"count": 10001, "spec": SLEEP}, "count"), ({"x": 1}, "x"),
        ({"specs": [{**SLEEP, "nme": "x"}]}, "specs[0].nme"),
    ],
)  # fmt: skip
def test_a_wrong_batch_makes_nothing(admin: Client, body: dict[str, Any], field: str) -> None:
    problem = admin.fails("POST", "/v1/sandboxes/batch", body)
    assert (problem.status, problem.field) == (400, field)
    assert admin("GET", "/v1/sandboxes?all=1") == []


def test_a_batch_whose_client_leaves_is_not_finished(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        async def create(self, spec: SandboxSpec, *, owner: str = "") -> Any:
            await asyncio.sleep(0.02)
            return await super().create(spec, owner=owner)

    engine = Slow()
    with serving(tmp_path, lambda: engine) as server:
        body = b'{"count":5000,"spec":{"image":"host","start":false}}'
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.path)
            sock.sendall(
                f"POST /v1/sandboxes/batch HTTP/1.1\r\nHost: j\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            sock.recv(100)
        counts = [-1]
        for _ in range(100):
            counts.append(len(server.call(engine.list(Filter(all=True)))))
            if counts[-1] == counts[-2]:
                break
            time.sleep(0.1)
        assert counts[-1] < 4000


@pytest.mark.parametrize("files", [{"x": ""}, {"/a/../b": ""}, {"/a": "not base64!"}, {"/a": 1}, ["/a"]])
def test_wrong_files(admin: Client, files: Any) -> None:
    assert admin.fails("POST", "/v1/sandboxes", {**SLEEP, "files": files}).field.startswith("files")


def test_a_list_of_thousands_in_pages_and_as_a_stream(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def fill() -> None:
        for _ in range(3000):
            await engine.create(SandboxSpec(image="host", process=Process(argv=("true",))))

    with serving(tmp_path, lambda: engine) as server:
        server.call(fill())
        client = Client(server.path)
        status, headers, body = client.request("GET", "/v1/sandboxes?all=1", headers="Accept: application/x-ndjson\r\n")
        assert status == 200 and headers["transfer-encoding"] == "chunked" and body.count(b"\n") == 3000
        seen, cursor = [], ""
        while True:
            with Connection.open(server.path) as connection:
                answer = connection.request("GET", f"/v1/sandboxes?all=1&limit=700&cursor={cursor}")
                seen += [box["id"] for box in answer.json()]
                cursor = answer.headers.get("joey-next-cursor", "")
            if not cursor:
                break
        assert len(seen) == len(set(seen)) == 3000


def test_metrics_are_prometheus_text(admin: Client) -> None:
    admin("POST", "/v1/sandboxes", {**SLEEP, "name": "m"})
    _, headers, body = admin.request("GET", "/metrics?sandboxes=1")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = body.decode().splitlines()
    families = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            float(value)
            bare = name.partition("{")[0]
            assert bare in families or bare.rsplit("_", 1)[0] in families, line
    assert 'joey_sandboxes{state="running"} 1' in lines
    assert any(line.startswith('joey_sandbox_memory_bytes{id="') and 'name="m"' in line for line in lines)
    buckets = [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("joey_launch_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] >= 1
    assert b"joey_sandbox_" not in admin.request("GET", "/metrics")[2]
