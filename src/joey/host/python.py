"""The Python that Joey runs on, shown in the `host` image as /opt/python where it is not part of /usr anyway.

What is shown is its `lib` directory, as a bind, and a copy of the interpreter; not the whole prefix, which may hold
other things (pip.conf with a password, for one). The copy is needed because an interpreter built with --enable-shared
finds its libpython through an absolute run path below the prefix, which means nothing inside; in the copy that path is
replaced by /opt/python/lib.
"""

from __future__ import annotations

import os
import stat
import sys

from joey.host import elf
from joey.model.value import Value

TARGET = "/opt/python"
_MAX_BINARY = 256 << 20


class HostPython(Value, frozen=True, kw_only=True):
    """An interpreter to show inside.

    prefix   real path on the host (sys.base_prefix)
    version  "3.12"
    libs     names of the directories of the prefix that are bound: lib, or lib and lib64
    binary   the interpreter's bytes, ready to run from /opt/python/bin
    has_pip  whether pip is installed in it
    """

    prefix: str
    version: str
    libs: tuple[str, ...]
    binary: bytes
    has_pip: bool = False


class Unusable(ValueError):
    """This Python cannot be shown inside; the text says why."""


def find(
    prefix: str = sys.base_prefix, version: str = f"{sys.version_info[0]}.{sys.version_info[1]}"
) -> HostPython | None:
    """The Python below `prefix`, or None if it is part of /usr and so inside already.

    Raises Unusable: files that not everybody may read (a sandbox's root is nobody to the host), or a run path that
    cannot be changed.
    """
    prefix = os.path.realpath(prefix)
    if os.path.commonpath([prefix, "/usr"]) == "/usr":
        return None
    program = os.path.realpath(f"{prefix}/bin/python{version}")
    if os.path.commonpath([prefix, program]) != prefix:
        raise Unusable(f"{prefix}/bin/python{version} leads out of {prefix}")
    standard = f"{prefix}/lib/python{version}"
    for path, need in ((program, 0o5), (f"{prefix}/lib", 0o5), (standard, 0o5), (f"{standard}/os.py", 0o4)):
        _check_open_to_all(path, need)
    libs = ("lib", "lib64") if sys.platlibdir == "lib64" and os.path.isdir(f"{prefix}/lib64") else ("lib",)
    with open(program, "rb") as file:
        binary = _moved(file.read(_MAX_BINARY), prefix)
    return HostPython(
        prefix=prefix,
        version=version,
        libs=libs,
        binary=binary,
        has_pip=os.path.isfile(f"{standard}/site-packages/pip/__init__.py"),
    )


def usable() -> tuple[HostPython | None, str]:
    """(the Python to show, why there is none although one would be wanted, else "")."""
    try:
        return find(), ""
    except (Unusable, OSError) as error:
        return None, str(error)


def _check_open_to_all(path: str, need: int) -> None:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    if mode & need != need:
        raise Unusable(f"{path}: mode {mode:04o}, not everybody may read it")


def _moved(binary: bytes, prefix: str) -> bytes:
    """The interpreter with those directories of its run path that are below `prefix` replaced by those below TARGET."""
    try:
        old = elf.run_path(binary)
        new = ":".join(_new_place(part, prefix) for part in old.split(":"))
        return binary if new == old else elf.with_run_path(binary, new)
    except elf.ElfError as error:
        raise Unusable(f"{prefix}: {error}") from error


def _new_place(directory: str, prefix: str) -> str:
    real = os.path.realpath(directory) if directory.startswith("/") else directory
    return TARGET + real[len(prefix) :] if real == prefix or real.startswith(prefix + "/") else directory
