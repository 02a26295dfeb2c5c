"""Plans for the launcher itself: its namespaces, attached layers, and slots. They have no CLONE: they change something
and answer.
"""

from __future__ import annotations

from joey.model.cgroup import CgroupLayout, Hierarchy, Setting
from joey.model.image import Layer
from joey.model.slot import Slot
from joey.plan import cgroup as cgroups
from joey.plan import flags as f
from joey.plan import layout as at
from joey.plan import ops as op
from joey.plan.ops import Reg

_BIND_ONLY = f.MS_REMOUNT | f.MS_BIND | f.MS_NOSUID | f.MS_NODEV | f.MS_NOEXEC
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)  # fmt: skip
_SYS = ("devices/system", "kernel/mm")
"""The parts of sysfs that ordinary programs read: processors and memory nodes, huge pages. Network devices, firmware
tables and all other devices of the host stay out of sight, and no sandbox needs a sysfs of its own."""


def setup(layout: CgroupLayout, instance: str, root: str, boxes: dict[str, str]) -> op.Plan:
    """The launcher's two mount namespaces.

    instance: name of its subtree in every hierarchy. root: an existing empty directory to build on. boxes: storage ->
    host directory. Source 0 is joey-init's memfd.
    """
    ops: list[op.Op] = [op.Keep(Reg(0), at.INIT), op.Unshare(f.CLONE_NEWNS)]
    ops += [op.Mount("", "/", flags=f.MS_REC | f.MS_PRIVATE), *_base(root), *_binds(layout, instance, boxes)]
    ops += [*_dev(), *_sys(), *_leave_host(), op.Home()]
    for number, hierarchy in enumerate(layout.hierarchies):
        reg = Reg(8 + number)
        ops += [op.Open(reg, at.cgroup_path(hierarchy.name), flags=f.O_PATH | f.O_CLOEXEC)]
        ops += [op.Keep(reg, at.cgroup_register(layout, hierarchy.name))]
    return op.Plan((*ops, *_empty_namespace()), (op.Source("joey-init"),))


def _base(root: str) -> list[op.Op]:
    directories = ("proc", "cgroup", "layers", "dev", "sys", "box", "empty", *(path[1:] for path in at.BOXES.values()))
    return [
        op.Mount("tmpfs", root, "tmpfs", f.MS_NOSUID, "mode=0700,size=1m"),
        op.Chdir(root),
        *(op.Mkdir(name) for name in directories),
        op.Mount("proc", "proc", "proc", f.MS_NOSUID | f.MS_NODEV | f.MS_NOEXEC),
    ]


def _binds(layout: CgroupLayout, instance: str, boxes: dict[str, str]) -> list[op.Op]:
    ops: list[op.Op] = []
    for hierarchy in layout.hierarchies:
        target = at.cgroup_path(hierarchy.name)[1:]
        ops += [op.Mkdir(target), op.Mount(f"{hierarchy.mount}/{instance}", target, flags=f.MS_BIND)]
    for storage, source in boxes.items():
        target = at.BOXES[storage][1:]
        # What is bound out of here (shm, tmpfs) inherits these flags; the overlay's own flags decide for the root.
        ops += [op.Mount(source, target, flags=f.MS_BIND), op.Mount("", target, flags=_BIND_ONLY)]
    return ops


def rebind(layout: CgroupLayout) -> op.Plan:
    """The instance's cgroups have been made again: source N, a detached clone of the one in hierarchy N, takes the
    place of the one that is no more.
    """
    ops: list[op.Op] = []
    for number, hierarchy in enumerate(layout.hierarchies):
        path, reg = at.cgroup_path(hierarchy.name), Reg(len(layout.hierarchies) + number)
        ops += [op.Umount(path), op.MoveMount(Reg(number), path)]
        ops += [op.Open(reg, path, flags=f.O_PATH | f.O_CLOEXEC)]
        ops += [op.Keep(reg, at.cgroup_register(layout, hierarchy.name))]
    return op.Plan(tuple(ops), tuple(op.Source("cgroup", h.name) for h in layout.hierarchies))


def _dev() -> list[op.Op]:
    """One device tree, bound read-only into every sandbox."""
    flags = f.MS_REMOUNT | f.MS_BIND | f.MS_RDONLY | f.MS_NOSUID | f.MS_NOEXEC
    return [*device_tree("dev"), op.Mount("dev", "dev", flags=f.MS_BIND), op.Mount("", "dev", flags=flags)]


def device_tree(path: str) -> list[op.Op]:
    """What every /dev holds, made in an empty directory."""
    ops: list[op.Op] = [op.Mknod(f"{path}/{name}", 0o020666, major << 8 | minor) for name, major, minor in _NODES]
    ops += [op.Symlink(target, f"{path}/{name}") for name, target in _LINKS]
    return ops + [op.Mkdir(f"{path}/{name}") for name in ("pts", "shm", "mqueue")]


def _sys() -> list[op.Op]:
    """A read-only /sys of empty directories and a few parts of the real one."""
    ops: list[op.Op] = [op.Mkdir(f"sys/{part}", parents=True) for part in (*_SYS, "fs/cgroup", "class", "block")]
    ops += [op.Mount("sys", "sys", flags=f.MS_BIND)]
    for part in _SYS:
        ops += [op.Mount(f"/sys/{part}", f"sys/{part}", flags=f.MS_BIND)]
    for part in ("sys", *(f"sys/{part}" for part in _SYS)):
        ops += [op.Mount("", part, flags=_BIND_ONLY | f.MS_RDONLY)]
    return ops


