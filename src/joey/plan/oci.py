"""OCI configuration -> plans: create a container, run one more process in it, run a hook in its namespaces. Pure.

The order differs from a sandbox's (plan/launch.py): the namespaces belong to the bundle's user namespace, whoever
called is asked in between (hooks), and the program waits at a gate until `start`. Three processes have a part:

    launcher   opens what is the host's: sources of bind mounts, the root
      first    shares its memory and only changes places: cgroups, namespaces by path, the user namespace, new ones
        init   forked from the first into the new pid namespace, a child of the launcher, which may then end

Sources: runtime-spec runtime.md ("Lifecycle"), config.md, config-linux.md.
"""

from __future__ import annotations

from joey.plan import flags as f
from joey.plan import oci_process as proc
from joey.plan import ops as op
from joey.plan.oci_mounts import CGROUP, DEVICES, EMPTY, ROOT, TREES, USERNS, Filesystems, id_map, inner
from joey.plan.oci_process import GATE, SLAVE, STDERR, STDIN, STDOUT, SYNC, Refused
from joey.plan.ops import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

NAMESPACES = {
    "pid": f.CLONE_NEWPID, "network": f.CLONE_NEWNET, "mount": f.CLONE_NEWNS, "ipc": f.CLONE_NEWIPC,
    "uts": f.CLONE_NEWUTS, "user": f.CLONE_NEWUSER, "cgroup": f.CLONE_NEWCGROUP, "time": f.CLONE_NEWTIME,
}  # fmt: skip
_ORDER = ("cgroup", "ipc", "uts", "network", "pid", "mount")
_V2 = ("", "unified")
_FORK = f.CLONE_VM | f.CLONE_VFORK
STEP_HOOKS = 1
"""Everything is in place, the root not yet changed: prestart, createRuntime and createContainer hooks run now."""
_CREATION = ("prestart", "createRuntime", "createContainer", "poststop")
"""Hooks for whose sake the creation stops; poststop, because those run once it has come that far."""
_SYSCTL_IPC = ("fs.mqueue.", "kernel.msg", "kernel.shm", "kernel.sem")
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")
_ROOT_PROPAGATION = {
    "": 0, "private": f.MS_PRIVATE, "rprivate": f.MS_PRIVATE | f.MS_REC, "slave": f.MS_SLAVE, "rslave": f.MS_SLAVE |
    f.MS_REC, "shared": f.MS_SHARED, "rshared": f.MS_SHARED | f.MS_REC, "unbindable": 1 << 17, "runbindable": 1 << 17 |
    f.MS_REC,
}  # fmt: skip


class Facts:
    """What of the host a plan depends on.

    rootfs: absolute path; cgroups: (name below /sys/fs/cgroup or "" for v2, directory) of the container; paths:
    namespace type -> register of the descriptor that came for it; kinds: "dir" or "file" of every mount source; nodes:
    "c 1:3" -> the host's device of these numbers; core: the host has /proc/kcore; held: the runtime's own bounding set;
    seccomp: the filter and its flags; listen: the filter asks somebody; home: of the user; preserved: registers of
    descriptors 3 and up; pivot: pivot_root, rather than MS_MOVE; labels: (file of /proc/self, text) for AppArmor and
    SELinux; mount_label: SELinux's of file systems; bare: where the host has proc and sysfs, without
    pivot; keep_groups: of whoever called, by crun's annotation.
    """

    def __init__(self, **given: Any) -> None:
        self.rootfs = ""
        self.cgroups: list[tuple[str, str]] = []
        self.paths: dict[str, Reg] = {}
        self.kinds: dict[str, str] = {}
        self.nodes = {f"c {major}:{minor}": path for path, major, minor in DEVICES}
        self.core = False
        self.held = (1 << 41) - 1
        self.seccomp: tuple[bytes, int] | None = None
        self.listen = False
        self.home = "/"
        self.preserved: tuple[Reg, ...] = ()
        self.pivot = True
        self.labels: tuple[tuple[str, str], ...] = ()
        self.mount_label = ""
        self.bare: tuple[str, ...] = ()
        self.keep_groups = False
        self.__dict__.update(given)


