"""Function Compute's SDK over its façade; what runs functions is this process (tests/facade_lab.py)."""

import base64
import inspect
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from alibabacloud_fc20230330 import models
from alibabacloud_fc20230330.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException
from alibabacloud_tea_openapi.models import Config
from alibabacloud_tea_openapi.utils import Utils
from darabonba.request import DaraRequest
from darabonba.runtime import RuntimeOptions

from facade_lab import Lab, lab, unzipped, zipped
from joey.api.facades.signed import Credentials

CODE = """
import json
def handler(event, context):
    print("hello", event)
    if b"boom" in event:
        raise ValueError("boom")
    if b"stream" in event:
        return iter(["a", "b"])
    return b"got " + event
"""
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]


@pytest.fixture(scope="module")
def served() -> Iterator[Lab]:
    with lab("fc") as found:
        yield found


def client(credentials: Credentials) -> Any:
    return Client(
        Config(
            access_key_id=credentials.key_id, access_key_secret=credentials.secret, protocol="HTTP",
            endpoint=credentials.url.removeprefix("http://"), region_id=credentials.region,
        )
    )  # fmt: skip


@pytest.fixture
def fc(served: Lab) -> Iterator[Any]:
    found = client(served.credentials)
    yield found
    for one in found.list_functions(models.ListFunctionsRequest(limit=100)).body.functions:
        found.delete_function(one.function_name)


def make(fc: Any, name: str = "f", source: str = CODE, **more: Any) -> Any:
    wanted = {
        "runtime": "python3", "handler": "index.handler",
        "code": models.InputCodeLocation(zip_file=base64.b64encode(zipped(index=source)).decode()),
    }  # fmt: skip
    body = models.CreateFunctionInput(function_name=name, **(wanted | more))
    return fc.create_function(models.CreateFunctionRequest(body=body)).body


def call(fc: Any, name: str, body: bytes = b"x", qualifier: str | None = None, **headers: str) -> Any:
    given = models.InvokeFunctionHeaders(**{f"x_fc_{key}": value for key, value in headers.items()})
    request = models.InvokeFunctionRequest(body=body, qualifier=qualifier)
    return fc.invoke_function_with_options(name, request, given, RuntimeOptions())


def refused(code: str, work: Any, *words: str) -> None:
    with pytest.raises(ClientException) as error:
        work()
    assert error.value.code == code, error.value
    assert error.value.data["RequestId"]
    for word in words:
        assert word in error.value.message, error.value


def update(fc: Any, name: str = "f", **fields: Any) -> Any:
    return fc.update_function(name, models.UpdateFunctionRequest(body=models.UpdateFunctionInput(**fields))).body


def publish(fc: Any, description: str = "") -> Any:
    body = models.PublishVersionInput(description=description)
    return fc.publish_function_version("f", models.PublishFunctionVersionRequest(body=body)).body


def test_a_function_from_its_creation_to_its_end(fc: Any) -> None:
    hooks = models.InstanceLifecycleConfig(initializer=models.LifecycleHook(handler="index.init", timeout=4))
    made = make(
        fc, description="d", timeout=7, memory_size=256, cpu=0.5, disk_size=512, instance_concurrency=2,
        environment_variables={"A": "b"}, instance_lifecycle_config=hooks, internet_access=False,
        tags=[models.Tag(key="team", value="x")],
    )  # fmt: skip
    assert made.function_arn == "acs:fc:us-east-1:000000000000:functions/f" and made.state == "Active"
    found = fc.get_function("f", models.GetFunctionRequest()).body
    assert (found.timeout, found.memory_size, found.cpu, found.disk_size, found.internet_access) == (
        7, 256, 0.5, 512, False,
    )  # fmt: skip
    assert found.environment_variables == {"A": "b"} and found.instance_lifecycle_config.initializer.timeout == 4
    assert found.tags[0].key == "team" and found.code_size == len(zipped(index=CODE))
    with urllib.request.urlopen(fc.get_function_code("f", models.GetFunctionCodeRequest()).body.url) as answered:
        assert unzipped(answered.read()) == {"index": CODE}
    assert update(fc, timeout=9).timeout == 9 and update(fc, memory_size=128).timeout == 9
    code = base64.b64encode(zipped(index="def handler(event, context):\n    return 'two'\n")).decode()
    update(fc, code=models.InputCodeLocation(zip_file=code))
    assert call(fc, "f").body.read() == b"two"
    refused("FunctionAlreadyExists", lambda: make(fc))
    make(fc, "g", runtime="python3", tags=[models.Tag(key="team", value="y")])
    for request, names in (
        ({"prefix": "g"}, ["g"]), ({"limit": 1}, ["f"]), ({"tags": [models.Tag(key="team", value="y")]}, ["g"]),
        ({"runtime": "custom"}, []),
    ):  # fmt: skip
        answer = fc.list_functions(models.ListFunctionsRequest(**request)).body
        assert [one.function_name for one in answer.functions] == names
    token = fc.list_functions(models.ListFunctionsRequest(limit=1)).body.next_token
    rest = fc.list_functions(models.ListFunctionsRequest(limit=1, next_token=token)).body
    assert [one.function_name for one in rest.functions] == ["g"] and rest.next_token is None
    assert fc.delete_function("f").status_code == 204
    refused("FunctionNotFound", lambda: fc.get_function("f", models.GetFunctionRequest()))