def _leave_host() -> list[op.Op]:
    return [op.PivotRoot(".", "."), op.Umount("."), op.Chdir("/")]


def _empty_namespace() -> list[op.Op]:
    """The second namespace. The launcher leaves it again when the plan ends."""
    reg = Reg(0)
    return [
        op.Unshare(f.CLONE_NEWNS),
        op.Open(reg, "/proc/self/ns/mnt"),
        op.Mount("tmpfs", at.EMPTY_DIRECTORY, "tmpfs", f.MS_NOSUID | f.MS_NODEV | f.MS_NOEXEC, "mode=0555,size=4k"),
        op.Chdir(at.EMPTY_DIRECTORY),
        *(op.Mkdir(path[1:], 0o555) for path in (at.EMPTY_BOX, at.EMPTY_DISK, at.EMPTY_MASK)),
        *(op.Mkdir(at.empty_layer(number)[1:], 0o555) for number in range(at.MAX_LAYERS)),
        *_leave_host(),
        op.Mount("", "/", flags=_BIND_ONLY | f.MS_RDONLY),
        op.Keep(reg, at.EMPTY_NAMESPACE),
    ]


def attach(layer: Layer) -> op.Plan:
    """Make a layer reachable for all later plans: source 0, a detached clone of it, becomes /layers/ID, read-only."""
    path = at.layer_path(layer.id)
    attributes = f.MOUNT_ATTR_RDONLY | f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV
    ops = (
        op.Mkdir(path, 0o700, exist_ok=True),
        op.MountSetattr(Reg(0), set=attributes, propagation=f.MS_PRIVATE, recursive=True),
        op.MoveMount(Reg(0), path),
    )
    return op.Plan(ops, (op.Source("tree", layer.source),))


def abandon(layer: Layer) -> op.Plan:
    """Undo an `attach` that failed."""
    return op.Plan((op.Remove(at.layer_path(layer.id), 1, missing_ok=True),))


def detach(layer: str) -> op.Plan:
    """Take a layer out of reach. Sandboxes that use it keep it."""
    path = at.layer_path(layer)
    return op.Plan((op.Umount(path), op.Remove(path, 1)))


def slot(layout: CgroupLayout, slot: Slot, *, revive: bool = False) -> op.Plan:
    """User namespace, network namespace with loopback, cgroups with the prepared limits, directories of the memory box.

    revive: the directories are there already, with what an earlier run of the sandbox wrote.
    """
    ops: list[op.Op] = make_cgroups(cgroups.hierarchies(layout, slot.prepared), slot.name)
    ops += write_settings(cgroups.settings(layout, slot.prepared), slot.name)
    ops += [] if revive else make_box(slot)
    # Its owner is nobody else: the kernel's per-user counts (ucounts) would be shared by all that root owns.
    ops += [op.Userns(Reg(0), slot.id_map, slot.id_map, slot.base), op.Hold(Reg(0), f.ROLE_USERNS, keep=False)]
    ops += [op.Unshare(f.CLONE_NEWNET), op.IfUp("lo")]
    ops += [op.Open(Reg(1), "/proc/self/ns/net"), op.Hold(Reg(1), f.ROLE_NETNS, keep=False)]
    return op.Plan(tuple(ops))


def make_cgroups(hierarchies: tuple[Hierarchy, ...], slot: str, *, exist_ok: bool = False) -> list[op.Op]:
    return [op.Mkdir(at.cgroup_path(h.name, slot), exist_ok=exist_ok) for h in hierarchies]


def write_settings(settings: tuple[Setting, ...], slot: str, online: dict[str, str] | None = None) -> list[op.Op]:
    """online: file of a v1 cpuset → all processors or memory nodes, for one that is to use what its parent does."""
    values = ((s, (online or {}).get(s.file, s.value) if s.value == cgroups.AS_PARENT else s.value) for s in settings)
    return [op.Write(at.cgroup_path(s.hierarchy, slot, s.file), value) for s, value in values]


def make_box(slot: Slot) -> list[op.Op]:
    """upper belongs to the sandbox's root; work is overlayfs's own; shm is open to all users inside."""
    box = at.box_path("memory", slot.name)
    return [
        op.Mkdir(box, 0o711),
        op.Mkdir(f"{box}/upper", owner=slot.base),
        op.Mkdir(f"{box}/work", 0o700),
        op.Mkdir(f"{box}/shm", 0o1777, owner=slot.base),
    ]


_ENTRIES_A_TURN = 4096


def clear(hierarchies: tuple[str, ...], storages: tuple[str, ...], slot: str) -> op.Plan:
    """Remove what is named after a slot; what is not there any more is fine.

    EBUSY: something still runs in it. EAGAIN: there are more files than the launcher shall be kept busy with; again.
    """
    ops: list[op.Op] = [op.Remove(at.cgroup_path(name, slot), 1, missing_ok=True) for name in hierarchies]
    ops += [op.Remove(at.box_path(storage, slot), 2, missing_ok=True, budget=_ENTRIES_A_TURN) for storage in storages]
    return op.Plan(tuple(ops))


def keep(number: int) -> op.Plan:
    """Hold source 0 open as long as the launcher lives."""
    return op.Plan((op.Keep(Reg(0), Reg(op.LOCALS + 31 - number)),), (op.Source("lock"),))
