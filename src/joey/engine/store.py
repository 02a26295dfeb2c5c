"""What survives a restart of the engine: SQLite in one file, written by one thread in groups.

`save` and `delete` only note what is to be written; the writer thread commits what was noted in the last 20 ms as one
transaction, of several saves of one sandbox only the last. `flush` waits until all noted so far is committed: at once
when it comes alone, together with others that come just then. What is committed survives the end of this process at
once, a power failure from the next checkpoint on (WAL with synchronous=NORMAL, sqlite.org/wal.html).

`backup` copies the database while it is in use. To restore: end the engine, put the copy in place of state.db and
remove state.db-wal and state.db-shm, if they are there. What ran when the copy was made and is gone has then been lost
(code 125), what runs and is not in the copy is ended.

A commit that fails (disk full) loses nothing: it is tried again every second, and `flush` reports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from joey.engine.schema import COLUMNS, Row, back_up, damaged, explain, from_columns, open_database, to_columns
from joey.model.errors import Broken, JoeyError
from joey.model.image import Layer

Counter: TypeAlias = Literal["key", "slot", "event"]

_COUNTERS: tuple[Counter, ...] = ("key", "slot", "event")
_GROUP_SECONDS = 0.02
_RETRY_SECONDS = 1.0
_CROWD, _SECONDS_EACH = 3, 0.0003
"""So many waited for one commit: the next is put off by so long for each of them, at most by _GROUP_SECONDS."""
_SKIPPED = 1 << 16
"""Numbers a counter leaves out after a crash: more than can have been given since its last commit."""

_INSERT = f"INSERT INTO sandboxes ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_DELETE = "DELETE FROM sandboxes WHERE id = ?"
_log = logging.getLogger(__name__)


class Loaded(msgspec.Struct, frozen=True):
    """What was on disk: rows in order of creation, layers by id."""

    rows: tuple[Row, ...]
    layers: dict[str, Layer]


_Named: TypeAlias = dict[tuple[str, str], tuple[bytes, float] | None]
"""Of an owner, by (owner, name): its spec and when it was made."""


class _Batch:
    """What is noted and not committed: id -> value, None for what is deleted."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Row | None] = {}
        self.layers: dict[str, Layer | None] = {}
        self.processes: dict[int, tuple[str, bytes] | None] = {}
        self.pools: _Named = {}
        self.templates: _Named = {}
        self.networks: dict[int, bytes | None] = {}

    def update(self, newer: _Batch) -> None:
        self.sandboxes.update(newer.sandboxes)
        self.layers.update(newer.layers)
        self.processes.update(newer.processes)
        self.pools.update(newer.pools)
        self.templates.update(newer.templates)
        self.networks.update(newer.networks)

    def __bool__(self) -> bool:
        named = self.pools or self.templates
        return bool(self.sandboxes or self.layers or self.processes or self.networks or named)


