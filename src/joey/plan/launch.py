"""The compiler: a request, its image, this host and a slot become the plan that starts the sandbox. Pure.

Order: in the launcher everything that can fail cheaply and everything that needs its mounts (layers, pipes); then one
clone3 out of the empty namespace; in the child cgroups first (so that what follows is charged to the sandbox),
network, the new root, what is mounted in it, and only at the very end the user namespace, from which there is no way
back.
"""

from __future__ import annotations

import re
import stat

import msgspec

from joey.model.cgroup import DEFAULT_DEVICES, Hierarchy
from joey.model.errors import Invalid, Unenforceable
from joey.model.facts import HostFacts
from joey.model.image import Identity, Image
from joey.model.network import mode_of
from joey.model.slot import Slot
from joey.model.spec import Mount, SandboxSpec
from joey.model.storage import BoxPlan
from joey.plan import cgroup as cgroups
from joey.plan import flags as f
from joey.plan import layout as at
from joey.plan import ops as op
from joey.plan import process as run
from joey.plan.checks import check_process, check_request
from joey.plan.ops import Reg
from joey.plan.setup import device_tree, make_cgroups, write_settings

USERNS, NETNS = Reg(0), Reg(1)
_FIRST_TREE = 2
_CGROUP, _FS, _ROOT, _PROC, _DEV, _SHM, _SYS, _PTS, _EMPTY = (Reg(n) for n in range(144, 153))
_TMPFS, _LAYERS, _BINDS = 32, 64, 112
_MAX_TREES, _MAX_TMPFS, _MAX_BINDS = 30, 32, 32
_BOX, _DISK = Reg(153), Reg(154)
_VOLATILE = "work/work/incompat/volatile"
"""What overlayfs leaves of a volatile mount, and refuses the next one for (filesystems/overlayfs.rst)."""
_PATH_ONLY = f.O_PATH | f.O_CLOEXEC
_HERE = f.CLONE_NEWNS | f.CLONE_NEWPID | f.CLONE_NEWUTS | f.CLONE_NEWIPC
_TERMINALS = "64"
"""All sandboxes and the host share kernel.pty.max, 4096 by default."""
_SAFE = f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV | f.MOUNT_ATTR_NOEXEC
_PROPAGATION = {
    "private": f.MS_PRIVATE, "rprivate": f.MS_PRIVATE, "slave": f.MS_SLAVE, "rslave": f.MS_SLAVE, "shared": f.MS_SHARED,
    "rshared": f.MS_SHARED,
}  # fmt: skip


def launch(
    spec: SandboxSpec,
    image: Image,
    identity: Identity,
    facts: HostFacts,
    slot: Slot,
    box: BoxPlan,
    files: frozenset[str] = frozenset(),
) -> op.Plan:
    """The plan that starts `spec`.

    files: the mount sources that are not directories (the engine looked). Raises Invalid and Unenforceable naming the
    field.
    """
    check(spec, identity, image)
    wanted = run.check_capabilities(spec.process)
    hostname = spec.hostname or slot.name
    process = (
        spec.process if spec.process.cwd or not image.cwd else msgspec.structs.replace(spec.process, cwd=image.cwd)
    )
    output = bool(spec.process.argv)
    owned = run.owned_namespaces(wanted) & (~f.CLONE_NEWNET if mode_of(spec.network) != "none" else ~0)
    check_sysctls(spec, owned)
    ops = [
        *limits(spec, facts, slot),
        *launcher_side(spec, image, facts, slot, box),
        *run.pipes(spec.process, output),
        *run.null(spec.process, output),
        *_clone(facts, slot),
        *_enter(spec, facts, slot),
        *root(spec, image, box),
        *kernel_files(spec, facts, slot),
        *contents(spec, image, slot, process.cwd, files),
        *_finish(spec, identity, slot, hostname, output, facts),
        run.stdio(spec.process, output, (USERNS, at.INIT) if spec.init or not spec.process.argv else (USERNS,)),
        *([op.Ctty()] if spec.process.tty else []),
        *run.become(process, identity, USERNS, facts, spec.seccomp, owned),
        program(spec, image, identity, slot),
    ]
    return op.Plan(tuple(ops), sources(spec, box))


