"""Find the cgroup hierarchies this process can use: from mountinfo, then by making a cgroup and looking. Off the hot
path.

Nothing is assumed about where hierarchies are mounted or which controllers share one. Sources: cgroups(7),
proc(5) (/proc/PID/mountinfo, /proc/PID/cgroup), https://systemd.io/CGROUP_DELEGATION/.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from joey.host import devices_bpf
from joey.host.cgroup_files import CgroupError, children, make, read, remove_tree
from joey.model.cgroup import CgroupLayout, Hierarchy

V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer")
V2_CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "io")
# Control files that not every kernel has and on which a decision somewhere in Joey hangs.
OPTIONAL = frozenset(
    "cgroup.freeze cgroup.kill cpu.max cpu.stat cpu.cfs_quota_us memory.memsw.limit_in_bytes memory.swap.max"
    " memory.kmem.tcp.limit_in_bytes memory.peak memory.reclaim memory.force_empty io.max io.weight"
    " io.bfq.weight blkio.weight blkio.bfq.weight blkio.throttle.read_bps_device"
    " blkio.throttle.write_bps_device blkio.throttle.read_iops_device blkio.throttle.write_iops_device"
    " pids.peak".split()
)
_TRIAL, _TRIAL_SECONDS = "joey-probe-", 60.0
# What a v2 child has once its controller is enabled; assumed until `InstanceCgroup.create` has enabled it and looked.
_EXPECTED = {
    "cpu": {"cpu.max"},
    "memory": {"memory.swap.max"},
    "io": {"io.max"},
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A cgroup mount. device: "major:minor" (one a hierarchy); root: which cgroup is seen at `point`."""

    device: str
    root: str
    point: str
    version: Literal[1, 2]
    options: frozenset[str]
    writable: bool


def parse_mountinfo(text: str) -> list[Mount]:
    """The cgroup mounts in the text of /proc/PID/mountinfo; of several at one mount point the last, which hides
    them.
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        point = _unescape(fields[4])
        found.pop(point, None)
        if tail[0] in ("cgroup", "cgroup2"):
            options = frozenset(tail[2].split(","))
            writable = "rw" in fields[5].split(",") and "rw" in options
            version: Literal[1, 2] = 1 if tail[0] == "cgroup" else 2
            found[point] = Mount(fields[2], _unescape(fields[3]), point, version, options, writable)
    return list(found.values())


def parse_self_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: controller -> path of our own cgroup; v2's under the empty string."""
    own = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                own[controller] = parts[2]
    return own


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def own_directory(mount: Mount, own: str) -> str | None:
    """Where our own cgroup `own` is seen under `mount`; None if it lies outside of what is mounted there."""
    if own.startswith("/.."):
        return None
    root = mount.root.rstrip("/")
    if own != root and not own.startswith(root + "/"):
        return None
    return (mount.point.rstrip("/") + own[len(root) :]).rstrip("/") or "/"


def probe(
    mountinfo_text: str | None = None, self_cgroup_text: str | None = None, swaps_text: str | None = None
) -> CgroupLayout:
    """The layout of this host. The texts stand for the files of /proc of the same name, for tests.

    Raises CgroupError if no hierarchy at all can be used.
    """
    layout, problems = examine(mountinfo_text, self_cgroup_text, swaps_text)
    if not layout.hierarchies:
        remedy = "; ".join(problems) or "mount one: mount -t cgroup2 none /sys/fs/cgroup"
        raise CgroupError("find a usable hierarchy in", "/proc/self/mountinfo", None, remedy)
    return layout


def examine(
    mountinfo_text: str | None = None, self_cgroup_text: str | None = None, swaps_text: str | None = None
) -> tuple[CgroupLayout, list[str]]:
    """`probe`, with a line for each hierarchy that is there and cannot be used (for `joey doctor`)."""
    mounts = parse_mountinfo(_text(mountinfo_text, "/proc/self/mountinfo"))
    own = parse_self_cgroup(_text(self_cgroup_text, "/proc/self/cgroup"))
    found: dict[str, Hierarchy] = {}
    problems: list[str] = []
    for mount in sorted(mounts, key=lambda m: (m.device, len(m.root), len(m.point))):
        if mount.device in found:
            continue
        try:
            hierarchy = _hierarchy(mount, own)
        except CgroupError as error:
            problems.append(str(error))
            continue
        if hierarchy is not None:
            found[mount.device] = hierarchy
    hierarchies = sorted(found.values(), key=lambda h: (-h.version, h.name))
    return CgroupLayout(tuple(hierarchies), _swap_total(swaps_text)), problems


