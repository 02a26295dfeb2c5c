"""`joey image bootstrap`: a base image from a distribution's packages, without any registry."""

import os

from joey.cli.connect import engine
from joey.cli.output import complain, is_terminal, say, say_json
from joey.client.transport import query


def bootstrap(values, arguments):
    """Build NAME:VERSION with the packages' own tool, then import it."""
    import signal

    from joey.model.errors import JoeyError

    def leave(number, _frame):
        raise SystemExit(128 + number)  # by way of what removes the tool and its files

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        return _bootstrap(values, arguments)
    except JoeyError as error:  # made here, not by the engine
        complain(str(error), error.remedy)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bootstrap(values, arguments):
    import tempfile
    from pathlib import Path

    from joey.images import bootstrap as work

    asked = {key: values.get(key, "") for key in ("suite", "variant", "mirror")}
    base = work.parse(arguments[0], **asked)
    name = values.get("name") or (f"{arguments[0]}-{base.variant}" if base.variant else arguments[0])
    made = work.created()
    with tempfile.TemporaryDirectory(prefix="joey-bootstrap-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o711)  # apt's own user passes
        target = Path(folder) / "root.tar"
        with _Progress(values.get("quiet") or values.get("json")) as tell:
            work.build(base, target, tell)
        asked = {
            "name": name, "created": made, "comment": f"packages of {base.system} {base.suite or base.version}",
            "cmd": ["python3"] if base.variant == "python" else ["/bin/bash"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        }  # fmt: skip
        with open(target, "rb") as file, engine() as connection:
            pieces = iter(lambda: file.read(1 << 18), b"")
            found = connection.upload("POST", f"/v1/images/import{query(asked)}", pieces, "application/x-tar").json()
    if values.get("json"):
        say_json(found)
    else:
        say(found["id"] if values.get("quiet") else f"{name}  {found['id']}")


class _Progress:
    """What the tool says: the last line of it on a terminal, else its own headlines."""

    def __init__(self, quiet):
        self.quiet, self.live = quiet, is_terminal(2)

    def __enter__(self):
        return self.tell

    def tell(self, line):
        if self.quiet:
            return
        if self.live:
            width = os.get_terminal_size(2).columns - 1
            os.write(2, f"\r\x1b[K{''.join(c for c in line if c.isprintable())[:width]}".encode())
        elif line.startswith(("I:", "looking for")):
            complain(line)

    def __exit__(self, *_):
        if self.live and not self.quiet:
            os.write(2, b"\r\x1b[K")


VERBS = {
    "bootstrap": (
        bootstrap, "NAME:VERSION", "Make a base image of packages: debian:12", (1, 1),
        ("variant", "suite", "mirror", "name", "quiet", "json"),
    )
}  # fmt: skip
"""As joey.cli.image.VERBS."""
OPTIONS = (
    ("--variant", "NAME", "bootstrap: python, or code-interpreter (E2B)"),
    ("--suite", "NAME", "bootstrap: the packages' own name of the version"),
    ("--mirror", "URL", "bootstrap: where packages come from; this machine's own apt sources by default"),
)
