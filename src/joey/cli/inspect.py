"""`joey inspect`."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json
from joey.client.jsontext import dumps
from joey.client.transport import Problem, quote


def inspect(values, arguments):
    """Print a JSON array, or the parts a template names."""
    return show("/v1/sandboxes", values, arguments)


def show(path, values, arguments):
    """The same of whatever the API has by name below `path`; 1 if one of them is not there."""
    found, failed = [], 0
    with engine() as connection:
        for ref in arguments:
            try:
                found.append(connection.call("GET", f"{path}/{quote(ref)}"))
            except Problem as problem:
                complain(f"{ref}: {problem}", problem.remedy)
                failed = 1
    if "format" in values:
        for one in found:
            say(fill(values["format"], one))
    else:
        say_json(found)
    return failed


def fill(template, value):
    """`{{.sandbox.exit.code}}` by what stands there; text as it is, all else as JSON. Raises UsageError."""
    out, rest = [], template
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        word, _, rest = rest.partition("}}")
        out += [before, _at(value, word.strip())]
    return "".join((*out, rest))


def _at(value, path):
    if path == "json .":
        return dumps(value)
    if path[:1] != ".":
        raise UsageError(f"--format: {{{{{path}}}}} is not understood", "{{.sandbox.state}}")
    for name in path[1:].split(".") if path != "." else ():
        if not isinstance(value, dict) or name not in value:
            names = f"one of {', '.join(value)}" if isinstance(value, dict) else ""
            raise UsageError(f"--format: nothing stands at {path}", names)
        value = value[name]
    return value if isinstance(value, str) else dumps(value)


COMMANDS = {
    "inspect": {
        "usage": "[OPTIONS] SANDBOX…",
        "summary": "Show everything about sandboxes, as JSON",
        "arguments": (1, None),
        "options": (("-f --format", "TEMPLATE", "Only parts, such as '{{.sandbox.state}}'"),),
        "run": inspect,
    }
}
