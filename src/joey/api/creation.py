"""POST /v1/sandboxes and /v1/sandboxes/batch: making one, or many in one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from joey.api import params, problem, streams
from joey.api.bodies import CreateBody
from joey.api.light import web
from joey.api.requests import sandbox_spec
from joey.api.routes import JSON, NDJSON, Call, Route
from joey.api.tenant import restrict
from joey.model import codec
from joey.model.errors import Invalid, JoeyError, TooMany
from joey.model.pool import builtins, merged
from joey.model.spec import SandboxSpec
from joey.model.value import Value
from joey.model.views import Sandbox

IDEMPOTENCY = "Idempotency-Key"
MOST = 10_000
_AT_A_TIME = 64
"""Creates of one batch in flight: enough to keep launchers busy, few enough that other requests get their turn."""
_TURN_SECONDS = 0.01


class BatchBody(Value, frozen=True, kw_only=True):
    """Sandboxes to make: `count` (1 to 10,000) alike of `spec`, or one of each of `specs`."""

    count: int | None = None
    spec: CreateBody | None = None
    specs: tuple[CreateBody, ...] | None = None


class BatchLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sandbox of a batch, as soon as it is ready: `index` counts from 0 in the order of the request."""

    index: int
    sandbox: Sandbox | None = None
    error: problem.Problem | None = None


class Wanted(msgspec.Struct, frozen=True):
    """One sandbox to make, checked. files: absolute path inside -> content. pool: a warm one of it, if there is one."""

    spec: SandboxSpec
    start: bool
    files: dict[str, bytes]
    pool: str = ""
    template: str = ""


def wanted(call: Call, body: dict[str, Any]) -> Wanted:
    """Of a CreateBody as JSON gave it. Raises Invalid naming the field, NotPermitted."""
    body = dict(body)
    start, files, pool = body.pop("start", True), body.pop("files", None), body.pop("pool", "")
    if not isinstance(start, bool):
        raise Invalid("start", "is true or false")
    contents: dict[str, bytes] = {}
    if files is not None:
        try:
            contents = codec.convert(dict[str, bytes], files)
        except Invalid as error:
            raise Invalid("files" + error.where, error.message, "absolute path -> content in base64") from None
        for path in contents:
            if not path.startswith("/") or "/../" in path + "/":
                raise Invalid("files", f"{path!r} is not an absolute path without ..")
        if not start:
            raise Invalid("files", "they are written into a running sandbox", "leave start as it is")
    template = body.pop("template", "")
    if template:
        body = _of_template(call, template, pool, start, body)
    spec = sandbox_spec(_of_pool(call, pool, start, body) if pool else body)
    return Wanted(restrict(call, spec), start, contents, pool, template)


_LATER = ("timeout", "idle_timeout", "on_timeout")


def _of_template(call: Call, template: Any, pool: Any, start: bool, body: dict[str, Any]) -> dict[str, Any]:
    """All else is as the template says."""
    if not isinstance(template, str):
        raise Invalid("template", "is the name of a template")
    if pool or not start:
        raise Invalid("pool" if pool else "start", "a sandbox of a template is forked from it", "leave it out")
    call.engine.template(template, call.owner)
    process = body.get("process", {})
    body = {name: value for name, value in body.items() if not (name in ("init", "remove") and value is True)}
    more = [name for name in body if name not in ("name", "labels", "process", *_LATER)]
    more += [f"process.{name}" for name in process if name != "env"] if isinstance(process, dict) else []
    if more:
        raise Invalid(more[0], f"is as template {template!r} says", "leave it out, or change the template")
    return {"image": "host", **body}


