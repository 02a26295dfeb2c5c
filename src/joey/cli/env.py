"""`joey env`: the variables by which other systems' clients find Joey."""

from joey.cli.connect import engine
from joey.cli.options import UsageError, closest
from joey.cli.output import say, say_json

_SIGNED = ("lambda", "fc")
_SYSTEMS = ("e2b", "docker", *_SIGNED)


def env(values, arguments):
    """Start what is needed and print the variables."""
    system = arguments[0]
    if system not in _SYSTEMS:
        raise UsageError(f"unknown system {system!r}", f"joey env {closest(system, _SYSTEMS) or 'e2b'}")
    key = values.get("key")
    if key and system not in _SIGNED:
        raise UsageError(f"--key is for {' and '.join(_SIGNED)}: for {system} the key itself is what a client needs")
    image = values.get("code_interpreter")
    if image and system != "e2b":
        raise UsageError("--code-interpreter is for e2b")
    with engine() as connection:
        if image:
            connection.call("PUT", "/v1/facades/e2b/code-interpreter", {"image": image})
        found = connection.call("POST", f"/v1/facades/{system}", {"key": key} if key else None)
    variables = _VARIABLES[system](found)
    if values.get("json"):
        say_json(variables)
    else:
        say("\n".join(f"export {name}={value}" for name, value in variables.items()))


def _docker(found):
    return {"DOCKER_HOST": found["host"]}


def _e2b(found):
    return {"E2B_API_URL": found["url"], "E2B_SANDBOX_URL": found["url"], "E2B_API_KEY": found["key"]}


def _lambda(found):
    return {
        "AWS_ENDPOINT_URL_LAMBDA": found["url"],
        "AWS_ACCESS_KEY_ID": found["key_id"],
        "AWS_SECRET_ACCESS_KEY": found["secret"],
        "AWS_DEFAULT_REGION": found["region"],
        "AWS_REGION": found["region"],
    }


def _fc(found):
    return {
        "FC_ENDPOINT": found["url"].removeprefix("http://"),
        "FC_PROTOCOL": "HTTP",
        "FC_REGION": found["region"],
        "FC_ACCOUNT_ID": found["account"],
        "ALIBABA_CLOUD_ACCESS_KEY_ID": found["key_id"],
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": found["secret"],
    }


_VARIABLES = {"e2b": _e2b, "docker": _docker, "lambda": _lambda, "fc": _fc}

COMMANDS = {
    "env": {
        "usage": "[OPTIONS] e2b|docker|lambda|fc",
        "summary": "Print what other systems' clients need to use Joey",
        "text": (
            "Starts the engine and the API if they do not run, and prints address and key as a shell takes\n"
            'them: eval "$(joey env e2b)". The key is the same each time, until it is revoked. docs/e2b.md\n'
            'says what of the E2B SDKs works. eval "$(joey env docker)": the Docker CLI and its like talk to\n'
            "Joey by a unix socket; docs/docker.md says what of them works. lambda: boto3, the AWS CLI and\n"
            "their like use functions (docs/lambda.md); fc: the SDKs of Function Compute 3.0 do (docs/fc.md)."
        ),
        "arguments": (1, 1),
        "options": (
            ("--key", "KEY", "Of lambda and fc: the credentials of this API key (id or name)"),
            ("--code-interpreter", "IMAGE", "Of e2b: run_code is done in this image (host: this machine)"),
            ("--json", "", "As JSON"),
        ),
        "run": env,
    }
}
