"""What makes functions run: registry, dispatcher, queue and timers of one instance, and invocations of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from joey.functions.dispatch import Bounds, Dispatcher
from joey.functions.invocation import Invocation, record, timer_event
from joey.functions.pool import Deployed, Pool
from joey.functions.queue import Outcome, Queue, Statement, Task
from joey.functions.registry import Entry, Registry
from joey.functions.retries import Next, Result
from joey.functions.store import Store
from joey.functions.timers import Key, Timers
from joey.functions.wire import MAX_BODY, RESPONSE_TOO_LARGE, STOPPED, Answer, Failure, Head, StartFailed, StreamFailed
from joey.model.errors import Busy, Invalid, JoeyError, NotFound
from joey.model.function import AsyncConfig, Trigger, Version
from joey.model.function_views import TaskView

log = logging.getLogger("joey.functions")
FILE = "functions.db"
MAX_ASYNC = 1 << 20
"""Bytes of an asynchronous invocation's event."""
UNDELIVERED = "undelivered"
"""The queue that gets records whose destination is gone."""
_DEPTH = 16
"""Destinations that invoke each other are cut off after so many."""
_LEARNED_SECONDS = 300.0


class Core:
    """Registry, dispatcher, queue and timers of an instance, opened when they are first needed.

    start: makes an instance of a version. home: where functions.db lies; without one nothing outlives this. limits: how
    many invocations of an owner there may be at a time, None for as many as the bounds say.
    """

    def __init__(
        self, start: Callable[[Deployed], Any], home: Path | None, *, bounds: Bounds | None = None,
        happened: Callable[..., None] | None = None,
        limits: Callable[[str], int | None] | None = None,
    ) -> None:  # fmt: skip
        self._start, self._home, self._bounds = start, home, bounds
        self._limits = limits
        self._happened = happened or (lambda kind, deployed, **data: None)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._store: Store | None = None
        self._registry: Registry
        self._dispatcher: Dispatcher
        self._queue: Queue
        self._timers: Timers
        self._deployed: dict[int, tuple[Version, Deployed]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def known(self) -> bool:
        """Whether there may be anything: most instances have no functions, and no database for them."""
        return self._store is not None or (self._home is not None and (self._home / FILE).exists())

    @property
    def busy(self) -> bool:
        """Whether something is to be done without being asked: timers, what is queued, instances that are kept."""
        if self._store is None:
            return False
        return bool(self._timers.known or self._queue.tasks or self._dispatcher.pools)

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        if self._home is None:
            self._folder = tempfile.TemporaryDirectory(prefix="joey-functions-")
            self._home = Path(self._folder.name)
        return self._home

    @property
    def registry(self) -> Registry:
        """Opens functions.db if need be. Raises Broken, Exhausted, NotPermitted."""
        if self._store is None:
            self._open()
        return self._registry

    @property
    def store(self) -> Store:
        if self._store is None:
            self._open()
        assert self._store is not None
        return self._store

    @property
    def dispatcher(self) -> Dispatcher:
        if self._store is None:
            self._open()
        return self._dispatcher

    @property
    def queue(self) -> Queue:
        if self._store is None:
            self._open()
        return self._queue

    @property
    def timers(self) -> Timers:
        if self._store is None:
            self._open()
        return self._timers

    async def open(self) -> None:
        """Take up what an earlier engine left: queues, timers, provisioned instances. Raises JoeyError."""
        if self._home is not None and (self._home / FILE).exists():
            self._open()

    def _open(self) -> None:
        if self._closed:
            raise Busy("functions", "the engine is ending", "come back later")
        self._store = store = Store(self.folder / FILE)
        self._registry = Registry(store)
        self._dispatcher = Dispatcher(self._start, bounds=self._bounds, happened=self._happened)
        if self._limits is not None:
            self._dispatcher.limits = self._limits
        self._queue = Queue(store, self._attempt, self._config, self._concluded)
        self._timers = Timers(store, self._fire)
        for entry in self._registry.entries.values():
            self._dispatcher.function(*entry.key).idle = entry.idle
            self.apply(entry)
            for trigger in entry.triggers.values():
                if trigger.kind == "timer":
                    self._timers.set((*entry.key, trigger.name), trigger)
        self._queue.open()
        self._keeper = asyncio.ensure_future(self._keep())

    def backup(self, path: Path) -> None:
        """A copy of functions.db as a new file, if there is one."""
        if self.known:
            self.store.backup(path)

    async def close(self) -> None:
        """End instances and what is under way; queued invocations stay queued. May be called twice."""
        self._closed = True
        if self._store is None:
            return
        if self._keeper is not None:
            self._keeper.cancel()
        self._timers.close()
        await self._queue.close()
        await self._dispatcher.close()
        self._learned()
        await self._store.close()
        if self._folder is not None:
            self._folder.cleanup()

    async def _keep(self) -> None:
        """Now and then: keep what was learned, forget old tasks."""
        while True:
            await asyncio.sleep(_LEARNED_SECONDS)
            self._learned()
            try:
                await self.tidy()
            except Exception:
                log.exception("tidying up")

    async def tidy(self) -> None:
        """Remove what nothing needs any more."""
        self._queue.prune()

    def _learned(self) -> None:
        for entry in self._registry.entries.values():
            function = self._dispatcher.functions.get(entry.key)
            if function is not None and function.idle.recent:
                self._registry.save_idle(entry)

    # --- versions and their instances --------------------------------------------------------------------------------

    def deployed(self, entry: Entry, version: Version) -> Deployed:
        """A version as it is run; the same object for the same version."""
        found = self._deployed.get(id(version))
        if found is None or found[0] is not version:
            if len(self._deployed) > 4096:
                self._deployed.clear()
            found = self._deployed[id(version)] = version, Deployed(entry.owner, version)
        return found[1]

    def apply(self, entry: Entry) -> None:
        """Make instances follow what the function says now: old revisions drain, provisioned ones start."""
        dispatcher = self._dispatcher
        dispatcher.reserve(*entry.key, entry.latest.spec.reserved)
        wanted: dict[str, int] = {}
        for qualifier, instances in entry.provisioned.items():
            with contextlib.suppress(NotFound):
                version = entry.resolve(qualifier, 1.0 - 1e-9)
                wanted[version.version] = wanted.get(version.version, 0) + instances
        present = {version.version: self.deployed(entry, version) for version in entry.all()}
        for pool in self.pools(entry):
            current = present.get(pool.deployed.version.version)
            if current is None or current.key != pool.deployed.key:
                if not pool.draining:
                    dispatcher.retire(pool)
                continue
            pool.deployed = current
            dispatcher.limit(pool, wanted.get(current.version.version, 0))
        for number, instances in wanted.items():
            dispatcher.limit(dispatcher.pool(present[number]), instances)

    def pools(self, entry: Entry) -> list[Pool]:
        """Those of a function."""
        function = self.dispatcher.functions.get(entry.key)
        return list(function.pools) if function is not None else []

    # --- invoking ----------------------------------------------------------------------------------------------------

    async def invoke(
        self, ref: str, body: bytes, *, owner: str | None, kind: str = "sync", qualifier: str = "",
        client_context: Any = None, http: dict[str, Any] | None = None, stream: bool = False, request_id: str = "",
        arn: str = "", trace: str = "",
    ) -> Invocation:  # fmt: skip
        """kind: sync waits for the answer; async answers once it is on disk (status 202); dry-run only looks (204).

        ref: "name" or "name:qualifier", of which `qualifier` is another way. stream: the answer may come in pieces.
        Raises NotFound, Invalid (a body too long), TooMany, Busy, and what an instance cannot be started for.
        """
        entry, given = self.registry.ref(ref, owner)
        if given and qualifier and given != qualifier:
            raise Invalid("qualifier", f"is {qualifier!r}, and {given!r} with the name", "give one")
        qualifier = qualifier or given
        request_id = request_id or str(uuid.uuid4())
        if kind == "async":
            return await self._later(entry, qualifier, request_id, body, client_context, trace)
        version = entry.resolve(qualifier)
        if kind == "dry-run":
            return Invocation(204, request_id, version.version)
        if kind != "sync":
            raise Invalid("mode", f"{kind!r} is none of sync, async, dry-run")
        if len(body) > MAX_BODY:
            raise Invalid("body", f"{len(body)} bytes, at most {MAX_BODY}", "keep what is long in a file")
        head = Head(id=request_id, http=http, client_context=client_context, arn=arn, trace=trace, stream=stream)
        return await self._now(entry, version, head, body)

    async def _now(self, entry: Entry, version: Version, head: Head, body: bytes, *, cut: bool = False) -> Invocation:
        deployed = self.deployed(entry, version)
        try:
            served = await self._dispatcher.invoke(deployed, head, body, version.spec.timeout, cut=cut)
        except StartFailed as failed:
            failure = msgspec.structs.replace(failed.failure, request_id=head.id)
            return Invocation(200, head.id, version.version, failure=failure, logs=failed.logs, cold=True)
        answer = served.answer
        if answer.chunks is not None and not head.stream and head.http is None:
            await _whole(answer, head.id)
        return Invocation(
            200, head.id, version.version, answer.body, answer.chunks, answer.head, answer.failure, answer.logs,
            answer.seconds, served.cold, served.instance,
        )  # fmt: skip

    async def _later(
        self, entry: Entry, qualifier: str, request_id: str, body: bytes, client_context: Any, trace: str
    ) -> Invocation:
        version = entry.resolve(qualifier, 0.0)
        if len(body) > MAX_ASYNC:
            raise Invalid(
                "body", f"{len(body)} bytes, at most {MAX_ASYNC} asynchronously", "keep what is long in a file"
            )
        head = msgspec.json.encode({"client_context": client_context, "trace": trace})
        await self.queue.put(request_id, entry.owner, entry.name, qualifier, head, body, "api")
        return Invocation(202, request_id, version.version)

    # --- the queue ---------------------------------------------------------------------------------------------------

    async def _attempt(self, task: Task, head: bytes, body: bytes) -> Outcome:
        """One attempt at an asynchronous invocation."""
        try:
            entry = self._registry.find(task.name, task.owner)
            version = entry.resolve(task.qualifier)
            known = msgspec.json.decode(head)
            request = Head(id=task.id, client_context=known.get("client_context"), trace=known.get("trace", ""))
            done = await self._now(entry, version, request, body, cut=True)
        except NotFound as error:
            return Outcome("failed", _failure("ResourceNotFound", error), "ResourceNotFound")
        except JoeyError as error:
            return Outcome("refused", _failure(error.code, error), error.code)
        except Exception as error:
            return Outcome("failed", _failure(type(error).__name__, error), type(error).__name__)
        if done.failure is None:
            return Outcome("succeeded", done.payload, version=done.version)
        result: Result = "refused" if done.failure.type == STOPPED else "failed"
        return Outcome(result, done.payload, done.failure.type, done.version)

    def _config(self, task: Task) -> AsyncConfig:
        try:
            return self._registry.config(self._registry.find(task.name, task.owner), task.qualifier)
        except NotFound:
            return AsyncConfig(max_retries=0)

    def _concluded(self, task: Task, step: Next, outcome: Outcome, body: bytes) -> tuple[list[Statement], list[Task]]:
        config = self._config(task)
        target = config.on_success if step.state == "succeeded" else config.on_failure
        if not target:
            return [], []
        about = record(
            function=task.name, version=outcome.version, request_id=task.id, at=time.time(), condition=step.condition,
            attempts=task.attempts, request=body, response=outcome.payload, error=outcome.error,
        )  # fmt: skip
        kind, _, name = target.partition(":")
        if kind == "function":
            name, _, qualifier = name.partition(":")
            depth = task.source.count(">") + 1
            try:
                self._registry.find(name, task.owner).resolve(qualifier, 0.0)
                if depth > _DEPTH:
                    raise Invalid("destination", f"{depth} destinations invoked each other")
                source = f"{task.source}>{task.name}"
                head = b"{}"
                more, statement = self._queue.prepared(
                    str(uuid.uuid4()), task.owner, name, qualifier, head, about, source
                )
                return [statement], [more]
            except JoeyError as error:
                log.warning("destination %s of function %s: %s", target, task.name, error)
                name = UNDELIVERED
        statement = (
            "INSERT INTO messages (owner, queue, at, body) VALUES (?, ?, ?, ?)",
            (task.owner, name, time.time(), about),
        )
        return [statement], []

    def task(self, id: str, owner: str | None) -> TaskView:
        """An asynchronous invocation. Raises NotFound."""
        self.registry  # noqa: B018 -- opens
        return self._queue.get(id, owner)

    async def stop_task(self, id: str, owner: str | None) -> TaskView:
        """Do not do it any more. Raises NotFound, Conflict if it is over."""
        return await self.queue.stop(id, owner)

    # --- timers ------------------------------------------------------------------------------------------------------

    def _fire(self, key: Key, trigger: Trigger, due: float, fired: Statement) -> None:
        owner, name, _ = key
        body = timer_event(trigger.name, trigger.payload, due)
        id = str(uuid.uuid4())
        task, statement = self._queue.prepared(id, owner, name, trigger.qualifier, b"{}", body, f"timer {trigger.name}")
        self.store.write_all([statement, fired])
        self._queue.add(task)

    async def saved(self) -> None:
        """Return when all that was changed is on disk."""
        await self.store.committed()


def _failure(type: str, error: Exception) -> bytes:
    return msgspec.json.encode({"errorType": type, "errorMessage": str(error)})


async def _whole(answer: Answer, id: str) -> None:
    """Of one who streams unasked, as much as any answer may be."""
    chunks, answer.chunks = answer.chunks, None
    assert chunks is not None
    made = bytearray()
    try:
        async for piece in chunks:
            made += piece
            if len(made) > MAX_BODY:
                text = f"Response payload size exceeded maximum allowed payload size ({MAX_BODY} bytes)."
                answer.failure = Failure(RESPONSE_TOO_LARGE, text, request_id=id)
                return
        answer.body = bytes(made)
    except StreamFailed as failed:
        answer.failure = failed.failure
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


__all__ = ["FILE", "MAX_ASYNC", "UNDELIVERED", "Core"]
