"""boto3 over the Lambda façade; what runs functions is this process (tests/facade_lab.py)."""

import base64
import contextlib
import json
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as Pair
from botocore.exceptions import ClientError

from facade_lab import Lab, lab, unzipped, zipped
from joey.api.facades.aws_lambda.server import LambdaServer
from joey.api.facades.signed import Credentials

ROLE = "arn:aws:iam::000000000000:role/any"
CODE = """
def handler(event, context):
    print("hello", event)
    if "boom" in event:
        raise ValueError(event["boom"])
    if "stream" in event:
        return iter(event["stream"])
    return {"event": event, "version": context.function_version, "arn": context.invoked_function_arn,
            "context": context.client_context}
"""
MODEL = botocore.session.get_session().get_service_model("lambda")


@pytest.fixture(scope="module")
def served() -> Iterator[Lab]:
    with lab("aws_lambda") as found:
        yield found


def client(credentials: Credentials) -> Any:
    return boto3.client(
        "lambda", endpoint_url=credentials.url, aws_access_key_id=credentials.key_id,
        aws_secret_access_key=credentials.secret, region_name=credentials.region,
        config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip


@pytest.fixture
def aws(served: Lab) -> Iterator[Any]:
    found = client(served.credentials)
    yield found
    for page in found.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2}):
        for one in page["Functions"]:
            found.delete_function(FunctionName=one["FunctionName"])
    assert found.list_functions()["Functions"] == []
    found.close()


def make(aws: Any, name: str = "f", code: str = CODE, **more: Any) -> dict[str, Any]:
    wanted = {"Runtime": "python3", "Role": ROLE, "Handler": "index.handler", "Code": {"ZipFile": zipped(index=code)}}
    return aws.create_function(FunctionName=name, **(wanted | more))


