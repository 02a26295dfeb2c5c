"""The warm process of a template: `python3 /opt/joey-runtime/zygote.py`. It imports, then forks on request.

It trusts nothing and need not be trusted: it has the powers of a sandbox, and two capabilities in its own user
namespace that only serve setns(2). On its channel (descriptor 3) come

    {settings}          u32 length | JSON, once; the answer is {state, reason, …} in the same form
    F + descriptors     fork: `_KINDS` of namespaces, standard output and error, the child's channel

A fork takes two processes: the pid namespace is entered by being born in it, and the second one, whose parent ends, is
a child of that namespace's first process, which ends with it. Neither is told anything of the child but descriptors:
what it shall know comes on its own channel, so no sibling inherits it.

See docs/decisions/0009-templates.md. Pure standard library, Python >= 3.8; ctypes for the calls it has no names for.
"""

import array
import gc
import json
import os
import signal
import socket
import struct
import sys
import time

_KINDS = (  # name, CLONE_NEW*: in the order in which the descriptors come; the pid namespace is entered before the fork
    ("cgroup", 0x02000000),
    ("ipc", 0x08000000),
    ("uts", 0x04000000),
    ("net", 0x40000000),
    ("mnt", 0x00020000),
    ("user", 0x10000000),
)
_NEWPID = 0x20000000
_MOVED_IN = 64
_BORN = b"\2"
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_NUMBERS = {"x86_64": {"capset": 126, "close_range": 436}, "aarch64": {"capset": 91, "close_range": 436}}
_MOST_FDS = 64
_GPU = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel")


class Unsafe(Exception):
    """It cannot be forked; says why."""


