"""Resources and a host's cgroup layout -> the files to write, in the order in which the kernel accepts them. Pure.

`settings` is for a cgroup just made (its files still hold the kernel's defaults), `update` for one that holds `old`.
Sources: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/{memory,blkio-controller,cpusets,
devices}.rst, Documentation/scheduler/sched-bwc.rst.

What a write costs matters with thousands of sandboxes: a CPU quota makes the kernel walk every task group of the host
(__cfs_schedulable: 8 µs with few, 50 µs among 3,000, 300 µs among 9,000); cpu.shares and the other files cost 7 µs
however many there are. So a quota is best written when the slot is made, and kept while the slot is used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from joey.model.cgroup import CgroupLayout, DeviceRule, Hierarchy, Setting, Unenforceable
from joey.model.resources import CPU_PERIOD_US, Resources
from joey.plan.devices import list_writes

AS_PARENT = "\n"
"""Value of a cpuset file that takes the limit back: v2 takes it as it is, for v1 the parent's must be written."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A setting, what tells it from others of the same file (a device), and the value that undoes it."""

    setting: Setting
    item: str
    reset: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.setting.hierarchy, self.setting.file, self.item


@lru_cache(maxsize=1024)
def settings(
    layout: CgroupLayout, resources: Resources, devices: tuple[DeviceRule, ...] | None = None
) -> tuple[Setting, ...]:
    """The writes that give a new cgroup its limits, in order. Nothing is written for what is not limited.

    devices: rules of a sandbox that asks for others than DEFAULT_DEVICES. On a v2 layout they are no file but a
    program: see joey.plan.devices.program. Raises Unenforceable for what the layout lacks.
    """
    writes = [line.setting for line in _lines(layout, resources)]
    if devices is not None:
        hierarchy = _need(layout, "devices", "devices")
        if hierarchy.version == 1:
            writes += [Setting(hierarchy.name, file, value) for file, value in list_writes(devices)]
    return tuple(writes)


@lru_cache(maxsize=1024)
def hierarchies(
    layout: CgroupLayout, resources: Resources, devices: tuple[DeviceRule, ...] | None = None
) -> tuple[Hierarchy, ...]:
    """Where such a sandbox needs a cgroup: `layout.default`, then what it asks for beyond that.

    Raises Unenforceable for what the layout lacks.
    """
    found = list(layout.default)
    asked = [line.setting.hierarchy for line in _lines(layout, resources)]
    if devices is not None:
        asked.append(_need(layout, "devices", "devices").name)
    for name in asked:
        if all(h.name != name for h in found):
            found.append(layout.named(name))
    return tuple(found)


def update(layout: CgroupLayout, old: Resources, new: Resources) -> tuple[Setting, ...]:
    """The fewest writes that turn limits `old` into `new`, in an order valid at every step. Disk is no cgroup's matter.

    A cpuset is taken back by writing AS_PARENT. Raises Unenforceable for what the layout lacks.
    """
    before = {line.key: line for line in _lines(layout, old)}
    after = {line.key: line for line in _lines(layout, new)}
    writes: list[Setting] = []
    for key, line in after.items():
        if key not in before or before[key].setting != line.setting:
            writes.append(line.setting)
    for key, line in before.items():
        if key not in after:
            writes.append(Setting(line.setting.hierarchy, line.setting.file, line.reset))
    return tuple(sorted(writes, key=_order(raising=_size(new.memory) > _size(old.memory))))


# Files that depend on each other; every other file comes after these, in the order in which it was made.
_LOWERING = ("cpuset.mems", "cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control")
_RAISING = ("cpuset.mems", "cpuset.cpus", "memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.oom_control")


def _order(raising: bool) -> Callable[[Setting], int]:
    """v1 keeps memory <= memory+swap at all times, so the one that makes room goes first."""
    files = _RAISING if raising else _LOWERING
    return lambda setting: files.index(setting.file) if setting.file in files else len(files)


def _size(limit: int | None) -> float:
    return math.inf if limit is None else limit