def program(spec: SandboxSpec, image: Image, identity: Identity, slot: Slot) -> op.Exec:
    """The last operation: the only one that depends on the request's argv and env. Raises Invalid."""
    process = spec.process
    env = run.environment(image.env, process, identity, spec.hostname or slot.name)
    check_process(process, env)
    return run.run(process, env, spec.init or not process.argv)


def check(spec: SandboxSpec, identity: Identity, image: Image) -> None:
    run.check_identity(identity)
    limits = (
        ("mounts", len(spec.mounts) + len(spec.devices), _MAX_TREES), ("tmpfs", len(spec.tmpfs), _MAX_TMPFS),
        ("image", len(image.layers), at.MAX_LAYERS), ("image", len(image.binds), _MAX_BINDS),
    )  # fmt: skip
    for field, count, most in limits:
        if count > most:
            raise Invalid(field, f"{count} are more than the {most} a plan can hold")
    check_request(spec)


def sources(spec: SandboxSpec, box: BoxPlan) -> tuple[op.Source, ...]:
    trees = [op.Source("tree", m.source, m.recursive) for m in spec.mounts]
    trees += [op.Source("tree", d.path) for d in spec.devices]
    trees += [op.Source("tree", box.mount)] if box.mount else []
    return (op.Source("userns"), op.Source("netns"), *trees)


_NET_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""The network namespace belongs to the initial user namespace: root inside has no power over it, so what ordinary
programs need power for is allowed to all: low ports, and ping. Written through the sandbox's own /proc: in one shared
by many, the directories of all their network namespaces are in one hash chain."""
_SYSCTLS = ("net.", "fs.mqueue.", "kernel.shm", "kernel.msg")
_SYSCTL_NAME = re.compile(r"[a-z0-9_]+([.-][A-Za-z0-9_]+)+")


def check_sysctls(spec: SandboxSpec, owned: int) -> None:
    """Only those that belong to one of the sandbox's own namespaces (namespaces(7)), by their plain names: a
    name with a slash could leave that part of /proc/sys. Raises Invalid, Unenforceable.
    """
    for name in spec.sysctls:
        field = f"sysctls.{name}"
        if not _SYSCTL_NAME.fullmatch(name):
            raise Invalid(field, "not the name of a sysctl", "write it with dots, such as net.core.somaxconn")
        if name != "kernel.sem" and not name.startswith(_SYSCTLS):
            allowed = f"allowed are kernel.sem, {', '.join(prefix + '*' for prefix in _SYSCTLS)}"
            raise Invalid(field, "is the whole machine's, not the sandbox's", allowed)
        mode = mode_of(spec.network)
        shared = mode == "host" or mode.startswith("container:")
        if name.startswith("net.") and (shared or owned & f.CLONE_NEWNET):
            why = f"the network is {mode}'s" if shared else "its capabilities rule over its network"
            raise Unenforceable(field, f"cannot be set: {why}", "leave out one of the two")


# --- in the launcher -------------------------------------------------------------------------------------------------


def launcher_side(spec: SandboxSpec, image: Image, facts: HostFacts, slot: Slot, box: BoxPlan) -> list[op.Op]:
    ops = _layers(spec, image, slot, box)
    for number, bind in enumerate(image.binds):
        ops += [op.OpenTree(Reg(_BINDS + number), at.layer_path(bind.layer.id))]
    ops += _private_dev(spec, slot) if spec.devices else [op.OpenTree(_DEV, "/dev")]
    ops += [op.OpenTree(_SYS, "/sys", flags=f.OPEN_TREE_CLONE | f.AT_RECURSIVE)]
    return ops + _tmpfs_sources(spec, slot) + _mount_attributes(spec)


def limits(spec: SandboxSpec, facts: HostFacts, slot: Slot) -> list[op.Op]:
    """The cgroups that not every sandbox has, and the limits that are not the prepared ones."""
    extra = tuple(h for h in _hierarchies(spec, facts) if h not in facts.cgroups.default)
    ops = make_cgroups(extra, slot.name, exist_ok=True)
    if spec.resources != slot.prepared:
        ops += write_settings(cgroups.update(facts.cgroups, slot.prepared, spec.resources), slot.name, _online(facts))
    return ops


def _online(facts: HostFacts) -> dict[str, str]:
    return {
        "cpuset.cpus": ",".join(map(str, sorted(facts.cpus))),
        "cpuset.mems": ",".join(map(str, sorted(facts.mems))),
    }


def _layers(spec: SandboxSpec, image: Image, slot: Slot, box: BoxPlan) -> list[op.Op]:
    """What the root is made of, as detached mounts: layers mapped to the slot's ids, and the writable directories."""
    ops: list[op.Op] = []
    for number, layer in enumerate(image.layers):
        reg = Reg(_LAYERS + number)
        ops += [op.OpenTree(reg, at.layer_path(layer.id))]
        ops += [op.MountSetattr(reg, set=f.MOUNT_ATTR_RDONLY, idmap=USERNS)]
    ops += [op.OpenTree(_BOX, at.box_path("memory", slot.name))]
    if box.storage == "disk" and not box.mount:
        path = at.box_path("disk", box.directory)
        ops += [*_writable(slot, path), op.Remove(f"{path}/{_VOLATILE}", 2, missing_ok=True)]
        ops += [op.OpenTree(_DISK, path)]
    elif box.mount:
        tree = _tree_of_box(spec)
        ops += [*_writable(slot, "", tree), op.Remove(_VOLATILE, 2, at=tree, missing_ok=True)]
    return ops


