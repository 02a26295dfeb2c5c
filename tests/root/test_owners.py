"""What one API key makes, another can neither see nor touch: every route of the table, on the real engine.

A route that is added later is tried too: its path's variables and its required parameters are filled from the tables
below, and one that has no variable must be named in LISTS (its answer is searched for the other's things) or in MAKES
(with what is tried there).
"""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from joey.api.routes import Route
from joey.api.table import table
from joey.client.transport import Connection, Problem, query
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.testing.serving import Served, serving

pytestmark = pytest.mark.leak_scope("module")

IDLE = {"image": "host", "init": True, "entrypoint": []}
WORD = "prey"
"""Part of every name that the first key gives."""


class Client:
    """Calls with a key, "" for the administrator."""

    def __init__(self, path: str, key: str = "") -> None:
        self.path, self.headers = path, f"Authorization: Bearer {key}\r\n" if key else ""

    def __call__(self, method: str, path: str, value: object = None) -> Any:
        text = self.raw(method, path, value)
        return json.loads(text) if text else None

    def raw(self, method: str, path: str, value: object = None, headers: str = "") -> bytes:
        with Connection.open(self.path) as connection:
            return connection.request(method, path, value, self.headers + headers).body()

    def refused(self, method: str, path: str, value: object = None, headers: str = "") -> Problem | None:
        try:
            self.raw(method, path, value, headers)
        except Problem as problem:
            return problem
        return None


@dataclass
class Scene:
    """The first key's things, and the second key that wants them."""

    admin: Client
    prey: Client
    thief: Client
    owner: str
    box: str
    process: str
    snapshot: str
    task: str
    marks: list[bytes] = field(default_factory=list)


@pytest.fixture(scope="module")
def served(module_home: Path) -> Iterator[Served]:
    with serving(module_home, lambda: Engine(Instance.open(module_home), slots=2)) as server:
        try:
            yield server
        finally:
            Client(server.path)("POST", "/v1/reset")  # its keys too
    shutil.rmtree(module_home / "run", ignore_errors=True)  # the folder of the socket


@pytest.fixture(scope="module")
def scene(served: Served) -> Scene:
    admin = Client(served.path)
    keys = [admin("POST", "/v1/keys", {"name": name}) for name in (WORD, "thief")]
    prey, thief = (Client(served.path, key["key"]) for key in keys)
    prey("POST", "/v1/volumes", {"name": f"{WORD}-volume", "labels": {WORD: WORD}})
    prey("POST", "/v1/networks", {"name": f"{WORD}-network"})
    prey("PUT", f"/v1/pools/{WORD}-pool?filled=1", {"size": 1, "spec": IDLE})
    prey("PUT", f"/v1/templates/{WORD}-template", {"berths": 0, "spec": {"image": "host"}})
    body = {**IDLE, "name": f"{WORD}-box", "labels": {WORD: WORD}}
    body["volumes"] = [{"name": f"{WORD}-volume", "target": "/v"}]
    box = prey("POST", "/v1/sandboxes", body)
    process = prey("POST", f"/v1/sandboxes/{box['id']}/processes?tag={WORD}", {"argv": ["sleep", "600"]})
    snapshot = prey("POST", f"/v1/sandboxes/{box['id']}/snapshot", {"name": f"{WORD}-files:1"})
    # No instance of it may run: its event stays in the queue.
    code = {"handler": "index.handler", "files": {"index.py": "def handler(event, context): return 1\n"}}
    code |= {"reserved": 0, "async": {"on_failure": f"queue:{WORD}-queue"}}
    prey("PUT", f"/v1/functions/{WORD}-function", code)
    prey("POST", f"/v1/functions/{WORD}-function/versions")
    prey("PUT", f"/v1/functions/{WORD}-function/aliases/{WORD}-alias", {"version": "1"})
    prey("PUT", f"/v1/functions/{WORD}-function/triggers/{WORD}-trigger", {"kind": "url"})
    prey("POST", f"/v1/functions/{WORD}-function/invoke?mode=async", 1)
    [task] = prey("GET", f"/v1/functions/{WORD}-function/tasks")
    layer = prey.raw("GET", f"/v1/functions/{WORD}-function/code")
    head = f"PUT /v1/layers/{WORD}-layer HTTP/1.1\r\nHost: joey\r\n{prey.headers}Content-Length: {len(layer)}\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served.path)
        sock.sendall(f"{head}Connection: close\r\n\r\n".encode() + layer)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    marks = [WORD.encode(), box["id"].encode(), snapshot["id"].encode(), keys[0]["id"].encode()]
    return Scene(admin, prey, thief, keys[0]["id"], box["id"], process["id"], snapshot["id"], task["id"], marks)


