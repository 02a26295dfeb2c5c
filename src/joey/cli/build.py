"""`joey build`: an image from a Dockerfile."""

import os
import sys

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import complain, is_terminal, say, write
from joey.cli.progress import lines
from joey.client import context
from joey.client.transport import query

_SPINNER = "|/-\\"
_KEPT = 30
"""Lines of output that are shown when a step fails and they were not shown before."""


def build(values, arguments):
    """Build it; print its id."""
    where = arguments[0]
    name, text = _dockerfile(values, where)
    asked = {
        "tag": values.get("tag", []),
        "file": name,
        "build-arg": _arguments(values),
        "label": values.get("label", []),
    }
    asked |= {"no-cache": values.get("no_cache", False), "pull": values.get("pull", False)}
    for option in ("target", "network", "platform"):
        if option in values:
            asked[option] = values[option]
    progress = values.get("progress", "auto")
    if progress not in ("auto", "plain", "tty"):
        raise UsageError(f"--progress: {progress!r} is none of auto, plain, tty")
    iidfile = values.get("iidfile")
    if iidfile and os.path.isdir(iidfile):
        raise UsageError(f"--iidfile: {iidfile} is a directory")
    pieces = _context(values, where, text)
    quiet = values.get("quiet", False)
    live = not quiet and progress != "plain" and is_terminal(2) and os.environ.get("TERM", "") != "dumb"
    with engine() as connection:
        try:
            response = connection.upload("POST", f"/v1/images/build{query(asked)}", pieces, "application/x-tar")
        except (OSError, ValueError) as error:
            if isinstance(error, ConnectionError):
                raise
            raise UsageError(f"the context cannot be read: {error}") from None
        with _Shown(quiet, live) as shown:
            image = None
            for value in lines(response):
                image = value.get("image") or image
                shown.take(value)
            shown.well = True
    if iidfile:
        with open(iidfile, "w") as file:
            file.write(image["id"])
    say(image["id"] if quiet or not image["names"] else f"{', '.join(image['names'])}  {image['id']}")


def _dockerfile(values, where):
    """(its name in messages, its text or None if the context's archive holds it)."""
    given = values.get("file", "")
    if where == "-":
        if is_terminal(0):
            raise UsageError("standard input is a terminal: a context is a tar archive", "joey build DIR")
        if given == "-":
            raise UsageError("Dockerfile and context cannot both be standard input", "-f FILE, or a directory")
        if given and os.path.isfile(given):
            return os.path.basename(given), _read(given)
        return given or "Dockerfile", None
    if not os.path.isdir(where):
        raise UsageError(f"{where}: is no directory", "joey build DIR, or - for a tar archive on standard input")
    if given == "-":
        return "Dockerfile", sys.stdin.buffer.read()
    path = given or os.path.join(where, "Dockerfile")
    if not os.path.isfile(path) and given and os.path.isfile(os.path.join(where, given)):
        path = os.path.join(where, given)
    text = _read(path)
    inside = os.path.relpath(path, where)
    return (os.path.basename(path) if inside.startswith("..") else inside), text


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "-f FILE names another Dockerfile") from None


def _arguments(values):
    """NAME=VALUE of --build-arg; one without a value is ours. SOURCE_DATE_EPOCH is passed on, as by buildx."""
    found = []
    for text in values.get("build_arg", ()):
        if "=" in text:
            found.append(text)
        elif text in os.environ:
            found.append(f"{text}={os.environ[text]}")
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch and not any(text.startswith("SOURCE_DATE_EPOCH=") for text in found):
        found.append(f"SOURCE_DATE_EPOCH={epoch}")
    return found


def _context(values, where, text):
    secrets = dict(_secret(one) for one in values.get("secret", ()))
    if where != "-":
        name = values.get("file", "")
        return context.archive(where, context.extras(text, secrets), f"{name}.dockerignore" if name else "")
    if secrets or text is not None:
        raise UsageError("with a context from standard input there is neither --secret nor a -f outside of it", "DIR")
    return iter(lambda: os.read(0, 1 << 18), b"")


def _secret(text):
    """`id=NAME,src=FILE`, `id=NAME,env=VARIABLE`."""
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    kind = pairs.pop("type", "file")
    name, source = pairs.pop("id", ""), pairs.pop("src", "") or pairs.pop("source", "")
    variable = pairs.pop("env", "") or (source if kind == "env" else "")
    if not name or pairs or kind not in ("file", "env"):
        raise UsageError(f"--secret {text}: makes no sense", "--secret id=NAME,src=FILE or id=NAME,env=VARIABLE")
    if variable or not source:
        variable = variable or name
        if variable not in os.environ:
            raise UsageError(f"--secret {text}: there is no variable {variable} and no src")
        return name, os.fsencode(os.environ[variable])
    try:
        with open(source, "rb") as file:
            return name, file.read()
    except OSError as error:
        raise UsageError(f"--secret {text}: {source}: {error.strerror}") from None