def _text(given: str | None, path: str) -> str:
    return given if given is not None else Path(path).read_text()


def _swap_total(text: str | None) -> int:
    """Bytes of active swap areas; 0 too where the kernel has no swap (no /proc/swaps)."""
    if text is None:
        text = read("/proc/swaps") or ""
    return sum(int(fields[2]) * 1024 for fields in map(str.split, text.splitlines()[1:]) if len(fields) >= 3)


def _hierarchy(mount: Mount, own: dict[str, str]) -> Hierarchy | None:
    if mount.version == 1:
        controllers = [c for c in V1_CONTROLLERS if c in mount.options]
        if not controllers:
            return None  # name=systemd and its like
        name, key = ",".join(controllers), controllers[0]
    else:
        name, key, controllers = "unified", "", []
    base = _base(mount, own_directory(mount, own.get(key, "/..")))
    if mount.version == 2:
        controllers = [c for c in (read(f"{base}/cgroup.controllers") or "").split() if c in V2_CONTROLLERS]
    return look(Hierarchy(name, base, mount.version, frozenset(controllers)))


def _base(mount: Mount, own: str | None) -> str:
    """The directory for our instances: our own cgroup if it was delegated to us, else the top of what is mounted."""
    if not mount.writable:
        raise CgroupError(
            "use",
            mount.point,
            None,
            "it is mounted read-only: remount it rw, or start this container with its cgroups writable",
        )
    if own is not None and own != mount.point and (_delegated(own) or not os.access(mount.point, os.W_OK)):
        return own
    return mount.point


def _delegated(directory: str) -> bool:
    """Whether systemd handed this cgroup over (Delegate=yes): it says so in an extended attribute."""
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            continue
    return False


def look(hierarchy: Hierarchy) -> Hierarchy:
    """`hierarchy` with the features seen in a child cgroup made for that, and on v2 the abilities that follow."""
    for name in children(hierarchy.mount):
        if name.startswith(_TRIAL):
            _forget(f"{hierarchy.mount}/{name}")
    trial = f"{hierarchy.mount}/{_TRIAL}{os.getpid()}"
    make(trial)
    try:
        return refine(hierarchy, trial, certain=False)
    finally:
        remove_tree(trial)


def _forget(trial: str) -> None:
    """One of a process that was killed while it looked: nobody looks for so long, and nothing is ever in it."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(trial).st_mtime > _TRIAL_SECONDS:
            os.rmdir(trial)


def refine(hierarchy: Hierarchy, child: str, certain: bool = True) -> Hierarchy:
    """`hierarchy` as the cgroup `child` of it shows it to be.

    certain: whether on v2 the controllers have been enabled for `child`; if not, those of `hierarchy` are believed.
    """
    try:
        files = OPTIONAL & set(os.listdir(child))
    except OSError as error:
        raise CgroupError("list", child, error) from error
    if hierarchy.version == 1:
        return replace(hierarchy, features=files)
    kernel = hierarchy.controllers & set(V2_CONTROLLERS)
    if certain:
        kernel &= set((read(f"{child}/cgroup.controllers") or "").split())
    else:
        files |= {file for controller in kernel for file in _EXPECTED.get(controller, ())}
    abilities = {
        name
        for name, file in (("freezer", "cgroup.freeze"), ("kill", "cgroup.kill"), ("usage", "cpu.stat"))
        if file in files
    }
    if devices_bpf.available():
        abilities.add("devices")
    return replace(hierarchy, controllers=kernel | abilities, features=files)


def siblings(base: str) -> list[str]:
    """Instances of Joey present under a base directory: names of its children `joey` and `joey-…`, probes left out."""
    return [n for n in children(base) if (n == "joey" or n.startswith("joey-")) and not n.startswith(_TRIAL)]
