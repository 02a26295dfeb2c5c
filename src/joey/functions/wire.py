"""The channel's frames (`runtime/frames.py`, which both sides import) and what the daemon makes of an answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from joey.functions.runtime.frames import (
    CANCEL,
    CONFIG,
    CREDIT,
    CREDITS,
    DATA,
    DONE,
    ERROR,
    HEAD,
    HEADER,
    INIT_ERROR,
    INVOKE,
    LOG,
    MAX_BODY,
    MAX_DATA,
    MAX_FRAME,
    READY,
    RESULT,
    STDERR,
    STDOUT,
    STOP,
    WINDOW,
    Frames,
    frame,
)

LOG_TAIL = 4096
"""Bytes of an invocation's output that its answer carries (as AWS Lambda's LogType=Tail)."""

# Types of errors that are not a handler's own, by the names AWS Lambda gives them.
IMPORT_ERROR = "Runtime.ImportModuleError"
SYNTAX_ERROR = "Runtime.UserCodeSyntaxError"
HANDLER_NOT_FOUND = "Runtime.HandlerNotFound"
MALFORMED_HANDLER = "Runtime.MalformedHandlerName"
MARSHAL_ERROR = "Runtime.MarshalError"
UNMARSHAL_ERROR = "Runtime.UnmarshalError"
EXIT_ERROR = "Runtime.ExitError"
OUT_OF_MEMORY = "Runtime.OutOfMemory"
INVALID_ENTRYPOINT = "Runtime.InvalidEntrypoint"
TIMED_OUT = "Sandbox.Timedout"
INIT_TIMED_OUT = "Sandbox.InitTimedout"
PROTOCOL_ERROR = "Runtime.ProtocolError"
HTTP_ERROR = "Function.HTTPError"
"""A program that serves HTTP answered an event with a status of 400 or more."""
RESPONSE_TOO_LARGE = "Function.ResponseSizeTooLarge"
STOPPED = "Sandbox.Stopped"
"""The instance was stopped (scaled in, its function removed) while it worked: worth another attempt."""


class Failure(msgspec.Struct, frozen=True):
    """Why an invocation, or an instance's start, failed. As JSON it is what clients of AWS Lambda and FC get:
    {"errorMessage", "errorType", "stackTrace", "requestId"}.
    """

    type: str = msgspec.field(name="errorType")
    message: str = msgspec.field(name="errorMessage")
    trace: list[str] = msgspec.field(name="stackTrace", default_factory=list)
    request_id: str = msgspec.field(name="requestId", default="")

    def json(self) -> bytes:
        """As clients get it."""
        return _encode(self)


_MESSAGE = 64 << 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def said(type: object, message: object, trace: object, request_id: str) -> Failure:
    """What somebody inside says of a failure, in bounds: the type is fit for a header."""
    lines = [str(line)[:_MESSAGE] for line in trace[:256]] if isinstance(trace, list) else []
    return Failure(_CONTROL.sub(" ", str(type))[:256] or "Runtime.Unknown", str(message)[:_MESSAGE], lines, request_id)


def read_failure(data: bytes, request_id: str) -> Failure:
    """The JSON of one. Raises msgspec.MsgspecError."""
    try:
        found = msgspec.json.decode(data, type=Failure)
    except RecursionError:
        raise msgspec.DecodeError("one in the other, too deep") from None
    return said(found.type, found.message, found.trace, request_id)


class _Head(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    headers: list[tuple[_Name, _Text]] = []
    content_type: _Text | None = None


_Name = Annotated[str, msgspec.Meta(pattern=r"\A[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}\Z")]
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x08\x0a-\x1f\x7f]*\Z", max_length=32 << 10)]


def read_head(data: bytes) -> dict[str, Any]:
    """An answer's head, fit to be sent on. Raises msgspec.MsgspecError."""
    found = msgspec.json.decode(data, type=_Head)
    if found.status is None:
        return {"content_type": found.content_type or "application/octet-stream"}
    return {"status": found.status, "headers": [[name, value] for name, value in found.headers]}


@dataclass(slots=True)
class Answer:
    """Of one invocation. Exactly one of `body` and `chunks` is there, or `failure`.

    head: of answers by HTTP (wsgi, asgi, http: {"status": int, "headers": [[name, value], …]}) and of streams
    ({"content_type": str}); else None. chunks: to be read once, or closed; raises StreamFailed if it fails on the way.
    logs: the last LOG_TAIL bytes the invocation printed (of a stream: until its head; complete with `chunks`' end).
    seconds: from the request's way in to the answer (of a stream: to its head, then to its end).
    """

    body: bytes | None = None
    head: dict[str, Any] | None = None
    chunks: AsyncIterator[bytes] | None = None
    failure: Failure | None = None
    logs: bytes = b""
    seconds: float = 0.0


class StartFailed(Exception):
    """An instance did not become ready, and it is the function's doing: what every invocation of it would be answered.
    logs: the last it printed.
    """

    def __init__(self, failure: Failure, logs: bytes = b"") -> None:
        super().__init__(failure.message)
        self.failure, self.logs = failure, logs


class StreamFailed(Exception):
    """A stream broke off."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(slots=True)
class Head:
    """What goes in with a request's body.

    id: the request's. http: of a request by HTTP: {"method", "path", "query", "headers": [[name, value], …],
    "scheme", "client"}; None for an event. client_context: as JSON gives it (AWS Lambda). trace: X-Ray's. arn: of
    what was invoked. stream: the caller takes an answer in pieces (HEAD, DATA); else a generator's pieces are joined.
    """

    id: str
    http: dict[str, Any] | None = None
    client_context: Any = None
    trace: str = ""
    arn: str = ""
    stream: bool = False


_encode = msgspec.json.Encoder().encode

__all__ = [
    "Answer", "CANCEL", "CONFIG", "CREDIT", "CREDITS", "DATA", "DONE", "ERROR", "EXIT_ERROR", "Failure",
    "Frames", "HANDLER_NOT_FOUND", "HEAD", "HEADER", "Head", "IMPORT_ERROR", "INIT_ERROR", "INIT_TIMED_OUT",
    "INVALID_ENTRYPOINT", "INVOKE", "LOG", "LOG_TAIL", "MALFORMED_HANDLER", "MARSHAL_ERROR", "MAX_BODY", "MAX_DATA",
    "MAX_FRAME", "OUT_OF_MEMORY", "PROTOCOL_ERROR", "READY", "RESPONSE_TOO_LARGE", "RESULT", "STDERR", "STDOUT", "STOP",
    "STOPPED", "SYNTAX_ERROR", "StartFailed", "StreamFailed", "TIMED_OUT", "UNMARSHAL_ERROR", "WINDOW", "frame",
    "read_failure", "read_head", "said",
]  # fmt: skip
