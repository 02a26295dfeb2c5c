"""The steps of a template → a Dockerfile for our builder. Pure.

Steps are those that the SDK's `Template()` sends, from code or a Dockerfile: RUN (command, user), COPY (source, target,
owner, mode; files below a directory named by their hash), ENV, WORKDIR, USER. Commands run by `bash -l -c` where
there is bash. As with E2B a template has a user `user` (made if it is missing) who is the default, in /home/user.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass, field

import msgspec

from joey.model.errors import Invalid

DEFAULT_USER, DEFAULT_CWD = "user", "/home/user"
_HASH = re.compile(r"[0-9a-f]{16,128}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODE = re.compile(r"[0-7]{3,4}")
_SHELL = 'if [ -x /bin/bash ]; then exec /bin/bash -l -c "$1"; else exec /bin/sh -l -c "$1"; fi'
_OWN_DIRECTORY = '[ -e "$1" ] || { mkdir -p "$1" && chown "$2" "$1"; }'
# What is touched is in the layer from then on, also where it comes from below all layers (this machine's own system).
_PREPARE = """set -e
if ! grep -q '^user:' /etc/passwd; then
    id=1000
    while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd; do id=$((id + 1)); done
    shell=/bin/sh
    if [ -x /bin/bash ]; then shell=/bin/bash; fi
    echo "user:x:$id:$id:user:/home/user:$shell" >> /etc/passwd
    echo "user:x:$id:" >> /etc/group
    if [ -f /etc/shadow ]; then echo 'user:*:19000:0:99999:7:::' >> /etc/shadow; fi
fi
if [ ! -d /home/user ]; then mkdir -p /home/user && chown user /home/user; fi
touch /etc/passwd /etc/group /home/user
"""


class Step(msgspec.Struct, kw_only=True):
    """One step as the SDK sends it."""

    type: str
    args: list[str] = []
    filesHash: str | None = None
    force: bool | None = None
    forceUpload: bool | None = None


@dataclass
class Recipe:
    """text: of the Dockerfile. steps: line of it -> (number of the step, 0 for the base; what it is called)."""

    text: str = ""
    steps: dict[int, tuple[int, str]] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.recipe = Recipe()
        self.user, self.number, self.title = "root", 0, ""

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.recipe.steps[len(self.lines)] = (self.number, self.title)

    def run(self, *argv: str, user: str = "") -> None:
        user = user or self.user
        if user != self.user:
            self.add(f"USER {user}")
        self.add(f"RUN {json.dumps(argv)}")
        if user != self.user:
            self.add(f"USER {self.user}")

    def become(self, user: str) -> None:
        self.user = user
        self.add(f"USER {user}")


def recipe(base: str, steps: list[Step], user: str = "") -> Recipe:
    """base: the image to start from. user: of the template it belongs to; without one user and directory are set first.
    Raises Invalid naming the step.
    """
    if not _IMAGE.fullmatch(base):
        raise Invalid("fromImage", f"{base!r} is no name of an image")
    writer = _Writer()
    writer.title = f"FROM {base}"
    writer.add(f"FROM {base}")
    if not user:
        writer.add("USER root")
        writer.run("/bin/sh", "-c", _PREPARE)
        writer.become(DEFAULT_USER)
        writer.add(f"WORKDIR {DEFAULT_CWD}")
    else:
        writer.user = user
    for number, step in enumerate(steps, 1):
        writer.number = number
        writer.title = f"{step.type} {' '.join(step.args)}"[:200]
        kind = _KINDS.get(step.type)
        if kind is None:
            raise _wrong(number, f"{step.type!r} is unknown", f"one of {', '.join(_KINDS)}")
        kind(writer, step)
    writer.recipe.text = "\n".join(writer.lines) + "\n"
    return writer.recipe


def _wrong(number: int, message: str, remedy: str = "") -> Invalid:
    return Invalid(f"steps[{number - 1}]", message, remedy)


def _words(writer: _Writer, step: Step, least: int, most: int | None) -> list[str]:
    if len(step.args) < least or (most is not None and len(step.args) > most):
        raise _wrong(writer.number, f"{step.type} has {len(step.args)} arguments")
    if any("\0" in one for one in step.args):
        raise _wrong(writer.number, "holds a NUL character")
    return step.args


def _user(writer: _Writer, text: str) -> str:
    if not _USER.fullmatch(text):
        raise _wrong(writer.number, f"{text!r} is no user")
    return text


def _run(writer: _Writer, step: Step) -> None:
    command, *rest = _words(writer, step, 1, 2)
    user = _user(writer, rest[0]) if rest and rest[0] else ""
    writer.run("/bin/sh", "-c", _SHELL, "sh", command, user=user)


def _copy(writer: _Writer, step: Step) -> None:
    source, target, *rest = _words(writer, step, 2, 4)
    owner, mode = [*rest, "", ""][:2]
    digest = step.filesHash or ""
    if not _HASH.fullmatch(digest):
        raise _wrong(writer.number, f"filesHash: {digest!r} is no hash")
    clean = posixpath.normpath(source)
    if clean.startswith(("/", "../")) or clean == "..":
        raise _wrong(writer.number, f"{source!r} leads out of the context")
    if mode and not _MODE.fullmatch(mode):
        raise _wrong(writer.number, f"{mode!r} is no mode")
    flags = f" --chown={_user(writer, owner or writer.user)}"
    if mode:
        flags += f" --chmod={mode}"
    if re.search(r"[*?\[]", clean) and not target.endswith("/"):
        target += "/"
    path = digest if clean == "." else f"{digest}/{clean}"
    writer.recipe.hashes.add(digest)
    writer.add(f"COPY{flags} {json.dumps([path, target])}")


def _env(writer: _Writer, step: Step) -> None:
    args = _words(writer, step, 2, None)
    if len(args) % 2:
        raise _wrong(writer.number, "ENV has a name without a value")
    for name, value in zip(args[::2], args[1::2], strict=True):
        if not _NAME.fullmatch(name):
            raise _wrong(writer.number, f"{name!r} is no name of a variable")
        if "\n" in value or "\r" in value:
            raise _wrong(writer.number, f"the value of {name} has several lines", "one line, or set it in the command")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        writer.add(f'ENV {name}="{escaped}"')


def _workdir(writer: _Writer, step: Step) -> None:
    (path,) = _words(writer, step, 1, 1)
    if not path or "\n" in path:
        raise _wrong(writer.number, f"{path!r} is no directory")
    if "$" not in path and path.startswith("/") and writer.user != "root":
        writer.run("/bin/sh", "-c", _OWN_DIRECTORY, "sh", path, writer.user.partition(":")[0], user="root")
    writer.add(f"WORKDIR {path}")


def _set_user(writer: _Writer, step: Step) -> None:
    (user,) = _words(writer, step, 1, 1)
    writer.become(_user(writer, user))


_KINDS = {"RUN": _run, "COPY": _copy, "ENV": _env, "WORKDIR": _workdir, "USER": _set_user}
