"""Functions over HTTP, on instances that contain nothing."""

import base64
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

import joey
from fn_lab import FakeRunner, Lab, failed
from joey.cli import main
from joey.functions.deploy import Deployments
from joey.functions.wire import Answer, Failure, StreamFailed
from joey.functions.work import head_json
from joey.testing.serving import Served, serving

CODE = {"handler": "index.handler", "files": {"index.py": "def handler(event, context): return event\n"}}


async def handler(head, body):
    """Does what the event asks for."""
    head_json(head, 1.0)  # as an instance's channel has it
    if head.http is not None:
        return Answer(
            body=b"made", head={"status": 201, "headers": [["X-Path", head.http["path"]], ["Set-Cookie", "a=b"]]}
        )
    event = json.loads(body) if body else None
    if isinstance(event, dict) and "fail" in event:
        return failed(event["fail"])
    if isinstance(event, dict) and "pieces" in event:

        async def pieces():
            for piece in event["pieces"]:
                if piece is None:
                    raise StreamFailed(Failure("ValueError", "no"))
                yield piece.encode()

        return Answer(chunks=pieces(), head={"content_type": "text/plain"})
    if isinstance(event, dict) and "answer" in event:
        return Answer(body=json.dumps(event["answer"]).encode())
    if isinstance(event, dict) and event.get("rawPath", "").startswith("/say/"):
        said = {"statusCode": 418, "headers": {"X-A": "b"}, "cookies": ["c=d"], "body": event["rawPath"]}
        return Answer(body=json.dumps(said).encode())
    context = head.client_context
    return Answer(body=body if context is None else json.dumps(context).encode(), logs=b"said this\n", seconds=0.5)


LAB = Lab(handler, seconds=0)


class Client:
    def __init__(self, served: Served, key: str = "") -> None:
        self.served, self.key = served, key

    def __call__(self, method, path, value=None, *, raw=None, headers=None):
        if self.key or self.served is None:
            parts = urlsplit(self.served.url)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        else:
            connection = http.client.HTTPConnection("joey", timeout=10)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.served.path)
        body = raw if raw is not None else None if value is None else json.dumps(value).encode()
        all_headers = {**({"X-API-Key": self.key} if self.key not in ("", "none") else {}), **(headers or {})}
        with contextlib.closing(connection):
            connection.request(method, path, body, all_headers)
            with connection.getresponse() as answer:
                return answer.status, answer.headers, answer.read()

    def json(self, method, path, value=None, status=200):
        found = self(method, path, value)
        assert found[0] == status, found[2]
        return json.loads(found[2]) if found[2] else None


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    async def start(self, deployed):
        return FakeRunner(LAB)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deployments, "_instance", start)
        with serving(tmp_path_factory.mktemp("fn"), tcp=True) as server:
            yield server


@pytest.fixture
def client(served) -> Client:
    return Client(served)


@pytest.fixture
def fn(client, request) -> str:
    """A function of this test's own."""
    name = f"f-{abs(hash(request.node.name)) % 10**8}"
    client.json("PUT", f"/v1/functions/{name}", CODE, status=201)
    return name


def test_templates_of_functions_have_names_of_their_own(client):
    """They are swept with the functions: what somebody made under such a name would go, too."""
    status, _, text = client("PUT", "/v1/templates/fn-mine", {})
    assert status == 400 and json.loads(text)["field"] == "name"


