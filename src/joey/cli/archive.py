"""`joey image load|save|import|export|diff`: images from files and into files."""

import os
import sys

from joey.cli import output
from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import is_terminal, say, say_json
from joey.client.transport import query, quote

_PIECE = 1 << 18


def load(values, arguments):
    """Each image of FILE, or of standard input."""
    path = arguments[0] if arguments else values.get("input", "-")
    asked = {"name": values.get("name", ""), "platform": values.get("platform", "")}
    with engine() as connection, _Source(path) as pieces:
        target = f"/v1/images/load{query({key: value for key, value in asked.items() if value})}"
        found = connection.upload("POST", target, pieces, "application/x-tar").json()
    if values.get("json"):
        say_json(found)
    for one in found if not values.get("json") else ():
        say(one["id"] if values.get("quiet") else f"{', '.join(one['names']) or '<none>'}  {one['id']}")


def import_(values, arguments):
    """FILE becomes the image NAME."""
    path, name = arguments
    asked = {"name": name, "platform": values.get("platform", ""), "comment": f"imported from {os.path.basename(path)}"}
    with engine() as connection, _Source(path) as pieces:
        target = f"/v1/images/import{query({key: value for key, value in asked.items() if value})}"
        found = connection.upload("POST", target, pieces, "application/x-tar").json()
    say_json(found) if values.get("json") else say(f"{name}  {found['id']}")


def save(values, arguments):
    """IMAGE… into FILE, or to standard output."""
    asked = {"name": arguments}
    if "format" in values:
        if values["format"] not in ("docker", "oci"):
            raise UsageError(f"--format: {values['format']!r} is neither docker nor oci", "--format oci")
        asked["format"] = values["format"]
    with engine() as connection:
        write(connection.request("GET", f"/v1/images/save{query(asked)}").stream, values.get("output", "-"))


def export(values, arguments):
    """The root file system of IMAGE into FILE, or to standard output."""
    with engine() as connection:
        response = connection.request("GET", f"/v1/images/{quote(arguments[0])}/export")
        write(response.stream, values.get("output", "-"))


def diff(values, arguments):
    """A line a change."""
    old, new = arguments
    with engine() as connection:
        found = connection.call("GET", f"/v1/images/{quote(new)}/diff{query({'from': old})}")
    say_changes(found, values)


def say_changes(found, values):
    """What is added (A), changed (C) and deleted (D), a line each."""
    if values.get("json"):
        say_json(found)
    for one in found if not values.get("json") else ():
        say(f"{one['kind']} {one['path']}")


class _Source:
    """The pieces of a file, a directory (as an archive of it), or standard input."""

    def __init__(self, path):
        self.path = path
        self.process = self.file = None

    def __enter__(self):
        if self.path == "-":
            if is_terminal(0):
                raise UsageError("no file is given and standard input is a terminal", "joey image load FILE")
            return _pieces(sys.stdin.fileno())
        try:
            if os.path.isdir(self.path):
                import subprocess

                self.process = subprocess.Popen(["tar", "-C", self.path, "-cf", "-", "."], stdout=subprocess.PIPE)
                return _pieces(self.process.stdout.fileno())
            self.file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from None
        return _pieces(self.file)

    def __exit__(self, *_):
        if self.file is not None:
            os.close(self.file)
        if self.process is not None:
            self.process.stdout.close()
            self.process.wait()


def _pieces(fd):
    while data := os.read(fd, _PIECE):
        yield data


def write(stream, path):
    """To standard output (-), or to a file."""
    if path == "-":
        if is_terminal(1):
            raise UsageError("this is no text for a terminal", "-o FILE, or > FILE")
        for piece in stream():
            output.write(1, piece)
        return
    keep(stream, path, 0o644)


def keep(stream, path, mode, sync=False):
    """The pieces of `stream()` into a file that has its name only when it is whole; → bytes. sync: by fsync(2), too."""
    part, total = f"{path}.part", 0
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        raise UsageError(f"{part}: {error.strerror}") from None
    try:
        for piece in stream():
            output.write(fd, piece)
            total += len(piece)
        if sync:
            os.fsync(fd)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)
    return total


VERBS = {
    "load": (
        load,
        "[FILE|DIR]",
        "Read images: docker save's, OCI's",
        (0, 1),
        ("input", "name", "platform", "quiet", "json"),
    ),
    "save": (save, "IMAGE…", "Write images, for docker load and others", (1, None), ("output", "format")),
    "import": (import_, "FILE|DIR NAME", "An image of a root file system", (2, 2), ("platform", "json")),
    "export": (export, "IMAGE", "The root file system of an image", (1, 1), ("output",)),
    "diff": (diff, "OLD NEW", "What is added, changed, deleted", (2, 2), ("json",)),
}
"""As joey.cli.image.VERBS."""
OPTIONS = (
    ("-i --input", "FILE", "load: where from, standard input by default"),
    ("-o --output", "FILE", "save, export: where to, standard output by default"),
    ("--name", "NAME", "load: for an image that does not say its name"),
)
