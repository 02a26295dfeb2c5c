"""/v1/functions/{name}/invoke and what belongs to calls: batches, tasks, queues, output."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from joey.api import params, problem
from joey.api.budget import SMALL
from joey.api.functions import TAG, functions
from joey.api.light import web
from joey.api.routes import BINARY, JSON, NDJSON, TEXT, Answer, Call, Route
from joey.functions.invocation import Invocation, json_or_text
from joey.functions.wire import MAX_BODY, Failure, StreamFailed
from joey.model import codec
from joey.model.errors import Invalid, JoeyError, TooMany
from joey.model.function_views import Message, TaskView
from joey.model.value import Value

REQUEST_ID, VERSION, ERROR, LOG_TAIL = (
    "Joey-Request-Id", "Joey-Function-Version", "Joey-Function-Error", "Joey-Log-Tail",
)  # fmt: skip
DURATION, COLD, CONTEXT = "Joey-Duration-Ms", "Joey-Cold-Start", "Joey-Client-Context"
_AT_A_TIME = 64
_MOST = 10_000
_STATES = ("queued", "running", "succeeded", "failed", "expired", "stopped")


class BatchBody(Value, frozen=True, kw_only=True):
    """Events (any JSON), 10,000 at most; each is an invocation of its own."""

    events: list[Any]


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of a batch, as soon as it is there: `index` counts from 0 in the order of the events. result: what the
    handler answered (JSON, else text); failure: that of the handler; error: it was not asked.
    """

    index: int
    request_id: str = ""
    result: Any = None
    failure: Failure | None = None
    error: problem.Problem | None = None


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of what a function printed. stream: 1 stdout, 2 stderr."""

    at: float
    instance: str
    version: str
    stream: int
    text: str
    request_id: str = ""


async def body_of(call: Call) -> bytes:
    """The raw body, 6 MiB at most. Raises 413."""
    request = call.request
    length = request.content_length
    if length is None:
        if request.content.at_eof():  # a body in chunks that has come is still to be read
            return b""
    elif length > MAX_BODY:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY, length)
    elif not length:
        return b""
    if (size := MAX_BODY if length is None else length) > SMALL:
        call.hold(size)
    parts: list[bytes] = []
    found = 0
    async for piece in call.chunks():
        parts.append(piece)
        found += len(piece)
        if found > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, found)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def invoke(call: Call) -> web.StreamResponse:
    """The body is the event, as it is; so is the answer. A handler that fails is no failed request: the answer is 200
    with the header Joey-Function-Error and {errorType, errorMessage, stackTrace}. `mode=async` answers 202 as soon as
    the event is on disk: it is done at least once, and retried if it fails; its task has the request's id.
    """
    query, headers = call.query, call.request.headers
    body = await body_of(call)
    context = _context(headers[CONTEXT]) if CONTEXT in headers else None
    done = await functions(call).invoke(
        call.path["name"], body, owner=call.visible, kind=query.get("mode", "sync"),
        qualifier=query.get("qualifier", ""), client_context=context, stream=query.get("stream", False),
    )  # fmt: skip
    return await answer(call, done, tail=query.get("logs") == "tail")


def _context(text: str) -> Any:
    try:
        return msgspec.json.decode(base64.b64decode(text, validate=True))
    except (ValueError, msgspec.MsgspecError):
        raise Invalid(CONTEXT, "is not JSON in base64") from None


async def answer(call: Call, done: Invocation, *, tail: bool = False) -> web.StreamResponse:
    """What a caller of the native API gets."""
    headers = {REQUEST_ID: done.request_id, VERSION: done.version, DURATION: f"{done.seconds * 1000:.3f}"}
    if done.cold:
        headers[COLD] = "1"
    if done.status != 200:
        return web.Response(status=done.status, headers=headers)
    if tail:
        headers[LOG_TAIL] = base64.b64encode(done.logs).decode()
    if done.failure is not None:
        headers[ERROR] = header_text(done.failure.type)
        return web.Response(body=done.failure.json(), content_type=JSON, headers=headers)
    if done.chunks is not None:
        return await _stream(call, done, headers)
    head = done.head or {}
    if "status" in head:  # of a function that speaks HTTP
        headers["Joey-Function-Status"] = str(head["status"])
    return web.Response(body=done.body, content_type=_media(done), headers=headers)


def header_text(text: str) -> str:
    """A handler's own word as a header's value: it may be anything."""
    return text.encode("ascii", "replace").decode().translate(_CONTROL)[:200]


_CONTROL = dict.fromkeys((*range(32), 127), "?")


def _media(done: Invocation) -> str:
    return JSON if (done.body or b"")[:1] in _JSON_BEGINS else BINARY


_JSON_BEGINS = tuple(bytes([byte]) for byte in b'{["0123456789-tfn')


async def _stream(call: Call, done: Invocation, headers: dict[str, str]) -> web.StreamResponse:
    assert done.chunks is not None
    media = str((done.head or {}).get("content_type") or BINARY)
    response = web.StreamResponse(headers={"Content-Type": header_text(media), **headers})
    return await in_pieces(call.request, response, done.chunks)


async def in_pieces(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send an answer as it comes; of HEAD only its head. One that breaks off has its connection dropped: half of an
    answer is never taken for a whole one.
    """
    try:
        await response.prepare(request)
        async for piece in chunks:
            if request.method != "HEAD":
                await response.write(piece)
        await response.write_eof()
    except StreamFailed as failed:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(failed.failure.message) from None
    finally:
        await closed(chunks)
    return response


