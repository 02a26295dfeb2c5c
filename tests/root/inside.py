"""What a hostile program sees and gets from inside: Python sent into a sandbox, its findings back as JSON.

    inside = Inside(lab)
    box = inside.box()
    assert inside.ask(box, "found['umount'] = call('umount2', b'/proc', 2)")["umount"] == "EPERM"

The text runs after PRELUDE, whose helpers answer "ok" or the name of an errno. Needs the `host` image, for its Python.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any, NamedTuple

from joey.engine.interface import Attachment
from joey.model import syscalls
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Exit, Sandbox

if TYPE_CHECKING:
    from root.conftest import Lab

PRELUDE = r"""
import ctypes, errno, fcntl, json, os, signal, socket, stat, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = {}
def name(number): return errno.errorcode.get(number, str(number))
def call(what, *args):
    number = NUMBERS[what] if isinstance(what, str) else what
    args = [a if isinstance(a, (bytes, type(None))) or hasattr(a, '_type_') or isinstance(a, ctypes.Array)
            else ctypes.c_long(a) for a in args]
    ctypes.set_errno(0)
    return 'ok' if libc.syscall(ctypes.c_long(number), *args) >= 0 else name(ctypes.get_errno())
def attempt(what, *args, **more):
    try: what(*args, **more)
    except OSError as error: return name(error.errno)
    return 'ok'
def read(path, size=4096):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try: return os.read(fd, size).decode(errors='replace')
    finally: os.close(fd)
def trying(what, *args):
    try: return what(*args)
    except OSError as error: return name(error.errno)
def tell(**more):
    print(json.dumps({**found, **more}), flush=True)
"""


class Result(NamedTuple):
    exit: Exit
    stdout: bytes
    stderr: bytes


class Inside:
    """Sandboxes of a module's engine, for tests that attack."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        numbers = syscalls.table(platform.machine())
        self._prelude = f"NUMBERS = {dict(numbers)!r}\n{PRELUDE}"

    def box(self, *argv: str, add: tuple[str, ...] = (), **more: Any) -> Sandbox:
        """A running sandbox (idle without argv). add: capabilities besides the default ones."""
        process = more.pop("process", None) or Process(
            argv=argv or ("sleep", "600"), capabilities=(*DEFAULT_CAPABILITIES, *add), stdin=more.pop("stdin", False),
            tty=more.pop("tty", False), user=more.pop("user", ""),
            no_new_privileges=more.pop("no_new_privileges", True),
        )  # fmt: skip
        image = "" if "rootfs" in more else "host"
        return self.lab.do(self.lab.engine.run(SandboxSpec(image=image, process=process, **more))).sandbox

    def python(self, text: str, *args: str, **more: Any) -> Process:
        """The process that runs `text` after the prelude, telling what it found at its end."""
        argv = ("python3", "-I", "-S", "-c", f"{self._prelude}{text}\ntell()\n", *args)
        return Process(argv=argv, **more)

    async def start(self, box: Sandbox | str, process: Process) -> Attachment:
        return await self.lab.engine.exec(box if isinstance(box, str) else box.id, process)

    async def finish(self, attached: Attachment) -> Result:
        streams = {1: b"", 2: b""}
        try:
            while (piece := await attached.read()) is not None:
                streams[piece[0]] += piece[1]
            return Result(await attached.wait(), streams[1], streams[2])
        finally:
            await attached.close()

    def sh(self, box: Sandbox | str, *argv: str, seconds: float = 20, **more: Any) -> Result:
        """Run a program in a box to its end."""

        async def run() -> Result:
            return await self.finish(await self.start(box, Process(argv=argv, **more)))

        return self.lab.do(run(), seconds)

    def ask(self, box: Sandbox | str, text: str, *args: str, seconds: float = 20, **more: Any) -> dict[str, Any]:
        """Run Python in a box; what it found."""

        async def run() -> Result:
            return await self.finish(await self.start(box, self.python(text, *args, **more)))

        return told(self.lab.do(run(), seconds))

    def remove(self, *boxes: Sandbox) -> None:
        for box in boxes:
            self.lab.do(self.lab.engine.remove(box.id, force=True))


def told(result: Result) -> dict[str, Any]:
    """What a program told at its end. Fails with its errors if it did not get that far."""
    lines = result.stdout.splitlines()
    assert result.exit.code == 0 and lines, (result.exit, result.stdout[-500:], result.stderr.decode()[-2000:])
    found: dict[str, Any] = json.loads(lines[-1])
    return found
