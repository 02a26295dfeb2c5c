"""Operations on descriptors, files and terminals."""

from __future__ import annotations

from joey.plan import flags as f
from joey.plan.ops.base import NO_REG, Blob, Op, Packed, Reg, at, readable
from joey.plan.ops.base import reg as show


class Open(Op, frozen=True):
    CODE = 1
    out: Reg
    path: str
    at: Reg = NO_REG
    flags: int = f.O_CLOEXEC
    mode: int = 0
    resolve: int = 0

    def describe(self) -> str:
        extra = f.join(f.names(self.flags & ~f.O_CLOEXEC, f.OPEN_FLAGS), f.names(self.resolve, f.RESOLVE))
        return f"openat2 {at(self.at, self.path)}{extra} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out, self.at), (blob.string(self.path),), (self.flags, self.mode, self.resolve)


class Close(Op, frozen=True):
    CODE = 2
    reg: Reg

    def describe(self) -> str:
        return f"close {show(self.reg)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), ()


class Keep(Op, frozen=True):
    """The launcher keeps the descriptor for all later plans, under a register of its own."""

    CODE = 3
    reg: Reg
    register: Reg

    def describe(self) -> str:
        return f"keep {show(self.reg)} as {show(self.register)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.register,)


class Hold(Op, frozen=True):
    """Once the plan has succeeded, the launcher keeps the descriptor with the child and/or sends it to the engine."""

    CODE = 4
    reg: Reg
    role: int
    keep: bool = True
    send: bool = True

    def describe(self) -> str:
        how = " and ".join(word for word, on in (("keep", self.keep), ("send", self.send)) if on)
        return f"{how} {show(self.reg)} as {f.ROLES[self.role]}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.role, self.keep | self.send << 1)


class Pipe(Op, frozen=True):
    """lasting: it never breaks, whoever loses the read end may open it again by /proc (the write end can read, too)."""

    CODE = 5
    read: Reg
    write: Reg
    lasting: bool = False

    def describe(self) -> str:
        return f"pipe2 -> {show(self.read)}, {show(self.write)}{' that never breaks' if self.lasting else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (self.read, self.write), (), (f.O_CLOEXEC, int(self.lasting))


class OpenPty(Op, frozen=True):
    CODE = 6
    master: Reg
    slave: Reg
    devpts: str
    rows: int
    cols: int

    def describe(self) -> str:
        return f"openpty in {self.devpts} {self.rows}x{self.cols} -> {show(self.master)}, {show(self.slave)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.master, self.slave), (blob.string(self.devpts),), (self.rows, self.cols)


class Mkdir(Op, frozen=True):
    CODE = 18
    path: str
    mode: int = 0o755
    at: Reg = NO_REG
    exist_ok: bool = False
    parents: bool = False
    owner: int | None = None

    def describe(self) -> str:
        words = [f"{self.mode:04o}"] + ([f"owner {self.owner}"] if self.owner is not None else [])
        words += (["parents"] if self.parents else []) + (["may exist"] if self.exist_ok else [])
        return f"mkdir {at(self.at, self.path)} {' '.join(words)}"

    def pack(self, blob: Blob) -> Packed:
        owner = 0 if self.owner is None else self.owner + 1
        return (NO_REG, self.at), (blob.string(self.path),), (self.mode, self.exist_ok | self.parents << 1, owner)


class Mknod(Op, frozen=True):
    """uid, gid: whose a node is that was made here; one that may be there keeps its owner."""

    CODE = 19
    path: str
    mode: int
    device: int = 0
    at: Reg = NO_REG
    exist_ok: bool = False
    same_ok: bool = False
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        node = f"{self.device >> 8}:{self.device & 255} " if self.device else ""
        may = " may exist" if self.exist_ok else " may be there" if self.same_ok else ""
        owner = f" owner {self.uid}:{self.gid}" if self.uid or self.gid else ""
        return f"mknod {at(self.at, self.path)} {node}{self.mode:06o}{owner}{may}"

    def pack(self, blob: Blob) -> Packed:
        return (
            (NO_REG, self.at),
            (blob.string(self.path),),
            (self.mode | self.uid << 32, self.device, (1 if self.exist_ok else 2 * self.same_ok) | self.gid << 32),
        )


class Symlink(Op, frozen=True):
    CODE = 20
    target: str
    link: str
    at: Reg = NO_REG
    exist_ok: bool = False

    def describe(self) -> str:
        return f"symlink {at(self.at, self.link)} to {self.target}{' may exist' if self.exist_ok else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.target), blob.string(self.link)), (self.exist_ok,)


class Chown(Op, frozen=True):
    CODE = 21
    path: str
    uid: int
    gid: int
    at: Reg = NO_REG

    def describe(self) -> str:
        return f"chown {at(self.at, self.path)} {self.uid}:{self.gid}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path),), (self.uid, self.gid)


class Write(Op, frozen=True):
    CODE = 22
    path: str
    text: str
    at: Reg = NO_REG
    flags: int = 0

    def describe(self) -> str:
        return f"write {readable(self.text)} > {at(self.at, self.path)}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path), blob.string(self.text)), (self.flags,)


class Remove(Op, frozen=True):
    CODE = 23
    path: str
    how: int = 0
    at: Reg = NO_REG
    missing_ok: bool = False
    budget: int = 0

    def describe(self) -> str:
        how = ("unlink", "rmdir", "remove tree")[self.how]
        return f"{how} {at(self.at, self.path)}{' may be missing' if self.missing_ok else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path),), (self.how, self.missing_ok, self.budget)


class Stdio(Op, frozen=True):
    CODE = 31
    stdin: Reg
    stdout: Reg
    stderr: Reg
    preserve: tuple[Reg, ...] = ()
    reach: tuple[Reg, ...] = ()

    def describe(self) -> str:
        more = f" 3-{2 + len(self.preserve)}={' '.join(map(show, self.preserve))}" if self.preserve else ""
        reach = f", still in reach {' '.join(map(show, self.reach))}" if self.reach else ""
        return f"close_range all but 0={show(self.stdin)} 1={show(self.stdout)} 2={show(self.stderr)}{more}{reach}"

    def pack(self, blob: Blob) -> Packed:
        return (self.stdin, self.stdout, self.stderr), (blob.registers(self.preserve), blob.registers(self.reach)), ()


class Wait(Op, frozen=True):
    CODE = 47
    reg: Reg

    def describe(self) -> str:
        return f"wait for {show(self.reg)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), ()
