"""One Jupyter kernel (ipykernel), in a fork of the interpreter's main program."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>: no kernel outlives the main program


def prepare() -> None:
    """Before any fork: no history file, whose writer is a thread."""
    from IPython.core.history import HistoryManager

    HistoryManager.enabled = False
    HistoryManager.hist_file = ":memory:"


def run(message: dict, folder: str, control: socket.socket) -> None:
    """message: of the server. control: says that it is ready, then closed. Returns when the kernel has ended."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(message["cwd"])
    import joey_results

    # This directory's files are no modules of the user's, those in its own are.
    sys.path[:] = ["", *(path for path in sys.path if path not in ("", os.path.dirname(os.path.abspath(__file__))))]
    for name in [name for name in sys.modules if name.startswith("joey_")]:
        del sys.modules[name]
    random.seed()  # every fork would draw the same
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    from ipykernel.kernelapp import IPKernelApp

    class Kernel(IPKernelApp):
        """A parser of arguments takes a tenth of the start, and there are none."""

        def parse_command_line(self, argv=None) -> None:
            pass

    file = os.path.join(folder, message["spawn"] + ".json")
    app = Kernel.instance(connection_file=file, transport="ipc", ip=file[:-5])
    app.initialize([])
    joey_results.install(app.shell)
    control.send(json.dumps({"ready": message["spawn"], "file": file}).encode())
    control.close()
    app.start()
    os._exit(0)


def end_all() -> None:
    """Whatever the main program's user still runs as its children: it is about to end."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        for pid in file.read().split():
            with contextlib.suppress(OSError):
                os.killpg(int(pid), signal.SIGKILL)