def create(config: Json, facts: Facts) -> op.Plan:
    """The plan that makes the container, up to the gate and the program behind it. Raises Refused."""
    linux, process = config.get("linux", {}), config["process"]
    kinds = namespaces(linux)
    made = [kind for kind in kinds if kind not in facts.paths]
    maps = {"uid": id_map(linux.get("uidMappings", [])), "gid": id_map(linux.get("gidMappings", []))}
    check(config, kinds, made, maps)
    masks, _ = proc.capability_masks(process, facts.held)
    env = proc.environment(process, facts.home)
    early, late = proc.rlimits(process)

    given = (*facts.paths.values(), *facts.preserved)
    files = Filesystems("user" in kinds, facts.kinds, maps, facts.nodes, max((TREES - 1, *given)) + 1)
    files.label = facts.mount_label
    _fill(files, config, facts, linux)
    before: list[op.Op] = [op.Userns(USERNS, maps["uid"], maps["gid"])] if "user" in made else []
    before += [op.OpenTree(ROOT, facts.rootfs, flags=f.OPEN_TREE_CLONE | f.AT_RECURSIVE)]
    slave = linux.get("rootfsPropagation", "") in ("slave", "rslave", "shared", "rshared")
    before += [op.MountSetattr(ROOT, propagation=f.MS_SLAVE if slave else f.MS_PRIVATE, recursive=True)]
    ops = [*before, *files.before, *_first(process, linux, facts, kinds, made, early), op.Clone(f.CLONE_PARENT)]
    ops += _names(config) + _root(files, config, facts, kinds)
    ops += _last(process, linux, facts, masks, env, late, has_user="user" in kinds)
    return op.Plan(tuple(ops))


def _fill(files: Filesystems, config: Json, facts: Facts, linux: Json) -> None:
    whole_dev = False
    for mount in config.get("mounts", []):
        files.mount(mount, facts.cgroups or None)
        options = mount.get("options", [])
        if inner(mount["destination"]) == "dev":
            whole_dev = mount.get("type") == "bind" or "bind" in options or "rbind" in options
    if not whole_dev:
        files.devices(linux.get("devices", []), facts.core)


# --- checks ----------------------------------------------------------------------------------------------------------


def namespaces(linux: Json) -> list[str]:
    """The types, each at most once. Raises Refused."""
    kinds: list[str] = []
    for entry in linux.get("namespaces", []):
        kind = entry["type"]
        if kind not in NAMESPACES:
            raise Refused("linux.namespaces.type", f"{kind!r}, known are {', '.join(NAMESPACES)}")
        if kind in kinds:
            raise Refused("linux.namespaces", f"{kind} is given twice")
        if entry.get("path") and not entry["path"].startswith("/"):
            raise Refused("linux.namespaces.path", f"{entry['path']!r} is not absolute")
        kinds.append(kind)
    return kinds


def check(config: Json, kinds: list[str], made: list[str], maps: dict[str, str]) -> None:
    """What needs a namespace has it. Raises Refused."""
    linux = config.get("linux", {})
    if "mount" not in kinds:
        raise Refused("linux.namespaces", "a mount namespace is needed: the host's own root would be changed")
    for name in ("hostname", "domainname"):
        if config.get(name) and "uts" not in kinds:
            raise Refused(name, "needs a uts namespace")
    if "user" in made and not (maps["uid"] and maps["gid"]):
        raise Refused("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings")
    if "user" not in kinds and (maps["uid"] or maps["gid"]):
        raise Refused("linux.uidMappings", "need a user namespace")
    if linux.get("timeOffsets") and "time" not in made:
        raise Refused("linux.timeOffsets", "need a new time namespace")
    if linux.get("rootfsPropagation", "") not in _ROOT_PROPAGATION:
        known = ", ".join(name for name in _ROOT_PROPAGATION if name)
        raise Refused("linux.rootfsPropagation", f"{linux['rootfsPropagation']!r}, known are {known}")
    for name in linux.get("sysctl", {}):
        check_sysctl(name, kinds)
    for name in ("maskedPaths", "readonlyPaths"):
        for path in linux.get(name, []):
            if not path.startswith("/"):
                raise Refused(f"linux.{name}", f"{path!r} is not absolute")