def test_a_python_that_is_not_here_is_told_of(fc: Any) -> None:
    assert make(fc).state_reason is None
    assert "python3.99 is not on this machine" in make(fc, "old", runtime="python3.99").state_reason


def test_invocations(fc: Any) -> None:
    make(fc)
    done = call(fc, "f", b"\xff\0", log_type="Tail")
    assert done.status_code == 200 and done.body.read() == b"got \xff\0" and "x-fc-error-type" not in done.headers
    assert base64.b64decode(done.headers["x-fc-log-result"]).startswith(b"hello") and done.headers["x-fc-request-id"]
    assert int(done.headers["x-fc-invocation-duration"]) >= 1
    failed = call(fc, "f", b"boom")
    assert failed.status_code == 200 and failed.headers["x-fc-error-type"] == "UnhandledInvocationError"
    assert json.loads(failed.body.read())["errorType"] == "ValueError"
    assert call(fc, "f", b"stream").body.read() == b"ab"
    make(fc, "broken", "import nothing_of_that_name")
    assert call(fc, "broken").headers["x-fc-error-type"] == "InitializationError"
    refused("VersionNotFound", lambda: call(fc, "f", qualifier="9"))
    refused("AliasNotFound", lambda: call(fc, "f", qualifier="no"))
    refused("FunctionNotFound", lambda: call(fc, "none"))
    refused("InvalidArgument", lambda: call(fc, "f", invocation_type="Later"), "x-fc-invocation-type")
    refused("InvalidArgument", lambda: call(fc, "f", async_task_id="t"), "x-fc-async-task-id")


def test_asynchronous_invocations_are_tasks(fc: Any) -> None:
    make(fc)
    queued = call(fc, "f", b"one", invocation_type="Async", async_task_id="task-1")
    assert queued.status_code == 202 and queued.headers["x-fc-async-task-id"] == "task-1"
    refused("AsyncTaskAlreadyExists", lambda: call(fc, "f", invocation_type="Async", async_task_id="task-1"))

    def state(id: str) -> Any:
        return fc.get_async_task("f", id, models.GetAsyncTaskRequest()).body

    end = time.monotonic() + 10
    while state("task-1").status in ("Enqueued", "Running") and time.monotonic() < end:
        time.sleep(0.01)
    found = state("task-1")
    assert (found.status, found.return_payload, found.already_retried_times) == ("Succeeded", "got one", 0)
    assert found.end_time >= found.started_time and found.function_arn.endswith("functions/f/LATEST")
    config = models.PutAsyncInvokeConfigInput(max_async_retry_attempts=0, max_async_event_age_in_seconds=60)
    fc.put_async_invoke_config("f", models.PutAsyncInvokeConfigRequest(body=config))
    bad = call(fc, "f", b"boom", invocation_type="Async").headers["x-fc-async-task-id"]
    while state(bad).status in ("Enqueued", "Running", "Retrying") and time.monotonic() < end:
        time.sleep(0.01)
    assert state(bad).status == "Failed" and state(bad).task_error_message == "ValueError"
    rows = fc.list_async_tasks("f", models.ListAsyncTasksRequest()).body.tasks
    assert [one.task_id for one in rows] == [bad, "task-1"]
    (row,) = fc.list_async_tasks("f", models.ListAsyncTasksRequest(status="Succeeded", prefix="task")).body.tasks
    assert row.task_id == "task-1"
    first = fc.list_async_tasks("f", models.ListAsyncTasksRequest(limit=1)).body
    after = fc.list_async_tasks("f", models.ListAsyncTasksRequest(limit=1, next_token=first.next_token)).body
    assert [first.tasks[0].task_id, after.tasks[0].task_id] == [bad, "task-1"]
    refused("AsyncInvocationStopped", lambda: fc.stop_async_task("f", bad, models.StopAsyncTaskRequest()))
    slow = "import time\ndef handler(event, context):\n    time.sleep(0.5)\n"
    make(fc, "slow", slow)
    call(fc, "slow", invocation_type="Async", async_task_id="long")
    fc.stop_async_task("slow", "long", models.StopAsyncTaskRequest())
    assert fc.get_async_task("slow", "long", models.GetAsyncTaskRequest()).body.status == "Stopped"
    refused("AsyncTaskNotFound", lambda: state("none"))
    refused("AsyncTaskNotFound", lambda: state("long"))