@lru_cache(maxsize=1024)
def _lines(layout: CgroupLayout, resources: Resources) -> tuple[_Line, ...]:
    lines: list[_Line] = []
    for part in (_cpuset, _memory, _cpu, _pids, _io):
        lines += part(layout, resources)
    return tuple(lines)


def _need(layout: CgroupLayout, controller: str, field: str) -> Hierarchy:
    hierarchy = layout.of(controller)
    if hierarchy is None:
        name = f"the {controller} controller" if controller != "devices" else "any device controller"
        raise Unenforceable(field, f"its kernel does not offer {name}", _remedy(controller))
    return hierarchy


def _remedy(controller: str) -> str:
    if controller == "devices":
        return "mount the v1 devices hierarchy, or use a kernel with CONFIG_CGROUP_BPF"
    hint = (
        "; Debian and Raspberry Pi kernels want cgroup_enable=memory on the command line"
        if controller == "memory"
        else ""
    )
    return f"enable it in cgroup.subtree_control (v2) or mount its hierarchy (v1){hint}"


def _line(hierarchy: Hierarchy, file: str, value: object, reset: str, item: str = "") -> _Line:
    return _Line(Setting(hierarchy.name, file, str(value)), item, reset)


def _cpuset(layout: CgroupLayout, r: Resources) -> list[_Line]:
    lines = []
    # mems first: with cpus but no mems a v1 cpuset admits no task.
    for file, field, value in (
        ("cpuset.mems", "cpuset_mems", r.cpuset_mems),
        ("cpuset.cpus", "cpuset_cpus", r.cpuset_cpus),
    ):
        if value is not None:
            hierarchy = _need(layout, "cpuset", field)
            lines.append(_line(hierarchy, file, value, AS_PARENT))
    return lines


def _memory(layout: CgroupLayout, r: Resources) -> list[_Line]:
    lines: list[_Line] = []
    if r.memory is not None:
        hierarchy = _need(layout, "memory", "memory")
        if hierarchy.version == 2:
            lines.append(_line(hierarchy, "memory.max", r.memory, "max"))
        else:
            lines.append(_line(hierarchy, "memory.limit_in_bytes", r.memory, "-1"))
            lines += _sockets(hierarchy, r.memory)
        lines += _swap(layout, hierarchy, r.memory, r.swap)
    if r.memory_reservation is not None:
        hierarchy = _need(layout, "memory", "memory_reservation")
        file, reset = ("memory.low", "0") if hierarchy.version == 2 else ("memory.soft_limit_in_bytes", "-1")
        lines.append(_line(hierarchy, file, r.memory_reservation, reset))
    if r.oom_kill_disable:
        hierarchy = _need(layout, "memory", "oom_kill_disable")
        if hierarchy.version == 2:
            raise Unenforceable("oom_kill_disable", "cgroup v2 always kills", "leave it out, or raise the memory limit")
        lines.append(_line(hierarchy, "memory.oom_control", 1, "0"))
    return lines