def refused(code: str, call: Any, *words: str, **arguments: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    said = error.value.response["Error"]
    assert said["Code"] == code, said
    for word in words:
        assert word in said["Message"], said
    return error.value


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        found: bytes = answer.read()
    return found


def payload(answer: dict[str, Any]) -> Any:
    return json.loads(answer["Payload"].read())


def test_a_function_from_its_creation_to_its_end(aws: Any) -> None:
    made = make(
        aws, Description="d", Timeout=7, MemorySize=256, Environment={"Variables": {"A": "b"}}, Tags={"team": "x"},
        EphemeralStorage={"Size": 512}, TracingConfig={"Mode": "PassThrough"}, Publish=True,
    )  # fmt: skip
    assert made["Version"] == "1" and made["FunctionArn"] == "arn:aws:lambda:us-east-1:000000000000:function:f:1"
    assert aws.get_waiter("function_active_v2").wait(FunctionName="f") is None
    found = aws.get_function(FunctionName="f")
    assert found["Tags"] == {"team": "x"} and "Concurrency" not in found
    assert unzipped(fetched(found["Code"]["Location"])) == {"index": CODE}
    with pytest.raises(urllib.error.HTTPError):
        fetched(found["Code"]["Location"][:-4] + "0000")
    shown = found["Configuration"]
    assert {name: shown[name] for name in ("Role", "Handler", "Timeout", "MemorySize", "Version", "State")} == {
        "Role": ROLE, "Handler": "index.handler", "Timeout": 7, "MemorySize": 256, "Version": "$LATEST",
        "State": "Active",
    }  # fmt: skip
    assert shown["Environment"] == {"Variables": {"A": "b"}} and shown["EphemeralStorage"] == {"Size": 512}
    assert shown["CodeSize"] == len(zipped(index=CODE)) and len(base64.b64decode(shown["CodeSha256"])) == 32
    changed = aws.update_function_configuration(FunctionName="f", Timeout=9, RevisionId=shown["RevisionId"])
    assert changed["Timeout"] == 9 and changed["MemorySize"] == 256 and changed["RevisionId"] != shown["RevisionId"]
    aws.get_waiter("function_updated_v2").wait(FunctionName="f")
    refused(
        "PreconditionFailedException", aws.update_function_configuration, FunctionName="f", Timeout=1,
        RevisionId=shown["RevisionId"],
    )  # fmt: skip
    other = "def handler(event, context):\n    return 2\n"
    dry = aws.update_function_code(FunctionName="f", ZipFile=zipped(index=other), DryRun=True)
    assert dry["CodeSha256"] != aws.get_function_configuration(FunctionName="f")["CodeSha256"]
    changed = aws.update_function_code(FunctionName="f", ZipFile=zipped(index=other), Publish=True)
    assert changed["Version"] == "2" and changed["CodeSha256"] != shown["CodeSha256"]
    assert [payload(aws.invoke(FunctionName=f"f{q}")) for q in ("", ":2", ":$LATEST")] == [2, 2, 2]
    assert aws.get_function_configuration(FunctionName="f", Qualifier="1")["Timeout"] == 7
    assert refused("ResourceConflictException", lambda: make(aws))
    aws.delete_function(FunctionName="f", Qualifier="1")
    refused("ResourceNotFoundException", aws.get_function, FunctionName="f", Qualifier="1")
    aws.delete_function(FunctionName="f")
    with pytest.raises(aws.exceptions.ResourceNotFoundException):
        aws.get_function(FunctionName="f")


def test_invocations(aws: Any) -> None:
    made = make(aws)
    answer = aws.invoke(
        FunctionName=made["FunctionArn"], Payload=b'{"a": 1}', LogType="Tail",
        ClientContext=base64.b64encode(b'{"c": 2}').decode(),
    )  # fmt: skip
    assert answer["StatusCode"] == 200 and answer["ExecutedVersion"] == "$LATEST" and "FunctionError" not in answer
    assert base64.b64decode(answer["LogResult"]) == b"hello {'a': 1}\n"
    assert payload(answer) == {
        "event": {"a": 1}, "version": "$LATEST", "arn": made["FunctionArn"], "context": {"c": 2},
    }  # fmt: skip
    assert payload(aws.invoke(FunctionName="f"))["event"] == {}, "no payload is an empty event"
    failed = aws.invoke(FunctionName="f", Payload=b'{"boom": "x"}')
    assert failed["StatusCode"] == 200 and failed["FunctionError"] == "Unhandled"
    said = payload(failed)
    assert (said["errorType"], said["errorMessage"]) == ("ValueError", "x") and set(said) > {"stackTrace", "requestId"}
    assert aws.invoke(FunctionName="f", InvocationType="DryRun")["StatusCode"] == 204
    assert aws.invoke(FunctionName="f", InvocationType="Event", Payload=b"{}")["StatusCode"] == 202
    assert aws.invoke_async(FunctionName="f", InvokeArgs=b"{}")["Status"] == 202
    refused("InvalidRequestContentException", aws.invoke, FunctionName="f", Payload=b"{")
    refused("InvalidRequestContentException", aws.invoke, FunctionName="f", ClientContext="x")
    refused("RequestTooLargeException", aws.invoke, FunctionName="f", Payload=b'"' + b"x" * (6 << 20) + b'"')
    big = b'"' + b"x" * (1 << 20) + b'"'
    refused("RequestTooLargeException", aws.invoke, FunctionName="f", Payload=big, InvocationType="Event")
    refused("InvalidParameterValueException", aws.invoke, "InvocationType", FunctionName="f", InvocationType="Never")
    refused("InvalidParameterValueException", aws.invoke, "LogType", FunctionName="f", LogType="Head")
    refused("InvalidParameterValueException", aws.invoke, "Tenant", FunctionName="f", TenantId="x")
    refused("ResourceNotFoundException", aws.invoke, FunctionName="f", Qualifier="9")
    refused("ResourceNotFoundException", aws.invoke, FunctionName="f:no")
    refused("InvalidParameterValueException", aws.invoke, "does not match", FunctionName="f:1", Qualifier="2")
    make(aws, "broken", "import nothing_of_that_name")
    broken = aws.invoke(FunctionName="broken")
    assert broken["FunctionError"] == "Unhandled" and payload(broken)["errorType"] == "Runtime.ImportModuleError"


def test_streams(aws: Any) -> None:
    make(aws)

    def events(body: bytes, **more: Any) -> list[Any]:
        return list(aws.invoke_with_response_stream(FunctionName="f", Payload=body, **more)["EventStream"])

    pieces = events(b'{"stream": ["a", "b"]}', LogType="Tail")
    assert [one["PayloadChunk"]["Payload"] for one in pieces[:-1]] == [b"a", b"b"]
    assert base64.b64decode(pieces[-1]["InvokeComplete"]["LogResult"]).startswith(b"hello")
    whole = events(b'{"a": 1}')
    assert json.loads(whole[0]["PayloadChunk"]["Payload"])["event"] == {"a": 1} and whole[1] == {"InvokeComplete": {}}
    (failed,) = events(b'{"boom": "x"}')
    assert failed["InvokeComplete"]["ErrorCode"] == "ValueError" and "boom" not in failed["InvokeComplete"]["ErrorCode"]
    refused("InvalidParameterValueException", lambda: events(b"{}", InvocationType="Event"))


def test_versions_and_aliases(aws: Any) -> None:
    make(aws)
    for number in range(1, 4):
        aws.update_function_configuration(FunctionName="f", Description=str(number))
        made = aws.publish_version(FunctionName="f", Description=f"v{number}")
        assert (made["Version"], made["Description"]) == (str(number), f"v{number}")
    pages = aws.get_paginator("list_versions_by_function").paginate(FunctionName="f", PaginationConfig={"PageSize": 2})
    assert [one["Version"] for page in pages for one in page["Versions"]] == ["$LATEST", "1", "2", "3"]
    everything = aws.list_functions(FunctionVersion="ALL")["Functions"]
    assert [one["Version"] for one in everything] == ["$LATEST", "1", "2", "3"]
    refused("InvalidParameterValueException", aws.publish_version, "CodeSha256", FunctionName="f", CodeSha256="no")
    made = aws.create_alias(
        FunctionName="f", Name="live", FunctionVersion="1", Description="d",
        RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}},
    )  # fmt: skip
    assert made["AliasArn"].endswith(":f:live") and made["RoutingConfig"] == {"AdditionalVersionWeights": {"2": 0.5}}
    assert {aws.invoke(FunctionName="f:live")["ExecutedVersion"] for _ in range(40)} == {"1", "2"}
    changed = aws.update_alias(FunctionName="f", Name="live", RoutingConfig={}, RevisionId=made["RevisionId"])
    assert "RoutingConfig" not in changed and changed["Description"] == "d" and changed["FunctionVersion"] == "1"
    refused(
        "PreconditionFailedException", aws.update_alias, FunctionName="f", Name="live", RevisionId=made["RevisionId"]
    )
    refused("ResourceConflictException", aws.create_alias, FunctionName="f", Name="live", FunctionVersion="1")
    refused("ResourceNotFoundException", aws.create_alias, FunctionName="f", Name="a", FunctionVersion="7")
    refused("ResourceConflictException", aws.delete_function, FunctionName="f", Qualifier="1")
    aws.create_alias(FunctionName="f", Name="beta", FunctionVersion="3")
    pages = aws.get_paginator("list_aliases").paginate(FunctionName="f", PaginationConfig={"PageSize": 1})
    assert [one["Name"] for page in pages for one in page["Aliases"]] == ["beta", "live"]
    assert [one["Name"] for one in aws.list_aliases(FunctionName="f", FunctionVersion="3")["Aliases"]] == ["beta"]
    assert aws.get_alias(FunctionName="f", Name="beta")["FunctionVersion"] == "3"
    aws.delete_alias(FunctionName="f", Name="beta")
    refused("ResourceNotFoundException", aws.get_alias, FunctionName="f", Name="beta")


