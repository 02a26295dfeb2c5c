"""Asynchronous invocations: kept in functions.db before they are answered for, done at least once.

A task is on disk when `put` returns. Whoever kills the daemon afterwards finds it again: what was queued is queued,
what was under way is done again (so a handler may see the same request id twice). Its end, the record for its
destination and that destination's own task or message are one commit. Bodies lie on disk only, but for the newest ones;
in memory a task is some 200 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.structs import replace

from joey.functions import retries
from joey.functions.retries import Attempt, Next, Result, State, Window
from joey.functions.store import Store
from joey.functions.turns import Turns
from joey.model.errors import Conflict, JoeyError, NotFound, TooMany
from joey.model.function import AsyncConfig
from joey.model.function_views import Message, TaskView

log = logging.getLogger("joey.functions")
Statement = tuple[str, Sequence[Any]]

MOST_OPEN = 100_000
"""Tasks of one function that are not over."""
MOST_BYTES = 256 << 20
"""Of the events of one key that are not over, and of the answers that are kept for one owner."""
MOST_RECORDS = 256 << 20
"""Bytes of messages that are kept for one owner."""
TASK_COST = 1024
"""What a task that is not over takes beside its event."""
AT_ONCE, KEY_AT_ONCE = 512, 128
"""Tasks under way, all functions together, and of one key: each may take a day."""
PAGE_BYTES = 8 << 20
"""Of the messages that are read at once."""
KEPT_RESULT = 256 << 10
KEEP_SECONDS, KEEP_ROWS = 86_400.0, 200_000
"""Tasks that are over."""
KEEP_MESSAGES, KEEP_MESSAGE_ROWS = 14 * 86_400.0, 100_000
_CACHE = 32 << 20
_RECENT = 2000
_INSERT = (
    "INSERT OR IGNORE INTO tasks (number, id, owner, name, qualifier, state, created, due, attempts, source, head,"
    " version, error, body) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, 0, ?, ?, '', '', ?)"
)


_SHORTEN_MESSAGES = (
    "DELETE FROM messages WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY owner ORDER BY id"
    " DESC) AS place FROM messages) WHERE place > ?)"
)
_SHORTEN_RECORDS = (
    "DELETE FROM messages WHERE id IN (SELECT id FROM (SELECT id, sum(length(body)) OVER (PARTITION BY owner ORDER BY"
    " id DESC) AS so_far FROM messages) WHERE so_far > ?)"
)
_SHORTEN_RESULTS = (
    "UPDATE tasks SET result = NULL WHERE number IN (SELECT number FROM (SELECT number, sum(length(result)) OVER"
    " (PARTITION BY owner ORDER BY number DESC) AS so_far FROM tasks WHERE result IS NOT NULL) WHERE so_far > ?)"
)


@dataclass(slots=True, eq=False)
class Task:
    """One that is not over."""

    number: int
    id: str
    owner: str
    name: str
    qualifier: str
    created: float
    due: float
    size: int = 0
    attempts: int = 0
    refusals: int = 0
    state: State = "queued"
    source: str = ""
    started: float | None = None
    error: str = ""
    work: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.owner, self.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of an attempt. result: see `retries.Attempt`. error: its type. payload: what the handler answered, or its failure
    as JSON. version: that ran.
    """

    result: Result
    payload: bytes = b""
    error: str = ""
    version: str = ""


@dataclass(slots=True)
class _Line:
    """The tasks of one function that are due."""

    ready: deque[Task] = field(default_factory=deque)
    window: Window = field(default_factory=Window)
    running: int = 0
    open: int = 0


