"""Requests that no SDK sends, to every route of both façades: refused in the form of the API, never a defect."""

import http.client
import json
import random
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from alibabacloud_tea_openapi.utils import Utils
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Pair
from darabonba.request import DaraRequest

from facade_lab import Lab, lab
from joey.api.facades.aws_lambda.server import LambdaServer
from joey.api.facades.fc.server import FCServer

NAMES = [
    "f",
    "$LATEST",
    "f:1",
    "a b",
    "é",
    "...",
    "%",
    "x" * 300,
    "arn:aws:lambda:us-east-1:000000000000:function:f",
    "0",
]
VALUES: list[Any] = [
    None,
    "",
    "x",
    "é\0",
    -1,
    2**70,
    1.5,
    True,
    [],
    ["x"],
    {},
    {"x": None},
    {"x": {"y": ["z"]}},
    "x" * 5000,
]
BODIES = [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"a": 1, "a": 2}', b"[" * 5000]
FIELDS = {
    "aws_lambda": (
        "FunctionName Runtime Role Handler Code Description Timeout MemorySize Publish PackageType Environment Tags"
        " Layers ImageConfig Name FunctionVersion RoutingConfig RevisionId ReservedConcurrentExecutions AuthType"
        " InvokeMode ProvisionedConcurrentExecutions MaximumRetryAttempts DestinationConfig StatementId"
        " Action Principal Content"
    ),
    "fc": (
        "functionName runtime handler code timeout memorySize cpu tags layers instanceLifecycleConfig"
        " customRuntimeConfig customContainerConfig logConfig aliasName versionId additionalVersionWeight"
        " reservedConcurrency target minInstances maxAsyncRetryAttempts destinationConfig triggerName triggerType"
        " triggerConfig ResourceId Tag"
    ),
}
QUERIES = (
    "Qualifier qualifier Marker MaxItems limit nextToken prefix FunctionVersion List tagKeys Tag status startVersion"
)


@pytest.fixture(scope="module", params=["aws_lambda", "fc"])
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab(request.param) as found:
        yield found


def signed(served: Lab, method: str, path: str, query: dict[str, str], body: bytes) -> dict[str, str]:
    """Headers."""
    host, credentials = served.credentials.url.removeprefix("http://"), served.credentials
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    if served.kind == "aws_lambda":
        request = AWSRequest(method=method, url=f"http://{host}{path}?{text}", data=body)
        SigV4Auth(Pair(credentials.key_id, credentials.secret), "lambda", "us-east-1").add_auth(request)
        return dict(request.headers) | {"Host": host}
    digest = Utils.hash(body, "ACS3-HMAC-SHA256").hex()
    asked = DaraRequest()
    asked.method, asked.pathname, asked.query = method, path, query
    asked.headers = {"host": host, "x-acs-date": Utils.get_timestamp(), "x-acs-content-sha256": digest}
    pair = (credentials.key_id, credentials.secret)
    return asked.headers | {"Authorization": Utils.get_authorization(asked, "ACS3-HMAC-SHA256", digest, *pair)}


def requests(served: Lab, random: random.Random) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    routes = (LambdaServer if served.kind == "aws_lambda" else FCServer).routes
    fields = FIELDS[served.kind].split()
    names = QUERIES.split()
    for route in routes:
        for _ in range(6):
            path = re.sub(r"\{\w+\}", lambda _: quote(random.choice(NAMES), safe=""), route.path)
            query = {random.choice(names): random.choice(NAMES) for _ in range(random.randint(0, 2))}
            body = random.choice(BODIES)
            if random.random() < 0.7 and route.method in ("POST", "PUT"):
                chosen = random.sample(fields, random.randint(0, 6))
                body = json.dumps({name: random.choice(VALUES) for name in chosen}).encode()
            yield route.method, path, query, body


def test_no_request_is_a_defect(served: Lab) -> None:
    chance = random.Random(8)
    seen: dict[int, int] = {}
    connection = http.client.HTTPConnection(served.credentials.url.removeprefix("http://"))
    for method, path, query, body in requests(served, chance):
        headers = signed(served, method, path, query, body)
        text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        connection.request(method, f"{path}?{text}", body, headers)
        answer = connection.getresponse()
        data = answer.read()
        said = (method, path, query, body[:300], answer.status, data[:300])
        assert answer.status not in (403, 500, 502), said
        if answer.status >= 400:
            document = json.loads(data)
            if served.kind == "aws_lambda":
                assert answer.headers["x-amzn-ErrorType"] and document["Message"], said
            else:
                assert document["Code"] and document["Message"] and document["RequestId"], said
        seen[answer.status] = seen.get(answer.status, 0) + 1
    connection.close()
    assert seen[400] > 40 and seen[404] > 10, seen
