"""A policy as clauses in the order in which they are tried: pure, from values to values. joey.network.table turns
them into rules of nf_tables; `describe` prints them for people.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Literal, NamedTuple

from joey.model.network import EgressRule, Network, NetworkPolicy, protected

Target = Literal["any", "network", "outside", "protected", "names", "names and ports"]


class Clause(NamedTuple):
    """`verdict` on packets to `target`: a network; what of it lies `outside` all protected ranges; the protected
    ranges; or addresses our forwarder gave this sandbox. `protocol` "" is any. IPv6 clauses are left out: no IPv6
    leaves.
    """

    verdict: Literal["allow", "refuse"]
    target: Target = "any"
    network: ipaddress.IPv4Network | None = None
    protocol: str = ""
    ports: tuple[int, int] | None = None

    def describe(self) -> str:
        where = {
            "any": "anything",
            "network": str(self.network),
            "outside": f"{self.network} outside protected ranges",
            "protected": "protected ranges",
            "names": "addresses of allowed names",
            "names and ports": "addresses and ports of allowed names",
        }[self.target]
        what = f" {self.protocol}" if self.protocol else ""
        ports = "" if self.ports is None else f" port {'-'.join(str(port) for port in dict.fromkeys(self.ports))}"
        return f"{self.verdict} {where}{what}{ports}"


DNS_PORTS = (53, 853)


def compile_policy(policy: NetworkPolicy, local: Sequence[Network] = ()) -> tuple[Clause, ...]:
    """The clauses of a policy; the last one has no condition. `local`: networks protected besides PROTECTED. At most
    about 500 clauses for 256 rules.
    """
    clauses: list[Clause] = []
    if policy.by_domain:
        # A name server of one's own would make names mean nothing.
        clauses += [Clause("refuse", protocol=p, ports=(port, port)) for p in ("tcp", "udp") for port in DNS_PORTS]
    named = False
    for rule in policy.rules:
        if rule.domain:
            if not named:
                clauses += [Clause("allow", "names")]
                clauses += [Clause("allow", "names and ports", protocol=p) for p in ("tcp", "udp")]
                named = True
        else:
            clauses += _of_network(rule, local)
    clauses.append(Clause("refuse", "protected"))
    clauses.append(Clause("allow" if policy.internet else "refuse"))
    return tuple(clauses)


def _of_network(rule: EgressRule, local: Sequence[Network]) -> list[Clause]:
    network = rule.network
    if not isinstance(network, ipaddress.IPv4Network):
        return []
    verdict: Literal["allow", "refuse"] = "allow" if rule.action == "allow" else "refuse"
    # A wide allow does not open what needs to be named.
    target: Target = "outside" if verdict == "allow" and not protected(network, local) else "network"
    ports = rule.port_range
    protocols = [rule.protocol] if rule.protocol != "any" else ["tcp", "udp"] if ports else [""]
    return [Clause(verdict, target, network, protocol, ports) for protocol in protocols]


def describe(policy: NetworkPolicy) -> str:
    """A policy as text, a line a clause."""
    return "\n".join(clause.describe() for clause in compile_policy(policy))
