"""`joey pool`: sandboxes kept warm."""

from joey.cli import request
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json, table
from joey.cli.values import whole
from joey.cli.verbs import choose, named
from joey.client.transport import quote

_VERBS = ("create", "ls", "inspect", "rm")


def pool(values, arguments):
    """One of create, ls, inspect, rm."""
    verb, words = choose("pool", _VERBS, arguments)
    if verb == "create":
        return _create(values, words)
    return named("pool", verb, words, lambda: _list(values))


def _create(values, words):
    if not words:
        raise UsageError("the pool's name is missing", "joey pool create NAME IMAGE")
    name, *words = words
    for option in ("name", "detach", "interactive", "tty", "rm", "cidfile", "detach_keys", "sig_proxy"):
        if option in values:
            raise UsageError(f"--{option.replace('_', '-')} makes no sense for a pool", "give it when you create")
    spec = request.sandbox(values, words)
    if "argv" not in spec.get("process", {}):
        spec |= {"init": True, "entrypoint": []}
    body = {"spec": spec}
    for option in ("size", "max_starting"):
        if option in values:
            body[option] = whole(values[option], "--" + option.replace("_", "-"), 0)
    with engine() as connection:
        made = connection.call("PUT", f"/v1/pools/{quote(name)}?filled=true", body)
    if values.get("json"):
        say_json(made)
    else:
        say(name)
        if made["error"]:
            complain(f"{made['ready']} of {made['size']} are ready: {made['error']}", f"joey pool inspect {name}")
    return 1 if made["error"] else 0


def _list(values):
    with engine() as connection:
        found = connection.call("GET", "/v1/pools")
    if values.get("json"):
        say_json(found)
        return
    rows = [
        (one["name"], one["spec"]["image"] or one["spec"]["rootfs"], f"{one['ready']}/{one['size']}",
         one["handed_out"], one["missed"], one["owner"] or "-", one["error"] or "-")
        for one in found
    ]  # fmt: skip
    say(table(("NAME", "IMAGE", "READY", "HANDED OUT", "MISSED", "KEY", "ERROR"), rows))


COMMANDS = {
    "pool": {
        "usage": "[OPTIONS] create NAME IMAGE [COMMAND…] | ls | inspect NAME… | rm NAME…",
        "summary": "Sandboxes kept warm: create, ls, inspect, rm",
        "text": (
            "A pool keeps sandboxes started ahead, without a COMMAND with an init that waits for joey exec, and\n"
            "hands one out at once to whoever creates with its name (API and SDK: pool). create answers when\n"
            "it is full; again with another --size it keeps what it has, with other options it begins\n"
            "anew. rm removes it and what is still warm; what it has handed out stays."
        ),
        "arguments": (1, None),
        "options": (
            ("--size", "NUMBER", "create: so many are kept ready (8)"),
            ("--max-starting", "NUMBER", "create: so many are started at a time (2)"),
            ("--json", "", "As JSON"),
            "create: as of joey run",
            *request.OPTIONS,
        ),
        "refused": request.REFUSED,
        "run": pool,
    }
}
