"""`joey volume`: directories that outlive sandboxes."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, is_terminal, say, say_json, table
from joey.cli.values import labels, size
from joey.cli.verbs import choose, remove
from joey.client.transport import query, quote

_VERBS = ("create", "ls", "inspect", "rm", "prune")
_OWN = {"size": ("create",), "label": ("create", "ls"), "quiet": ("ls",), "force": ("rm", "prune")}


def volume(values, arguments):
    """One of create, ls, inspect, rm, prune."""
    verb, words = choose("volume", _VERBS, arguments)
    for name, verbs in _OWN.items():
        if name in values and verb not in verbs:
            raise UsageError(f"{verb}: there is no option --{name}", f"joey volume {verbs[0]} --{name}")
    least, most = {"create": (0, 1), "ls": (0, 0), "prune": (0, 0)}.get(verb, (1, None))
    if len(words) < least:
        raise UsageError(f"{verb}: name a volume", "joey volume ls")
    if most is not None and len(words) > most:
        raise UsageError(f"{verb}: {words[most]!r} is one argument too many", f"joey volume {verb}")
    return {"create": _create, "ls": _list, "inspect": _inspect, "rm": _remove, "prune": _prune}[verb](values, words)


def _create(values, words):
    body = {"name": words[0] if words else "", "labels": labels(values.get("label", ()), ())}
    if "size" in values:
        body["size"] = size(values["size"], "--size")
    with engine() as connection:
        made = connection.call("POST", "/v1/volumes", body)
    say_json(made) if values.get("json") else say(made["name"])


def _list(values, _):
    with engine() as connection:
        found = connection.call("GET", f"/v1/volumes{query({'label': list(values.get('label', ()))})}")
    if values.get("json"):
        say_json(found)
    elif values.get("quiet"):
        for one in found:
            say(one["name"])
    else:
        rows = [(one["name"], _size(one["size"]), str(len(one["users"])), one["owner"] or "-") for one in found]
        say(table(("NAME", "SIZE", "SANDBOXES", "OWNER"), rows))


def _size(count):
    if count is None:
        return "-"
    for unit in ("", "k", "m", "g"):
        if count < 1024 or count % 1024:
            return f"{count}{unit}"
        count //= 1024
    return f"{count}t"


def _inspect(values, words):
    with engine() as connection:
        say_json([connection.call("GET", f"/v1/volumes/{quote(word)}") for word in words])


def _remove(values, words):
    return remove(words, lambda word: f"/v1/volumes/{quote(word)}", values.get("force"))


def _prune(values, _):
    if not values.get("force"):
        if not is_terminal(0):
            raise UsageError("prune: removes all volumes that no sandbox has", "joey volume prune --force")
        complain("This removes every volume that no sandbox has, and its content. Go on? [y/N]")
        if not input().strip().lower().startswith("y"):
            return 1
    with engine() as connection:
        gone = connection.call("POST", "/v1/volumes/prune")
    if values.get("json"):
        say_json(gone)
        return 0
    for name in gone["names"]:
        say(name)
    return 0


COMMANDS = {
    "volume": {
        "usage": "[OPTIONS] create|ls|inspect|rm|prune [NAME…]",
        "summary": "Directories that outlive sandboxes",
        "text": (
            "joey run -v NAME:/path[:ro] shows one inside; one that is not there is made, and begins with what\n"
            "the image has at that path. Several sandboxes may share one. A volume that a sandbox has, running\n"
            "or not, is not removed. joey system reset removes all."
        ),
        "arguments": (1, None),
        "options": (
            ("--size", "SIZE", "create: at most so much can be in it, at least 16m without project quotas"),
            ("-l --label", "NAME[=VALUE]…", "create: label it; ls: only those"),
            ("-q --quiet", "", "ls: only names"),
            ("-f --force", "", "rm: one that is not there is no error; prune: do not ask"),
            ("--json", "", "As JSON"),
        ),
        "run": volume,
    }
}