def _writable(slot: Slot, path: str, tree: Reg = op.NO_REG) -> list[op.Op]:
    """The overlay's two directories; they are there already when a sandbox is started again."""
    prefix = f"{path}/" if path else ""
    return [
        op.Mkdir(f"{prefix}upper", at=tree, exist_ok=True, owner=slot.base),
        op.Mkdir(f"{prefix}work", at=tree, exist_ok=True),
    ]


def _tree_of_box(spec: SandboxSpec) -> Reg:
    """The source that is a file system of the sandbox's own (BoxPlan.mount): the last one."""
    return Reg(_FIRST_TREE + len(spec.mounts) + len(spec.devices))


def _private_dev(spec: SandboxSpec, slot: Slot) -> list[op.Op]:
    """A /dev of its own, with an empty file for each device to be bound on; the shared one is read-only."""
    path = f"{at.box_path('memory', slot.name)}/dev"
    ops = [op.Mkdir(path), *device_tree(path), op.OpenTree(_DEV, path)]
    for target in (device.target or device.path for device in spec.devices):
        name = target.removeprefix("/dev/")
        if name != target:
            parent = name.rpartition("/")[0]
            # Below the descriptor: /dev/fd is a link to descriptors of whoever follows it, here the launcher.
            ops += [op.Mkdir(parent, at=_DEV, exist_ok=True, parents=True)] if parent else []
            ops += [op.Mknod(name, stat.S_IFREG | 0o600, at=_DEV, exist_ok=True)]
    flags = f.MOUNT_ATTR_RDONLY | f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NOEXEC
    return [*ops, op.MountSetattr(_DEV, set=flags, clear=f.MOUNT_ATTR_NODEV)]