class Kernel:
    """Calls Python has no names for."""

    def __init__(self):
        import ctypes

        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.bare_fork = ctypes.PyDLL(None, use_errno=True).fork  # keeps the interpreter's lock: nobody else has it
        # Declared, so that numbers need not be made objects of ctypes first; and looked up now, not by each child.
        whole = ctypes.c_ulong
        self.libc.prctl.argtypes = [ctypes.c_int, whole, whole, whole, whole]
        self.libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
        self.libc.syscall  # noqa: B018
        self.numbers = _NUMBERS[os.uname().machine]
        self.capabilities = next((n for n in range(64) if self.libc.prctl(_PR_CAPBSET_READ, n, 0, 0, 0) < 0), 64)

    def check(self, result, what):
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, "%s: %s" % (what, os.strerror(number)))

    def setns(self, fd, kind, name):
        self.check(self.libc.setns(fd, kind), "setns " + name)

    def prctl(self, option, a=0, b=0):
        if self.libc.prctl(option, a, b, 0, 0) < 0:
            self.check(-1, "prctl %d" % option)

    def capset(self, kept):
        header = struct.pack("=Ii", 0x20080522, 0)
        low, high = kept & 0xFFFFFFFF, kept >> 32
        data = struct.pack("=6I", low, low, 0, high, high, 0)
        self.check(self.libc.syscall(self.numbers["capset"], header, data), "capset")

    def close_from(self, first):
        if self.libc.syscall(self.numbers["close_range"], first, 0x7FFFFFFF, 0) < 0:
            os.closerange(first, os.sysconf("SC_OPEN_MAX"))

    def program(self, filter):
        """A filter as prctl wants it, once for all children."""
        buffer = self.ctypes.create_string_buffer(filter, len(filter))
        fprog = struct.pack("HxxxxxxP", len(filter) // 8, self.ctypes.addressof(buffer))
        return buffer, self.ctypes.create_string_buffer(fprog, len(fprog))

    def filter(self, program):
        self.prctl(_PR_SET_SECCOMP, 2, self.ctypes.addressof(program[1]))


# --- warming ---------------------------------------------------------------------------------------------------------


def look():
    """What stands against a fork. Raises Unsafe."""
    pid = os.fork()  # libraries that end their threads before a fork have done so now
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise Unsafe("%d threads are alive: a fork has only the one that forks" % len(threads))
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            continue
        if target.startswith(_GPU):
            raise Unsafe("descriptor %s is %s, which cannot be shared" % (fd, target))
    with open("/proc/self/maps") as maps:
        for line in maps:
            parts = line.split(None, 5)
            if parts[1].startswith("rw") and parts[1].endswith("s"):
                name = parts[5].strip() if len(parts) > 5 else "memory without a name"
                raise Unsafe("%s is mapped shared and writable: siblings would share it" % name)


def warm(settings):
    """Import and run what is asked for. → what is answered."""
    from joey_runtime import serve

    began = time.monotonic()
    try:
        serve.prepare(settings["modules"], settings["init"], settings["code"], settings["layers"])
        sys.stdout.flush()
        sys.stderr.flush()
        reseed()  # what that imports need not be imported by each child
        gc.collect()
        look()
        kernel = Kernel()
    except Unsafe as why:
        return {"state": "unsafe", "reason": str(why)}, None
    except ImportError as error:
        if getattr(error, "name", "") in ("ctypes", "_ctypes"):
            return {"state": "unsafe", "reason": "this Python has no ctypes, which the fork needs"}, None
        return {"state": "failed", "reason": "%s: %s" % (type(error).__name__, error)}, None
    except BaseException as error:
        return {"state": "failed", "reason": "%s: %s" % (type(error).__name__, error)}, None
    gc.freeze()
    version = "%d.%d.%d" % sys.version_info[:3]
    return {"state": "ready", "reason": "", "python": version, "seconds": time.monotonic() - began}, kernel


# --- forking ---------------------------------------------------------------------------------------------------------


class Zygote:
    def __init__(self, control, settings, kernel):
        self.control, self.settings, self.kernel = control, settings, kernel
        self.null = os.open("/dev/null", os.O_RDWR)
        self.program = kernel.program(bytes.fromhex(settings["filter"]))
        self.dropped = [number for number in range(kernel.capabilities) if not settings["bounding"] >> number & 1]
        self.ended = set()

    def loop(self):
        """Until the daemon is gone."""
        signal.signal(signal.SIGCHLD, self.reap)
        while True:
            fds, byte = self.request()
            if byte != b"F":
                return
            try:
                self.fork(fds)
            except OSError as error:  # whoever waits for the child reads why, and the end of its channel
                message = "fork: %s\n" % error
                if len(fds) > 8:
                    os.write(fds[8], message.encode())
            for fd in fds:
                os.close(fd)

    def request(self):
        fds = array.array("i")
        byte, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(_MOST_FDS * fds.itemsize))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return list(fds), byte

    def reap(self, *_):
        """At once: a sandbox cannot end before all that were born in it are waited for (pid_namespaces(7))."""
        for pid in tuple(self.ended):
            try:
                over = os.waitpid(pid, os.WNOHANG)[0]
            except ChildProcessError:  # the signal came in the middle of this, and its handler was faster
                over = True
            if over:
                self.ended.discard(pid)

    def fork(self, fds):
        """fds: pid namespace, the others of _KINDS, out, err, channel."""
        self.kernel.setns(fds[0], _NEWPID, "pid")
        # The C library's fork: Python's has handlers to run, and what the child writes to before it is in its cgroups
        # is the template's for as long as the instance lives (0.8 MiB; so 0.3). They run at the second fork.
        pid = self.kernel.bare_fork()
        if pid > 0:
            self.ended.add(pid)
            self.reap()
            return
        self.kernel.check(pid, "fork")
        try:
            # With it the daemon learns from the kernel who this is, and moves it into its cgroups.
            os.write(fds[9], _BORN)
            if os.read(fds[9], 1) != _BORN:
                os._exit(70)
            # From here on its memory is the instance's, and so is what it uses of everything else.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if os.fork():
                os._exit(0)
            self.enter(fds)
            status = self.live()
        except BaseException as error:
            try:
                os.write(2 if self.moved else fds[8], ("fork: %s: %s\n" % (type(error).__name__, error)).encode())
            finally:
                os._exit(70)
        os._exit(status)

    moved = False

    def enter(self, fds):
        kernel, settings = self.kernel, self.settings
        for (name, kind), fd in zip(_KINDS, fds[1:7]):
            kernel.setns(fd, kind, name)
        out, err, channel = fds[7:10]
        moved = [os.dup(fd) for fd in (out, err, channel)]  # above all that they become
        for fd, to in zip((self.null, *moved), range(4)):
            os.dup2(fd, to)
        os.set_inheritable(3, False)
        self.moved = True
        kernel.close_from(4)
        os.setsid()
        os.setgroups(settings["groups"])
        kernel.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        for number in self.dropped:
            kernel.prctl(_PR_CAPBSET_DROP, number)
        os.setresgid(settings["gid"], settings["gid"], settings["gid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
        kernel.capset(settings["kept"])
        kernel.prctl(_PR_SET_DUMPABLE, 1)  # as after an exec: its memory and /proc/self are its own
        if settings["oom_score_adj"]:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(settings["oom_score_adj"]))
        kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
        kernel.filter(self.program)
        os.umask(settings["umask"])
        os.chdir(settings["cwd"])

    def live(self):
        """Wait to be told what it is for, and then be the runtime."""
        import _socket

        from joey_runtime import serve

        reseed()
        sock = _socket.socket(fileno=3)
        sock.send(b"\1")
        told = json.loads(_exactly(sock, struct.unpack(">I", _exactly(sock, 4))[0]))
        serve.environment(told["env"], only=True)
        if told["main"]:
            os.kill(1, _MOVED_IN)
        sock.send(b"\1")
        return serve.serve(sock)


def reseed():
    """What would be equal in siblings. `random` reseeds itself after a fork; generators a program has made for itself
    are its own affair (os.register_at_fork).
    """
    modules = sys.modules
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "ssl" in modules or "_ssl" in modules:
        import ssl

        ssl.RAND_add(os.urandom(32), 32.0)  # it notices a fork by the pid, which may be the same
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def _exactly(sock, size):
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("the channel ended")
        data += piece
    return data


def main():
    import bootstrap

    bootstrap.package()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(os.environ.pop("JOEY_CHANNEL_FD")))
    settings = json.loads(_exactly(control, struct.unpack(">I", _exactly(control, 4))[0]))
    answer, kernel = warm(settings)
    data = json.dumps(answer).encode()
    control.sendall(struct.pack(">I", len(data)) + data)
    if kernel is not None:
        try:
            Zygote(control, settings, kernel).loop()
        except ConnectionError:
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
