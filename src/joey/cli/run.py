"""`joey run`."""

import os

from joey.cli import request
from joey.cli.connect import engine
from joey.cli.foreground import exit_code, follow
from joey.cli.options import UsageError
from joey.cli.output import complain, is_terminal, say
from joey.client.transport import Problem

DEFAULT_KEYS = "ctrl-p,ctrl-q"


def run(values, arguments):
    """The program's exit code; 0 with -d."""
    body = request.sandbox(values, arguments)
    detach, tty, interactive = (values.get(name, False) for name in ("detach", "tty", "interactive"))
    if tty and interactive and not detach and not is_terminal(0):
        raise UsageError("-t with -i: standard input is no terminal", "leave out -t")
    if tty and not detach:
        from joey.cli.terminal import size

        rows, cols = size(1) if is_terminal(1) else size(0)
        if rows and cols:
            body["process"]["rows"], body["process"]["cols"] = rows, cols
    keys = _keys(values) if tty and interactive else None
    with _IdFile(values.get("cidfile")) as id_file, engine() as connection:
        if detach:
            made = _made(connection, connection.call, body)
            id_file.write(made["id"])
            say(made["id"])
            return 0
        sock, headers, rest = _made(connection, connection.upgrade, body)
        box = headers["joey-sandbox"]
        id_file.write(box)
        proxy = values.get("sig_proxy", True)
        end = follow(sock, rest, box, stdin=interactive, tty=tty, keys=keys, proxy=proxy, again=True)
    if end is None:
        return 0
    if end.get("oom") and end["code"] == 137:
        complain("the program was killed: it wanted more memory than its limit (resources.memory)", "a larger -m")
    return exit_code(end)


def _made(connection, send, body):
    """What send(POST, path, body) returns. On a terminal a pull that it takes shows its progress: the image is asked
    for as one that is here, and pulled if it is not, so that it costs nothing where it is.
    """
    policy = body.get("pull", "missing")
    if policy == "never" or body.get("image", "") in ("", "host") or not is_terminal(2):
        return send("POST", "/v1/sandboxes", body)
    if policy == "missing":
        try:
            return send("POST", "/v1/sandboxes", {**body, "pull": "never"})
        except Problem as problem:
            if problem.field != "image" or not problem.remedy.startswith("joey pull"):
                raise
    _pull(connection, body)
    return send("POST", "/v1/sandboxes", {**body, "pull": "missing"})


def _pull(connection, body):
    from joey.cli import progress

    asked = {"reference": body["image"]}
    if body.get("platform"):
        asked["platform"] = body["platform"]
    progress.follow(connection.request("POST", "/v1/images/pull", asked))


def _keys(values):
    from joey.cli.terminal import keys

    return keys(values.get("detach_keys", DEFAULT_KEYS))


class _IdFile:
    """--cidfile: made before the sandbox, so that it cannot fail afterwards; removed again if there is no sandbox."""

    def __init__(self, path):
        self._path, self._fd, self._written = path, -1, False

    def __enter__(self):
        if self._path is not None:
            try:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UsageError(f"--cidfile {self._path}: {error.strerror}") from None
        return self

    def write(self, text):
        if self._fd >= 0:
            os.write(self._fd, text.encode())
            self._written = True

    def __exit__(self, *_):
        if self._fd >= 0:
            os.close(self._fd)
            if not self._written:
                os.unlink(self._path)


COMMANDS = {
    "run": {
        "usage": "[OPTIONS] IMAGE [COMMAND] [ARG…]",
        "summary": "Run a program in a new sandbox",
        "text": """
The exit code is the program's, or 128 and the number of the signal that ended it; 125 if joey
failed, 126 if the program cannot be executed, 127 if there is no such program.

IMAGE is host, this machine's own programs without its data; or use --rootfs DIR and no IMAGE.""",
        "options": request.OPTIONS,
        "refused": request.REFUSED,
        "leading": True,
        "failure": 125,
        "run": run,
    }
}
