"""Verbs that do one thing to each of several sandboxes: start, stop, kill, pause, unpause, wait, rm; and rename."""

from joey.cli.connect import engine
from joey.cli.output import complain, say, say_json
from joey.cli.request import signal_name
from joey.cli.values import decimal
from joey.client.transport import Problem, query, quote


def each(refs, act, as_json=False):
    """`act(connection, ref)` for each; its result is printed. Goes on after an error; the exit code tells of one."""
    failed, results = 0, []
    with engine() as connection:
        for ref in refs:
            try:
                result = act(connection, ref)
            except Problem as problem:
                complain(f"{ref}: {problem}", problem.remedy)
                failed = 1
                continue
            if as_json:
                results.append({"sandbox": ref, "result": result})
            else:
                say(str(result))
    if as_json:
        say_json(results)
    return failed


def _post(verb, values=None):
    def act(connection, ref):
        connection.call("POST", f"/v1/sandboxes/{quote(ref)}/{verb}{query(values or {})}")
        return ref

    return act


def start(values, arguments):
    """Start each."""
    return each(arguments, _post("start"))


def stop(values, arguments):
    """Stop each."""
    timeout = decimal(values["time"], "--time") if "time" in values else None
    return each(arguments, _post("stop", {"timeout": timeout}))


def kill(values, arguments):
    """Signal each."""
    return each(arguments, _post("kill", {"signal": signal_name(values.get("signal", "KILL"))}))


def pause(values, arguments):
    """Freeze each."""
    return each(arguments, _post("pause"))


def unpause(values, arguments):
    """Thaw each."""
    return each(arguments, _post("resume"))


def wait(values, arguments):
    """Print each one's exit code."""

    def act(connection, ref):
        end = connection.call("POST", f"/v1/sandboxes/{quote(ref)}/wait")
        return end if values.get("json") else end["code"]

    return each(arguments, act, values.get("json", False))


def rename(values, arguments):
    """Another name."""
    ref, name = arguments
    with engine() as connection:
        connection.call("POST", f"/v1/sandboxes/{quote(ref)}/rename{query({'name': name})}")


def remove(values, arguments):
    """Remove each; with --force one that is not there is no error."""
    force = values.get("force", False)

    def act(connection, ref):
        try:
            connection.call("DELETE", f"/v1/sandboxes/{quote(ref)}{query({'force': force})}")
        except Problem as problem:
            if not (force and problem.status == 404):
                raise
        return ref

    return each(arguments, act)


_MANY = {"usage": "[OPTIONS] SANDBOX…", "arguments": (1, None), "options": ()}

COMMANDS = {
    "start": {**_MANY, "summary": "Start stopped sandboxes again", "run": start},
    "stop": {
        **_MANY,
        "summary": "Stop sandboxes: their stop signal, and SIGKILL if that does not help in time",
        "options": (("-t --time", "SECONDS", "How long to wait before SIGKILL (the sandbox's own, 10)"),),
        "run": stop,
    },
    "kill": {
        **_MANY,
        "summary": "Send the main program of sandboxes a signal",
        "options": (("-s --signal", "SIGNAL", "Name or number (KILL)"),),
        "run": kill,
    },
    "pause": {**_MANY, "summary": "Freeze every process of sandboxes", "run": pause},
    "unpause": {**_MANY, "summary": "Let frozen sandboxes go on", "run": unpause},
    "wait": {
        **_MANY,
        "summary": "Wait for sandboxes to end and print their exit codes",
        "options": (("--json", "", "Print all there is to know about the ends, as JSON"),),
        "run": wait,
    },
    "rename": {
        "usage": "SANDBOX NAME",
        "summary": "Give a sandbox another name",
        "arguments": (2, 2),
        "options": (),
        "run": rename,
    },
    "rm": {
        **_MANY,
        "summary": "Remove sandboxes and their logs",
        "options": (("-f --force", "", "Kill running ones first; one that is not there is no error"),),
        "refused": {"-v": "volumes have names", "--volumes": "volumes have names", "-l": "", "--link": ""},
        "run": remove,
    },
}
