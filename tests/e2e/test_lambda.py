"""boto3 and functions in real sandboxes. Every call of the API: tests/unit/test_facade_lambda.py."""

import base64
import io
import json
import os
import signal
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from facade_lab import zipped
from joey.client.transport import Connection
from scenarios_cli import joey

pytestmark = pytest.mark.leak_scope("module")
ROLE = "arn:aws:iam::000000000000:role/any"
CODE = """
import os, time
def handler(event, context):
    print("hello", event)
    if event.get("exit"):
        os._exit(3)
    if event.get("sleep"):
        time.sleep(event["sleep"])
    if event.get("stream"):
        return (piece for piece in event["stream"])
    return {"event": event, "arn": context.invoked_function_arn, "id": context.aws_request_id, "env": os.environ["A"]}
"""
BOOTSTRAP = """#!/usr/bin/python3
import os, urllib.request
base = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(base + "next") as asked:
        id, body = asked.headers["Lambda-Runtime-Aws-Request-Id"], asked.read()
    answer = b'{"upper": ' + body.upper() + b', "handler": "' + os.environ["_HANDLER"].encode() + b'"}'
    urllib.request.urlopen(base + id + "/response", answer).close()
"""


def told(home: Path, *words: str) -> dict[str, str]:
    """What `eval "$(joey env lambda)"` sets."""
    lines = [line.removeprefix("export ").split("=", 1) for line in joey(home, "env", "lambda", *words).splitlines()]
    return dict(lines)


@pytest.fixture
def aws(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in told(home).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("lambda")  # finds everything itself
    yield client
    client.close()


def zipped_program(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, text)
    return out.getvalue()


def make(aws: Any, name: str, **more: Any) -> Any:
    wanted: dict[str, Any] = {
        "Runtime": "python3", "Handler": "index.handler", "Code": {"ZipFile": zipped(index=CODE)},
        "Environment": {"Variables": {"A": "b"}},
    }  # fmt: skip
    return aws.create_function(FunctionName=name, Role=ROLE, **(wanted | more))


def payload(answer: Any) -> Any:
    return json.loads(answer["Payload"].read())


def until(what: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never"
        time.sleep(0.05)
    return found


def test_functions_from_their_deployment_to_their_end(aws: Any) -> None:
    made = make(aws, "f", Timeout=1, MemorySize=256)
    aws.get_waiter("function_active_v2").wait(FunctionName="f")
    answer = aws.invoke(FunctionName="f", Payload=b'{"a": 1}', LogType="Tail")
    assert base64.b64decode(answer["LogResult"]) == b"hello {'a': 1}\n"
    said = payload(answer)
    assert said == {"event": {"a": 1}, "arn": made["FunctionArn"], "env": "b",
                    "id": answer["ResponseMetadata"]["RequestId"]}  # fmt: skip
    for event, error in (({"exit": 1}, "Runtime.ExitError"), ({"sleep": 5}, "Sandbox.Timedout")):
        failed = aws.invoke(FunctionName="f", Payload=json.dumps(event))
        assert failed["FunctionError"] == "Unhandled" and payload(failed)["errorType"] == error
    assert payload(aws.invoke(FunctionName="f"))["event"] == {}, "another instance took its place"
    events = list(aws.invoke_with_response_stream(FunctionName="f", Payload=b'{"stream": ["a", "b"]}')["EventStream"])
    assert b"".join(one["PayloadChunk"]["Payload"] for one in events[:-1]) == b"ab" and "InvokeComplete" in events[-1]
    with urllib.request.urlopen(aws.get_function(FunctionName="f")["Code"]["Location"]) as archive:
        assert archive.read(2) == b"PK"
    aws.publish_version(FunctionName="f")
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    url = aws.create_function_url_config(FunctionName="f", Qualifier="live", AuthType="NONE")["FunctionUrl"]
    with urllib.request.urlopen(url + "x?y=z") as page:
        assert json.load(page)["event"]["rawPath"] == "/x"
    aws.put_provisioned_concurrency_config(FunctionName="f", Qualifier="live", ProvisionedConcurrentExecutions=1)
    until(lambda: aws.get_provisioned_concurrency_config(FunctionName="f", Qualifier="live")["Status"] == "READY")
    aws.delete_function(FunctionName="f")
    with pytest.raises(aws.exceptions.ResourceNotFoundException):
        aws.invoke(FunctionName="f")


def test_a_program_that_asks_the_runtime_api(aws: Any) -> None:
    code = {"ZipFile": zipped_program("bootstrap", BOOTSTRAP)}
    make(aws, "own", Runtime="provided.al2023", Handler="my.handler", Code=code)
    assert payload(aws.invoke(FunctionName="own", Payload=b'"abc"')) == {"upper": "ABC", "handler": "my.handler"}
    aws.delete_function(FunctionName="own")


def test_events_outlive_the_daemon_and_credentials_do_too(home: Path, aws: Any) -> None:
    file = "def handler(event, context):\n    raise ValueError('no')\n"
    make(aws, "bad", Code={"ZipFile": zipped(index=file)})
    queue = {"Destination": "arn:aws:sqs:us-east-1:000000000000:dead"}
    aws.put_function_event_invoke_config(
        FunctionName="bad", MaximumRetryAttempts=0, DestinationConfig={"OnFailure": queue}
    )
    aws.put_function_concurrency(FunctionName="bad", ReservedConcurrentExecutions=0)  # it waits
    assert aws.invoke(FunctionName="bad", InvocationType="Event", Payload=b'{"n": 7}')["StatusCode"] == 202
    before = told(home)
    pid = int((home / "run/daemon.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}/status").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text())
    assert told(home) == before
    aws.put_function_concurrency(FunctionName="bad", ReservedConcurrentExecutions=1)
    (record,) = until(lambda: messages(home, "dead"))
    assert json.loads(record)["requestPayload"] == {"n": 7}
    assert json.loads(record)["requestContext"]["condition"] == "RetriesExhausted"
    aws.delete_function(FunctionName="bad")


def messages(home: Path, queue: str) -> list[bytes]:
    """As the administrator sees them."""
    with Connection.open(str(home / "run/api.sock")) as connection:
        return [base64.b64decode(one["body"]) for one in connection.call("GET", f"/v1/queues/{queue}")]


def test_whose_credentials(home: Path, aws: Any) -> None:
    make(aws, "mine")
    joey(home, "keys", "create", "--name", "other", "--admin")
    other = told(home, "--key", "other")
    assert other["AWS_ENDPOINT_URL_LAMBDA"] == told(home)["AWS_ENDPOINT_URL_LAMBDA"]
    assert other["AWS_SECRET_ACCESS_KEY"] != told(home)["AWS_SECRET_ACCESS_KEY"]
    assert (home / "lambda.json").stat().st_mode & 0o777 == 0o600
    session = boto3.Session(other["AWS_ACCESS_KEY_ID"], other["AWS_SECRET_ACCESS_KEY"])
    chief = session.client("lambda")
    assert [one["FunctionName"] for one in chief.list_functions()["Functions"]] == ["mine"]
    joey(home, "keys", "revoke", "other")
    with pytest.raises(ClientError) as error:
        chief.list_functions()
    assert error.value.response["Error"]["Code"] == "UnrecognizedClientException"
    aws.delete_function(FunctionName="mine")
    chief.close()
