"""functions.db: its tables, and how it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from joey.model.errors import Broken, Exhausted, JoeyError, NotPermitted

MIGRATIONS = (
    """
    CREATE TABLE functions (
        owner TEXT NOT NULL, name TEXT NOT NULL, latest BLOB NOT NULL, created REAL NOT NULL, next INTEGER NOT NULL,
        idle BLOB, PRIMARY KEY (owner, name)
    ) WITHOUT ROWID;
    CREATE TABLE versions (
        owner TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (owner, name, version)
    ) WITHOUT ROWID;
    CREATE TABLE parts (
        owner TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, part TEXT NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (owner, name, kind, part)
    ) WITHOUT ROWID;
    CREATE TABLE fired (
        owner TEXT NOT NULL, name TEXT NOT NULL, part TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, name, part)
    ) WITHOUT ROWID;
    CREATE TABLE tasks (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, name TEXT NOT NULL,
        qualifier TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, due REAL NOT NULL,
        attempts INTEGER NOT NULL, started REAL, finished REAL, source TEXT NOT NULL, head BLOB NOT NULL,
        version TEXT NOT NULL, error TEXT NOT NULL, result BLOB, body BLOB
    );
    CREATE INDEX tasks_open ON tasks (state, due) WHERE finished IS NULL;
    CREATE INDEX tasks_of ON tasks (owner, name, number);
    CREATE INDEX tasks_finished ON tasks (finished) WHERE finished IS NOT NULL;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, queue TEXT NOT NULL, at REAL NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX messages_of ON messages (owner, queue, id);
    CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)
"""Entry n leads from version n to n + 1 (PRAGMA user_version). One that was released is never changed."""
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN)


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, made or migrated if need be. Raises Broken, Exhausted, NotPermitted naming it.

    WAL with synchronous=FULL: what is committed survives the machine's end, too (sqlite.org/wal.html).
    """
    try:
        path.touch(mode=0o600, exist_ok=True)
        db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise explain(path, error) from error
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            reason = f"written by a newer Joey (schema {version}, this one knows {len(MIGRATIONS)})"
            raise Broken(str(path), reason, "use that version, or set JOEY_HOME to another directory")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        for number in range(version, len(MIGRATIONS)):
            db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
    except sqlite3.Error as error:
        db.close()
        raise explain(path, error) from error
    except BaseException:
        db.close()
        raise
    return db


def explain(path: Path, error: Exception) -> JoeyError:
    """What to report when SQLite failed with the database at `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Exhausted(str(path), str(error), f"free space on the file system of {path.parent}")
    if code in _REFUSED or isinstance(error, PermissionError):
        return NotPermitted(str(path), str(error), "run the engine as root, on a file system that can be written")
    return Broken(str(path), f"damaged or unusable: {error}", "move the file away: functions are deployed anew then")
