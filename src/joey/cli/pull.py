"""`joey pull` and `joey push`."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, say, say_json
from joey.cli.progress import follow
from joey.cli.values import size
from joey.client.transport import Problem


def pull(values, arguments):
    """Fetch each image; print its name and digest."""
    failed, found = 0, []
    with engine() as connection:
        for name in arguments:
            body = {"reference": name}
            if "platform" in values:
                body["platform"] = values["platform"]
            try:
                response = connection.request("POST", "/v1/images/pull", body)
                image = follow(response, values.get("quiet", False))["image"]
            except Problem as problem:
                complain(f"{name}: {problem}", problem.remedy)
                failed = 1
                continue
            found.append(image)
            if not values.get("json"):
                say(image["id"] if values.get("quiet") else f"{name}  {image['id']}")
    if values.get("json"):
        say_json(found)
    return failed


def push(values, arguments):
    """Send an image; print its digest."""
    name, *target = arguments
    body = {"name": name, "target": target[0] if target else ""}
    if "chunk" in values:
        body["chunk"] = size(values["chunk"], "--chunk")
        if not body["chunk"]:
            raise UsageError("--chunk: 0 is no size", "--chunk 16m")
    with engine() as connection:
        response = connection.request("POST", "/v1/images/push", body)
        digest = follow(response, values.get("quiet", False))["digest"]
    if values.get("json"):
        say_json({"name": body["target"] or name, "digest": digest})
    else:
        say(digest if values.get("quiet") else f"{body['target'] or name}  {digest}")


_ABOUT = """
Registries, mirrors and plain HTTP are configured in registries.toml in JOEY_HOME; names and
passwords are those of joey login or docker login (~/.docker/config.json). An interrupted transfer
goes on where it ended."""

COMMANDS = {
    "pull": {
        "usage": "[OPTIONS] IMAGE…",
        "summary": "Fetch images from registries",
        "text": _ABOUT,
        "arguments": (1, None),
        "options": (
            ("--platform", "OS/ARCH[/VARIANT]", "Another than this machine's, such as linux/arm64"),
            ("-q --quiet", "", "Only ids, no progress"),
            ("--json", "", "As JSON"),
        ),
        "refused": {"-a": "", "--all-tags": "", "--disable-content-trust": "every digest is verified"},
        "run": pull,
    },
    "push": {
        "usage": "[OPTIONS] IMAGE [NAME]",
        "summary": "Send an image to a registry, under another NAME if one is given",
        "text": _ABOUT,
        "arguments": (1, 2),
        "options": (
            ("--chunk", "SIZE", "Upload in requests of this size, for proxies that take no large ones"),
            ("-q --quiet", "", "Only the digest, no progress"),
            ("--json", "", "As JSON"),
        ),
        "refused": {"-a": "", "--all-tags": ""},
        "run": push,
    },
}
