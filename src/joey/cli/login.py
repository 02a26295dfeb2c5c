"""`joey login` and `joey logout`: names and passwords for registries."""

import sys

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, is_terminal, say
from joey.client.transport import query


def login(values, arguments):
    """Ask for what is missing, let the engine try it, and keep it there."""
    registry = _host(arguments)
    username = values.get("username") or _ask("Username: ", input)
    with engine() as connection:
        body = {"registry": registry, "username": username, "password": _password(values)}
        made = connection.call("POST", "/v1/registries/login", body)
    say("Login Succeeded")
    complain(f"the credentials are kept in {made['file']}, not encrypted unless a credential helper is set there")


def logout(values, arguments):
    """Forget them."""
    registry = _host(arguments)
    with engine() as connection:
        done = connection.call("DELETE", f"/v1/registries/login{query({'registry': registry})}")
    say(f"Removed login credentials for {registry}" if done["removed"] else f"Not logged in to {registry}")


def _host(arguments):
    text = arguments[0] if arguments else "docker.io"
    return text.removeprefix("https://").removeprefix("http://").rstrip("/")


def _password(values):
    if values.get("password_stdin"):
        if "password" in values:
            raise UsageError("--password and --password-stdin exclude each other", "joey login --password-stdin")
        word = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif "password" in values:
        complain("others on this machine can read a password on the command line", "--password-stdin")
        word = values["password"]
    else:
        import getpass

        word = _ask("Password: ", getpass.getpass)
    if not word:
        raise UsageError("the password is empty", "joey login --password-stdin < FILE")
    return word


def _ask(prompt, ask):
    if not is_terminal(0):
        raise UsageError("there is no terminal to ask on", "joey login -u NAME --password-stdin REGISTRY < FILE")
    try:
        return ask(prompt)
    except EOFError:
        raise UsageError("nothing was typed", "joey login -u NAME REGISTRY") from None


COMMANDS = {
    "login": {
        "usage": "[OPTIONS] [REGISTRY]",
        "summary": "Keep a name and a password for a registry",
        "text": (
            "The registry (docker.io by default) is asked first. The credentials then stand where Docker has\n"
            "them, $DOCKER_CONFIG/config.json or ~/.docker/config.json of who runs the engine, or in the\n"
            "credential helper that is named there; so `docker login` before or after does as well."
        ),
        "arguments": (0, 1),
        "options": (
            ("-u --username", "NAME", "Who to be; asked for by default"),
            ("-p --password", "WORD", "Better: --password-stdin"),
            ("--password-stdin", "", "Read the password from standard input"),
        ),
        "run": login,
    },
    "logout": {
        "usage": "[REGISTRY]",
        "summary": "Forget the name and password for a registry",
        "arguments": (0, 1),
        "options": (),
        "run": logout,
    },
}