def _tmpfs_sources(spec: SandboxSpec, slot: Slot) -> list[op.Op]:
    """A tmpfs without a size is a directory of the box: no superblock of its own."""
    ops: list[op.Op] = []
    for number, tmpfs in enumerate(spec.tmpfs):
        if tmpfs.size is None:
            path, reg = f"{at.box_path('memory', slot.name)}/t{number}", Reg(_TMPFS + number)
            ops += [op.Mkdir(path, tmpfs.mode, owner=slot.base), op.OpenTree(reg, path)]
            ops += [] if tmpfs.noexec else [op.MountSetattr(reg, clear=f.MOUNT_ATTR_NOEXEC)]
    return ops


def _mount_attributes(spec: SandboxSpec) -> list[op.Op]:
    ops: list[op.Op] = []
    for reg, mount in _trees(spec):
        ro = f.MOUNT_ATTR_RDONLY if mount.read_only else 0
        attributes = ro | f.MOUNT_ATTR_NODEV | f.MOUNT_ATTR_NOSUID | (f.MOUNT_ATTR_NOEXEC if mount.noexec else 0)
        ops += [
            op.MountSetattr(reg, set=attributes, propagation=_PROPAGATION[mount.propagation], recursive=mount.recursive)
        ]
        ops += [op.MountSetattr(reg, idmap=USERNS, recursive=mount.recursive)] if mount.idmap else []
    return ops


def _trees(spec: SandboxSpec) -> list[tuple[Reg, Mount]]:
    return [(Reg(_FIRST_TREE + number), mount) for number, mount in enumerate(spec.mounts)]


def _clone(facts: HostFacts, slot: Slot) -> list[op.Op]:
    into = facts.cgroups.into
    ops: list[op.Op] = []
    if into is not None:
        ops += [op.Open(_CGROUP, at.cgroup_path(into.name, slot.name), flags=_PATH_ONLY)]
    ops += [op.Setns(at.EMPTY_NAMESPACE, f.CLONE_NEWNS)]
    flags = _HERE | f.CLONE_VM | f.CLONE_VFORK | f.CLONE_FILES
    return [*ops, op.Clone(flags, _CGROUP if into is not None else op.NO_REG)]


# --- in the child ----------------------------------------------------------------------------------------------------


def joins(spec: SandboxSpec, facts: HostFacts, slot: Slot, cpu: bool) -> list[op.Op]:
    """v1 hierarchies are joined by writing; the v2 one was joined at birth. cpu: only that of the CPU quota, else all
    others.
    """
    names = [h.name for h in _hierarchies(spec, facts) if h.version == 1 and ("cpu" in h.controllers) == cpu]
    return [op.Write(f"{slot.name}/{f.JOIN_V1}", "0", at=at.cgroup_register(facts.cgroups, name)) for name in names]


def _hierarchies(spec: SandboxSpec, facts: HostFacts) -> tuple[Hierarchy, ...]:
    return cgroups.hierarchies(facts.cgroups, spec.resources, DEFAULT_DEVICES if spec.devices else None)


def _enter(spec: SandboxSpec, facts: HostFacts, slot: Slot) -> list[op.Op]:
    ops = joins(spec, facts, slot, cpu=False)
    if mode_of(spec.network) != "host":  # also where it gets another one later: never in the host's meanwhile
        ops += [op.Setns(NETNS, f.CLONE_NEWNET)]
    return ops