def test_concurrency(aws: Any) -> None:
    make(aws)
    assert "ReservedConcurrentExecutions" not in aws.get_function_concurrency(FunctionName="f")
    assert aws.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)[
        "ReservedConcurrentExecutions"] == 0  # fmt: skip
    stopped = refused("TooManyRequestsException", aws.invoke, FunctionName="f")
    assert stopped.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    aws.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=5)
    assert aws.get_function(FunctionName="f")["Concurrency"] == {"ReservedConcurrentExecutions": 5}
    assert aws.get_account_settings()["AccountUsage"]["FunctionCount"] == 1
    aws.delete_function_concurrency(FunctionName="f")
    assert "Concurrency" not in aws.get_function(FunctionName="f")
    aws.publish_version(FunctionName="f")
    none = "ProvisionedConcurrencyConfigNotFoundException"
    refused(none, aws.get_provisioned_concurrency_config, FunctionName="f", Qualifier="1")
    put = aws.put_provisioned_concurrency_config(FunctionName="f", Qualifier="1", ProvisionedConcurrentExecutions=2)
    assert put["RequestedProvisionedConcurrentExecutions"] == 2 and put["Status"] in ("IN_PROGRESS", "READY")
    end = time.monotonic() + 20
    while (got := aws.get_provisioned_concurrency_config(FunctionName="f", Qualifier="1"))["Status"] != "READY":
        assert time.monotonic() < end
    assert got["AvailableProvisionedConcurrentExecutions"] == 2
    (row,) = aws.list_provisioned_concurrency_configs(FunctionName="f")["ProvisionedConcurrencyConfigs"]
    assert row["FunctionArn"].endswith(":f:1") and row["Status"] == "READY"
    aws.delete_provisioned_concurrency_config(FunctionName="f", Qualifier="1")
    refused(none, aws.delete_provisioned_concurrency_config, FunctionName="f", Qualifier="1")
    refused(
        "InvalidParameterValueException", aws.put_provisioned_concurrency_config, "Qualifier", FunctionName="f",
        Qualifier="$LATEST", ProvisionedConcurrentExecutions=1,
    )  # fmt: skip


