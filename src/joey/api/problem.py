"""Errors as `application/problem+json` (RFC 9457).

Members: type, title, status, detail; and of ours: field (the field of the request, or the step that failed), remedy
(what to do), exit_code (what `joey run` exits with), errno where the kernel said no.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import msgspec

from joey.api.light import web
from joey.model import codec
from joey.model.errors import Busy, JoeyError, LaunchFailed

log = logging.getLogger("joey.api")
MEDIA_TYPE = "application/problem+json"

_KEPT = ("Allow", "Content-Range", "Retry-After", "Upgrade", "WWW-Authenticate")
KEY_REMEDY = "send Authorization: Bearer KEY; the administrator makes one with joey keys create"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong (RFC 9457). field: of the request, or the step that failed. remedy: what to do. exit_code: what
    `joey run` ends with. errno: where the kernel said no.
    """

    type: str
    title: str
    status: int
    detail: str = ""
    field: str = ""
    remedy: str = ""
    exit_code: int = 125
    errno: int = 0


def document(error: JoeyError) -> dict[str, Any]:
    """The problem document of an error; empty members are left out."""
    members: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "field": error.where,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }
    if isinstance(error, LaunchFailed) and error.errno:
        members["errno"] = error.errno
    return {name: value for name, value in members.items() if value != ""}


def response(error: JoeyError) -> web.Response:
    """The HTTP answer for an error."""
    headers = {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, Busy) else None
    return web.Response(
        status=error.status, body=codec.encode(document(error)), content_type=MEDIA_TYPE, headers=headers
    )


def plain(status: int, code: str, title: str, detail: str, **members: Any) -> dict[str, Any]:
    """A problem document that stands for no JoeyError."""
    return {"type": f"/problems/{code}", "title": title, "status": status, "detail": detail, **members}


def unexpected(error: BaseException) -> dict[str, Any]:
    """The document of a defect: the traceback goes to the log under a mark, the client gets the mark."""
    mark = secrets.token_hex(4)
    log.error("defect %s", mark, exc_info=error)
    detail = f"defect {mark} in the engine: {type(error).__name__}"
    return plain(500, "defect", "Defect", detail, remedy="the traceback is in run/daemon.log under that mark")


def of_http(error: web.HTTPException) -> web.StreamResponse:
    """The answer for what aiohttp raises. Raises it again if it is no error."""
    if error.status < 400:
        raise error
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        members = plain(413, "too-large", "Request too large", error.text or "the body is too large")
    elif isinstance(error, web.HTTPUnauthorized):
        members = plain(401, "unauthorized", "Not authorized", error.text or "", remedy=KEY_REMEDY)
    else:
        members = plain(error.status, "http", error.reason, error.text or error.reason)
    headers = {name: value for name, value in error.headers.items() if name in _KEPT}
    return _send(members, headers)


def answer(status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """An answer that stands for no JoeyError."""
    return _send(plain(status, code, title, detail), headers)


def defect(error: BaseException) -> web.Response:
    """The answer for an unexpected exception."""
    return _send(unexpected(error))


def _send(members: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=members["status"], body=codec.encode(members), content_type=MEDIA_TYPE, headers=headers)
