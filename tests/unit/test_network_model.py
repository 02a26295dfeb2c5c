"""The network as values: policies, names, published ports, and what each refuses, by field."""

import ipaddress

import hypothesis
import hypothesis.strategies as st
import pytest

from joey.model.codec import convert
from joey.model.errors import Invalid
from joey.model.network import (
    EgressRule,
    NetworkPolicy,
    NetworkSpec,
    PrivateNetwork,
    domain_matches,
    parse_rule,
    public,
)
from joey.model.ports import PublishedPort, parse_published
from joey.network.policy import Clause, compile_policy, describe


def allow(text: str) -> EgressRule:
    return parse_rule("allow", "allow", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.0.0/16", {"cidr": "10.1.0.0/16"}),
        ("10.1.2.3:443/tcp", {"cidr": "10.1.2.3", "ports": "443", "protocol": "tcp"}),
        ("[2001:db8::]:80", {"cidr": "2001:db8::", "ports": "80"}),
        ("2001:db8::/32", {"cidr": "2001:db8::/32"}),
        ("*.Example.com:8000-8010", {"domain": "*.example.com", "ports": "8000-8010"}),
        ("0.0.0.0/0/icmp", {"cidr": "0.0.0.0/0", "protocol": "icmp"}),
        ("*", {"domain": "*"}),
    ],
)
def test_rules_of_the_command_line(text, expected):
    assert allow(text) == EgressRule(action="allow", **expected)


@pytest.mark.parametrize(
    "text",
    [
        "10.1.0.1/16", "10.0.0.0/33", "300.1.1.1", "example..com", "-x.com", "a.*.com", "*x.com", "exa mple.com", "",
        "x.com:0", "x.com:65536", "x.com:20-10", "x.com:1-17", "x.com:", "x.com/icmp", "x.com/tcp", "1.2.3.4:80/icmp",
        "1.2.3.4:http", "ex\u00e4mple.com", "x.com:٣", "1.2.3.4/tcp/udp",
    ],
)  # fmt: skip
def test_bad_rules_name_the_option(text):
    with pytest.raises(Invalid) as caught:
        allow(text)
    assert caught.value.where == "allow"


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"mode": "a b"}, "mode"),
        ({"mode": "container:"}, "mode"),
        ({"mode": "none", "ports": [{"container": 80}]}, "ports"),
        ({"mode": "host", "policy": {"internet": False}}, "policy"),
        ({"mode": "nat", "ports": [{"container": 0}]}, "ports[0].container"),
        ({"mode": "nat", "ports": [{"container": 1, "host_ip": "::1"}]}, "ports[0].host_ip"),
        ({"mode": "nat", "policy": {"rules": [{"action": "allow"}]}}, "policy.rules[0].cidr"),
        ({"mode": "nat", "policy": {"rules": [{"action": "allow", "cidr": "1.2.3.4/8"}]}}, "policy.rules[0].cidr"),
        ({"mode": "nat", "policy": {"rules": [{"action": "deny", "domain": "x.com"}]}}, "policy.rules[0].domain"),
        ({"mode": "nat", "policy": {"bandwidth_in": 1}}, "policy.bandwidth_in"),
        ({"mode": "nat", "policy": {"connections": 0}}, "policy.connections"),
        ({"mode": "nat", "policy": {"colour": 1}}, "policy.colour"),
        ({"mode": "nat", "dns": ["x"]}, "dns[0]"),
        ({"mode": "nat", "dns_options": ["ndots:x\nnameserver"]}, "dns_options[0]"),
        ({"mode": "nat", "extra_hosts": {"db": "host-gateway"}}, "extra_hosts[db]"),
        ({"mode": "nat", "extra_hosts": {"d b": "1.2.3.4"}}, "extra_hosts"),
        ({"mode": "nat", "aliases": ["db"]}, "aliases"),
        ({"mode": "backend", "aliases": ["D B"]}, "aliases[0]"),
    ],
)
def test_bad_specs_name_the_field(data, where):
    with pytest.raises(Invalid) as caught:
        convert(NetworkSpec, data)
    assert caught.value.where == where


def test_domain_rules_stand_together():
    rules = (allow("a.com"), allow("10.0.0.0/8"), allow("b.com"))
    with pytest.raises(Invalid) as caught:
        NetworkPolicy(internet=False, rules=rules)
    assert caught.value.where == "rules[1]"


def test_modes():
    assert NetworkSpec(mode="container:web").joins == "web"
    assert NetworkSpec(mode="backend").private == "backend"
    assert [NetworkSpec(mode=mode).routed for mode in ("none", "nat", "host", "x", "container:x")] == [
        False, True, False, True, False,
    ]  # fmt: skip
    with pytest.raises(Invalid, match="cannot name a network"):
        PrivateNetwork(name="host")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "x.org", True),
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
    ],
)
def test_wildcards(pattern, name, expected):
    assert domain_matches(pattern, name) is expected


