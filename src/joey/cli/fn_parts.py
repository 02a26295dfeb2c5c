"""`joey fn`: versions, aliases, triggers, scaling and tasks of a function."""

import time

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import ago, clip, say, say_json, span, table, write
from joey.cli.values import decimal, whole
from joey.client import jsontext
from joey.client.transport import query, quote


def path_of(name):
    """Of a function in the API."""
    return f"/v1/functions/{quote(name)}"


def publish(values, words):
    """Its number."""
    body = {"description": values["description"]} if "description" in values else {}
    with engine() as connection:
        made = connection.call("POST", f"{path_of(words[0])}/versions", body)
    say_json(made) if values.get("json") else say(made["version"])


def versions(values, words):
    """The oldest first."""
    with engine() as connection:
        found = connection.call("GET", f"{path_of(words[0])}/versions")
    if values.get("json"):
        say_json(found)
        return
    now = time.time()
    rows = [(one["version"], ago(one["created"], now), one["code_sha256"][:12], one["description"]) for one in found]
    say(table(("VERSION", "CREATED", "CODE", "DESCRIPTION"), rows))


# ---- scaling


def scale(values, words):
    """Change what is given, and say how it is. Of a version or an alias: how many are provisioned."""
    name, _, qualifier = words[0].partition(":")
    if qualifier:
        return _scale_qualified(values, name, qualifier)
    body = {}
    if "provisioned" in values:
        body["provisioned"] = whole(values["provisioned"], "--provisioned", 0)
    for option in ("reserved", "max_instances"):
        if option in values:
            body[option] = _or_none(values[option], option, "none", lambda text, name: whole(text, name, 0))
    if "keep_alive" in values:
        body["keep_alive"] = _or_none(values["keep_alive"], "keep_alive", "auto", decimal)
    with engine() as connection:
        if body:
            connection.call("PUT", f"{path_of(words[0])}/scaling", body)
        found = connection.call("GET", path_of(words[0]))
    spec = found["spec"]
    now = {name: spec.get(name) for name in ("provisioned", "reserved", "max_instances", "keep_alive", "concurrency")}
    if values.get("json"):
        say_json(now)
        return
    words = {"reserved": "none", "max_instances": "none", "keep_alive": "auto"}
    say(table(("SETTING", "VALUE"), [(name, words.get(name) if at is None else at) for name, at in now.items()]))


def _scale_qualified(values, name, qualifier):
    if others := [option for option in ("reserved", "max_instances", "keep_alive") if option in values]:
        option = "--" + others[0].replace("_", "-")
        raise UsageError(f"{option} is the whole function's", f"joey fn scale {name} {option} …")
    with engine() as connection:
        if "provisioned" in values:
            body = {"instances": whole(values["provisioned"], "--provisioned", 0)}
            found = connection.call("PUT", f"{path_of(name)}/provisioned/{quote(qualifier)}", body)
        else:
            found = connection.call("GET", path_of(name))
    now = {"provisioned": found["provisioned"].get(qualifier, 0)}
    say_json(now) if values.get("json") else say(table(("SETTING", "VALUE"), list(now.items())))


def _or_none(text, option, word, number):
    return None if text == word else number(text, "--" + option.replace("_", "-"))


# ---- aliases


def alias(values, words):
    """Of a function: list; of a function and an alias: show; with a version too: set."""
    name, *rest = words
    path = f"{path_of(name)}/aliases"
    if "weight" in values and (values.get("remove") or len(rest) != 2):
        raise UsageError("--weight goes with a version", f"joey fn alias {name} ALIAS VERSION --weight 2=0.1")
    with engine() as connection:
        if values.get("remove"):
            _need(rest, "alias", f"joey fn alias --remove {name} ALIAS")
            connection.call("DELETE", f"{path}/{quote(rest[0])}")
            say(rest[0])
        elif len(rest) == 2:
            body = {"version": rest[1], "weights": _weights(values)}
            made = connection.call("PUT", f"{path}/{quote(rest[0])}", body)
            say_json(made) if values.get("json") else say(f"{name}:{rest[0]}")
        elif rest:
            say_json(connection.call("GET", f"{path}/{quote(rest[0])}"))
        else:
            found = connection.call("GET", path)
            if values.get("json"):
                say_json(found)
                return
            rows = [(one["name"], one["version"], _shares(one["weights"]), one["description"] or "-") for one in found]
            say(table(("ALIAS", "VERSION", "OTHERS", "DESCRIPTION"), rows))


def _weights(values):
    found = {}
    for entry in values.get("weight", ()):
        version, equals, share = entry.partition("=")
        if not equals:
            raise UsageError(f"--weight {entry}: give VERSION=SHARE", "--weight 2=0.1")
        found[version] = decimal(share, f"--weight {version}")
    return found


def _shares(weights):
    return ", ".join(f"{version}: {share:g}" for version, share in weights.items()) or "-"


def _need(rest, what, remedy):
    if len(rest) != 1:
        raise UsageError(f"name one {what}", remedy)


# ---- triggers


def trigger(values, words):
    """Of a function: list; of a function and a trigger: show, or with --schedule or --url set."""
    name, *rest = words
    path = f"{path_of(name)}/triggers"
    body = _trigger(values)
    with engine() as connection:
        if values.get("remove"):
            _need(rest, "trigger", f"joey fn trigger --remove {name} TRIGGER")
            connection.call("DELETE", f"{path}/{quote(rest[0])}")
            say(rest[0])
        elif body:
            _need(rest, "trigger", f"joey fn trigger {name} TRIGGER --schedule 'rate(5 minutes)'")
            made = connection.call("PUT", f"{path}/{quote(rest[0])}", body)
            say_json(made) if values.get("json") else say(made["path"] or rest[0])
        elif rest:
            say_json(connection.call("GET", f"{path}/{quote(rest[0])}"))
        else:
            found = connection.call("GET", path)
            if values.get("json"):
                say_json(found)
                return
            say(table(("TRIGGER", "KIND", "WHEN OR WHERE", "QUALIFIER", "STATE", "NEXT"), [_row(one) for one in found]))


