"""All functions of one instance: what the API, its façades and the command line ask for. One event loop.

`owner` is whose a function is: "" the administrator's, else an API key's id. Where a call takes `owner` it sees that
owner's functions only; None sees all (what the administrator passes to look). What a call has answered is on disk.
Errors are those of `joey.model.errors`; what a handler did wrong is no error but data (`Invocation.failure`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from joey.functions import cron
from joey.functions.core import UNDELIVERED, Core
from joey.functions.pool import Pool
from joey.functions.registry import Entry
from joey.functions.stats import Stats
from joey.model import codec
from joey.model.errors import Conflict, Invalid, NotFound, TooMany
from joey.model.function import (
    LATEST,
    Alias,
    AsyncConfig,
    FunctionSpec,
    Trigger,
    Version,
    check_qualifier,
    shown,
)
from joey.model.function_views import (
    FunctionFigures,
    FunctionView,
    InstanceView,
    Message,
    TaskView,
    TriggerView,
    VersionView,
)

SCALING = ("reserved", "provisioned", "max_instances", "keep_alive")
URLS = "/fn/"
"""Where function URLs begin."""
_FIXED = ("name", "code")
KEY_TIMERS = 300
"""Timers of one key: each may be due every second."""


class Code(msgspec.Struct, frozen=True):
    """Code that is in the code store. sha256: base64, as AWS Lambda shows it; size: bytes as it was given."""

    digest: str
    sha256: str
    size: int


NO_CODE = Code("", "", 0)


class Functions(Core):
    """Everything one can ask for. See the module."""

    # --- functions ---------------------------------------------------------------------------------------------------

    async def create(self, spec: FunctionSpec, code: Code | None = None, *, owner: str) -> FunctionView:
        """A new function. Raises Conflict if there is one of that name, Invalid."""
        code = code or NO_CODE
        entry = self.registry.create(owner, self._checked(owner, spec, code), code.sha256, code.size)
        self.apply(entry)
        await self.saved()
        self._happened("created", self.deployed(entry, entry.latest))
        return self.view(entry)

    async def put(self, spec: FunctionSpec, code: Code | None = None, *, owner: str) -> tuple[FunctionView, bool]:
        """Create it, or make $LATEST what `spec` says; without code it keeps what it has. Returns whether it is new."""
        entry = self.registry.entries.get((owner, spec.name))
        if entry is None:
            return await self.create(spec, code, owner=owner), True
        return await self._change(entry, spec, code), False

    async def update_config(
        self, name: str, changes: dict[str, Any], *, owner: str | None, revision: str = ""
    ) -> FunctionView:
        """Fields of the spec as JSON names them; what is not given stays. revision: that $LATEST must have, else
        Conflict. Raises NotFound, Invalid naming the field.
        """
        entry = self._of_revision(name, owner, revision)
        for field in _FIXED:
            if field in changes:
                raise Invalid(field, "cannot be changed here", "code has a call of its own; a name stays")
        merged = {**codec.to_builtins(entry.latest.spec), **changes}
        return await self._change(entry, codec.convert(FunctionSpec, merged), None)

    async def update_code(self, name: str, code: Code, *, owner: str | None, revision: str = "") -> FunctionView:
        """New code for $LATEST. Raises NotFound, Conflict (another revision)."""
        entry = self._of_revision(name, owner, revision)
        return await self._change(entry, entry.latest.spec, code)

    async def set_scaling(self, name: str, changes: dict[str, Any], *, owner: str | None) -> FunctionView:
        """reserved, provisioned, max_instances, keep_alive; None takes a limit away. Instances stay."""
        if unknown := sorted(changes.keys() - set(SCALING)):
            raise Invalid(unknown[0], "unknown field", f"known are {', '.join(SCALING)}")
        return await self.update_config(name, changes, owner=owner)

    async def _change(self, entry: Entry, spec: FunctionSpec, code: Code | None) -> FunctionView:
        latest = entry.latest
        kept = code or Code(latest.spec.code, latest.code_sha256, latest.code_size)
        self.registry.change(entry, self._checked(entry.owner, spec, kept), kept.sha256, kept.size)
        self.apply(entry)
        self.queue.hurry(*entry.key)
        await self.saved()
        self._happened("updated", self.deployed(entry, entry.latest))
        return self.view(entry)

    def _checked(self, owner: str, spec: FunctionSpec, code: Code) -> FunctionSpec:
        spec = replace(spec, code=code.digest)
        if spec.kind == "http" and not spec.command and spec.image in ("", "host"):
            raise Invalid("command", "is required for kind http, unless its image has one", "what serves HTTP on $PORT")
        for layer in spec.layers:
            if not self.registry.may_use(owner, layer):
                raise NotFound("layers", f"there is no layer of yours with the digest {layer}", "joey fn layer")
        if spec.reserved is not None:
            others = sum(
                entry.latest.spec.reserved or 0
                for entry in self.registry.entries.values()
                if entry.owner == owner and entry.name != spec.name
            )
            most = self.dispatcher.most(owner)
            if others + spec.reserved > most:
                text = f"{spec.reserved} and {others} of other functions are more than the {most} of this owner"
                raise Invalid("reserved", text, "reserve less")
        return spec

    def _of_revision(self, name: str, owner: str | None, revision: str) -> Entry:
        entry = self.registry.find(name, owner)
        if revision and revision != entry.latest.revision:
            raise Conflict("revision", f"$LATEST is revision {entry.latest.revision} now", "look at it again")
        return entry

    def get(self, name: str, *, owner: str | None) -> FunctionView:
        """Raises NotFound."""
        return self.view(self.registry.find(name, owner))

    def version(self, ref: str, *, owner: str | None, qualifier: str = "") -> Version:
        """What a reference stands for, with its secrets: for façades, not to be shown as it is. Raises NotFound."""
        entry, given = self.registry.ref(ref, owner)
        return entry.resolve(qualifier or given, 1.0 - 1e-9)

    def list(self, *, owner: str | None) -> list[FunctionView]:
        """In order of name."""
        return [self.view(entry) for entry in self.registry.list(owner)] if self.known else []

    async def delete(self, name: str, *, owner: str | None) -> None:
        """It, its versions, aliases, triggers, and what is queued for it. Raises NotFound."""
        entry = self.registry.find(name, owner)
        last = self.deployed(entry, entry.latest)
        for trigger in entry.triggers:
            self.timers.remove((*entry.key, trigger))
        self.registry.remove(entry)
        self.queue.forget(*entry.key)
        for pool in self.pools(entry):
            self.dispatcher.retire(pool)
        self.dispatcher.remove(*entry.key)
        await self.saved()
        self._happened("removed", last)

    # --- versions, aliases -------------------------------------------------------------------------------------------

    async def publish(
        self, name: str, *, owner: str | None, description: str = "", revision: str = "", code_sha256: str = ""
    ) -> VersionView:
        """$LATEST as a version that never changes; the last one again if nothing has changed since. Raises NotFound,
        Conflict (another revision or code).
        """
        entry = self.registry.find(name, owner)
        if code_sha256 and code_sha256 != entry.latest.code_sha256:
            raise Conflict("code_sha256", f"the code of $LATEST has {entry.latest.code_sha256}", "look at it again")
        version, _ = self.registry.publish(entry, description, revision)
        self.apply(entry)
        await self.saved()
        return version_view(entry, version)

    def versions(self, name: str, *, owner: str | None) -> Sequence[VersionView]:
        """$LATEST, then those that were published, oldest first."""
        entry = self.registry.find(name, owner)
        return [version_view(entry, version) for version in entry.all()]

    async def delete_version(self, name: str, version: str, *, owner: str | None) -> None:
        """Raises NotFound, Conflict while an alias leads to it."""
        entry = self.registry.find(name, owner)
        self.registry.remove_version(entry, version)
        self.apply(entry)
        await self.saved()

    async def set_alias(
        self, name: str, alias: Alias, *, owner: str | None, new: bool = False, must: bool = False
    ) -> Alias:
        """new: it must not be there yet (Conflict); must: it must be (NotFound)."""
        entry = self.registry.find(name, owner)
        if new and alias.name in entry.aliases:
            raise Conflict("alias", f"function {name} has an alias {alias.name!r} already", "change that one")
        if must:
            self.alias(name, alias.name, owner=owner)
        self.registry.set_alias(entry, alias)
        self.apply(entry)
        await self.saved()
        return alias

    def alias(self, name: str, alias: str, *, owner: str | None) -> Alias:
        """Raises NotFound."""
        found = self.registry.find(name, owner).aliases.get(alias)
        if found is None:
            raise NotFound("alias", f"function {name} has no alias {alias!r}", f"joey fn alias {name}")
        return found

    def aliases(self, name: str, *, owner: str | None) -> Sequence[Alias]:
        """In order of name."""
        return [alias for _, alias in sorted(self.registry.find(name, owner).aliases.items())]

    async def delete_alias(self, name: str, alias: str, *, owner: str | None) -> None:
        """Raises NotFound."""
        entry = self.registry.find(name, owner)
        self.registry.remove_alias(entry, alias)
        self.apply(entry)
        await self.saved()

    # --- how many, and how asynchronous ones are treated -------------------------------------------------------------

    async def set_provisioned(self, name: str, qualifier: str, instances: int, *, owner: str | None) -> int:
        """Instances of what the qualifier stands for that are kept; 0: none. Raises NotFound, Invalid."""
        entry = self.registry.find(name, owner)
        if not 0 <= instances <= 100_000:
            raise Invalid("provisioned", "is a whole number from 0 to 100000")
        self.registry.set_provisioned(entry, qualifier, instances)
        self.apply(entry)
        await self.saved()
        return instances

    def provisioned(self, name: str, *, owner: str | None) -> dict[str, tuple[int, int]]:
        """Qualifier -> (wanted, ready now)."""
        entry = self.registry.find(name, owner)
        ready = {pool.deployed.version.version: len(pool.members) for pool in self.pools(entry) if not pool.draining}
        return {
            qualifier: (wanted, min(wanted, ready.get(entry.resolve(qualifier, 1.0 - 1e-9).version, 0)))
            for qualifier, wanted in entry.provisioned.items()
        }

    async def set_async(self, name: str, qualifier: str, config: AsyncConfig | None, *, owner: str | None) -> None:
        """How asynchronous invocations of a qualifier are treated; None: as the function's spec says."""
        entry = self.registry.find(name, owner)
        if qualifier:
            check_qualifier(qualifier)
        self.registry.set_config(entry, qualifier, config)
        await self.saved()

    def async_config(self, name: str, qualifier: str = "", *, owner: str | None) -> AsyncConfig:
        """What holds. Raises NotFound."""
        return self.registry.config(self.registry.find(name, owner), qualifier)

    def async_configs(self, name: str, *, owner: str | None) -> dict[str, AsyncConfig]:
        """Those that were set, by qualifier."""
        return dict(self.registry.find(name, owner).configs)

    # --- triggers ----------------------------------------------------------------------------------------------------

    async def set_trigger(self, name: str, trigger: Trigger, *, owner: str | None, new: bool = False) -> TriggerView:
        """new: it must not be there yet. Raises NotFound, Conflict, Invalid (a schedule, a payload)."""
        entry = self.registry.find(name, owner)
        known = entry.triggers.get(trigger.name)
        if known is not None and (new or known.kind != trigger.kind):
            text = f"function {name} has a {known.kind} trigger {trigger.name!r} already"
            raise Conflict("trigger", text, "remove it, or choose another name")
        spec = entry.resolve(trigger.qualifier, 0.0).spec
        if trigger.kind == "timer":
            cron.parse(trigger.schedule)
            _check_payload(trigger.payload, spec)
            if known is None and entry.owner and self._timers_of(entry.owner) >= KEY_TIMERS:
                raise TooMany("triggers", f"this key has {KEY_TIMERS} timers already", "remove some")
        self.registry.set_trigger(entry, trigger)
        if trigger.kind == "timer":
            self.timers.set((*entry.key, trigger.name), trigger)
        await self.saved()
        return self.trigger_view(entry, trigger)

    def _timers_of(self, owner: str) -> int:
        mine = (entry for entry in self.registry.entries.values() if entry.owner == owner)
        return sum(trigger.kind == "timer" for entry in mine for trigger in entry.triggers.values())

    def trigger(self, name: str, trigger: str, *, owner: str | None) -> TriggerView:
        """Raises NotFound."""
        entry = self.registry.find(name, owner)
        if trigger not in entry.triggers:
            raise NotFound("trigger", f"function {name} has no trigger {trigger!r}", f"joey fn trigger {name}")
        return self.trigger_view(entry, entry.triggers[trigger])

    def triggers(self, name: str, *, owner: str | None) -> Sequence[TriggerView]:
        """In order of name."""
        entry = self.registry.find(name, owner)
        return [self.trigger_view(entry, trigger) for _, trigger in sorted(entry.triggers.items())]

    async def delete_trigger(self, name: str, trigger: str, *, owner: str | None) -> None:
        """Raises NotFound."""
        entry = self.registry.find(name, owner)
        self.registry.remove_trigger(entry, trigger)
        self.timers.remove((*entry.key, trigger))
        await self.saved()

    def trigger_view(self, entry: Entry, trigger: Trigger) -> TriggerView:
        id = entry.urls.get(trigger.name)
        return TriggerView(
            trigger=trigger, function=entry.name, next=self.timers.next((*entry.key, trigger.name)),
            path=f"{URLS}{id}/" if id else "",
        )  # fmt: skip

    # --- tasks and messages ------------------------------------------------------------------------------------------

    def tasks(
        self, name: str, *, owner: str | None, state: str = "", limit: int = 100, cursor: int = 0
    ) -> tuple[Sequence[TaskView], int]:
        """Asynchronous invocations, newest first, and where to go on (0: nowhere). Raises NotFound."""
        entry = self.registry.find(name, owner)
        return self.queue.list(*entry.key, state=state, limit=limit, before=cursor)

    async def check_queue(self, queue: str, *, owner: str | None) -> None:
        """Raises NotFound for one that is nobody's destination and has no messages. What is told of a task that is over
        is in it when this returns.
        """
        if self.known:
            await self.saved()
        target = f"queue:{queue}"
        mine = self.registry.list(owner) if self.known else []
        configs = [config for entry in mine for config in entry.configs.values()]
        configs += [version.spec.async_ for entry in mine for version in entry.all()]
        if queue != UNDELIVERED and not any(target in (one.on_success, one.on_failure) for one in configs):
            if not self.messages(queue, owner=owner, limit=1):
                raise NotFound("queue", f"nothing goes to {target} of yours", "set it as a function's on_failure")

    def messages(self, queue: str, *, owner: str | None, after: int = 0, limit: int = 100) -> Sequence[Message]:
        """What went to the destination `queue:NAME`, oldest first."""
        return self.queue.messages(owner, queue, after=after, limit=limit) if self.known else []

    async def remove_messages(self, queue: str, upto: int, *, owner: str | None) -> None:
        """They have been dealt with."""
        if self.known:
            await self.queue.remove_messages(owner, queue, upto)

    # --- looking -----------------------------------------------------------------------------------------------------

    def view(self, entry: Entry) -> FunctionView:
        latest = entry.latest
        return FunctionView(
            name=entry.name, owner=entry.owner, created=entry.created, modified=latest.created,
            revision=latest.revision, spec=public(latest.spec), code_sha256=latest.code_sha256,
            code_size=latest.code_size, versions=tuple(entry.versions), aliases=tuple(sorted(entry.aliases)),
            triggers=tuple(sorted(entry.triggers)), urls={name: f"{URLS}{id}/" for name, id in entry.urls.items()},
            provisioned=dict(entry.provisioned), figures=self.figures(entry),
        )  # fmt: skip

    def figures(self, entry: Entry) -> FunctionFigures:
        """What it did and does."""
        function = self.dispatcher.functions.get(entry.key)
        stats = function.stats if function is not None else Stats()
        pools = self.pools(entry)
        durations, starts = stats.durations, stats.starts
        return FunctionFigures(
            invocations=stats.invocations, cold_starts=stats.cold_starts, errors=dict(stats.errors),
            throttles=dict(stats.throttles), running=function.running if function else 0,
            waiting=function.waiting if function else 0, queued=self.queue.open_of(*entry.key),
            instances=sum(len(pool.members) for pool in pools), starting=sum(pool.starting for pool in pools),
            duration_mean=_mean(durations.sum, durations.count), duration_p50=durations.percentile(0.5),
            duration_p99=durations.percentile(0.99), start_mean=_mean(starts.sum, starts.count),
            start_p99=starts.percentile(0.99), wait_p99=stats.waits.percentile(0.99),
        )  # fmt: skip

    def instances(self, name: str, *, owner: str | None) -> Sequence[InstanceView]:
        """Sandboxes that run it now, oldest first."""
        entry = self.registry.find(name, owner)
        clock = time.time() - self.dispatcher.now()
        found = [
            InstanceView(
                id=member.runner.id, version=pool.deployed.version.version, started=member.started + clock,
                state="draining" if pool.draining else "busy" if member.running else "idle", running=member.running,
                served=member.served, idle=None if member.running else member.idle + clock,
            )
            for pool in self.pools(entry)
            for member in pool.members
        ]  # fmt: skip
        return sorted(found, key=lambda one: one.started)

    def by_instance(self) -> dict[str, tuple[str, str]]:
        """Id of an instance -> (owner, function)."""
        return {member.runner.id: pool.deployed.function for pool in self.all_pools() for member in pool.members}

    async def stop_instance(self, name: str, id: str, *, owner: str | None) -> None:
        """End one; another takes its place if there is need. Raises NotFound."""
        entry = self.registry.find(name, owner)
        for pool in self.pools(entry):
            if await self.dispatcher.kill(pool, id):
                return
        raise NotFound("instance", f"function {name} has no instance {id!r}", f"joey fn instances {name}")

    def all_pools(self) -> Sequence[Pool]:
        """For figures."""
        return tuple(self.dispatcher.pools.values()) if self.known else ()


def public(spec: FunctionSpec) -> FunctionSpec:
    """As it may be shown: of secrets their names."""
    return replace(spec, secrets=shown(spec.secrets)) if spec.secrets else spec


def version_view(entry: Entry, version: Version) -> VersionView:
    return VersionView(
        function=entry.name, version=version.version, revision=version.revision, created=version.created,
        spec=public(version.spec), description=version.description, code_sha256=version.code_sha256,
        code_size=version.code_size,
    )  # fmt: skip


def _check_payload(payload: str, spec: FunctionSpec) -> None:
    """A timer's event that its handler could never get."""
    if payload and spec.kind == "event" and spec.event_format == "json":
        try:
            msgspec.json.decode(payload)
        except msgspec.DecodeError as error:
            raise Invalid("payload", f"is no JSON: {error}", "as the handler is to get it") from None


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


__all__ = ["LATEST", "NO_CODE", "SCALING", "URLS", "Code", "Functions", "public", "version_view"]