class Queue:
    """attempt: does one; raises nothing of ours. config: what holds for a task. concluded: statements that belong to a
    task's end (destinations), and tasks to begin once they are on disk.
    """

    def __init__(
        self,
        store: Store,
        attempt: Callable[[Task, bytes, bytes], Awaitable[Outcome]],
        config: Callable[[Task], AsyncConfig],
        concluded: Callable[[Task, Next, Outcome, bytes], tuple[list[Statement], list[Task]]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._attempt, self._config, self._concluded = store, attempt, config, concluded
        self.clock = clock
        self.tasks: dict[str, Task] = {}
        self._lines: dict[tuple[str, str], _Line] = {}
        self._turns: Turns[tuple[str, str]] = Turns()
        self._later: list[tuple[float, int, Task]] = []
        self._cache: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._cached = 0
        self._over: OrderedDict[str, TaskView] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._kept = 0
        """Bytes of answers and records since `prune`."""
        self._running = 0
        self._running_of: dict[str, int] = {}
        self._put_by: dict[str, set[tuple[str, str]]] = {}
        """Functions of keys that have as many tasks under way as they may."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        found = store.read("SELECT max(number) FROM tasks")[0][0] or 0
        sequence = store.read("SELECT seq FROM sqlite_sequence WHERE name = 'tasks'")
        self._next = max(found, sequence[0][0] if sequence else 0) + 1

    # --- in and out --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take up what an earlier engine left: what was under way counts as not tried."""
        rows = self._store.read(
            "SELECT number, id, owner, name, qualifier, created, due, length(head) + ifnull(length(body), 0), attempts,"
            " state, source FROM tasks"
            " WHERE finished IS NULL ORDER BY number"
        )
        for number, id, owner, name, qualifier, created, due, size, attempts, state, source in rows:
            tried = max(0, attempts - 1) if state == "running" else attempts
            self.add(Task(number, id, owner, name, qualifier, created, due, size or 0, tried, source=source))
        self.prune()

    def prepared(
        self, id: str, owner: str, name: str, qualifier: str, head: bytes, body: bytes, source: str, due: float = 0.0
    ) -> tuple[Task, Statement]:
        """A task and what writes it; `add` it once that is on disk. Raises TooMany, Conflict."""
        if id in self.tasks:
            raise Conflict("task", f"there is a task {id!r} already", "choose another id")
        line = self._lines.get((owner, name))
        if line is not None and line.open >= MOST_OPEN:
            text = f"{line.open} asynchronous invocations of {name} wait already"
            raise TooMany("invocations", text, "come back later", retry_after=5)
        size = len(head) + len(body)
        if owner and self._bytes.get(owner, 0) + size + TASK_COST > MOST_BYTES:
            text = f"events of this key that wait take {self._bytes.get(owner, 0) >> 20} MiB, of {MOST_BYTES >> 20}"
            raise TooMany("invocations", text, "come back later", retry_after=5)
        now = self.clock()
        task = Task(self._next, id, owner, name, qualifier, now, max(now, due), size, source=source)
        self._next += 1
        if self._cached + size + TASK_COST <= _CACHE:
            self._cache[task.number] = head, body
            self._cached += size + TASK_COST
        values = (task.number, id, owner, name, qualifier, now, task.due, source, head, body)
        return task, (_INSERT, values)

    async def put(self, *args: Any, **options: Any) -> Task:
        """As `prepared`; returns when it is on disk. Raises what prevents that."""
        task, statement = self.prepared(*args, **options)
        self._store.write_all([statement])
        try:
            await asyncio.shield(self._store.committed())
        except JoeyError:
            self._uncache(task.number)
            raise
        except asyncio.CancelledError:
            self.add(task)  # it is written, or will be: whoever asked left before he heard of it
            raise
        self.add(task)
        return task

    def add(self, task: Task) -> None:
        """It is to be done."""
        self.tasks[task.id] = task
        self._line(task.key).open += 1
        self._bytes[task.owner] = self._bytes.get(task.owner, 0) + task.size + TASK_COST
        self._enqueue(task)

    def _line(self, key: tuple[str, str]) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        return line

    def _enqueue(self, task: Task) -> None:
        task.state = "queued"
        if task.due > self.clock():
            heapq.heappush(self._later, (task.due, task.number, task))
            if self._later[0][2] is task:
                self._arm()
            return
        self._line(task.key).ready.append(task)
        self._turns.add(task.owner, task.key)
        self._pump()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later and not self._closing:
            seconds = min(max(0.0, self._later[0][0] - self.clock()), 3600.0)  # the wall clock may jump
            self._timer = asyncio.get_running_loop().call_later(seconds, self._awake)

    def _awake(self) -> None:
        now = self.clock()
        while self._later and self._later[0][0] <= now:
            due, _, task = heapq.heappop(self._later)
            if self.tasks.get(task.id) is task and task.state == "queued" and task.due == due:
                self._line(task.key).ready.append(task)
                self._turns.add(task.owner, task.key)
        self._pump()
        self._arm()

    def hurry(self, owner: str, name: str) -> None:
        """The function may have more than it had: try again what found no place."""
        now = self.clock()
        for task in [task for task in self.tasks.values() if task.refusals and task.key == (owner, name)]:
            if task.state == "queued" and task.due > now:
                task.due = now
                self._enqueue(task)

    # --- doing -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while self._running < AT_ONCE and not self._closing:
            key = self._turns.next()
            if key is None:
                return
            line = self._lines[key]
            while line.ready and line.ready[0].state != "queued":  # stopped meanwhile
                line.ready.popleft()
            if not line.ready or line.running >= int(line.window.size):
                self._turns.remove(key[0], key)  # again when one of it ends
                continue
            if key[0] and self._running_of.get(key[0], 0) >= KEY_AT_ONCE:
                self._turns.remove(key[0], key)
                self._put_by.setdefault(key[0], set()).add(key)
                continue
            task = line.ready.popleft()
            line.running += 1
            self._running += 1
            self._running_of[key[0]] = self._running_of.get(key[0], 0) + 1
            task.state = "running"
            work = task.work = asyncio.ensure_future(self._do(task, line))
            work.add_done_callback(partial(self._left, task, line))

    def _left(self, task: Task, line: _Line, work: asyncio.Task[None]) -> None:
        """An attempt is over, or was called off before it began."""
        line.running -= 1
        self._running -= 1
        self._running_of[task.owner] -= 1
        if not self._running_of[task.owner]:
            del self._running_of[task.owner]
        for key in self._put_by.pop(task.owner, ()):
            if key in self._lines:
                self._turns.add(task.owner, key)
        if task.work is work:
            task.work = None
        if line.ready:
            self._turns.add(task.owner, task.key)
        elif not line.open and not line.running:
            self._lines.pop(task.key, None)
            self._turns.remove(task.owner, task.key)
        self._pump()

    async def _do(self, task: Task, line: _Line) -> None:
        outcome: Outcome | None = None
        try:
            head, body = self._content(task)
            config = self._config(task)
            if task.attempts + task.refusals and retries.expired(task.created, self.clock(), config):
                outcome, step = Outcome("failed", error=task.error), Next("expired", condition="EventAgeExceeded")
            else:
                task.started = self.clock()
                task.attempts += 1
                self._store.write(
                    "UPDATE tasks SET state = 'running', attempts = ?, started = ? WHERE number = ?",
                    task.attempts, task.started, task.number,
                )  # fmt: skip
                outcome = await self._attempt(task, head, body)
                step = self._judged(task, outcome, line, config)
            self._step(task, step, outcome, body)
        except asyncio.CancelledError:
            if task.state != "stopped":  # the engine ends: another one does it again
                task.attempts -= 1
            raise
        except Exception:
            log.exception("task %s", task.id)
            task.due = self.clock() + retries.LONGEST
            self._enqueue(task)

    def _judged(self, task: Task, outcome: Outcome, line: _Line, config: AsyncConfig) -> Next:
        if outcome.result == "refused":
            task.attempts -= 1
            task.refusals += 1
            line.window.refused()
        else:
            task.refusals = 0
            line.window.went_well()
        attempt = Attempt(outcome.result, self.clock())
        return retries.after(attempt, task.attempts, task.refusals, task.created, config, random.random())

    def _step(self, task: Task, step: Next, outcome: Outcome, body: bytes) -> None:
        task.error = outcome.error
        if step.state == "queued":
            task.due = step.due
            self._store.write(
                "UPDATE tasks SET state = 'queued', attempts = ?, due = ?, error = ? WHERE number = ?",
                task.attempts, task.due, task.error, task.number,
            )  # fmt: skip
            self._enqueue(task)
            return
        statements, more = self._concluded(task, step, outcome, body)
        self._finish(task, step.state, outcome, statements)
        for one in more:
            self.add(one)

    def _finish(self, task: Task, state: State, outcome: Outcome, statements: list[Statement]) -> None:
        now = self.clock()
        task.state = state
        result = outcome.payload if len(outcome.payload) <= KEPT_RESULT else None
        done: Statement = (
            "UPDATE tasks SET state = ?, attempts = ?, finished = ?, version = ?, error = ?, result = ?, body = NULL"
            " WHERE number = ?",
            (state, task.attempts, now, outcome.version, outcome.error, result, task.number),
        )
        self._store.write_all([done, *statements])
        self._uncache(task.number)
        self.tasks.pop(task.id, None)
        self._line(task.key).open -= 1
        self._bytes[task.owner] -= task.size + TASK_COST
        if not self._bytes[task.owner]:
            del self._bytes[task.owner]
        self._kept += len(result or b"") + sum(len(value) for _, values in statements for value in values[-1:])
        if self._kept > MOST_BYTES:
            self.prune()
        self._over[task.id] = self._view(task, finished=now, version=outcome.version, result=result)
        while len(self._over) > _RECENT:
            self._over.popitem(last=False)

    def _content(self, task: Task) -> tuple[bytes, bytes]:
        found = self._cache.get(task.number)
        if found is None:
            head, body = self._store.read("SELECT head, body FROM tasks WHERE number = ?", task.number)[0]
            found = head, body or b""
        return found

    def _uncache(self, number: int) -> None:
        found = self._cache.pop(number, None)
        if found is not None:
            self._cached -= len(found[0]) + len(found[1]) + TASK_COST

    # --- asked for ---------------------------------------------------------------------------------------------------

    def open_of(self, owner: str, name: str) -> int:
        """Tasks of a function that are not over."""
        line = self._lines.get((owner, name))
        return line.open if line else 0

    def get(self, id: str, owner: str | None) -> TaskView:
        """One task. Raises NotFound."""
        task = self.tasks.get(id)
        found = self._view(task) if task is not None else self._over.get(id)
        if found is None:
            rows = self._store.read(f"{_SELECT} WHERE id = ?", id)
            found = _of_row(rows[0]) if rows else None
        if found is None or owner not in (None, found.owner):
            raise NotFound("task", f"there is no task {id!r}", "joey fn tasks NAME")
        return found

    def list(
        self, owner: str, name: str, *, state: str = "", limit: int = 100, before: int = 0
    ) -> tuple[list[TaskView], int]:
        """Of a function, newest first, without results; and the cursor for the next ones, 0 at the end."""
        rows = self._store.read(
            f"{_SELECT_FEW} WHERE owner = ? AND name = ? AND number < ? ORDER BY number DESC LIMIT ?",
            owner, name, before or 1 << 62, 1000 if state else limit + 1,
        )  # fmt: skip
        found: list[TaskView] = []
        for row in rows:
            task = self.tasks.get(row[1])
            view = self._view(task) if task is not None else self._over.get(row[1]) or _of_row(row)
            if state in ("", view.state):
                found.append(view)
            if len(found) > limit:
                break
        more = len(found) > limit or (bool(state) and len(rows) == 1000)
        found = [replace(one, result=None) for one in found[:limit]]
        cursor = (found[-1].number if found else rows[-1][0]) if more else 0
        return found, cursor

    async def stop(self, id: str, owner: str | None) -> TaskView:
        """Do not do it, or end it. Raises NotFound, Conflict if it is over."""
        self.get(id, owner)
        task = self.tasks.get(id)
        if task is None:
            raise Conflict("task", f"task {id} is over", "")
        work = task.work
        task.state = "stopped"
        if work is not None:
            work.cancel()
            await asyncio.wait([work])
        self._finish(task, "stopped", Outcome("failed", error="Stopped"), [])
        await self._store.committed()
        return self.get(id, owner)

    def forget(self, owner: str, name: str) -> None:
        """The function is gone, and with it what was to be done."""
        for task in [task for task in self.tasks.values() if task.key == (owner, name)]:
            work, task.state = task.work, "stopped"
            if work is not None:
                work.cancel()
            self._finish(task, "stopped", Outcome("failed", error="FunctionRemoved"), [])

    def prune(self) -> None:
        """Forget what has been over for long, and the oldest answers and messages beyond what is kept."""
        now, write = self.clock(), self._store.write
        self._kept = 0
        write("DELETE FROM tasks WHERE finished < ?", now - KEEP_SECONDS)
        write("DELETE FROM tasks WHERE finished IS NOT NULL AND number < ?", max(0, self._next - KEEP_ROWS))
        write("DELETE FROM messages WHERE at < ?", now - KEEP_MESSAGES)
        write(_SHORTEN_MESSAGES, KEEP_MESSAGE_ROWS)
        write(_SHORTEN_RECORDS, MOST_RECORDS)
        write(_SHORTEN_RESULTS, MOST_BYTES)

    async def close(self) -> None:
        """End what is under way; it is done again by the next engine."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        works = [task.work for task in self.tasks.values() if task.work is not None]
        for work in works:
            work.cancel()
        if works:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(works, timeout=5.0)

    @staticmethod
    def _view(task: Task, finished: float | None = None, version: str = "", result: bytes | None = None) -> TaskView:
        return TaskView(
            id=task.id, number=task.number, owner=task.owner, function=task.name, qualifier=task.qualifier,
            state=task.state, created=task.created, due=task.due, attempts=task.attempts, started=task.started,
            finished=finished, source=task.source, version=version, error=task.error, result=result,
        )  # fmt: skip

    # --- messages ----------------------------------------------------------------------------------------------------

    def messages(self, owner: str | None, queue: str, *, after: int = 0, limit: int = 100) -> Sequence[Message]:
        """What went to a queue as a destination, oldest first, of some MiB at a time. owner None: to everybody's queues
        of that name.
        """
        whose, values = _whose(owner)
        which = f"FROM messages WHERE {whose}queue = ? AND id > ?"
        sizes = self._store.read(
            f"SELECT id, length(body) {which} ORDER BY id LIMIT ?", *values, queue, after, limit
        )  # fmt: skip
        last, size = after, 0
        for id, more in sizes:
            size += more
            if size > PAGE_BYTES and last != after:
                break
            last = id
        rows = self._store.read(f"SELECT id, at, body {which} AND id <= ? ORDER BY id", *values, queue, after, last)
        return [Message(id=id, queue=queue, at=at, body=body) for id, at, body in rows]

    async def remove_messages(self, owner: str | None, queue: str, upto: int) -> None:
        """Those up to an id have been dealt with."""
        whose, values = _whose(owner)
        self._store.write(f"DELETE FROM messages WHERE {whose}queue = ? AND id <= ?", *values, queue, upto)
        await self._store.committed()


def _whose(owner: str | None) -> tuple[str, tuple[str, ...]]:
    """The beginning of a condition, and its values."""
    return ("", ()) if owner is None else ("owner = ? AND ", (owner,))


_SELECT = (
    "SELECT number, id, owner, name, qualifier, state, created, due, attempts, started, finished, source, version,"
    " error, result FROM tasks"
)
_SELECT_FEW = _SELECT.replace("result", "NULL")


def _of_row(row: Sequence[Any]) -> TaskView:
    number, id, owner, name, qualifier, state, created, due, attempts, started, finished, source, version, *rest = row
    return TaskView(
        id=id, number=number, owner=owner, function=name, qualifier=qualifier, state=state, created=created, due=due,
        attempts=attempts, started=started, finished=finished, source=source, version=version, error=rest[0],
        result=rest[1],
    )  # fmt: skip