def _of_pool(call: Call, pool: Any, start: bool, body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(pool, str):
        raise Invalid("pool", "is the name of a pool")
    if not start:
        raise Invalid("start", "a sandbox of a pool runs already", "leave start or pool out")
    return merged(body, builtins(call.engine.pool(pool, call.owner).spec))


async def make(call: Call, one: Wanted) -> Sandbox:
    """Create it, start it, write its files. If a file cannot be written nothing is left."""
    if not one.start:
        return await call.engine.create(one.spec, owner=call.owner)
    begun = time.monotonic()
    if one.template:
        made = await call.engine.forked(one.template, one.spec, owner=call.owner)
    elif one.pool:
        made = (await call.engine.run(one.spec, owner=call.owner, pool=one.pool)).sandbox
    else:
        made = (await call.engine.run(one.spec, owner=call.owner)).sandbox
    call.service.counters.launches.add(time.monotonic() - begun)
    if one.files:
        try:
            files = call.engine.files(made.id)
            for path, content in one.files.items():
                await files.write(path, _once(content), parents=True)
        except BaseException:
            await call.engine.remove(made.id, force=True)
            raise
    return made


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


async def create(call: Call) -> Any:
    """Answers when it runs and all of it is kept. `Idempotency-Key`: the same request sent again within 24 hours has
    the first one's answer. With `Upgrade: joey-stream` the connection becomes the program's input and output.
    """
    one = wanted(call, await call.json_object())
    key = call.request.headers.get(IDEMPOTENCY)
    if streams.wants_stream(call.request):
        return await _attached(call, one, key)
    if key is None:
        return await call.whole(make(call, one))

    async def work() -> tuple[int, bytes]:
        return 201, codec.encode(await make(call, one))

    # Whole: if the client leaves, its next try must find the answer.
    status, text, again = await call.whole(call.service.idempotency.answer(call.owner, key, await call.data(), work))
    headers = {"Idempotency-Replayed": "true"} if again else None
    return web.Response(status=status, body=text, content_type=JSON, headers=headers)


async def _attached(call: Call, one: Wanted, key: str | None) -> web.StreamResponse:
    if not one.start:
        raise Invalid("start", "a stream needs a sandbox that is started")
    if key is not None or one.files or one.pool:
        field = IDEMPOTENCY if key is not None else "files" if one.files else "pool"
        raise Invalid(field, "does not go with a stream")
    task = asyncio.ensure_future(call.engine.run(one.spec, attach=True, owner=call.owner))
    try:
        started = await asyncio.shield(task)
        assert started.attachment is not None
        connection = streams.take_over(call.request, Joey_Sandbox=started.sandbox.id)
    except (asyncio.CancelledError, ConnectionResetError):
        # Nobody knows its id: it would run for ever.
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            left = task.result()
            if left.attachment is not None:
                await left.attachment.close()
            await call.engine.remove(left.sandbox.id, force=True)
        raise
    await streams.serve(connection, started.attachment)
    return streams.Taken()


async def create_batch(call: Call) -> Any:
    """A line a sandbox, as soon as it is ready: `{"index": 0, "sandbox": {…}}`, or `{"index": 0, "error": {…}}`. If the
    client leaves, what it has not been told of is removed and the rest is not begun.
    """
    if IDEMPOTENCY in call.request.headers:
        raise Invalid(IDEMPOTENCY, "does not go with a batch", "give each sandbox a name instead")
    all_wanted = _batch(call, await call.json_object())
    lines = await call.lines()
    ready: asyncio.Queue[BatchLine] = asyncio.Queue(_AT_A_TIME)
    waiting = iter(enumerate(all_wanted))
    untold: set[str] = set()

    async def worker() -> None:
        for index, one in waiting:
            line = await call.whole(_line(call, index, one, untold))
            await ready.put(line)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(_AT_A_TIME, len(all_wanted)))]
    try:
        for left in range(len(all_wanted), 0, -1):
            line = await ready.get()
            await lines.add(line)
            if ready.empty() or left == 1:
                await lines.flush()
            if line.sandbox is not None:
                untold.discard(line.sandbox.id)
    except BaseException:
        for task in workers:
            task.cancel()
        await asyncio.wait(workers)
        await call.whole(_remove(call, untold))
        raise
    return await lines.end()


async def _line(call: Call, index: int, one: Wanted, untold: set[str]) -> BatchLine:
    try:
        sandbox = await _in_turn(call, one)
    except JoeyError as error:
        members = problem.document(error)
    except Exception as error:
        members = problem.unexpected(error)
    else:
        untold.add(sandbox.id)
        return BatchLine(index=index, sandbox=sandbox)
    return BatchLine(index=index, error=problem.Problem(**members))


async def _in_turn(call: Call, one: Wanted) -> Sandbox:
    """A batch is one request: within it a key's limit of starts in flight is a reason to wait, not to fail."""
    while True:
        try:
            return await make(call, one)
        except TooMany as error:
            if error.where != "starts" or not call.service.access.limits(call.owner).starts:
                raise
        await asyncio.sleep(_TURN_SECONDS)


async def _remove(call: Call, ids: set[str]) -> None:
    for id in ids:
        try:
            await call.engine.remove(id, force=True)
        except JoeyError as error:
            problem.log.warning("sandbox %s of a batch whose client left: %s", id, error)


def _batch(call: Call, body: dict[str, Any]) -> list[Wanted]:
    unknown = sorted(body.keys() - {"count", "spec", "specs"})
    if unknown:
        raise Invalid(unknown[0], "unknown field", "known are count, spec, specs")
    specs = body.get("specs")
    if specs is not None:
        if body.get("spec") is not None or body.get("count") is not None:
            raise Invalid("specs", "goes without count and spec")
        if not isinstance(specs, list) or not 1 <= len(specs) <= MOST or not all(isinstance(s, dict) for s in specs):
            raise Invalid("specs", f"is a list of 1 to {MOST} objects")
        return [_at(call, f"specs[{at}].", spec) for at, spec in enumerate(specs)]
    count, spec = body.get("count"), body.get("spec")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
        raise Invalid("count", f"is a whole number from 1 to {MOST}")
    if not isinstance(spec, dict):
        raise Invalid("spec", "is required: the sandbox to make, as for POST /v1/sandboxes")
    one = _at(call, "spec.", spec)
    if one.spec.name and count > 1:
        raise Invalid("spec.name", "only one can have that name", "leave it out, or give specs")
    return [one] * count


def _at(call: Call, prefix: str, body: dict[str, Any]) -> Wanted:
    try:
        return wanted(call, body)
    except JoeyError as error:
        error.where = prefix + error.where
        raise


_EXAMPLE = {"image": "host", "process": {"argv": ["sleep", "60"]}}
ROUTES = (
    Route(
        "POST", "/v1/sandboxes", create, "Create a sandbox, and start it", tag="sandboxes",
        headers=(params.text(IDEMPOTENCY, "Any string of yours, new for each new request", longest=255),),
        body=CreateBody, answer=Sandbox, status=201, upgrade=True, example=_EXAMPLE,
    ),
    Route(
        "POST", "/v1/sandboxes/batch", create_batch, "Create many", tag="sandboxes", stream=True,
        body=BatchBody, answer=BatchLine, media=NDJSON, example={"count": 3, "spec": _EXAMPLE},
    ),
)  # fmt: skip