def test_deploy_change_look_remove(client):
    made = client.json("PUT", "/v1/functions/one", CODE | {"timeout": 5, "secrets": {"A": "hush"}}, status=201)
    assert made["spec"]["timeout"] == 5 and made["spec"]["code"].startswith("sha256:") and made["code_size"] > 0
    assert made["spec"]["secrets"] == {"A": "***"}
    again = client.json("PUT", "/v1/functions/one", {"handler": "index.handler"})
    assert again["spec"]["code"] == made["spec"]["code"] and again["revision"] != made["revision"]
    changed = client.json("PATCH", "/v1/functions/one", {"memory": 1 << 28, "files": {"index.py": "x = 1\n"}})
    assert changed["spec"]["memory"] == 1 << 28 and changed["spec"]["code"] != made["spec"]["code"]
    assert "one" in [each["name"] for each in client.json("GET", "/v1/functions")]
    status, headers, packed = client("GET", "/v1/functions/one/code")
    assert (status, headers["Content-Type"], packed[:2]) == (200, "application/zip", b"PK")
    uploaded = client("PUT", "/v1/functions/one/code", raw=packed)
    assert json.loads(uploaded[2])["spec"]["code"] == changed["spec"]["code"]
    assert client("DELETE", "/v1/functions/one")[0] == 204
    assert client("GET", "/v1/functions/one")[0] == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "handler"), (CODE | {"timeout": 0}, "timeout"), (CODE | {"nonsense": 1}, "nonsense"),
        (CODE | {"code": "sha256:" + "a" * 64}, "code"), (CODE | {"zip": "UEs="}, "zip"),
        (CODE | {"name": "other"}, "name"), (CODE | {"layers": ["none"]}, "layer"),
        ({"handler": "a.b", "zip": "eA=="}, "code"),
        (CODE | {"files": {"../x": ""}}, "code"), (CODE | {"reserved": 10**5}, "reserved"),
    ],
)  # fmt: skip
def test_bad_functions_are_refused_by_field_and_leave_nothing(client, body, field):
    status, _, text = client("PUT", "/v1/functions/bad", body)
    assert status in (400, 404) and json.loads(text)["field"].startswith(field), text
    assert client("GET", "/v1/functions/bad")[0] == 404


def test_invoke(client, fn):
    path = f"/v1/functions/{fn}/invoke"
    status, headers, body = client("POST", path + "?logs=tail", raw=b'{"a": 1}')
    assert (status, body, headers["Content-Type"]) == (200, b'{"a": 1}', "application/json")
    assert base64.b64decode(headers["Joey-Log-Tail"]) == b"said this\n"
    assert (headers["Joey-Function-Version"], headers["Joey-Cold-Start"]) == ("$LATEST", "1")
    status, headers, body = client("POST", path, raw=b'{"fail": "Bad\\nName"}')
    assert (status, headers["Joey-Function-Error"]) == (200, "Bad?Name")
    assert json.loads(body)["errorType"] == "Bad\nName"
    assert client("POST", path + "?mode=dry-run")[0] == 204
    assert client("POST", path + "?qualifier=7")[0] == 404
    assert client("POST", "/v1/functions/nobody/invoke")[0] == 404
    context = base64.b64encode(b'{"custom": {"x": 1}}').decode()
    assert client("POST", path, raw=b"1", headers={"Joey-Client-Context": context})[2] == b'{"custom": {"x": 1}}'
    assert client("POST", path, raw=b"1", headers={"Joey-Client-Context": "?"})[0] == 400
    assert client("POST", path, raw=b'"' + b"x" * (5 << 20) + b'"')[0] == 200
    assert client("POST", path, raw=b"x" * (7 << 20))[0] == 413


def test_streams_and_one_that_breaks(client, fn):
    path = f"/v1/functions/{fn}/invoke?stream=true"
    status, headers, body = client("POST", path, {"pieces": ["a", "b", "c"]})
    assert (status, headers["Content-Type"], body) == (200, "text/plain", b"abc")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        client("POST", path, {"pieces": ["a", None]})


def test_a_batch_answers_each(client, fn):
    _, _, body = client("POST", f"/v1/functions/{fn}/batch", {"events": [1, {"fail": "E"}, {"answer": [2]}]})
    found = sorted(map(json.loads, body.splitlines()), key=lambda line: line["index"])
    assert [line.get("result") for line in found] == [1, None, [2]]
    assert found[1]["failure"]["errorType"] == "E"


