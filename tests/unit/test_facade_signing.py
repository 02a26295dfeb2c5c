"""Signatures of AWS's and Alibaba Cloud's SDKs, made by those themselves, and what is not to be believed."""

import time
from urllib.parse import urlsplit

import pytest
from alibabacloud_tea_openapi.utils import Utils
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from darabonba.request import DaraRequest

from joey.api.facades.signing import WINDOW, Request, Unsigned, acs3, secret_of, sigv4

SECRET = secret_of(b"m" * 32, "lambda", "k1")
KEYS = {"k1": SECRET}.get


def aws(method: str, path: str, query: str, body: bytes, **headers: str) -> Request:
    """As botocore signs it."""
    url = f"http://127.0.0.1:1234{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, data=body, headers=dict(headers))
    SigV4Auth(Credentials("k1", SECRET), "lambda", "us-east-1").add_auth(request)
    request.headers["Host"] = "127.0.0.1:1234"
    sent = {name.lower(): [value] for name, value in request.headers.items()}
    parts = urlsplit(url)
    return Request(method, parts.path, parts.query, sent, body)


def acs(method: str, path: str, query: dict[str, str], sent_query: str, body: bytes, **headers: str) -> Request:
    """As the SDK of Function Compute signs it."""
    digest = Utils.hash(body, "ACS3-HMAC-SHA256").hex()
    request = DaraRequest()
    request.method, request.pathname, request.query = method, path, query
    request.headers = {
        "host": "127.0.0.1:1234", "x-acs-date": Utils.get_timestamp(), "x-acs-content-sha256": digest,
        "x-acs-signature-nonce": Utils.get_nonce(), **headers,
    }  # fmt: skip
    authorization = Utils.get_authorization(request, "ACS3-HMAC-SHA256", digest, "k1", SECRET)
    sent = {name.lower(): [value] for name, value in request.headers.items()} | {"authorization": [authorization]}
    return Request(method, path, sent_query, sent, body)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/2015-03-31/functions", ""),
        (
            "/2017-03-31/tags/arn%3Aaws%3Alambda%3Alocal%3A000000000000%3Afunction%3Af",
            "tagKeys=a%20b&tagKeys=a-b&tagKeys=a",
        ),
        ("/2015-03-31/functions/f%20x~/invocations", "Qualifier=%24LATEST&Marker="),
    ],
)
def test_requests_as_botocore_signs_them_are_believed(path: str, query: str) -> None:
    request = aws("POST", path, query, b'{"a": 1}', X_Spaces="a   b ")
    assert sigv4(request, KEYS, "lambda", time.time()) == "k1"


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ({}, ""),
        ({"prefix": "a b/é", "limit": "3"}, "limit=3&prefix=a+b%2F%C3%A9"),
        ({"nextToken": "=~"}, "nextToken=%3D~"),
    ],
)
def test_requests_as_the_sdk_of_fc_signs_them_are_believed(query: dict[str, str], sent: str) -> None:
    request = acs("PUT", "/2023-03-30/functions/f%20x", query, sent, b"body")
    assert acs3(request, KEYS, time.time()) == "k1"


def changed(request: Request, **fields: object) -> Request:
    values = {name: getattr(request, name) for name in ("method", "path", "query", "headers", "body")}
    return Request(**(values | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["aws", "acs"])
def test_what_was_changed_or_is_not_fresh_or_not_signed_is_refused(scheme: str) -> None:
    now = time.time()
    if scheme == "aws":
        good = aws("PUT", "/2015-03-31/functions/f/code", "a=1", b"body")
        date, other = "x-amz-date", "AWS4-HMAC-SHA256 Credential=k1,SignedHeaders=host,Signature=0"

        def check(request: Request, when: float = now) -> str:
            return sigv4(request, KEYS, "lambda", when)
    else:
        good = acs("PUT", "/2023-03-30/functions/f", {"a": "1"}, "a=1", b"body")
        date, other = "x-acs-date", "ACS3-HMAC-SHA256 Credential=k1,SignedHeaders=host,Signature=0"

        def check(request: Request, when: float = now) -> str:
            return acs3(request, KEYS, when)

    assert check(good) == "k1"
    headers = good.headers
    authorization = headers["authorization"][0]
    kinds = {
        "method": changed(good, method="DELETE"),
        "path": changed(good, path=good.path + "x"),
        "query": changed(good, query="a=2"),
        "more query": changed(good, query="a=1&b=2"),
        "body": changed(good, body=b"other"),
        "host": changed(good, headers=headers | {"host": ["127.0.0.1:99"]}),
        "signed header gone": changed(good, headers={n: v for n, v in headers.items() if n != "host"}),
        "signature": changed(good, headers=headers | {"authorization": [authorization[:-4] + "0000"]}),
    }
    for what, request in kinds.items():
        with pytest.raises(Unsigned) as refused:
            check(request)
        assert refused.value.kind == "mismatch", what
    for late in (now + WINDOW + 5, now - WINDOW - 5):
        with pytest.raises(Unsigned) as refused:
            check(good, late)
        assert refused.value.kind == "expired"
    wrong = {
        "missing": [changed(good, headers={n: v for n, v in headers.items() if n != "authorization"})],
        "unknown": [changed(good, headers=headers | {"authorization": [authorization.replace("=k1", "=k2", 1)]})],
        "malformed": [
            changed(good, headers=headers | {"authorization": [text]})
            for text in (
                "Bearer x", authorization.partition(" ")[0] + " x", other, authorization + ",Signature2=1",
                authorization.replace("Credential=k1", "Credential=k2,Credential=k1"),
                authorization.replace("Credential=k1", "Credential=k1,Credential=k1"),
            )
        ] + [changed(good, headers=headers | {"authorization": [authorization.replace("host;", "")], date: ["x"]})],
    }  # fmt: skip
    for kind, requests in wrong.items():
        for request in requests:
            with pytest.raises(Unsigned) as refused:
                check(request)
            assert refused.value.kind == kind


def test_secrets_differ_by_instance_scheme_and_key() -> None:
    made = {
        secret_of(master, scheme, id) for master in (b"a" * 32, b"b" * 32) for scheme in ("lambda", "fc") for id in "xy"
    }
    assert len(made) == 8 and all(len(secret) == 64 for secret in made)
    assert secret_of(b"m" * 32, "lambda", "k1") == SECRET
