"""Errors as Function Compute's clients expect them: `{"Code": …, "Message": …, "RequestId": …}`."""

from __future__ import annotations

from joey.api import problem
from joey.api.facades.signing import Unsigned
from joey.api.light import web
from joey.model import codec
from joey.model.errors import (
    Busy,
    Conflict,
    Invalid,
    JoeyError,
    NotFound,
    NotPermitted,
    TooMany,
    Unenforceable,
)

_UNSIGNED = {
    "missing": (400, "MissingRequiredHeader"),
    "malformed": (400, "InvalidArgument"),
    "unknown": (403, "InvalidAccessKeyID"),
    "mismatch": (403, "SignatureNotMatch"),
    "expired": (403, "SignatureNotMatch"),
}
_CODES: tuple[tuple[type[JoeyError], int, str], ...] = (
    (Invalid, 400, "InvalidArgument"),
    (Unenforceable, 400, "InvalidArgument"),
    (NotPermitted, 403, "AccessDenied"),
    (TooMany, 429, "ResourceExhausted"),
    (Busy, 503, "ResourceThrottled"),
)
_KINDS = {
    "function": "Function", "version": "Version", "alias": "Alias", "trigger": "Trigger", "task": "AsyncTask",
    "layer": "Layer",
}  # fmt: skip
"""What is not there, or there already -> how FC's code for that begins."""


class Failure(Exception):
    """An answer of this façade's own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def lacking(what: str) -> Failure:
    """Of a parameter, or a value of one, that Joey does not honour."""
    return Failure(400, "InvalidArgument", f"{what} is not supported by Joey (docs/fc.md lists what is)")


def no_path(method: str, path: str) -> Failure:
    """Of an operation that Joey does not have, in FC's own words."""
    text = f"'{path}' against '{method}' is not supported by Joey (docs/fc.md lists what is)"
    return Failure(400, "PathNotSupported", text)


def of(error: Exception) -> Failure:
    """Any exception of a handler, but those that say that the client left."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Unsigned):
        return Failure(*_UNSIGNED[error.kind], error.message)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Failure(400, "EntityTooLarge", "the payload exceeds the maximum allowed size")
    if isinstance(error, web.HTTPException):
        return Failure(error.status, "InvalidArgument", error.text or error.reason)
    if not isinstance(error, JoeyError):
        return Failure(500, "InternalServerError", problem.unexpected(error)["detail"])
    message = f"{error.where}: {error.message}" if error.where else error.message
    message = f"{message} (try: {error.remedy})" if error.remedy else message
    if isinstance(error, NotFound):
        return Failure(404, f"{_KINDS.get(error.where, 'Resource')}NotFound", message)
    if isinstance(error, Conflict):
        return Failure(409, "ConcurrentUpdateError", message)
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return Failure(status, code, message)
    return Failure(500, "InternalServerError", message)


def response(error: Exception, id: str) -> web.Response:
    """id: of the request."""
    failure = of(error)
    headers = {"x-fc-request-id": id, "x-fc-error-type": "FCCommonError"}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    body = codec.encode({"Code": failure.code, "Message": failure.message, "RequestId": id})
    return web.Response(status=failure.status, body=body, content_type="application/json", headers=headers)