def test_a_body_without_a_length_has_an_end_before_anybody_has_signed_it(served: Lab) -> None:
    """Who signs is only claimed then, and what comes is counted for nobody."""
    claim = f"AWS4-HMAC-SHA256 Credential={served.credentials.key_id}/x, SignedHeaders=host, Signature=x"
    where = urlsplit(served.credentials.url)
    sent, piece = 0, b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with socket.create_connection((where.hostname, where.port), 5) as connection:
        head = f"POST /fn/x/ HTTP/1.1\r\nHost: x\r\nAuthorization: {claim}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            while sent < 40 and not select.select([connection], [], [], 0)[0]:
                connection.sendall(piece)
                sent += 1
        assert sent < 40 and connection.recv(4096).split()[1] == b"413"


def test_urls_and_who_may(aws: Any) -> None:
    make(aws)
    refused("ResourceNotFoundException", aws.get_function_url_config, FunctionName="f")
    made = aws.create_function_url_config(FunctionName="f", AuthType="NONE")
    assert aws.get_function_url_config(FunctionName="f")["FunctionUrl"] == made["FunctionUrl"]
    with urllib.request.urlopen(made["FunctionUrl"] + "a/b?c=d") as answered:
        event = json.load(answered)["event"]
    assert event["rawPath"] == "/a/b" and event["queryStringParameters"] == {"c": "d"}
    refused("ResourceConflictException", aws.create_function_url_config, FunctionName="f", AuthType="NONE")
    for more in ({"AuthType": "MINE"}, {"Cors": {"AllowOrigins": ["*"]}}):
        refused("InvalidParameterValueException", aws.update_function_url_config, next(iter(more)), FunctionName="f",
                **more)  # fmt: skip
    url = aws.update_function_url_config(FunctionName="f", AuthType="AWS_IAM", InvokeMode="RESPONSE_STREAM")
    assert (url["AuthType"], url["InvokeMode"]) == ("AWS_IAM", "RESPONSE_STREAM")
    with pytest.raises(urllib.error.HTTPError) as error:
        fetched(made["FunctionUrl"])
    assert error.value.code == 401
    error.value.close()
    request = AWSRequest(method="POST", url=made["FunctionUrl"] + "x", data=b'{"n": 1}')
    SigV4Auth(aws._request_signer._credentials, "lambda", "us-east-1").add_auth(request)
    asked = urllib.request.Request(request.url, b'{"n": 1}', dict(request.headers))
    with urllib.request.urlopen(asked) as answered:
        event = json.load(answered)["event"]
    assert event["body"] == '{"n": 1}' and "authorization" not in event["headers"]
    asked = urllib.request.Request(request.url, b'{"n": 2}', dict(request.headers))
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(asked)
    assert error.value.code == 403
    error.value.close()
    everybody: dict[str, Any] = {
        "FunctionName": "f", "StatementId": "url", "Action": "lambda:InvokeFunctionUrl", "Principal": "*",
    }  # fmt: skip
    refused("ResourceNotFoundException", aws.get_policy, FunctionName="f")
    assert "url" in aws.add_permission(**everybody, FunctionUrlAuthType="NONE")["Statement"]
    refused("ResourceConflictException", aws.add_permission, **everybody, FunctionUrlAuthType="NONE")
    assert json.loads(aws.get_policy(FunctionName="f")["Policy"])["Statement"][0]["Sid"] == "url"
    assert aws.list_tags(Resource=made["FunctionArn"])["Tags"] == {}
    invalid = "InvalidParameterValueException"
    refused(invalid, aws.add_permission, **everybody, FunctionUrlAuthType="AWS_IAM")
    refused(
        invalid, aws.add_permission, "SourceArn", **everybody, FunctionUrlAuthType="NONE", SourceArn="arn:aws:s3:::b"
    )
    refused(invalid, aws.add_permission, **(everybody | {"Principal": "s3.amazonaws.com", "Action": "lambda:*"}))
    aws.remove_permission(FunctionName="f", StatementId="url")
    refused("ResourceNotFoundException", aws.remove_permission, FunctionName="f", StatementId="url")
    assert len(aws.list_function_url_configs(FunctionName="f")["FunctionUrlConfigs"]) == 1
    aws.delete_function_url_config(FunctionName="f")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(made["FunctionUrl"])


