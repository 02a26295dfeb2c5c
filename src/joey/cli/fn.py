"""`joey fn`: functions. One function a verb."""

import sys
import time

from joey.cli import fn_deploy
from joey.cli import fn_parts as parts
from joey.cli.connect import engine
from joey.cli.fn_parts import path_of
from joey.cli.options import UsageError
from joey.cli.output import ago, complain, is_terminal, say, say_json, table, write
from joey.cli.verbs import dispatch, remove, summaries
from joey.client import jsontext
from joey.client.transport import Lost, query, quote


def ls(values, words):
    """A table of functions."""
    with engine() as connection:
        found = connection.call("GET", "/v1/functions")
    if values.get("json"):
        say_json(found)
    elif values.get("quiet"):
        for one in found:
            say(one["name"])
    else:
        from joey.model.units import format_size

        now, rows = time.time(), []
        for one in found:
            spec = one["spec"]
            what = spec["handler"] or " ".join(spec["command"]) or spec["image"] or "-"
            rows.append((one["name"], spec["kind"], what, format_size(spec["memory"]), f"{spec['timeout']:g} s",
                         one["figures"]["instances"], ago(one["modified"], now), one["owner"] or "-"))  # fmt: skip
        say(table(("NAME", "KIND", "HANDLER", "MEMORY", "TIMEOUT", "INSTANCES", "CHANGED", "KEY"), rows))


def inspect(values, words):
    """A JSON array."""
    with engine() as connection:
        found = []
        for word in words:
            name, _, version = word.partition(":")
            if version:
                versions = connection.call("GET", f"{path_of(name)}/versions")
                found += [one for one in versions if one["version"] == version] or [_no_version(name, version)]
            else:
                found.append(connection.call("GET", path_of(name)))
    say_json(found)


def _no_version(name, version):
    raise UsageError(f"{name} has no version {version!r}", f"joey fn versions {name}")


def rm(values, words):
    """Functions, or single versions as NAME:VERSION."""
    return remove(words, _path_of_version, values.get("force"))


def _path_of_version(word):
    name, _, version = word.partition(":")
    return path_of(name) + (f"/versions/{quote(version)}" if version else "")


def invoke(values, words):
    """The result to standard output; a failure to standard error, and 1."""
    name, _, qualifier = words[0].partition(":")
    data = _event(words[1] if len(words) > 1 else None)
    later, document = values.get("async", False), values.get("json", False)
    if later and (values.get("logs") or document):
        raise UsageError(
            "--async does not wait for what --logs and --json show", "joey fn task TASK, joey fn logs NAME"
        )
    asked = {"qualifier": qualifier or None, "mode": "async" if later else None, "stream": not (later or document)}
    if values.get("logs"):
        asked["logs"] = "tail"
    with engine() as connection:
        response = connection.upload("POST", f"{path_of(name)}/invoke{query(asked)}", [data], "application/json")
        if later:
            say(response.headers["joey-request-id"])
            return 0
        error = response.headers.get("joey-function-error", "")
        if values.get("logs"):
            import base64

            write(2, base64.b64decode(response.headers.get("joey-log-tail", "")))
        if document:
            say_json(_answer(response, error))
            return 1 if error else 0
        if error:
            return _failed(words[0], error, response.body())
        last = b""
        try:
            for piece in response.stream():  # as it comes: a function may stream
                write(1, piece)
                last = piece[-1:] or last
        except Lost:
            complain(f"{words[0]} has failed in the middle of its answer", f"joey fn logs {name}")
            return 1
        if is_terminal(1) and last != b"\n":
            write(1, b"\n")
    return 0


def _answer(response, error):
    """Of --json: how it went, and the result, text where it is no JSON."""
    body = response.body()
    try:
        result = jsontext.loads(body) if body else None
    except ValueError:
        result = body.decode("utf-8", "replace")
    heads = response.headers
    return {
        "request_id": heads.get("joey-request-id"), "version": heads.get("joey-function-version"),
        "seconds": float(heads.get("joey-duration-ms", 0)) / 1000, "cold": "joey-cold-start" in heads,
        "error": error or None, "result": result,
    }  # fmt: skip