def until_over(client, id):
    deadline = time.monotonic() + 5
    while not (task := client.json("GET", f"/v1/tasks/{id}"))["finished"]:
        assert time.monotonic() < deadline, task
        time.sleep(0.005)
    return task


def test_tasks_and_dead_letters(client, fn):
    config = {"max_retries": 0, "on_failure": "queue:dead", "on_success": ""}
    assert client.json("PUT", f"/v1/functions/{fn}/async/$LATEST", config)["max_retries"] == 0
    status, headers, _ = client("POST", f"/v1/functions/{fn}/invoke?mode=async", {"fail": "E"})
    assert status == 202
    task = until_over(client, headers["Joey-Request-Id"])
    assert (task["state"], task["error"]) == ("failed", "E")
    assert [one["id"] for one in client.json("GET", f"/v1/functions/{fn}/tasks?state=failed")] == [task["id"]]
    [message] = client.json("GET", "/v1/queues/dead")
    assert json.loads(base64.b64decode(message["body"]))["responseContext"]["functionError"] == "E"
    assert client("DELETE", f"/v1/queues/dead?upto={message['id']}")[0] == 204
    assert client("POST", f"/v1/tasks/{task['id']}/stop")[0] == 409
    assert client("GET", "/v1/tasks/nothing")[0] == 404
    assert client("DELETE", f"/v1/functions/{fn}/async/$LATEST")[0] == 204
    assert client.json("GET", f"/v1/functions/{fn}/async/$LATEST")["max_retries"] == 2


def test_versions_aliases_scaling_triggers(client, fn):
    at = f"/v1/functions/{fn}"
    assert client.json("POST", at + "/versions", status=201)["version"] == "1"
    assert [one["version"] for one in client.json("GET", at + "/versions")] == ["$LATEST", "1"]
    assert client.json("PUT", at + "/aliases/live", {"version": "1"})["version"] == "1"
    assert client("PUT", at + "/aliases/live", {"version": "9"})[0] == 404
    assert client("POST", at + "/invoke?qualifier=live", raw=b"1")[1]["Joey-Function-Version"] == "1"
    assert client("DELETE", at + "/versions/1")[0] == 409
    assert client.json("PUT", at + "/scaling", {"reserved": 0})["spec"]["reserved"] == 0
    status, headers, _ = client("POST", at + "/invoke", raw=b"1")
    assert (status, headers["Retry-After"]) == (429, "1")
    assert client.json("PUT", at + "/scaling", {"reserved": None})["spec"]["reserved"] is None
    assert client.json("PUT", at + "/provisioned/live", {"instances": 2})["provisioned"] == {"live": 2}
    timer = client.json("PUT", at + "/triggers/daily", {"kind": "timer", "schedule": "cron(0 12 * * ? *)"})
    assert timer["next"] > time.time()
    assert client("PUT", at + "/triggers/daily", {"kind": "timer", "schedule": "daily"})[0] == 400
    broken = {"kind": "timer", "schedule": "rate(1 minute)", "payload": "{bad"}
    assert client.json("PUT", at + "/triggers/daily", broken, status=400)["field"] == "payload"
    assert client("PUT", at + "/triggers/daily", {"kind": "url"})[0] == 409
    assert [one["trigger"]["name"] for one in client.json("GET", at + "/triggers")] == ["daily"]
    instances = client.json("GET", at + "/instances")
    assert instances and {one["version"] for one in instances} <= {"1", "$LATEST"}
    assert client("DELETE", at + f"/instances/{instances[0]['id']}")[0] == 204


