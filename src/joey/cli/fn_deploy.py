"""`joey fn deploy`: from a folder, a file or an image to a function that answers."""

import os
import sys

from joey.cli.connect import engine
from joey.cli.network_options import POLICY, network
from joey.cli.options import UsageError, key
from joey.cli.output import complain, is_terminal, say, say_json, write
from joey.cli.values import decimal, environment, labels, size, whole
from joey.client.transport import Problem, query, quote

KINDS = ("event", "wsgi", "asgi", "http", "runtime-api")
_USUAL = ("app", "main", "index", "handler", "lambda_function", "function")
_HANDLERS = {"lambda_function": "lambda_handler"}
_WORDS = ("handler", "kind", "image", "python", "initializer", "pre_stop", "description")
_LISTS = (("command", "command"), ("layer", "layers"), ("module", "modules"))
_APPLICATIONS = {"wsgi": "app", "asgi": "app"}

OPTIONS = (
    "deploy: the code",
    ("--handler", "MODULE.FUNCTION", "What is called (app.handler, or of main, index, … if there is such a file)"),
    ("--kind", "KIND", f"What the code is: {', '.join(KINDS)} (event)"),
    ("--image", "IMAGE", "What it runs in (the engine's default)"),
    ("--python", "PROGRAM", "The image's interpreter (python3)"),
    ("--command", "WORD…", "http, runtime-api: program and arguments, one a --command"),
    ("--port", "NUMBER", "http: where it listens, as it is told in $PORT (8080)"),
    ("-r --requirements", "FILE", "Packages to install into it; a requirements.txt in the code counts too"),
    ("--layer", "NAME…", "Layers (joey fn layer), one over the other at /opt"),
    ("--module", "NAME…", "Imported once for all instances, before there is a request"),
    ("--initializer", "MODULE.FUNCTION", "Called once in an instance before its first invocation"),
    ("--pre-stop", "MODULE.FUNCTION", "Called before an instance's end"),
    ("--no-template", "", "Start each instance anew instead of forking a warm one"),
    "deploy: an instance",
    ("-e --env", "NAME[=VALUE]…", "Set an environment variable"),
    ("--env-file", "FILE…", "Set those of a file"),
    ("--secret", "NAME[=VALUE]…", "The same, and it is shown to nobody"),
    ("-m --memory", "SIZE", "Memory limit (128m)"),
    ("--cpus", "NUMBER", "CPUs it may use (1)"),
    ("--disk", "SIZE", "What it may write"),
    ("--timeout", "SECONDS", "An invocation that takes longer is ended, with its instance (3)"),
    ("--concurrency", "NUMBER", "Invocations an instance takes at a time (1)"),
    ("--network --net", "MODE", "none (the default), nat, or a network of joey network"),
    *POLICY,
    ("--description", "TEXT", "Whatever you like"),
    ("-l --label", "NAME[=VALUE]…", "Tag it"),
    ("--publish", "", "Also keep it as a version that never changes"),
    "deploy: of asynchronous invocations",
    ("--retries", "NUMBER", "Attempts after the first (2)"),
    ("--on-success", "function:NAME", "Who is told of the result"),
    ("--on-failure", "function:NAME", "Who is told of what has failed for good"),
)  # fmt: skip
NAMES = {key(option[0]) for option in OPTIONS if not isinstance(option, str)} | {"rules"}
"""Keys of those options in the values."""


def deploy(values, words):
    """Make a function or change one; on a terminal with a line a step."""
    name, *rest = words
    code = rest[0] if rest else None
    body = settings(values)
    steps = _Steps(name)
    archive = None if code is None else packed(code, values.get("requirements"))
    if code is None and "requirements" in values:
        raise UsageError("-r goes with code", f"joey fn deploy {name} DIRECTORY -r {values['requirements']}")
    with engine() as connection:
        steps.step("looking")
        there = _there(connection, name)
        if code is not None:
            body = _handled(body, code, there and there["spec"])
        _check(there, body, code)
        found = _put(connection, f"/v1/functions/{quote(name)}", there, body, archive, steps)
        version = ""
        if values.get("publish"):
            steps.step("publishing a version")
            found = connection.call("POST", f"/v1/functions/{quote(name)}/versions", {})
            version = f":{found['version']}"
    steps.done()
    say_json(found) if values.get("json") else say(name + version)


def _put(connection, path, there, body, packed, steps):
    """Small code goes along with the settings, both or none. Larger code follows them where the function is new, else
    it goes first: a new handler may be in the new code.
    """
    from joey.client.package import inline, requires

    along = inline(packed) if packed else {}
    verb = "PUT" if there is None else "PATCH"
    installing = ", and installing what it requires" if packed and requires(packed) else ""
    steps.step(f"sending {_amount(len(packed or b''))} of code{installing}" if packed else "changing its settings")
    if along or packed is None:
        return connection.call(verb, path, {**body, **along})
    if there is None:
        connection.call("PUT", path, body)
    try:
        asked = query({"requirements": bool(installing)})
        found = connection.upload("PUT", f"{path}/code{asked}", [packed], "application/zip").json()
    except BaseException:
        if there is None:  # what could not be deployed does not stay as half a function
            _forget(path)
        raise
    return connection.call("PATCH", path, body) if there is not None and body else found


