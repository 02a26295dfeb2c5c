"""`joey image`: the images that are here. One function a verb."""

import time

from joey.cli import archive
from joey.cli import bootstrap as base
from joey.cli import pull as transfer
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import ago, clip, complain, is_terminal, say, say_json, table
from joey.cli.verbs import dispatch, summaries
from joey.client.transport import Problem, query, quote


def ls(values, arguments):
    """A table of images, the newest first."""
    with engine() as connection:
        found = connection.call("GET", "/v1/images")
    if arguments:
        found = [one for one in found if any(_fits(name, arguments[0]) for name in one["names"])]
    if values.get("json"):
        say_json(found)
    elif values.get("quiet"):
        for one in found:
            say(one["id"] if values.get("no_trunc") else one["id"][7:19])
    else:
        _table(found, values.get("no_trunc", False), values.get("digests", False))


def _fits(name, wanted):
    return name == wanted or name.rpartition(":")[0] == wanted


def _table(found, whole, digests):
    from joey.model.units import format_size

    rows, now = [], time.time()
    for one in found:
        for name in one["names"] or ["<none>"]:
            cells = [name, one["id"] if whole else one["id"][7:19], one["platform"], ago(one["added"], now),
                     format_size(one["size"]), str(one["sandboxes"])]  # fmt: skip
            if digests:
                path = name.partition("@")[0].rpartition(":")[0] or name
                known = [text.rpartition("@")[2] for text in one["digests"] if text.rpartition("@")[0].endswith(path)]
                cells.insert(1, known[0] if known else "<none>")
            rows.append(cells)
    head = ["NAME", "IMAGE ID", "PLATFORM", "PULLED", "SIZE", "SANDBOXES"]
    if digests:
        head.insert(1, "DIGEST")
    say(table(head, rows))


def inspect(values, arguments):
    """A JSON array, or the parts a template names."""
    from joey.cli.inspect import show

    return show("/v1/images", values, arguments)


def rm(values, arguments):
    """Remove each name, or image."""
    failed, removed = 0, []
    with engine() as connection:
        for name in arguments:
            try:
                path = f"/v1/images/{quote(name)}{query({'force': values.get('force', False)})}"
                done = connection.call("DELETE", path)
            except Problem as problem:
                complain(f"{name}: {problem}", problem.remedy)
                failed = 1
                continue
            removed.append(done)
            if not values.get("json"):
                for text in (*(f"untagged: {one}" for one in done["names"]),
                             *(f"removed: {one}" for one in done["images"])):  # fmt: skip
                    say(text)
    if values.get("json"):
        say_json(removed)
    return failed


def prune(values, arguments):
    """What nothing uses."""
    from joey.model.units import format_size

    if values.get("all") and not values.get("force") and not is_terminal(0):
        raise UsageError("-a removes every image that no sandbox uses: say that you mean it", "joey image prune -a -f")
    if values.get("all") and not values.get("force"):
        import sys

        complain("this removes every image that no sandbox uses. Type yes to go on:")
        if sys.stdin.readline().strip() != "yes":
            complain("nothing was changed")
            return 1
    with engine() as connection:
        done = connection.call("POST", f"/v1/images/prune{query({'all': values.get('all', False)})}")
    if values.get("json"):
        say_json(done)
    else:
        for one in done["images"]:
            say(f"removed: {one}")
        say(f"{len(done['layers'])} layers and {done['blobs']} blobs removed, {format_size(done['bytes'])} freed")
    return 0


def history(values, arguments):
    """The steps an image was made in."""
    from joey.model.units import format_size

    with engine() as connection:
        steps = connection.call("GET", f"/v1/images/{quote(arguments[0])}/history")
    if values.get("json"):
        say_json(steps)
        return
    whole = values.get("no_trunc", False)
    rows = []
    for step in steps:
        made = " ".join(step["created_by"].split())
        rows.append((step["created"][:19] or "-", made if whole else clip(made, 60), format_size(step["size"]),
                     step["comment"]))  # fmt: skip
    say(table(("CREATED", "CREATED BY", "SIZE", "COMMENT"), rows))


def tag(values, arguments):
    """Another name."""
    name, new = arguments
    with engine() as connection:
        connection.call("POST", f"/v1/images/{quote(name)}/tag{query({'name': new})}")


def verify(values, arguments):
    """1 if anything is damaged."""
    wanted = {"name": arguments, "repair": values.get("repair", False), "full": values.get("full", False)}
    with engine() as connection:
        found = connection.call("POST", f"/v1/images/verify{query(wanted)}")
    if values.get("json"):
        say_json(found)
    elif not found:
        say("all is as it was when it was pulled")
    for one in found if not values.get("json") else ():
        say(f"{one['what']} {one['problem']} (of {', '.join(one['images'])})")
    return 1 if found else 0


VERBS = {
    "ls": (ls, "[NAME]", "List images", (0, 1), ("quiet", "no_trunc", "digests", "json")),
    "pull": (transfer.pull, "IMAGE…", "Fetch images", (1, None), ("platform", "quiet", "json")),
    "push": (transfer.push, "IMAGE [NAME]", "Send an image", (1, 2), ("chunk", "quiet", "json")),
    **archive.VERBS,
    **base.VERBS,
    "inspect": (inspect, "IMAGE…", "Everything about images, as JSON", (1, None), ("format",)),
    "history": (history, "IMAGE", "The steps it was made in", (1, 1), ("no_trunc", "json")),
    "tag": (tag, "IMAGE NAME", "Give it another name", (2, 2), ()),
    "rm": (rm, "IMAGE…", "Remove names, and images with their last name", (1, None), ("force", "json")),
    "prune": (prune, "", "Remove what nothing uses", (0, 0), ("all", "force", "json")),
    "verify": (verify, "[IMAGE…]", "Hash everything again", (0, None), ("repair", "full", "json")),
}
"""See joey.cli.verbs."""


def image(values, arguments):
    """One of the verbs."""
    return dispatch("image", COMMANDS["image"], VERBS, values, arguments)


_TEXT = summaries(VERBS, 24)
_TEXT += "\n\nAs with Docker, too: joey images, rmi, load, save, import, tag, history."

COMMANDS = {
    "image": {
        "usage": "[OPTIONS] VERB [ARG…]",
        "summary": "The images that are here",
        "text": _TEXT,
        "arguments": (1, None),
        "options": (
            ("--json", "", "As JSON"),
            ("-q --quiet", "", "ls, pull, push, load: only ids and digests"),
            ("--no-trunc", "", "ls, history: nothing shortened"),
            ("--digests", "", "ls: the registry's digests too"),
            ("-f --force", "", "rm: also if a sandbox uses it; prune: do not ask"),
            ("-a --all", "", "prune: also images that have a name"),
            ("--full", "", "verify: unpacked layers too, compared with their archives"),
            ("--repair", "", "verify: forget what is damaged, so that a pull fetches it anew"),
            *archive.OPTIONS,
            *base.OPTIONS,
            ("--format", "TEMPLATE|docker|oci", "inspect: only parts, such as '{{.id}}'; save: of the archive"),
            ("--platform", "OS/ARCH[/VARIANT]", "pull, load, import: another than this machine's"),
            ("--chunk", "SIZE", "push: upload in requests of this size"),
        ),
        "run": image,
    }
}
