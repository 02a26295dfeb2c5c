"""Invocations, and asynchronous ones as tasks."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

from joey.api.facades.fc.base import FUNCTION, Message, answer, arn, inward, limit_of, marked, name_of, outward, token
from joey.api.facades.fc.errors import Failure, lacking
from joey.api.facades.signed_server import SignedCall, route
from joey.api.function_calls import in_pieces
from joey.api.light import web
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.function_views import TaskView

_INIT = ("Runtime.ImportModuleError", "Runtime.UserCodeSyntaxError", "Runtime.HandlerNotFound", "Sandbox.InitTimedout")
_STATES = {
    "queued": "Enqueued",
    "running": "Running",
    "succeeded": "Succeeded",
    "failed": "Failed",
    "expired": "Expired",
    "stopped": "Stopped",
}
_TASK_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}", re.ASCII)
_REFUSED = ("x-fc-stateful-async-invocation-id", "x-fc-async-delay", "x-fc-session-id")


async def invoke(call: SignedCall) -> Any:
    """InvokeFunction. That the function failed is no error of the API: 200, x-fc-error-type, and its error as body."""
    call.allow(lacking, "qualifier")
    headers, name = call.request.headers, name_of(call)
    for one in _REFUSED:
        if headers.get(one):
            raise lacking(one)
    kind, tail = headers.get("x-fc-invocation-type", "Sync"), headers.get("x-fc-log-type", "None")
    if kind not in ("Sync", "Async") or tail not in ("None", "Tail"):
        raise Invalid("x-fc-invocation-type", "is Sync or Async, and x-fc-log-type None or Tail")
    qualifier, id = inward(call.param("qualifier")), headers.get("x-fc-async-task-id", "")
    if kind == "Async":
        return await _later(call, name, qualifier, id)
    if id:
        raise Invalid("x-fc-async-task-id", "is for asynchronous invocations")
    done = await call.functions.invoke(
        name, call.content, owner=call.visible, qualifier=qualifier, request_id=call.id, stream=True,
        arn=arn(name, qualifier),
    )  # fmt: skip
    told = {
        "x-fc-request-id": call.id,
        "x-fc-invocation-duration": str(done.billed_ms),
        "x-fc-version-id": outward(done.version),
    }
    if tail == "Tail":
        told["x-fc-log-result"] = b64encode(done.logs).decode()
    if done.failure is not None:
        told["x-fc-error-type"] = "InitializationError" if done.failure.type in _INIT else "UnhandledInvocationError"
        return web.Response(status=200, body=done.payload, content_type="application/json", headers=told)
    if done.chunks is None:
        return web.Response(status=200, body=done.payload, content_type="application/octet-stream", headers=told)
    response = web.StreamResponse(headers=told | {"Content-Type": "application/octet-stream"})
    return await in_pieces(call.request, response, done.chunks)


async def _later(call: SignedCall, name: str, qualifier: str, id: str) -> Any:
    if id and not _TASK_ID.fullmatch(id):
        raise Invalid("x-fc-async-task-id", "is letters, digits, _ and -, from a letter or _, 128 at most")
    if id:
        id = _inner(call, id)
        try:
            call.functions.task(id, None)
        except NotFound:
            pass
        else:
            raise Failure(409, "AsyncTaskAlreadyExists", f"there is a task {_outer(id)!r} already")
    done = await call.functions.invoke(
        name, call.content, owner=call.visible, qualifier=qualifier, kind="async", request_id=id or call.id
    )
    return web.Response(status=202, headers={"x-fc-request-id": call.id, "x-fc-async-task-id": _outer(done.request_id)})


def _inner(call: SignedCall, id: str) -> str:
    """A task's id that its client has chosen is one of its key's only."""
    return f"{id}@{call.owner}" if call.owner else id


def _outer(id: str) -> str:
    return id.partition("@")[0]


# --- tasks -----------------------------------------------------------------------------------------------------------


def _view(found: TaskView, whole: bool) -> Message:
    status = "Retrying" if found.state == "queued" and found.attempts else _STATES[found.state]
    shown: Message = {
        "taskId": _outer(found.id),
        "requestId": _outer(found.id),
        "functionArn": arn(found.function, outward(found.qualifier)),
        "qualifier": outward(found.qualifier),
        "status": status,
        "alreadyRetriedTimes": max(0, found.attempts - 1),
        "startedTime": round((found.started or found.created) * 1000),
    }
    if found.finished is not None:
        shown["endTime"] = round(found.finished * 1000)
        shown["durationMs"] = max(0, round((found.finished - (found.started or found.created)) * 1000))
    if found.error:
        shown["taskErrorMessage"] = found.error
    if whole and found.result is not None:
        shown["returnPayload"] = found.result.decode(errors="replace")
    return shown


def _task(call: SignedCall) -> TaskView:
    id = call.path["task"]
    try:
        found = call.functions.task(_inner(call, id), call.visible)
    except NotFound:
        found = call.functions.task(id, call.visible)
    chosen = inward(call.param("qualifier"))
    if found.function != name_of(call) or chosen not in ("", inward(outward(found.qualifier))):
        raise NotFound("task", f"the function has no task {call.path['task'][:128]!r}")
    return found


async def get_task(call: SignedCall) -> Any:
    """GetAsyncTask."""
    call.allow(lacking, "qualifier")
    return answer(call, _view(_task(call), True))


async def list_tasks(call: SignedCall) -> Any:
    """ListAsyncTasks: newest first."""
    call.allow(
        lacking, "limit", "nextToken", "prefix", "qualifier", "sortOrderByTime", "startedTimeBegin",
        "startedTimeEnd", "status", "includePayload",
    )  # fmt: skip
    if call.param("includePayload").lower() == "true":
        raise lacking("includePayload: true")
    if call.param("sortOrderByTime", "desc") != "desc":
        raise lacking("sortOrderByTime other than desc")
    status, before = call.param("status"), token(call.param("nextToken"))
    if status and status not in (*_STATES.values(), "Retrying"):
        raise lacking(f"status {status[:20]!r}")
    begin, end = _instant(call, "startedTimeBegin", 0.0), _instant(call, "startedTimeEnd", float("inf"))
    state = next((ours for ours, theirs in _STATES.items() if theirs == status), "queued" if status else "")
    qualifier, prefix = inward(call.param("qualifier")), call.param("prefix")
    if before and not before.isdigit():
        raise Invalid("nextToken", "is none that Joey gave")
    found, cursor = call.functions.tasks(
        name_of(call), owner=call.visible, state=state, limit=limit_of(call), cursor=int(before or 0)
    )
    rows = []
    for one in found:
        shown = _view(one, False)
        right = one.id.startswith(prefix) and qualifier in ("", inward(outward(one.qualifier)))
        if right and status in ("", shown["status"]) and begin * 1000 <= shown["startedTime"] <= end * 1000:
            rows.append(shown)
    answered: Message = {"tasks": rows}
    if cursor:
        answered["nextToken"] = marked(str(cursor))
    return answer(call, answered)


def _instant(call: SignedCall, name: str, default: float) -> float:
    """Milliseconds since the epoch, as seconds."""
    text = call.param(name)
    if text and not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid(name, "is not a number of milliseconds")
    return int(text) / 1000 if text else default


async def stop_task(call: SignedCall) -> Any:
    """StopAsyncTask."""
    call.allow(lacking, "qualifier")
    found = _task(call)
    try:
        await call.whole(call.functions.stop_task(found.id, call.visible))
    except Conflict as error:
        raise Failure(412, "AsyncInvocationStopped", error.message) from None
    return answer(call, {})


ROUTES = (
    route("POST", f"{FUNCTION}/invocations", invoke, "InvokeFunction", tag="invoke"),
    route("GET", f"{FUNCTION}/async-tasks", list_tasks, "ListAsyncTasks"),
    route("GET", f"{FUNCTION}/async-tasks/{{task}}", get_task, "GetAsyncTask"),
    route("PUT", f"{FUNCTION}/async-tasks/{{task}}/stop", stop_task, "StopAsyncTask"),
)