def root(spec: SandboxSpec, image: Image, box: BoxPlan) -> list[op.Op]:
    """The overlay, made of what is attached in the empty namespace, covers it and becomes / by chroot.

    docs/limits.md says why that cannot be climbed out of. Layers are attached because closing a detached mount waits
    for an RCU grace period, and because kernels before 6.15 make no overlay of one.
    """
    count = len(image.layers)
    ops: list[op.Op] = [op.MoveMount(Reg(_LAYERS + n), at.empty_layer(n)) for n in range(count)]
    ops += [op.MoveMount(_BOX, at.EMPTY_BOX)]
    writable = at.EMPTY_BOX
    if box.storage == "disk" or box.mount:
        writable = at.EMPTY_DISK
        ops += [op.MoveMount(_tree_of_box(spec) if box.mount else _DISK, writable)]
    ops += [op.Fsopen(_FS, "overlay")]
    ops += [op.Fsconfig(_FS, "lowerdir", ":".join(at.empty_layer(n) for n in reversed(range(count))))]
    ops += [op.Fsconfig(_FS, "upperdir", f"{writable}/upper"), op.Fsconfig(_FS, "workdir", f"{writable}/work")]
    # Without it every unmount would write back the whole disk; after a crash of the machine the layer is gone anyway.
    ops += [op.Fsconfig(_FS, "volatile")] if spec.storage == "disk" else []
    suid = f.MOUNT_ATTR_NOSUID if spec.process.no_new_privileges else 0
    ops += [op.Fsconfig(_FS), op.Fsmount(_ROOT, _FS, f.MOUNT_ATTR_NODEV | suid)]
    ops += [op.Open(_EMPTY, at.EMPTY_MASK, flags=_PATH_ONLY)]
    ops += [op.OpenTree(_SHM, f"{at.EMPTY_BOX}/shm")] if spec.shm_size is None else []
    ops += [op.MoveMount(_ROOT, "/"), op.Chdir(reg=_ROOT), op.Chroot(".")]
    return ops + [op.Mkdir(name, at=_ROOT, exist_ok=True) for name in ("/proc", "/dev", "/sys")]


def kernel_files(spec: SandboxSpec, facts: HostFacts, slot: Slot) -> list[op.Op]:
    strict = f.RESOLVE_NO_SYMLINKS
    ops: list[op.Op] = [op.Fsopen(_FS, "proc"), op.Fsconfig(_FS), op.Fsmount(_PROC, _FS, _SAFE)]
    ops += [op.MoveMount(_PROC, "/proc", resolve=strict), op.MoveMount(_DEV, "/dev", resolve=strict)]
    ops += devpts(slot.base, _FS, _PTS) if spec.devpts or spec.process.tty else []
    if spec.shm_size is not None:
        options = (("size", str(spec.shm_size)), ("mode", "1777"), ("uid", str(slot.base)), ("gid", str(slot.base)))
        ops += [op.Fsopen(_FS, "tmpfs"), *(op.Fsconfig(_FS, k, v) for k, v in options), op.Fsconfig(_FS)]
        ops += [op.Fsmount(_SHM, _FS, _SAFE)]
    ops += [op.MoveMount(_SHM, "/dev/shm", resolve=strict), op.MoveMount(_SYS, "/sys", resolve=strict)]
    sysctls = {**(_NET_SYSCTLS if mode_of(spec.network) != "host" else {}), **spec.sysctls}
    ops += [op.Write("/proc/sys/" + name.replace(".", "/"), value) for name, value in sorted(sysctls.items())]
    masked = facts.proc_masked if spec.masked_paths is None else spec.masked_paths
    readonly = facts.proc_readonly if spec.readonly_paths is None else spec.readonly_paths
    ops += [op.Mask(path, "/dev/null", _EMPTY) for path in masked]
    return ops + [op.Readonly(path) for path in readonly]


def devpts(base: int, fs: Reg, reg: Reg) -> list[op.Op]:
    """Terminals of the sandbox's own; group 5 is tty on every distribution, as Docker has it."""
    options = (
        ("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", str(base + 5)), ("max", _TERMINALS),
    )  # fmt: skip
    return [
        op.Fsopen(fs, "devpts"), *(op.Fsconfig(fs, key, value) for key, value in options), op.Fsconfig(fs),
        op.Fsmount(reg, fs, f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NOEXEC),
        op.MoveMount(reg, "/dev/pts", resolve=f.RESOLVE_NO_SYMLINKS),
    ]  # fmt: skip


