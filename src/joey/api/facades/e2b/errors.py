"""Errors as E2B's clients expect them: `{"code": 404, "message": …}` of the control plane, the files and the proxy in
front of envd; `{"code": "not_found", "message": …}` of the Connect protocol.
"""

from __future__ import annotations

from joey.api import problem
from joey.api.light import web
from joey.model import codec
from joey.model.errors import Busy, JoeyError

GONE = "The sandbox was not found"
"""Clients look for these words to tell that a sandbox has ended."""

_CODES = {
    400: "invalid_argument", 401: "unauthenticated", 403: "permission_denied", 404: "not_found",
    408: "deadline_exceeded", 409: "failed_precondition", 413: "resource_exhausted", 422: "invalid_argument",
    429: "resource_exhausted", 501: "unimplemented", 502: "unavailable", 503: "unavailable", 507: "resource_exhausted",
}  # fmt: skip
_STATUS = {
    "invalid_argument": 400, "unauthenticated": 401, "permission_denied": 403, "not_found": 404,
    "deadline_exceeded": 504, "failed_precondition": 400, "already_exists": 409, "resource_exhausted": 429,
    "unimplemented": 501, "unavailable": 503, "internal": 500,
}  # fmt: skip


class Failure(Exception):
    """An answer of this façade's own. status: HTTP's; code: Connect's, "" for the one that goes with the status."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code = code or _CODES.get(status, "internal")


def lacking(what: str) -> Failure:
    """Of something Joey does not do."""
    return Failure(501, f"{what} is not supported by Joey (docs/e2b.md lists what is)")


def of(error: Exception) -> Failure:
    """Any exception of a handler, but those that say that the client left."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, JoeyError):
        message = f"{error.where}: {error.message}" if error.where else error.message
        return Failure(error.status, f"{message} (try: {error.remedy})" if error.remedy else message)
    if isinstance(error, web.HTTPException):
        return Failure(error.status, error.text or error.reason)
    return Failure(500, problem.unexpected(error)["detail"])


def response(error: Exception) -> web.Response:
    """Of the control plane, of files, and of the proxy."""
    failure = of(error)
    headers = {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, Busy) else None
    body = codec.encode({"code": failure.status, "message": failure.message})
    return web.Response(status=failure.status, body=body, content_type="application/json", headers=headers)


def connect(error: Exception) -> web.Response:
    """Of an unary call of the Connect protocol."""
    failure = of(error)
    body = codec.encode({"code": failure.code, "message": failure.message})
    return web.Response(status=_STATUS.get(failure.code, 500), body=body, content_type="application/json")