def check_sysctl(name: str, kinds: list[str]) -> None:
    """It belongs to one of the container's own namespaces, and its name leads nowhere else: kernel.core_pattern by
    another name is the whole machine (CVE-2022-0811). Raises Refused.
    """
    plain = name.replace("/", ".")
    if not name or set(name) - _CHARACTERS or ".." in plain or plain[0] == "." or plain[-1] == ".":
        raise Refused(f"linux.sysctl.{name}", "not the name of a sysctl")
    need = ""
    if plain.startswith("net."):
        need = "network"
    elif plain.startswith(_SYSCTL_IPC):
        need = "ipc"
    elif plain == "kernel.hostname":
        raise Refused(f"linux.sysctl.{name}", "is what `hostname` is for")
    elif plain == "kernel.domainname":
        need = "uts"
    if not need:
        raise Refused(f"linux.sysctl.{name}", "is not of a namespace, but of the whole machine")
    if need not in kinds:
        raise Refused(f"linux.sysctl.{name}", f"needs a {need} namespace")


# --- the first child -------------------------------------------------------------------------------------------------


def _child(facts: Facts) -> list[op.Op]:
    """The first child, born in its cgroup of the v2 hierarchy: who is moved there later waits 10 to 20 ms for a grace
    period of the kernel for it (cgroup_threadgroup_rwsem).
    """
    into = [op.Open(CGROUP, place, flags=f.O_PATH | f.O_CLOEXEC) for name, place in facts.cgroups if name in _V2]
    return [*into, op.Clone(_FORK, CGROUP if into else op.NO_REG)]


def _joins(facts: Facts) -> list[op.Op]:
    """v1 hierarchies, by the calling process, which has no other threads: as `flags.JOIN_V1` says."""
    return [op.Write(f"{place}/{f.JOIN_V1}", "0") for name, place in facts.cgroups if name not in _V2]


def _oom_score(process: Json) -> list[op.Op]:
    return [op.Write("/proc/self/oom_score_adj", str(process["oomScoreAdj"]))] if "oomScoreAdj" in process else []


def _enters(facts: Facts) -> list[op.Op]:
    """The namespaces that came by path, but for those that only a later step may enter."""
    return [op.Setns(facts.paths[kind], NAMESPACES[kind]) for kind in _ORDER if kind in facts.paths]


def _first(
    process: Json, linux: Json, facts: Facts, kinds: list[str], made: list[str], early: list[op.Op]
) -> list[op.Op]:
    ops = [*_child(facts), op.Chdir(facts.rootfs)]
    ops += _joins(facts) + _oom_score(process) + early
    # The host's rights reach into every namespace, those of a user namespace only into its own: so the user
    # namespace comes after what is joined, and before what is made.
    ops += _enters(facts)
    if "user" in kinds:
        ops += [op.Setns(facts.paths.get("user", USERNS), f.CLONE_NEWUSER), op.Setgid(0), op.Setuid(0)]
    new = 0
    for kind in made:
        new |= NAMESPACES[kind] if kind != "user" else 0
    ops += [op.Unshare(new)]
    offsets = linux.get("timeOffsets", {})
    for clock, offset in offsets.items():
        if clock not in ("monotonic", "boottime"):
            raise Refused("linux.timeOffsets", f"{clock!r}, known are monotonic, boottime")
        text = f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}\n"
        ops += [op.Write("/proc/self/timens_offsets", text)]
    return ops


def _names(config: Json) -> list[op.Op]:
    ops: list[op.Op] = [op.Hostname(config["hostname"])] if config.get("hostname") else []
    return ops + ([op.Domainname(config["domainname"])] if config.get("domainname") else [])


