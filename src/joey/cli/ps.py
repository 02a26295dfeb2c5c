"""`joey ps`."""

import time

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import ago, clip, command_line, say, say_json, table
from joey.client.transport import query

FILTERS = {
    "name": "name", "id": "id", "label": "label", "status": "state", "state": "state", "ancestor": "image",
    "image": "image", "exited": "exited",
}  # fmt: skip


def ps(values, arguments):
    """Print sandboxes."""
    wanted = {"all": values.get("all", False), "limit": values.get("last")}
    for text in values.get("filter", ()):
        name, equals, value = text.partition("=")
        if name not in FILTERS or not equals:
            raise UsageError(f"--filter {text}: unknown", f"NAME=VALUE with NAME one of {', '.join(FILTERS)}")
        wanted.setdefault(FILTERS[name], []).append(value)
    if "exited" in wanted or values.get("latest") or "last" in values:
        wanted["all"] = True
    if values.get("latest"):
        wanted["limit"] = "1"
    form = "json" if values.get("json") else values.get("format", "table")
    with engine() as connection:
        found = connection.call("GET", "/v1/sandboxes" + query(wanted))
    if values.get("quiet"):
        for box in found:
            say(box["id"] if values.get("no_trunc") else box["id"][:12])
    elif form == "json":
        say_json(found)
    else:
        show(found, form, values.get("no_trunc", False), time.time())


def show(found, form, whole, now):
    """As a table or by a template."""
    rows = [row(box, whole, now) for box in found]
    if form == "table":
        head = ("SANDBOX ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME")
        say(table(head, [[cells[name] for name in ("ID", "Image", "Command", "CreatedAt", "Status", "Ports", "Names")]
                         for cells in rows]))  # fmt: skip
        return
    head, template = form.startswith("table "), form.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
    lines = [fill(template, cells) for cells in rows]
    if head:
        titles = {name: name.upper() for name in row(_EMPTY, whole, now)}
        cells = [line.split("\t") for line in (fill(template, titles), *lines)]
        say(table(cells[0], cells[1:]))
    else:
        for line in lines:
            say(line)


_EMPTY = {"id": "", "image": "", "argv": [], "created": 0, "state": "", "exit": None, "started": None,
          "name": "", "labels": {}, "finished": None, "pid": None, "ports": [], "network": ""}  # fmt: skip


def row(box, whole, now):
    """Docker's fields for templates."""
    command = command_line(box["argv"])
    return {
        "ID": box["id"] if whole else box["id"][:12],
        "Image": box["image"],
        "Command": f'"{command}"' if whole else f'"{clip(command, 28)}"',
        "CreatedAt": ago(box["created"], now),
        "RunningFor": ago(box["created"], now),
        "Status": status(box, now),
        "State": box["state"],
        "Names": box["name"],
        "Ports": _ports(box),
        "Networks": box.get("network", ""),
        "Name": box["name"],
        "Labels": ",".join(f"{name}={value}" for name, value in box["labels"].items()),
        "Pid": str(box["pid"] or ""),
        "ExitCode": "" if box["exit"] is None else str(box["exit"]["code"]),
    }


def _ports(box):
    if not box.get("ports"):
        return ""
    from joey.cli.network import summary

    return summary(box["ports"])


def status(box, now):
    """`Up 3 minutes (healthy)`, `Exited (137) 5 seconds ago`."""
    from joey.cli.output import span

    if box["state"] in ("running", "paused"):
        up = f"Up {span(now - (box['started'] or now))}"
        health = box.get("health")
        mark = "Paused" if box["state"] == "paused" else "health: starting" if health == "starting" else health
        return f"{up} ({mark})" if mark else up
    if box["state"] == "exited" and box["exit"] is not None:
        why = ", out of memory" if box["exit"].get("oom") else ""
        return f"Exited ({box['exit']['code']}{why}) {ago(box['finished'] or now, now)}"
    return box["state"].capitalize()


def fill(template, cells):
    """`{{.Name}}` by its cell, `{{json .}}` by all of them. Raises UsageError for an unknown one."""
    out, rest = [], template
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        word, closed, rest = rest.partition("}}")
        word = word.strip()
        out.append(before)
        if word == "json .":
            from joey.client.jsontext import dumps

            out.append(dumps(cells))
        elif closed and word[:1] == "." and word[1:] in cells:
            out.append(cells[word[1:]])
        else:
            raise UsageError(f"--format: {{{{{word}}}}} is unknown", f"one of {', '.join(cells)}")
    return "".join((*out, rest))


COMMANDS = {
    "ps": {
        "usage": "[OPTIONS]",
        "summary": "List sandboxes, the newest first",
        "arguments": (0, 0),
        "options": (
            ("-a --all", "", "Also those that do not run"),
            ("-q --quiet", "", "Only ids"),
            ("-n --last", "NUMBER", "The newest so many, whatever their state"),
            ("-l --latest", "", "The newest one, whatever its state"),
            ("--no-trunc", "", "Whole ids and commands"),
            ("--filter", "NAME=VALUE…", "name, id, label, status, image or exited; all must hold"),
            ("--format", "table|json|TEMPLATE", "Such as '{{.ID}} {{.Names}}'; 'table {{.ID}}' for a heading"),
            ("--json", "", "The same as --format json"),
        ),
        "refused": {"-s": "", "--size": ""},
        "run": ps,
    }
}