def _row(view):
    one, at = view["trigger"], view.get("next")
    due = f"in {span(at - time.time())}".lower() if at else "-"
    state = "on" if one["enabled"] else "off"
    return one["name"], one["kind"], one["schedule"] or view["path"], one["qualifier"] or "-", state, due


def _trigger(values):
    if "schedule" in values and values.get("url"):
        raise UsageError("--schedule and --url are two triggers", "one of them")
    if "schedule" in values:
        body = {"kind": "timer", "schedule": values["schedule"]}
        for option in ("auth", "method"):
            if option in values:
                raise UsageError(f"--{option} goes with --url")
        if "payload" in values:
            body["payload"] = values["payload"]
    elif values.get("url"):
        body = {"kind": "url"}
        if "payload" in values:
            raise UsageError("--payload goes with --schedule: what calls a URL sends its own")
        if "auth" in values:
            if values["auth"] not in ("key", "none"):
                raise UsageError(f"--auth: {values['auth']!r} is neither key nor none")
            body["auth"] = values["auth"]
        if "method" in values:
            body["methods"] = [method.upper() for method in values["method"]]
    else:
        for option in ("payload", "auth", "method", "off", "qualifier"):
            if option in values:
                raise UsageError(f"--{option} goes with --schedule or --url")
        return None
    if "qualifier" in values:
        body["qualifier"] = values["qualifier"]
    if values.get("off"):
        body["enabled"] = False
    return body


# ---- tasks


def tasks(values, words):
    """Of a function: the newest first; --stop ID…"""
    if values.get("stop") and ("state" in values or "tail" in values):
        raise UsageError("--stop takes ids, and neither --state nor --tail", "joey fn tasks --stop TASK")
    with engine() as connection:
        if values.get("stop"):
            for id in words:
                connection.call("POST", f"/v1/tasks/{quote(id)}/stop")
                say(id)
            return
        if len(words) != 1:
            raise UsageError("name one function", "joey fn tasks NAME")
        asked = {"state": values.get("state"), "limit": _limit(values)}
        found = connection.call("GET", f"{path_of(words[0])}/tasks{query(asked)}")
    if values.get("json"):
        say_json(found)
        return
    now = time.time()
    rows = [(one["id"], one["state"], one["attempts"], ago(one["created"], now), clip(one["error"] or "-", 60))
            for one in found]  # fmt: skip
    say(table(("TASK", "STATE", "ATTEMPTS", "CREATED", "ERROR"), rows))


def _limit(values):
    return whole(values["tail"], "--tail", 1) if "tail" in values else None


def task(values, words):
    """Everything about tasks."""
    with engine() as connection:
        say_json([connection.call("GET", f"/v1/tasks/{quote(id)}") for id in words])


def instances(values, words):
    """Those that run."""
    with engine() as connection:
        found = connection.call("GET", f"{path_of(words[0])}/instances")
    if values.get("json"):
        say_json(found)
        return
    from joey.model.units import format_size

    now = time.time()
    rows = [(one["id"][:12], one["version"], one["state"], ago(one["started"], now), one["running"], one["served"],
             span(now - one["idle"]) if one["idle"] else "-", format_size(one["memory"]) if one["memory"] else "-")
            for one in found]  # fmt: skip
    say(table(("INSTANCE", "VERSION", "STATE", "STARTED", "RUNNING", "SERVED", "IDLE FOR", "MEMORY"), rows))


# ---- layers, queues


def layer(values, words):
    """Without a name: list; with code too: make or change one."""
    with engine() as connection:
        if values.get("remove"):
            _need(words, "layer", "joey fn layer --remove NAME")
            connection.call("DELETE", f"/v1/layers/{quote(words[0])}")
            say(words[0])
        elif len(words) == 2:
            from joey.cli.fn_deploy import packed

            archive = packed(words[1], None)
            response = connection.upload("PUT", f"/v1/layers/{quote(words[0])}", [archive], "application/zip")
            made = response.json()
            say_json(made) if values.get("json") else say(made["name"])
        elif words:
            raise UsageError("what is to be in it is missing", f"joey fn layer {words[0]} DIRECTORY")
        else:
            found = connection.call("GET", "/v1/layers")
            if values.get("json"):
                say_json(found)
                return
            from joey.model.units import format_size

            now = time.time()
            rows = [(one["name"], one["digest"][7:19], format_size(one["size"]), ago(one["created"], now))
                    for one in found]  # fmt: skip
            say(table(("LAYER", "DIGEST", "SIZE", "CREATED"), rows))


def queue(values, words):
    """Its records, a line of JSON each, with --json an array; --remove takes them out."""
    import base64

    path, after, records = f"/v1/queues/{quote(words[0])}", 0, []
    with engine() as connection:
        while found := connection.call("GET", path + query({"after": after or None, "limit": 1000})):
            for one in found:
                record = base64.b64decode(one["body"])
                records.append(jsontext.loads(record)) if values.get("json") else write(1, record + b"\n")
            after = found[-1]["id"]
        if values.get("json"):
            say_json(records)
        if after and values.get("remove"):
            connection.call("DELETE", path + query({"upto": after}))