def test_versions_and_aliases(fc: Any) -> None:
    make(fc)
    for number in (1, 2, 3):
        update(fc, description=str(number))
        assert publish(fc, f"v{number}").version_id == str(number)

    def versions(**request: Any) -> list[str]:
        answer = fc.list_function_versions("f", models.ListFunctionVersionsRequest(**request)).body
        return [one.version_id for one in answer.versions]

    assert versions() == ["3", "2", "1"] and versions(direction="FORWARD", limit=2) == ["1", "2"]
    body = models.CreateAliasInput(
        alias_name="live", version_id="1", description="d", additional_version_weight={"2": 0.5}
    )
    made = fc.create_alias("f", models.CreateAliasRequest(body=body)).body
    assert (made.alias_name, made.version_id, made.additional_version_weight) == ("live", "1", {"2": 0.5})
    refused("AliasAlreadyExists", lambda: fc.create_alias("f", models.CreateAliasRequest(body=body)))
    ran = {call(fc, "f", qualifier="live").headers["x-fc-version-id"] for _ in range(40)}
    assert ran == {"1", "2"} and call(fc, "f", qualifier="LATEST").headers["x-fc-version-id"] == "LATEST"
    changes = models.UpdateAliasInput(version_id="3", additional_version_weight={})
    changed = fc.update_alias("f", "live", models.UpdateAliasRequest(body=changes)).body
    assert (changed.version_id, changed.description) == ("3", "d")
    assert fc.get_function("f", models.GetFunctionRequest(qualifier="live")).body.description == "3"
    assert [one.alias_name for one in fc.list_aliases("f", models.ListAliasesRequest()).body.aliases] == ["live"]
    fc.delete_function_version("f", "1")
    assert versions() == ["3", "2"]
    refused("ConcurrentUpdateError", lambda: fc.delete_function_version("f", "3"))
    fc.delete_alias("f", "live")
    refused("AliasNotFound", lambda: fc.get_alias("f", "live"))


def test_concurrency_provision_and_scaling(fc: Any) -> None:
    make(fc)
    refused("OnDemandConfigNotFound", lambda: fc.get_concurrency_config("f"))
    body = models.PutConcurrencyInput(reserved_concurrency=0)
    assert fc.put_concurrency_config("f", models.PutConcurrencyConfigRequest(body=body)).body.reserved_concurrency == 0
    refused("ResourceExhausted", lambda: call(fc, "f"))
    assert fc.get_concurrency_config("f").body.reserved_concurrency == 0
    assert len(fc.list_concurrency_configs(models.ListConcurrencyConfigsRequest()).body.configs) == 1
    fc.delete_concurrency_config("f")
    publish(fc)
    target = models.PutProvisionConfigInput(default_target=2)
    fc.put_provision_config("f", models.PutProvisionConfigRequest(body=target, qualifier="1"))
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = fc.get_provision_config("f", models.GetProvisionConfigRequest(qualifier="1")).body
        if found.current == 2:
            break
    assert (found.target, found.current) == (2, 2)
    rows = fc.list_instances("f", models.ListInstancesRequest()).body.instances
    assert len(rows) == 2 and {one.version_id for one in rows} == {"1"}
    scaling = models.PutScalingConfigInput(min_instances=1)
    put = fc.put_scaling_config("f", models.PutScalingConfigRequest(body=scaling, qualifier="1")).body
    assert put.min_instances == 1
    (row,) = fc.list_scaling_configs(models.ListScalingConfigsRequest(function_name="f")).body.scaling_configs
    assert row.function_arn.endswith("functions/f/1") and row.min_instances == 1
    assert len(fc.list_provision_configs(models.ListProvisionConfigsRequest()).body.provision_configs) == 1
    fc.delete_scaling_config("f", models.DeleteScalingConfigRequest(qualifier="1"))
    assert fc.get_provision_config("f", models.GetProvisionConfigRequest(qualifier="1")).body.target == 0
    for wrong, word in (
        ({"min_instances": 1, "enable_on_demand_scaling": False}, "enableOnDemandScaling"),
        ({"min_instances": 1, "resident_pool_id": "p"}, "residentPoolId"),
        ({"min_instances": -1}, "minInstances"),
        ({"min_instances": 1, "scheduled_policies": [models.ScheduledPolicy(name="n")]}, "scheduledPolicies"),
    ):
        request = models.PutScalingConfigRequest(body=models.PutScalingConfigInput(**wrong), qualifier="1")
        refused("InvalidArgument", lambda request=request: fc.put_scaling_config("f", request), word)