VARIABLES = {
    "/v1/sandboxes/": {"ref": "{box}", "id": "{process}"},
    "/v1/volumes/": {"name": f"{WORD}-volume"},
    "/v1/networks/": {"network": f"{WORD}-network"},
    "/v1/pools/": {"name": f"{WORD}-pool"},
    "/v1/templates/": {"name": f"{WORD}-template"},
    "/v1/snapshots/": {"name": f"{WORD}-files:1"},
    "/v1/images/": {"name": "{snapshot}"},
    "/v1/keys/": {"id": "{owner}"},
    "/v1/functions/": {
        "name": f"{WORD}-function",
        "version": "1",
        "alias": f"{WORD}-alias",
        "trigger": f"{WORD}-trigger",
        "qualifier": f"{WORD}-alias",
        "instance": "0" * 24,
    },
    "/v1/tasks/": {"task": "{task}"},
    "/v1/queues/": {"queue": f"{WORD}-queue"},
    "/v1/layers/": {"layer": f"{WORD}-layer"},
}
"""By how the path begins."""
PARAMETERS = {
    "path": "/etc/hostname", "to": "/tmp/x", "mode": "644", "user": "0", "rows": "24", "cols": "80", "port": "80",
    "name": "other", "from": "{snapshot}", "signal": "TERM", "upto": "1",
}  # fmt: skip
BODIES = {
    "/v1/sandboxes/{ref}/run": {"argv": ["true"]},
    "/v1/sandboxes/{ref}/processes": {"argv": ["true"]},
    "/v1/sandboxes/{ref}": {"labels": {"a": "b"}},
    "/v1/functions/{name}/aliases/{alias}": {"version": "1"},
    "/v1/functions/{name}/triggers/{trigger}": {"kind": "url"},
    "/v1/functions/{name}/provisioned/{qualifier}": {"instances": 1},
    "/v1/functions/{name}/batch": {"events": [1]},
}
LISTS = {
    "/v1/sandboxes?all=1", "/v1/stats", "/v1/events", "/v1/pools", "/v1/templates", "/v1/images", "/v1/snapshots",
    "/v1/volumes", "/v1/networks", "/v1/node", "/v1/functions", "/v1/layers",
}  # fmt: skip
"""GET: what is not the caller's is not in the answer."""
MAKES = {
    "POST /v1/sandboxes", "POST /v1/sandboxes/batch", "POST /v1/volumes", "POST /v1/networks",
    "POST /v1/volumes/prune", "GET /v1/images/save",
}  # fmt: skip
"""Tried below by name."""
OWN = {"PUT /v1/pools/{name}", "PUT /v1/templates/{name}", "PUT /v1/functions/{name}", "PUT /v1/layers/{layer}"}
"""Makes one of the caller's own where another has one of that name."""

ROUTES = [route for route in table() if not route.open]


def _filled(text: str, scene: Scene) -> str:
    return text.format(
        box=scene.box, process=scene.process, snapshot=scene.snapshot, owner=scene.owner, task=scene.task
    )


