"""Operations on namespaces, identity, privileges, and the program itself."""

from __future__ import annotations

from joey.plan import flags as f
from joey.plan.ops.base import NO_REG, Blob, Op, Packed, Reg, readable
from joey.plan.ops.base import reg as show


class Userns(Op, frozen=True):
    CODE = 24
    out: Reg
    uid_map: str
    gid_map: str
    owner: int = 0

    def describe(self) -> str:
        ids = self.uid_map if self.uid_map == self.gid_map else f"{self.uid_map} / {self.gid_map}"
        return f"user namespace of {self.owner} mapping {readable(ids)} -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (blob.string(self.uid_map), blob.string(self.gid_map)), (self.owner,)


class Nested(Op, frozen=True):
    """maps, owner: as `parent` sees ids."""

    CODE = 59
    out: Reg
    parent: Reg
    network: Reg
    id_map: str
    owner: int

    def describe(self) -> str:
        ids = readable(self.id_map)
        what = f"user namespace of {self.owner} inside {show(self.parent)} mapping {ids} -> {show(self.out)}"
        return f"{what}; a network namespace of {show(self.parent)} -> {show(self.network)}"

    def pack(self, blob: Blob) -> Packed:
        ids = blob.string(self.id_map)
        return (self.out, self.parent, self.network), (ids, ids), (self.owner,)


class End(Op, frozen=True):
    CODE = 61

    def describe(self) -> str:
        return "end: it has done its part"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class Unshare(Op, frozen=True):
    CODE = 25
    flags: int

    def describe(self) -> str:
        return f"unshare{f.join(f.names(self.flags, f.CLONE))}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.flags,)


class Setns(Op, frozen=True):
    CODE = 26
    reg: Reg
    flags: int

    def describe(self) -> str:
        return f"setns {show(self.reg)}{f.join(f.names(self.flags, f.CLONE))}"

    def pack(self, blob: Blob) -> Packed:
        return (self.reg,), (), (self.flags,)


class Home(Op, frozen=True):
    CODE = 27

    def describe(self) -> str:
        return "the launcher's namespaces are its own from here on"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class Child(Op, frozen=True):
    CODE = 28
    out: Reg
    key: int

    def describe(self) -> str:
        return f"pidfd_open of the sandbox's first process -> {show(self.out)}"

    def pack(self, blob: Blob) -> Packed:
        return (self.out,), (), (self.key,)


class IfUp(Op, frozen=True):
    CODE = 29
    interface: str

    def describe(self) -> str:
        return f"interface {self.interface} up"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.interface),), ()


class Clone(Op, frozen=True):
    CODE = 30
    flags: int
    cgroup: Reg = NO_REG

    def describe(self) -> str:
        into = f" into cgroup {show(self.cgroup)}" if self.cgroup != NO_REG else ""
        return f"clone3{f.join(f.names(self.flags, f.CLONE))}{into}  -- from here on in the child"

    def pack(self, blob: Blob) -> Packed:
        return (self.cgroup,), (), (self.flags,)


class Hostname(Op, frozen=True):
    CODE = 32
    text: str

    def describe(self) -> str:
        return f"sethostname {self.text}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.text),), ()


class Domainname(Op, frozen=True):
    CODE = 33
    text: str

    def describe(self) -> str:
        return f"setdomainname {self.text}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.string(self.text),), ()


class Setsid(Op, frozen=True):
    CODE = 34

    def describe(self) -> str:
        return "setsid"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class Ctty(Op, frozen=True):
    CODE = 35

    def describe(self) -> str:
        return "ioctl 0 TIOCSCTTY"

    def pack(self, blob: Blob) -> Packed:
        return (), (), ()


class SetRlimit(Op, frozen=True):
    CODE = 36
    resource: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"setrlimit {f.RLIMITS[self.resource]} {f.limit(self.soft)} {f.limit(self.hard)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.resource, self.soft, self.hard)


class Groups(Op, frozen=True):
    CODE = 37
    gids: tuple[int, ...] = ()

    def describe(self) -> str:
        return f"setgroups {' '.join(map(str, self.gids)) or 'none'}"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.numbers(self.gids),), ()


class Setgid(Op, frozen=True):
    CODE = 38
    gid: int

    def describe(self) -> str:
        return f"setresgid {self.gid}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.gid,)


class Setuid(Op, frozen=True):
    CODE = 39
    uid: int

    def describe(self) -> str:
        return f"setresuid {self.uid}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.uid,)


class Bounding(Op, frozen=True):
    CODE = 40
    mask: int

    def describe(self) -> str:
        return f"capability bounding set {f.capabilities(self.mask)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Capset(Op, frozen=True):
    CODE = 41
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
    CODE = 42
    mask: int

    def describe(self) -> str:
        return f"ambient capabilities {f.capabilities(self.mask)}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Prctl(Op, frozen=True):
    CODE = 43
    option: int
    value: int

    def describe(self) -> str:
        return f"prctl {f.PRCTL.get(self.option, self.option)} {self.value}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.option, self.value)


class Seccomp(Op, frozen=True):
    CODE = 44
    program: bytes
    label: str
    flags: int = 0

    def describe(self) -> str:
        return f"seccomp filter {self.label}, {len(self.program) // 8} instructions"

    def pack(self, blob: Blob) -> Packed:
        return (), (blob.data(self.program),), (self.flags,)


class Umask(Op, frozen=True):
    CODE = 45
    mask: int

    def describe(self) -> str:
        return f"umask {self.mask:04o}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.mask,)


class Exec(Op, frozen=True):
    CODE = 46
    path: str
    argv: tuple[str, ...]
    env: tuple[str, ...]
    search: str = ""
    reg: Reg = NO_REG
    blocked: bool = False

    def describe(self) -> str:
        import shlex  # it imports re, 6 ms

        program = f"{show(self.reg)} as " if self.reg != NO_REG else ""
        signals = ", signals blocked" if self.blocked else ""
        return f"execve {program}{shlex.join(self.argv)}  ({len(self.env)} variables{signals})"

    def pack(self, blob: Blob) -> Packed:
        text = (blob.string(self.path), blob.strings(self.argv), blob.strings(self.env), blob.string(self.search))
        return (self.reg,), text, (int(self.blocked),)


class Personality(Op, frozen=True):
    CODE = 48
    persona: int

    def describe(self) -> str:
        return f"personality {self.persona:#x}"

    def pack(self, blob: Blob) -> Packed:
        return (), (), (self.persona,)
