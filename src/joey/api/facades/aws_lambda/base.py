"""What the handlers of this façade share."""

from __future__ import annotations

from typing import Any

from joey.api.facades.aws_lambda import errors, views
from joey.api.facades.fields import Fields
from joey.api.facades.signed_server import SignedCall
from joey.api.light import web
from joey.model import codec

JSON = "application/json"


def fields(call: SignedCall) -> Fields:
    """The members of the request's body."""
    return Fields.of(call.content, errors.lacking)


def reference(call: SignedCall) -> tuple[str, str]:
    """(name, qualifier) that the path and the parameter Qualifier name."""
    return views.reference(call.path["name"], call.param("Qualifier"))


def name_of(call: SignedCall) -> str:
    """The function of the path, which may name no version or alias."""
    name, qualifier = views.reference(call.path["name"])
    if qualifier:
        raise errors.lacking("a qualifier in FunctionName here")
    return name


def answer(call: SignedCall, value: object = None, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """An answer of this API; None has no body."""
    sent = {"x-amzn-RequestId": call.id} | (headers or {})
    if value is None:
        return web.Response(status=status, headers=sent)
    return web.Response(status=status, body=codec.encode(value), content_type=JSON, headers=sent)


def listed(call: SignedCall, name: str, rows: list[tuple[str, views.Message]], limit: int = 50) -> Any:
    """A page of rows, under `name`."""
    found, marker = views.page(rows, call.param("Marker"), call.param("MaxItems"), limit)
    return answer(call, {name: found} | ({"NextMarker": marker} if marker else {}))
