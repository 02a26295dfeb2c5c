"""What a key may ask for. Every field of a specification is in one of the tables, so a new one has to be judged."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from joey.api.bodies import CreateBody
from joey.api.budget import Budget
from joey.api.config import Settings
from joey.api.service import Service
from joey.api.tenant import MAX_SPEC
from joey.client.transport import Connection, Problem
from joey.engine.output import Backlog
from joey.model.network import NetworkPolicy, NetworkSpec
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec, Update
from joey.testing.serving import Served, serving

SLEEP: dict[str, Any] = {"image": "host", "process": {"argv": ["sleep", "100"]}}

REFUSED: dict[type, dict[str, list[Any]]] = {
    SandboxSpec: {
        "rootfs": ["/"],
        "mounts": [[{"source": "/etc", "target": "/x"}]],
        "devices": [[{"path": "/dev/kvm"}]],
        "sysctls": [{"net.core.somaxconn": "9"}],
        "seccomp": ["unconfined", {"defaultAction": "SCMP_ACT_ALLOW"}],
        "masked_paths": [[]],
        "readonly_paths": [[]],
        "oom_score_adj": [-1],
        "network": ["host", {"mode": "host"}],
        "pull": ["always"],
        "health": [{"command": ["true"], "interval": 1e-6}, {"tcp": 1, "start_interval": 0.01}],
    },
    Process: {
        "capabilities": [["SYS_ADMIN"], ["CHOWN", "CAP_NET_RAW"]],
        "no_new_privileges": [False],
        "rlimits": [[{"name": "RTPRIO", "soft": 9, "hard": 9}], [{"name": "RLIMIT_NICE", "soft": 40, "hard": None}]],
    },
    Resources: {
        "memory": [None],
        "pids": [None, 1 << 20],
        "swap": [None, 1 << 30],
        "memory_reservation": [1 << 20],
        "cpu_shares": [262144],
        "io_weight": [10000],
        "oom_kill_disable": [True],
    },
    NetworkSpec: {
        "mode": ["host"],
        "policy": [{"rules": [{"action": "allow", "cidr": "169.254.169.254"}]}],
        "ports": [[{"container": 80, "host": 80}]],
        "dns": [["10.0.0.1"]],
    },
    NetworkPolicy: {"rules": [[{"action": "allow", "cidr": "10.1.0.0/16"}]]},
}
"""Values that are an administrator's, by the field they are refused at."""

HARMLESS: dict[type, set[str]] = {
    SandboxSpec: {
        # its own files, names, signals and times
        "image", "platform", "process", "entrypoint", "name", "hostname", "tmpfs", "volumes", "read_only", "resources",
        "init", "devpts", "storage", "shm_size", "stop_signal", "stop_timeout", "labels", "remove", "restart",
        "timeout", "idle_timeout", "on_timeout", "proxy_token",
    },
    Process: {"argv", "env", "cwd", "user", "groups", "tty", "stdin", "umask", "rows", "cols"},
    Resources: {"cpus", "cpuset_cpus", "cpuset_mems", "io_limits", "disk"},  # ceilings of its own
    NetworkSpec: {"publish_all", "aliases", "dns_search", "dns_options", "extra_hosts"},
    NetworkPolicy: {"internet", "bandwidth_in", "bandwidth_out", "connections"},
    CreateBody: {"start", "pool", "files", "template"},
    Update: {"resources", "labels", "network", "timeout", "idle_timeout", "on_timeout", "restart"},
}  # fmt: skip
"""What a key may say about its own sandbox. resources and network are judged field by field."""


class Client:
    def __init__(self, path: str, key: str = "") -> None:
        self.path, self.headers = path, f"Authorization: Bearer {key}\r\n" if key else ""

    def __call__(self, method: str, path: str, value: object = None) -> Any:
        with Connection.open(self.path) as connection:
            return connection.request(method, path, value, self.headers).json()

    def refused(self, method: str, path: str, value: object) -> Problem:
        with pytest.raises(Problem) as caught:
            self(method, path, value)
        return caught.value


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("api"), settings=Settings(keys_pull=("docker.io",))) as server:
        yield server


@pytest.fixture(scope="module")
def tenant(served: Served) -> Client:
    return Client(served.path, Client(served.path)("POST", "/v1/keys", {"name": "tenant"})["key"])


@pytest.fixture(scope="module")
def box(tenant: Client) -> str:
    return str(tenant("POST", "/v1/sandboxes", {**SLEEP, "network": "nat"})["id"])