def test_a_python_that_is_not_here_is_told_of(aws: Any) -> None:
    assert "StateReason" not in make(aws)
    made = make(aws, "old", Runtime="python3.99")
    assert made["Runtime"] == "python3.99" and "python3.99 is not on this machine" in made["StateReason"]
    assert made["RuntimeVersionConfig"]["RuntimeVersionArn"].endswith("runtime:host/python3")


def test_how_events_are_treated_and_tags(aws: Any) -> None:
    arn = make(aws)["FunctionArn"]
    make(aws, "dead")
    refused("ResourceNotFoundException", aws.get_function_event_invoke_config, FunctionName="f")
    refused("ResourceNotFoundException", aws.update_function_event_invoke_config, FunctionName="f")
    dead = {"OnFailure": {"Destination": arn.removesuffix("f") + "dead"}}
    put = aws.put_function_event_invoke_config(
        FunctionName="f", MaximumRetryAttempts=1, MaximumEventAgeInSeconds=60, DestinationConfig=dead
    )
    assert put["DestinationConfig"] == {"OnSuccess": {}, **dead} and put["FunctionArn"] == f"{arn}:$LATEST"
    changed = aws.update_function_event_invoke_config(FunctionName="f", MaximumRetryAttempts=0)
    assert changed["MaximumRetryAttempts"] == 0 and changed["MaximumEventAgeInSeconds"] == 60
    assert changed["DestinationConfig"]["OnFailure"] == dead["OnFailure"]
    assert len(aws.list_function_event_invoke_configs(FunctionName="f")["FunctionEventInvokeConfigs"]) == 1
    refused(
        "InvalidParameterValueException", aws.put_function_event_invoke_config, "Destination", FunctionName="f",
        DestinationConfig={"OnSuccess": {"Destination": "arn:aws:sns:us-east-1:000000000000:q"}},
    )  # fmt: skip
    queue = {"Destination": "arn:aws:sqs:us-east-1:000000000000:q"}
    put = aws.put_function_event_invoke_config(FunctionName="f", DestinationConfig={"OnSuccess": queue})
    assert put["DestinationConfig"] == {"OnSuccess": queue, "OnFailure": {}}
    aws.delete_function_event_invoke_config(FunctionName="f")
    refused("ResourceNotFoundException", aws.delete_function_event_invoke_config, FunctionName="f")
    aws.tag_resource(Resource=arn, Tags={"a": "1", "b": "2"})
    aws.untag_resource(Resource=arn, TagKeys=["a"])
    assert aws.list_tags(Resource=arn)["Tags"] == {"b": "2"}
    assert aws.get_function_configuration(FunctionName="f")["Role"] == ROLE
    refused("InvalidParameterValueException", aws.tag_resource, Resource=arn, Tags={"joey.x": "1"})


