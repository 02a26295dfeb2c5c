"""`joey explain`."""

from joey.cli import request
from joey.cli.connect import engine
from joey.cli.output import say_json, write


def explain(values, arguments):
    """Print the plan."""
    body = request.sandbox(values, arguments)
    with engine() as connection:
        plan = connection.call("POST", "/v1/explain", body)["plan"]
    if values.get("json"):
        say_json(plan.splitlines())
    else:
        write(1, (plan if plan.endswith("\n") else plan + "\n").encode())


COMMANDS = {
    "explain": {
        "usage": "[OPTIONS] IMAGE [COMMAND] [ARG…]",
        "summary": "Print what joey run would do, a line an operation",
        "text": "Takes the options of joey run. Nothing is changed or started.",
        "options": (("--json", "", "As a JSON array of lines"), "As of joey run", *request.OPTIONS),
        "refused": request.REFUSED,
        "leading": True,
        "failure": 125,
        "run": explain,
    }
}
