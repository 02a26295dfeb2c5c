"""What runs inside for `@joey.function`: shipped beside the pickled function and joey.client.inside, so it imports only
what every Python 3.8 has. An event is {"call": base64 of a pickle of (arguments, named arguments), "trust": bool (or
left out)}; the answer {"value": …} or {"pickle": base64}.
"""

import base64
import inspect
import json
import os
import pickle
import sys

from joey_inside import returned

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


def arguments(event):
    return pickle.loads(base64.b64decode(event["call"]))


FUNCTION = load()

if inspect.iscoroutinefunction(FUNCTION):

    async def handler(event, context):
        args, named = arguments(event)
        return returned(await FUNCTION(*args, **named), event.get("trust"))

else:

    def handler(event, context):
        args, named = arguments(event)
        return returned(FUNCTION(*args, **named), event.get("trust"))
