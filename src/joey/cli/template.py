"""`joey template`: warm processes that sandboxes are forked from."""

from joey.cli import request
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json, table
from joey.cli.values import whole
from joey.cli.verbs import choose, named
from joey.client.transport import quote

_VERBS = ("create", "ls", "inspect", "rm")
_NEEDLESS = (
    "name",
    "entrypoint",
    "restart",
    "detach",
    "interactive",
    "tty",
    "rm",
    "cidfile",
    "detach_keys",
    "sig_proxy",
)


def template(values, arguments):
    """One of create, ls, inspect, rm."""
    verb, words = choose("template", _VERBS, arguments)
    if verb == "create":
        return _create(values, words)
    return named("template", verb, words, lambda: _list(values))


def _create(values, words):
    if len(words) < 2:
        raise UsageError("the template's name or its image is missing", "joey template create NAME IMAGE")
    name, *words = words
    if len(words) > 1:
        raise UsageError(f"{words[1]!r}: a template runs no command", "name what it imports with --import")
    for option in _NEEDLESS:
        if option in values:
            raise UsageError(f"--{option.replace('_', '-')} makes no sense for a template", "leave it out")
    body = {"spec": request.sandbox(values, words), "modules": list(values.get("import", ()))}
    for option, field in (("python", "python"), ("setup", "init"), ("code", "code")):
        if option in values:
            body[field] = values[option]
    if "berths" in values:
        body["berths"] = whole(values["berths"], "--berths", 0)
    with engine() as connection:
        made = connection.call("PUT", f"/v1/templates/{quote(name)}", body)
    if values.get("json"):
        say_json(made)
    else:
        say(name)
        if made["state"] != "ready":
            complain(f"it is {made['state']}: {made['reason']}", f"joey template inspect {name}")
    return 0 if made["state"] == "ready" else 1


def _list(values):
    from joey.model.units import format_size

    with engine() as connection:
        found = connection.call("GET", "/v1/templates")
    if values.get("json"):
        say_json(found)
        return
    rows = [
        (one["name"], one["spec"]["image"] or one["spec"]["rootfs"], one["state"], format_size(one["memory"]),
         one["forks"], one["instances"], one["owner"] or "-", one["reason"] or "-")
        for one in found
    ]  # fmt: skip
    say(table(("NAME", "IMAGE", "STATE", "MEMORY", "FORKS", "ALIVE", "KEY", "REASON"), rows))


COMMANDS = {
    "template": {
        "usage": "[OPTIONS] create NAME IMAGE | ls | inspect NAME… | rm NAME…",
        "summary": "Warm processes to fork sandboxes from: create, ls, inspect, rm",
        "text": (
            "A template is a Python that has imported what is needed; sandboxes forked from it begin in a few\n"
            "milliseconds and share its memory until they write to it (API and SDK: template). create answers\n"
            "when it is warm, or says why it cannot be forked: then sandboxes of it start plainly. rm ends it;\n"
            "what was forked goes on."
        ),
        "arguments": (1, None),
        "options": (
            ("--import", "MODULE…", "create: imported before anything is forked; may be repeated"),
            ("--setup", "CODE", "create: Python run after the imports"),
            ("--python", "PROGRAM", "create: the interpreter inside (python3)"),
            ("--code", "DIRECTORY", "create: shown read-only as /code, and searched for modules"),
            ("--berths", "NUMBER", "create: so many sandboxes are prepared ahead (2)"),
            ("--json", "", "As JSON"),
            "create: as of joey run",
            *request.OPTIONS,
        ),
        "refused": request.REFUSED,
        "run": template,
    }
}
