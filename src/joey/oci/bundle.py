"""All modules of a call in one file, as __pycache__ has one each: finding forty files takes longer than running them.

The file stands in this folder's __pycache__, is made by the first call that may write there, and holds for the sources
and the Python it was made of; otherwise the modules are imported as ever.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

_HERE = __file__.rpartition("/")[0]
PACKAGE = _HERE.rpartition("/")[0]
PATH = f"{_HERE}/__pycache__/calls.{sys.implementation.cache_tag}"
INTERPRETER = f"{PACKAGE}/native/bin/python.path"
"""Two lines for the native front: the interpreter itself, which starts 2 ms faster than by the link of a virtual
environment, and where that environment's libraries are.
"""
_FOLDERS = ("oci", "plan/ops")
_FILES = (
    "__init__", "_version", "client/__init__", "client/jsontext", "host/__init__", "host/packets", "model/__init__",
    "model/capabilities", "plan/__init__", "plan/encode", "plan/flags", "plan/oci", "plan/oci_cgroup",
    "plan/oci_mounts", "plan/oci_options", "plan/oci_process",
)  # fmt: skip


installed = False


class Finder:
    """Of sys.meta_path, and the loader of what it finds."""

    def __init__(self, modules):
        self.modules = modules

    def find_spec(self, name, path=None, target=None):
        found = self.modules.get(name)
        if found is None:
            return None
        file, package, _ = found
        spec = ModuleSpec(name, self, origin=f"{PACKAGE}/{file}", is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations.append(spec.origin.rpartition("/")[0])
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(marshal.loads(self.modules[module.__name__][2]), module.__dict__)


def install(read):
    """Use what has been read of the file (native/oci.c, boot), if it is of these sources. Raises what a file that is
    none of ours makes it raise: OSError, ValueError, TypeError.
    """
    global installed
    stamps, modules = read
    for name, stamp in stamps.items():
        found = posix.stat(f"{PACKAGE}/{name}")
        if (found.st_mtime_ns, found.st_size) != stamp:
            return
    sys.meta_path.insert(0, Finder(modules))
    installed = True


def make():
    """Write the file; nothing happens where that is not possible."""
    import os

    directory = os.path.dirname(PATH)
    if not os.access(directory if os.path.isdir(directory) else _HERE, os.W_OK):
        return
    os.makedirs(directory, exist_ok=True)
    files = [f"{file}.py" for file in _FILES]
    for folder in _FOLDERS:
        files += [f"{folder}/{name}" for name in sorted(os.listdir(f"{PACKAGE}/{folder}")) if name.endswith(".py")]
    stamps, modules = {}, {}
    fresh = f"{PATH}.{os.getpid()}"
    try:
        for file in files:
            with open(f"{PACKAGE}/{file}", "rb") as source:
                found = os.fstat(source.fileno())
                stamps[file] = (found.st_mtime_ns, found.st_size)
                code = compile(source.read(), f"{PACKAGE}/{file}", "exec", dont_inherit=True, optimize=2)
            package = file.endswith("__init__.py")
            name = "joey/" + (os.path.dirname(file) if package else file.removesuffix(".py"))
            modules[name.rstrip("/").replace("/", ".")] = (file, package, marshal.dumps(code))
        with open(fresh, "xb") as out:
            marshal.dump((stamps, modules), out)
        os.replace(fresh, PATH)
        if lines := _interpreter():
            with open(fresh, "x", encoding="utf-8") as out:
                out.write("\n".join(lines) + "\n")
            os.replace(fresh, INTERPRETER)
    except OSError:
        return


def _interpreter():
    """The lines of INTERPRETER; none of a Python that lacks the libraries: another one may have them."""
    import os

    libraries()
    found = next((path for path in sys.path if os.path.isdir(f"{path}/msgspec")), "")
    return (os.path.realpath(sys.executable), found) if found else ()


def libraries():
    """Python may have been started without its site-packages, which most calls do not need."""
    if "site" in sys.modules:
        return
    try:
        with open(INTERPRETER, encoding="utf-8") as file:
            path = file.read().split("\n")[1]
    except (OSError, IndexError):
        path = ""
    import os

    if os.path.isdir(f"{path}/msgspec"):
        sys.path.append(path)
        return
    import site

    site.main()
