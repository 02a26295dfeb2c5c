"""A second, independent client of the launcher, for its tests: plans from tuples, blocking calls, the process itself.

The numbers come from native/plan.h, so that a test says `op("OPEN", …)`. Nothing here checks a plan: broken ones are
wanted, too.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import select
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import joey.native

HEADER = Path(joey.native.__file__).with_name("plan.h").read_text()
OPS = {
    name: (int(code), where, regs, offsets)
    for code, name, where, regs, offsets in re.findall(r'OP\((\d+),\s*(\w+),\s*(\w),\s*"(.{4})",\s*"(.{4})"\)', HEADER)
}
MSG = {name: int(value) for name, value in re.findall(r"MSG_(\w+) = (\d+)", HEADER)}
MAGIC, VERSION, NO_REG, INLINE = 0x4E4C504A, 3, 255, 65536
HEAD = struct.Struct("<IIQQqiI")
CHILD = struct.Struct("<QQQiiQQQII")

VM, VFORK, FILES, PARENT = 0x100, 0x4000, 0x400, 0x8000
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
FAST = VM | VFORK | FILES


class Op(NamedTuple):
    name: str
    r: tuple[int, ...] = ()
    s: tuple[Any, ...] = ()
    n: tuple[int, ...] = ()


def op(name: str, *r: int, s: Sequence[Any] = (), n: Sequence[int] = ()) -> Op:
    """An operation: registers, then the things its offsets lead to, then numbers. What is left out is unused."""
    return Op(name, tuple(r), tuple(s), tuple(n))


class Raw(int):
    """An offset as it is."""


def encode(ops: Sequence[Op], magic: int = MAGIC, version: int = VERSION, tail: bytes = b"\0") -> bytes:
    blob, packed = bytearray(b"\0"), bytearray()

    def put(item: Any, kind: str) -> int:
        if isinstance(item, Raw):
            return int(item)
        at = len(blob)
        if kind == "s":
            blob.extend((item if isinstance(item, bytes) else item.encode()) + b"\0")
        elif kind == "v":
            blob.extend(struct.pack("<I", len(item)) + b"".join(os.fsencode(one) + b"\0" for one in item))
        elif kind == "u":
            blob.extend(struct.pack(f"<{1 + len(item)}I", len(item), *item))
        else:
            blob.extend(struct.pack("<I", len(item)) + bytes(item))
        return at

    for one in ops:
        code, _, _, kinds = OPS[one.name]
        r = list(one.r) + [NO_REG] * (4 - len(one.r))
        items = list(one.s) + [{"s": "", "-": Raw(0)}.get(kind, []) for kind in kinds[len(one.s) :]]
        s = [put(item, kind) for item, kind in zip(items, kinds, strict=True)]
        n = list(one.n) + [0] * (3 - len(one.n))
        packed += struct.pack("<H4BH4I3Q", code, *r, 0, *s, *n)
    blob += tail
    return struct.pack("<4I", magic, version, len(ops), len(blob)) + bytes(packed) + bytes(blob)


class Reply(NamedTuple):
    type: int
    error: int
    request: int
    key: int
    value: int
    op: int
    data: bytes
    fds: tuple[int, ...]

    def children(self) -> list[Child]:
        return [Child(*fields[:9]) for fields in CHILD.iter_unpack(self.data)]


class Child(NamedTuple):
    key: int
    started_ns: int
    exited_ns: int
    pid: int
    status: int
    user_us: int
    system_us: int
    max_rss_kib: int
    held: int


@dataclass
class Client:
    """One connection. `ask` sends and waits for the answer with that number; exits on the way are kept in `exits`."""

    socket: socket.socket
    last: int = 0
    exits: dict[int, Child] = field(default_factory=dict)
    early: dict[int, Reply] = field(default_factory=dict)

    def send(self, type: str | int, key: int = 0, value: int = 0, data: bytes = b"", fds: Sequence[int] = ()) -> int:
        self.last += 1
        number = MSG[type] if isinstance(type, str) else type
        self.raw(HEAD.pack(number, 0, self.last, key, value, 0, len(data)) + data, fds)
        return self.last

    def raw(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([packet], control)

    def receive(self, timeout: float = 10.0) -> Reply:
        """The next message. Raises TimeoutError, ConnectionError."""
        self.socket.settimeout(timeout)
        packet, control, _, _ = self.socket.recvmsg(1 << 17, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC)
        if not packet:
            raise ConnectionError("launcher closed the connection")
        fds = array.array("i")
        for _, _, data in control:
            fds.frombytes(data[: len(data) - len(data) % 4])
        reply = Reply(*HEAD.unpack_from(packet)[:6], packet[HEAD.size :], tuple(fds))
        for child in reply.children() if reply.type == MSG["EXITED"] else ():
            self.exits[child.key] = child
        return reply

    def answer(self, number: int, timeout: float = 10.0) -> Reply:
        while number not in self.early:
            reply = self.receive(timeout)
            if reply.type != MSG["EXITED"]:
                self.early[reply.request] = reply
        return self.early.pop(number)

    def ask(self, type: str | int, key: int = 0, value: int = 0, data: bytes = b"", fds: Sequence[int] = ()) -> Reply:
        return self.answer(self.send(type, key, value, data, fds))

    def run(self, key: int, ops: Sequence[Op], fds: Sequence[int] = ()) -> Reply:
        return self.ask("RUN", key, data=encode(ops), fds=fds)

    def list(self) -> list[Child]:
        found: list[Child] = []
        while page := self.ask("LIST", found[-1].key if found else 0).children():
            found += page
        return found

    def wait_exit(self, key: int, timeout: float = 10.0) -> Child:
        """The exit of a child; SUBSCRIBE must have been asked."""
        while key not in self.exits:
            self.receive(timeout)
        return self.exits[key]

    def close(self) -> None:
        self.socket.close()


@dataclass
class Launcher:
    """A launcher process and where it listens."""

    path: Path
    process: subprocess.Popen[bytes]
    clients: list[Client] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> Client:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(os.fspath(self.path))
        self.clients.append(Client(connection))
        return self.clients[-1]

    def fds(self) -> dict[int, str]:
        """What it has open, by number; not a sanitizer's own file."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{self.pid}/fd/{name}")
        return {number: name for number, name in found.items() if "/sanitizer." not in name}

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def namespaces(self) -> dict[str, str]:
        folder = f"/proc/{self.pid}/ns"
        return {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def launcher(
    program: Path,
    idle: int = 10,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[Launcher]:
    """Start one, by way of the command `prefix`; at the end everything it runs is killed, then it is."""
    with tempfile.TemporaryDirectory(prefix="joey-native-") as folder:
        path = Path(folder) / "launcher.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(path))
            listener.listen(64)
            command = [*prefix, os.fspath(program), "--listen-fd", str(listener.fileno()), "--idle-exit", str(idle)]
            environment = {**os.environ, **(env or {})}
            fds = [listener.fileno(), *pass_fds]
            process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment)
        here = Launcher(path, process)
        try:
            yield here
        finally:
            for client in here.clients:
                client.close()
            stop(here)


def stop(here: Launcher) -> None:
    if here.process.poll() is None:
        for pid in here.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        here.process.kill()
    here.process.wait()


def memfd(data: bytes, seals: int = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def drain(fd: int, timeout: float = 10.0) -> bytes:
    """All that comes until the end, then the descriptor is closed."""
    data, end = b"", time.monotonic() + timeout
    while True:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"after {data!r}")
        piece = os.read(fd, 65536)
        if not piece:
            os.close(fd)
            return data
        data += piece


def read_line(fd: int, timeout: float = 10.0) -> bytes:
    if not select.select([fd], [], [], timeout)[0]:
        raise TimeoutError("no line")
    return os.read(fd, 4096)


# ---- plans


PROBE = os.fspath(joey.native.BIN / "joey-probe")
NO_STDIO = op("STDIO", s=([], []))


def execute(*argv: str, env: Sequence[str] = ()) -> Op:
    return op("EXEC", s=(PROBE, [PROBE, *argv], list(env), ""))


def quiet(*argv: str, flags: int = FAST, before: Sequence[Op] = (), inside: Sequence[Op] = ()) -> list[Op]:
    """A child that runs the probe and says nothing."""
    return [*before, op("CLONE", n=(flags,)), *inside, NO_STDIO, execute(*argv)]


def talking(*argv: str, flags: int = FAST, before: Sequence[Op] = (), inside: Sequence[Op] = ()) -> list[Op]:
    """A child whose output comes back as the first descriptor (registers 0 and 1)."""
    pipe = [op("PIPE", 0, 1), op("HOLD", 0, n=(1, 2))]
    stdio = op("STDIO", NO_REG, 1, 1, s=([], []))
    return [*before, *pipe, op("CLONE", n=(flags,)), *inside, stdio, execute(*argv)]


def output(client: Client, key: int, ops: Sequence[Op], fds: Sequence[int] = ()) -> str:
    """What the child of such a plan wrote. Raises AssertionError if the plan failed."""
    reply = client.run(key, ops, fds)
    assert reply.error == 0, (os.strerror(reply.error), reply.op, ops[reply.op] if reply.op >= 0 else None)
    return drain(reply.fds[0]).decode()