def settings(values):
    """The FunctionSpec that options describe: only fields that were given. Raises UsageError."""
    body = {name: values[name] for name in _WORDS if name in values}
    body |= {field: values[option] for option, field in _LISTS if option in values}
    if values.get("kind", "event") not in KINDS:
        raise UsageError(f"--kind: {values['kind']!r} is none of {', '.join(KINDS)}")
    for names, number in (
        (("memory", "disk"), size),
        (("cpus", "timeout"), decimal),
        (("port", "concurrency"), _count),
    ):
        body |= {name: number(values[name], f"--{name}") for name in names if name in values}
    if "env" in values or "env_file" in values:
        body["env"] = environment(values.get("env", ()), values.get("env_file", ()))
    if "secret" in values:
        body["secrets"] = environment(values["secret"], ())
    if "label" in values:
        body["tags"] = labels(values["label"], ())
    if values.get("no_template"):
        body["template"] = False
    wanted = network({name: value for name, value in values.items() if name != "publish"})  # of joey run, it is ports
    if wanted is not None:
        body["network"] = wanted
    told = {field: values[field] for field in ("on_success", "on_failure") if field in values}
    if "retries" in values:
        told["max_retries"] = whole(values["retries"], "--retries", 0)
    return {**body, "async": told} if told else body


def _count(text, option):
    return whole(text, option, 1)


def _handled(body, code, before=None):
    """With a handler, as the code suggests it, where one is needed and none was named. before: the spec of a function
    that is there; its handler stays if the new code has it, too.
    """
    kind = body.get("kind") or (before["kind"] if before else "event")
    if "handler" in body or kind not in ("event", "wsgi", "asgi"):
        return body
    has = _modules(code)
    if before and before["kind"] == kind and has(before["handler"].rpartition(".")[0]):
        return body
    named = [os.path.splitext(os.path.basename(code))[0]] if code.endswith(".py") else _USUAL
    for module in named:
        if has(module):
            called = _APPLICATIONS.get(kind) or _HANDLERS.get(module, "handler")
            return {**body, "handler": f"{module}.{called}"}
    return body


def _modules(code):
    """Tells whether a module's name is that of one in the code."""
    if code == "-" or code.endswith(".py"):
        only = "app" if code == "-" else os.path.splitext(os.path.basename(code))[0]
        return lambda module: module == only
    names = _names(code) if code.endswith(".zip") else None

    def has(module):
        path = module.replace(".", "/")
        files = (f"{path}.py", f"{path}/__init__.py")
        return any(file in names if names is not None else os.path.isfile(os.path.join(code, file)) for file in files)

    return has


def _names(code):
    """Of the files in a zip; of none, where it is none: `packed` says so."""
    import zipfile

    try:
        with zipfile.ZipFile(code) as archive:
            return set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()


def _check(there, body, code):
    """What the engine would refuse, too, but after the code was sent."""
    if there is None and code is None and body.get("kind", "event") in ("event", "wsgi", "asgi"):
        raise UsageError("there is no such function yet: name its code", "joey fn deploy NAME DIRECTORY")
    if there is None and not body.get("handler") and body.get("kind", "event") in ("event", "wsgi", "asgi"):
        raise UsageError("what is to be called is not clear", "--handler MODULE.FUNCTION")


def packed(code, requirements):
    """The zip archive of what is named; `-` is Python on standard input. Raises UsageError."""
    from joey.client.package import pack, requires

    text = None
    try:
        if requirements is not None:
            with open(requirements, encoding="utf-8-sig") as file:
                text = file.read()
        data = pack({"app.py": sys.stdin.buffer.read()} if code == "-" else code, text)
        requires(data)
        return data
    except OSError as error:
        raise UsageError(f"{error.filename or code}: {error.strerror}", "a directory, a .zip, a file, or -") from None
    except ValueError as error:
        raise UsageError(str(error), "joey fn --help") from None


def _there(connection, name):
    try:
        return connection.call("GET", f"/v1/functions/{quote(name)}")
    except Problem as problem:
        if problem.status != 404:
            raise
    return None


def _forget(path):
    """By a connection of its own: the other may be in the middle of something."""
    try:
        with engine() as connection:
            connection.call("DELETE", path)
    except (Problem, OSError) as error:
        complain(f"what was begun could not be removed: {error}", "joey fn rm NAME")


def _amount(count):
    return f"{count} bytes" if count < 10_000 else f"{count >> 10} KiB" if count < 10 << 20 else f"{count >> 20} MiB"


class _Steps:
    """What is being done, on stderr, if that is a terminal."""

    def __init__(self, name):
        self._name, self._live = name, is_terminal(2) and os.environ.get("TERM", "") != "dumb"

    def step(self, text):
        if self._live:
            write(2, f"\r\x1b[K{self._name}: {text} …".encode())

    def done(self):
        if self._live:
            write(2, b"\r\x1b[K")
