"""functions.db: one file, written by one thread in groups, read by the event loop.

`write` notes a statement; what was noted together is committed together, in order. `committed` returns when all noted
before is on disk: a lone one does not wait for company, and while one group is being written the next one gathers. A
commit that fails (disk full) is reported to those who wait for it and its statements are dropped: what an answer was
to be given for was never promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joey.engine.store import tell
from joey.functions.schema import explain, open_database
from joey.model.errors import Broken, JoeyError

log = logging.getLogger("joey.functions")
_IDLE_SECONDS = 0.05
"""What nobody waits for is written so much later at most."""


class Store:
    """The database at `path`. All but its writer belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        """Raises Broken, Exhausted, NotPermitted naming the file."""
        self._path = path
        self._db = open_database(path)
        self._reader = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        self._noted: list[tuple[str, Sequence[Any]]] = []
        self._waiting: list[asyncio.Future[JoeyError | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._work, self._hurry = threading.Event(), threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="joey-functions", daemon=True)
        self._thread.start()

    def write(self, sql: str, *values: Any) -> None:
        """Note one statement."""
        self.write_all([(sql, values)])

    def write_all(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Note several that are committed together or not at all."""
        with self._lock:
            self._noted.extend(statements)
        if not self._work.is_set():
            self._work.set()

    async def committed(self) -> None:
        """Return when all that was noted before is on disk. Raises what prevents it."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[JoeyError | None] = self._loop.create_future()
        with self._lock:
            if self._closing:
                raise Broken(str(self._path), "closed")
            self._waiting.append(future)
        self._hurry.set()
        self._work.set()
        if error := await future:
            raise error

    def read(self, sql: str, *values: Any) -> list[Any]:
        """Rows of what is committed. Raises Broken."""
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise explain(self._path, error) from error

    async def close(self) -> None:
        """Write what was noted, and close. Done again: nothing."""
        if self._closing:
            return
        with contextlib.suppress(JoeyError):
            await self.committed()
        with self._lock:
            self._closing = True
        self._hurry.set()
        self._work.set()
        await asyncio.to_thread(self._thread.join)
        self._reader.close()

    def backup(self, path: Path) -> None:
        """A copy of what is committed, as a new file."""
        try:
            self._reader.execute("VACUUM INTO ?", (str(path),))
        except sqlite3.Error as error:
            raise explain(path, error) from error

    # --- the writer thread -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while True:
            self._work.wait()
            self._hurry.wait(_IDLE_SECONDS)
            with self._lock:
                self._work.clear()
                self._hurry.clear()
                noted, self._noted = self._noted, []
                waiting, self._waiting = self._waiting, []
                closing = self._closing
            error = self._commit(noted) if noted else None
            tell(self._loop, waiting, error)
            if closing:
                self._db.close()
                return

    def _commit(self, noted: list[tuple[str, Sequence[Any]]]) -> JoeyError | None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sql, values in noted:
                self._db.execute(sql, values)
            self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, this thread must live
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            told = explain(self._path, error)
            log.error("%s", told)
            return told
        return None
