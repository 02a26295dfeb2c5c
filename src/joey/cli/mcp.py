"""`joey mcp`: tools for agents, by the Model Context Protocol."""

from joey.cli.options import UsageError
from joey.cli.output import complain, say
from joey.cli.values import decimal, size, whole


def mcp(values, arguments):
    """Serve until the agent leaves, or with --http until a signal."""
    options = _settings(values)
    place = _place(values["http"]) if "http" in values else None
    try:
        from joey.mcp import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types", "uvicorn", "anyio", "pydantic"):
            raise
        complain(f"mcp: the package {error.name} is missing", "pip install 'joey[mcp]'")
        return 1
    from joey.mcp.settings import Settings

    settings = Settings(**options)
    return serve.stdio(settings) if place is None else serve.http(settings, *place, say)


def _settings(values):
    found = {name: values[name] for name in ("keep", "image", "network") if name in values}
    if "memory" in values:
        found["memory"] = size(values["memory"], "--memory")
    if "cpus" in values:
        found["cpus"] = decimal(values["cpus"], "--cpus")
    if "max_sandboxes" in values:
        found["max_sandboxes"] = whole(values["max_sandboxes"], "--max-sandboxes", 1)
    if "output" in values:
        found["output"] = whole(values["output"], "--output", 100)
    if "timeout" in values:
        found["command_seconds"] = decimal(values["timeout"], "--timeout")
    if "idle" in values:
        found["idle"] = decimal(values["idle"], "--idle") or None
    return found


def _place(text):
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"--http {text}: {port!r} is no port", "--http 127.0.0.1:8765, or port 0 for a free one")
    return host, int(port)


COMMANDS = {
    "mcp": {
        "usage": "[OPTIONS]",
        "summary": "Tools for agents (Model Context Protocol): sandboxes, commands, code, files",
        "text": (
            "Without --http an agent's program starts it and talks to it by standard input and output; a\n"
            "session's sandboxes are removed when it ends. docs/mcp.md says how agents are set up.\n"
            "It needs the official library: pip install 'joey[mcp]'."
        ),
        "arguments": (0, 0),
        "options": (
            ("--http", "HOST:PORT", "Serve by HTTP at /mcp, who brings an API key (joey keys create)"),
            ("--image", "IMAGE", "Image of sandboxes for which none is asked (host)"),
            ("-m --memory", "SIZE", "Memory limit of a sandbox, and the most that may be asked for (512m)"),
            ("--cpus", "NUMBER", "CPUs of a sandbox, and the most that may be asked for (1)"),
            ("--network", "", "Sandboxes may be asked for that reach the internet"),
            ("--max-sandboxes", "NUMBER", "At a time, of a session (10)"),
            ("--timeout", "SECONDS", "The longest a command may take (600)"),
            ("--idle", "SECONDS", "A sandbox without requests ends after so long (1800); 0: never"),
            ("--output", "CHARACTERS", "How much of each stream of a command an answer holds (30000)"),
            ("--keep", "", "Sandboxes stay when their session ends, for the next"),
        ),
        "run": mcp,
    }
}
