"""Requests signed with a shared secret: AWS Signature Version 4 and Alibaba Cloud's ACS3-HMAC-SHA256. Pure.

Joey keeps only hashes of its keys, so what a client signs with is not the key but a secret of its own, derived from one
that never leaves the instance (`secret_of`). Both schemes sign method, path, query, the headers that the client names
and the hash of the body; a signature holds for WINDOW seconds around its date. Nonces are not remembered: within that
time somebody who reads the traffic can send the same request once more.

Sources: AWS IAM User Guide, "Create a signed AWS API request"; Alibaba Cloud SDK reference, "V3 request body and
signature mechanism".
"""

from __future__ import annotations

import hashlib
import hmac
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from time import strptime
from urllib.parse import quote, unquote, unquote_plus

WINDOW = 15 * 60.0
"""Seconds by which a signature's date may differ from our clock."""
_AWS, _ACS = "AWS4-HMAC-SHA256", "ACS3-HMAC-SHA256"
UNKNOWN = "the access key id is no key of this Joey, or the key is revoked"
_REQUIRED_ACS = {"host", "x-acs-date", "x-acs-content-sha256"}
_REQUIRED_TRIGGER = {"x-acs-date"}


class Unsigned(Exception):
    """Why a request is not believed. kind: missing, malformed, unknown (the key), mismatch, expired."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(frozen=True, slots=True)
class Request:
    """What is signed. path: as it came, percent-encoded; query: without `?`; headers: {name in lower case: values}."""

    method: str
    path: str
    query: str
    headers: dict[str, list[str]]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header that is there once, else ""."""
        values = self.headers.get(name, ())
        return values[0] if len(values) == 1 else ""


def secret_of(master: bytes, scheme: str, key_id: str) -> str:
    """What the client that has the key `key_id` signs with: 64 hexadecimal digits.

    Who learns it can sign as that key by that scheme, and learns neither the key itself nor others' secrets.
    """
    return hmac.new(master, f"joey signing {scheme}\0{key_id}".encode(), "sha256").hexdigest()


def sigv4(request: Request, secret: Callable[[str], str | None], service: str, now: float) -> str:
    """The access key id that signed `request`. secret: of an id, None for one that is none. Raises Unsigned."""
    fields = _fields(request, _AWS)
    scope = fields["Credential"].split("/")
    if len(scope) != 5 or scope[3] != service or scope[4] != "aws4_request":
        raise Unsigned("malformed", f"Credential is not ID/DATE/REGION/{service}/aws4_request")
    id, date, region = scope[:3]
    stamp = request.header("x-amz-date")
    signed = fields["SignedHeaders"].split(";")
    if "host" not in signed or "x-amz-date" not in signed or stamp[:8] != date:
        raise Unsigned("malformed", "host and X-Amz-Date must be signed, and Credential must have that date")
    digest = hashlib.sha256(request.body).hexdigest()
    if request.headers.get("x-amz-content-sha256", [digest]) != [digest]:
        raise Unsigned("mismatch", "X-Amz-Content-SHA256 is not the SHA-256 of the body")
    key = secret(id)
    if key is None:
        raise Unsigned("unknown", UNKNOWN)
    query = _query(request.query, _aws_pair)
    canonical = "\n".join(
        (request.method, quote(request.path, safe="/~"), query, _headers(request, signed, _aws_value), digest)
    )
    text = "\n".join((_AWS, stamp, "/".join(scope[1:]), hashlib.sha256(_bytes(canonical)).hexdigest()))
    right = hmac.new(_aws_key(key, date, region, service), text.encode(), "sha256").hexdigest()
    _same(right, fields["Signature"])
    _fresh(stamp, "%Y%m%dT%H%M%SZ", now)
    return id


def acs3(request: Request, secret: Callable[[str], str | None], now: float, trigger: bool = False) -> str:
    """As `sigv4`, for Alibaba Cloud's scheme. trigger: of an HTTP trigger, whose clients sign the date, and the body or
    the host only if they like ("Configure signature authentication for HTTP triggers").
    """
    fields = _fields(request, _ACS)
    id = fields["Credential"]
    signed = fields["SignedHeaders"].split(";")
    if missing := (_REQUIRED_TRIGGER if trigger else _REQUIRED_ACS) - set(signed):
        raise Unsigned("malformed", f"{sorted(missing)[0]} must be signed")
    digest = ""
    if "x-acs-content-sha256" in signed:
        digest = hashlib.sha256(request.body).hexdigest()
        if request.header("x-acs-content-sha256") != digest:
            raise Unsigned("mismatch", "x-acs-content-sha256 is not the SHA-256 of the body")
    key = secret(id)
    if key is None:
        raise Unsigned("unknown", UNKNOWN)
    query = _query(request.query, _acs_pair)
    canonical = "\n".join((request.method, request.path, query, _headers(request, signed, _acs_value), digest))
    text = f"{_ACS}\n{hashlib.sha256(_bytes(canonical)).hexdigest()}"
    _same(hmac.new(key.encode(), text.encode(), "sha256").hexdigest(), fields["Signature"])
    _fresh(request.header("x-acs-date"), "%Y-%m-%dT%H:%M:%SZ", now)
    return id


def _fields(request: Request, scheme: str) -> dict[str, str]:
    given = request.header("authorization")
    if not given:
        raise Unsigned("missing", "the request is not signed: there is no Authorization header")
    name, _, rest = given.partition(" ")
    if name != scheme:
        raise Unsigned("malformed", f"Authorization is not {scheme}")
    parts = [part.strip().partition("=")[::2] for part in rest.split(",")]
    if sorted(name for name, _ in parts) != ["Credential", "Signature", "SignedHeaders"]:
        raise Unsigned("malformed", "Authorization has not exactly one Credential, SignedHeaders and Signature")
    return dict(parts)


def _headers(request: Request, signed: list[str], value: Callable[[list[str]], str]) -> str:
    """Canonical headers, an empty line, and their names."""
    lines = []
    for name in signed:
        if name not in request.headers:
            raise Unsigned("mismatch", "a signed header is not in the request")
        lines.append(f"{name}:{value(request.headers[name])}\n")
    return "".join(lines) + "\n" + ";".join(signed)


def _aws_value(values: list[str]) -> str:
    return ",".join(" ".join(value.split()) for value in values)


def _acs_value(values: list[str]) -> str:
    return ",".join(sorted(value.strip() for value in values))


def _query(query: str, of: Callable[[str, str], tuple[str, str]]) -> str:
    pairs = sorted(of(*pair.partition("=")[::2]) for pair in query.split("&") if pair)
    return "&".join(f"{name}={value}" for name, value in pairs)


def _aws_pair(name: str, value: str) -> tuple[str, str]:
    return quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")


def _acs_pair(name: str, value: str) -> tuple[str, str]:
    """Of a query as a form has it: the client signs the value, and then sends a space as +."""
    return unquote_plus(name), quote(unquote_plus(value), safe="~")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


@lru_cache(maxsize=512)
def _aws_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = ("AWS4" + secret).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _same(right: str, given: str) -> None:
    if not hmac.compare_digest(right.encode(), given.encode(errors="replace")):
        raise Unsigned("mismatch", "the signature does not match: check the secret")


def _fresh(stamp: str, form: str, now: float) -> None:
    try:
        then = timegm(strptime(stamp, form))
    except ValueError:
        raise Unsigned("malformed", "the date is not one of ISO 8601 in UTC") from None
    if abs(now - then) > WINDOW:
        raise Unsigned("expired", f"the signature is of {stamp}, more than {WINDOW / 60:g} minutes from now")