def contents(spec: SandboxSpec, image: Image, slot: Slot, cwd: str, files: frozenset[str]) -> list[op.Op]:
    """What the image and the request put into the root.

    Paths are looked up below the root's descriptor and through no magic link: chroot alone would stop neither a
    working directory /proc/self/fd/7/../.. nor a link to it, and those descriptors are still the launcher's
    (CVE-2024-21626).
    """
    ops: list[op.Op] = []
    taken = {mount.target for mount in spec.mounts}  # may be files
    for number, bind in enumerate(image.binds):
        ops += [op.MoveMount(Reg(_BINDS + number), bind.target, at=_ROOT)]
    for number, tmpfs in enumerate(spec.tmpfs):
        reg = Reg(_TMPFS + number)
        ops += [op.Mkdir(tmpfs.target, at=_ROOT, exist_ok=True, parents=True, owner=slot.base)]
        if tmpfs.size is not None:
            ops += _sized_tmpfs(reg, tmpfs.size, tmpfs.mode, tmpfs.noexec, slot.base)
        ops += [op.MoveMount(reg, tmpfs.target, at=_ROOT)]
    for reg, mount in _trees(spec):
        ops += [*_target(mount.target, mount.source in files, slot.base), op.MoveMount(reg, mount.target, at=_ROOT)]
    for number, device in enumerate(spec.devices):
        reg, target = Reg(_FIRST_TREE + len(spec.mounts) + number), device.target or device.path
        made = [] if target.startswith("/dev/") else _target(target, True, slot.base)
        ops += [*made, op.MoveMount(reg, target, at=_ROOT)]
    for path in (*(one for one in image.volumes if one not in taken), cwd):
        if path not in ("", "/"):
            ops += [op.Mkdir(path, at=_ROOT, exist_ok=True, parents=True, owner=slot.base)]
    return ops + ([op.MountSetattr(_ROOT, set=f.MOUNT_ATTR_RDONLY)] if spec.read_only else [])


def _sized_tmpfs(reg: Reg, size: int, mode: int, noexec: bool, base: int) -> list[op.Op]:
    options = (("size", str(size)), ("mode", f"{mode:o}"), ("uid", str(base)), ("gid", str(base)))
    attributes = f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV | (f.MOUNT_ATTR_NOEXEC if noexec else 0)
    config = [op.Fsconfig(_FS, key, value) for key, value in options]
    return [op.Fsopen(_FS, "tmpfs"), *config, op.Fsconfig(_FS), op.Fsmount(reg, _FS, attributes)]


def _target(path: str, is_file: bool, owner: int) -> list[op.Op]:
    """A missing mount point is made, as Docker does."""
    if not is_file:
        return [op.Mkdir(path, at=_ROOT, exist_ok=True, parents=True, owner=owner)]
    parent = path.rpartition("/")[0]
    ops: list[op.Op] = [op.Mkdir(parent, at=_ROOT, exist_ok=True, parents=True, owner=owner)] if parent else []
    return [*ops, op.Mknod(path, stat.S_IFREG | 0o644, at=_ROOT, exist_ok=True)]


def _finish(
    spec: SandboxSpec, identity: Identity, slot: Slot, hostname: str, output: bool, facts: HostFacts
) -> list[op.Op]:
    """What still takes privilege but no longer changes the file system."""
    ops = run.streams(spec.process, output, slot.base, identity, "/dev/pts")
    ops += [op.Hostname(hostname)]
    ops += [op.Write("/proc/self/oom_score_adj", str(spec.oom_score_adj))] if spec.oom_score_adj else []
    # The CPU quota comes last: a small one would stretch everything after it, and the launcher waits for that.
    ops += [*joins(spec, facts, slot, cpu=True), op.Unshare(f.CLONE_NEWCGROUP), op.Setsid()]
    # Nothing is opened from here on: the table is still the launcher's, whose numbers go beyond the program's limit.
    return [*ops, *run.rlimits(spec.process, facts)]