def test_how_events_are_treated(fc: Any) -> None:
    make(fc)
    make(fc, "dead")
    refused("AsyncConfigNotExists", lambda: fc.get_async_invoke_config("f", models.GetAsyncInvokeConfigRequest()))
    arn = "acs:fc:us-east-1:000000000000:functions/dead"
    config = models.PutAsyncInvokeConfigInput(
        max_async_retry_attempts=1, max_async_event_age_in_seconds=60, async_task=True,
        destination_config=models.DestinationConfig(on_failure=models.Destination(destination=arn)),
    )  # fmt: skip
    fc.put_async_invoke_config("f", models.PutAsyncInvokeConfigRequest(body=config))
    found = fc.get_async_invoke_config("f", models.GetAsyncInvokeConfigRequest()).body
    assert found.max_async_retry_attempts == 1 and found.destination_config.on_failure.destination == arn
    assert len(fc.list_async_invoke_configs(models.ListAsyncInvokeConfigsRequest()).body.configs) == 1
    queue = "acs:mns:us-east-1:000000000000:/queues/q/messages"
    config.destination_config.on_failure.destination = queue
    put = fc.put_async_invoke_config("f", models.PutAsyncInvokeConfigRequest(body=config)).body
    assert put.destination_config.on_failure.destination == queue
    config.destination_config.on_failure.destination = "acs:mns:::queue"
    refused(
        "InvalidArgument", lambda: fc.put_async_invoke_config("f", models.PutAsyncInvokeConfigRequest(body=config)),
        "destination",
    )  # fmt: skip
    fc.delete_async_invoke_config("f", models.DeleteAsyncInvokeConfigRequest())
    refused("AsyncConfigNotExists", lambda: fc.delete_async_invoke_config("f", models.DeleteAsyncInvokeConfigRequest()))


def trigger(fc: Any, name: str, kind: str, **config: Any) -> Any:
    body = models.CreateTriggerInput(trigger_name=name, trigger_type=kind, trigger_config=json.dumps(config))
    return fc.create_trigger("f", models.CreateTriggerRequest(body=body)).body


