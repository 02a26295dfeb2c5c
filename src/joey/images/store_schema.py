"""The tables of images.db and how they came to be."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from joey.model.errors import Broken, Exhausted, JoeyError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE images (
        digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, config TEXT NOT NULL, layers TEXT NOT NULL,
        diff_ids TEXT NOT NULL, platform TEXT NOT NULL, created TEXT NOT NULL, added REAL NOT NULL, source TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE names (
        name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (digest), top TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX names_of_images ON names (image);
    CREATE TABLE layers (
        diff_id TEXT PRIMARY KEY, size INTEGER NOT NULL, entries INTEGER NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE leases (
        owner TEXT NOT NULL, image TEXT NOT NULL, PRIMARY KEY (owner, image)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE steps (
        key TEXT PRIMARY KEY, diff_id TEXT NOT NULL, blob TEXT NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)
"""Entry n leads from version n to n + 1 (PRAGMA user_version). One that was released is never changed.

images   a manifest and what hangs on it: config as JSON of a Descriptor, layers as JSON of Descriptors, lowest first
names    a reference; top: the digest its registry gave it, which may be that of an index
layers   unpacked below layers/; size in bytes
leases   who needs an image: `sandbox:ID`
steps    a build's step by the digest of all it depends on, and the layer it made: blob as JSON of a Descriptor; both
         empty for a step that changed no file
"""


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, checked, and made or migrated if need be. Raises Broken, Exhausted naming the file."""
    db = None
    try:
        db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise Broken(
                str(path),
                f"written by a newer Joey (schema {version}, this one knows {len(MIGRATIONS)})",
                "use that version, or set JOEY_HOME to another directory",
            )
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise damaged(path, found)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        for number in range(version, len(MIGRATIONS)):
            db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
        return db
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise explain(path, error) from error
        raise


def damaged(path: Path, what: str) -> Broken:
    return Broken(
        str(path), f"damaged: {what}", f"stop the engine and remove {path.parent}: images are then pulled again"
    )


def explain(path: Path, error: sqlite3.Error) -> JoeyError:
    """What to report when SQLite failed with the database at `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return Exhausted(str(path), str(error), f"free space on the file system of {path.parent}")
    return Broken(str(path), f"{type(error).__name__}: {error}", f"see that {path.parent} is there and can be written")
