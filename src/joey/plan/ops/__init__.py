"""The closed vocabulary of plans: one value per operation of native/plan.h, about one system call each.

Registers (`Reg`) are small numbers for file descriptors that exist only while a plan runs. Every operation tells in
one line what it does (`describe`), for `joey explain`, golden tests and error messages, and packs itself for the
launcher (`pack`). Sources: the man pages of the calls named; open_tree(2), move_mount(2), mount_setattr(2), fsopen(2),
clone3(2), openat2(2).
"""

from __future__ import annotations

from joey.plan.ops.base import LOCALS, NO_REG, Blob, Op, Packed, Reg, fd
from joey.plan.ops.files import (
    Chown,
    Close,
    Hold,
    Keep,
    Mkdir,
    Mknod,
    Open,
    OpenPty,
    Pipe,
    Remove,
    Stdio,
    Symlink,
    Wait,
    Write,
)
from joey.plan.ops.mounts import (
    Chdir,
    Chroot,
    Fsconfig,
    Fsmount,
    Fsopen,
    Mask,
    Mount,
    MountSetattr,
    MoveMount,
    OpenTree,
    PivotRoot,
    Readonly,
    Umount,
)
from joey.plan.ops.process import (
    Ambient,
    Bounding,
    Capset,
    Child,
    Clone,
    Ctty,
    Domainname,
    End,
    Exec,
    Groups,
    Home,
    Hostname,
    IfUp,
    Nested,
    Personality,
    Prctl,
    Seccomp,
    Setgid,
    Setns,
    SetRlimit,
    Setsid,
    Setuid,
    Umask,
    Unshare,
    Userns,
)
from joey.plan.ops.steps import (
    Affinity,
    Copy,
    Find,
    Gate,
    Ioprio,
    Listen,
    Receive,
    Scheduler,
    Send,
    Sync,
)
from joey.plan.ops.value import Struct


class Source(Struct, frozen=True):
    """A descriptor that must come with the plan, in the register of its position. kind: userns, netns, tree (a detached
    clone of the mount at `path`, open_tree(2)) or file (`path` opened O_PATH)."""

    kind: str
    path: str = ""
    recursive: bool = False

    def describe(self) -> str:
        return f"{self.kind} {self.path}" if self.path else f"{self.kind} of the slot"


class Plan(Struct, frozen=True):
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


__all__ = [
    "Affinity", "Ambient", "Blob", "Bounding", "Capset", "Chdir", "Child", "Chown", "Chroot", "Clone", "Close", "Copy",
    "Ctty", "Domainname", "End", "Exec", "Find", "Fsconfig", "Fsmount", "Fsopen", "Gate", "Groups", "Hold", "Home",
    "Hostname", "IfUp", "Ioprio", "Keep", "LOCALS", "Listen", "Mask", "Mkdir", "Mknod", "Mount", "MountSetattr",
    "MoveMount", "NO_REG", "Nested", "Op", "Open", "OpenPty", "OpenTree", "Packed", "Personality", "Pipe", "PivotRoot",
    "Plan", "Prctl", "Readonly", "Receive", "Reg", "Remove", "Scheduler", "Seccomp", "Send", "SetRlimit", "Setgid",
    "Setns", "Setsid",
    "Setuid", "Source", "Stdio", "Symlink", "Sync", "Umask", "Umount", "Unshare", "Userns", "Wait", "Write", "fd",
]  # fmt: skip