class Store:
    """The database at `path`. All but its writer belongs to one thread, `flush` and `close` to that one's loop."""

    def __init__(self, path: Path, *, group_seconds: float = _GROUP_SECONDS) -> None:
        """Open it, made or migrated if need be. Raises Broken (damaged, or of a newer Joey), Exhausted, NotPermitted;
        each names the file and what to do.
        """
        self._path = path
        self._group_seconds = group_seconds
        self._db = open_database(path)
        try:
            self._counters = self._open_counters()
        except sqlite3.Error as error:
            self._db.close()
            raise explain(path, error) from error
        self._counters_saved = dict(self._counters)
        self._batch = _Batch()
        self._waiting: list[asyncio.Future[JoeyError | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()  # of batch and waiting
        self._work = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="joey-store", daemon=True)
        self._thread.start()

    def load_all(self) -> Loaded:
        """What is on disk. To be called before anything is saved. Raises Broken naming a sandbox that is damaged."""
        try:
            rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM sandboxes ORDER BY created, id").fetchall()
            layers = self._db.execute("SELECT id, source FROM layers").fetchall()
        except sqlite3.Error as error:
            raise explain(self._path, error) from error
        return Loaded(tuple(map(self._row, rows)), {id: Layer(id, source) for id, source in layers})

    def _row(self, values: tuple[object, ...]) -> Row:
        try:
            return from_columns(values)
        except (ValueError, msgspec.MsgspecError) as error:
            raise damaged(self._path, f"sandbox {values[0]}: {error}") from error

    # --- noting ------------------------------------------------------------------------------------------------------

    def save(self, row: Row) -> None:
        """Note a sandbox as it is now. Costs about a microsecond."""
        with self._lock:
            self._batch.sandboxes[row.id] = row
        self._wake()

    def delete(self, id: str) -> None:
        """Note that a sandbox is gone; nothing if there is none."""
        with self._lock:
            self._batch.sandboxes[id] = None
        self._wake()

    def save_layer(self, layer: Layer) -> None:
        with self._lock:
            self._batch.layers[layer.id] = layer
        self._wake()

    def delete_layer(self, id: str) -> None:
        with self._lock:
            self._batch.layers[id] = None
        self._wake()

    def save_process(self, key: int, sandbox: str, record: bytes) -> None:
        """Note a process that exec started: JSON of `engine.execs.Record`."""
        with self._lock:
            self._batch.processes[key] = (sandbox, record)
        self._wake()

    def delete_process(self, key: int) -> None:
        with self._lock:
            self._batch.processes[key] = None
        self._wake()

    def save_pool(self, owner: str, name: str, spec: bytes, created: float) -> None:
        """Note a warm pool: JSON of its PoolSpec."""
        with self._lock:
            self._batch.pools[owner, name] = (spec, created)
        self._wake()

    def delete_pool(self, owner: str, name: str) -> None:
        with self._lock:
            self._batch.pools[owner, name] = None
        self._wake()

    def load_pools(self) -> list[tuple[str, bytes, float]]:
        """(owner, spec, created) as on disk. To be called before anything is saved. Raises Broken."""
        return self._load_named("pools")

    def _load_named(self, table: str) -> list[tuple[str, bytes, float]]:
        rows = self._select(f"SELECT owner, spec, created FROM {table} ORDER BY owner, name")
        return [(owner, spec.encode(), created) for owner, spec, created in rows]

    def save_template(self, owner: str, name: str, spec: bytes, created: float) -> None:
        """Note a template: JSON of its TemplateSpec."""
        with self._lock:
            self._batch.templates[owner, name] = (spec, created)
        self._wake()

    def delete_template(self, owner: str, name: str) -> None:
        with self._lock:
            self._batch.templates[owner, name] = None
        self._wake()

    def load_templates(self) -> list[tuple[str, bytes, float]]:
        """(owner, spec, created) as on disk. To be called before anything is saved. Raises Broken."""
        return self._load_named("templates")

    def save_network(self, number: int, kept: bytes) -> None:
        """Note a private network: JSON of `engine.private.Kept`."""
        with self._lock:
            self._batch.networks[number] = kept
        self._wake()

    def delete_network(self, number: int) -> None:
        with self._lock:
            self._batch.networks[number] = None
        self._wake()

    def load_networks(self) -> list[bytes]:
        """As on disk. To be called before anything is saved. Raises Broken."""
        return [str(one).encode() for (one,) in self._select("SELECT network FROM networks ORDER BY number")]

    def load_processes(self) -> list[tuple[int, str, bytes]]:
        """(key, sandbox, record) as on disk, oldest first. To be called before anything is saved. Raises Broken."""
        rows = self._select("SELECT key, sandbox, record FROM processes ORDER BY key")
        return [(key, sandbox, record.encode()) for key, sandbox, record in rows]

    def _select(self, query: str) -> list[Any]:
        try:
            return self._db.execute(query).fetchall()
        except sqlite3.Error as error:
            raise explain(self._path, error) from error

    def next_number(self, counter: Counter) -> int:
        """A number this counter has never given, not even before a crash. They count up from 1."""
        number = self._counters[counter]
        self._counters[counter] = number + 1
        if number - self._counters_saved[counter] >= _SKIPPED // 4:
            self._wake()
        return number

    def last_number(self, counter: Counter) -> int:
        """The one given last, 0 or what a crash has skipped to if there was none."""
        return self._counters[counter] - 1

    def flushed(self) -> asyncio.Future[JoeyError | None]:
        """Done when all that was noted before is committed, with what prevents it or None. Asks for it at once: time
        that is spent otherwise meanwhile is gained. Raises Broken when closed.
        """
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[JoeyError | None] = self._loop.create_future()
        with self._lock:
            if self._closing:
                raise Broken(str(self._path), "closed")
            self._waiting.append(future)
        if not self._hurry.is_set():
            self._hurry.set()
            self._work.set()
        return future

    async def flush(self) -> None:
        """Return when all that was noted before is committed. Raises what prevents it; it will be tried again."""
        if error := await self.flushed():
            raise error

    async def close(self) -> None:
        """Commit and close. Raises what prevents the commit; it is closed all the same. Done again: nothing."""
        if self._closing:
            return
        try:
            await self.flush()
        finally:
            with self._lock:
                self._closing = True
            self._hurry.set()
            self._work.set()
            await asyncio.to_thread(self._thread.join)

    async def backup(self, path: Path) -> None:
        """A consistent copy of all that was noted before, as a new file at `path`, mode 0600. Writing goes on.

        Raises Invalid (field "path") if there is something already, else as opening does; nothing is left then.
        """
        await self.flush()
        await asyncio.to_thread(back_up, self._path, path)

    def _wake(self) -> None:
        if not self._work.is_set():
            self._work.set()

    # --- the writer thread -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        pending, error, closing = _Batch(), None, False
        while not closing:
            if error is None:
                self._work.wait()
            self._hurry.wait(_RETRY_SECONDS if error else self._group_seconds)
            with self._lock:
                self._hurry.clear()
                self._work.clear()
                newer, self._batch = self._batch, _Batch()
                waiting, self._waiting = self._waiting, []
                closing = self._closing
            pending.update(newer)
            error = self._commit(pending, exact=closing)
            if error is None:
                pending = _Batch()
            tell(self._loop, waiting, error)
            if len(waiting) >= _CROWD and not closing:  # they come in a burst: let more of them share the next commit
                time.sleep(min(_GROUP_SECONDS, len(waiting) * _SECONDS_EACH))
        self._db.close()

    def _commit(self, batch: _Batch, *, exact: bool) -> JoeyError | None:
        """One transaction."""
        counters = dict(self._counters)
        far = any(next - self._counters_saved[name] >= _SKIPPED // 4 for name, next in counters.items())
        if not (batch or exact or far):  # what few numbers were given since is left out anyway after a crash
            return None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._write_sandboxes(batch.sandboxes)
            self._write_layers(batch.layers)
            self._write_processes(batch.processes)
            self._write_named("pools", batch.pools)
            self._write_named("templates", batch.templates)
            self._write_networks(batch.networks)
            self._write_counters(counters, exact=exact)
            self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, this thread must live to try again
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            told = explain(self._path, error)
            _log.error("%s; trying again", told)
            return told
        self._counters_saved = counters
        return None

    def _write_sandboxes(self, changed: dict[str, Row | None]) -> None:
        """All rows go before any comes: within one batch a name may have passed from one sandbox to another. A row that
        cannot be written at all must not keep the others from disk: it is logged and left out.
        """
        rows = []
        for id, row in changed.items():
            try:
                if row is not None:
                    rows.append(to_columns(row))
            except ValueError as error:
                _log.error("%s: sandbox %s is not saved: %s", self._path, id, error)
        ids = [(id,) for id in changed]
        self._db.executemany(_DELETE, ids)
        try:
            self._db.executemany(_INSERT, rows)
        except sqlite3.IntegrityError:
            self._db.executemany(_DELETE, ids)
            for columns in rows:
                self._write_alone(columns)

    def _write_alone(self, columns: tuple[object, ...]) -> None:
        try:
            self._db.execute(_INSERT, columns)
        except sqlite3.IntegrityError as error:
            _log.error("%s: sandbox %s is not saved: %s", self._path, columns[0], error)

    def _write_layers(self, changed: dict[str, Layer | None]) -> None:
        for id, layer in changed.items():
            if layer is None:
                self._db.execute("DELETE FROM layers WHERE id = ?", (id,))
            else:
                self._db.execute("INSERT OR REPLACE INTO layers (id, source) VALUES (?, ?)", (id, layer.source))

    def _write_processes(self, changed: dict[int, tuple[str, bytes] | None]) -> None:
        self._db.executemany("DELETE FROM processes WHERE key = ?", [(key,) for key in changed])
        rows = [(key, one[0], one[1].decode()) for key, one in changed.items() if one is not None]
        self._db.executemany("INSERT INTO processes (key, sandbox, record) VALUES (?, ?, ?)", rows)

    def _write_named(self, table: str, changed: _Named) -> None:
        self._db.executemany(f"DELETE FROM {table} WHERE owner = ? AND name = ?", changed)
        rows = [(*key, one[0].decode(), one[1]) for key, one in changed.items() if one is not None]
        self._db.executemany(f"INSERT INTO {table} (owner, name, spec, created) VALUES (?, ?, ?, ?)", rows)

    def _write_networks(self, changed: dict[int, bytes | None]) -> None:
        self._db.executemany("DELETE FROM networks WHERE number = ?", [(number,) for number in changed])
        rows = [(number, one.decode()) for number, one in changed.items() if one is not None]
        self._db.executemany("INSERT INTO networks (number, network) VALUES (?, ?)", rows)

    # --- counters ----------------------------------------------------------------------------------------------------
    # Written with each commit. After a clean close they go on where they were (exact), after a crash further up.

    def _open_counters(self) -> dict[str, int]:
        stored = self._db.execute("SELECT name, next, exact FROM counters").fetchall()
        found = {name: next if exact else next + _SKIPPED for name, next, exact in stored}
        counters: dict[str, int] = {name: found.get(name, 1) for name in _COUNTERS}
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._write_counters(counters, exact=False)
        return counters

    def _write_counters(self, counters: dict[str, int], *, exact: bool) -> None:
        rows = [(name, next, exact) for name, next in counters.items()]
        self._db.executemany("INSERT OR REPLACE INTO counters (name, next, exact) VALUES (?, ?, ?)", rows)


__all__ = ["Counter", "Loaded", "Row", "Store"]


def tell(
    loop: asyncio.AbstractEventLoop | None, waiting: list[asyncio.Future[JoeyError | None]], error: JoeyError | None
) -> None:
    """From a writer's thread: all that wait are woken by one call into their loop, which is there if anybody waits."""

    def settle() -> None:
        for future in waiting:
            if not future.done():
                future.set_result(error)

    if waiting and loop is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle)
