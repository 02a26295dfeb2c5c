"""The network arguments of the SDK as bodies of the HTTP API (joey.model.network). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from joey.client.errors import Invalid
from joey.model import errors as model_errors
from joey.model.network import EgressRule, parse_rule
from joey.model.ports import PublishedPort, parse_published
from joey.model.units import parse_size

Network = str | Mapping[str, Any]
"""A mode: none, nat, host, container:ID or a private network's name. Or a mapping of: mode (nat by default), what
NetworkSpec has (aliases, dns, dns_search, extra_hosts …), and what a policy has (allow, deny, internet, rules,
bandwidth_in, bandwidth_out, connections), as `update_network` takes it."""
Ports = Sequence[int | str]
"""Ports to publish, as of `joey run -p`: 8080 (on a free port of the host), "8080:80", "127.0.0.1::80/udp"."""

_POLICY = ("allow", "deny", "internet", "rules", "bandwidth_in", "bandwidth_out", "connections")


def network(given: Network | None, ports: Ports | None) -> str | dict[str, Any] | None:
    """The field `network` of SandboxSpec; None says nothing. Raises Invalid naming the argument."""
    if ports is None and (given is None or isinstance(given, str)):
        return given
    found: dict[str, Any] = {"mode": given} if isinstance(given, str) else dict(given or {})
    changes = {name: found.pop(name) for name in _POLICY if name in found}
    if changes:
        found["policy"] = {**found.get("policy", {}), **policy(**changes)}
    if ports is not None:
        found["ports"] = [_fields(port) for text in ports for port in _published(str(text))]
    return {"mode": "nat", **found}


def policy(
    *,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    rules: Sequence[Mapping[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Fields of NetworkPolicy. Raises Invalid naming the argument."""
    found = {name: value for name, value in more.items() if name not in ("bandwidth_in", "bandwidth_out")}
    for name in ("bandwidth_in", "bandwidth_out"):
        if name in more:
            found[name] = _rate(more[name], name)
    if allow is not None or deny is not None:
        if rules is not None:
            raise Invalid("rules", "says the same as allow and deny", "give one of them")
        allowed = [_rule("allow", text) for text in allow or ()]
        found["rules"] = [_fields(rule) for rule in (*allowed, *(_rule("deny", text) for text in deny or ()))]
        if any(rule.domain for rule in allowed):
            found.setdefault("internet", False)
    elif rules is not None:
        found["rules"] = [dict(rule) for rule in rules]
    return found


def _published(text: str) -> Sequence[PublishedPort]:
    try:
        return parse_published("ports", text)
    except model_errors.Invalid as error:
        raise Invalid("ports", error.message, error.remedy) from None


def _rule(action: Literal["allow", "deny"], text: str) -> EgressRule:
    try:
        return parse_rule(action, action, text)
    except model_errors.Invalid as error:
        raise Invalid(action, error.message, error.remedy) from None


def _fields(value: PublishedPort | EgressRule) -> dict[str, Any]:
    return {name: found for name in value.__struct_fields__ if (found := getattr(value, name))}


def _rate(value: int | str | None, name: str) -> int | None:
    if value is None or isinstance(value, int):
        return value
    try:
        return parse_size(value, name)
    except ValueError as error:
        raise Invalid(name, str(error).removeprefix(f"{name}: ")) from None
