"""`joey keys`: API keys for clients that come by TCP."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json, table
from joey.cli.values import size, whole
from joey.cli.verbs import choose
from joey.client.transport import quote

_VERBS = ("create", "ls", "revoke")


def keys(values, arguments):
    """One of create, ls, revoke."""
    verb, words = choose("keys", _VERBS, arguments)
    if verb != "create" and (values.keys() & {"name", "admin", "limit", "e2b"}):
        raise UsageError("--name, --admin, --limit and --e2b belong to create", "joey keys create --help")
    if verb == "revoke":
        return _revoke(words)
    if words:
        raise UsageError(f"{words[0]!r} is one argument too many", f"joey keys {verb}")
    return {"create": _create, "ls": _list}[verb](values)


def _create(values):
    body = {"name": values.get("name", ""), "admin": bool(values.get("admin")), "limits": limits(values)}
    if values.get("e2b"):
        body["form"] = "e2b"
    with engine() as connection:
        made = connection.call("POST", "/v1/keys", body)
    if values.get("json"):
        say_json(made)
    else:
        say(made["key"])
        complain(f"key {made['id']}: this is the only time it is shown")


def limits(values):
    """`sandboxes=10,memory=4g,starts=2` as the API wants it. Raises UsageError."""
    found = {}
    for text in values.get("limit", ()):
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if name not in ("sandboxes", "memory", "starts", "invocations") or not equals:
                raise UsageError(f"--limit {part}: unknown", "--limit sandboxes=100,memory=16g,starts=20")
            found[name] = size(value, "--limit memory") if name == "memory" else whole(value, f"--limit {name}", 0)
    return found


def _list(values):
    with engine() as connection:
        found = connection.call("GET", "/v1/keys")
    if values.get("json"):
        say_json(found)
        return
    rows = [(key["id"], key["name"] or "-", "yes" if key["admin"] else "no", _limits(key["limits"])) for key in found]
    say(table(("KEY ID", "NAME", "ADMIN", "LIMITS"), rows))


def _limits(found):
    return ", ".join(f"{name}={value}" for name, value in found.items() if value is not None) or "none"


def _revoke(words):
    if not words:
        raise UsageError("the key's id or name is missing", "joey keys ls")
    with engine() as connection:
        for word in words:
            connection.call("DELETE", f"/v1/keys/{quote(word)}")
            say(word)


COMMANDS = {
    "keys": {
        "usage": "[OPTIONS] create|ls|revoke [KEY…]",
        "summary": "API keys, for clients that come by TCP",
        "text": (
            "A key sees the sandboxes made with it and no others; what reaches the host (mounts of it, its\n"
            "network, its devices) only an --admin key may ask for. create prints the key on stdout, once:\n"
            "only its hash is kept. revoke takes ids or names; the sandboxes of a revoked key stay."
        ),
        "arguments": (1, None),
        "options": (
            ("--name", "NAME", "create: what it is for"),
            ("--admin", "", "create: it may do all that the unix socket may"),
            ("--e2b", "", "create: of the form that E2B's clients want"),
            ("--limit", "sandboxes=N,memory=SIZE,starts=N,invocations=N…", "create: what it may use at a time"),
            ("--json", "", "As JSON"),
        ),
        "run": keys,
    }
}
