"""`joey commit`, `diff`, `snapshot`, `snapshots`, `fork`, `export`: what becomes of a sandbox's files."""

from joey.cli import archive
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json, table
from joey.cli.progress import lines
from joey.cli.values import whole
from joey.client.transport import quote


def commit(values, arguments):
    """SANDBOX becomes the image NAME; its id is printed."""
    ref, *name = arguments
    body = {"name": name[0] if name else "", "pause": _pause(values), "changes": list(values.get("change", ()))}
    body |= {"message": values.get("message", ""), "author": values.get("author", "")}
    with engine() as connection:
        found = connection.call("POST", f"/v1/sandboxes/{quote(ref)}/commit", body)
    if values.get("json"):
        say_json(found)
    else:
        say(found["id"])
        _tell(found)


def snapshot(values, arguments):
    """The files of SANDBOX become an image; its name is printed."""
    ref, *name = arguments
    body = {"name": name[0] if name else "", "pause": _pause(values)}
    with engine() as connection:
        found = connection.call("POST", f"/v1/sandboxes/{quote(ref)}/snapshot", body)
    if values.get("json"):
        say_json(found)
    else:
        say(found["name"])
        _tell(found)


def snapshots(values, arguments):
    """A table, or names removed."""
    if values.get("remove") and not arguments:
        raise UsageError("--remove: name the snapshots", "joey snapshots --remove NAME…")
    from joey.model.units import format_size

    with engine() as connection:
        if values.get("remove"):
            for name in arguments:
                connection.call("DELETE", f"/v1/snapshots/{quote(name)}")
                say(name)
            return
        if arguments:
            found = [connection.call("GET", f"/v1/snapshots/{quote(name)}") for name in arguments]
        else:
            found = connection.call("GET", "/v1/snapshots")
    if values.get("json"):
        say_json(found)
        return
    rows = [
        (one["name"], one["id"][7:19], one["created"][:19], format_size(one["size"]), one["owner"] or "-")
        for one in found
    ]
    say(table(("NAME", "ID", "CREATED", "CHANGED", "OWNER"), rows))


def fork(values, arguments):
    """New sandboxes on the files of SANDBOX; their ids are printed as they are ready."""
    ref, *count = arguments
    body = {"count": whole(count[0], "COUNT", 1) if count else 1, "pause": _pause(values)}
    failed, made = 0, []
    with engine() as connection:
        response = connection.request("POST", f"/v1/sandboxes/{quote(ref)}/fork", body)
        for line in lines(response):
            if line.get("error"):
                complain(f"{line['index']}: {line['error'].get('detail', '')}", line["error"].get("remedy", ""))
                failed = 1
            elif values.get("json"):
                made.append(line["sandbox"])
            else:
                say(line["sandbox"]["id"])
    if values.get("json"):
        say_json(made)
    return failed


def diff(values, arguments):
    """A line a change."""
    with engine() as connection:
        found = connection.call("GET", f"/v1/sandboxes/{quote(arguments[0])}/changes")
    archive.say_changes(found, values)


def export(values, arguments):
    """The root file system of SANDBOX into FILE, or to standard output."""
    with engine() as connection:
        response = connection.request("GET", f"/v1/sandboxes/{quote(arguments[0])}/export")
        archive.write(response.stream, values.get("output", "-"))


def _pause(values):
    return not (values.get("no_pause") or str(values.get("pause", "")).lower() == "false")


def _tell(found):
    from joey.model.units import format_size

    took = f"{found['seconds'] * 1000:.0f} ms, paused for {found['paused'] * 1000:.0f} of them"
    complain(f"{format_size(found['size'])} changed, kept in {took}")


_NO_PAUSE = ("--no-pause", "", "Let it run meanwhile: a file that is being written may be kept half-written")
_JSON = ("--json", "", "As JSON")
COMMANDS = {
    "commit": {
        "usage": "[OPTIONS] SANDBOX [NAME[:TAG]]",
        "summary": "Make an image of a sandbox's files and settings",
        "text": (
            "The image has the layers of the sandbox's image and one of what it has changed, and its settings:\n"
            "command, environment, user, labels. Volumes and other mounts are no part of it. --change takes\n"
            "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR."
        ),
        "arguments": (1, 2),
        "options": (
            ("-c --change", "INSTRUCTION…", "Change a setting, as a Dockerfile does"),
            ("-m --message", "TEXT", "Kept in the image's history"),
            ("-a --author", "TEXT", "Kept in the image"),
            ("-p --pause", "", "Freeze it while its files are copied (the default)"),
            _NO_PAUSE,
            _JSON,
        ),
        "run": commit,
    },
    "snapshot": {
        "usage": "[OPTIONS] SANDBOX [NAME[:TAG]]",
        "summary": "Keep a sandbox's files as an image, in milliseconds",
        "text": (
            "Takes time for what the sandbox has changed, however large its image is; it goes on after a pause of\n"
            "milliseconds. joey run NAME starts from it. Settings are those of its image: commit keeps its own."
        ),
        "arguments": (1, 2),
        "options": (_NO_PAUSE, _JSON),
        "run": snapshot,
    },
    "snapshots": {
        "usage": "[OPTIONS] [NAME…]",
        "summary": "List snapshots, or remove them",
        "arguments": (0, None),
        "options": (("--remove", "", "Remove those named; not while sandboxes use them"), _JSON),
        "run": snapshots,
    },
    "fork": {
        "usage": "[OPTIONS] SANDBOX [COUNT]",
        "summary": "Start new sandboxes on the files of another",
        "text": (
            "Each has the files as they are now, to change by itself, and the same limits, user, network and\n"
            "volumes. Files only: main programs start anew, memory and processes are not copied."
        ),
        "arguments": (1, 2),
        "options": (_NO_PAUSE, _JSON),
        "run": fork,
    },
    "diff": {
        "usage": "[OPTIONS] SANDBOX",
        "summary": "Show which files of its image a sandbox has added, changed, deleted",
        "arguments": (1, 1),
        "options": (_JSON,),
        "run": diff,
    },
    "export": {
        "usage": "[OPTIONS] SANDBOX",
        "summary": "Write a sandbox's file system as a tar archive",
        "text": "What is mounted in it (volumes, directories of the host) is no part of it.",
        "arguments": (1, 1),
        "options": (("-o --output", "FILE", "Where to, standard output by default"),),
        "run": export,
    },
}
