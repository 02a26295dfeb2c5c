"""Operations of plans that somebody follows step by step (joey-oci): native/ops_oci.c."""

from __future__ import annotations

from joey.plan import flags as f
from joey.plan.ops.base import Blob, Op, Packed, Reg
from joey.plan.ops.base import reg as show


class Sync(Op, frozen=True):
    """Say that a step is reached and wait to be told to go on. `why` is for people."""

    CODE = 51
    reg: Reg
    step: int
    why: str = ""

    def describe(self) -> str:
        return f"sync {self.step} over {show(self.reg)}{': ' + self.why if self.why else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.step,)


class Gate(Op, frozen=True):
    CODE = 52
    reg: Reg

    def describe(self) -> str:
        return f"created; wait for {show(self.reg)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), ()


class Send(Op, frozen=True):
    CODE = 53
    socket: Reg
    reg: Reg
    text: str = ""

    def describe(self) -> str:
        return f"send {show(self.reg)} over {show(self.socket)}{' as ' + self.text if self.text else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (self.socket, self.reg), (blob.string(self.text),), ()


class Receive(Op, frozen=True):
    CODE = 60
    out: Reg
    socket: Reg

    def describe(self) -> str:
        return f"receive over {show(self.socket)} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out, self.socket), (), ()


class Listen(Op, frozen=True):
    CODE = 54
    socket: Reg
    program: bytes
    flags: int = 0

    def describe(self) -> str:
        return f"seccomp of {len(self.program) // 8} instructions, its listener over {show(self.socket)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.socket,), (blob.data(self.program),), (self.flags,)


class Find(Op, frozen=True):
    CODE = 55
    program: str
    search: str = ""

    def describe(self) -> str:
        return f"find {self.program}{' in ' + self.search if self.search else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.program), blob.string(self.search)), ()


class Scheduler(Op, frozen=True):
    CODE = 56
    attributes: bytes

    def describe(self) -> str:
        return f"sched_setattr {self.attributes.hex()}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.data(self.attributes),), ()


class Ioprio(Op, frozen=True):
    CODE = 57
    priority: int

    def describe(self) -> str:
        return f"ioprio_set class {self.priority >> 13} priority {self.priority & 0x1FFF}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.priority,)


class Affinity(Op, frozen=True):
    CODE = 58
    mask: bytes

    def describe(self) -> str:
        cpus = [bit for bit in range(len(self.mask) * 8) if self.mask[bit // 8] >> bit % 8 & 1]
        return f"sched_setaffinity {f.join([str(cpu) for cpu in cpus]).strip()}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.data(self.mask),), ()


class Copy(Op, frozen=True):
    """Of one directory to another: what it holds (links as links), its mode, its owner."""

    CODE = 62
    CONTENTS, MODE, OWNER = 1, 2, 4
    source: Reg
    to: Reg
    what: int

    def describe(self) -> str:
        names = {"contents": self.CONTENTS, "mode": self.MODE, "owner": self.OWNER}
        return f"copy{f.join(f.names(self.what, names))} of {show(self.source)} to {show(self.to)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.source, self.to), (), (self.what,)
