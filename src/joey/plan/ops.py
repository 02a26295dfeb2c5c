"""The closed vocabulary of plans: one value per operation of native/plan.h, about one system call each.

Registers (`Reg`) are small numbers for file descriptors that exist only while a plan runs. Every operation tells in
one line what it does (`describe`), for `joey explain`, golden tests and error messages, and packs itself for the
launcher (`pack`). Sources: the man pages of the calls named; open_tree(2), move_mount(2), mount_setattr(2), fsopen(2),
clone3(2), openat2(2).
"""

from __future__ import annotations

import shlex
from typing import ClassVar, NewType, Protocol

import msgspec

from joey.plan import flags as f

Reg = NewType("Reg", int)
NO_REG = Reg(255)
LOCALS = 192
"""Registers below are a plan's own; those above belong to the launcher (KEEP)."""


class Blob(Protocol):
    """Where packed operations put their strings; each method returns an offset."""

    def string(self, text: str) -> int: ...
    def strings(self, items: tuple[str, ...]) -> int: ...
    def data(self, data: bytes) -> int: ...
    def numbers(self, items: tuple[int, ...]) -> int: ...
    def registers(self, items: tuple[Reg, ...]) -> int: ...


Packed = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""(registers, offsets, numbers), at most 4, 4 and 3 of them."""


class Op(msgspec.Struct, frozen=True):
    """Base of all operations."""

    CODE: ClassVar[int] = 0

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def describe(self) -> str:
        raise NotImplementedError

    def pack(self, blob: Blob) -> Packed:
        raise NotImplementedError


def fd(number: Reg) -> str:
    """The text that the launcher replaces by the number of the descriptor in a local register (WRITE, FSCONFIG,
    MOUNT).
    """
    return f"\x01{chr(32 + number)}"


def _reg(number: Reg) -> str:
    return f"g{number - LOCALS}" if number >= LOCALS else f"r{number}"


def _at(directory: Reg, path: str) -> str:
    return path or "." if directory == NO_REG else f"{_reg(directory)}:{path}" if path else _reg(directory)


def _readable(text: str) -> str:
    """A string for people: register substitutions shown as {r1}."""
    out, rest = "", text
    while "\x01" in rest:
        before, _, rest = rest.partition("\x01")
        out, rest = f"{out}{before}{{r{ord(rest[0]) - 32}}}", rest[1:]
    return (out + rest).replace("\n", "\\n")


class Open(Op, frozen=True):
    CODE: ClassVar[int] = 1
    out: Reg
    path: str
    at: Reg = NO_REG
    flags: int = f.O_CLOEXEC
    mode: int = 0
    resolve: int = 0

    def describe(self) -> str:
        extra = f.join(f.names(self.flags & ~f.O_CLOEXEC, f.OPEN_FLAGS), f.names(self.resolve, f.RESOLVE))
        return f"openat2 {_at(self.at, self.path)}{extra} -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out, self.at), (blob.string(self.path),), (self.flags, self.mode, self.resolve)


class Close(Op, frozen=True):
    CODE: ClassVar[int] = 2
    reg: Reg

    def describe(self) -> str:
        return f"close {_reg(self.reg)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), ()


class Keep(Op, frozen=True):
    """The launcher keeps the descriptor for all later plans, under a register of its own."""

    CODE: ClassVar[int] = 3
    reg: Reg
    register: Reg

    def describe(self) -> str:
        return f"keep {_reg(self.reg)} as {_reg(self.register)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.register,)


class Hold(Op, frozen=True):
    """Once the plan has succeeded, the launcher keeps the descriptor with the child and/or sends it to the engine."""

    CODE: ClassVar[int] = 4
    reg: Reg
    role: int
    keep: bool = True
    send: bool = True

    def describe(self) -> str:
        how = " and ".join(word for word, on in (("keep", self.keep), ("send", self.send)) if on)
        return f"{how} {_reg(self.reg)} as {f.ROLES[self.role]}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.role, self.keep | self.send << 1)


class Pipe(Op, frozen=True):
    CODE: ClassVar[int] = 5
    read: Reg
    write: Reg

    def describe(self) -> str:
        return f"pipe2 -> {_reg(self.read)}, {_reg(self.write)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.read, self.write), (), (f.O_CLOEXEC,)


class OpenPty(Op, frozen=True):
    CODE: ClassVar[int] = 6
    master: Reg
    slave: Reg
    devpts: str
    rows: int
    cols: int

    def describe(self) -> str:
        return f"openpty in {self.devpts} {self.rows}x{self.cols} -> {_reg(self.master)}, {_reg(self.slave)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.master, self.slave), (blob.string(self.devpts),), (self.rows, self.cols)


class OpenTree(Op, frozen=True):
    CODE: ClassVar[int] = 7
    out: Reg
    path: str
    at: Reg = NO_REG
    flags: int = f.OPEN_TREE_CLONE

    def describe(self) -> str:
        return f"open_tree {_at(self.at, self.path)}{f.join(f.names(self.flags, f.OPEN_TREE))} -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        at = self.flags | f.OPEN_TREE_CLOEXEC | (f.AT_EMPTY_PATH if not self.path else 0)
        return (self.out, self.at), (blob.string(self.path),), (at,)


class MountSetattr(Op, frozen=True):
    CODE: ClassVar[int] = 8
    reg: Reg
    set: int = 0
    clear: int = 0
    idmap: Reg = NO_REG
    propagation: int = 0
    recursive: bool = False

    def describe(self) -> str:
        words = [f"+{n}" for n in f.names(self.set, f.MOUNT_ATTR)] + [
            f"-{n}" for n in f.names(self.clear, f.MOUNT_ATTR)
        ]
        words += [f"idmap={_reg(self.idmap)}"] if self.idmap != NO_REG else []
        words += f.names(self.propagation, f.MOUNT_FLAGS) + (["recursive"] if self.recursive else [])
        return f"mount_setattr {_reg(self.reg)} {' '.join(words)}"

    def pack(self, blob: Blob) -> Packed:
        attributes = self.set | (f.MOUNT_ATTR_IDMAP if self.idmap != NO_REG else 0)
        return (self.reg, self.idmap), (), (attributes, self.clear, self.propagation | self.recursive << 63)


class MoveMount(Op, frozen=True):
    CODE: ClassVar[int] = 9
    reg: Reg
    target: str
    at: Reg = NO_REG
    resolve: int = 0

    def describe(self) -> str:
        return f"move_mount {_reg(self.reg)} to {_at(self.at, self.target)}{f.join(f.names(self.resolve, f.RESOLVE))}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg, self.at), (blob.string(self.target),), (self.resolve,)


class Fsopen(Op, frozen=True):
    CODE: ClassVar[int] = 10
    out: Reg
    type: str

    def describe(self) -> str:
        return f"fsopen {self.type} -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (blob.string(self.type),), ()


class Fsconfig(Op, frozen=True):
    """One option of a file system being made: a flag (value None), a string, or a descriptor (`fd`); key "" creates
    it.
    """

    CODE: ClassVar[int] = 11
    reg: Reg
    key: str = ""
    value: str | None = None
    fd: Reg = NO_REG

    def describe(self) -> str:
        value = f"={_reg(self.fd)}" if self.fd != NO_REG else "" if self.value is None else f"={_readable(self.value)}"
        return f"fsconfig {_reg(self.reg)} {self.key + value if self.key else 'create'}"

    def pack(self, blob: Blob) -> Packed:
        if not self.key:
            command = f.FSCONFIG_CMD_CREATE
        elif self.fd != NO_REG:
            command = f.FSCONFIG_SET_FD
        else:
            command = f.FSCONFIG_SET_FLAG if self.value is None else f.FSCONFIG_SET_STRING
        return (self.reg, self.fd), (blob.string(self.key), blob.string(self.value or "")), (command,)


class Fsmount(Op, frozen=True):
    CODE: ClassVar[int] = 12
    out: Reg
    fs: Reg
    attributes: int = 0

    def describe(self) -> str:
        return f"fsmount {_reg(self.fs)}{f.join(f.names(self.attributes, f.MOUNT_ATTR))} -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out, self.fs), (), (self.attributes,)


class Mount(Op, frozen=True):
    CODE: ClassVar[int] = 13
    source: str
    target: str
    type: str = ""
    flags: int = 0
    data: str = ""

    def describe(self) -> str:
        words = [self.type or "mount", self.source and _readable(self.source), "on", self.target, _readable(self.data)]
        return f"mount {' '.join(w for w in words if w)}{f.join(f.names(self.flags, f.MOUNT_FLAGS))}"

    def pack(self, blob: Blob) -> Packed:
        text = (self.source, self.target, self.type, self.data)
        return (), tuple(blob.string(t) for t in text), (self.flags,)


class Umount(Op, frozen=True):
    CODE: ClassVar[int] = 14
    target: str
    flags: int = f.MNT_DETACH

    def describe(self) -> str:
        return f"umount2 {self.target}{f.join(f.names(self.flags, f.UMOUNT_FLAGS))}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.target),), (self.flags,)


class PivotRoot(Op, frozen=True):
    CODE: ClassVar[int] = 15
    new: str
    old: str

    def describe(self) -> str:
        return f"pivot_root {self.new} {self.old}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.new), blob.string(self.old)), ()


class Chroot(Op, frozen=True):
    CODE: ClassVar[int] = 16
    path: str

    def describe(self) -> str:
        return f"chroot {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.path),), ()


class Chdir(Op, frozen=True):
    CODE: ClassVar[int] = 17
    path: str = ""
    reg: Reg = NO_REG

    def describe(self) -> str:
        return f"fchdir {_reg(self.reg)}" if self.reg != NO_REG else f"chdir {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (blob.string(self.path),), ()


class Mkdir(Op, frozen=True):
    CODE: ClassVar[int] = 18
    path: str
    mode: int = 0o755
    at: Reg = NO_REG
    exist_ok: bool = False
    parents: bool = False
    owner: int | None = None

    def describe(self) -> str:
        words = [f"{self.mode:04o}"] + ([f"owner {self.owner}"] if self.owner is not None else [])
        words += (["parents"] if self.parents else []) + (["may exist"] if self.exist_ok else [])
        return f"mkdir {_at(self.at, self.path)} {' '.join(words)}"

    def pack(self, blob: Blob) -> Packed:
        owner = 0 if self.owner is None else self.owner + 1
        return (NO_REG, self.at), (blob.string(self.path),), (self.mode, self.exist_ok | self.parents << 1, owner)


class Mknod(Op, frozen=True):
    CODE: ClassVar[int] = 19
    path: str
    mode: int
    device: int = 0
    at: Reg = NO_REG
    exist_ok: bool = False

    def describe(self) -> str:
        node = f"{self.device >> 8}:{self.device & 255} " if self.device else ""
        return f"mknod {_at(self.at, self.path)} {node}{self.mode:06o}{' may exist' if self.exist_ok else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path),), (self.mode, self.device, self.exist_ok)


class Symlink(Op, frozen=True):
    CODE: ClassVar[int] = 20
    target: str
    link: str
    at: Reg = NO_REG

    def describe(self) -> str:
        return f"symlink {_at(self.at, self.link)} to {self.target}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.target), blob.string(self.link)), ()


class Chown(Op, frozen=True):
    CODE: ClassVar[int] = 21
    path: str
    uid: int
    gid: int
    at: Reg = NO_REG

    def describe(self) -> str:
        return f"chown {_at(self.at, self.path)} {self.uid}:{self.gid}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path),), (self.uid, self.gid)


class Write(Op, frozen=True):
    CODE: ClassVar[int] = 22
    path: str
    text: str
    at: Reg = NO_REG
    flags: int = 0

    def describe(self) -> str:
        return f"write {_readable(self.text)} > {_at(self.at, self.path)}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path), blob.string(self.text)), (self.flags,)


class Remove(Op, frozen=True):
    CODE: ClassVar[int] = 23
    path: str
    how: int = 0
    at: Reg = NO_REG
    missing_ok: bool = False

    def describe(self) -> str:
        how = ("unlink", "rmdir", "remove tree")[self.how]
        return f"{how} {_at(self.at, self.path)}{' may be missing' if self.missing_ok else ''}"

    def pack(self, blob: Blob) -> Packed:
        return (NO_REG, self.at), (blob.string(self.path),), (self.how, self.missing_ok)


class Userns(Op, frozen=True):
    CODE: ClassVar[int] = 24
    out: Reg
    uid_map: str
    gid_map: str

    def describe(self) -> str:
        ids = self.uid_map if self.uid_map == self.gid_map else f"{self.uid_map} / {self.gid_map}"
        return f"user namespace mapping {_readable(ids)} -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (blob.string(self.uid_map), blob.string(self.gid_map)), ()


class Unshare(Op, frozen=True):
    CODE: ClassVar[int] = 25
    flags: int

    def describe(self) -> str:
        return f"unshare{f.join(f.names(self.flags, f.CLONE))}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.flags,)


class Setns(Op, frozen=True):
    CODE: ClassVar[int] = 26
    reg: Reg
    flags: int

    def describe(self) -> str:
        return f"setns {_reg(self.reg)}{f.join(f.names(self.flags, f.CLONE))}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.flags,)


class Home(Op, frozen=True):
    CODE: ClassVar[int] = 27

    def describe(self) -> str:
        return "the launcher's namespaces are its own from here on"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class Child(Op, frozen=True):
    CODE: ClassVar[int] = 28
    out: Reg
    key: int

    def describe(self) -> str:
        return f"pidfd_open of the sandbox's first process -> {_reg(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (), (self.key,)


class IfUp(Op, frozen=True):
    CODE: ClassVar[int] = 29
    interface: str

    def describe(self) -> str:
        return f"interface {self.interface} up"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.interface),), ()


class Clone(Op, frozen=True):
    CODE: ClassVar[int] = 30
    flags: int
    cgroup: Reg = NO_REG

    def describe(self) -> str:
        into = f" into cgroup {_reg(self.cgroup)}" if self.cgroup != NO_REG else ""
        return f"clone3{f.join(f.names(self.flags, f.CLONE))}{into}  -- from here on in the child"

    def pack(self, blob: Blob) -> Packed:
        return (self.cgroup,), (), (self.flags,)


class Stdio(Op, frozen=True):
    CODE: ClassVar[int] = 31
    stdin: Reg
    stdout: Reg
    stderr: Reg
    preserve: tuple[Reg, ...] = ()
    reach: tuple[Reg, ...] = ()

    def describe(self) -> str:
        more = f" 3-{2 + len(self.preserve)}={' '.join(map(_reg, self.preserve))}" if self.preserve else ""
        reach = f", still in reach {' '.join(map(_reg, self.reach))}" if self.reach else ""
        return f"close_range all but 0={_reg(self.stdin)} 1={_reg(self.stdout)} 2={_reg(self.stderr)}{more}{reach}"

    def pack(self, blob: Blob) -> Packed:
        return (self.stdin, self.stdout, self.stderr), (blob.registers(self.preserve), blob.registers(self.reach)), ()


class Hostname(Op, frozen=True):
    CODE: ClassVar[int] = 32
    text: str

    def describe(self) -> str:
        return f"sethostname {self.text}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.text),), ()


class Domainname(Op, frozen=True):
    CODE: ClassVar[int] = 33
    text: str

    def describe(self) -> str:
        return f"setdomainname {self.text}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.text),), ()


class Setsid(Op, frozen=True):
    CODE: ClassVar[int] = 34

    def describe(self) -> str:
        return "setsid"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class Ctty(Op, frozen=True):
    CODE: ClassVar[int] = 35

    def describe(self) -> str:
        return "ioctl 0 TIOCSCTTY"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class SetRlimit(Op, frozen=True):
    CODE: ClassVar[int] = 36
    resource: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"setrlimit {f.RLIMITS[self.resource]} {f.limit(self.soft)} {f.limit(self.hard)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.resource, self.soft, self.hard)


class Groups(Op, frozen=True):
    CODE: ClassVar[int] = 37
    gids: tuple[int, ...] = ()

    def describe(self) -> str:
        return f"setgroups {' '.join(map(str, self.gids)) or 'none'}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.numbers(self.gids),), ()


class Setgid(Op, frozen=True):
    CODE: ClassVar[int] = 38
    gid: int

    def describe(self) -> str:
        return f"setresgid {self.gid}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.gid,)


class Setuid(Op, frozen=True):
    CODE: ClassVar[int] = 39
    uid: int

    def describe(self) -> str:
        return f"setresuid {self.uid}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.uid,)


class Bounding(Op, frozen=True):
    CODE: ClassVar[int] = 40
    mask: int

    def describe(self) -> str:
        return f"capability bounding set {f.capabilities(self.mask)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Capset(Op, frozen=True):
    CODE: ClassVar[int] = 41
    effective: int
    permitted: int
    inheritable: int = 0

    def describe(self) -> str:
        masks = [("effective", self.effective), ("permitted", self.permitted), ("inheritable", self.inheritable)]
        if self.effective == self.permitted:
            masks[:2] = [("effective+permitted", self.effective)]
        return "capset " + ", ".join(f"{name} {f.capabilities(mask)}" for name, mask in masks)

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.effective, self.permitted, self.inheritable)


class Ambient(Op, frozen=True):
    CODE: ClassVar[int] = 42
    mask: int

    def describe(self) -> str:
        return f"ambient capabilities {f.capabilities(self.mask)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Prctl(Op, frozen=True):
    CODE: ClassVar[int] = 43
    option: int
    value: int

    def describe(self) -> str:
        return f"prctl {f.PRCTL.get(self.option, self.option)} {self.value}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.option, self.value)


class Seccomp(Op, frozen=True):
    CODE: ClassVar[int] = 44
    program: bytes
    label: str
    flags: int = 0

    def describe(self) -> str:
        return f"seccomp filter {self.label}, {len(self.program) // 8} instructions"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.data(self.program),), (self.flags,)


class Umask(Op, frozen=True):
    CODE: ClassVar[int] = 45
    mask: int

    def describe(self) -> str:
        return f"umask {self.mask:04o}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Exec(Op, frozen=True):
    CODE: ClassVar[int] = 46
    path: str
    argv: tuple[str, ...]
    env: tuple[str, ...]
    search: str = ""
    reg: Reg = NO_REG

    def describe(self) -> str:
        program = f"{_reg(self.reg)} as " if self.reg != NO_REG else ""
        return f"execve {program}{shlex.join(self.argv)}  ({len(self.env)} variables)"

    def pack(self, blob: Blob) -> Packed:
        text = (blob.string(self.path), blob.strings(self.argv), blob.strings(self.env), blob.string(self.search))
        return (self.reg,), text, ()


class Wait(Op, frozen=True):
    CODE: ClassVar[int] = 47
    reg: Reg

    def describe(self) -> str:
        return f"wait for {_reg(self.reg)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), ()


class Personality(Op, frozen=True):
    CODE: ClassVar[int] = 48
    persona: int

    def describe(self) -> str:
        return f"personality {self.persona:#x}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.persona,)


class Mask(Op, frozen=True):
    """Hide a path: a file behind `file`, a directory behind the empty one in `empty`. What does not exist is fine."""

    CODE: ClassVar[int] = 49
    path: str
    file: str
    empty: Reg

    def describe(self) -> str:
        return f"mask {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (self.empty,), (blob.string(self.path), blob.string(self.file)), ()


class Readonly(Op, frozen=True):
    CODE: ClassVar[int] = 50
    path: str

    def describe(self) -> str:
        return f"read-only {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.path),), ()


class Source(msgspec.Struct, frozen=True):
    """A descriptor that must come with the plan, in the register of its position. kind: userns, netns, tree (a detached
    clone of the mount at `path`, open_tree(2)) or file (`path` opened O_PATH)."""

    kind: str
    path: str = ""
    recursive: bool = False

    def describe(self) -> str:
        return f"{self.kind} {self.path}" if self.path else f"{self.kind} of the slot"


class Plan(msgspec.Struct, frozen=True):
    """Operations in order, and what the first registers hold when it begins."""

    ops: tuple[Op, ...]
    sources: tuple[Source, ...] = ()

    def describe(self, failed: int | None = None, why: str = "") -> str:
        """One line an operation; with `failed`, a caret line under that operation."""
        lines = [f"      r{i} = {source.describe()}" for i, source in enumerate(self.sources)]
        for number, op in enumerate(self.ops):
            lines.append(f"{number:4}  {op.describe()}")
            if number == failed:
                lines.append(f"      ^ {why}")
        return "\n".join(lines)
