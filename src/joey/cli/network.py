"""`joey network` and `joey port`."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import say, say_json, table
from joey.cli.values import labels
from joey.cli.verbs import choose, named
from joey.client.transport import quote

_VERBS = ("create", "ls", "inspect", "rm")


def network(values, arguments):
    """One of create, ls, inspect, rm."""
    verb, words = choose("network", _VERBS, arguments)
    if verb != "create" and values.keys() & {"internal", "label"}:
        raise UsageError("--internal and --label belong to create", "joey network create --help")
    if verb == "create" and words:
        return _create(values, words)
    return named("network", verb, words, lambda: _list(values))


def _create(values, words):
    if len(words) > 1:
        raise UsageError(f"{words[1]!r} is one argument too many", "joey network create NAME")
    body = {"name": words[0], "internal": bool(values.get("internal")), "labels": labels(values.get("label", ()), ())}
    with engine() as connection:
        made = connection.call("POST", "/v1/networks", body)
    say(made["name"])


def _list(values):
    with engine() as connection:
        found = connection.call("GET", "/v1/networks")
    if values.get("json"):
        say_json(found)
        return
    rows = [
        (one["name"], "yes" if one["internal"] else "no", str(len(one["members"])), one["owner"] or "-")
        for one in found
    ]
    say(table(("NAME", "INTERNAL", "SANDBOXES", "KEY"), rows))


def port(values, arguments):
    """Print the ports of a sandbox as `8080/tcp -> 0.0.0.0:32768`; of one port only where it is published."""
    ref, *wanted = arguments
    with engine() as connection:
        box = connection.call("GET", f"/v1/sandboxes/{quote(ref)}")["sandbox"]
    if not wanted:
        for one in box["ports"]:
            say(f"{one['container']}/{one['protocol']} -> {place(one)}")
        return 0
    number, _, protocol = wanted[0].partition("/")
    found = [one for one in box["ports"] if str(one["container"]) == number and one["protocol"] == (protocol or "tcp")]
    if not found:
        raise UsageError(f"port {wanted[0]} of {ref} is not published", f"joey port {ref}")
    for one in found:
        say(place(one))
    return 0


def place(one):
    """`0.0.0.0:8080` of a published port."""
    return f"{one['host_ip'] or '0.0.0.0'}:{one['host']}"


def summary(ports):
    """What `joey ps` shows of all."""
    return ", ".join(f"{place(one)}->{one['container']}/{one['protocol']}" for one in ports)


COMMANDS = {
    "network": {
        "usage": "[OPTIONS] create|ls|inspect|rm [NETWORK…]",
        "summary": "Private networks, shared by several sandboxes",
        "text": (
            "Sandboxes run with --network NAME reach each other by address, and by name, id and\n"
            "--network-alias; nobody else reaches them. Beside that they are like those with nat, unless\n"
            "the network is internal. A sandbox is in one network."
        ),
        "arguments": (1, None),
        "options": (
            ("--internal", "", "create: its sandboxes reach nothing but each other"),
            ("-l --label", "NAME[=VALUE]…", "create: label it"),
            ("--json", "", "ls: as JSON"),
        ),
        "refused": {
            **dict.fromkeys(
                ("-d", "--driver", "--subnet", "--gateway", "--ip-range", "--ipv6"), "addresses are chosen"
            ),
            "--attachable": "",
        },
        "run": network,
    },
    "port": {
        "usage": "SANDBOX [PORT[/PROTOCOL]]",
        "summary": "Show where ports of a sandbox are published",
        "arguments": (1, 2),
        "options": (),
        "run": port,
    },
}