def _path(route: Route, scene: Scene) -> str:
    path = route.path
    begin = re.match(r"/v1/\w+/", path)
    values = VARIABLES.get(begin[0] if begin else "", {})
    for name in route.variables:
        assert name in values, f"{path}: say in VARIABLES what {{{name}}} is to be"
        path = path.replace(f"{{{name}}}", _filled(values[name], scene))
    asked = {}
    for param in route.query:
        if param.required:
            assert param.name in PARAMETERS, f"{path}: say in PARAMETERS what {param.name} may be"
            asked[param.name] = _filled(PARAMETERS[param.name], scene)
    return path + query(asked)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route(scene: Scene, route: Route) -> None:
    what = f"{route.method} {route.path}"
    if (route.variables and what not in OWN) or route.admin:
        headers = "Upgrade: joey-stream\r\nConnection: Upgrade\r\n" if route.status == 101 else ""
        body = BODIES.get(route.path, {} if route.body not in (None, bytes) else None)
        problem = scene.thief.refused(route.method, _path(route, scene), body, headers)
        assert problem is not None, f"{what}: it was done"
        # Before the key is looked at, nothing tells whether there is such a thing: 404 and never 403, but for what no
        # key may do to anything.
        assert problem.status == (403 if route.admin else 404), f"{what}: {problem.document}"
        if not route.admin:
            made_up = scene.thief.refused(route.method, _path(route, scene).replace(WORD, "nope").replace(
                scene.box, "f" * 24).replace(scene.snapshot, "sha256:" + "f" * 64), body, headers)  # fmt: skip
            assert made_up is not None and made_up.document["type"] == problem.document["type"], what
    elif route.method == "GET" and what not in MAKES:
        paths = [path for path in LISTS if path.partition("?")[0] == route.path]
        if not paths and route.tag == "" and route.path in ("/openapi.json", "/docs"):
            return
        assert paths, f"{what}: name it in LISTS, or in MAKES with a test"
        found = scene.thief.raw("GET", paths[0])
        assert not [mark for mark in scene.marks if mark in found], f"{what}: {found[:2000]!r}"
        if route.path not in ("/v1/node", "/v1/images", "/v1/stats"):
            assert scene.marks[0] in scene.prey.raw("GET", paths[0]), f"{what}: not even the owner sees it"
    else:
        assert what in MAKES or what in OWN, f"{what}: name it in MAKES, with a test of its own"


def test_the_scene_is_still_there(scene: Scene) -> None:
    """Nothing of the above has done anything."""
    assert scene.prey("GET", f"/v1/sandboxes/{scene.box}")["sandbox"]["state"] == "running"
    assert scene.prey("GET", f"/v1/sandboxes/{scene.box}/processes/{scene.process}")["exit"] is None
    assert scene.prey("GET", f"/v1/volumes/{WORD}-volume")["users"]
    assert scene.prey("GET", f"/v1/pools/{WORD}-pool")["size"] == 1
    assert scene.prey("GET", f"/v1/templates/{WORD}-template")["state"] == "ready"
    assert scene.prey("GET", f"/v1/snapshots/{WORD}-files:1")["id"] == scene.snapshot
    function = scene.prey("GET", f"/v1/functions/{WORD}-function")
    assert (function["aliases"], function["triggers"]) == ([f"{WORD}-alias"], [f"{WORD}-trigger"])
    assert function["spec"]["reserved"] == 0 and not function["provisioned"] and function["figures"]["queued"] == 1
    assert scene.prey("GET", f"/v1/tasks/{scene.task}")["state"] in ("queued", "running")


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"network": f"{WORD}-network"}, 404),
        ({"network": "container:{box}"}, 404),
        ({"network": f"container:{WORD}-box"}, 404),
        ({"pool": f"{WORD}-pool"}, 404),
        ({"template": f"{WORD}-template"}, 404),
        ({"image": f"{WORD}-files:1", "pull": "never"}, 422),
        ({"image": "{snapshot}", "pull": "never"}, 422),
        ({"image": "{snapshot}"}, 422),
        ({"image": "localhost/joey-{owner}/" + WORD + "-files:1"}, 422),
        ({"image": "anything@{snapshot}", "pull": "never"}, 422),
    ],
)
def test_nothing_is_made_of_anothers(scene: Scene, spec: dict[str, str], status: int) -> None:
    filled = {name: _filled(value, scene) for name, value in spec.items()}
    body = {**IDLE, **filled}
    problem = scene.thief.refused("POST", "/v1/sandboxes", body)
    assert problem is not None and problem.status in (404, status), problem and problem.document
    try:
        assert "error" in scene.thief("POST", "/v1/sandboxes/batch", {"count": 1, "spec": body})
    except Problem as refused:
        assert refused.status in (404, status)
    assert scene.thief("GET", "/v1/sandboxes?all=1") == []


