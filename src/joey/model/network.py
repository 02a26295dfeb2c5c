"""What a sandbox's network is: mode, egress policy, names. Values and their checks; nothing here touches a host.

How a policy decides about a packet that a sandbox sends (joey.network.policy compiles it,
docs/decisions/0006-network.md says how it is enforced):

1. The host itself and other sandboxes are never reachable, whatever the rules say (members of one private network
   reach each other; the host answers DNS on the sandbox's name server address only).
2. The first rule that matches decides. An allow rule with a CIDR opens a protected range (PROTECTED: private,
   link-local with cloud metadata, multicast, reserved; and the networks the host is directly in) only if it lies
   within one: `10.1.0.0/16` does, `0.0.0.0/0` does not. A domain rule matches the addresses that our DNS forwarder
   gave this sandbox for a matching name.
3. What no rule matches: protected ranges are refused, the rest as `internet` says.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal

from msgspec import field

from joey.model.errors import Invalid
from joey.model.ports import PublishedPort, parse_port_range
from joey.model.value import Value

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTECTED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "::1/128", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2002::/16", "fc00::/7",
        "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
"""Never reached without a rule that names them: IANA's special-purpose registries (RFC 6890), multicast, and the ranges
that translate into IPv4 (RFC 6052, RFC 3056), which would be a way around the IPv4 ones. 169.254.169.254 and
fd00:ec2::254, the clouds' metadata services, lie in them."""

MAX_RULES = 256
MAX_DOMAIN_PORTS = 16
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_CONTAINER = re.compile(r"container:([a-zA-Z0-9][a-zA-Z0-9_.-]*)", re.ASCII)


def protected(network: Network, more: Sequence[Network] = ()) -> bool:
    """Whether all of `network` lies within one protected range, PROTECTED or of `more`."""
    within = (one for one in (*PROTECTED, *more) if one.version == network.version)
    return any(network.subnet_of(one) for one in within)  # type: ignore[arg-type]


def public(address: str) -> bool:
    """Whether an address (text) lies outside all protected ranges."""
    return not protected(ipaddress.ip_network(address))


def parse_cidr(where: str, text: str) -> Network:
    """An IPv4 or IPv6 network; a lone address is a network of one. Raises Invalid naming `where`."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(where, f"{text!r} is no address and no CIDR", "such as 10.1.0.0/16 or 2001:db8::/32") from None
    raise Invalid(where, f"{text!r} has host bits set", f"{meant} is the network it lies in")


def check_address(where: str, text: str) -> None:
    """Raises Invalid naming `where` unless `text` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(where, f"{text!r} is no IP address") from None


def check_domain(where: str, text: str, *, wildcard: bool = False) -> None:
    """Raises Invalid unless `text` is a lower-case host name (RFC 1123; underscores as found in practice), ASCII
    (IDNs as xn--…). With `wildcard` it may begin with `*.`: any name below, not the name itself. `*` alone is any
    name.
    """
    if wildcard and text == "*":
        return
    name = text[2:] if wildcard and text.startswith("*.") else text
    remedy = "such as example.com or *.example.com" if wildcard else "such as db or db.example.com"
    if "*" in name:
        raise Invalid(where, f"{text!r} has a wildcard that is not its first label", remedy)
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise Invalid(where, f"{text!r} is no domain name (lower case, ASCII)", remedy)
    if name.replace(".", "").isdigit():
        raise Invalid(where, f"{text!r} is an address, not a domain name", "use cidr")


def domain_matches(pattern: str, name: str) -> bool:
    """Whether a lower-case name without a final dot falls under a pattern of a rule."""
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