def _sockets(hierarchy: Hierarchy, memory: int) -> list[_Line]:
    """v1 does not charge the buffers of UDP and TCP sockets unless they have a limit of their own: one sandbox could
    take all that net.ipv4.tcp_mem and udp_mem leave to the whole host, gigabytes of it.
    """
    if not hierarchy.has("memory.kmem.tcp.limit_in_bytes"):
        return []
    return [_line(hierarchy, "memory.kmem.tcp.limit_in_bytes", max(memory // 8, 1 << 20), "-1")]


def _swap(layout: CgroupLayout, hierarchy: Hierarchy, memory: int, swap: int | None) -> list[_Line]:
    if swap is None:
        return []
    file = "memory.swap.max" if hierarchy.version == 2 else "memory.memsw.limit_in_bytes"
    if not hierarchy.has(file):
        if layout.swap_total == 0:  # Nothing to swap to: the limit holds by itself.
            return []
        remedy = "boot with swapaccount=1, switch swap off, or ask for no swap limit"
        raise Unenforceable("swap", "its kernel does not account swap", remedy)
    if hierarchy.version == 2:
        return [_line(hierarchy, file, swap, "max")]
    return [_line(hierarchy, file, memory + swap, "-1")]


def _cpu(layout: CgroupLayout, r: Resources) -> list[_Line]:
    lines: list[_Line] = []
    if r.cpu_shares is not None:
        hierarchy = _need(layout, "cpu", "cpu_shares")
        if hierarchy.version == 2:
            lines.append(_line(hierarchy, "cpu.weight", weight_of_shares(r.cpu_shares), "100"))
        else:
            lines.append(_line(hierarchy, "cpu.shares", r.cpu_shares, "1024"))
    if r.cpus is not None:
        hierarchy = _need(layout, "cpu", "cpus")
        quota = max(1000, round(r.cpus * CPU_PERIOD_US))
        file = "cpu.max" if hierarchy.version == 2 else "cpu.cfs_quota_us"
        if not hierarchy.has(file):
            raise Unenforceable(
                "cpus", "its kernel has no CPU quota (CONFIG_CFS_BANDWIDTH)", "ask for cpu_shares instead"
            )
        if hierarchy.version == 2:
            lines.append(_line(hierarchy, file, f"{quota} {CPU_PERIOD_US}", f"max {CPU_PERIOD_US}"))
        else:
            lines.append(_line(hierarchy, file, quota, "-1"))
    return lines


def weight_of_shares(shares: int) -> int:
    """v1 cpu.shares (2 to 262144) as v2 cpu.weight (1 to 10000), the two defaults 1024 and 100 mapped onto each other.

    The quadratic in the logarithm that the OCI runtimes agreed on: 2 -> 1, 1024 -> 100, 262144 -> 10000
    (https://github.com/kubernetes/kubernetes/issues/131216).
    """
    log = math.log2(min(max(shares, 2), 262_144))
    return min(10_000, math.ceil(10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0)))


def _pids(layout: CgroupLayout, r: Resources) -> list[_Line]:
    if r.pids is None:
        return []
    return [_line(_need(layout, "pids", "pids"), "pids.max", r.pids, "max")]


_V1_THROTTLE = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_V2_THROTTLE = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def _io(layout: CgroupLayout, r: Resources) -> list[_Line]:
    lines = [] if r.io_weight is None else [_io_weight(layout, r.io_weight)]
    for limit in r.io_limits:
        hierarchy = _need(layout, "io", "io_limits")
        device, v2 = f"{limit.major}:{limit.minor}", hierarchy.version == 2
        file = "io.max" if v2 else _V1_THROTTLE[limit.kind]
        if not hierarchy.has(file):
            raise Unenforceable("io_limits", "its kernel cannot throttle (CONFIG_BLK_DEV_THROTTLING)", "leave them out")
        value, reset = f"{device} {limit.rate}", f"{device} 0"
        if v2:
            key = _V2_THROTTLE[limit.kind]
            value, reset = f"{device} {key}={limit.rate}", f"{device} {key}=max"
        lines.append(_line(hierarchy, file, value, reset, f"{device} {limit.kind}"))
    return lines


def _io_weight(layout: CgroupLayout, weight: int) -> _Line:
    hierarchy = _need(layout, "io", "io_weight")
    if hierarchy.has("io.weight"):
        return _line(hierarchy, "io.weight", f"default {weight}", "default 100")
    for file in ("io.bfq.weight", "blkio.bfq.weight", "blkio.weight"):
        if hierarchy.has(file):
            least = 10 if file == "blkio.weight" else 1
            top = 1000  # BFQ and CFQ stop here; the range above it is folded, the default 100 stays.
            scaled = weight if weight <= 100 else 100 + (weight - 100) * (top - 100) // (10_000 - 100)
            return _line(hierarchy, file, max(least, scaled), "100")
    remedy = "use a block device with the bfq scheduler, or a kernel with CONFIG_BLK_CGROUP_IOCOST"
    raise Unenforceable("io_weight", "its kernel offers no weight for block devices", remedy)


def changed(old: Resources, new: Resources) -> tuple[str, ...]:
    """Names of the fields in which two differ, for error messages and events."""
    return tuple(name for name in Resources.__struct_fields__ if getattr(old, name) != getattr(new, name))