@pytest.mark.parametrize("kind", HARMLESS)
def test_every_field_is_judged(kind: type) -> None:
    above = set() if kind is not CreateBody else set(SandboxSpec.__struct_fields__)  # type: ignore[attr-defined]
    fields = set(kind.__struct_fields__) - above  # type: ignore[attr-defined]
    assert fields == HARMLESS[kind] | set(REFUSED.get(kind, {})), "a field of a request that nobody has judged yet"


PLACES = {SandboxSpec: "", Process: "process.", Resources: "resources.", NetworkSpec: "network.",
          NetworkPolicy: "network.policy."}  # fmt: skip
CASES = [(kind, name, value) for kind, names in REFUSED.items() for name, values in names.items() for value in values]


def _body(kind: type, name: str, value: Any) -> dict[str, Any]:
    if name == "rootfs":
        return {**SLEEP, "image": "", "rootfs": value}
    if name == "pull":
        return {**SLEEP, "image": "127.0.0.1:5000/x", "pull": value}
    if kind is SandboxSpec:
        return {**SLEEP, name: value}
    if kind is Process:
        return {**SLEEP, "process": {**SLEEP["process"], name: value}}
    if kind is Resources:
        return {**SLEEP, "resources": {name: value}}
    if kind is NetworkSpec:
        return {**SLEEP, "network": {"mode": "nat", name: value}}
    return {**SLEEP, "network": {"mode": "nat", "policy": {name: value}}}


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_what_reaches_the_host_is_refused_wherever_it_is_said(
    tenant: Client, box: str, kind: type, name: str, value: Any
) -> None:
    body, field = _body(kind, name, value), PLACES[kind] + name
    if name == "mode":
        field = "network"
    for path, given, prefix in (
        ("/v1/sandboxes", body, ""),
        ("/v1/sandboxes/batch", {"count": 2, "spec": body}, "spec."),
        ("/v1/sandboxes/batch", {"specs": [SLEEP, body]}, "specs[1]."),
    ):
        problem = tenant.refused("POST", path, given)
        assert problem.status == 403 and problem.field.startswith(prefix + field), problem.document
    problem = tenant.refused("PUT", "/v1/pools/p", {"size": 0, "spec": body})
    assert problem.status == 403 and problem.field.startswith(f"spec.{field}"), problem.document
    if kind is Process:  # run inside later
        for path in ("run", "processes"):
            problem = tenant.refused("POST", f"/v1/sandboxes/{box}/{path}", {"argv": ["true"], name: value})
            assert problem.status == 403 and problem.field.startswith(name), problem.document
    if kind is Resources:  # changed later
        problem = tenant.refused("PATCH", f"/v1/sandboxes/{box}", {"resources": {name: value}})
        assert problem.status == 403 and problem.field.startswith(field), problem.document
    if kind is NetworkPolicy:
        problem = tenant.refused("PATCH", f"/v1/sandboxes/{box}", {"network": {name: value}})
        assert problem.status == 403 and problem.field.startswith("network." + name), problem.document
    assert [one["id"] for one in tenant("GET", "/v1/sandboxes?all=1")] == [box]


@pytest.mark.parametrize("image", ["127.0.0.1:9/x", "localhost/x:1", "169.254.169.254/latest", "registry.example/x"])
def test_the_engine_asks_no_registry_a_key_names(served: Served, tenant: Client, image: str) -> None:
    """A pull goes out from the host, in plain HTTP to its loopback, with the host's credentials."""
    seen: list[tuple[str, str]] = []
    engine: Any = served.engine
    real = engine.run

    async def run(spec: SandboxSpec, **more: Any) -> Any:
        seen.append((spec.image, spec.pull))
        return await real(spec, **more)

    engine.run = run
    try:
        assert tenant.refused("POST", "/v1/sandboxes", {**SLEEP, "image": image}).status == 404
        assert tenant.refused("POST", "/v1/sandboxes", {**SLEEP, "image": "debian:12"}).status == 404
        assert Client(served.path).refused("POST", "/v1/sandboxes", {**SLEEP, "image": image}).status == 404
    finally:
        del engine.run
    assert seen == [(image, "never"), ("debian:12", "missing"), (image, "missing")]


def test_storage_on_disk_needs_a_limit(tenant: Client) -> None:
    problem = tenant.refused("POST", "/v1/sandboxes", {**SLEEP, "storage": "disk"})
    assert (problem.status, problem.field) == (403, "resources.disk")


