"""What runs inside a sandbox for joey.map: sent as source, so it imports only what every Python 3 has. To
functions it is sent beside joey.client.shipped, for `returned`.

Lines on standard input: {"load": base64 of a pickle of the function, "lib": source of cloudpickle or ""}, then
{"item": base64 of a pickle, "trust": bool} for each call. Answers, a line each, on what was standard output:
{"ready": [major, minor]}, {"value": …}, {"pickle": base64}, {"error": {type, message, traceback}}. What the function
prints goes to standard error.
"""

import base64
import json
import os
import pickle
import sys
import traceback
import types


def answer(out, document):
    out.write(json.dumps(document).encode() + b"\n")
    out.flush()


def failure(error):
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"error": {"type": type(error).__name__, "message": str(error)[:10000], "traceback": text[-20000:]}}


def plain(value):
    """Whether JSON gives the same value back (a tuple as a list)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return isinstance(value, dict) and all(isinstance(key, str) and plain(item) for key, item in value.items())


def provide(source):
    """The cloudpickle of the sender, where this Python has none."""
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        package, module = types.ModuleType("cloudpickle"), types.ModuleType("cloudpickle.cloudpickle")
        package.__path__ = []
        sys.modules["cloudpickle"], sys.modules["cloudpickle.cloudpickle"] = package, module
        package.cloudpickle = module
        exec(compile(source, "cloudpickle.py", "exec"), module.__dict__)


def returned(value, trust):
    """The answer for a result."""
    if trust:
        return {"pickle": base64.b64encode(pickle.dumps(value)).decode()}
    if not plain(value):
        raise TypeError(
            f"the function returned a {type(value).__name__} that is not plain data (None, bool, int, float, str, "
            "lists and dicts of these); convert it, or say trust=True if you trust what runs inside"
        )
    return {"value": value}


def call(function, line):
    return returned(function(pickle.loads(base64.b64decode(line["item"]))), line["trust"])


def main():
    source = sys.stdin.buffer
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not look like an answer
    answer(out, {"ready": list(sys.version_info[:2])})
    first = json.loads(source.readline())
    try:
        if first["lib"]:
            provide(base64.b64decode(first["lib"]))
        function = pickle.loads(base64.b64decode(first["load"]))
    except Exception as error:
        answer(out, failure(error))
        return
    answer(out, {"value": None})
    for text in source:
        try:
            document = call(function, json.loads(text))
        except (Exception, SystemExit) as error:
            document = failure(error)
        answer(out, document)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