# --- the container's first process -----------------------------------------------------------------------------------


def _root(files: Filesystems, config: Json, facts: Facts, kinds: list[str]) -> list[op.Op]:
    linux, process = config.get("linux", {}), config["process"]
    ops: list[op.Op] = [op.Setns(facts.paths["time"], f.CLONE_NEWTIME)] if "time" in facts.paths else []
    ops += [op.Mount("", "/", "", f.MS_SLAVE | f.MS_REC)]
    ops += [op.MoveMount(ROOT, "."), op.Chdir(reg=ROOT)]
    done = len(files.inside)
    ops += files.inside
    if any(config.get("hooks", {}).get(kind) for kind in _CREATION):
        ops += [op.Sync(SYNC, STEP_HOOKS, "hooks of the creation")]
    ops += [op.IfUp("lo")] if "network" in kinds and "network" not in facts.paths else []
    for name, value in linux.get("sysctl", {}).items():
        path = name if "/" in name else name.replace(".", "/")
        ops += [op.Write(f"/proc/sys/{path}", value)]
    ops += [op.Write(f"/proc/self/{file}", label) for file, label in facts.labels]
    cwd = inner(process["cwd"])
    ops += [op.Mkdir(cwd, at=ROOT, exist_ok=True, parents=True)] if cwd else []
    if process.get("terminal"):
        ops += proc.terminal(process, "dev/pts")
        ops += [op.Mknod("dev/console", 0o100666, at=ROOT, exist_ok=True)]
        ops += [op.OpenTree(proc.CONSOLE_TREE, "", at=SLAVE)]
        # not through a link of the image, which could lead to a file of /proc (CVE-2025-52565)
        strict = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_SYMLINKS
        ops += [op.MoveMount(proc.CONSOLE_TREE, "dev/console", at=ROOT, resolve=strict)]
    files.hidden(linux.get("maskedPaths", []), linux.get("readonlyPaths", []))
    ops += [*files.inside[done:], *files.late]
    if config.get("root", {}).get("readonly"):
        ops += [op.MountSetattr(ROOT, set=f.MOUNT_ATTR_RDONLY)]
    return ops + _enter(facts, linux, locked="user" in kinds)


def _enter(facts: Facts, linux: Json, locked: bool) -> list[op.Op]:
    """locked: mounts that came from another user namespace can only be covered."""
    ops: list[op.Op] = [op.Chdir(reg=ROOT)]
    if facts.pivot:  # pivot_root(2), the example: the old root lies under the new one for a moment
        ops += [op.PivotRoot(".", "."), op.Umount(".", f.MNT_DETACH)]
    else:
        # The old root stays below: a full /proc or /sys in it would let a user namespace inside mount its own, without
        # what is masked here (mount_too_revealing).
        for path in facts.bare:
            ops += [op.Mount("none", path, "tmpfs", f.MS_RDONLY) if locked else op.Umount(path, f.MNT_DETACH)]
        ops += [op.Mount(".", "/", "", f.MS_MOVE), op.Chroot(".")]
    flags = _ROOT_PROPAGATION[linux.get("rootfsPropagation", "")]
    return [*ops, op.Chdir("/"), *([op.Mount("", "/", "", flags)] if flags else [])]


def _last(
    process: Json, linux: Json, facts: Facts, masks: dict[str, int], env: tuple[str, ...], late: list[op.Op], *,
    has_user: bool,
) -> list[op.Op]:  # fmt: skip
    ops: list[op.Op] = [op.Setsid(), *_streams(process, facts, (SYNC, GATE))]
    ops += _become(process, linux, facts, masks, env, late, has_user=has_user)
    return [*ops, op.Gate(GATE), *proc.program(process, masks, facts.seccomp, env, listened=facts.listen)]


