"""Which image and interpreter stand behind the names that other systems have for their runtimes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from joey.model.errors import Invalid, JoeyError
from joey.model.function import FunctionSpec

if TYPE_CHECKING:
    from joey.api.facades.signed_server import SignedCall

_PYTHON = re.compile(r"python3(?:\.(\d{1,2}))?")
_OLDEST = 8
_PATH = "/usr/local/bin:/usr/bin:/bin"
Present = Callable[[str], bool]
"""Whether an image is here."""


def present(call: SignedCall) -> Present:
    """Of the images that the caller may use; nothing is pulled for the question."""

    def ask(name: str) -> bool:
        from joey.api.images import library_of, seen

        try:
            own = library_of(call)
            return own.exists and bool(own.detail(seen(call, name)))
        except JoeyError:
            return False

    return ask


def python_of(runtime: str, here: Present) -> tuple[str, str] | None:
    """(image, interpreter) of pythonX.Y: this machine's own where it has that version, else the image python:X.Y-slim
    where that is here, else this machine's python3, which `stands_in` then tells. None if `runtime` is no Python.

    Raises Invalid for one too old.
    """
    match = _PYTHON.fullmatch(runtime)
    if match is None:
        return None
    if match[1] is not None:
        if int(match[1]) < _OLDEST:
            raise Invalid("Runtime", f"{runtime} is older than what Joey's runtime works with", "python3.8 or later")
        if shutil.which(runtime, path=_PATH):
            return "", runtime
        if here(image := f"docker.io/library/python:3.{match[1]}-slim"):
            return image, "python3"
    return "", "python3"


def stands_in(spec: FunctionSpec) -> str:
    """What is to be told of a function that runs by another Python than it asked for; "" for nothing."""
    if spec.kind != "event" or spec.image or spec.python == spec.runtime or not spec.runtime.startswith("python3."):
        return ""
    version = spec.runtime.removeprefix("python")
    return (
        f"{spec.runtime} is not on this machine, so its python3 stands in: for that version pull the image"
        f" python:{version}-slim and set the runtime again"
    )
