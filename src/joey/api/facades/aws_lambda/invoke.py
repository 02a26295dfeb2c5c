"""Invocations: synchronous, asynchronous, dry runs, and with the answer as a stream of events."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import msgspec

from joey.api.facades.aws_lambda import eventstream, views
from joey.api.facades.aws_lambda.base import JSON, answer, reference
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.signed_server import SignedCall, route
from joey.api.function_calls import closed
from joey.api.light import web
from joey.functions.invocation import Invocation
from joey.functions.wire import StreamFailed
from joey.model import codec
from joey.model.errors import Invalid

_MAX_EVENT = 1 << 20
"""Bytes of an asynchronous invocation's event."""
_KINDS = {"": "sync", "RequestResponse": "sync", "Event": "async", "DryRun": "dry-run"}
_UNHANDLED = "Unhandled"
_REFUSED = ("X-Amz-Durable-Execution-Name", "X-Amz-Tenant-Id")


class _Asked:
    """What the headers of an invocation say."""

    def __init__(self, call: SignedCall) -> None:
        call.allow(lacking, "Qualifier")
        headers = call.request.headers
        for name in _REFUSED:
            if headers.get(name):
                raise lacking(name)
        kind = headers.get("X-Amz-Invocation-Type", "")
        if kind not in _KINDS:
            raise Invalid("InvocationType", f"{kind[:40]!r} is not RequestResponse, Event or DryRun")
        self.kind = _KINDS[kind]
        tail = headers.get("X-Amz-Log-Type", "None")
        if tail not in ("None", "Tail"):
            raise Invalid("LogType", f"{tail[:40]!r} is not None or Tail")
        self.tail = tail == "Tail"
        self.context = _context(headers.get("X-Amz-Client-Context", ""))
        self.event = _event(call.content)
        if self.kind == "async" and len(self.event) > _MAX_EVENT:
            raise Failure(413, "RequestTooLargeException", f"{len(self.event)} bytes, {_MAX_EVENT} at most for Event")


def _context(text: str) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(b64decode(text, validate=True))
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise Failure(400, "InvalidRequestContentException", "ClientContext is not JSON in base64") from None


def _event(body: bytes) -> bytes:
    """It is JSON, and {} if there is none."""
    if not body:
        return b"{}"
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        text = f"Could not parse request body into json: {error}"
        raise Failure(400, "InvalidRequestContentException", text) from None
    return body


async def invoke(call: SignedCall) -> Any:
    """Invoke. That the function failed is no error of the API: 200, X-Amz-Function-Error, and its error as payload."""
    asked, (name, qualifier) = _Asked(call), reference(call)
    done = await call.functions.invoke(
        name, asked.event, owner=call.visible, qualifier=qualifier, kind=asked.kind, client_context=asked.context,
        arn=views.arn(name, qualifier), request_id=call.id,
    )  # fmt: skip
    headers = {"x-amzn-RequestId": call.id}
    if asked.kind == "dry-run":
        return web.Response(status=204, headers=headers)
    if asked.kind == "async":
        return web.Response(status=202, headers=headers)
    headers["X-Amz-Executed-Version"] = done.version
    if done.error_type:
        headers["X-Amz-Function-Error"] = _UNHANDLED
    if asked.tail:
        headers["X-Amz-Log-Result"] = b64encode(done.logs).decode()
    return web.Response(status=200, body=done.payload, content_type=JSON, headers=headers)


async def invoke_stream(call: SignedCall) -> Any:
    """InvokeWithResponseStream."""
    asked, (name, qualifier) = _Asked(call), reference(call)
    if asked.kind == "async":
        raise Invalid("InvocationType", "Event has no answer to stream")
    if asked.kind == "dry-run":
        await call.functions.invoke(name, b"", owner=call.visible, qualifier=qualifier, kind="dry-run")
        return answer(call, status=204)
    done = await call.functions.invoke(
        name, asked.event, owner=call.visible, qualifier=qualifier, client_context=asked.context, stream=True,
        arn=views.arn(name, qualifier), request_id=call.id,
    )  # fmt: skip
    headers = {
        "x-amzn-RequestId": call.id,
        "X-Amz-Executed-Version": done.version,
        "Content-Type": eventstream.MEDIA,
    }
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(call.request)
        complete = await _send(response, done)
        if asked.tail:
            complete["LogResult"] = b64encode(done.logs).decode()
        await response.write(eventstream.event("InvokeComplete", codec.encode(complete), JSON))
        await response.write_eof()
    finally:
        if done.chunks is not None:
            await closed(done.chunks)
    return response


async def _send(response: web.StreamResponse, done: Invocation) -> dict[str, str]:
    """The answer's pieces; what InvokeComplete says of them."""

    async def piece(data: bytes) -> None:
        await response.write(eventstream.event("PayloadChunk", data, "application/octet-stream"))

    if done.failure is not None:
        return {"ErrorCode": done.failure.type, "ErrorDetails": done.payload.decode(errors="replace")}
    if done.chunks is None:
        await piece(done.payload)
        return {}
    try:
        async for data in done.chunks:
            await piece(data)
    except StreamFailed as failed:
        return {"ErrorCode": failed.failure.type, "ErrorDetails": failed.failure.json().decode()}
    return {}


async def invoke_async(call: SignedCall) -> Any:
    """InvokeAsync, of before 2015."""
    call.allow(lacking)
    name, qualifier = reference(call)
    await call.functions.invoke(name, _event(call.content), owner=call.visible, qualifier=qualifier, kind="async")
    return answer(call, {"Status": 202}, 202)


ROUTES = (
    route("POST", "/2015-03-31/functions/{name}/invocations", invoke, "Invoke", tag="invoke"),
    route(
        "POST", "/2021-11-15/functions/{name}/response-streaming-invocations", invoke_stream,
        "InvokeWithResponseStream", tag="invoke",
    ),
    route("POST", "/2014-11-13/functions/{name}/invoke-async", invoke_async, "InvokeAsync", tag="invoke"),
)  # fmt: skip
