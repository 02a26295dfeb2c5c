"""Mounts, devices and links of an OCI container: what the launcher opens beforehand, and what the child does. Pure.

Sources of bind mounts are opened by the launcher, with its rights and in its namespaces, as detached trees that only
have to be attached; so no path of the host is looked up by a process of the container, and none twice. Targets are
looked up below the descriptor of the root (RESOLVE_IN_ROOT, no magic links): no link in an image leads out of it.
"""

from __future__ import annotations

import stat

from joey.plan import flags as f
from joey.plan import ops as op
from joey.plan.oci_options import Options
from joey.plan.oci_process import Refused
from joey.plan.ops import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

ROOT, FS, MOUNT, EMPTY, USERNS, MAPPED, CGROUP, MADE, BELOW = (Reg(n) for n in range(170, 179))
TREES, LAST_TREE = 20, 160
_PATH_ONLY = f.O_PATH | f.O_CLOEXEC
_IN_ROOT = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_MAGICLINKS
_STRICT = f.RESOLVE_IN_ROOT | f.RESOLVE_NO_SYMLINKS
_ORDINARY = ("proc", "sysfs")
"""File systems that others trust to be where they are: their mount point may not be reached through a link
(CVE-2019-19921)."""
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup", "cgroup2")
_NODES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
DEVICES: tuple[tuple[str, int, int], ...] = (
    ("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)  # fmt: skip
"""What every container has (config-linux.md, "Default Devices"), besides console and ptmx."""
_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)  # fmt: skip


class Filesystems:
    """Operations of the two sides, in the order of the configuration."""

    def __init__(
        self, user: bool, kinds: dict[str, str], maps: dict[str, str], nodes: dict[str, str], first: int = TREES
    ) -> None:
        """first: register that is free; user: whether the container has a user namespace of its own; kinds: "dir" or
        "file" of every source; maps: "uid" and "gid", the container's own mappings; nodes: what the host has
        for "c 1:3".
        """
        self.nodes = nodes
        self.before: list[op.Op] = []
        self.inside: list[op.Op] = []
        self.user, self.kinds, self.maps = user, kinds, maps
        self.label = ""  # SELinux's, of every file system made
        self.late: list[op.Op] = []  # once all that lies in it is there: what is read-only
        self._made = 0
        self._next = self._first = first

    def tree(self) -> Reg:
        if self._next > LAST_TREE:
            raise Refused("mounts", f"more than {LAST_TREE - self._first} of things of the host")
        self._next += 1
        return Reg(self._next - 1)

    # --- mounts --------------------------------------------------------------------------------------------------

    def mount(self, mount: Json, cgroups: list[tuple[str, str]] | None) -> None:
        options = Options(mount.get("options", []))
        kind, target = mount.get("type", ""), inner(mount["destination"])
        if options.bind or kind == "bind":
            self._bind(mount, options, target)
        elif kind in ("cgroup", "cgroup2") and cgroups is not None:
            self._cgroup(options, target, cgroups)
        elif options.remount:
            raise Refused("mounts", f"{mount['destination']}: remount of something that is no bind mount")
        else:
            if not kind:
                raise Refused("mounts", f"{mount['destination']}: has no type")
            if "uidMappings" in mount or "gidMappings" in mount or options.idmap:
                raise Refused("mounts", f"{mount['destination']}: only bind mounts can be mapped to other ids")
            self._filesystem(kind, mount.get("source", ""), options, target)

    def _bind(self, mount: Json, options: Options, target: str) -> None:
        source = mount.get("source", "")
        if not source:
            raise Refused("mounts", f"{mount['destination']}: a bind mount without source")
        reg, recursive = self.tree(), f.AT_RECURSIVE if options.recursive else 0
        self.before += [op.OpenTree(reg, source, flags=f.OPEN_TREE_CLONE | recursive)]
        self._map(mount, options, reg)
        self.before += _attributes(reg, options, default=f.MS_SLAVE)
        self.inside += [*point(target, self.kinds.get(source) != "file"), op.MoveMount(reg, target, at=ROOT)]

    def _map(self, mount: Json, options: Options, reg: Reg) -> None:
        """Who owns what is seen in the mount, by mappings of its own or, for `idmap` alone, the container's."""
        uid, gid = (id_map(mount.get(name, [])) for name in ("uidMappings", "gidMappings"))
        if not uid and not gid and not options.idmap:
            return
        if not uid and not gid:
            uid, gid = self.maps.get("uid", ""), self.maps.get("gid", "")
        if not uid or not gid:
            why = "mapping to other ids needs both uidMappings and gidMappings"
            raise Refused("mounts", f"{mount['destination']}: {why}")
        self.before += [op.Userns(MAPPED, uid, gid), op.MountSetattr(reg, idmap=MAPPED, recursive=options.ridmap)]

    def _filesystem(self, kind: str, source: str, options: Options, target: str) -> None:
        ram = kind == "tmpfs"
        moded = any(item.startswith("mode=") for item in options.data)
        self.inside += [*(_ram_point(target) if ram and not moded else point(target, True)), op.Fsopen(FS, kind)]
        self.inside += [op.Fsconfig(FS, "source", source)] if source else []
        for item in options.data:
            name, equals, value = item.partition("=")
            self.inside += [op.Fsconfig(FS, name, value if equals else None)]
        if self.label and kind not in _UNLABELLED:
            self.inside += [op.Fsconfig(FS, "context", self.label)]
        attributes, mount = options.set | options.rset, MOUNT
        if ram and attributes & f.MOUNT_ATTR_RDONLY:  # what is mounted in it needs places; it is filled, too
            mount, attributes = self.tree(), attributes & ~f.MOUNT_ATTR_RDONLY
            self.late += [op.MountSetattr(mount, set=f.MOUNT_ATTR_RDONLY)]
        self.inside += [op.Fsconfig(FS), op.Fsmount(mount, FS, attributes)]
        if ram and target:
            self._like_below(mount, target, options)
        self.inside += [op.MoveMount(mount, target, at=ROOT, resolve=_STRICT if kind in _ORDINARY else 0)]
        self.inside += [op.MountSetattr(mount, propagation=flag, recursive=deep) for flag, deep in options.propagation]

    def _like_below(self, mount: Reg, target: str, options: Options) -> None:
        """A tmpfs is as the directory that it covers, unless its options say how (as with runc), and for tmpcopyup it
        begins with what is in there.
        """
        given = {item.partition("=")[0] for item in options.data}
        copied = op.Copy.CONTENTS if options.copy_up else 0
        copied |= op.Copy.MODE if "mode" not in given else 0
        copied |= op.Copy.OWNER if options.copy_up and not given & {"uid", "gid"} else 0
        if copied:
            self.inside += [op.Open(BELOW, target, at=ROOT, resolve=_IN_ROOT), op.Copy(BELOW, mount, copied)]

    def _cgroup(self, options: Options, target: str, cgroups: list[tuple[str, str]]) -> None:
        """The container's own cgroups and nothing above: one directory (v2), or one each in a tmpfs (v1)."""
        single = len(cgroups) == 1 and not cgroups[0][0]
        self.inside += point(target, True)
        if not single:
            self.inside += [op.Fsopen(FS, "tmpfs"), op.Fsconfig(FS, "mode", "0755"), op.Fsconfig(FS)]
            self.inside += [op.Fsmount(MOUNT, FS, 0xE), op.MoveMount(MOUNT, target, at=ROOT)]
        for name, directory in cgroups:
            reg = self.tree()
            self.before += [op.OpenTree(reg, directory), *_attributes(reg, options, default=f.MS_PRIVATE)]
            here = f"{target}/{name}" if name else target
            self.inside += [*(point(here, True) if name else []), op.MoveMount(reg, here, at=ROOT)]
            # "cpu,cpuacct" is found as each of its names, too
            for part in name.split(",") if "," in name else ():
                self.inside += [op.Symlink(name, f"{target}/{part}", at=ROOT, exist_ok=True)]
        if not single and options.set & f.MOUNT_ATTR_RDONLY:
            self.inside += [op.MountSetattr(MOUNT, set=f.MOUNT_ATTR_RDONLY)]

    # --- /dev ----------------------------------------------------------------------------------------------------

    def devices(self, wanted: list[Json], core: bool) -> None:
        own = {inner(device["path"]) for device in wanted}
        for path, major, minor in DEVICES:
            if inner(path) not in own:
                self._device(path, "c", major, minor, 0o666, 0, 0, default=True)
        begin = len(self.inside)
        for device in wanted:
            kind = device["type"]
            if kind not in _NODES:
                raise Refused("linux.devices.type", f"{kind!r}, known are {', '.join(_NODES)}")
            if kind != "p" and ("major" not in device or "minor" not in device):
                raise Refused("linux.devices", f"{device['path']}: major and minor are needed")
            major, minor = device.get("major", 0), device.get("minor", 0)
            if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
                raise Refused("linux.devices", f"{device['path']}: no such numbers {major}:{minor}")
            mode = device.get("fileMode", 0o666) & 0o7777
            owner = device.get("uid", 0), device.get("gid", 0)
            if self.user and kind != "p" and self.maps["uid"] and inner(device["path"]):
                self._make(inner(device["path"]), _NODES[kind] | mode, major, minor, *owner)
            else:
                self._device(device["path"], kind, major, minor, mode, *owner)
        if self._made:  # seen by nobody but this process, and for this moment only
            self.inside.insert(begin, op.MoveMount(MADE, "/sys"))
            self.inside += [op.Umount("/sys", f.MNT_DETACH)]
        links = (*_LINKS, ("/proc/kcore", "/dev/core")) if core else _LINKS
        self.inside += [op.Symlink(to, inner(link), at=ROOT, exist_ok=True) for to, link in links]
        self.inside += [op.Symlink("pts/ptmx", "dev/ptmx", at=ROOT, exist_ok=True)]

    def _device(
        self, path: str, kind: str, major: int, minor: int, mode: int, uid: int, gid: int, default: bool = False
    ) -> None:
        """default: not asked for by name; then whatever the image has there may stay."""
        target = inner(path)
        if not target:
            raise Refused("linux.devices", f"{path}: not the path of a device")
        if not self.user or kind == "p":
            made = op.Mknod(
                target, _NODES[kind] | mode, device(major, minor), ROOT, default, same_ok=not default, uid=uid, gid=gid
            )
            self.inside += [*parents(target), made]
            return
        # A user namespace may not make nodes; the host's, of the same numbers, stands in for it.
        node = self.nodes.get(f"{'b' if kind == 'b' else 'c'} {major}:{minor}")
        if node is None:
            raise Refused("linux.devices", f"{path}: the host has no {major}:{minor} for a user namespace")
        reg = self.tree()
        self.before += [op.OpenTree(reg, node)]
        self.inside += [*point(target, False), op.MoveMount(reg, target, at=ROOT)]

    def _make(self, target: str, mode: int, major: int, minor: int, uid: int, gid: int) -> None:
        """A node that a user namespace may not make: the launcher does, in a tmpfs of the host's."""
        if not self._made:
            self.before += [op.Fsopen(FS, "tmpfs"), op.Fsconfig(FS, "mode", "0755"), op.Fsconfig(FS)]
            self.before += [op.Fsmount(MADE, FS, f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NOEXEC)]
        name = f"{self._made}"
        self._made += 1
        self.before += [op.Mknod(name, mode, device(major, minor), MADE)]
        owner = (_outside(self.maps["uid"], uid), _outside(self.maps["gid"], gid))
        self.before += [op.Chown(name, *owner, at=MADE)]
        reg = self.tree()
        self.inside += [op.OpenTree(reg, name, at=MADE), *point(target, False), op.MoveMount(reg, target, at=ROOT)]

    # --- what nobody shall see, or write -------------------------------------------------------------------------

    def hidden(self, masked: list[str], readonly: list[str]) -> None:
        """Before the root is changed: what files are hidden behind is then the host's /dev/null, and no node of the
        image (CVE-2025-31133); the empty directory is one that the container has no other way to.
        """
        if masked:
            self.inside += [op.Fsopen(FS, "tmpfs"), op.Fsconfig(FS, "nr_inodes", "1"), op.Fsconfig(FS, "mode", "0555")]
            self.inside += [op.Fsconfig(FS), op.Fsmount(MOUNT, FS, 0xF), op.MoveMount(MOUNT, "/sys")]
            self.inside += [op.Open(EMPTY, "/sys", flags=_PATH_ONLY)]
        self.inside += [op.Readonly(inner(path)) for path in readonly if inner(path)]
        self.inside += [op.Mask(inner(path), "/dev/null", EMPTY) for path in masked if inner(path)]


def _attributes(reg: Reg, options: Options, default: int) -> list[op.Op]:
    ops: list[op.Op] = []
    if not options.propagation:
        ops += [op.MountSetattr(reg, propagation=default, recursive=True)]
    ops += [op.MountSetattr(reg, propagation=flag, recursive=deep) for flag, deep in options.propagation]
    if options.set or options.clear:
        ops += [op.MountSetattr(reg, set=options.set, clear=options.clear)]
    if options.rset or options.rclear:
        ops += [op.MountSetattr(reg, set=options.rset, clear=options.rclear, recursive=True)]
    return ops


def point(target: str, directory: bool) -> list[op.Op]:
    """A mount point that may be there. The root itself always is."""
    if not target:
        return []
    if directory:
        return [op.Mkdir(target, at=ROOT, exist_ok=True, parents=True)]
    return [*parents(target), op.Mknod(target, stat.S_IFREG | 0o644, at=ROOT, exist_ok=True)]


def _ram_point(target: str) -> list[op.Op]:
    """Where a tmpfs goes that is as what it covers: what nobody made before is everybody's, as a new tmpfs is."""
    return [*parents(target), op.Mkdir(target, 0o1777, at=ROOT, exist_ok=True)] if target else []


def _outside(text: str, inside: int) -> int:
    """An id of the container as the host has it. Raises Refused."""
    for line in text.splitlines():
        first, host, size = map(int, line.split())
        if first <= inside < first + size:
            return host + inside - first
    raise Refused("linux.devices", f"{inside} is not mapped in the user namespace")


def parents(target: str) -> list[op.Op]:
    above = target.rpartition("/")[0]
    return [op.Mkdir(above, at=ROOT, exist_ok=True, parents=True)] if above else []


def inner(path: str) -> str:
    """A path of the container below its root: no leading slash, nothing that leads up."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def id_map(entries: list[Json]) -> str:
    """The text of /proc/PID/uid_map (user_namespaces(7))."""
    return "".join(f"{entry['containerID']} {entry['hostID']} {entry['size']}\n" for entry in entries)


def device(major: int, minor: int) -> int:
    """A device number as mknod(2) takes it (makedev(3))."""
    return (major & 0xFFF) << 8 | (minor & 0xFF) | (minor & ~0xFF) << 12
