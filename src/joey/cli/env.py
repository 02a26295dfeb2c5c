"""`joey env`: the variables by which other systems' clients find Joey."""

from joey.cli.connect import engine
from joey.cli.options import UsageError, closest
from joey.cli.output import say, say_json

_SYSTEMS = ("e2b", "docker")


def env(values, arguments):
    """Start what is needed and print the variables."""
    system = arguments[0]
    if system not in _SYSTEMS:
        raise UsageError(f"unknown system {system!r}", f"joey env {closest(system, _SYSTEMS) or 'e2b'}")
    with engine() as connection:
        found = connection.call("POST", f"/v1/facades/{system}")
    if system == "docker":
        variables = {"DOCKER_HOST": found["host"]}
    else:
        variables = {"E2B_API_URL": found["url"], "E2B_SANDBOX_URL": found["url"], "E2B_API_KEY": found["key"]}
    if values.get("json"):
        say_json(variables)
    else:
        say("\n".join(f"export {name}={value}" for name, value in variables.items()))


COMMANDS = {
    "env": {
        "usage": "[OPTIONS] e2b|docker",
        "summary": "Print what other systems' clients need to use Joey",
        "text": (
            "Starts the engine and the API if they do not run, and prints address and key as a shell takes\n"
            'them: eval "$(joey env e2b)". The key is the same each time, until it is revoked. docs/e2b.md\n'
            'says what of the E2B SDKs works. eval "$(joey env docker)": the Docker CLI and its like talk to\n'
            "Joey by a unix socket; docs/docker.md says what of them works."
        ),
        "arguments": (1, 1),
        "options": (("--json", "", "As JSON"),),
        "run": env,
    }
}
