"""`joey doctor`."""

import os
import sys

from joey.cli.connect import absent, engine
from joey.cli.options import wrap
from joey.cli.output import say, say_json
from joey.client import jsontext
from joey.client.transport import Unreachable

MARKS = {"ok": "ok     ", "limited": "limited", "missing": "MISSING"}


def doctor(values, arguments):
    """Print the checks; 1 if something is missing."""
    checks = _checks()
    if values.get("json"):
        say_json(checks)
    else:
        say("\n".join(render(check) for check in checks))
        missing = sum(check["state"] == "missing" for check in checks)
        limited = sum(check["state"] == "limited" for check in checks)
        say("")
        say(f"{len(checks)} checks: {missing} missing, {limited} limited")
    return 1 if any(check["state"] == "missing" for check in checks) else 0


def render(check):
    """`ok      name: what was found` and the remedy below."""
    text = f"{MARKS[check['state']]}  {wrap(check['name'] + ': ' + check['found'], 9)}"
    if check["remedy"]:
        text += "\n         try: " + wrap(check["remedy"], 14)
    return text


def _checks():
    """From the engine if one runs. If none does it may be because of what we are asked to find, so look ourselves."""
    try:
        with engine(start=False) as connection:
            return connection.call("GET", "/v1/node")["checks"]
    except Unreachable as error:
        if not absent(error):
            raise
    # In a process of its own: the command line imports nothing that touches the machine.
    import subprocess

    command = [sys.executable, "-P", "-m", "joey.api.daemon", "--doctor"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env=os.environ)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return jsontext.loads(done.stdout)


COMMANDS = {
    "doctor": {
        "usage": "[OPTIONS]",
        "summary": "Say what this host can do, what it lacks, and how to get it",
        "arguments": (0, 0),
        "options": (("--json", "", "As JSON"),),
        "run": doctor,
    }
}
