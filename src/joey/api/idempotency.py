"""Idempotency keys (draft-ietf-httpapi-idempotency-key-header): a create sent again has the first one's answer.

Kept for 24 hours and across restarts, per owner, with a hash of the body. The same key with another body is refused
(422); one that comes while the first is under way waits for it. Only success is kept: what failed may be tried again.
A create that was under way when the engine was killed may have happened: that is said (409), never guessed.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Awaitable, Callable

from joey.api.database import Database
from joey.model.errors import Conflict, Invalid, JoeyError

SECONDS = 24 * 3600.0
_MOST = 200_000
_SWEEP = 60.0


class KeyReused(JoeyError):
    """The idempotency key came before with another request."""

    status = 422
    code = "idempotency-key-reused"
    title = "Idempotency key reused"


class Idempotency:
    """Answers by (owner, key). One for an instance."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._under_way: dict[tuple[str, str], tuple[bytes, asyncio.Future[tuple[int, bytes] | None]]] = {}
        self._swept = 0.0

    async def answer(
        self, owner: str, key: str, request: bytes, work: Callable[[], Awaitable[tuple[int, bytes]]]
    ) -> tuple[int, bytes, bool]:
        """(status, body, whether it is an earlier answer) of `work`, which is done unless it was before.

        Raises KeyReused, Conflict (its outcome is unknown), Invalid for a key that makes no sense, what `work` raises.
        """
        if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
            raise Invalid("Idempotency-Key", "is 1 to 255 printable ASCII characters")
        digest = hashlib.sha256(request).digest()
        name = (owner, key)
        while (running := self._under_way.get(name)) is not None:
            _same(running[0], digest)
            if (earlier := await asyncio.shield(running[1])) is not None:
                return *earlier, True
            # The first one failed: this one tries.
        found = self._kept(name)
        if found is not None:
            _same(found[0], digest)
            return found[1], found[2], True
        future: asyncio.Future[tuple[int, bytes] | None] = asyncio.get_running_loop().create_future()
        self._under_way[name] = (digest, future)
        result: tuple[int, bytes] | None = None
        try:
            await self._begin(name, digest)
            result = await work()
            await self._database.commit(
                "UPDATE idempotency SET status = ?, body = ? WHERE owner = ? AND key = ?", *result, *name
            )
        finally:
            del self._under_way[name]
            future.set_result(result)
            if result is None:
                self._forget(name)
        return *result, False

    def _kept(self, name: tuple[str, str]) -> tuple[bytes, int, bytes] | None:
        rows = self._database.read(
            "SELECT digest, status, body FROM idempotency WHERE owner = ? AND key = ? AND at > ?",
            *name, time.time() - SECONDS,
        )  # fmt: skip
        if not rows:
            return None
        digest, status, body = rows[0]
        if status is None:
            raise Conflict(
                "Idempotency-Key",
                "the engine ended while it worked on this request: whether it was done is not known",
                "look for it with GET /v1/sandboxes, then use another key",
            )
        return bytes(digest), status, bytes(body)

    async def _begin(self, name: tuple[str, str], digest: bytes) -> None:
        now = time.time()
        if now - self._swept > _SWEEP:
            self._swept = now
            self._database.write("DELETE FROM idempotency WHERE at <= ?", now - SECONDS)
            self._database.write(
                "DELETE FROM idempotency WHERE at <= (SELECT at FROM idempotency ORDER BY at DESC LIMIT 1 OFFSET ?)",
                _MOST,
            )
        await self._database.commit(
            "INSERT OR REPLACE INTO idempotency (owner, key, digest, at) VALUES (?, ?, ?, ?)", *name, digest, now
        )

    def _forget(self, name: tuple[str, str]) -> None:
        try:
            self._database.write("DELETE FROM idempotency WHERE owner = ? AND key = ?", *name)
        except (JoeyError, sqlite3.Error):
            return  # what made the work fail is the news


def _same(first: bytes, second: bytes) -> None:
    if first != second:
        raise KeyReused("Idempotency-Key", "came before with another body", "use a new key for a new request")
