"""Which image and interpreter stand behind the names that other systems have for their runtimes."""

from __future__ import annotations

import re
import shutil

from joey.model.errors import Invalid

_PYTHON = re.compile(r"python3(?:\.(\d{1,2}))?")
_OLDEST = 8


def python_of(runtime: str) -> tuple[str, str] | None:
    """(image, interpreter) of pythonX.Y: this machine's own where it has that version, else the official image.

    "python3" is whatever Python this machine has. None if it is no Python. Raises Invalid for one too old.
    """
    match = _PYTHON.fullmatch(runtime)
    if match is None:
        return None
    if match[1] is None:
        return "", "python3"
    if int(match[1]) < _OLDEST:
        raise Invalid("Runtime", f"{runtime} is older than what Joey's runtime works with", "python3.8 or later")
    if shutil.which(runtime, path="/usr/local/bin:/usr/bin:/bin"):
        return "", runtime
    return f"docker.io/library/python:3.{match[1]}-slim", "python3"