async def closed(chunks: AsyncIterator[bytes]) -> None:
    """Nobody reads the rest."""
    close = getattr(chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(StreamFailed):
            await close()


async def invoke_batch(call: Call) -> web.StreamResponse:
    """A line an event, as soon as it is answered."""
    body = await call.body()
    if len(body.events) > _MOST:
        raise Invalid("events", f"{len(body.events)} of them, at most {_MOST}", "send several batches")
    own, name, qualifier = functions(call), call.path["name"], call.query.get("qualifier", "")
    own.version(name, owner=call.visible, qualifier=qualifier)
    lines = await call.lines()
    ready: asyncio.Queue[BatchAnswer] = asyncio.Queue(_AT_A_TIME)
    waiting = iter(enumerate(body.events))

    async def worker() -> None:
        for index, event in waiting:
            await ready.put(await _one(call, name, qualifier, index, event))

    workers = [asyncio.ensure_future(worker()) for _ in range(min(_AT_A_TIME, len(body.events)))]
    try:
        for left in range(len(body.events), 0, -1):
            await lines.add(await ready.get())
            if ready.empty() or left == 1:
                await lines.flush()
    finally:
        for task in workers:
            task.cancel()
    return await lines.end()


async def _one(call: Call, name: str, qualifier: str, index: int, event: Any) -> BatchAnswer:
    while True:
        try:
            done = await functions(call).invoke(name, codec.encode(event), owner=call.visible, qualifier=qualifier)
        except TooMany:  # a batch is one request: within it a limit is a reason to wait
            await asyncio.sleep(0.05)
        except JoeyError as error:
            return BatchAnswer(index=index, error=problem.Problem(**problem.document(error)))
        else:
            if done.failure is not None:
                return BatchAnswer(index=index, request_id=done.request_id, failure=done.failure)
            return BatchAnswer(index=index, request_id=done.request_id, result=json_or_text(done.payload))


# --- tasks and queues ------------------------------------------------------------------------------------------------


async def list_tasks(call: Call) -> Any:
    """Newest first, kept for a day after their end. A full page has the header Joey-Next-Cursor."""
    query = call.query
    found, cursor = functions(call).tasks(
        call.path["name"], owner=call.visible, state=query.get("state", ""), limit=query.get("limit", 100),
        cursor=query.get("cursor", 0),
    )  # fmt: skip
    return call.reply(found, headers={"Joey-Next-Cursor": str(cursor)} if cursor else {})


async def get_task(call: Call) -> Any:
    """Its state, and once it is over what the handler answered."""
    return functions(call).task(call.path["task"], call.visible)


async def stop_task(call: Call) -> Any:
    """One that waits is not done, one that is under way is cut off."""
    return await call.whole(functions(call).stop_task(call.path["task"], call.visible))


async def read_queue(call: Call) -> Any:
    """What came as a record of an invocation to the destination `queue:NAME`, oldest first, as many as are 8 MiB at a
    time; `undelivered` has those whose destination was gone. The administrator sees everybody's queues of that name.
    """
    own, query = functions(call), call.query
    await own.check_queue(call.path["queue"], owner=call.visible)
    return own.messages(
        call.path["queue"], owner=call.visible, after=query.get("after", 0), limit=query.get("limit", 100)
    )


async def clear_queue(call: Call) -> None:
    """Remove messages that have been dealt with: up to this id."""
    await functions(call).check_queue(call.path["queue"], owner=call.visible)
    await call.whole(functions(call).remove_messages(call.path["queue"], call.query["upto"], owner=call.visible))


async def function_logs(call: Call) -> web.StreamResponse:
    """The last 256 KiB that its instances printed since the engine began; as lines of JSON, or as text with
    `Accept: text/plain`.
    """
    query = call.query
    kept = functions(call).logs(call.path["name"], owner=call.visible)
    plain = TEXT in call.request.headers.get("Accept", "")
    found = kept.read(follow=query.get("follow", False), since=query.get("since", 0.0))
    if plain:
        response = web.StreamResponse(headers={"Content-Type": TEXT})
        await response.prepare(call.request)
        async for piece in found:
            await response.write(piece.data)
        await response.write_eof()
        return response
    lines = await call.lines()
    async for piece in found:
        await lines.write(
            LogLine(
                at=piece.at, instance=piece.instance, version=piece.version, stream=piece.stream,
                text=piece.data.decode(errors="replace"), request_id=piece.request,
            )
        )  # fmt: skip
    return await lines.end()


_ONE = "/v1/functions/{name}"
_QUALIFIER = params.text("qualifier", "A version, or an alias; $LATEST without", longest=128)
_LIMIT = params.integer("limit", "At most so many", low=1, high=1000, default=100)

ROUTES = (
    Route(
        "POST", _ONE + "/invoke", invoke, "Invoke a function", tag=TAG, stream=True, body=bytes, body_media=BINARY,
        body_optional=True, answer=bytes, media=(JSON, BINARY),
        also={202: Answer(None, doc="Queued"), 204: Answer(None, doc="It could be invoked")},
        query=(
            _QUALIFIER,
            params.choice("mode", "async: queue it; dry-run: only look", ("sync", "async", "dry-run"), "sync"),
            params.choice("logs", "The end of what it printed, in Joey-Log-Tail (base64)", ("none", "tail"), "none"),
            params.flag("stream", "Send the answer in pieces, as a generator gives them"),
        ),
    ),
    Route(
        "POST", _ONE + "/batch", invoke_batch, "Invoke it for many events", tag=TAG, stream=True, body=BatchBody,
        answer=BatchAnswer, media=NDJSON, query=(_QUALIFIER,), example={"events": [1, 2, 3]},
    ),
    Route(
        "GET", _ONE + "/tasks", list_tasks, "Its asynchronous invocations", tag=TAG, answer=tuple[TaskView, ...],
        query=(
            params.choice("state", "Only those", _STATES), _LIMIT,
            params.integer("cursor", "The header Joey-Next-Cursor of the page before"),
        ),
    ),
    Route(
        "GET", _ONE + "/logs", function_logs, "What it printed", tag=TAG, stream=True, answer=LogLine,
        media=(NDJSON, TEXT),
        query=(
            params.flag("follow", "Go on with what comes, without end"),
            params.seconds("since", "Only what was printed from this instant on (seconds since the epoch)"),
        ),
    ),
    Route("GET", "/v1/tasks/{task}", get_task, "An asynchronous invocation", tag=TAG, answer=TaskView),
    Route("POST", "/v1/tasks/{task}/stop", stop_task, "Stop an asynchronous invocation", tag=TAG, answer=TaskView),
    Route(
        "GET", "/v1/queues/{queue}", read_queue, "Read a queue of records", tag=TAG, answer=tuple[Message, ...],
        query=(params.integer("after", "Only those with a greater id"), _LIMIT),
    ),
    Route(
        "DELETE", "/v1/queues/{queue}", clear_queue, "Remove messages of a queue", tag=TAG, status=204,
        query=(params.integer("upto", "The last one that has been dealt with").needed(),),
    ),
)  # fmt: skip