def _become(
    process: Json, linux: Json, facts: Facts, masks: dict[str, int], env: tuple[str, ...], late: list[op.Op], *,
    has_user: bool, path: str = "",
) -> list[op.Op]:  # fmt: skip
    """All that `process` asks for, once its streams are in place; what is left is the program."""
    ops = [*proc.scheduling(process), *proc.personality(linux), *late]
    # Nothing of the host is open any more, so the directory can only be the container's (CVE-2024-21626).
    ops += [op.Chdir(process["cwd"])]
    groups = not facts.keep_groups and (not has_user or bool(process.get("user", {}).get("additionalGids")))
    ops += proc.identity(process, masks, facts.seccomp, groups)
    if path or process.get("args"):
        ops += [op.Find(path or process["args"][0], proc.search_path(env))]
    if facts.listen and facts.seccomp:
        ops += [op.Listen(SYNC, *facts.seccomp)]
    return ops


def _streams(process: Json, facts: Facts, reach: tuple[Reg, ...]) -> list[op.Op]:
    if process.get("terminal"):
        return [op.Stdio(SLAVE, SLAVE, SLAVE, facts.preserved, reach), op.Ctty()]
    return [op.Stdio(STDIN, STDOUT, STDERR, facts.preserved, reach)]


# --- one more process ------------------------------------------------------------------------------------------------


def _affinity(process: Json, name: str) -> list[op.Op]:
    cpus = process.get("execCPUAffinity", {}).get(name, "")
    mask = 0
    for part in cpus.split(",") if cpus else ():
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or not int(first) <= int(last or first) < 8192:
            raise Refused(f"process.execCPUAffinity.{name}", f"{cpus!r} is not like 0-3,7")
        for cpu in range(int(first), int(last or first) + 1):
            mask |= 1 << cpu
    return [op.Affinity(mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little"))] if mask else []


def exec_(process: Json, linux: Json, facts: Facts, path: str = "") -> op.Plan:
    """The plan that runs `process` in a container whose namespaces are `facts.paths`. path: the program, where that is
    not the first of its arguments. Raises Refused.
    """
    masks, _ = proc.capability_masks(process, facts.held)
    env = proc.environment(process, facts.home)
    early, late = proc.rlimits(process)
    ops = [*_child(facts), *_affinity(process, "initial")]
    ops += _joins(facts)
    ops += _affinity(process, "final") + _oom_score(process)
    ops += [op.Write(f"/proc/self/{file}", label) for file, label in facts.labels]
    ops += early + _enters(facts)
    reach = tuple(facts.paths[kind] for kind in ("user", "time") if kind in facts.paths)
    ops += proc.terminal(process, "/dev/pts") if process.get("terminal") else []
    ops += _streams(process, facts, (*reach, SYNC))[:1]
    ops += [op.Clone(f.CLONE_PARENT), op.Setsid(), *([op.Ctty()] if process.get("terminal") else [])]
    ops += [op.Setns(facts.paths["time"], f.CLONE_NEWTIME)] if "time" in facts.paths else []
    if "user" in facts.paths:
        ops += [op.Setns(facts.paths["user"], f.CLONE_NEWUSER), op.Setgid(0), op.Setuid(0)]
    ops += _become(process, linux, facts, masks, env, late, has_user="user" in facts.paths, path=path)
    return op.Plan((*ops, *proc.program(process, masks, facts.seccomp, env, listened=facts.listen, path=path)))


def hook(path: str, argv: tuple[str, ...], env: tuple[str, ...], facts: Facts) -> op.Plan:
    """A hook in the namespaces `facts.paths`, with the runtime's rights: createContainer, whose program is the
    host's.
    """
    ops: list[op.Op] = [op.Clone(_FORK), *_enters(facts)]
    ops += [op.Stdio(STDIN, STDOUT, STDERR), op.Clone(f.CLONE_PARENT), op.Umask(0o022)]
    return op.Plan((*ops, op.Exec(path, argv or (path,), env)))


__all__ = ["EMPTY", "Facts", "NAMESPACES", "Refused", "STEP_HOOKS", "check", "create", "exec_", "hook", "namespaces"]