def test_pages_skip_nothing_when_what_they_showed_is_deleted(aws: Any) -> None:
    for number in range(5):
        make(aws, f"p{number}")
    marker: dict[str, str] = {}
    seen = []
    while True:
        page = aws.list_functions(MaxItems=2, **marker)
        for one in page["Functions"]:
            seen.append(one["FunctionName"])
            aws.delete_function(FunctionName=one["FunctionName"])
        if "NextMarker" not in page:
            break
        marker = {"Marker": page["NextMarker"]}
    assert seen == [f"p{number}" for number in range(5)]
    refused("InvalidParameterValueException", aws.list_functions, "Marker", Marker="x")
    refused("InvalidParameterValueException", aws.list_functions, "MasterRegion", MasterRegion="us-east-1")
    assert aws.list_layers()["Layers"] == [] and aws.list_event_source_mappings()["EventSourceMappings"] == []


def test_layers(aws: Any) -> None:
    for number in (1, 2):
        made = aws.publish_layer_version(
            LayerName="lib", Content={"ZipFile": zipped(module=f"N = {number}")}, Description=f"v{number}",
            CompatibleRuntimes=["python3.12"],
        )  # fmt: skip
        assert made["Version"] == number and made["LayerVersionArn"].endswith(f":layer:lib:{number}")
    assert unzipped(fetched(made["Content"]["Location"])) == {"module": "N = 2"}
    (row,) = aws.list_layers()["Layers"]
    assert row["LayerName"] == "lib" and row["LatestMatchingVersion"]["Version"] == 2
    assert aws.list_layers(CompatibleRuntime="nodejs22.x")["Layers"] == []
    pages = aws.get_paginator("list_layer_versions").paginate(LayerName="lib", PaginationConfig={"PageSize": 1})
    assert [one["Version"] for page in pages for one in page["LayerVersions"]] == [2, 1]
    assert aws.get_layer_version_by_arn(Arn=made["LayerVersionArn"])["Description"] == "v2"
    reads = "def handler(event, context):\n    return (LAYERS / 'module.py').read_text()\n"
    shown = make(aws, code=reads, Layers=[made["LayerVersionArn"]])["Layers"]
    assert shown == [{"Arn": made["LayerVersionArn"], "CodeSize": made["Content"]["CodeSize"]}]
    assert payload(aws.invoke(FunctionName="f")) == "N = 2"
    first = made["LayerVersionArn"][:-1] + "1"
    assert aws.update_function_configuration(FunctionName="f", Layers=[first])["Layers"][0]["Arn"] == first
    assert payload(aws.invoke(FunctionName="f")) == "N = 1"
    assert "Layers" not in aws.update_function_configuration(FunctionName="f", Layers=[])
    gone = made["LayerVersionArn"][:-1] + "3"
    refused("InvalidParameterValueException", aws.update_function_configuration, "Layers", FunctionName="f",
            Layers=[gone])  # fmt: skip
    for number in (1, 2, 3):
        aws.delete_layer_version(LayerName="lib", VersionNumber=number)
    refused("ResourceNotFoundException", aws.get_layer_version, LayerName="lib", VersionNumber=1)
    refused(
        "InvalidParameterValueException", aws.publish_layer_version, "S3", LayerName="lib",
        Content={"S3Bucket": "bucket", "S3Key": "k"},
    )  # fmt: skip


