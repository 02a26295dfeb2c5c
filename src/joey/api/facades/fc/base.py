"""What the handlers of this façade share."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any

from joey.api.facades.fc import errors
from joey.api.facades.fields import Fields
from joey.api.facades.signed_server import SignedCall
from joey.api.light import web
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.function import ACCOUNT, LATEST, REGION, check_name, check_qualifier

JSON = "application/json"
ROOT = "/2023-03-30"
FUNCTION = f"{ROOT}/functions/{{name}}"
Message = dict[str, Any]
_LIMIT, _MOST = 20, 100


def fields(call: SignedCall) -> Fields:
    """The members of the request's body."""
    return Fields.of(call.content, errors.lacking)


def name_of(call: SignedCall) -> str:
    """The function of the path."""
    check_name(call.path["name"], "functionName")
    return call.path["name"]


def inward(qualifier: str) -> str:
    """FC's LATEST is $LATEST. Raises Invalid."""
    if qualifier in ("", "LATEST"):
        return LATEST if qualifier else ""
    check_qualifier(qualifier)
    return qualifier


def outward(qualifier: str) -> str:
    """The other way round."""
    return "LATEST" if qualifier in ("", LATEST) else qualifier


def reference(call: SignedCall) -> tuple[str, str]:
    """The function of the path, and the parameter qualifier."""
    return name_of(call), inward(call.param("qualifier"))


def arn(name: str, qualifier: str = "") -> str:
    """Of a function, or of a version or alias of it."""
    return f"acs:fc:{REGION}:{ACCOUNT}:functions/{name}" + (f"/{qualifier}" if qualifier else "")


def stamp(seconds: float) -> str:
    """2026-11-22T20:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def answer(call: SignedCall, value: object = None, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """An answer of this API; None has no body."""
    sent = {"x-fc-request-id": call.id} | (headers or {})
    if value is None:
        return web.Response(status=status, headers=sent)
    return web.Response(status=status, body=codec.encode(value), content_type=JSON, headers=sent)


def limit_of(call: SignedCall) -> int:
    """The parameter limit. Raises Invalid."""
    text = call.param("limit")
    if text and not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST):
        raise Invalid("limit", f"is not a number from 1 to {_MOST}")
    return int(text or _LIMIT)


def listed(call: SignedCall, name: str, rows: list[tuple[str, Message]], backward: bool = False) -> Any:
    """A page under `name`, of those whose key begins with the parameter prefix. rows: (key, row); nextToken is the last
    key shown, so rows that are deleted between pages skip none.
    """
    after, count, prefix = token(call.param("nextToken")), limit_of(call), call.param("prefix")
    chosen = sorted((row for row in rows if row[0].startswith(prefix)), key=lambda row: row[0], reverse=backward)
    if after:
        chosen = [row for row in chosen if (row[0] < after if backward else row[0] > after)]
    shown: Message = {name: [row for _, row in chosen[:count]]}
    if len(chosen) > count:
        shown["nextToken"] = marked(chosen[count - 1][0])
    return answer(call, shown)


def marked(key: str) -> str:
    """A nextToken."""
    return urlsafe_b64encode(b"." + key.encode()).decode()


def token(text: str) -> str:
    """What nextToken stands for. Raises Invalid."""
    if not text:
        return ""
    try:
        found = urlsafe_b64decode(text.encode("ascii")).decode()
    except ValueError:
        found = ""
    if not found.startswith("."):
        raise Invalid("nextToken", "is none that Joey gave")
    return found[1:]
