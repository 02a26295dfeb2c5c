"""Façades whose clients sign requests (joey.api.facades.signing): whose secret is what.

A key's signing secret is derived from the façade's own secret and the key's id, so nothing more is stored, revoking the
key revokes it, and the hash that Joey keeps of the key is of no use to sign with. `joey env NAME` prints it for a key
made for that, `joey env NAME --key KEY` for any other.
"""

from __future__ import annotations

import msgspec

from joey.api.auth import Key, KeyBody
from joey.api.facades import signing
from joey.api.facades.loopback import Loopback
from joey.model.errors import Invalid, NotFound
from joey.model.function import ACCOUNT, REGION
from joey.model.value import Value


class WhoseKey(Value, frozen=True):
    """Whose credentials are wanted: a key's id or name; of none the façade's own key, made if there is none."""

    key: str = ""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs: where, the access key id (a key's id), and the secret that goes with it here."""

    url: str
    key_id: str
    secret: str
    region: str = REGION
    account: str = ACCOUNT


class Signed(Loopback):
    """A façade with credentials; what it keeps as `key` is the id of the key that it gives out."""

    async def access(self, ref: str = "") -> Credentials:
        """Listen, and say what a client of the key `ref` (id or name) needs. Raises Exhausted, NotFound, Invalid."""
        await self.listen()
        key = self._named(ref) if ref else self._own()
        return Credentials(url=self.url, key_id=key.id, secret=self._secret(key.id))

    def secret(self, id: str) -> str | None:
        """What a key signs with; None if there is no such key."""
        return self._secret(id) if self.service.access.of(id) is not None else None

    def _secret(self, id: str) -> str:
        return signing.secret_of(bytes.fromhex(self.kept.secret), self.name, id)

    def _own(self) -> Key:
        key = self.service.access.of(self.kept.key)
        if key is None:
            key = self.service.access.create(KeyBody(name=f"joey env {self.name}"))
            self.kept.key = key.id
            self.write()
        return key

    def _named(self, ref: str) -> Key:
        found = [key for key in self.service.access.list() if ref in (key.id, key.name)]
        if not found:
            raise NotFound("key", f"no key has the id or name {ref!r}", "joey keys ls")
        if len(found) > 1:
            raise Invalid("key", f"{len(found)} keys have the name {ref!r}", "give the id")
        return found[0]