def test_what_the_engine_would_have_to_keep_is_bounded(tenant: Client, box: str) -> None:
    long = "x" * (MAX_SPEC + 1)
    problem = tenant.refused("POST", "/v1/sandboxes", {**SLEEP, "process": {"argv": ["true", long]}})
    assert problem.field == "body"
    ports = [{"container": number} for number in range(1, 100)]
    problem = tenant.refused("POST", "/v1/sandboxes", {**SLEEP, "network": {"mode": "nat", "ports": ports}})
    assert problem.field == "network.ports"


def test_labels_do_not_grow_without_end(served: Served, tenant: Client, box: str) -> None:
    """Every event of a sandbox carries them, and 10,000 are kept."""
    large = "x" * 20_000
    tenant("PATCH", f"/v1/sandboxes/{box}", {"labels": {"a": large}})
    for client in (tenant, Client(served.path)):
        problem = client.refused("PATCH", f"/v1/sandboxes/{box}", {"labels": {"b": large}})
        assert problem.field == "labels"
        assert client.refused("POST", "/v1/sandboxes", {**SLEEP, "labels": {"a": large * 2}}).field == "labels"
    assert set(tenant("GET", f"/v1/sandboxes/{box}")["sandbox"]["labels"]) == {"a"}
    tenant("PATCH", f"/v1/sandboxes/{box}", {"labels": {"a": None, "b": large}})


def test_a_key_has_not_any_number_of_pools_and_networks(tenant: Client) -> None:
    for number in range(100):
        tenant("PUT", f"/v1/pools/p{number}", {"size": 0, "spec": SLEEP})
        tenant("POST", "/v1/networks", {"name": f"n{number}"})
    assert tenant.refused("PUT", "/v1/pools/more", {"size": 0, "spec": SLEEP}).status == 429
    assert tenant.refused("POST", "/v1/networks", {"name": "more"}).status == 429
    tenant("PUT", "/v1/pools/p1", {"size": 0, "spec": SLEEP})
    assert tenant.refused("POST", "/v1/networks", {"name": "l", "labels": {"a": "x" * 40_000}}).field == "labels"


# --- memory that requests hold


def test_answers_that_nobody_reads_do_not_fill_memory(served: Served) -> None:
    """Output of `run` is held until it is sent: a key that asks for much at a time is refused, others are not."""
    service, admin = _service(served), Client(served.path)
    greedy = Client(served.path, admin("POST", "/v1/keys", {"name": "greedy"})["key"])
    box = greedy("POST", "/v1/sandboxes", SLEEP)["id"]
    service.budget = Budget(key=8 << 20, admin=64 << 20)
    body = {"argv": ["head", "-c", str(3 << 20), "/dev/zero"]}
    unread = []
    try:
        assert len(greedy("POST", f"/v1/sandboxes/{box}/run", body)["stdout"]) == 4 << 20
        assert greedy.refused("POST", f"/v1/sandboxes/{box}/run", {**body, "argv": ["cat", "/dev/zero"]}).status == 429
        for _ in range(2):
            unread.append(socket.socket(socket.AF_UNIX))
            unread[-1].connect(served.path)
            text = json.dumps({"argv": ["head", "-c", str(1 << 20), "/dev/zero"]}).encode()
            head = f"POST /v1/sandboxes/{box}/run HTTP/1.1\r\nHost: j\r\n{greedy.headers}"
            unread[-1].sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
            assert unread[-1].recv(12) == b"HTTP/1.1 200"  # the rest waits in the engine
        problem = greedy.refused("POST", f"/v1/sandboxes/{box}/run", body)
        assert (problem.status, problem.field) == (429, "memory")
        assert admin("POST", f"/v1/sandboxes/{box}/run", body)["exit"]["code"] == 0
    finally:
        for one in unread:
            one.close()
    deadline = time.monotonic() + 5
    while service.budget.held(greedy_id := greedy("GET", f"/v1/sandboxes/{box}")["sandbox"]["owner"]):
        assert time.monotonic() < deadline, greedy_id
    greedy("POST", f"/v1/sandboxes/{box}/run", body)
    assert not service.budget.held(greedy_id)


def _service(served: Served) -> Any:
    import gc

    return next(one for one in gc.get_objects() if isinstance(one, Service) and one.engine is served.engine)


def test_output_that_nobody_reads_is_bounded_together() -> None:
    kept = [Backlog() for _ in range(200)]
    for _ in range(2):
        for one in kept:
            for number in range(40):
                one.add(1, bytes([number]) * (1 << 15))
    assert Backlog.together == sum(one.size for one in kept) <= Backlog.PLENTY + 200 * (Backlog.LOW + (1 << 15))
    assert all(one.size >= 1 << 15 and one.take()[-1][1][:1] == b"\x27" for one in kept) and Backlog.together == 0
