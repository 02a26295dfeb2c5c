"""Warm pools: what one is, and what of a sandbox can still be chosen when it is handed out. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import field
from msgspec.structs import replace

from joey.model import codec
from joey.model.errors import Invalid, Unenforceable
from joey.model.spec import Restart, SandboxSpec
from joey.model.value import Value

MOST = 10_000
"""Members of one pool."""


class PoolSpec(Value, frozen=True, kw_only=True):
    """Sandboxes of `spec` that are kept started: `size` of them, at most `max_starting` started at a time. late_env:
    what a request asks for in `process.env` is for what exec starts; the main program keeps what the pool's spec has.
    """

    name: str
    spec: SandboxSpec = field(default_factory=SandboxSpec)
    size: int = 8
    max_starting: int = 2
    late_env: bool = False

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum() and self.name[0].isalnum() and len(self.name) <= 128):
            raise Invalid(
                "name", f"{self.name!r} is not a name for a pool", "letters, digits, and _ . - after the first"
            )
        if not 0 <= self.size <= MOST:
            raise Invalid("size", f"is a whole number from 0 to {MOST}")
        if not 1 <= self.max_starting <= 64:
            raise Invalid("max_starting", "is a whole number from 1 to 64")
        if self.spec.name:
            raise Invalid("spec.name", "sandboxes of a pool are named when they are handed out")


_LATER = frozenset((
    "name", "labels", "timeout", "idle_timeout", "on_timeout", "restart", "health", "remove", "stop_timeout", "pull",
    "proxy_token",
))  # fmt: skip
"""Fields that are no matter of a running sandbox's containment: they are set when it is handed out."""
_DEFAULTS_OF_EXEC = ("env", "cwd")
"""Of the process: as long as there is no main program but joey-init they are only defaults for what exec starts."""


def warm(spec: SandboxSpec) -> SandboxSpec:
    """What a member is started with: without what acts on a sandbox in time, and gone as soon as it ends."""
    return replace(
        spec, name="", remove=True, restart=Restart(), timeout=None, idle_timeout=None, on_timeout="kill", health=None
    )


def merged(body: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The body of a create from a pool whose spec is `spec` (both as JSON gives them): what it does not mention is the
    pool's; labels, env and limits one by one.
    """
    both = {**spec, **body}
    for name in ("labels", "resources"):
        if isinstance(body.get(name), dict):
            both[name] = {**spec.get(name, {}), **body[name]}
    process = body.get("process")
    if isinstance(process, dict):
        both["process"] = {**spec.get("process", {}), **process}
        if isinstance(process.get("env"), dict):
            both["process"]["env"] = {**spec.get("process", {}).get("env", {}), **process["env"]}
    return both


def check(name: str, have: SandboxSpec, wanted: SandboxSpec, *, late_env: bool = False) -> None:
    """Whether a member of the pool `name`, started as `have`, can become `wanted`. late_env: as of PoolSpec. Raises
    Invalid, Unenforceable naming the field that cannot be changed any more.
    """
    for key in SandboxSpec.__struct_fields__:
        if key in _LATER:
            continue
        a, b = getattr(have, key), getattr(wanted, key)
        if a is b or a == b:
            continue
        if key == "resources":
            if a.disk != b.disk:
                raise Unenforceable("resources.disk", _fixed(name), _REMEDY)
            continue
        if key == "process":
            _check_process(name, have, wanted, late_env)
            continue
        raise Invalid(key, _fixed(name), _REMEDY)


def _check_process(name: str, have: SandboxSpec, wanted: SandboxSpec, late_env: bool) -> None:
    empty = have.init and not have.process.argv and have.entrypoint == ()
    for key in type(have.process).__struct_fields__:
        free = (empty and key in _DEFAULTS_OF_EXEC) or (late_env and key == "env")
        if getattr(have.process, key) != getattr(wanted.process, key) and not free:
            raise Invalid(f"process.{key}", _fixed(name), _REMEDY)


def _fixed(name: str) -> str:
    return f"is not what pool {name!r} has started its sandboxes with, and cannot be changed on a warm one"


_REMEDY = "leave it out, or create without the pool, or change the pool"


def builtins(spec: SandboxSpec) -> dict[str, Any]:
    """A spec as `merged` takes it."""
    found: dict[str, Any] = codec.to_builtins(spec)
    return found
