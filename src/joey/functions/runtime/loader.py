"""From "module.function" to the function; errors as AWS Lambda names them."""

import os
import sys
from importlib import import_module

_TRACE = 64 << 10
"""Characters of a message or a stack trace that go out."""


class Failed(Exception):
    """An error of the runtime's own kind, with the name that clients know it by."""

    def __init__(self, type, message, cause=None):
        super().__init__(message)
        self.type, self.message, self.cause = type, message, cause


def paths(code, layers):
    """Where modules are looked for: the code before its layers, both before Python's own packages."""
    version = "python{}.{}".format(*sys.version_info)
    folders = [code or os.getcwd()]
    if layers:
        folders += [layers + "/python/lib/" + version + "/site-packages", layers + "/python", layers]
    sys.path[:0] = [path for path in folders if path and path not in sys.path and os.path.isdir(path)]


def load(name, what="handler"):
    """The object "module.function" or "folder/module.function" names. Raises Failed."""
    module, dot, attribute = name.rpartition(".")
    if not dot or not module or not attribute:
        raise Failed("Runtime.MalformedHandlerName", f"Bad {what} {name!r}: it is not module.function")
    module = module.replace("/", ".")
    try:
        loaded = import_module(module)
    except ImportError as error:
        raise Failed("Runtime.ImportModuleError", f"Unable to import module {module!r}: {error}", error) from error
    except SyntaxError as error:
        raise Failed("Runtime.UserCodeSyntaxError", f"Syntax error in module {module!r}: {error}", error) from error
    try:
        found = getattr(loaded, attribute)
    except AttributeError:
        raise Failed("Runtime.HandlerNotFound", f"Handler {attribute!r} missing on module {module!r}") from None
    if not callable(found):
        raise Failed("Runtime.HandlerNotFound", f"Handler {attribute!r} of module {module!r} cannot be called")
    return found


def hook(name, what, context):
    """Call an initializer or a pre-stop hook: with the context if it takes an argument."""
    function = load(name, what)
    return function(context) if takes(function) else function()


def takes(function):
    """Whether a function takes an argument. Without `inspect`, which costs more than all of a start by a fork."""
    bound = hasattr(function, "__self__")
    code = getattr(function, "__code__", None)
    if code is None:
        bound, code = True, getattr(type(function).__call__, "__code__", None)
    return code is None or code.co_argcount > bound or bool(code.co_flags & 4)  # CO_VARARGS; None: in C


def asynchronous(function):
    """Whether a call gives a coroutine or an asynchronous generator."""
    for one in (function, getattr(type(function), "__call__", None)):  # noqa: B004
        while hasattr(one, "func"):  # functools.partial
            one = one.func
        code = getattr(one, "__code__", None)
        if code is not None and code.co_flags & 0x280:  # CO_COROUTINE, CO_ASYNC_GENERATOR
            return True
    return False


def failure(error, request_id=""):
    """{"errorType", "errorMessage", "stackTrace", "requestId"} of an exception; its trace begins in the function."""
    import traceback

    if isinstance(error, Failed):
        kind, message, error = error.type, error.message, error.cause
    else:
        kind = type(error).__name__
        try:
            message = str(error)
        except Exception as second:
            message = f"<str() of it failed: {type(second).__name__}>"
    trace, size = [], 0
    if error is not None:
        ours = os.path.dirname(os.path.abspath(__file__))
        frames = [one for one in traceback.extract_tb(error.__traceback__) if _foreign(one.filename, ours)]
        for line in traceback.format_list(frames):
            size += len(line)
            if size > _TRACE:
                break
            trace.append(line)
    return {"errorType": kind, "errorMessage": message[:_TRACE], "stackTrace": trace, "requestId": request_id}


def _foreign(filename, ours):
    return not filename.startswith("<frozen importlib") and os.path.dirname(os.path.abspath(filename)) != ours


def tell(failure):
    """Print it, as AWS Lambda does, for whoever reads the log."""
    lines = ["[ERROR] {errorType}: {errorMessage}\n".format(**failure)]
    if failure["stackTrace"]:
        lines.append("Traceback (most recent call last):\n")
        lines += failure["stackTrace"]
    try:
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    except (OSError, ValueError):
        pass