class EgressRule(Value, frozen=True, kw_only=True):
    """One rule: exactly one of `cidr` and `domain`; `ports` is "", "443" or "8000-8100" and needs tcp or udp ("any"
    with ports is both). A domain rule holds for at most 16 ports.
    """

    action: Literal["allow", "deny"]
    cidr: str = ""
    domain: str = ""
    protocol: Literal["any", "tcp", "udp", "icmp"] = "any"
    ports: str = ""

    def __post_init__(self) -> None:
        if bool(self.cidr) == bool(self.domain):
            raise Invalid("cidr", "exactly one of cidr and domain is needed")
        if self.cidr:
            parse_cidr("cidr", self.cidr)
        else:
            check_domain("domain", self.domain, wildcard=True)
        if self.ports:
            if self.protocol == "icmp":
                raise Invalid("ports", "ICMP has no ports")
            first, last = parse_port_range("ports", self.ports)
            if self.domain and last - first >= MAX_DOMAIN_PORTS:
                raise Invalid("ports", f"a domain rule takes at most {MAX_DOMAIN_PORTS} ports")
        if self.domain and self.action == "deny" and (self.ports or self.protocol != "any"):
            raise Invalid("ports" if self.ports else "protocol", "a domain is denied as a whole: its name is refused")
        if self.domain and self.protocol == "icmp":
            raise Invalid("protocol", "a domain rule is for tcp, udp or any")
        if self.domain and self.protocol != "any" and not self.ports:
            raise Invalid("ports", "a domain rule with a protocol needs ports")

    @property
    def network(self) -> Network | None:
        return ipaddress.ip_network(self.cidr) if self.cidr else None

    @property
    def port_range(self) -> tuple[int, int] | None:
        """First and last port; None is any."""
        return parse_port_range("ports", self.ports) if self.ports else None


class NetworkPolicy(Value, frozen=True, kw_only=True):
    """What a sandbox may reach (see the top of this file), and how much of it.

    internet          what becomes of public addresses that no rule matches
    rules             at most 256; the first that matches decides
    bandwidth_in      bytes a second into the sandbox, bandwidth_out out of it; None: no limit
    connections       connections of its own open at once; None: no limit
    """

    internet: bool = True
    rules: tuple[EgressRule, ...] = ()
    bandwidth_in: int | None = None
    bandwidth_out: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        if len(self.rules) > MAX_RULES:
            raise Invalid("rules", f"{len(self.rules)} rules, at most {MAX_RULES} are taken")
        for name in ("bandwidth_in", "bandwidth_out"):
            value = getattr(self, name)
            if value is not None and not 1024 <= value <= 1 << 40:
                raise Invalid(name, f"{value} bytes a second is out of range", "1024 to 2^40")
        if self.connections is not None and not 1 <= self.connections <= 1 << 20:
            raise Invalid("connections", f"{self.connections} is out of range", "1 to 1048576")
        for index, rule in enumerate(self.rules):
            if rule.domain and rule.action == "deny" and self.internet:
                raise Invalid(
                    f"rules[{index}].domain",
                    "cannot be enforced while the internet is allowed: the address is reachable without its name",
                    "set internet to false and allow what is wanted, or deny by cidr",
                )
        places = [index for index, rule in enumerate(self.rules) if rule.domain]
        if places and places[-1] - places[0] >= len(places):
            between = next(index for index in range(places[0], places[-1]) if index not in places)
            raise Invalid(f"rules[{between}]", "stands between domain rules", "domain rules must stand together")

    @classmethod
    def deny_all(cls) -> NetworkPolicy:
        """Nothing is reachable."""
        return cls(internet=False)

    @property
    def by_domain(self) -> bool:
        """Whether names decide: then DNS goes through our forwarder only."""
        return any(rule.domain for rule in self.rules)

    def name_allowed(self, name: str) -> bool:
        """Whether our forwarder may resolve a lower-case name without a final dot.

        Without domain rules every name resolves, because addresses decide; but not where nothing is reachable at all:
        DNS would be a way out of its own.
        """
        for rule in self.rules:
            if rule.domain and domain_matches(rule.domain, name):
                return rule.action == "allow"
        return self.internet or (not self.by_domain and any(rule.action == "allow" for rule in self.rules))

    def domain_rules(self, name: str) -> tuple[EgressRule, ...]:
        """The allow rules for a name, in order, up to the first that denies it."""
        found = []
        for rule in self.rules:
            if rule.domain and domain_matches(rule.domain, name):
                if rule.action == "deny":
                    break
                found.append(rule)
        return tuple(found)


