"""Errors as AWS's clients expect them: the code in `x-amzn-ErrorType`, type and message in the body."""

from __future__ import annotations

from joey.api.facades import failures
from joey.api.facades.failures import Codes, Failure
from joey.api.light import web
from joey.model.errors import Busy, Conflict, Invalid, NotFound, NotPermitted, TooMany, Unenforceable

_CODES = Codes(
    unsigned={
        "missing": (403, "MissingAuthenticationTokenException"),
        "malformed": (400, "IncompleteSignatureException"),
        "unknown": (403, "UnrecognizedClientException"),
        "mismatch": (403, "InvalidSignatureException"),
        "expired": (403, "InvalidSignatureException"),
    },
    errors=(
        (Invalid, 400, "InvalidParameterValueException"),
        (Unenforceable, 400, "InvalidParameterValueException"),
        (NotFound, 404, "ResourceNotFoundException"),
        (Conflict, 409, "ResourceConflictException"),
        (NotPermitted, 403, "AccessDeniedException"),
        (TooMany, 429, "TooManyRequestsException"),
        (Busy, 503, "ServiceException"),
    ),
    large=(413, "RequestTooLargeException", "the request's payload is larger than it may be"),
    request="InvalidRequestContentException",
    other="ServiceException",
)
REASON = "ConcurrentInvocationLimitExceeded"


def lacking(what: str) -> Failure:
    """Of a parameter, or a value of one, that Joey does not honour."""
    return Failure(
        400, "InvalidParameterValueException", f"{what} is not supported by Joey (docs/lambda.md lists what is)"
    )


def no_operation(what: str) -> Failure:
    """Of an operation that Joey does not have."""
    return Failure(501, "NotImplementedException", f"{what} is not supported by Joey (docs/lambda.md lists what is)")


def response(error: Exception, id: str) -> web.Response:
    """id: of the request."""
    failure = _CODES.failure(error)
    headers = {"x-amzn-ErrorType": failure.code, "x-amzn-RequestId": id}
    body = {"Type": "User" if failure.status < 500 else "Service", "Message": failure.message}
    body["message"] = failure.message  # shapes differ in which of the two they have
    if failure.code == "TooManyRequestsException":
        body["Reason"] = REASON
    return failures.response(error, failure.status, body, headers)
