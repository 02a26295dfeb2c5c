"""Errors of façades whose clients sign requests: each has codes of its own, for the same reasons."""

from __future__ import annotations

from typing import NamedTuple

from joey.api import problem
from joey.api.facades.signing import Unsigned
from joey.api.light import web
from joey.model import codec
from joey.model.errors import Busy, JoeyError


class Failure(Exception):
    """An answer that is an error: its HTTP status, and code and message as the façade's clients know them."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Codes(NamedTuple):
    """One façade's. unsigned: of `Unsigned.kind`; errors: the first that fits; large: of a body; request: of one that
    HTTP itself does not let pass; other: of all else, with 500.
    """

    unsigned: dict[str, tuple[int, str]]
    errors: tuple[tuple[type[JoeyError], int, str], ...]
    large: tuple[int, str, str]
    request: str
    other: str

    def failure(self, error: Exception) -> Failure:
        """Any exception of a handler, but those that say that the client left."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, Unsigned):
            return Failure(*self.unsigned[error.kind], error.message)
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            return Failure(*self.large)
        if isinstance(error, web.HTTPException):
            return Failure(error.status, self.request, error.text or error.reason)
        if not isinstance(error, JoeyError):
            return Failure(500, self.other, problem.unexpected(error)["detail"])
        message = f"{error.where}: {error.message}" if error.where else error.message
        message = f"{message} (try: {error.remedy})" if error.remedy else message
        for kind, status, code in self.errors:
            if isinstance(error, kind):
                return Failure(status, code, message)
        return Failure(500, self.other, message)


def response(error: Exception, status: int, body: object, headers: dict[str, str]) -> web.Response:
    """The answer for `error`: body as JSON."""
    if isinstance(error, Busy):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return web.Response(status=status, body=codec.encode(body), content_type="application/json", headers=headers)
