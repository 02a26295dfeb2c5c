"""Function Compute's SDK and functions in real sandboxes. Every call of the API: tests/unit/test_facade_fc.py."""

import base64
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_fc20230330 import models
from alibabacloud_fc20230330.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException
from alibabacloud_tea_openapi.models import Config
from darabonba.core import DaraCore
from darabonba.runtime import RuntimeOptions

from facade_lab import zipped
from scenarios_cli import joey

pytestmark = pytest.mark.leak_scope("module")
CODE = """
import json, os
ready = []
def init(context):
    ready.append("yes")
def handler(event, context):
    print("hello", event)
    if event == b"boom":
        raise ValueError("boom")
    if event[:1] == b"{" and "rawPath" in json.loads(event):
        return {"statusCode": 201, "headers": {"X-A": "b"}, "body": json.loads(event)["rawPath"]}
    return json.dumps([event.decode(), ready, context.request_id, os.environ["A"]])
"""
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode() + b" " + body)
    do_GET = do_POST
http.server.HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]


@pytest.fixture
def fc(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in json.loads(joey(home, "env", "fc", "--json")).items():
        monkeypatch.setenv(name, value)
    yield Client(
        Config(
            endpoint=os.environ["FC_ENDPOINT"], protocol=os.environ["FC_PROTOCOL"], region_id=os.environ["FC_REGION"],
            access_key_id=os.environ["ALIBABA_CLOUD_ACCESS_KEY_ID"],
            access_key_secret=os.environ["ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
        )
    )  # fmt: skip
    while DaraCore._sessions:  # the SDK keeps its connections for as long as the process lives
        DaraCore._sessions.popitem()[1].close()


def make(fc: Any, name: str, source: str = CODE, **more: Any) -> Any:
    wanted: dict[str, Any] = {
        "runtime": "python3", "handler": "index.handler", "environment_variables": {"A": "b"},
        "code": models.InputCodeLocation(zip_file=base64.b64encode(zipped(index=source)).decode()),
    }  # fmt: skip
    body = models.CreateFunctionInput(function_name=name, **(wanted | more))
    return fc.create_function(models.CreateFunctionRequest(body=body)).body


def call(fc: Any, name: str, body: bytes = b"x", qualifier: str | None = None, **headers: str) -> Any:
    given = models.InvokeFunctionHeaders(**{f"x_fc_{key}": value for key, value in headers.items()})
    request = models.InvokeFunctionRequest(body=body, qualifier=qualifier)
    return fc.invoke_function_with_options(name, request, given, RuntimeOptions(read_timeout=30_000))


def trigger(fc: Any, name: str, kind: str, **config: Any) -> Any:
    body = models.CreateTriggerInput(trigger_name=name, trigger_type=kind, trigger_config=json.dumps(config))
    return fc.create_trigger("f", models.CreateTriggerRequest(body=body)).body


def until(what: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never"
        time.sleep(0.05)
    return found


def test_functions_from_their_deployment_to_their_end(fc: Any) -> None:
    hooks = models.InstanceLifecycleConfig(initializer=models.LifecycleHook(handler="index.init", timeout=5))
    make(fc, "f", memory_size=256, instance_lifecycle_config=hooks)
    done = call(fc, "f", b"abc", log_type="Tail")
    assert json.loads(done.body.read()) == ["abc", ["yes"], done.headers["x-fc-request-id"], "b"]
    assert base64.b64decode(done.headers["x-fc-log-result"]) == b"hello b'abc'\n"
    failed = call(fc, "f", b"boom")
    assert failed.headers["x-fc-error-type"] == "UnhandledInvocationError"
    assert json.loads(failed.body.read())["errorType"] == "ValueError"
    version = fc.publish_function_version("f", models.PublishFunctionVersionRequest(body=models.PublishVersionInput()))
    alias = models.CreateAliasInput(alias_name="live", version_id=version.body.version_id)
    fc.create_alias("f", models.CreateAliasRequest(body=alias))
    assert call(fc, "f", qualifier="live").headers["x-fc-version-id"] == "1"
    web = trigger(fc, "web", "http", authType="anonymous", methods=METHODS).http_trigger.url_internet
    with urllib.request.urlopen(web + "a") as answered:
        assert (answered.status, answered.headers["X-A"], answered.read()) == (201, "b", b"/a")
    trigger(fc, "tick", "timer", cronExpression="@every 1s", enable=True, payload="tick")

    def tasks() -> Any:
        return fc.list_async_tasks("f", models.ListAsyncTasksRequest(status="Succeeded")).body.tasks

    until(tasks)
    fc.delete_trigger("f", "tick")
    queued = call(fc, "f", b"later", invocation_type="Async", async_task_id="mine")
    assert queued.status_code == 202
    found = until(lambda: next((one for one in tasks() if one.task_id == "mine"), None))
    found = fc.get_async_task("f", found.task_id, models.GetAsyncTaskRequest()).body
    assert json.loads(found.return_payload)[0] == "later"
    fc.delete_function("f")
    with pytest.raises(ClientException) as error:
        call(fc, "f")
    assert error.value.code == "FunctionNotFound"


def test_a_program_that_serves_http(fc: Any) -> None:
    command = models.CustomRuntimeConfig(command=["python3", "/code/index.py"], port=9000)
    make(fc, "own", SERVER, runtime="custom", custom_runtime_config=command)
    assert call(fc, "own", b"abc").body.read().endswith(b" abc")
    body = models.CreateTriggerInput(
        trigger_name="web", trigger_type="http",
        trigger_config=json.dumps({"authType": "anonymous", "methods": METHODS}),
    )  # fmt: skip
    url = fc.create_trigger("own", models.CreateTriggerRequest(body=body)).body.http_trigger.url_internet
    with urllib.request.urlopen(url + "x/y?z") as answered:
        assert answered.read() == b"/x/y?z "
    fc.delete_function("own")
