"""The code interpreter's main program: what Jupyter kernels are forked from, once their modules are imported.

Three kinds of processes, all of one user. This one forks the server (joey_serving, which speaks HTTP on port 49999),
imports ipykernel while that begins to listen, and forks kernels as the server asks for them: a fork takes a fifth of
what a start of Python with its imports takes. When nothing else is to be done it imports what data work begins with
(numpy, pandas, matplotlib), and says so: kernels forked from then on have them. It never starts a thread of its own.

Until the first answer every millisecond is somebody's: no garbage is collected while modules are imported, as none of
it is any, and what IPython has for terminals (prompt_toolkit: a third of all its imports) is imported if it is called.

Messages between them are JSON in datagrams of a socketpair. To here: {"spawn": id, "cwd": …}, and {"used": true} when
somebody runs code: from then on processors are for that, and nothing more is imported ahead. From here:
{"spawned": id, "pid": n}, {"exited": pid, "status": n}, {"warm": true}; from a new kernel: {"ready": id, "file": path}.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import pwd
import select
import shutil
import signal
import socket
import sys
import tempfile
import types

WARM = ("stack_data", "numpy", "pandas", "matplotlib.pyplot")
POSTPONED = {
    "IPython.terminal.embed": ("embed",),
    "stack_data": ("FrameInfo",),
    "psutil": ("Process",),
    "urllib.request": ("Request", "urlopen"),
}
PYTHONS = ("python3", "/usr/bin/python3", "/usr/local/bin/python3", "/opt/conda/bin/python3")
_QUIET_SECONDS = 3.0
"""Nothing more is imported ahead while others may be busy: with starting, or with what they asked one of us for."""
_PACKET = 1 << 16
_TRIED = "JOEY_INTERPRETER_TRIED"


def find_python() -> None:
    """Go on as a Python that has ipykernel, if this one has none. Exits with what is missing."""
    if importlib.util.find_spec("ipykernel") is not None:
        os.environ.pop(_TRIED, None)
        return
    tried = int(os.environ.get(_TRIED, "0"))
    for number, name in enumerate(PYTHONS[tried:], tried + 1):
        path = shutil.which(name)
        if path is not None and os.path.realpath(path) != os.path.realpath(sys.executable):
            os.environ[_TRIED] = str(number)
            os.execv(path, [path, *sys.argv])
    sys.exit("the code interpreter needs a Python with ipykernel, and this image has none")


def become_user() -> None:
    """The user `user`, where there is one and this is root."""
    if os.getuid() == 0:
        try:
            entry = pwd.getpwnam("user")
        except KeyError:
            entry = pwd.getpwuid(0)
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    entry = pwd.getpwuid(os.getuid())
    os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    os.chdir(entry.pw_dir if os.path.isdir(entry.pw_dir) else "/")


def import_ahead() -> None:
    """What every kernel needs. Without debugger and completion: half of the time, and no use here; and without what is
    for terminals, tracebacks, processes' figures and %load, until it is used.
    """
    for name in ("debugpy", "jedi"):
        sys.modules[name] = None  # type: ignore[assignment]
    for name, names in POSTPONED.items():
        if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0]) is not None:
            sys.modules[name] = Postponed(name, names)
    for name in ("ipykernel.kernelapp", "IPython.core.ultratb", "joey_results"):
        importlib.import_module(name)
    for name in ("debugpy", "jedi", *POSTPONED):
        if isinstance(sys.modules.get(name), (Postponed, type(None))):
            sys.modules.pop(name, None)  # who imports it from now on gets it


class Postponed(types.ModuleType):
    """In place of a module, for those that import it: it is imported when something of it is used. names: what is
    imported from it by name, or only named in annotations; anything else imports it at once.
    """

    def __init__(self, name: str, names: tuple) -> None:
        super().__init__(name)
        for one in names:
            setattr(self, one, Name(one, (), {"place": (name, one), "__module__": name}))

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(real(self.__name__), attribute)


def real(name: str) -> types.ModuleType:
    if isinstance(sys.modules.get(name), Postponed):
        del sys.modules[name]
    return importlib.import_module(name)


class Name(type):
    """A class or function of a module that is not yet imported."""

    def thing(cls):
        module, name = cls.__dict__["place"]
        return getattr(real(module), name)

    def __call__(cls, *args, **named):
        return cls.thing()(*args, **named)

    def __getattr__(cls, attribute: str):
        return getattr(cls.thing(), attribute)

    def __instancecheck__(cls, instance) -> bool:
        return isinstance(instance, cls.thing())


def prepare_matplotlib(folder: str) -> None:
    """Charts become results. Debian's matplotlib wants settings in /etc, too, which the image `host` lacks."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if os.path.isdir("/usr/lib/python3/dist-packages/matplotlib") and not os.path.exists("/etc/matplotlibrc"):
        path = os.path.join(folder, "matplotlibrc")
        with open(path, "w"):
            os.environ.setdefault("MATPLOTLIBRC", path)


class Zygote:
    """control: the socket to the server. folder: where kernels have their sockets."""

    def __init__(self, control: socket.socket, folder: str) -> None:
        self.control, self.folder = control, folder
        self.server = 0
        self.cold = [name for name in WARM if importlib.util.find_spec(name.partition(".")[0]) is not None]
        self.busy = False
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.wake, False)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> int:
        """→ the server's exit status."""
        pause = _QUIET_SECONDS
        while True:
            wait = pause if self.cold and self.busy else None
            found, _, _ = select.select([self.control, self.woken], [], [], wait)
            if self.woken in found:
                os.read(self.woken, _PACKET)
                status = self.reap()
                if status is not None:
                    return status
            if self.control in found:
                data = self.control.recv(_PACKET)
                if not data:
                    return 1
                message = json.loads(data)
                if "spawn" in message:
                    self.spawn(message)
                    self.busy = True
                else:
                    self.cold = []
            pause = _QUIET_SECONDS if found else 0.0
            if not found:
                self.warm()

    def warm(self) -> None:
        """Import one module more; one that cannot be imported is left out."""
        name = self.cold.pop(0)
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name}: {error}", file=sys.stderr)
        if not self.cold:
            gc.freeze()
            self.send({"warm": True})

    def reap(self) -> int | None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1
            if not pid:
                return None
            if pid == self.server:
                return os.waitstatus_to_exitcode(status)
            self.send({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def send(self, message: dict) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:  # the server is gone, which is heard of next
            pass

    def spawn(self, message: dict) -> None:
        pid = os.fork()
        if pid:
            self.send({"spawned": message["spawn"], "pid": pid})
            return
        try:
            self.reset()
            import joey_kernel

            joey_kernel.run(message, self.folder, self.control)
        except BaseException as error:
            print(f"a kernel has failed: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)

    def reset(self) -> None:
        """In a child: nothing of this process's signals."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self.woken)
        os.close(self.wake)
        gc.enable()


def main() -> int:
    gc.disable()
    find_python()
    become_user()
    folder = tempfile.mkdtemp(prefix=".joey-kernels-")
    prepare_matplotlib(folder)
    import joey_serving

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = Zygote(ours, folder)
    zygote.server = os.fork()
    if not zygote.server:
        try:
            zygote.reset()
            ours.close()
            joey_serving.run(theirs, folder)
        except BaseException as error:
            print(f"the interpreter's server has failed: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    theirs.close()
    import joey_kernel

    try:
        import_ahead()
        joey_kernel.prepare()
        gc.freeze()  # children neither look through what is here, nor copy its pages for that
        return zygote.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        joey_kernel.end_all()


if __name__ == "__main__":
    sys.exit(main())