def test_names_follow_the_first_rule():
    policy = NetworkPolicy(
        internet=False,
        rules=(EgressRule(action="deny", domain="bad.example.com"), allow("*.example.com"), allow("10.0.0.0/8")),
    )
    assert policy.name_allowed("www.example.com")
    assert not policy.name_allowed("bad.example.com")
    assert not policy.name_allowed("example.org")
    assert policy.domain_rules("bad.example.com") == ()
    assert NetworkPolicy().name_allowed("anything")
    assert not NetworkPolicy.deny_all().name_allowed("anything")
    assert NetworkPolicy(internet=False, rules=(allow("10.0.0.0/8"),)).name_allowed("x.org")


def verdict(policy: NetworkPolicy, address: str, protocol: str = "tcp", port: int = 80, names=(), local=()) -> str:
    """What a policy says of a packet, by its clauses alone."""
    one = ipaddress.IPv4Address(address)
    for clause in compile_policy(policy, local):
        if clause.network is not None and one not in clause.network:
            continue
        shut = not public(address) or any(one in network for network in local)
        if (clause.target == "outside" and shut) or (clause.target == "protected" and not shut):
            continue
        if clause.target.startswith("names") and address not in names:
            continue
        if (clause.protocol and clause.protocol != protocol) or (
            clause.ports and not clause.ports[0] <= port <= clause.ports[1]
        ):
            continue
        return clause.verdict
    raise AssertionError("no clause decides")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.9", "127.0.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "198.18.0.1"],
)  # fmt: skip
def test_protected_ranges_need_to_be_named(address):
    assert verdict(NetworkPolicy(), address) == "refuse"
    assert verdict(NetworkPolicy(rules=(allow("0.0.0.0/0"),)), address) == "refuse"
    assert verdict(NetworkPolicy(rules=(allow(address),)), address) == "allow"


def test_networks_of_the_host_are_protected_too():
    local = (ipaddress.ip_network("203.0.113.0/24"),)
    assert verdict(NetworkPolicy(), "203.0.113.9", local=local) == "refuse"
    assert verdict(NetworkPolicy(rules=(allow("203.0.0.0/16"),)), "203.0.113.9", local=local) == "refuse"
    assert verdict(NetworkPolicy(rules=(allow("203.0.113.9"),)), "203.0.113.9", local=local) == "allow"


def test_first_rule_decides():
    deny = EgressRule(action="deny", cidr="8.8.8.0/24")
    assert verdict(NetworkPolicy(rules=(deny, allow("8.8.8.8"))), "8.8.8.8") == "refuse"
    assert verdict(NetworkPolicy(rules=(allow("8.8.8.8:53"), deny)), "8.8.8.8", "udp", 53) == "allow"
    assert verdict(NetworkPolicy(rules=(allow("8.8.8.8:53"), deny)), "8.8.8.8", "udp", 54) == "refuse"


def test_with_names_no_other_resolver():
    policy = NetworkPolicy(internet=False, rules=(allow("8.8.8.8"), allow("example.com")))
    assert verdict(policy, "8.8.8.8", "udp", 53) == "refuse"
    assert verdict(policy, "8.8.8.8", "tcp", 853) == "refuse"
    assert verdict(policy, "8.8.8.8", "tcp", 443) == "allow"
    assert verdict(policy, "1.1.1.1", names=("1.1.1.1",)) == "allow"
    assert verdict(policy, "1.1.1.1") == "refuse"


def test_a_policy_reads_as_text():
    policy = NetworkPolicy(internet=False, rules=(allow("10.1.0.0/16:443/tcp"),))
    assert describe(policy) == "allow 10.1.0.0/16 tcp port 443\nrefuse protected ranges\nrefuse anything"
    assert compile_policy(policy)[-1] == Clause("refuse")


def published(*args, **kwargs):
    return PublishedPort(container=args[0], host=args[1] if len(args) > 1 else 0, **kwargs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [published(80)]),
        ("8080:80", [published(80, 8080)]),
        ("127.0.0.1:8080:80/udp", [published(80, 8080, host_ip="127.0.0.1", protocol="udp")]),
        ("127.0.0.1::80", [published(80, host_ip="127.0.0.1")]),
        ("8000-8001:80-81", [published(80, 8000), published(81, 8001)]),
        ("8000-8010:80", [published(80, 8000, host_last=8010)]),
        ("80-81", [published(80), published(81)]),
        ("0.0.0.0:1:1", [published(1, 1, host_ip="0.0.0.0")]),
    ],
)
def test_published_ports(text, expected):
    assert list(parse_published("publish", text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "80/sctp", "1:2:3:4", "70000:80", "8000-8002:80-81", "80:0", "9-8:1-2", "localhost:80:80",
     "[::1]:80:80", "-1:80", "80:", "1.2.3.4:80", "80-", "8 0"],
)  # fmt: skip
def test_bad_published_ports_name_the_option(text):
    with pytest.raises(Invalid) as caught:
        parse_published("publish", text)
    assert caught.value.where == "publish"


@hypothesis.given(st.text(alphabet="0123456789.:/-*[]abtcpud", max_size=24))
def test_texts_end_in_a_value_or_an_error_of_ours(text):
    for parse in (allow, lambda one: parse_published("p", one)):
        try:
            parse(text)
        except Invalid as error:
            assert error.where in ("allow", "p")