class _Shown:
    """Progress on stderr: everything, or on a terminal a line a step that says how long it takes and what it printed
    last, with a spinner.
    """

    def __init__(self, quiet, live):
        self.quiet, self.live, self.well = quiet, live, False
        self._head, self._last, self._begun, self._turn = "", "", 0.0, 0
        self._kept, self._pulled, self._thread = [], set(), None

    def __enter__(self):
        if self.live:
            import threading

            self._lock, self._ended = threading.Lock(), threading.Event()
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            write(2, b"\r\x1b[K" if self.well else f"\r{self._head}\x1b[K\n".encode())
        if not self.well and (self.live or self.quiet):
            for line in self._kept:
                complain(line)

    def take(self, value):
        """One event."""
        if self._thread is not None:
            with self._lock:
                self._take(value)
        else:
            self._take(value)

    def _take(self, value):
        import time

        if value.get("step"):
            first = _clean(value["instruction"].split("\n")[0])
            self._head, self._begun = f"[{value['step']}/{value['total']} {value['stage']}] {first}", time.monotonic()
            self._kept, self._last = [], ""
            self._line(self._head)
        elif "output" in value:
            self._output(value["output"])
        elif value.get("done") and "cached" in value:
            said = "CACHED" if value["cached"] else f"{value['seconds']:.1f}s"
            self._line(f"{self._head}  {said}" if self.live else f"  {said}", lasting=True)
        elif value.get("warning"):
            self._line(f"warning: {value['warning']}", lasting=True)
        elif value.get("pull") and value["pull"] not in self._pulled:
            self._pulled.add(value["pull"])
            self._line(f"  pulling {value['pull']}")

    def _output(self, text):
        if not self.live and not self.quiet:
            write(2, text.encode("utf-8", "replace"))
            return
        found = [_clean(line) for line in text.splitlines() if line.strip()]
        self._last = found[-1] if found else self._last
        self._kept = (self._kept + found)[-_KEPT:]

    def _line(self, text, lasting=False):
        if self.quiet:
            return
        if not self.live:
            write(2, f"{text}\n".encode("utf-8", "replace"))
        elif lasting:
            write(2, f"\r{text[: _width()]}\x1b[K\n".encode())

    def _spin(self):
        import time

        while not self._ended.wait(0.1):
            with self._lock:
                if not self._head:
                    continue
                self._turn += 1
                seconds = time.monotonic() - self._begun
                text = f"{_SPINNER[self._turn % 4]} {self._head}  {seconds:.1f}s  {self._last}"
                write(2, f"\r{text[: _width()]}\x1b[K".encode())


def _clean(text):
    return "".join(c for c in text if c.isprintable())


def _width():
    try:
        return (os.get_terminal_size(2).columns or 80) - 1
    except OSError:
        return 79


COMMANDS = {
    "build": {
        "usage": "[OPTIONS] DIR|-",
        "summary": "Build an image from a Dockerfile",
        "text": """
DIR is the context: what COPY copies from, without what its .dockerignore leaves out. - reads a
tar archive from standard input. docs/build.md says what is supported.""",
        "arguments": (1, 1),
        "options": (
            ("-t --tag", "NAME…", "Name the image; more than once for several names"),
            ("-f --file", "FILE", "The Dockerfile (DIR/Dockerfile); - for standard input"),
            ("--target", "STAGE", "Build this stage, not the last one"),
            ("--build-arg", "NAME[=VALUE]…", "Set an ARG; without a value, pass ours on"),
            ("--secret", "id=NAME[,src=FILE]…", "A secret for RUN --mount=type=secret; or env=VARIABLE"),
            ("--label", "NAME=VALUE…", "Label the image"),
            ("--no-cache", "", "Do every step again"),
            ("--pull", "", "Ask the registry for a newer image of every FROM"),
            ("--network", "default|none|host|nat", "The network of RUN steps"),
            ("--platform", "OS/ARCH", "Refused unless it is this machine's own"),
            ("--progress", "auto|plain", "plain: everything that RUN steps print"),
            ("--iidfile", "FILE", "Write the image's id to a file"),
            ("-q --quiet", "", "Only the id"),
        ),
        "refused": {
            "--ssh": "give the key with --secret", "--squash": "", "--cache-from": "", "--cache-to": "",
            "--output": "joey image save writes files", "-o": "joey image save writes files", "--push": "joey push",
            "--load": "the image is always here", "--add-host": "", "--cgroup-parent": "", "--isolation": "",
            "--memory": "", "-m": "", "--shm-size": "", "--ulimit": "", "--security-opt": "", "--allow": "",
            "--build-context": "", "--builder": "", "--provenance": "", "--sbom": "", "--rm": "", "--force-rm": "",
            "--compress": "", "--disable-content-trust": "every digest is verified", "--attest": "",
        },
        "run": build,
    },
}  # fmt: skip
