"""Options of `joey run` and `joey update` about the network, and what they say in a NetworkSpec.

What parses ports and rules is the model's and takes a while to import, so that is done when there is one.
"""

from joey.cli.options import UsageError
from joey.cli.values import size, whole

OPTIONS = (
    "Network",
    ("--network --net", "MODE", "none (the default), nat, host, a network of joey network, or container:SANDBOX"),
    ("-p --publish", "[IP:][HOST:]PORT[/udp]…", "Publish a port or a range of ports; without HOST on a free one"),
    ("-P --publish-all", "", "Publish each port the image exposes on a free one of the host"),
    ("--network-alias --net-alias", "NAME…", "Another name in its private network"),
    ("--dns", "ADDRESS…", "Name servers to ask for it, instead of the host's"),
    ("--dns-search", "DOMAIN…", "Domains to try for short names"),
    ("--dns-option --dns-opt", "OPTION…", "An option of resolv.conf(5)"),
    ("--add-host", "NAME:ADDRESS…", "A line of /etc/hosts"),
)
POLICY = (
    ("--allow", "TARGET[:PORT][/PROTOCOL]…",
     "It may reach a CIDR, an address or a domain such as *.example.com; of --allow and --deny, the first that matches "
     "decides. A domain also closes the internet beside it", "rules"),
    ("--deny", "TARGET[:PORT][/PROTOCOL]…", "It may not reach a CIDR or an address, or a domain that --allow opens",
     "rules"),
    ("--internet", "yes|no", "Whether it reaches public addresses that no rule names (yes)"),
    ("--bandwidth-in", "RATE", "Bytes a second it receives at most, such as 10m; 0 for no limit"),
    ("--bandwidth-out", "RATE", "Bytes a second it sends at most"),
    ("--connections", "NUMBER", "Connections of its own open at once; 0 for no limit"),
)  # fmt: skip
_LISTS = (
    ("network_alias", "aliases"), ("net_alias", "aliases"), ("dns", "dns"), ("dns_search", "dns_search"),
    ("dns_opt", "dns_options"),
)  # fmt: skip
_NEEDS_LINK = ("publish", "publish_all", "net_alias", "dns", "dns_search", "dns_opt")


def network(values):
    """A mode, or a dict of NetworkSpec; None if nothing was said. What needs a link of its own means nat, where no
    network was said. Raises UsageError.
    """
    mode = values.get("net")
    if mode in ("bridge", "default"):
        mode = "nat"
    change = policy(values)
    if mode is None and (change or any(values.get(name) for name in _NEEDS_LINK)):
        mode = "nat"
    found = {}
    if change:
        found["policy"] = change
    for option, field in _LISTS:
        if option in values:
            found[field] = values[option]
    if "publish" in values:
        found["ports"] = [port for text in values["publish"] for port in _ports(text)]
    if values.get("publish_all"):
        found["publish_all"] = True
    if "add_host" in values:
        found["extra_hosts"] = dict(_host(text) for text in values["add_host"])
    if not found:
        return mode
    return {"mode": mode or "none", **found}


def policy(values):
    """What was said of a NetworkPolicy, {} for nothing. Raises UsageError."""
    found = {}
    if "rules" in values:
        found["rules"] = [_rule(name, text) for name, text in values["rules"]]
        if any(rule["action"] == "allow" and "domain" in rule for rule in found["rules"]):
            found["internet"] = False
    if "internet" in values:
        if values["internet"] not in ("yes", "no"):
            raise UsageError(f"--internet: {values['internet']!r} is neither yes nor no")
        found["internet"] = values["internet"] == "yes"
    for name in ("bandwidth_in", "bandwidth_out"):
        if name in values:
            found[name] = size(values[name], "--" + name.replace("_", "-")) or None
    if "connections" in values:
        found["connections"] = whole(values["connections"], "--connections", 0) or None
    return found


def _ports(text):
    from joey.model.ports import parse_published

    fields = ("container", "host", "host_last", "host_ip", "protocol")
    found = _checked("-p", parse_published, "", text)
    return [{name: value for name in fields if (value := getattr(port, name))} for port in found]


def _rule(option, text):
    from joey.model.network import parse_rule

    rule = _checked(option, parse_rule, "", option.lstrip("-"), text)
    fields = ("action", "cidr", "domain", "ports")
    found = {name: value for name in fields if (value := getattr(rule, name))}
    return found | ({"protocol": rule.protocol} if rule.protocol != "any" else {})


def _checked(option, parse, *args):
    from joey.model.errors import Invalid

    try:
        return parse(*args)
    except Invalid as error:
        raise UsageError(f"{option}: {error.message}", error.remedy) from None


def _host(text):
    name, colon, address = text.partition(":")
    if not colon:
        name, colon, address = text.partition("=")
    if not name or not address:
        raise UsageError(f"--add-host {text}: give NAME:ADDRESS")
    return name, address.strip("[]")
