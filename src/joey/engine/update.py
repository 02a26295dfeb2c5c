"""What an Update makes of a spec. Pure: who applies it is `joey.engine.box`."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from joey.engine import restart
from joey.engine.record import Policy
from joey.model import codec
from joey.model.errors import Invalid, Unenforceable
from joey.model.network import NetworkPolicy, NetworkSpec, as_spec
from joey.model.resources import HostLimits, Resources
from joey.model.spec import SandboxSpec, Update, check_labels


def changed(spec: SandboxSpec, change: Update, host: HostLimits | None = None) -> SandboxSpec:
    """`spec` with the change. Raises Invalid, Unenforceable naming the field."""
    given: dict[str, Any] = {
        name: getattr(change, name)
        for name in ("timeout", "idle_timeout", "on_timeout", "restart")
        if getattr(change, name) is not UNSET
    }
    if change.resources:
        given["resources"] = _resources(spec.resources, change.resources, host)
    if change.labels:
        labels = spec.labels | change.labels
        given["labels"] = kept = {name: value for name, value in labels.items() if value is not None}
        check_labels(kept)
    if change.network:
        given["network"] = _network(spec, change.network)
    after = replace(spec, **given)
    restart.check(after)
    return after


def _network(spec: SandboxSpec, change: dict[str, Any]) -> NetworkSpec:
    old = as_spec(spec.network)
    if not old.routed:
        raise Invalid("network", f"cannot be changed: its network is {old.mode}", "make it with nat")
    try:
        policy = codec.convert(NetworkPolicy, codec.to_builtins(old.policy) | change)
    except Invalid as error:
        raise Invalid(f"network.{error.where}", error.message, error.remedy) from error
    return replace(old, policy=policy)


def _resources(old: Resources, change: dict[str, Any], host: HostLimits | None) -> Resources:
    if change.get("memory", 0) is None:  # swap counts beyond it: without the one there is not the other
        change = {"swap": None} | change
    try:
        new = codec.convert(Resources, codec.to_builtins(old) | change)
    except Invalid as error:
        raise Invalid(f"resources.{error.where}", error.message, error.remedy) from error
    try:
        new.validate(host)
    except ValueError as error:
        field, _, message = str(error).partition(": ")
        raise Invalid(f"resources.{field}", message) from None
    if new.disk != old.disk:
        raise Unenforceable("resources.disk", "its size is fixed when it is made", "make another sandbox")
    return new


def policy(spec: SandboxSpec, stop_signal: int) -> Policy:
    """What the lifecycle follows."""
    return Policy(
        remove=spec.remove, stop_signal=stop_signal, restart=spec.restart, timeout=spec.timeout,
        idle=spec.idle_timeout, on_timeout=spec.on_timeout,
    )  # fmt: skip
