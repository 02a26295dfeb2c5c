"""`joey exec` and `joey attach`."""

from joey.cli.connect import engine
from joey.cli.foreground import exit_code, follow
from joey.cli.options import UsageError
from joey.cli.output import is_terminal, say
from joey.cli.values import environment
from joey.client.transport import quote

DEFAULT_KEYS = "ctrl-p,ctrl-q"


def execute(values, arguments):
    """The program's exit code; 0 with -d."""
    ref, *argv = arguments
    detach, tty, interactive = (values.get(name, False) for name in ("detach", "tty", "interactive"))
    body = {"argv": argv}
    if tty:
        body["tty"] = True
    if interactive:
        body["stdin"] = True
    if "env" in values or "env_file" in values:
        body["env"] = environment(values.get("env", ()), values.get("env_file", ()))
    if "workdir" in values:
        body["cwd"] = values["workdir"]
    if "user" in values:
        body["user"], body["groups"] = values["user"], []
    path = f"/v1/sandboxes/{quote(ref)}/processes"
    if detach:
        with engine() as connection:
            say(str(connection.call("POST", path, body | {"detach": True})["pid"]))
        return 0
    _check_terminal(tty, interactive)
    if tty:
        from joey.cli.terminal import size

        rows, cols = size(1) if is_terminal(1) else size(0)
        if rows and cols:
            body["rows"], body["cols"] = rows, cols
    keys = _keys(values) if tty and interactive else None
    with engine() as connection:
        sock, _, rest = connection.upgrade("POST", path, body)
        end = follow(sock, rest, ref, stdin=interactive, tty=tty, keys=keys)
    return 0 if end is None else exit_code(end)


def attach(values, arguments):
    """The main program's exit code; 0 if the user detaches."""
    (ref,) = arguments
    path = f"/v1/sandboxes/{quote(ref)}"
    with engine() as connection:
        detail = connection.call("GET", path)
        process = detail["spec"]["process"]
        interactive = process["stdin"] and not values.get("no_stdin", False)
        tty = process["tty"]
        _check_terminal(tty, interactive)
        keys = _keys(values) if tty and interactive else None
        sock, _, rest = connection.upgrade("POST", path + "/attach")
        proxy = values.get("sig_proxy", True)
        end = follow(sock, rest, ref, stdin=interactive, tty=tty, keys=keys, proxy=proxy, again=True)
    return 0 if end is None else exit_code(end)


def _check_terminal(tty, interactive):
    if tty and interactive and not is_terminal(0):
        raise UsageError("it has a terminal and takes input: standard input is no terminal", "leave out -t")


def _keys(values):
    from joey.cli.terminal import keys

    return keys(values.get("detach_keys", DEFAULT_KEYS))


COMMANDS = {
    "exec": {
        "usage": "[OPTIONS] SANDBOX COMMAND [ARG…]",
        "summary": "Run a program in a running sandbox",
        "text": "The exit code is the program's, or 125, 126, 127 as of joey run.",
        "arguments": (2, None),
        "leading": True,
        "failure": 125,
        "options": (
            ("-d --detach", "", "Run in the background and print its process id"),
            ("-i --interactive", "", "Keep standard input open and pass it on"),
            ("-t --tty", "", "Give the program a terminal"),
            ("-e --env", "NAME[=VALUE]…", "Set an environment variable; without a value, pass ours on"),
            ("--env-file", "FILE…", "Environment variables, a line each"),
            ("-w --workdir", "DIR", "Working directory inside"),
            ("-u --user", "USER[:GROUP]", "User and group, by name or number"),
            ("--detach-keys", "KEYS", "Keys that leave it running (ctrl-p,ctrl-q)"),
        ),
        "refused": {"--privileged": ("", "joey run --cap-add, --device: name what the sandbox needs when it is made")},
        "run": execute,
    },
    "attach": {
        "usage": "[OPTIONS] SANDBOX",
        "summary": "Follow a running sandbox, and type into it",
        "text": "Input is passed on if the sandbox was made with -i. The exit code is the program's.",
        "arguments": (1, 1),
        "failure": 125,
        "options": (
            ("--detach-keys", "KEYS", "Keys that leave it running (ctrl-p,ctrl-q)"),
            ("--no-stdin", "", "Only look"),
            ("--sig-proxy", "", "Pass signals on to the program (default true)"),
        ),
        "run": attach,
    },
}