HONOURED = {
    "create_function": (
        "FunctionName Runtime Role Handler Code Description Timeout MemorySize Publish PackageType Environment Tags"
        " EphemeralStorage Architectures ImageConfig Layers"
    ),
    "update_function_configuration": (
        "FunctionName Role Handler Description Timeout MemorySize Environment Runtime RevisionId ImageConfig"
        " EphemeralStorage Layers"
    ),
    "update_function_code": "FunctionName ZipFile ImageUri Publish RevisionId Architectures DryRun",
    "publish_version": "FunctionName CodeSha256 Description RevisionId",
}


def sample(shape: Any) -> Any:
    """Some value of a shape that asks for something."""
    if shape.type_name == "structure":
        return {name: sample(member) for name, member in shape.members.items()}
    if shape.type_name == "list":
        return [sample(shape.member)]
    if shape.type_name == "map":
        return {"k": sample(shape.value)}
    if getattr(shape, "enum", None):
        return shape.enum[0]
    values: dict[str, Any] = {"boolean": True, "integer": 1, "long": 1, "double": 0.5, "blob": b"x"}
    return values.get(shape.type_name, "arn:aws:x:us-east-1:000000000000:y")


@pytest.mark.parametrize("operation", sorted(HONOURED))
def test_every_parameter_that_is_not_honoured_is_refused_by_name(aws: Any, operation: str) -> None:
    made = make(aws)
    shape = MODEL.operation_model("".join(word.title() for word in operation.split("_"))).input_shape
    rest = set(shape.members) - set(HONOURED[operation].split())
    assert rest, "nothing to try"
    needed: dict[str, Any] = {"FunctionName": "f"}
    if operation == "create_function":
        needed = {"FunctionName": "g", "Runtime": "python3", "Role": ROLE, "Handler": "index.handler",
                  "Code": {"ZipFile": zipped(index=CODE)}}  # fmt: skip
    unchecked = client_without_checks(aws)
    for name in sorted(rest):
        error = refused(
            "InvalidParameterValueException", getattr(unchecked, operation), name, **needed,
            **{name: sample(shape.members[name])},
        )  # fmt: skip
        assert "not supported by Joey" in str(error), name
    assert [one["FunctionName"] for one in aws.list_functions()["Functions"]] == ["f"]
    assert aws.get_function_configuration(FunctionName="f")["RevisionId"] == made["RevisionId"], "something was done"


