"""The tables of state.db, how they came to be, and how a sandbox is laid out in them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from joey.engine.record import Phase, Policy, Record, Run
from joey.model.errors import Broken, Exhausted, Invalid, JoeyError, NotPermitted, from_os
from joey.model.views import Exit

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, image TEXT NOT NULL, spec TEXT NOT NULL, created REAL NOT NULL,
        slot TEXT NOT NULL, base INTEGER NOT NULL, launcher INTEGER NOT NULL, meta TEXT NOT NULL,
        phase TEXT NOT NULL, run TEXT NOT NULL, key INTEGER NOT NULL, pid INTEGER, held INTEGER NOT NULL,
        files INTEGER NOT NULL, started REAL, finished REAL, exit TEXT, stopping REAL, stop_by REAL,
        policy TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX living_names ON sandboxes (name) WHERE phase != 'removing' AND name != '';
    CREATE TABLE counters (name TEXT PRIMARY KEY, next INTEGER NOT NULL, exact INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE layers (id TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE sandboxes ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE sandboxes ADD COLUMN life TEXT NOT NULL DEFAULT '{}';
    DROP INDEX living_names;
    CREATE UNIQUE INDEX living_names ON sandboxes (owner, name) WHERE phase != 'removing' AND name != '';
    """,
    """
    CREATE TABLE processes (key INTEGER PRIMARY KEY, sandbox TEXT NOT NULL, record TEXT NOT NULL);
    """,
    """
    CREATE TABLE pools (
        owner TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, created REAL NOT NULL, PRIMARY KEY (owner, name)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE networks (number INTEGER PRIMARY KEY, network TEXT NOT NULL);
    """,
    """
    CREATE TABLE templates (
        owner TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, created REAL NOT NULL, PRIMARY KEY (owner, name)
    ) WITHOUT ROWID;
    """,
)
"""Entry n leads from version n to n + 1 (PRAGMA user_version). One that was released is never changed."""

_HEAD = ("id", "name", "image", "spec", "created", "slot", "base", "launcher", "meta", "owner")
_RECORD = (
    "phase", "run", "key", "pid", "held", "files", "started", "finished", "exit", "stopping", "stop_by", "policy",
)  # fmt: skip
COLUMNS = (*_HEAD, *_RECORD, "life")
_LIFE = ("restarts", "tries", "again_at", "deadline", "stopped", "health")
"""What of a record is kept as JSON in one column, the fields that are not as they were at first."""
_FRESH = Record()


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept of a sandbox.

    spec: the SandboxSpec as JSON. slot, base, launcher: where its run and files are, "" and 0 without. meta: JSON of
    whatever else belongs to it (pool: of which it is a warm member, link: see joey.engine.networks.Link). owner: ""
    the administrator's.
    """

    id: str
    name: str
    spec: bytes
    created: float
    image: str = ""
    slot: str = ""
    base: int = 0
    launcher: int = 0
    meta: bytes = b"{}"
    owner: str = ""
    record: Record = Record()


def to_columns(row: Row) -> tuple[object, ...]:
    """A value for each of COLUMNS. Raises UnicodeError for text that is not Unicode."""
    record = row.record
    return (
        row.id,
        row.name,
        row.image,
        row.spec.decode(),
        row.created,
        row.slot,
        row.base,
        row.launcher,
        row.meta.decode(),
        row.owner,
        str(record.phase),
        str(record.run),
        record.key,
        record.pid,
        record.held,
        record.files,
        record.started,
        record.finished,
        None if record.exit is None else msgspec.json.encode(record.exit).decode(),
        record.stopping,
        record.stop_by,
        msgspec.json.encode(record.policy).decode(),
        msgspec.json.encode(_life(record)).decode(),
    )


def _life(record: Record) -> dict[str, object]:
    return {name: value for name in _LIFE if (value := getattr(record, name)) != getattr(_FRESH, name)}


def from_columns(values: Sequence[object]) -> Row:
    """The opposite. Raises msgspec.ValidationError or ValueError for what `to_columns` never wrote."""
    given = dict(zip(COLUMNS, values, strict=True))
    record = {name: given.pop(name) for name in _RECORD}
    record["held"], record["files"] = bool(record["held"]), bool(record["files"])
    record["policy"] = msgspec.json.decode(_bytes(record["policy"]), type=Policy)
    if record["exit"] is not None:
        record["exit"] = msgspec.json.decode(_bytes(record["exit"]), type=Exit)
    record["phase"], record["run"] = Phase(str(record["phase"])), Run(str(record["run"]))
    record |= msgspec.json.decode(_bytes(given.pop("life")), type=dict)
    given["spec"], given["meta"] = _bytes(given["spec"]), _bytes(given["meta"])
    return msgspec.convert(given | {"record": msgspec.convert(record, Record)}, Row)


def _bytes(text: object) -> bytes:
    return str(text).encode()


# --- opening ---------------------------------------------------------------------------------------------------------


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, checked, and made or migrated if need be. Raises what `explain` gives, and Broken for one
    of a newer Joey or of another program.
    """
    db = None
    try:
        db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        _prepare(db, path)
    except sqlite3.Error as error:
        if db:
            db.close()
        raise explain(path, error) from error
    except BaseException:
        if db:
            db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise Broken(
            str(path),
            f"written by a newer Joey (schema {version}, this one knows {len(MIGRATIONS)})",
            "use that version, or set JOEY_HOME to another directory",
        )
    if not version and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise Broken(str(path), "a database of another program", "set JOEY_HOME to another directory")
    if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise damaged(path, found)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    for number in range(version, len(MIGRATIONS)):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")


def back_up(path: Path, copy: Path) -> None:
    """Copy the database at `path`, which may be in use, as the new file `copy` (sqlite.org/backup.html). See
    `Store.backup`.
    """
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    except FileExistsError as error:
        raise Invalid("path", f"{copy} is there already", "name a new file") from error
    except OSError as error:
        raise from_os(f"make {copy}", error) from error
    try:
        with (
            contextlib.closing(sqlite3.connect(path, timeout=5.0)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
        with copy.open("rb+") as file:
            os.fsync(file.fileno())
    except (sqlite3.Error, OSError) as error:
        copy.unlink(missing_ok=True)
        raise explain(copy, error) from error


def damaged(path: Path, what: str) -> Broken:
    return Broken(
        str(path),
        f"damaged: {what}",
        "`joey system reset` removes every sandbox and begins afresh; to keep the file for examination, copy it first",
    )


_FULL, _CORRUPT, _NOT_A_DATABASE = sqlite3.SQLITE_FULL, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


def explain(path: Path, error: Exception) -> JoeyError:
    """What to report when SQLite (or what calls it) failed with the database at `path` (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (_CORRUPT, _NOT_A_DATABASE):
        return damaged(path, str(error))
    if code == _FULL:
        return Exhausted(str(path), str(error), f"free space on the file system of {path.parent}")
    if code in _BUSY:
        return Broken(str(path), str(error), "another program has it locked: end that program")
    if code in _REFUSED:
        return NotPermitted(str(path), str(error), "run the engine as root, on a file system that can be written")
    return Broken(str(path), f"{type(error).__name__}: {error}", f"see that {path.parent} is there and can be written")