def test_functions_have_addresses(client, served, fn):
    at = f"/v1/functions/{fn}/triggers/web"
    path = client.json("PUT", at, {"kind": "url", "auth": "none"})["path"]
    stranger, owner = Client(served, "none"), Client(served, served.key)
    status, headers, body = stranger("POST", path + "say/it?x=1&x=2", raw=b"hi")
    assert (status, headers["X-A"], headers["Set-Cookie"], body) == (418, "b", "c=d", b"/say/it")
    assert headers["Content-Security-Policy"].startswith("sandbox ")  # its scripts are not of our pages' origin
    status, _, body = stranger("GET", path + "a%20b?x=1&x=2&y=", headers={"Cookie": "k=v", "Authorization": "Basic x"})
    event = json.loads(body)
    assert (event["rawPath"], event["queryStringParameters"]) == ("/a b", {"x": "1,2", "y": ""})
    assert (event["cookies"], event["headers"]["authorization"]) == (["k=v"], "Basic x")
    assert event["requestContext"]["http"]["method"] == "GET"
    client.json("PUT", at, {"kind": "url", "auth": "key"})
    assert stranger("GET", path)[0] == 401
    event = json.loads(owner("GET", path)[2])
    assert "x-api-key" not in event["headers"]
    assert stranger("GET", "/fn/nothing/")[0] == 401
    assert owner("GET", "/fn/nothing/")[0] == 404
    assert json.loads(owner("GET", f"/fn/{fn}/say/x")[2] == b"/say/x" and b"1")
    client.json("PUT", at, {"kind": "url", "auth": "none", "enabled": False})
    assert stranger("GET", path)[0] == 404


def test_a_function_that_speaks_http_gets_the_request_as_it_is(client, fn):
    web = fn + "-w"
    client.json("PUT", f"/v1/functions/{web}", CODE | {"kind": "wsgi"}, status=201)
    status, headers, body = client("PUT", f"/fn/{web}/x/y?z", raw=b"1", headers={"User-Agent": "x", "Accept": "*/*"})
    assert (status, headers["X-Path"], headers["Set-Cookie"], body) == (201, "/x/y", "a=b", b"made")


