"""Errors as Function Compute's clients expect them: `{"Code": …, "Message": …, "RequestId": …}`."""

from __future__ import annotations

from joey.api.facades import failures
from joey.api.facades.failures import Codes, Failure
from joey.api.light import web
from joey.model.errors import Busy, Conflict, Invalid, NotFound, NotPermitted, TooMany, Unenforceable

_CODES = Codes(
    unsigned={
        "missing": (400, "MissingRequiredHeader"),
        "malformed": (400, "InvalidArgument"),
        "unknown": (403, "InvalidAccessKeyID"),
        "mismatch": (403, "SignatureNotMatch"),
        "expired": (403, "SignatureNotMatch"),
    },
    errors=(
        (Invalid, 400, "InvalidArgument"),
        (Unenforceable, 400, "InvalidArgument"),
        (NotFound, 404, "ResourceNotFound"),
        (Conflict, 409, "ConcurrentUpdateError"),
        (NotPermitted, 403, "AccessDenied"),
        (TooMany, 429, "ResourceExhausted"),
        (Busy, 503, "ResourceThrottled"),
    ),
    large=(400, "EntityTooLarge", "the payload exceeds the maximum allowed size"),
    request="InvalidArgument",
    other="InternalServerError",
)
_KINDS = {
    "function": "Function", "version": "Version", "alias": "Alias", "trigger": "Trigger", "task": "AsyncTask",
    "layer": "Layer",
}  # fmt: skip
"""What is not there -> how FC's code for that begins."""


def lacking(what: str) -> Failure:
    """Of a parameter, or a value of one, that Joey does not honour."""
    return Failure(400, "InvalidArgument", f"{what} is not supported by Joey (docs/fc.md lists what is)")


def no_path(method: str, path: str) -> Failure:
    """Of an operation that Joey does not have, in FC's own words."""
    text = f"'{path}' against '{method}' is not supported by Joey (docs/fc.md lists what is)"
    return Failure(400, "PathNotSupported", text)


def response(error: Exception, id: str) -> web.Response:
    """id: of the request."""
    failure = _CODES.failure(error)
    if isinstance(error, NotFound):
        failure.code = f"{_KINDS.get(error.where, 'Resource')}NotFound"
    headers = {"x-fc-request-id": id, "x-fc-error-type": "FCCommonError"}
    body = {"Code": failure.code, "Message": failure.message, "RequestId": id}
    return failures.response(error, failure.status, body, headers)
