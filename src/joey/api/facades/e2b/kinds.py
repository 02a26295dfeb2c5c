"""What a sandbox is made of, by its template: image, resources, and the program that its main process is."""

from __future__ import annotations

import compileall
import contextlib
import os
from pathlib import Path

import msgspec

from joey.model.resources import Resources
from joey.model.spec import Mount

OWN = "joey.e2b."
"""Labels below are Joey's own."""
TEMPLATE = OWN + "template"
INTERPRETER = OWN + "interpreter"
BUILD = OWN + "build"
"""Of a sandbox of a template that was built here: user and directory of commands are the template's."""
INTERPRETER_PORT = 49999
INTERPRETER_NAMES = ("code-interpreter-v1", "code-interpreter")
INTERPRETER_COMMAND = "joey image bootstrap debian:12 --variant code-interpreter --name code-interpreter-v1"
OWN_ENV = {"E2B_SANDBOX": "true"}
_INSIDE = Path(__file__).with_name("inside")
_PLACE = "/opt/joey-interpreter"
_MIB = 1 << 20
_INTERPRETER_MEMORY, _INTERPRETER_CPUS = 1 << 30, 2
"""As E2B has it; its server and a kernel start beside each other."""
# What ends is started again: its contexts are new ones then.
_KEPT = (
    "python=python3; if [ -d /usr/lib/python3/dist-packages/ipykernel ]; then python=/usr/bin/python3; fi; "
    'while :; do "$python" "$1"; sleep 0.2; done'
)
# A start command that ends leaves its sandbox, as with E2B.
_STARTED = 'if [ -x /bin/bash ]; then /bin/bash -l -c "$1"; else /bin/sh -l -c "$1"; fi; while :; do sleep 86400; done'


def compiled() -> None:
    """See to it that sandboxes, which cannot write there, find the interpreter's programs compiled: for this Python,
    which is the image `host`'s. What is compiled is compared, nothing is done twice.
    """
    with contextlib.suppress(OSError):
        compileall.compile_dir(_INSIDE, quiet=2)


def host_interprets(usr: Path = Path("/usr")) -> bool:
    """Whether this machine's own Python, which the image `host` shows, has ipykernel."""
    return any(any(usr.glob(f"lib/python3*/{where}-packages/ipykernel")) for where in ("dist", "site"))


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """image: its name. start: the command a sandbox begins with; ready: one that succeeds as soon as that is of use.
    interpreter: the code interpreter runs in it. cpus, memory (MiB): of a sandbox, None for the default. key: names
    it among the kinds of one owner. user, cwd: of its programs. build: the id of the template's build, "" for an image
    that is none.
    warm: sandboxes of it are started ahead, which keeps its image from being removed.
    """

    key: str
    image: str
    start: str = ""
    ready: str = ""
    interpreter: bool = False
    cpus: int | None = None
    memory: int | None = None
    user: str = ""
    cwd: str = ""
    build: str = ""
    warm: bool = True

    @property
    def argv(self) -> tuple[str, ...]:
        if self.interpreter:
            return ("/bin/sh", "-c", _KEPT, "sh", f"{_PLACE}/joey_interpreter.py")
        return ("/bin/sh", "-c", _STARTED, "sh", self.start) if self.start else ()

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The interpreter is no part of images, so that it is always this Joey's."""
        return (Mount(source=str(_INSIDE), target=_PLACE, read_only=True),) if self.interpreter else ()

    @property
    def resources(self) -> Resources:
        found = Resources.default()
        if self.interpreter:
            cpus = float(min(_INTERPRETER_CPUS, len(os.sched_getaffinity(0))))
            found = msgspec.structs.replace(found, memory=_INTERPRETER_MEMORY, cpus=cpus)
        if self.memory:
            found = msgspec.structs.replace(found, memory=self.memory * _MIB)
        if self.cpus:
            found = msgspec.structs.replace(found, cpus=float(self.cpus))
        return found

    @property
    def labels(self) -> dict[str, str]:
        return ({INTERPRETER: "1"} if self.interpreter else {}) | ({BUILD: self.build} if self.build else {})