def test_a_name_of_anothers_is_free(scene: Scene) -> None:
    """Names are each owner's own, and what is made under one is not the other's."""
    made = scene.thief("POST", "/v1/volumes", {"name": f"{WORD}-volume"})
    assert made["users"] == [] and made["owner"] != scene.owner
    body = {**IDLE, "name": f"{WORD}-box", "volumes": [{"name": f"{WORD}-volume", "target": "/v"}]}
    scene.prey("PUT", f"/v1/sandboxes/{scene.box}/files?path=/v/secret", None)
    box = scene.thief("POST", "/v1/sandboxes", body)
    assert box["id"] != scene.box and scene.thief("GET", f"/v1/sandboxes/{WORD}-box")["sandbox"]["id"] == box["id"]
    assert scene.thief("GET", f"/v1/sandboxes/{box['id']}/files/list?path=/v") == []
    assert scene.thief("PUT", f"/v1/pools/{WORD}-pool", {"size": 0, "spec": IDLE})["owner"] != scene.owner
    theirs = {"berths": 0, "init": "import nowhere", "spec": {"image": "host"}}
    assert scene.thief("PUT", f"/v1/templates/{WORD}-template", theirs)["owner"] != scene.owner
    assert scene.prey("GET", f"/v1/templates/{WORD}-template")["state"] == "ready"
    scene.thief("POST", "/v1/networks", {"name": f"{WORD}-network"})
    assert scene.thief("GET", f"/v1/networks/{WORD}-network")["members"] == []
    scene.thief("DELETE", f"/v1/sandboxes/{box['id']}?force=1")
    assert scene.thief("POST", "/v1/volumes/prune")["names"] == [f"{WORD}-volume"]
    assert scene.prey("GET", f"/v1/volumes/{WORD}-volume")["users"]
    for kind in ("pool", "network", "template"):
        scene.thief("DELETE", f"/v1/{kind}s/{WORD}-{kind}")


def test_images_of_anothers_files_are_not_saved(scene: Scene) -> None:
    for name in (scene.snapshot, scene.snapshot[7:19], f"localhost/joey-{scene.owner}/{WORD}-files:1"):
        problem = scene.thief.refused("GET", f"/v1/images/save?name={name}")
        assert problem is not None and problem.status in (404, 422), name


def test_of_the_node_a_key_sees_its_own_share(scene: Scene) -> None:
    """How many sandboxes others have, how much they are promised and where the engine's files are is not a key's."""
    mine, all_ = scene.thief("GET", "/v1/node"), scene.admin("GET", "/v1/node")
    assert sum(all_["counts"].values()) >= 1 and all_["home"] and all_["load"]["memory"]
    assert not any(mine["counts"].values()) and not mine["home"] and not mine.get("load", {}).get("memory")
    assert scene.prey("GET", "/v1/node")["counts"] == {"running": 1}
    detail = scene.prey("GET", f"/v1/sandboxes/{scene.box}")
    assert not detail.get("paths") and scene.admin("GET", f"/v1/sandboxes/{scene.box}")["paths"]


def test_the_same_idempotency_key_of_two_owners(scene: Scene) -> None:
    header = "Idempotency-Key: same\r\n"
    body = {**IDLE, "labels": {"a": WORD}}
    first = json.loads(scene.prey.raw("POST", "/v1/sandboxes", body, header))
    second = json.loads(scene.thief.raw("POST", "/v1/sandboxes", body, header))
    assert first["id"] != second["id"] and first["owner"] != second["owner"]
    for client, one in ((scene.prey, first), (scene.thief, second)):
        client("DELETE", f"/v1/sandboxes/{one['id']}?force=1")