def test_the_command_line(client, served, fn, monkeypatch, capfd):
    monkeypatch.setenv("JOEY_URL", f"unix://{served.path}")

    def said(*words, code=0):
        assert main(["fn", *words]) == code
        return capfd.readouterr()

    found = json.loads(said("invoke", "--json", fn, '{"answer": [1]}').out)
    assert found["result"] == [1] and found["error"] is None and found["version"] == "$LATEST"
    found = json.loads(said("invoke", "--json", fn, '{"fail": "KeyError"}', code=1).out)
    assert found["error"] == found["result"]["errorType"] == "KeyError"
    broken = said("invoke", fn, '{"pieces": ["a", null]}', code=1)
    assert broken.out == "a" and "failed in the middle" in broken.err and f"joey fn logs {fn}" in broken.err
    assert said("ls").out.splitlines()[0].split()[-2:] == ["CHANGED", "KEY"]
    path = said("trigger", fn, "web", "--url", "--auth", "none", "--method", "get", "--method", "POST").out.strip()
    assert [client(method, path)[0] for method in ("GET", "POST", "DELETE")] == [200, 200, 405]
    said("publish", fn)
    assert json.loads(said("scale", f"{fn}:1", "--provisioned", "1", "--json").out) == {"provisioned": 1}
    assert client.json("GET", f"/v1/functions/{fn}")["provisioned"] == {"1": 1}
    said("deploy", fn, "--on-success", f"queue:{fn}")
    said("invoke", "--async", fn, '{"answer": 2}')
    until = time.monotonic() + 5
    while not (found := json.loads(said("queue", fn, "--json").out)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [one["responsePayload"] for one in found] == [2]


def test_the_sdk_streams_and_shows_what_was_printed(served, fn):
    function = joey.Function(fn, url=f"unix://{served.path}")
    assert list(function.stream({"pieces": ["a", "b"]})) == [b"a", b"b"]
    assert list(function.stream({"answer": 1})) == [b"1"]
    with pytest.raises(joey.RemoteError, match="KeyError"):
        list(function.stream({"fail": "KeyError"}))
    with pytest.raises(joey.ConnectionLost, match="in the middle"):
        list(function.stream({"pieces": ["a", None]}))
    assert list(function.logs()) == []
    with pytest.raises(joey.NotFound):
        list(joey.Function("nobody", url=f"unix://{served.path}").logs())


def test_another_keys_functions_do_not_exist(client, served, fn):
    key = client.json("POST", "/v1/keys", {"name": "tenant"}, status=201)["key"]
    tenant = Client(served, key)
    for method, path in (("GET", ""), ("POST", "/invoke"), ("GET", "/logs"), ("DELETE", ""), ("GET", "/code")):
        assert tenant(method, f"/v1/functions/{fn}{path}")[0] == 404
    assert tenant.json("GET", "/v1/functions") == []
    mine = tenant.json("PUT", f"/v1/functions/{fn}", CODE, status=201)
    assert mine["owner"]
    assert tenant("PUT", "/v1/functions/x", CODE | {"network": "host"})[0] == 403
    assert tenant("PUT", "/v1/functions/x", CODE | {"image": "registry.example/x"})[0] == 403
    layer = "sha256:" + "0" * 64
    assert tenant("PUT", "/v1/functions/x", CODE | {"layers": [layer]})[0] == 404
    _, headers, _ = tenant("POST", f"/v1/functions/{fn}/invoke?mode=async", raw=b"1")
    assert client("GET", f"/v1/tasks/{headers['Joey-Request-Id']}")[0] == 200
    other = Client(served, client.json("POST", "/v1/keys", {"name": "third"}, status=201)["key"])
    assert other("GET", f"/v1/tasks/{headers['Joey-Request-Id']}")[0] == 404
    assert tenant("DELETE", f"/v1/functions/{fn}")[0] == 204


def test_a_key_has_as_many_invocations_as_it_may(client, served):
    made = client.json("POST", "/v1/keys", {"name": "small", "limits": {"invocations": 0}}, status=201)
    small = Client(served, made["key"])
    small.json("PUT", "/v1/functions/f", CODE, status=201)
    status, headers, text = small("POST", "/v1/functions/f/invoke", raw=b"1")
    assert (status, headers["Retry-After"], json.loads(text)["field"]) == (429, "1", "invocations")
    assert client.json("GET", "/v1/functions")[0]["figures"]["throttles"] in ({}, {"owner": 1})


def test_figures_and_the_page(client, fn):
    client("POST", f"/v1/functions/{fn}/invoke", raw=b"1")
    client("POST", f"/v1/functions/{fn}/invoke", {"fail": "E"})
    text = client("GET", "/metrics")[2].decode()
    labels = f'{{function="{fn}",owner=""}}'
    assert f"joey_function_invocations_total{labels} 2" in text
    assert f"joey_function_cold_starts_total{labels} 1" in text
    assert f'joey_function_errors_total{{function="{fn}",owner="",type="E"}} 1' in text
    assert f"joey_function_duration_seconds_count{labels} 2" in text
    assert f"joey_function_memory_bytes{labels}" not in text
    assert f"joey_function_memory_bytes{labels}" in client("GET", "/metrics?sandboxes=true")[2].decode()
    figures = client.json("GET", f"/v1/functions/{fn}/metrics")
    assert (figures["invocations"], figures["errors"], figures["instances"]) == (2, {"E": 1}, 1)
    status, headers, page = client("GET", "/functions")
    assert status == 200 and "text/html" in headers["Content-Type"] and b"/v1/functions" in page
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")


def test_layers_have_names(client):
    packed = client("GET", "/v1/functions/layered/code")
    client.json("PUT", "/v1/functions/layered", CODE, status=201)
    packed = client("GET", "/v1/functions/layered/code")[2]
    layer = json.loads(client("PUT", "/v1/layers/base", raw=packed)[2])
    assert [one["name"] for one in client.json("GET", "/v1/layers")] == ["base"]
    made = client.json("PUT", "/v1/functions/layered", CODE | {"layers": ["base"]})
    assert made["spec"]["layers"] == [layer["digest"]]
    assert client("DELETE", "/v1/layers/base")[0] == 204
