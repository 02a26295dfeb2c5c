"""API keys: who calls, and whose sandboxes they see. What a key may not ask for: joey.api.tenant.

A key is `joey_` (or `e2b_`) and 256 random bits in hexadecimal. Only its SHA-256 is kept: nothing can be guessed
from random bits of that size, so a slow hash would protect nothing. A caller's sandboxes are those made with the
same key; of others nothing is told (404). An administrator's key may do all that the unix socket may.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Literal

import msgspec

from joey.api.database import Database
from joey.api.light import web
from joey.api.routes import Call
from joey.model.errors import Invalid, NotFound, NotPermitted
from joey.model.limits import NO_LIMITS, Limits
from joey.model.value import Value

ADMINISTRATOR = "come by the unix socket, or with a key made with --admin"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown. created: seconds since the epoch. admin: it may do all the unix socket may."""

    id: str
    name: str
    created: float
    admin: bool = False
    limits: Limits = Limits()


class NewKey(Key, frozen=True, kw_only=True):
    """A key just made. key: the secret, shown this once."""

    key: str


class KeyBody(Value, frozen=True, kw_only=True):
    """A key to make. form: how it begins; E2B's clients want `e2b_`."""

    name: str = ""
    admin: bool = False
    limits: Limits = Limits()
    form: Literal["joey", "e2b"] = "joey"

    def __post_init__(self) -> None:
        if len(self.name) > 200 or not self.name.isprintable():
            raise Invalid("name", "is at most 200 printable characters")


class Access:
    """The keys of an instance. All are held in memory: a request costs one hash."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[bytes, Key] = {}
        self._limits: dict[str, Limits] = {}
        self._by_id: dict[str, Key] = {}
        for id, name, digest, created, admin, limits in database.read(
            "SELECT id, name, digest, created, admin, limits FROM keys ORDER BY created, id"
        ):
            decoded = msgspec.json.decode(limits, type=Limits)
            key = Key(id=id, name=name, created=created, admin=bool(admin), limits=decoded)
            self._keys[bytes(digest)] = self._by_id[id] = key
            self._limits[id] = decoded

    def list(self) -> list[Key]:
        """Oldest first."""
        return list(self._keys.values())

    def limits(self, owner: str) -> Limits:
        """Of an owner; none for the administrator and for a key that is gone."""
        return self._limits.get(owner, NO_LIMITS)

    def create(self, body: KeyBody) -> NewKey:
        """Make a key and keep its hash."""
        secret = f"{body.form}_" + secrets.token_hex(32)
        key = Key(id=secrets.token_hex(6), name=body.name, created=time.time(), admin=body.admin, limits=body.limits)
        limits = msgspec.json.encode(key.limits).decode()
        digest = _digest(secret)
        self._database.write(
            "INSERT INTO keys (id, name, digest, created, admin, limits) VALUES (?, ?, ?, ?, ?, ?)",
            key.id, key.name, digest, key.created, int(key.admin), limits,
        )  # fmt: skip
        self._keys[digest] = self._by_id[key.id] = key
        self._limits[key.id] = key.limits
        return NewKey(**{name: getattr(key, name) for name in key.__struct_fields__}, key=secret)

    def revoke(self, ref: str) -> Key:
        """From now on its requests are refused; its sandboxes stay, for the administrator. Raises NotFound."""
        found = [digest for digest, key in self._keys.items() if ref in (key.id, key.name) and ref]
        if not found:
            raise NotFound("key", f"no key has the id or name {ref!r}", "joey keys ls")
        if len(found) > 1:
            raise Invalid("key", f"{len(found)} keys have the name {ref!r}", "give the id")
        self._database.write("DELETE FROM keys WHERE digest = ?", found[0])
        key = self._keys.pop(found[0])
        del self._limits[key.id], self._by_id[key.id]
        return key

    def of(self, id: str) -> Key | None:
        """The key of an id, None if there is none: for those who have shown in another way that they have it."""
        return self._by_id.get(id)

    def find(self, secret: str) -> Key | None:
        """The key of a secret, None if there is none."""
        wanted = _digest(secret)
        key = self._keys.get(wanted)
        # The dict compares hashes of secrets, of which an attacker controls no prefix; this makes it plain.
        return key if key is not None and hmac.compare_digest(_digest(secret), wanted) else None

    def admit(self, call: Call, local: bool) -> None:
        """Set the call's key and owner. Raises 401 without a right key, NotPermitted for what is an administrator's."""
        secret = _secret(call.request)
        if secret is None and (local or call.route.open):
            return
        key = self.find(secret) if secret else None
        if key is None:
            what = "the API key is missing" if secret is None else "the API key is wrong or revoked"
            raise web.HTTPUnauthorized(text=what, headers={"WWW-Authenticate": 'Bearer realm="joey"'})
        if call.route.admin and not key.admin:
            raise NotPermitted("key", "this is the administrator's", ADMINISTRATOR)
        call.key = key
        call.owner = "" if key.admin else key.id


def _secret(request: web.Request) -> str | None:
    """What the client gave for a key, "" for something that is none, None for nothing."""
    given = request.headers.get("Authorization")
    if given is not None:
        scheme, _, secret = given.partition(" ")
        return secret.strip() if scheme.lower() == "bearer" else ""
    return request.headers.get("X-API-Key")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
