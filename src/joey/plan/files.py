"""The plan that puts joey-files into a sandbox: what the engine asks of its files is done by a process of its own.

It is an exec with a program of ours, its file a sealed memfd (source 0) that may be executed and not read, so that
nobody inside can look into it (ptrace(2)). Its capabilities are those that matter for files, also where the sandbox's
own programs have none: they count only in its user namespace. Of its streams the launcher keeps no copies: when the
engine ends, it ends.
"""

from __future__ import annotations

from joey.model.facts import HostFacts
from joey.model.image import Identity
from joey.model.slot import Slot
from joey.model.spec import Process, SandboxSpec
from joey.plan import cgroup as cgroups
from joey.plan import flags as f
from joey.plan import layout as at
from joey.plan import ops as op
from joey.plan import process as run
from joey.plan.exec import FIRST
from joey.plan.ops import Reg

_PROGRAM, _TARGET, _CGROUP = Reg(0), Reg(1), Reg(2)
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")
_PROCESS = Process(argv=("joey-files",), capabilities=_CAPABILITIES, umask=0)
_ROOT = Identity(uid=0, gid=0)


def files(spec: SandboxSpec, facts: HostFacts, slot: Slot, key: int, *, joined: bool = True) -> op.Plan:
    """joey-files as root of the sandbox whose first process the launcher knows as `key`.

    joined: in its cgroups; else it works while they are frozen, and must only read: what it uses is not charged.
    """
    hierarchies = [h for h in cgroups.hierarchies(facts.cgroups, spec.resources) if h.version == 1] if joined else []
    joins = tuple(at.cgroup_register(facts.cgroups, h.name) for h in hierarchies)
    into = facts.cgroups.into if joined else None
    ops: list[op.Op] = [op.Child(_TARGET, key), op.Open(run.NULL, "/dev/null", flags=f.O_RDWR | f.O_CLOEXEC)]
    ops += [op.Pipe(run.STDIN, run.STDIN_FAR), op.Hold(run.STDIN_FAR, f.ROLE_STDIN, keep=False)]
    ops += [op.Pipe(run.STDOUT_FAR, run.STDOUT), op.Hold(run.STDOUT_FAR, f.ROLE_STDOUT, keep=False)]
    reach: tuple[Reg, ...] = (_PROGRAM, _TARGET, *joins)
    if into is not None:
        ops += [op.Open(_CGROUP, at.cgroup_path(into.name, slot.name), flags=f.O_PATH | f.O_CLOEXEC)]
        reach += (_CGROUP,)
    ops += [op.Clone(f.CLONE_VM | f.CLONE_VFORK | f.CLONE_FILES), op.Setns(_TARGET, FIRST)]
    ops += [op.Stdio(run.STDIN, run.STDOUT, run.NULL, reach=reach)]
    ops += [op.Clone(f.CLONE_PARENT, _CGROUP if into is not None else op.NO_REG)]
    ops += [op.Write(f"{slot.name}/{f.JOIN_V1}", "0", at=reg) for reg in joins]
    ops += [*run.rlimits(_PROCESS, facts), op.Setns(_TARGET, f.CLONE_NEWCGROUP), op.Setsid()]
    ops += run.become(_PROCESS, _ROOT, _TARGET, facts, "default")
    ops += [op.Exec("joey-files", ("joey-files",), (), reg=_PROGRAM)]
    return op.Plan(tuple(ops), (op.Source("joey-files"),))