def status(fc: Any, method: str, url: str, signed: bool) -> int:
    """Of a request to a trigger's address, signed as FC's documentation does it."""
    request = DaraRequest()
    request.method, request.pathname = method, urlsplit(url).path
    request.headers = {"x-acs-date": Utils.get_timestamp()}
    if signed:
        key = fc._credential.get_credential()
        request.headers["authorization"] = Utils.get_authorization(
            request, "ACS3-HMAC-SHA256", "", key.access_key_id, key.access_key_secret
        )
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=request.headers)) as answered:
            return int(answered.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_triggers(fc: Any) -> None:
    answer = "import json\ndef handler(event, context):\n    return json.dumps({'statusCode': 201, 'body': 'hi'})\n"
    make(fc, source=answer)
    made = trigger(fc, "tick", "timer", cronExpression="0 0 4 * * *", payload="p", enable=True)
    assert json.loads(made.trigger_config) == {"cronExpression": "0 0 4 * * *", "payload": "p", "enable": True}
    refused("TriggerAlreadyExists", lambda: trigger(fc, "tick", "timer", cronExpression="@every 4m", enable=True))
    changes = models.UpdateTriggerInput(trigger_config=json.dumps({"enable": False}))
    changed = fc.update_trigger("f", "tick", models.UpdateTriggerRequest(body=changes)).body
    assert json.loads(changed.trigger_config) == {"cronExpression": "0 0 4 * * *", "payload": "p", "enable": False}
    web = trigger(fc, "web", "http", authType="anonymous", methods=METHODS)
    with urllib.request.urlopen(web.http_trigger.url_internet) as answered:
        assert (answered.status, answered.read()) == (201, b"hi")
    changes = models.UpdateTriggerInput(trigger_config=json.dumps({"authType": "function", "methods": ["GET", "HEAD"]}))
    fc.update_trigger("f", "web", models.UpdateTriggerRequest(body=changes))
    url = web.http_trigger.url_internet
    assert [status(fc, method, url, signed) for signed in (False, True) for method in ("GET", "POST")] == [
        401, 405, 201, 405,
    ]  # fmt: skip
    found = fc.list_triggers("f", models.ListTriggersRequest(prefix="t")).body.triggers
    assert [one.trigger_name for one in found] == ["tick"]
    for kind, config, word in (
        ("oss", {}, "triggerType"), ("timer", {"cronExpression": "soon"}, "schedule"), ("timer", {}, "cronExpression"),
        ("http", {"authType": "jwt", "methods": METHODS}, "authType"),
        ("http", {"authType": "anonymous", "methods": ["LOOK"]}, "methods"),
        ("http", {"authType": "anonymous", "methods": METHODS, "disableURLInternet": True}, "disableURLInternet"),
    ):  # fmt: skip
        refused("InvalidArgument", lambda kind=kind, config=config: trigger(fc, "x", kind, **config), word)
    fc.delete_trigger("f", "web")
    refused("TriggerNotFound", lambda: fc.get_trigger("f", "web"))


def test_tags(fc: Any) -> None:
    make(fc)
    tags = [models.Tag(key="a", value="1"), models.Tag(key="b", value="2")]
    body = models.TagResourcesInput(resource_id=["f"], resource_type="function", tag=tags)
    fc.tag_resources(models.TagResourcesRequest(body=body))
    request = models.UntagResourcesRequest(resource_id=["f"], resource_type="function", tag_key=["a"])
    fc.untag_resources(request)
    listed = fc.list_tag_resources(models.ListTagResourcesRequest(resource_type="function", resource_id=["f"])).body
    assert [(one.resource_id, one.tag_key, one.tag_value) for one in listed.tag_resources] == [("f", "b", "2")]


def test_layers(fc: Any) -> None:
    for number in (1, 2):
        code = models.InputCodeLocation(zip_file=base64.b64encode(zipped(module=f"N = {number}")).decode())
        body = models.CreateLayerVersionInput(code=code, description=f"v{number}", compatible_runtime=["python3.12"])
        made = fc.create_layer_version("lib", models.CreateLayerVersionRequest(body=body)).body
        assert made.version == number and made.layer_version_arn.endswith(f"layers/lib/versions/{number}")
    with urllib.request.urlopen(fc.get_layer_version("lib", "1").body.code.location) as answered:
        assert unzipped(answered.read()) == {"module": "N = 1"}
    assert fc.get_layer_version_by_arn(made.layer_version_arn).body.description == "v2"
    (row,) = fc.list_layers(models.ListLayersRequest()).body.layers
    assert (row.layer_name, row.version, row.compatible_runtime) == ("lib", 2, ["python3.12"])
    first = fc.list_layer_versions("lib", models.ListLayerVersionsRequest(limit=1)).body
    assert [one.version for one in first.layers] == [1] and first.next_version == 2
    reads = "def handler(event, context):\n    return (LAYERS / 'module.py').read_text()\n"
    shown = make(fc, source=reads, layers=[made.layer_version_arn]).layers
    assert shown[0].arn == made.layer_version_arn and shown[0].size == made.code_size
    assert call(fc, "f").body.read() == b"N = 2"
    for version in ("1", "2"):
        fc.delete_layer_version("lib", version)
    refused("LayerNotFound", lambda: fc.get_layer_version("lib", "1"))


SAMPLES = {
    "custom_dns": models.CustomDNS(name_servers=["1.1.1.1"]), "disable_inject_credentials": "Env",
    "disable_ondemand": True, "enable_long_living": True, "gpu_config": models.GPUConfig(gpu_type="t"),
    "instance_isolation_mode": "SESSION_EXCLUSIVE", "layers": ["acs:fc:x"], "resource_group_id": "r",
    "role": "acs:ram::1",
    "log_config": models.LogConfig(project="p"), "nas_config": models.NASConfig(user_id=1),
    "oss_mount_config": models.OSSMountConfig(mount_points=[models.OSSMountPoint(bucket_name="b")]),
    "session_affinity": "HEADER_FIELD", "session_affinity_config": "{}",
    "tracing_config": models.TracingConfig(type="t"),
    "vpc_config": models.VPCConfig(vpc_id="v"), "runtime": "nodejs20", "timeout": 0, "memory_size": 1,
    "code": models.InputCodeLocation(oss_bucket_name="b", oss_object_name="o"),
    "custom_container_config": models.CustomContainerConfig(image="i"),
    "custom_runtime_config": models.CustomRuntimeConfig(command=["c"]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_what_is_not_honoured_or_wrong_is_refused_by_name(fc: Any, name: str) -> None:
    words = name.split("_")
    camel = words[0] + "".join(word.title() for word in words[1:])
    known = {"customDns": "customDNS", "ossMountConfig": "ossMountConfig", "code": "code.ossBucketName"}
    refused("InvalidArgument", lambda: make(fc, **{name: SAMPLES[name]}), known.get(camel, camel))
    assert fc.list_functions(models.ListFunctionsRequest()).body.functions == []


HONOURED = set(
    "code cpu description diskSize environmentVariables functionName handler idleTimeout instanceConcurrency"
    " instanceLifecycleConfig internetAccess layers memorySize runtime tags timeout customContainerConfig"
    " customRuntimeConfig logConfig".split()
)
"""And customContainerConfig … logConfig in part: see SAMPLES."""


class Raw(models.CreateFunctionInput):
    """A body with one parameter more, of any value."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.values = values

    def to_map(self) -> dict[str, Any]:
        return self.values


def test_every_parameter_of_the_sdk_is_honoured_or_refused(fc: Any) -> None:
    """Also one that the SDK gets later."""
    names = set(re.findall(r"result\['(\w+)'\]", inspect.getsource(models.CreateFunctionInput.to_map)))
    assert names > HONOURED
    code = {"zipFile": base64.b64encode(zipped(index=CODE)).decode()}
    for name in [*sorted(names - HONOURED), "soon"]:
        body = Raw(functionName="f", runtime="python3", handler="index.handler", code=code, **{name: {"x": "y"}})
        request = models.CreateFunctionRequest(body=body)
        refused("InvalidArgument", lambda request=request: fc.create_function(request), name, "supported by Joey")


def test_the_id_of_a_task_is_taken_for_its_own_key_only(served: Lab, fc: Any) -> None:
    another = client(served.another("namesake"))
    for one, body in ((fc, b"mine"), (another, b"theirs")):
        make(one)
        assert call(one, "f", body, invocation_type="Async", async_task_id="job").status_code == 202
    for one, body in ((fc, "mine"), (another, "theirs")):
        end = time.monotonic() + 10
        while (found := one.get_async_task("f", "job", models.GetAsyncTaskRequest()).body).status != "Succeeded":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert (found.task_id, found.return_payload) == ("job", f"got {body}")
        assert one.list_async_tasks("f", models.ListAsyncTasksRequest()).body.tasks[0].task_id == "job"
    another.delete_function("f")


def test_operations_that_there_are_not_and_strangers(served: Lab, fc: Any) -> None:
    refused("PathNotSupported", lambda: fc.describe_regions(models.DescribeRegionsRequest()), "supported by Joey")
    make(fc)
    stranger = client(served.another("stranger"))
    refused("FunctionNotFound", lambda: call(stranger, "f"))
    wrong = client(Credentials(url=served.credentials.url, key_id=served.credentials.key_id, secret="no"))
    refused("SignatureNotMatch", lambda: call(wrong, "f"))
    nobody = client(Credentials(url=served.credentials.url, key_id="0" * 12, secret="no"))
    refused("InvalidAccessKeyID", lambda: call(nobody, "f"))
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(served.credentials.url + "/2023-03-30/functions")
    assert error.value.code == 400 and json.load(error.value)["Code"] == "MissingRequiredHeader"
    error.value.close()
