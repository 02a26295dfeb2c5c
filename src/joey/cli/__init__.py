"""The command `joey`: a thin client of the engine's HTTP API. One module a verb or noun, imported when it is called.

`main` returns the exit code. What `joey run` imports is held small by tests/unit/test_cli_imports.py: no argparse,
json, re, enum, socket, subprocess, asyncio or typing.
"""

import sys

# verb -> (module, summary). The order is that of `joey --help`.
VERBS = {
    "run": ("run", "Run a program in a new sandbox"),
    "exec": ("exec", "Run a program in a running sandbox"),
    "ps": ("ps", "List sandboxes"),
    "logs": ("logs", "Show what a sandbox has printed"),
    "attach": ("exec", "Follow a running sandbox, and type into it"),
    "cp": ("cp", "Copy files between the host and a running sandbox"),
    "stop": ("change", "Stop sandboxes: signal, wait, kill"),
    "start": ("change", "Start stopped sandboxes again"),
    "kill": ("change", "Send sandboxes a signal"),
    "pause": ("change", "Freeze sandboxes"),
    "unpause": ("change", "Let frozen sandboxes go on"),
    "wait": ("change", "Wait for sandboxes to end and print their exit codes"),
    "update": ("update", "Change limits, network policy, labels and timeouts of sandboxes while they run"),
    "rename": ("change", "Give a sandbox another name"),
    "rm": ("change", "Remove sandboxes"),
    "inspect": ("inspect", "Show everything about sandboxes, as JSON"),
    "top": ("processes", "Show what runs in a sandbox"),
    "stats": ("stats", "Show what sandboxes use"),
    "events": ("events", "Follow what happens to sandboxes"),
    "diff": ("commit", "Show which files a sandbox has changed"),
    "export": ("commit", "Write a sandbox's file system as a tar archive"),
    "fork": ("commit", "Start new sandboxes on the files of another"),
    "pool": ("pool", "Sandboxes kept warm: create, ls, inspect, rm"),
    "template": ("template", "Warm processes to fork sandboxes from: create, ls, inspect, rm"),
    "fn": ("fn", "Functions: code that runs when it is called: deploy, invoke, ls, logs, scale, …"),
    "explain": ("explain", "Print what joey run would do, a line an operation"),
    "build": ("build", "Build an image from a Dockerfile"),
    "pull": ("pull", "Fetch images from registries"),
    "push": ("pull", "Send an image to a registry"),
    "login": ("login", "Keep a name and a password for a registry"),
    "logout": ("login", "Forget the name and password for a registry"),
    "image": ("image", "The images that are here: ls, inspect, rm, prune, …"),
    "commit": ("commit", "Make an image of a sandbox's files and settings"),
    "snapshot": ("commit", "Keep a sandbox's files as an image, in milliseconds"),
    "snapshots": ("commit", "List snapshots, or remove them"),
    "network": ("network", "Private networks, shared by several sandboxes"),
    "port": ("network", "Show where ports of a sandbox are published"),
    "url": ("url", "Print the URL by which a port of a sandbox is reached"),
    "volume": ("volume", "Directories that outlive sandboxes: create, ls, inspect, rm, prune"),
    "daemon": ("daemon", "Run the engine in the foreground"),
    "keys": ("keys", "API keys, for clients that come by TCP"),
    "env": ("env", "Print what other systems' clients need to use Joey: e2b, docker"),
    "mcp": ("mcp", "Tools for agents (Model Context Protocol): sandboxes, commands, code, files"),
    "backup": ("backup", "Copy the engine's state to a file, while it goes on"),
    "system": ("system", "The instance as a whole: info, df, reset"),
    "doctor": ("doctor", "Say what this host can do, what it lacks, and how to get it"),
    "version": ("system", "Print the version"),
    "bench": ("bench", "Measure launches, density and latency on this machine"),
    "completion": ("completion", "Print completions for a shell"),
}
# other spellings that fingers know from Docker -> the verb of `joey image`
SHORT = {"images": "ls", "rmi": "rm"} | {verb: verb for verb in ("load", "save", "import", "tag", "history")}
# title of a group in `joey --help` -> its first verb; it goes on to the next group's
GROUPS = {
    "Sandboxes": "run",
    "Images": "build",
    "Networks and volumes": "network",
    "Service": "daemon",
    "Development": "bench",
}


def load(verb):
    """The command of a verb: a dict as joey.cli.options describes, with its `name`."""
    module = "joey.cli." + VERBS[verb][0]
    __import__(module)
    command = sys.modules[module].COMMANDS[verb]
    command["name"] = verb
    return command


def console():
    """The program `joey`. Ends the process without Python's own tear-down, which frees what the kernel frees anyway
    (1.5 ms).
    """
    code = main()
    if "threading" in sys.modules:  # somebody may have left a thread, or work for the end
        sys.exit(code)
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv=None):
    """Run one command; its exit code. `argv` without the program's name, sys.argv's by default."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        from joey.cli.top import overview

        return overview(words)
    verb, *words = words
    if verb in ("-v", "--version"):
        verb = "version"
    if verb in SHORT:
        verb, words = "image", [SHORT[verb], *words]
    if verb not in VERBS:
        from joey.cli.top import unknown

        return unknown(verb)
    command = load(verb)
    failure = command.get("failure", 1)
    try:
        return _run(command, words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # as a shell reports SIGPIPE
    except Exception as error:
        from joey.cli.top import explain

        return explain(error, command, failure)


def _run(command, words):
    if command.get("raw"):
        return command["run"](words)
    from joey.cli.options import help_text, parse

    values, arguments = parse(command, words)
    if values.get("help"):
        from joey.cli.output import write

        write(1, help_text(command).encode())
        return 0
    return command["run"](values, arguments) or 0
