"""Errors as `application/problem+json` (RFC 9457).

Members: type, title, status, detail; and of ours: field (the field of the request, or the step that failed), remedy
(what to do), exit_code (what `joey run` exits with), errno where the kernel said no.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from joey.api.light import web
from joey.model import codec
from joey.model.errors import Busy, JoeyError, LaunchFailed

log = logging.getLogger("joey.api")
MEDIA_TYPE = "application/problem+json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


def _of_http(error: web.HTTPException) -> dict[str, Any]:
    if error.status == 404:
        return plain(404, "no-such-path", "Not found", "there is nothing at this path")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return plain(405, "method", "Method not allowed", f"this path takes {', '.join(sorted(error.allowed_methods))}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return plain(413, "too-large", "Request too large", error.text or "the body is too large")
    return plain(error.status, "http", error.reason, error.text or error.reason)


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler into a problem document."""
    try:
        return await handler(request)
    except JoeyError as error:
        return response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After", "Upgrade")}
        body = codec.encode(_of_http(error))
        return web.Response(status=error.status, body=body, content_type=MEDIA_TYPE, headers=headers)
    except ConnectionError:
        raise  # the client went away
    except Exception as error:
        return web.Response(status=500, body=codec.encode(unexpected(error)), content_type=MEDIA_TYPE)
