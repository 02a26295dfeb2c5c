"""What functions there are: held in memory, kept in functions.db. Names are unique for each owner.

Everything here is done at once in memory and noted for the disk; who answers a client awaits `Store.committed` first.
`owner` None sees everything (the administrator's eyes), as everywhere.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from joey.functions.histogram import IdleTimes
from joey.functions.room import Room
from joey.functions.store import Store
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.function import LATEST, Alias, AsyncConfig, FunctionSpec, Trigger, Version, check_qualifier, split_ref
from joey.model.function_views import LayerView

MOST = 10_000
"""Functions of one owner."""
_AFTER = ("url", "provisioned")
"""Parts that are written when there is no way back any more; they are small."""
MOST_VERSIONS = 1000
"""Of one function: each keeps its code."""


@dataclass(slots=True)
class Entry:
    """One function. configs, provisioned: by qualifier ("$LATEST", a version, an alias)."""

    owner: str
    latest: Version
    created: float
    next: int = 1
    versions: dict[str, Version] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)
    triggers: dict[str, Trigger] = field(default_factory=dict)
    configs: dict[str, AsyncConfig] = field(default_factory=dict)
    provisioned: dict[str, int] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    """Trigger -> the id its address has."""
    idle: IdleTimes = field(default_factory=IdleTimes)

    @property
    def name(self) -> str:
        return self.latest.name

    @property
    def key(self) -> tuple[str, str]:
        return self.owner, self.latest.name

    def all(self) -> Iterator[Version]:
        """$LATEST, then what was published, oldest first."""
        yield self.latest
        yield from self.versions.values()

    def version(self, version: str) -> Version:
        """One of them. Raises NotFound."""
        if version == LATEST:
            return self.latest
        found = self.versions.get(version)
        if found is None:
            raise NotFound("version", f"function {self.name} has no version {version}", f"joey fn versions {self.name}")
        return found

    def resolve(self, qualifier: str, chance: float | None = None) -> Version:
        """What a qualifier stands for now; of an alias with weights one by chance (0 to 1). Raises NotFound."""
        if not qualifier or qualifier == LATEST:
            return self.latest
        alias = self.aliases.get(qualifier)
        if alias is None:
            check_qualifier(qualifier)
            return self.version(qualifier) if qualifier.isdigit() else self._no_alias(qualifier)
        if not alias.weights:
            return self.version(alias.version)
        return self.version(pick(alias, random.random() if chance is None else chance))

    def _no_alias(self, name: str) -> Version:
        raise NotFound("alias", f"function {self.name} has no alias {name!r}", f"joey fn alias {self.name}")


def pick(alias: Alias, chance: float) -> str:
    """The version that an invocation of the alias goes to; `chance` is uniform in [0, 1)."""
    for version, share in alias.weights.items():
        if chance < share:
            return version
        chance -= share
    return alias.version


class Registry:
    """All functions of an instance."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.entries: dict[tuple[str, str], Entry] = {}
        self.addresses: dict[str, tuple[str, str, str]] = {}
        """Id of a function URL -> (owner, function, trigger)."""
        self._layers: dict[tuple[str, str], LayerView] = {}
        self._room = Room()
        self._load()

    # --- looking -----------------------------------------------------------------------------------------------------

    def find(self, name: str, owner: str | None) -> Entry:
        """One function. Raises NotFound, Conflict (several owners have one of that name, for the administrator)."""
        found = self.entries.get((owner or "", name))
        if found is None and owner is None:
            others = [entry for entry in self.entries.values() if entry.name == name]
            if len(others) > 1:
                raise Conflict("name", f"{len(others)} owners have a function {name!r}", "come with the owner's key")
            found = others[0] if others else None
        if found is None:
            raise NotFound("function", f"no function has the name {name!r}", "joey fn ls")
        return found

    def ref(self, ref: str, owner: str | None) -> tuple[Entry, str]:
        """(function, qualifier) of "name" or "name:qualifier". Raises Invalid, NotFound, Conflict."""
        name, qualifier = split_ref(ref)
        return self.find(name, owner), qualifier

    def list(self, owner: str | None) -> list[Entry]:
        """In order of name."""
        found = (entry for entry in self.entries.values() if owner is None or entry.owner == owner)
        return sorted(found, key=lambda entry: (entry.name, entry.owner))

    # --- functions and versions --------------------------------------------------------------------------------------

    def create(self, owner: str, spec: FunctionSpec, code_sha256: str = "", code_size: int = 0) -> Entry:
        """A function. Raises Conflict if there is one of that name, Invalid if the owner has too many."""
        if (owner, spec.name) in self.entries:
            raise Conflict("name", f"there is a function {spec.name!r} already", "update it, or choose another name")
        if sum(1 for key in self.entries if key[0] == owner) >= MOST:
            raise Invalid("name", f"an owner has {MOST} functions at most", "remove some")
        now = time.time()
        version = Version(
            spec=spec, revision=_revision(), created=now, code_sha256=code_sha256, code_size=code_size,
            description=spec.description,
        )  # fmt: skip
        entry = Entry(owner, version, now)
        if spec.provisioned:
            entry.provisioned[LATEST] = spec.provisioned
        self._room.take((*entry.key, "version", LATEST), len(_encode(version)))
        self.entries[entry.key] = entry
        self._save(entry)
        return entry

    def change(self, entry: Entry, spec: FunctionSpec, code_sha256: str, code_size: int) -> None:
        """$LATEST anew."""
        before = entry.latest
        after = replace(
            before, spec=spec, revision=_revision(), created=time.time(), code_sha256=code_sha256,
            code_size=code_size, description=spec.description,
        )  # fmt: skip
        self._room.take((*entry.key, "version", LATEST), len(_encode(after)))
        entry.latest = after
        if spec.provisioned != before.spec.provisioned:
            entry.provisioned[LATEST] = spec.provisioned
            if not spec.provisioned:
                del entry.provisioned[LATEST]
        self._save(entry)

    def publish(self, entry: Entry, description: str = "", revision: str = "") -> tuple[Version, bool]:
        """$LATEST as a version with the next number; the last one again if nothing has changed since it was published.
        Returns it and whether it is new. Raises Conflict if $LATEST is not the wanted revision, Invalid.
        """
        latest = entry.latest
        if revision and revision != latest.revision:
            raise Conflict("revision", f"$LATEST is revision {latest.revision} now", "look at it again")
        last = next(reversed(entry.versions.values()), None)
        if last is not None and last.spec == latest.spec and last.code_sha256 == latest.code_sha256:
            return last, False
        if len(entry.versions) >= MOST_VERSIONS:
            raise Invalid("version", f"a function has {MOST_VERSIONS} versions at most", "remove some")
        version = replace(
            latest, version=str(entry.next), revision=_revision(), created=time.time(),
            description=description or latest.description,
        )  # fmt: skip
        record = _encode(version)
        self._room.take((*entry.key, "version", version.version), len(record))
        entry.next += 1
        entry.versions[version.version] = version
        self._store.write("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", *entry.key, version.version, record)
        self._save(entry)
        return version, True

    def remove(self, entry: Entry) -> None:
        """It and all that belongs to it."""
        del self.entries[entry.key]
        self._room.forget(*entry.key)
        for id in entry.urls.values():
            self.addresses.pop(id, None)
        for table in ("functions", "versions", "parts", "fired"):
            self._store.write(f"DELETE FROM {table} WHERE owner = ? AND name = ?", *entry.key)

    def remove_version(self, entry: Entry, version: str) -> None:
        """A published one, and what was set for it. Raises NotFound, Conflict if an alias leads to it."""
        entry.version(version)
        if version == LATEST:
            raise Invalid("version", "$LATEST goes only with the function", "remove the function")
        for alias in entry.aliases.values():
            if version == alias.version or version in alias.weights:
                raise Conflict("version", f"alias {alias.name} leads to it", "change the alias first")
        del entry.versions[version]
        self._room.give((*entry.key, "version", version))
        self._store.write("DELETE FROM versions WHERE owner = ? AND name = ? AND version = ?", *entry.key, version)
        self._unset(entry, version)

    # --- aliases, triggers, configurations ---------------------------------------------------------------------------

    def set_alias(self, entry: Entry, alias: Alias) -> None:
        """Make it, or change it. Raises NotFound for a version there is not."""
        for version in (alias.version, *alias.weights):
            entry.version(version)
        self._part(entry, "alias", alias.name, alias)
        entry.aliases[alias.name] = alias

    def remove_alias(self, entry: Entry, name: str) -> None:
        """And what was set for it. Raises NotFound."""
        _remove(entry.aliases, name, "alias")
        self._part(entry, "alias", name, None)
        self._unset(entry, name)

    def _unset(self, entry: Entry, qualifier: str) -> None:
        """It stands for nothing any more: nor may what is called so later get what was set for it."""
        if entry.provisioned.pop(qualifier, None) is not None:
            self._part(entry, "provisioned", qualifier, None)
        if entry.configs.pop(qualifier, None) is not None:
            self._part(entry, "config", qualifier, None)

    def set_trigger(self, entry: Entry, trigger: Trigger) -> None:
        """Make it, or change it. A URL keeps its address."""
        self._part(entry, "trigger", trigger.name, trigger)
        entry.triggers[trigger.name] = trigger
        if trigger.kind == "url":
            id = entry.urls.setdefault(trigger.name, secrets.token_hex(10))
            self.addresses[id] = (*entry.key, trigger.name)
            self._part(entry, "url", trigger.name, id)

    def remove_trigger(self, entry: Entry, name: str) -> None:
        """Raises NotFound."""
        _remove(entry.triggers, name, "trigger")
        id = entry.urls.pop(name, None)
        if id is not None:
            self.addresses.pop(id, None)
            self._part(entry, "url", name, None)
        self._part(entry, "trigger", name, None)
        self._store.write("DELETE FROM fired WHERE owner = ? AND name = ? AND part = ?", *entry.key, name)

    def set_config(self, entry: Entry, qualifier: str, config: AsyncConfig | None) -> None:
        """How asynchronous invocations of a qualifier are treated; None: as the function says. Raises NotFound."""
        entry.resolve(qualifier, 0.0)
        qualifier = qualifier or LATEST
        if config is None:
            _remove(entry.configs, qualifier, "configuration")
        self._part(entry, "config", qualifier, config)
        if config is not None:
            entry.configs[qualifier] = config

    def set_provisioned(self, entry: Entry, qualifier: str, instances: int) -> None:
        """So many instances of what the qualifier stands for are kept; 0: none. Raises NotFound, Invalid."""
        entry.resolve(qualifier, 0.0)
        qualifier = qualifier or LATEST
        reserved = entry.latest.spec.reserved
        kept = instances + sum(count for other, count in entry.provisioned.items() if other != qualifier)
        if instances and reserved is not None and kept > reserved:
            raise Invalid("provisioned", f"{kept} in all are more than reserved allows ({reserved})", "reserve more")
        if instances:
            entry.provisioned[qualifier] = instances
        else:
            entry.provisioned.pop(qualifier, None)
        self._part(entry, "provisioned", qualifier, instances or None)

    def config(self, entry: Entry, qualifier: str) -> AsyncConfig:
        """What holds for asynchronous invocations of it."""
        return entry.configs.get(qualifier or LATEST) or entry.resolve(qualifier, 0.0).spec.async_

    def save_idle(self, entry: Entry) -> None:
        """Keep what was learned of its idle times."""
        self._store.write(
            "UPDATE functions SET idle = ? WHERE owner = ? AND name = ?", _encode(entry.idle.dump()), *entry.key
        )

    # --- layers ------------------------------------------------------------------------------------------------------

    def layers_of(self, owner: str | None) -> Sequence[LayerView]:
        """Those that have names."""
        return [layer for layer in self._layers.values() if owner in (None, layer.owner)]

    def layer(self, owner: str, name: str) -> LayerView:
        """Raises NotFound."""
        found = self._layers.get((owner, name))
        if found is None:
            raise NotFound("layer", f"there is no layer {name!r}", "joey fn layer, PUT /v1/layers/NAME")
        return found

    def set_layer(self, layer: LayerView) -> None:
        values = (layer.owner, "", "layer", layer.name, _encode(layer))
        self._room.take((layer.owner, "", "layer", layer.name), len(values[-1]))
        self._layers[layer.owner, layer.name] = layer
        self._store.write("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", *values)

    def remove_layer(self, owner: str, name: str) -> None:
        """Raises NotFound."""
        self.layer(owner, name)
        del self._layers[owner, name]
        self._room.give((owner, "", "layer", name))
        self._store.write(
            "DELETE FROM parts WHERE owner = ? AND name = '' AND kind = 'layer' AND part = ?", owner, name
        )

    def may_use(self, owner: str, digest: str) -> bool:
        """Whether code of that digest is the owner's: of a layer of his, or of a function that has it already."""
        if not owner:
            return True
        if any(layer.digest == digest for layer in self.layers_of(owner)):
            return True
        mine = (entry for entry in self.entries.values() if entry.owner == owner)
        return any(digest in version.spec.layers for entry in mine for version in entry.all())

    # --- the disk ----------------------------------------------------------------------------------------------------

    def _save(self, entry: Entry) -> None:
        self._store.write(
            "INSERT OR REPLACE INTO functions VALUES (?, ?, ?, ?, ?, ?)",
            *entry.key, _encode(entry.latest), entry.created, entry.next, _encode(entry.idle.dump()),
        )  # fmt: skip
        self._part(entry, "provisioned", LATEST, entry.provisioned.get(LATEST))

    def _part(self, entry: Entry, kind: str, name: str, record: object | None) -> None:
        if record is None:
            self._room.give((*entry.key, kind, name))
            self._store.write(
                "DELETE FROM parts WHERE owner = ? AND name = ? AND kind = ? AND part = ?", *entry.key, kind, name
            )
        else:
            data = _encode(record)
            (self._room.set if kind in _AFTER else self._room.take)((*entry.key, kind, name), len(data))
            self._store.write("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", *entry.key, kind, name, data)

    def _load(self) -> None:
        read = self._store.read
        for owner, _, latest, created, next, idle in read("SELECT * FROM functions"):
            entry = Entry(owner, msgspec.json.decode(latest, type=Version), created, next)
            if idle:
                entry.idle = IdleTimes.load(msgspec.json.decode(idle))
            self.entries[entry.key] = entry
            self._room.set((*entry.key, "version", LATEST), len(latest))
        for owner, name, version, record in read("SELECT * FROM versions ORDER BY CAST(version AS INTEGER)"):
            if (owner, name) in self.entries:
                self.entries[owner, name].versions[version] = msgspec.json.decode(record, type=Version)
                self._room.set((owner, name, "version", version), len(record))
        for owner, name, kind, part, record in read("SELECT * FROM parts"):
            self._room.set((owner, name, kind, part), len(record))
            if kind == "layer":
                self._layers[owner, part] = msgspec.json.decode(record, type=LayerView)
            elif (owner, name) in self.entries:
                self._load_part(self.entries[owner, name], kind, part, record)

    def _load_part(self, entry: Entry, kind: str, part: str, record: bytes) -> None:
        if kind == "alias":
            entry.aliases[part] = msgspec.json.decode(record, type=Alias)
        elif kind == "trigger":
            entry.triggers[part] = msgspec.json.decode(record, type=Trigger)
        elif kind == "config":
            entry.configs[part] = msgspec.json.decode(record, type=AsyncConfig)
        elif kind == "provisioned":
            entry.provisioned[part] = msgspec.json.decode(record, type=int)
        elif kind == "url":
            entry.urls[part] = id = msgspec.json.decode(record, type=str)
            self.addresses[id] = (*entry.key, part)


_encode = msgspec.json.Encoder().encode


def _revision() -> str:
    return secrets.token_hex(8)


_LISTED = {"alias": "joey fn alias FUNCTION", "trigger": "joey fn trigger FUNCTION", "layer": "joey fn layer"}


def _remove(parts: dict[str, Any], name: str, kind: str) -> None:
    if name not in parts:
        raise NotFound(kind, f"there is no {kind} {name!r}", _LISTED.get(kind, "joey fn ls"))
    del parts[name]
