"""`joey system` and `joey version`."""

import os
import sys

from joey.cli.connect import absent, elsewhere, engine
from joey.cli.options import UsageError, closest
from joey.cli.output import complain, is_terminal, say, say_json, table
from joey.client.transport import Unreachable, home


def system(values, arguments):
    """One of info, df, reset."""
    verb = arguments[0]
    if verb not in ("info", "df", "reset"):
        near = closest(verb, ["info", "df", "reset"])
        raise UsageError(f"unknown verb {verb!r}", f"joey system {near or 'info'}")
    return {"info": info, "df": df, "reset": reset}[verb](values)


def info(values):
    """This machine and this instance."""
    from joey.model.units import format_size

    with engine() as connection:
        node = connection.call("GET", "/v1/node")
    if values.get("json"):
        say_json(node)
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(node["counts"].items()))
    rows = (
        ("version", node["version"]),
        ("instance", f"{node['instance']} in {node['home']}"),
        ("sandboxes", counts or "none"),
        ("kernel", f"{node['kernel']} ({node['arch']})"),
        ("CPUs", str(node["cpus"])),
        ("memory", format_size(node["memory_total"])),
        ("promised", f"{format_size(node['load']['memory'])} of {format_size(node['load']['memory_limit'])} of memory"),
        ("limits", _limits(node["load"])),
        ("lacking", ", ".join(c["name"] for c in node["checks"] if c["state"] != "ok") or "nothing (joey doctor)"),
    )
    for name, value in rows:
        say(f"{name + ':':<12}{value}")


def _limits(load):
    most = load["sandboxes_limit"]
    found = f"{load['sandboxes']} of {most}" if most is not None else f"{load['sandboxes']}, as many as fit"
    return f"sandboxes {found}; starts {load['starts']} of {load['starts_limit']}"


def df(values):
    """What takes room."""
    from joey.model.units import format_size

    with engine() as connection:
        rows = connection.call("GET", "/v1/disk")
    if values.get("json"):
        say_json(rows)
        return
    cells = [(row["kind"], row["count"], format_size(row["bytes"]), format_size(row["memory"])) for row in rows]
    say(table(("KIND", "COUNT", "DISK", "MEMORY"), cells))


def reset(values):
    """Remove all there is, by the running engine or, if none runs, by one made for it."""
    if elsewhere():
        raise UsageError("reset is for this machine's engine, and JOEY_URL names another", "unset JOEY_URL")
    if not values.get("force"):
        if not is_terminal(0):
            raise UsageError("reset ends and removes every sandbox: say that you mean it", "joey system reset -f")
        complain(f"this ends and removes every sandbox, image and log of {home()}. Type yes to go on:")
        if sys.stdin.readline().strip() != "yes":
            complain("nothing was changed")
            return 1
    try:
        with engine(start=False) as connection:
            report = connection.call("POST", "/v1/reset")
    except Unreachable as error:
        if not absent(error):
            raise
        if not os.path.isdir(home()):
            report = {"removed": {}}
        else:
            report = _without_engine()
    _sweep()
    if values.get("json"):
        say_json(report)
    else:
        found = ", ".join(f"{count} {kind}" for kind, count in report["removed"].items() if count)
        say(f"removed: {found or 'nothing was there'}")
    return 0


def _sweep():
    """What an engine cannot remove because it uses it: its log and its lock, once it has ended."""
    import fcntl

    folder = home() + "/run"
    try:
        lock = os.open(folder + "/daemon.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        lock = -1
    if lock >= 0:
        fcntl.flock(lock, fcntl.LOCK_EX)
    for name in ("api.sock", "daemon.log", "daemon.log.1", "spawn.lock", "daemon.lock"):
        try:
            os.unlink(f"{folder}/{name}")
        except FileNotFoundError:
            pass
    if lock >= 0:
        os.close(lock)
    for path in (folder, home()):
        try:
            os.rmdir(path)
        except OSError:
            return  # somebody else's files are in it, or a new engine's


def _without_engine():
    import subprocess

    from joey.client import jsontext

    command = [sys.executable, "-P", "-m", "joey.api.daemon", "--reset"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)  # it has said why
    return jsontext.loads(done.stdout)


def version(values, arguments):
    """Ours, and the engine's if one runs."""
    from joey._version import __version__

    try:
        with engine(start=False) as connection:
            running = connection.call("GET", "/v1/health")["version"]
    except Unreachable:
        running = None
    if values.get("json"):
        say_json({"version": __version__, "engine": running})
    else:
        say(f"joey {__version__}" + (f", engine {running}" if running not in (None, __version__) else ""))


COMMANDS = {
    "system": {
        "usage": "[OPTIONS] info|df|reset",
        "summary": "The instance as a whole: what it is, what takes room, and removing all of it",
        "text": "reset ends every sandbox and removes everything this instance ever made on the machine.",
        "arguments": (1, 1),
        "options": (
            ("--json", "", "As JSON"),
            ("-f --force", "", "reset: do not ask"),
        ),
        "run": system,
    },
    "version": {
        "usage": "[OPTIONS]",
        "summary": "Print the version",
        "arguments": (0, 0),
        "options": (("--json", "", "As JSON, with the running engine's version"),),
        "run": version,
    },
}
