"""api.db: what only the HTTP service keeps. API keys, answers to creates with an idempotency key, templates of E2B.

Made when the first of these is kept, so an instance used by the command line alone has none. WAL with
synchronous=NORMAL: what is committed survives the end of this process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from joey.model.errors import Broken, Exhausted, JoeyError, NotPermitted

MIGRATIONS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, created REAL NOT NULL,
        admin INTEGER NOT NULL, limits TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE idempotency (
        owner TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, at REAL NOT NULL, status INTEGER, body BLOB,
        PRIMARY KEY (owner, key)
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_at ON idempotency (at);
    """,
    """
    CREATE TABLE e2b_templates (id TEXT PRIMARY KEY, document TEXT NOT NULL);
    CREATE TABLE e2b_builds (id TEXT PRIMARY KEY, template TEXT NOT NULL, document TEXT NOT NULL);
    CREATE INDEX e2b_builds_template ON e2b_builds (template);
    CREATE TABLE e2b_snapshots (
        owner TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (owner, name)
    ) WITHOUT ROWID;
    """,
)
"""Entry n leads from version n to n + 1 (PRAGMA user_version). One that was released is never changed."""
_CROWD, _GROUP_SECONDS = 3, 0.003
"""So many came together: the next wait so long for others."""
_SUFFIXES = ("", "-wal", "-shm")
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN)


class Database:
    """The file at `path`; in memory only if there is no path. Belongs to one thread."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._together: list[tuple[str, tuple[Any, ...], asyncio.Future[None]]] = []
        self._crowd = 0

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows; none if nothing was ever kept. Raises Broken, Exhausted, NotPermitted naming the file."""
        if self._db is None and (self._path is None or not self._path.exists()):
            return []
        return self._run(sql, values)

    def write(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Commits at once. Raises as `read`, and sqlite3.IntegrityError."""
        return self._run(sql, values)

    async def commit(self, sql: str, *values: Any) -> None:
        """Return when it is committed, together with whatever else comes in this turn of the loop; while many come,
        within the next milliseconds. Raises as `read`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._together.append((sql, values, future))
        if len(self._together) == 1:
            if self._crowd >= _CROWD:
                loop.call_later(_GROUP_SECONDS, self._commit)
            else:
                loop.call_soon(self._commit)
        await future

    def _commit(self) -> None:
        together, self._together = self._together, []
        self._crowd = len(together)
        if not together:
            return
        error: Exception | None = None
        try:
            self._run("BEGIN IMMEDIATE", ())
            try:
                for sql, values, _ in together:
                    self._run(sql, values)
                self._run("COMMIT", ())
            except BaseException:
                with contextlib.suppress(JoeyError):
                    self._run("ROLLBACK", ())
                raise
        except (JoeyError, sqlite3.Error) as failed:
            error = failed
        for _, _, future in together:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

    def _run(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            if self._db is None:
                self._db = self._open()
            return self._db.execute(sql, values).fetchall()
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.touch(mode=0o600, exist_ok=True)
        db = sqlite3.connect(self._path or ":memory:", isolation_level=None, check_same_thread=False)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                reason = f"written by a newer Joey (schema {version}, this one knows {len(MIGRATIONS)})"
                raise Broken(str(self._path), reason, "use that version, or set JOEY_HOME to another directory")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            for number in range(version, len(MIGRATIONS)):
                db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def _explain(self, error: sqlite3.Error) -> JoeyError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        where = str(self._path or "api.db")
        if code == sqlite3.SQLITE_FULL:
            return Exhausted(where, str(error), "free space on its file system")
        if code in _REFUSED:
            return NotPermitted(where, str(error), "run the engine as root, on a file system that can be written")
        return Broken(where, f"damaged or unusable: {error}", "move the file away: keys have to be made anew then")

    @property
    def folder(self) -> Path | None:
        """Where the file is; None without one."""
        return None if self._path is None else self._path.parent

    def backup(self, path: Path) -> None:
        """A copy as a new file at `path`, if anything was ever kept. Raises as `read`."""
        if self._db is not None or (self._path is not None and self._path.exists()):
            self._run("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """May be called twice."""
        self._commit()
        if self._db is not None:
            self._db.close()
            self._db = None

    def remove(self) -> None:
        """Close it and remove the file: keys and kept answers are gone."""
        self.close()
        if self._path is not None:
            for suffix in _SUFFIXES:
                with contextlib.suppress(FileNotFoundError):
                    Path(str(self._path) + suffix).unlink()
