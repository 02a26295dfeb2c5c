"""Operations on mounts and on what is / (mount_namespaces(7))."""

from __future__ import annotations

from joey.plan import flags as f
from joey.plan.ops.base import NO_REG, Blob, Op, Packed, Reg, at, readable
from joey.plan.ops.base import reg as show


class OpenTree(Op, frozen=True):
    CODE = 7
    out: Reg
    path: str
    at: Reg = NO_REG
    flags: int = f.OPEN_TREE_CLONE

    def describe(self) -> str:
        return f"open_tree {at(self.at, self.path)}{f.join(f.names(self.flags, f.OPEN_TREE))} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        at = self.flags | f.OPEN_TREE_CLOEXEC | (f.AT_EMPTY_PATH if not self.path else 0)
        return (self.out, self.at), (blob.string(self.path),), (at,)


class MountSetattr(Op, frozen=True):
    CODE = 8
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
        words += [f"idmap={show(self.idmap)}"] if self.idmap != NO_REG else []
        words += f.names(self.propagation, f.MOUNT_FLAGS) + (["recursive"] if self.recursive else [])
        return f"mount_setattr {show(self.reg)} {' '.join(words)}"

    def pack(self, blob: Blob) -> Packed:
        attributes = self.set | (f.MOUNT_ATTR_IDMAP if self.idmap != NO_REG else 0)
        return (self.reg, self.idmap), (), (attributes, self.clear, self.propagation | self.recursive << 63)


class MoveMount(Op, frozen=True):
    CODE = 9
    reg: Reg
    target: str
    at: Reg = NO_REG
    resolve: int = 0

    def describe(self) -> str:
        return f"move_mount {show(self.reg)} to {at(self.at, self.target)}{f.join(f.names(self.resolve, f.RESOLVE))}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg, self.at), (blob.string(self.target),), (self.resolve,)


class Fsopen(Op, frozen=True):
    CODE = 10
    out: Reg
    type: str

    def describe(self) -> str:
        return f"fsopen {self.type} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (blob.string(self.type),), ()


class Fsconfig(Op, frozen=True):
    """One option of a file system being made: a flag (value None), a string, or a descriptor (`fd`); key "" creates
    it.
    """

    CODE = 11
    reg: Reg
    key: str = ""
    value: str | None = None
    fd: Reg = NO_REG

    def describe(self) -> str:
        value = f"={show(self.fd)}" if self.fd != NO_REG else "" if self.value is None else f"={readable(self.value)}"
        return f"fsconfig {show(self.reg)} {self.key + value if self.key else 'create'}"

    def pack(self, blob: Blob) -> Packed:
        if not self.key:
            command = f.FSCONFIG_CMD_CREATE
        elif self.fd != NO_REG:
            command = f.FSCONFIG_SET_FD
        else:
            command = f.FSCONFIG_SET_FLAG if self.value is None else f.FSCONFIG_SET_STRING
        return (self.reg, self.fd), (blob.string(self.key), blob.string(self.value or "")), (command,)


class Fsmount(Op, frozen=True):
    CODE = 12
    out: Reg
    fs: Reg
    attributes: int = 0

    def describe(self) -> str:
        return f"fsmount {show(self.fs)}{f.join(f.names(self.attributes, f.MOUNT_ATTR))} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out, self.fs), (), (self.attributes,)


class Mount(Op, frozen=True):
    CODE = 13
    source: str
    target: str
    type: str = ""
    flags: int = 0
    data: str = ""

    def describe(self) -> str:
        words = [self.type or "mount", self.source and readable(self.source), "on", self.target, readable(self.data)]
        return f"mount {' '.join(w for w in words if w)}{f.join(f.names(self.flags, f.MOUNT_FLAGS))}"

    def pack(self, blob: Blob) -> Packed:
        text = (self.source, self.target, self.type, self.data)
        return (), tuple(blob.string(t) for t in text), (self.flags,)


class Umount(Op, frozen=True):
    CODE = 14
    target: str
    flags: int = f.MNT_DETACH

    def describe(self) -> str:
        return f"umount2 {self.target}{f.join(f.names(self.flags, f.UMOUNT_FLAGS))}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.target),), (self.flags,)


class PivotRoot(Op, frozen=True):
    CODE = 15
    new: str
    old: str

    def describe(self) -> str:
        return f"pivot_root {self.new} {self.old}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.new), blob.string(self.old)), ()


class Chroot(Op, frozen=True):
    CODE = 16
    path: str

    def describe(self) -> str:
        return f"chroot {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.path),), ()


class Chdir(Op, frozen=True):
    CODE = 17
    path: str = ""
    reg: Reg = NO_REG

    def describe(self) -> str:
        return f"fchdir {show(self.reg)}" if self.reg != NO_REG else f"chdir {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (blob.string(self.path),), ()


class Mask(Op, frozen=True):
    """Hide a path: a file behind `file`, a directory behind the empty one in `empty`. What does not exist is fine."""

    CODE = 49
    path: str
    file: str
    empty: Reg

    def describe(self) -> str:
        return f"mask {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (self.empty,), (blob.string(self.path), blob.string(self.file)), ()


class Readonly(Op, frozen=True):
    CODE = 50
    path: str

    def describe(self) -> str:
        return f"read-only {self.path}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.path),), ()
