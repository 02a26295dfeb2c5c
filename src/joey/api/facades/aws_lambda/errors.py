"""Errors as AWS's clients expect them: the code in `x-amzn-ErrorType`, type and message in the body."""

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
    "missing": (403, "MissingAuthenticationTokenException"),
    "malformed": (400, "IncompleteSignatureException"),
    "unknown": (403, "UnrecognizedClientException"),
    "mismatch": (403, "InvalidSignatureException"),
    "expired": (403, "InvalidSignatureException"),
}
_CODES: tuple[tuple[type[JoeyError], int, str], ...] = (
    (Invalid, 400, "InvalidParameterValueException"),
    (Unenforceable, 400, "InvalidParameterValueException"),
    (NotFound, 404, "ResourceNotFoundException"),
    (Conflict, 409, "ResourceConflictException"),
    (NotPermitted, 403, "AccessDeniedException"),
    (TooMany, 429, "TooManyRequestsException"),
    (Busy, 503, "ServiceException"),
)
REASON = "ConcurrentInvocationLimitExceeded"


class Failure(Exception):
    """An answer of this façade's own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def lacking(what: str) -> Failure:
    """Of a parameter, or a value of one, that Joey does not honour."""
    return Failure(
        400, "InvalidParameterValueException", f"{what} is not supported by Joey (docs/lambda.md lists what is)"
    )


def no_operation(what: str) -> Failure:
    """Of an operation that Joey does not have."""
    return Failure(501, "NotImplementedException", f"{what} is not supported by Joey (docs/lambda.md lists what is)")


def of(error: Exception) -> Failure:
    """Any exception of a handler, but those that say that the client left."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Unsigned):
        return Failure(*_UNSIGNED[error.kind], error.message)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Failure(413, "RequestTooLargeException", "the request's payload is larger than it may be")
    if isinstance(error, web.HTTPException):
        return Failure(error.status, "InvalidRequestContentException", error.text or error.reason)
    if not isinstance(error, JoeyError):
        return Failure(500, "ServiceException", problem.unexpected(error)["detail"])
    message = f"{error.where}: {error.message}" if error.where else error.message
    message = f"{message} (try: {error.remedy})" if error.remedy else message
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return Failure(status, code, message)
    return Failure(500, "ServiceException", message)


def response(error: Exception, id: str) -> web.Response:
    """id: of the request."""
    failure = of(error)
    headers = {"x-amzn-ErrorType": failure.code, "x-amzn-RequestId": id}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    body = {"Type": "User" if failure.status < 500 else "Service", "Message": failure.message}
    body["message"] = failure.message  # shapes differ in which of the two they have
    if failure.code == "TooManyRequestsException":
        body["Reason"] = REASON
    return web.Response(
        status=failure.status, body=codec.encode(body), content_type="application/json", headers=headers
    )
