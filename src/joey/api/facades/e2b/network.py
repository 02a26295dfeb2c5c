"""E2B's network options as a policy of ours. What is allowed goes before what is denied, whatever the order."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any

import msgspec

from joey.api.facades.e2b.errors import lacking
from joey.model import codec
from joey.model.network import EgressRule, NetworkPolicy, NetworkSpec, mode_of

ALL = "0.0.0.0/0"


class Config(msgspec.Struct, kw_only=True):
    """allowOut, denyOut: CIDRs, addresses and (allowed) domains. What is given beside them and says something is
    refused.
    """

    allowOut: list[str] | None = None
    denyOut: list[str] | None = None
    allow_internet_access: bool | None = None
    allowInternetAccess: bool | None = None
    allowPublicTraffic: bool | None = None
    maskRequestHost: str | None = None
    rules: Any = None
    egressProxy: Any = None


def of(config: Config | None, internet: bool | None) -> NetworkSpec:
    """Of a new sandbox: a link of its own, with E2B's default, the internet."""
    return NetworkSpec(mode="nat", policy=policy(config or Config(), internet))


def traffic_token(config: Config | None) -> str | None:
    """What requests to a new sandbox's ports must carry; None: everybody who knows the sandbox is let in."""
    return secrets.token_hex(16) if config is not None and config.allowPublicTraffic is False else None


def policy(config: Config, internet: bool | None) -> NetworkPolicy:
    """Raises Failure, Invalid."""
    for name in ("maskRequestHost", "rules", "egressProxy"):
        if getattr(config, name):
            raise lacking(f"network.{name}")
    for given in (config.allow_internet_access, config.allowInternetAccess):
        internet = given if internet is None else internet
    allowed, denied = list(config.allowOut or ()), list(config.denyOut or ())
    everything = ALL in allowed
    reachable = internet is not False and (everything or ALL not in denied)
    rules = [_rule("allow", text) for text in allowed if text != ALL]
    rules.sort(key=lambda rule: not rule.domain)  # domain rules stand together
    if not everything:
        rules += [_rule("deny", text) for text in denied if text != ALL]
    return NetworkPolicy(internet=reachable, rules=tuple(rules))


def _rule(action: Any, text: str) -> EgressRule:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return EgressRule(action=action, domain=text.lower())
    return EgressRule(action=action, cidr=text)


def change(config: Config, now: str | NetworkSpec) -> dict[str, Any]:
    """Of a running one. Raises Failure where there is no policy to change."""
    if mode_of(now) in ("none", "host"):
        raise lacking(f"a policy for a sandbox with network {mode_of(now)}")
    if config.allowPublicTraffic is not None:
        raise lacking("changing allowPublicTraffic of a running sandbox")
    wanted = policy(config, None)
    return {"internet": wanted.internet, "rules": codec.to_builtins(wanted.rules)}
