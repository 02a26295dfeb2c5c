"""Plans for templates: a warm process that forks children into sandboxes of their own, and those sandboxes ("berths").

    template   an ordinary sandbox; in it the warm process runs as root of its user namespace, U, with the two
               capabilities setns(2) asks for and a filter that leaves nothing else of them
    berth      a sandbox with nobody in it but joey-init, which a child of that process can enter: its namespaces belong
               to U, but for its user namespace, which lies inside U and holds the ids of its slot only

What is made before a user namespace is entered belongs to the initial one, and could never be entered from U. So a
berth takes two plans. `first` starts its first process, in U from its birth on: pid, uts, ipc and cgroup namespaces are
U's; it waits. `build` is as privileged as any launch, mounts everything, and only then enters U and copies the mount
namespace: the copy is U's, and all mounts in it are locked together (mount_namespaces(7)), so that not even U can take
them apart. The first process is sent that copy, enters it and its own user namespace, and becomes joey-init.

The pid namespace is nested in the template's, since it can be entered only from an ancestor (setns(2)): what is forked
ends with the template's sandbox, not with its warm process.
"""

from __future__ import annotations

import msgspec

from joey.model.capabilities import mask
from joey.model.cgroup import CgroupLayout, Hierarchy
from joey.model.errors import Invalid, Unenforceable
from joey.model.facts import HostFacts
from joey.model.image import Identity, Image
from joey.model.network import mode_of
from joey.model.profiles import default_policy
from joey.model.seccomp import SeccompPolicy
from joey.model.slot import IDS_PER_SLOT, LAST_ID, Slot, inside
from joey.model.spec import Process, SandboxSpec
from joey.model.storage import BoxPlan
from joey.plan import cgroup as cgroups
from joey.plan import flags as f
from joey.plan import launch as whole
from joey.plan import layout as at
from joey.plan import ops as op
from joey.plan import process as run
from joey.plan import setup
from joey.plan.ops import Reg
from joey.plan.seccomp import compile_filter

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT")
"""Of the warm process, in U: what setns(2) asks for. Its sandbox's mounts, network and host name belong to the initial
user namespace, where they are of no use."""
_REFUSED = frozenset(("ptrace", "process_vm_readv", "process_vm_writev"))
_USERNS, _NETNS, _OUTER, _GATE, _TEMPLATE = (Reg(n) for n in range(5))
_MOUNTS, _CGROUP, _FIRST = Reg(155), Reg(156), Reg(157)
_OWN = f.CLONE_NEWPID | f.CLONE_NEWUTS | f.CLONE_NEWIPC | f.CLONE_NEWCGROUP


def outer_slot(layout: CgroupLayout, slot: Slot) -> op.Plan:
    """The slot of a template's sandbox: its user namespace can hold those of all that are forked from it."""
    ops = [
        op.Userns(one.out, slot.outer_map, slot.outer_map, one.owner) if isinstance(one, op.Userns) else one
        for one in setup.slot(layout, slot).ops
    ]
    return op.Plan(tuple(ops))


def inner_slot(layout: CgroupLayout, slot: Slot, before: bool) -> op.Plan:
    """The slot of a berth. before: its ids on the host come before those of the template, not after. Source 0: the
    template's user namespace.
    """
    ops: list[op.Op] = setup.make_cgroups(cgroups.hierarchies(layout, slot.prepared), slot.name)
    ops += setup.write_settings(cgroups.settings(layout, slot.prepared), slot.name)
    ops += setup.make_box(slot)
    base = inside(slot.base, before)
    width = len(str(LAST_ID))  # always the same one, so that plans can be filled in (joey.plan.template)
    ops += [op.Nested(Reg(1), Reg(0), Reg(2), f"0 {base:0{width}} {IDS_PER_SLOT}", base)]
    ops += [op.Hold(Reg(1), f.ROLE_USERNS, keep=False), op.Hold(Reg(2), f.ROLE_NETNS, keep=False)]
    return op.Plan((*ops, op.Setns(Reg(2), f.CLONE_NEWNET), op.IfUp("lo")), (op.Source("outer"),))


def check(spec: SandboxSpec) -> None:
    """Whether a forked process can be what `spec` says. Raises Invalid, Unenforceable naming the field."""
    process, mode = spec.process, mode_of(spec.network)
    if not spec.init or process.argv or process.tty or process.stdin:
        raise Invalid("process.argv", "what runs in it is forked from the template", "leave it out")
    if mode == "host" or mode.startswith("container:"):
        raise Unenforceable("network", "a forked process cannot enter a network that is another's", "use none or nat")
    if not process.no_new_privileges:
        raise Unenforceable("process.no_new_privileges", "the template gives it up for all its children", "leave it on")
    if spec.seccomp != "default":
        raise Unenforceable("seccomp", "filters only add up: the template has the default one", "leave it out")
    wanted = run.check_capabilities(process)
    if run.owned_namespaces(wanted):
        names = f.capabilities(wanted & ~mask(()))
        raise Unenforceable("process.capabilities", f"{names}: its namespaces belong to the template", "leave it out")


def filter_of_template(wanted: int) -> SeccompPolicy:
    """The default policy for capabilities `wanted`, with setns and without what reads other processes."""
    names = f.capabilities(wanted)
    held = frozenset() if names == "none" else frozenset(f"CAP_{name.upper()}" for name in names.split(","))
    policy = default_policy(held, allow=("setns",))
    rules = []
    for rule in policy.rules:
        left = tuple(name for name in rule.names if name not in _REFUSED)
        rules += [msgspec.structs.replace(rule, names=left)] if left else []
    return msgspec.structs.replace(policy, rules=tuple(rules))