def client_without_checks(aws: Any) -> Any:
    """Samples are of the right shape, but not always of the right length."""
    return boto3.client(
        "lambda", endpoint_url=aws.meta.endpoint_url, region_name="us-east-1",
        config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
        aws_access_key_id=aws._request_signer._credentials.access_key,
        aws_secret_access_key=aws._request_signer._credentials.secret_key,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"Runtime": "nodejs22.x"}, "Runtime"), ({"Runtime": "python3.7"}, "Runtime"), ({"Role": "me"}, "Role"),
        ({"Timeout": 901}, "Timeout"), ({"MemorySize": 64}, "MemorySize"), ({"Handler": ""}, "handler"),
        ({"Architectures": ["riscv"]}, "Architectures"), ({"Code": {"S3Bucket": "b", "S3Key": "k"}}, "S3"),
        ({"Code": {}}, "ZipFile"), ({"Code": {"ZipFile": b"no zip"}}, "zip"), ({"FunctionName": "a b"}, "name"),
        ({"FunctionName": "arn:aws:lambda:us-east-1:123456789012:function:f"}, "account"),
        ({"Tags": {"joey.a": "b"}}, "Tags"),
        ({"EphemeralStorage": {"Size": 1}}, "EphemeralStorage"), ({"PackageType": "Image"}, "Runtime"),
        ({"Environment": {"Variables": {"a b": "c"}}}, "env"), ({"LoggingConfig": {"LogFormat": "JSON"}}, "LogFormat"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(aws: Any, change: dict[str, Any], word: str) -> None:
    unchecked = client_without_checks(aws)
    wanted = {"FunctionName": "f", "Runtime": "python3", "Role": ROLE, "Handler": "index.handler",
              "Code": {"ZipFile": zipped(index=CODE)}}  # fmt: skip
    refused("InvalidParameterValueException", unchecked.create_function, word, **(wanted | change))
    assert aws.list_functions()["Functions"] == []


def test_operations_that_there_are_not_say_so(served: Lab, aws: Any) -> None:
    refused(
        "NotImplementedException", aws.create_event_source_mapping, "not supported by Joey", FunctionName="f",
        EventSourceArn="arn:aws:sqs:us-east-1:000000000000:q",
    )  # fmt: skip
    router = LambdaServer(served.facade).router
    known = {route.summary for route in _routes(router)}
    assert known <= set(MODEL.operation_names) | {"ListProvisionedConcurrencyConfigs"}


def _routes(router: Any) -> Iterator[Any]:
    todo = [router._root]
    while todo:
        node = todo.pop()
        yield from (route for route, _ in node.routes.values())
        todo += [*node.fixed.values(), *([node.variable] if node.variable else [])]


def test_whose_functions_one_sees(served: Lab, aws: Any) -> None:
    make(aws)
    stranger, admin = client(served.another("stranger")), client(served.another("chief", admin=True))
    assert stranger.list_functions()["Functions"] == []
    refused("ResourceNotFoundException", stranger.invoke, FunctionName="f")
    assert [one["FunctionName"] for one in admin.list_functions()["Functions"]] == ["f"]
    assert admin.invoke(FunctionName="f")["StatusCode"] == 200
    credentials = served.another("thief")
    request = AWSRequest(method="GET", url=f"{credentials.url}/2015-03-31/functions")
    SigV4Auth(Pair(credentials.key_id, credentials.secret), "lambda", "us-east-1").add_auth(request)
    mine = f"Credential={served.credentials.key_id}"
    both = request.headers["Authorization"].replace("Credential=", f"{mine}/x,Credential=")
    within = request.headers["Authorization"].replace("SignedHeaders=", f"SignedHeaders={mine};")
    for forged in (both, within):
        headers = dict(request.headers) | {"Authorization": forged}
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(request.url, headers=headers))
        assert error.value.code in (400, 403)
        error.value.close()
    wrong = client(Credentials(url=served.credentials.url, key_id=served.credentials.key_id, secret="no"))
    refused("InvalidSignatureException", wrong.list_functions)
    nobody = client(Credentials(url=served.credentials.url, key_id="0" * 12, secret="no"))
    refused("UnrecognizedClientException", nobody.list_functions)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(served.credentials.url + "/2015-03-31/functions")
    assert error.value.code == 403
    assert error.value.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
    error.value.close()
