"""A launcher for one command: it runs the plans of this call and ends with it. Synchronous, and light to import.

A container made by `create` must be reaped by whoever called (containerd's shim, conmon): when the launcher ends, its
children go to the nearest subreaper, which is that caller.
"""

from __future__ import annotations

import _socket
import errno
import select

from joey import oci
from joey.host import packets as wire
from joey.oci import log
from joey.oci import system as os
from joey.oci.errors import OciError
from joey.plan.encode import encode

_FD = 64
"""Number under which the launcher gets its end."""
_PROGRAM = f"{os.path.dirname(os.path.dirname(oci.__file__))}/native/bin/joey-launcher"
_SO_PASSCRED, _SCM_CREDENTIALS = 16, 2
_F_ADD_SEALS, _SEALS = 1033, 0xF


ready = []
"""[descriptor, pid] of a launcher that the native front has started already."""


class Failed(OciError):
    """An operation of a plan failed; `op` is the operation, None for the plan as a whole."""

    def __init__(self, op, number):
        what = op.describe() if op is not None else "the plan"
        super().__init__(f"{what}: {os.strerror(number).lower()}")
        self.op, self.errno = op, number


class Launcher:
    """Started when made. Close it, and what it has started goes on without it."""

    def __init__(self, keyring=True):
        self._plans, self._keys, self.exits = {}, 0, {}
        if ready:
            fd, self.pid = ready
            ready.clear()
            os.set_inheritable(fd, False)
            self.socket = _socket.socket(fileno=fd)
            return
        self.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        argv = ["joey-launcher", "--client-fd", str(_FD), *([] if keyring else ["--keyring", "keep"])]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), _FD)]
        try:
            self.pid = os.posix_spawn(_PROGRAM, argv, {}, file_actions=actions)
        except FileNotFoundError:
            raise OciError(f"{_PROGRAM}: this program is not built; run `pip install .` again") from None
        finally:
            theirs.close()

    def run(self, plan, fds):
        """Begin the plan; its key. The descriptors are its first registers and stay the caller's."""
        self._keys += 1
        key = self._keys
        self._plans[key] = plan
        data, passed = encode(plan), list(fds)
        log.debug(f"a plan of {len(plan.ops)} operations goes to the launcher, pid {self.pid}")
        if len(data) > wire.INLINE:
            memory = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(memory, data)
                import fcntl

                fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
                self._send(wire.pack(wire.RUN, key, key), [memory, *passed])
            finally:
                os.close(memory)
        else:
            self._send(wire.pack(wire.RUN, key, key, data=data), passed)
        return key

    def _send(self, packet, fds):
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self.socket.sendmsg([packet], control)
        except OSError as error:
            raise OciError(f"the launcher has ended: {error.strerror}") from None

    def fileno(self):
        return self.socket.fileno()

    def read(self):
        """The next answer as (key, pid, error or None); or None for the end of a process, which is then in `exits`."""
        packet = self.socket.recv(wire.INLINE + wire.HEADER.size)
        if not packet:
            raise OciError("the launcher has ended")
        kind, number, request, _, value, at, _ = wire.HEADER.unpack_from(packet)
        if kind == wire.EXITED:
            for child in wire.CHILD.iter_unpack(packet[wire.HEADER.size :]):
                self.exits[child[0]] = child[4]  # key, status
            return None
        if not number:
            return request, value, None
        plan = self._plans.get(request)
        op = plan.ops[at] if plan is not None and 0 <= at < len(plan.ops) else None
        return request, 0, Failed(op, number)

    def answer(self, key):
        """Wait for the answer to `key`; the pid. Raises Failed."""
        while True:
            found = self.read()
            if found and found[0] == key:
                if found[2]:
                    raise found[2]
                return found[1]

    def watch(self):
        """From now on ends of processes are told."""
        self._send(wire.pack(wire.SUBSCRIBE, 0), [])

    def wait(self, key, seconds=None):
        """Exit status (as of wait(2)) of the process of `key`; None when the time is over."""
        while key not in self.exits:
            if seconds is not None and not select.select([self.socket], [], [], seconds)[0]:
                return None
            self.read()
        return self.exits[key]

    def close(self):
        """It ends; only then are its children others'."""
        self.socket.close()
        if self.pid:
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                pass
            self.pid = 0


class Steps:
    """The caller's end of SYNC, LISTEN."""

    def __init__(self):
        self.ours, self.theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.ours.setsockopt(_socket.SOL_SOCKET, _SO_PASSCRED, 1)

    def fileno(self):
        return self.ours.fileno()

    def hand_over(self):
        """Theirs is with the plan now; when all of it are closed, there is nobody to wait for."""
        self.theirs.close()

    def read(self):
        """(step, pid as seen here, descriptors); None when the other side is gone."""
        data, control, _, _ = self.ours.recvmsg(64, 256)
        if not data:
            return None
        pid, fds = 0, []
        for level, kind, payload in control:
            if level != _socket.SOL_SOCKET:
                continue
            if kind == _SCM_CREDENTIALS:
                pid = int.from_bytes(payload[:4], "little")
            elif kind == _socket.SCM_RIGHTS:
                fds = [int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)]
        return data[0], pid, fds

    def go_on(self):
        self.ours.send(b"\1")

    def close(self):
        self.ours.close()
        self.theirs.close()


def follow(launcher, key, steps, on_step):
    """Go through the steps of a plan until it is answered: on_step(step, pid, fds) for each. The pid. Raises Failed."""
    poll = select.poll()
    poll.register(launcher.fileno(), select.POLLIN)
    poll.register(steps.fileno(), select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if steps.fileno() in ready:
            found = steps.read()
            if found is None:
                poll.unregister(steps.fileno())
            else:
                on_step(*found)
                if not found[2]:
                    steps.go_on()
            continue
        answer = launcher.read()
        if answer and answer[0] == key:
            if answer[2]:
                raise answer[2]
            log.debug(f"it is a process now, pid {answer[1]}")
            return answer[1]


def explain(failure, what):
    """The failure of a plan as runc puts it: callers look for these words. An OciError."""
    op, number = failure.op, failure.errno
    if op is not None and type(op).__name__ in ("Find", "Exec"):
        name = op.program if type(op).__name__ == "Find" else op.path
        if "/" not in name and number == errno.ENOENT:
            why = f'exec: "{name}": executable file not found in $PATH'
        elif number == errno.ENOENT:
            why = f'exec: "{name}": stat {name}: no such file or directory'
        else:
            why = f'exec: "{name}": {os.strerror(number).lower()}'
        return OciError(f"{what}: unable to start container process: {why}")
    nowhere = type(op).__name__ == "Mkdir" and op.path in ("proc", "sys") and number == errno.ENOENT  # by a link
    if nowhere or (type(op).__name__ == "MoveMount" and number == errno.ELOOP):
        return OciError(f"{what}: /{op.path} must be mounted on ordinary directory, and is reached by a link")
    return OciError(f"{what}: unable to start container process: {failure}")