class NetworkSpec(Value, frozen=True, kw_only=True):
    """The network of one sandbox. `mode`: none (loopback only), nat, host, container:ID (that sandbox's network), or
    the name of a private network.

    ports         what is published; publish_all: also each port that the image exposes, on a free port of the host
    aliases       more names of the sandbox in its private network
    dns           name servers instead of our forwarder's upstreams (it still stands between); search: domains tried
                  for short names; options: as in resolv.conf(5)
    extra_hosts   {name: address}, lines of /etc/hosts; "host-gateway" as an address is refused: the host is never
                  reachable
    """

    mode: str = "none"
    policy: NetworkPolicy = NetworkPolicy()
    ports: tuple[PublishedPort, ...] = ()
    publish_all: bool = False
    aliases: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_mode("mode", self.mode)
        isolated = self.mode in ("none", "host") or self.joins
        for name in ("ports", "publish_all", "aliases", "dns", "dns_search", "dns_options"):
            if isolated and getattr(self, name):
                raise Invalid(name, f"means nothing with network {self.mode}", "use nat or a private network")
        if isolated and self.policy != NetworkPolicy():
            raise Invalid("policy", f"cannot be enforced with network {self.mode}", "use nat or a private network")
        if self.aliases and self.mode == "nat":
            raise Invalid("aliases", "only a private network has names of its own")
        for index, alias in enumerate(self.aliases):
            check_domain(f"aliases[{index}]", alias)
        for index, address in enumerate(self.dns):
            check_address(f"dns[{index}]", address)
        for index, name in enumerate(self.dns_search):
            check_domain(f"dns_search[{index}]", name)
        for index, option in enumerate(self.dns_options):
            if not re.fullmatch(r"[a-z0-9-]+(:[0-9]+)?", option, re.ASCII):
                raise Invalid(f"dns_options[{index}]", f"{option!r} is no option of resolv.conf(5)")
        for name, address in self.extra_hosts.items():
            check_domain("extra_hosts", name.lower())
            check_address(f"extra_hosts[{name}]", address)

    @property
    def joins(self) -> str:
        """The sandbox whose network this one enters, "" if none."""
        match = _CONTAINER.fullmatch(self.mode)
        return match[1] if match else ""

    @property
    def private(self) -> str:
        """The private network's name, "" if none."""
        return "" if self.joins or self.mode in ("none", "nat", "host") else self.mode

    @property
    def routed(self) -> bool:
        """Whether it gets a link and an address."""
        return self.mode == "nat" or bool(self.private)


def as_spec(network: str | NetworkSpec) -> NetworkSpec:
    """What `SandboxSpec.network` means: a bare mode or all of it."""
    return NetworkSpec(mode=network) if isinstance(network, str) else network


def mode_of(network: str | NetworkSpec) -> str:
    """The mode alone; cheaper."""
    return network if isinstance(network, str) else network.mode


class PrivateNetwork(Value, frozen=True, kw_only=True):
    """A private network shared by several sandboxes (`joey network create`). `internal`: nothing beyond its members."""

    name: str
    internal: bool = False
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_network_name("name", self.name)


def check_mode(where: str, mode: str) -> None:
    """Raises Invalid unless `mode` is none, nat, host, container:ID or may name a private network."""
    if mode in ("none", "nat", "host") or _CONTAINER.fullmatch(mode):
        return
    if mode.startswith("container:"):
        raise Invalid(where, f"{mode!r} names no sandbox", "container:ID or container:NAME")
    if not _NAME.fullmatch(mode):
        raise Invalid(where, f"{mode!r} is no network", "none, nat, host, container:ID or the name of a network")


def check_network_name(where: str, name: str) -> None:
    """Raises Invalid unless a private network may be called so."""
    if name in ("none", "nat", "host", "bridge", "default") or not _NAME.fullmatch(name):
        raise Invalid(where, f"{name!r} cannot name a network", "letters, digits, _ . -; none, nat, host … are taken")


def parse_rule(where: str, action: Literal["allow", "deny"], text: str) -> EgressRule:
    """A rule as the command line takes it: TARGET[:PORTS][/PROTOCOL], TARGET a CIDR, an address ([…] around IPv6 with
    ports) or a domain. An ambiguity does not arise: "/" before digits belongs to a CIDR, protocols are words.
    """
    target, protocol = text, "any"
    head, slash, tail = text.rpartition("/")
    if slash and tail in ("tcp", "udp", "icmp"):
        target, protocol = head, tail
    ports = ""
    if match := re.fullmatch(r"\[([^\]]*)\](?::([0-9-]+))?", target):
        target, ports = match[1], match[2] or ""
    elif target.count(":") == 1:
        target, _, ports = target.partition(":")
        if not ports:
            raise Invalid(where, f"{text!r} names no port after the colon")
    is_network = ":" in target or re.fullmatch(r"[0-9./]+", target)
    named = {"cidr": target} if is_network else {"domain": target.lower()}
    try:
        return EgressRule(action=action, protocol=protocol, ports=ports, **named)  # type: ignore[arg-type]
    except Invalid as error:
        raise Invalid(where, f"{text!r}: {error.message}", error.remedy) from None
