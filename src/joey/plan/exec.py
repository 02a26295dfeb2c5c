"""The plan that runs one more process inside a running sandbox.

Two clones. The first shares the launcher's memory and only prepares: the sandbox's namespaces, a terminal in its own
devpts so that its name is right inside, a small descriptor table. The second is a plain child of the launcher, for
which the launcher does not wait: as soon as it has the sandbox's ids, programs inside can stop it, and its cgroup may
be frozen or out of CPU quota (CVE-2016-9962 is why no descriptor of the host may be in its reach, and why the launcher
is not dumpable). It is seen inside from its birth on, and /proc/PID/net and /proc/PID/mountinfo are open to everybody:
so it is born into the sandbox's network and mounts, and is never there with the host's.
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
from joey.plan.checks import check_process
from joey.plan.launch import devpts
from joey.plan.ops import Reg

_CHANNEL, _TARGET, _CGROUP, _FS, _PTS = Reg(0), Reg(1), Reg(2), Reg(3), Reg(4)
FIRST = f.CLONE_NEWNS | f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWNET | f.CLONE_NEWPID
"""All but the cgroup namespace: from inside that one, v2 with nsdelegate lets nobody be born into a cgroup of it."""


def exec_(
    process: Process, env: dict[str, str], identity: Identity, spec: SandboxSpec, facts: HostFacts, slot: Slot, key:
    int, *, output: bool = True, add_devpts: bool = False, kept: bool = False, channel: bool = False,
) -> op.Plan:  # fmt: skip
    """The plan that runs `process` in the sandbox whose first process the launcher knows as `key`.

    env: complete. add_devpts: the sandbox has no terminals yet and gets them now (process.tty).
    kept: it outlives whoever reads it. channel: source 0, a socket, becomes its descriptor 3, and the launcher keeps
    none of its streams, so that they end with the engine. Raises Invalid, Unenforceable.
    """
    run.check_identity(identity)
    check_process(process, env)
    hierarchies = [h for h in cgroups.hierarchies(facts.cgroups, spec.resources) if h.version == 1]
    joins = tuple(at.cgroup_register(facts.cgroups, h.name) for h in hierarchies)
    into = facts.cgroups.into
    ops: list[op.Op] = [
        op.Child(_TARGET, key),
        *run.pipes(process, output, kept, keep=not channel),
        *run.null(process, output),
    ]
    reach: tuple[Reg, ...] = (_TARGET, *joins)
    if into is not None:
        ops += [op.Open(_CGROUP, at.cgroup_path(into.name, slot.name), flags=f.O_PATH | f.O_CLOEXEC)]
        reach += (_CGROUP,)
    ops += [op.Clone(f.CLONE_VM | f.CLONE_VFORK | f.CLONE_FILES), op.Setns(_TARGET, FIRST)]
    ops += devpts(slot.base, _FS, _PTS) if add_devpts else []
    ops += [*run.streams(process, output, slot.base, identity, "/dev/pts")]
    ops += [run.stdio(process, output, reach, (_CHANNEL,) if channel else ())]
    ops += [op.Clone(f.CLONE_PARENT, _CGROUP if into is not None else op.NO_REG)]
    ops += [op.Write(f"{slot.name}/{f.JOIN_V1}", "0", at=reg) for reg in joins]
    ops += run.rlimits(process, facts)
    ops += [op.Setns(_TARGET, f.CLONE_NEWCGROUP), op.Setsid(), *([op.Ctty()] if process.tty else [])]
    ops += run.become(process, identity, _TARGET, facts, spec.seccomp)
    return op.Plan((*ops, run.run(process, env, False)), (op.Source("channel"),) if channel else ())
