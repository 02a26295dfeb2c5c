"""`joey url`: by which URL a port of a sandbox is reached."""

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import say, say_json
from joey.client.transport import query, quote


def url(values, arguments):
    """Print it."""
    ref, port = arguments
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{port!r} is no port", f"joey url {ref} 8000")
    with engine() as connection:
        found = connection.call("GET", f"/v1/sandboxes/{quote(ref)}/host{query({'port': int(port)})}")
    if values.get("json"):
        say_json(found)
    else:
        say(found["host"] if values.get("host") else found["url"])
    return 0


COMMANDS = {
    "url": {
        "usage": "[OPTIONS] SANDBOX PORT",
        "summary": "Print the URL by which a port of a sandbox is reached",
        "text": (
            "HTTP (WebSocket and all else that begins as HTTP too) to this URL reaches PORT on the sandbox's\n"
            "own loopback; it needs no network for that, and no published port. Whoever knows the URL may\n"
            "use it, unless the sandbox was made with a proxy_token, to be sent in X-Access-Token.\n"
            "Browsers and curl know that names below localhost are this machine. Where another program\n"
            "does not, connect to 127.0.0.1 and send the host (--host) as Host."
        ),
        "arguments": (2, 2),
        "options": (
            ("--host", "", "Only the host and its port"),
            ("--json", "", "As JSON"),
        ),
        "run": url,
    }
}