def _event(text):
    """The bytes of an event: none, text, of a file (@FILE), or standard input (-)."""
    if text is None:
        return b"" if is_terminal(0) else b"{}"
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        try:
            with open(text[1:], "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"{text[1:]}: {error.strerror}") from None
    return text.encode(errors="surrogateescape")


def _failed(name, error, body):
    try:
        document = jsontext.loads(body)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    trace = document.get("stackTrace") or []
    if isinstance(trace, list):
        write(2, "".join(map(str, trace)).encode(errors="surrogateescape"))
    message = document.get("errorMessage") or body[:2000].decode("utf-8", "replace")
    complain(f"{name}: {document.get('errorType') or error}: {message}")
    return 1


def logs(values, words):
    """What its instances have printed."""
    from joey.cli.logs import moment
    from joey.cli.progress import lines
    from joey.cli.values import whole

    asked = {"follow": values.get("follow", False)}
    if "since" in values:
        asked["since"] = moment(values["since"], "--since", time.time())
    most = whole(values["tail"], "--tail", 0) if values.get("tail", "all") != "all" else None
    if most is not None and asked["follow"]:
        raise UsageError("-f shows what comes, -n what was: they do not go together", "--since 1m with -f")
    with engine() as connection:
        found = lines(connection.request("GET", f"{path_of(words[0])}/logs{query(asked)}"))
        for one in found if most is None else _last(found, most):
            if values.get("json"):
                say(jsontext.dumps(one))
            else:
                write(one["stream"], one["text"].encode(errors="surrogateescape"))
    return 0


def _last(pieces, most):
    """The pieces that hold the last so many lines, the first of them cut."""
    kept, left = [], most
    for one in reversed(list(pieces)):
        if not left:
            break
        parts = one["text"].splitlines(keepends=True)[-left:]
        kept.append({**one, "text": "".join(parts)})
        left -= len(parts)
    return reversed(kept)


_SCALING = ("reserved", "provisioned", "max_instances", "keep_alive", "json")
_TRIGGER = ("schedule", "payload", "url", "auth", "method", "qualifier", "off", "remove", "json")
_CODE = "NAME [DIRECTORY|ZIP|FILE|-]"
VERBS = {
    "deploy": (fn_deploy.deploy, _CODE, "Make a function, or change one", (1, 2), (*fn_deploy.NAMES, "json")),
    "invoke": (
        invoke,
        "NAME[:QUALIFIER] [EVENT|@FILE|-]",
        "Call it, print its result",
        (1, 2),
        ("async", "logs", "json"),
    ),
    "ls": (ls, "", "List functions", (0, 0), ("quiet", "json")),
    "inspect": (inspect, "NAME[:VERSION]…", "Everything about functions, as JSON", (1, None), ("json",)),
    "logs": (logs, "NAME", "What it has printed", (1, 1), ("follow", "tail", "since", "json")),
    "rm": (rm, "NAME[:VERSION]…", "Remove functions, or versions", (1, None), ("force",)),
    "scale": (parts.scale, "NAME[:QUALIFIER]", "Show or change how many instances", (1, 1), _SCALING),
    "instances": (parts.instances, "NAME", "Those that run", (1, 1), ("json",)),
    "publish": (parts.publish, "NAME", "Keep it as a version", (1, 1), ("description", "json")),
    "versions": (parts.versions, "NAME", "List versions", (1, 1), ("json",)),
    "alias": (parts.alias, "NAME [ALIAS [VERSION]]", "Other names of versions", (1, 3), ("weight", "remove", "json")),
    "trigger": (parts.trigger, "NAME [TRIGGER]", "What invokes it by itself", (1, 2), _TRIGGER),
    "layer": (parts.layer, "[NAME CODE]", "List layers, or make one", (0, 2), ("remove", "json")),
    "queue": (parts.queue, "NAME", "What went to the destination queue:NAME", (1, 1), ("remove", "json")),
    "tasks": (parts.tasks, "NAME", "List asynchronous invocations", (1, None), ("state", "tail", "stop", "json")),
    "task": (parts.task, "TASK…", "Everything about some of them, as JSON", (1, None), ("json",)),
}
"""See joey.cli.verbs."""


def fn(values, arguments):
    """One of the verbs."""
    return dispatch("fn", COMMANDS["fn"], VERBS, values, arguments)


_TEXT = summaries(VERBS, 44)
_TEXT += "\n\ndocs/functions.md says what handlers get and give, and how functions scale."

COMMANDS = {
    "fn": {
        "usage": "[OPTIONS] VERB [ARG…]",
        "summary": "Functions: code that runs when it is called",
        "text": _TEXT,
        "arguments": (1, None),
        "options": (
            ("--json", "", "As JSON"),
            ("-q --quiet", "", "ls: only names"),
            ("-f --follow", "", "logs: go on with what comes"),
            ("-n --tail", "NUMBER", "logs: the last so many lines; tasks: at most so many (100)"),
            ("--since", "TIME", "logs: from a time on, such as 10m (ago)"),
            ("--async", "", "invoke: do not wait, print the task's id"),
            ("--logs", "", "invoke: what it prints, to standard error"),
            ("--force", "", "rm: one that is not there is no error"),
            "scale",
            ("--provisioned", "NUMBER", "Instances that are kept ready, of a version or alias too"),
            ("--reserved", "NUMBER|none", "Instances that are its own, and as many as it may have"),
            ("--max-instances", "NUMBER|none", "As many as it may have"),
            ("--keep-alive", "SECONDS|auto", "How long an idle instance stays; auto: as it has learned"),
            "alias, trigger, layer, queue, tasks",
            ("--weight", "VERSION=SHARE…", "alias: so much of its invocations go to another version (0.1: a tenth)"),
            ("--schedule", "WHEN", "trigger: a timer, 'rate(5 minutes)' or 'cron(0 3 * * ? *)'"),
            ("--payload", "JSON", "trigger: the timer's event"),
            ("--url", "", "trigger: a URL of its own"),
            ("--auth", "key|none", "trigger: who may use the URL: keys of its owner (key), or anybody"),
            ("--method", "METHOD…", "trigger: the URL takes these methods of HTTP, and no others"),
            ("--qualifier", "VERSION|ALIAS", "trigger: what of it is invoked"),
            ("--off", "", "trigger: without doing anything for now"),
            ("--remove", "", "alias, trigger, layer: remove it; queue: what was shown"),
            ("--state", "STATE", "tasks: only those, such as failed"),
            ("--stop", "", "tasks: the arguments are ids of tasks, which are not tried (again)"),
            *fn_deploy.OPTIONS,
        ),
        "run": fn,
    }
}
