"""What Joey knows of control groups: hierarchies, settings, device rules, usage. Values only.

Controllers are named as on v2 ("io" is v1's blkio). Besides the kernel's own there are abilities that Joey looks for
under a name: "freezer", "kill", "usage" (CPU time) and "devices". On v2 they need no controller. Sources: cgroups(7),
Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from joey.model import errors

# Ability -> the v1 controller that has it.
V1_NAMES = {"io": "blkio", "usage": "cpuacct"}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy.

    name: how plans call it, and its directory under /cgroup in the launcher ("memory", "cpu,cpuacct", "unified").
    mount: absolute path of the directory in which instances of Joey live: the mount point, or the part delegated to us.
    controllers: the kernel's controllers, on v2 together with the abilities freezer, kill, usage, devices it offers.
    features: names of the optional control files a child cgroup has ("memory.memsw.limit_in_bytes", "memory.peak" …).
    """

    name: str
    mount: str
    version: Literal[1, 2]
    controllers: frozenset[str]
    features: frozenset[str] = frozenset()

    def has(self, file: str) -> bool:
        """Whether a child cgroup has the optional control file `file`."""
        return file in self.features


@dataclass(frozen=True)
class CgroupLayout:
    """The hierarchies of a host that Joey can use, and whether swap exists at all (bytes of active swap areas)."""

    hierarchies: tuple[Hierarchy, ...]
    swap_total: int = 0

    def of(self, controller: str) -> Hierarchy | None:
        """The hierarchy that provides `controller`, v2 first; None if none does.

        controller: memory, cpu, pids, cpuset, io, freezer, devices, usage or kill.
        """
        for hierarchy in sorted(self.hierarchies, key=lambda h: -h.version):
            name = controller if hierarchy.version == 2 else V1_NAMES.get(controller, controller)
            if name in hierarchy.controllers:
                return hierarchy
        return None

    @cached_property
    def into(self) -> Hierarchy | None:
        """The v2 hierarchy, into which clone3 can put a child at birth (CLONE_INTO_CGROUP); None on a pure v1 host."""
        return next((h for h in self.hierarchies if h.version == 2), None)

    @cached_property
    def default(self) -> tuple[Hierarchy, ...]:
        """The hierarchies in which every sandbox gets a cgroup; v2 first. As few as carry all that is always needed."""
        return tuple(self._unique(self.into, *(self.of(c) for c in ("memory", "cpu", "pids", "freezer", "usage"))))

    @staticmethod
    def _unique(*found: Hierarchy | None) -> Iterator[Hierarchy]:
        seen: set[str] = set()
        for hierarchy in found:
            if hierarchy is not None and hierarchy.name not in seen:
                seen.add(hierarchy.name)
                yield hierarchy

    def named(self, name: str) -> Hierarchy:
        """The hierarchy called `name`. Raises KeyError."""
        for hierarchy in self.hierarchies:
            if hierarchy.name == name:
                return hierarchy
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Setting:
    """One write of one cgroup of a sandbox: `value` into `file` of the hierarchy called `hierarchy`."""

    hierarchy: str
    file: str
    value: str

    def describe(self) -> str:
        return f"{self.hierarchy}: {self.file} = {self.value}"


class Unenforceable(errors.Unenforceable, ValueError):
    """A limit that this host cannot enforce; such a request is refused, never ignored.

    field: of Resources. reason: what the host lacks. remedy: how to get it, or what to ask instead.
    """

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(field, f"cannot be enforced on this host: {reason}", remedy)
        self.field, self.reason = field, reason


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Allow or deny `access` (any of r, w, m = mknod) to device nodes; None for major or minor means any.

    type: "c" character, "b" block, "a" both (then major and minor must be None). As in OCI `linux.resources.devices`.
    """

    type: Literal["a", "b", "c"]
    major: int | None
    minor: int | None
    access: str = "rwm"
    allow: bool = True

    def validate(self, field: str = "devices") -> None:
        """Raises ValueError naming `field`."""
        if self.type not in ("a", "b", "c"):
            raise ValueError(f"{field}: type {self.type!r} is not a, b or c")
        if self.type == "a" and (self.major is not None or self.minor is not None):
            raise ValueError(f"{field}: type a stands for every device: major and minor must be left out")
        if not self.access or len(set(self.access)) != len(self.access) or not set(self.access) <= set("rwm"):
            raise ValueError(f"{field}: access {self.access!r} must be made of r, w and m, each at most once")
        for name, number, top in (("major", self.major, 0xFFF), ("minor", self.minor, 0xFFFFF)):
            if number is not None and not 0 <= number <= top:
                raise ValueError(f"{field}: {name} {number} is not between 0 and {top}")


def _default_devices() -> tuple[DeviceRule, ...]:
    char = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
    return tuple(DeviceRule("c", major, minor) for major, minor in char)


DEFAULT_DEVICES: tuple[DeviceRule, ...] = _default_devices()
"""null, zero, full, random, urandom, tty, ptmx, pts/*; all others are denied (admin-guide/devices.txt)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one sandbox uses now. Bytes, nanoseconds, counts; None where this host does not say.

    memory_current includes page cache and kernel memory. throttled_ns: time runnable but held back by the cpu quota.
    """

    memory_current: int | None = None
    memory_peak: int | None = None
    memory_limit: int | None = None
    swap_current: int | None = None
    cache: int | None = None
    rss: int | None = None
    cpu_ns: int | None = None
    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    throttled_ns: int | None = None
    throttled_periods: int | None = None
    pids_current: int | None = None
    pids_max: int | None = None
    oom_kills: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OomEvent:
    """The kernel killed in the sandbox of `slot` for lack of memory: `kills` times since the last event, `total`
    ever.
    """

    slot: str
    kills: int
    total: int