def filter_of_child(wanted: int, arch: str) -> bytes:
    """What a child installs before it does anything for anybody: the default policy, which knows no setns."""
    names = f.capabilities(wanted)
    held = frozenset() if names == "none" else frozenset(f"CAP_{name.upper()}" for name in names.split(","))
    return compile_filter(default_policy(held), arch)


def warm(spec: SandboxSpec) -> Process:
    """What the warm process of a template for `spec` is besides its argv and env; it is root of U."""
    return Process(capabilities=CAPABILITIES, rlimits=spec.process.rlimits, umask=spec.process.umask)


def joined(spec: SandboxSpec, facts: HostFacts) -> tuple[Hierarchy, ...]:
    """The cgroups a forked process joins by itself, the one with the CPU quota last."""
    found = cgroups.hierarchies(facts.cgroups, spec.resources)
    return tuple(sorted(found, key=lambda h: "cpu" in h.controllers))


# --- a berth ---------------------------------------------------------------------------------------------------------


def first(spec: SandboxSpec, identity: Identity, facts: HostFacts, slot: Slot) -> op.Plan:
    """Its first process. It is there once the plan is done, and goes on when it is sent its mount namespace.

    Sources: the slot's namespaces, U, the socket on which it waits, a pidfd of the template's first process.
    """
    check(spec)
    process = spec.process
    into = facts.cgroups.into
    ops = [*whole.limits(spec, facts, slot), op.Open(run.NULL, "/dev/null", flags=f.O_RDWR | f.O_CLOEXEC)]
    if into is not None:
        ops += [op.Open(_CGROUP, at.cgroup_path(into.name, slot.name), flags=f.O_PATH | f.O_CLOEXEC)]
    ops += [op.Setns(at.EMPTY_NAMESPACE, f.CLONE_NEWNS), op.Setns(_TEMPLATE, f.CLONE_NEWPID)]
    flags = f.CLONE_VM | f.CLONE_VFORK | f.CLONE_FILES
    ops += [op.Clone(flags, _CGROUP if into is not None else op.NO_REG)]
    ops += [*whole.joins(spec, facts, slot, cpu=False), *whole.joins(spec, facts, slot, cpu=True)]
    ops += [op.Setns(_NETNS, f.CLONE_NEWNET), op.Setns(_OUTER, f.CLONE_NEWUSER), op.Unshare(_OWN)]
    ops += [op.Hostname(spec.hostname or slot.name)]
    ops += [op.Stdio(run.NULL, run.NULL, run.NULL, reach=(_USERNS, _GATE, at.INIT)), op.Clone(f.CLONE_PARENT)]
    ops += [op.Setsid(), op.Gate(_GATE), op.Receive(_MOUNTS, _GATE), op.Setns(_MOUNTS, f.CLONE_NEWNS)]
    ops += run.become(process, identity, _USERNS, facts, spec.seccomp)
    ops += [op.Exec("joey-init", ("joey-init", "-m"), (), reg=at.INIT, blocked=True)]
    kinds = ("userns", "netns", "outer", "gate", "template")
    return op.Plan(tuple(ops), tuple(op.Source(kind) for kind in kinds))


def build(
    spec: SandboxSpec, image: Image, facts: HostFacts, slot: Slot, box: BoxPlan, key: int,
    files: frozenset[str] = frozenset(),
) -> op.Plan:  # fmt: skip
    """Its mount namespace, which comes back (ROLE_MNTNS). key: of its first process.

    Sources: those of a launch, then U.
    """
    sources = (*whole.sources(spec, box), op.Source("outer"))
    outer, into = Reg(len(sources) - 1), facts.cgroups.into
    cwd = spec.process.cwd or image.cwd
    ops = [*whole.launcher_side(spec, image, facts, slot, box), op.Child(_FIRST, key)]
    if into is not None:
        ops += [op.Open(_CGROUP, at.cgroup_path(into.name, slot.name), flags=f.O_PATH | f.O_CLOEXEC)]
    ops += [op.Setns(at.EMPTY_NAMESPACE, f.CLONE_NEWNS), op.Setns(_FIRST, f.CLONE_NEWPID)]
    flags = f.CLONE_NEWNS | f.CLONE_VM | f.CLONE_VFORK | f.CLONE_FILES
    ops += [op.Clone(flags, _CGROUP if into is not None else op.NO_REG)]
    ops += [*whole.joins(spec, facts, slot, cpu=False), op.Setns(whole.NETNS, f.CLONE_NEWNET)]
    ops += [op.Setns(_FIRST, f.CLONE_NEWIPC | f.CLONE_NEWUTS)]
    ops += [*whole.root(spec, image, box), *whole.kernel_files(spec, facts, slot)]
    ops += [*whole.contents(spec, image, slot, cwd, files), op.Setns(outer, f.CLONE_NEWUSER)]
    ops += [op.Unshare(f.CLONE_NEWNS), op.Open(_MOUNTS, "/proc/self/ns/mnt")]
    ops += [op.Hold(_MOUNTS, f.ROLE_MNTNS, keep=False), op.End()]
    return op.Plan(tuple(ops), sources)
