"""What runs inside for `@joey.function`: shipped beside the pickled function, so it imports only what every Python 3.8
has. An event is {"call": base64 of a pickle of (arguments, named arguments), "trust": bool}; the answer {"value": …} or
{"pickle": base64}.
"""

import base64
import inspect
import json
import os
import pickle
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def load():
    with open(os.path.join(HERE, "joey_function.json")) as file:
        about = json.load(file)
    if about["python"] != list(sys.version_info[:2]):
        raise RuntimeError(
            "functions are sent between equal versions of Python only: there {}, here {}.{}".format(
                ".".join(map(str, about["python"])), *sys.version_info[:2]
            )
        )
    with open(os.path.join(HERE, "joey_function.pickle"), "rb") as file:
        return pickle.load(file)


def plain(value):
    """Whether JSON gives the same value back (a tuple as a list)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return isinstance(value, dict) and all(isinstance(key, str) and plain(item) for key, item in value.items())


def arguments(event):
    return pickle.loads(base64.b64decode(event["call"]))


def answer(event, value):
    if event.get("trust"):
        return {"pickle": base64.b64encode(pickle.dumps(value, 4)).decode()}
    if not plain(value):
        what = f"a {type(value).__name__} that is not plain data"
        remedy = "convert it, or say trust=True if you trust what runs inside"
        kinds = "None, bool, int, float, str, lists and dicts of these"
        raise TypeError(f"the function returned {what} ({kinds}); {remedy}")
    return {"value": value}


FUNCTION = load()

if inspect.iscoroutinefunction(FUNCTION):

    async def handler(event, context):
        args, named = arguments(event)
        return answer(event, await FUNCTION(*args, **named))

else:

    def handler(event, context):
        args, named = arguments(event)
        return answer(event, FUNCTION(*args, **named))
