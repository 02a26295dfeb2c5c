"""`linux.resources` of an OCI configuration -> files to write, in order, for cgroup v1 or v2. Pure.

A write is (controller, file, value). Sources: runtime-spec config-linux.md, "Control groups", and config-linux.md's
rules for v2; Documentation/admin-guide/cgroup-v1/*, cgroup-v2.rst.
"""

from __future__ import annotations

import math

from joey.plan.oci_process import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

Write = tuple[str, str, str]
_ACCESS = frozenset("rwm")
DEVICES: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("c", None, None, "m"), ("b", None, None, "m"), ("c", 1, 3, "rwm"), ("c", 1, 8, "rwm"), ("c", 1, 7, "rwm"),
    ("c", 5, 0, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 9, "rwm"), ("c", 136, None, "rwm"), ("c", 5, 2, "rwm"),
)  # fmt: skip
"""Allowed in every container after all rules: the default devices, terminals, and making nodes, as runc has it."""
Rule = tuple[bool, str, "int | None", "int | None", str]


def writes(resources: Json, version: int, swap_file: bool = True) -> list[Write]:
    """swap_file: the kernel has the file for the swap limit. Raises Refused for what this version cannot enforce."""
    found = _v2(resources, swap_file) if version == 2 else _v1(resources, swap_file)
    if version == 2:
        for file, value in resources.get("unified", {}).items():
            if "/" in file or "." not in file or file.startswith("."):
                raise Refused("linux.resources.unified", f"{file!r} is not a control file")
            # several lines in one value are several writes
            found += [(file.partition(".")[0], file, line) for line in value.splitlines() or [value]]
    elif resources.get("unified"):
        raise Refused("linux.resources.unified", "the host's controllers are cgroup v1's")
    return found


def _number(value: int) -> str:
    return "max" if value == -1 else str(value)


# --- v1 ------------------------------------------------------------------------------------------------------------


def _v1(resources: Json, swap_file: bool) -> list[Write]:
    found = _v1_cpuset(resources.get("cpu", {})) + _v1_memory(resources.get("memory", {}), swap_file)
    found += _v1_cpu(resources.get("cpu", {}))
    found += _pids(resources)
    found += _v1_io(resources.get("blockIO", {}))
    for limit in resources.get("hugepageLimits", []):
        found.append(("hugetlb", f"hugetlb.{_page(limit)}.limit_in_bytes", str(limit["limit"])))
    network = resources.get("network", {})
    if network.get("classID"):
        found.append(("net_cls", "net_cls.classid", str(network["classID"])))
    found += [("net_prio", "net_prio.ifpriomap", f"{p['name']} {p['priority']}") for p in network.get("priorities", [])]
    return found + _rdma(resources)


def _v1_cpuset(cpu: Json) -> list[Write]:
    # mems first: with CPUs and no nodes a cpuset admits nobody
    return [("cpuset", f"cpuset.{name}", cpu[name]) for name in ("mems", "cpus") if cpu.get(name)]


def _v1_memory(memory: Json, swap_file: bool) -> list[Write]:
    found: list[Write] = []
    if memory.get("useHierarchy") is False:
        raise Refused("linux.resources.memory.useHierarchy", "kernels count memory by hierarchy only")
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit == -1 and not swap and swap_file:
        swap = -1  # no limit of memory, none of both together
    if swap and swap_file:
        found.append(("memory", "memory.memsw.limit_in_bytes", str(swap)))
    elif swap > 0 and swap != limit:
        raise Refused("linux.resources.memory.swap", "the kernel does not account swap")
    if limit:
        # Memory never exceeds memory and swap together: from "no limit" down memory goes first, and -1 up last.
        found.insert(0 if limit > 0 else len(found), ("memory", "memory.limit_in_bytes", str(limit)))
    files = (
        ("reservation", "memory.soft_limit_in_bytes"), ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    )  # fmt: skip
    found += [("memory", file, str(memory[name])) for name, file in files if memory.get(name)]
    if "swappiness" in memory:
        if memory["swappiness"] > 100:
            raise Refused("linux.resources.memory.swappiness", f"{memory['swappiness']} is above 100")
        found.append(("memory", "memory.swappiness", str(memory["swappiness"])))
    if memory.get("disableOOMKiller"):
        found.append(("memory", "memory.oom_control", "1"))
    return found


def _v1_cpu(cpu: Json) -> list[Write]:
    files = (
        ("shares", "cpu.shares"), ("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"),
        ("burst", "cpu.cfs_burst_us"), ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"), ("idle", "cpu.idle"),
    )  # fmt: skip
    return [("cpu", file, str(cpu[name])) for name, file in files if cpu.get(name)]


def _check_weights(io: Json) -> None:
    for number, entry in enumerate(io.get("weightDevice", [])):
        if not {"weight", "leafWeight"} & entry.keys():
            raise Refused(f"linux.resources.blockIO.weightDevice[{number}]", "weight or leafWeight is needed")


def _v1_io(io: Json) -> list[Write]:
    _check_weights(io)
    found: list[Write] = []
    for name, file in (("weight", "weight"), ("leafWeight", "leaf_weight")):
        if io.get(name):
            found.append(("blkio", f"blkio.{file}", str(io[name])))
        for device in io.get("weightDevice", []):
            if device.get(name):
                value = f"{device['major']}:{device['minor']} {device[name]}"
                found.append(("blkio", f"blkio.{file}_device", value))
    for name, file in (
        ("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
        ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops"),
    ):  # fmt: skip
        for device in io.get(name, []):
            value = f"{device['major']}:{device['minor']} {device['rate']}"
            found.append(("blkio", f"blkio.throttle.{file}_device", value))
    return found


# --- v2 ------------------------------------------------------------------------------------------------------------


def _v2(resources: Json, swap_file: bool) -> list[Write]:
    cpu, memory = resources.get("cpu", {}), resources.get("memory", {})
    found = _v1_cpuset(cpu) + _v2_memory(memory, swap_file) + _v2_cpu(cpu) + _pids(resources)
    found += _v2_io(resources.get("blockIO", {}))
    for limit in resources.get("hugepageLimits", []):
        found.append(("hugetlb", f"hugetlb.{_page(limit)}.max", str(limit["limit"])))
    network = resources.get("network", {})
    if network.get("classID") or network.get("priorities"):
        raise Refused("linux.resources.network", "cgroup v2 has no such controllers")
    return found + _rdma(resources)


def _v2_memory(memory: Json, swap_file: bool) -> list[Write]:
    found: list[Write] = []
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit:
        found.append(("memory", "memory.max", _number(limit)))
    if swap and swap_file:
        if swap > 0 and limit <= 0:
            raise Refused("linux.resources.memory.swap", "needs a memory limit")
        if swap > 0 and swap < limit:
            raise Refused("linux.resources.memory.swap", "memory and swap together below the memory limit")
        found.append(("memory", "memory.swap.max", "max" if swap == -1 else str(swap - limit)))
    if memory.get("reservation"):
        found.append(("memory", "memory.low", _number(memory["reservation"])))
    for name in ("kernelTCP", "swappiness", "disableOOMKiller"):
        if memory.get(name):
            raise Refused(f"linux.resources.memory.{name}", "cgroup v2 has nothing like it")
    return found


def _v2_cpu(cpu: Json) -> list[Write]:
    found: list[Write] = []
    for name in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(name):
            raise Refused(f"linux.resources.cpu.{name}", "cgroup v2 has nothing like it")
    if cpu.get("idle"):
        found.append(("cpu", "cpu.idle", str(cpu["idle"])))
    if cpu.get("shares"):
        found.append(("cpu", "cpu.weight", str(weight(cpu["shares"]))))
    quota, period = cpu.get("quota", 0), cpu.get("period", 0)
    if quota or period:
        found.append(("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period or 100000}"))
    if cpu.get("burst"):
        found.append(("cpu", "cpu.max.burst", str(cpu["burst"])))
    return found


def weight(shares: int) -> int:
    """cpu.shares (2 to 262144) as cpu.weight (1 to 10000), as joey.plan.cgroup has it: the runtimes agreed."""
    log = math.log2(min(max(shares, 2), 262_144))
    return min(10_000, math.ceil(10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0)))


def _v2_io(io: Json) -> list[Write]:
    _check_weights(io)
    found: list[Write] = []
    if io.get("leafWeight") or any(device.get("leafWeight") for device in io.get("weightDevice", [])):
        raise Refused("linux.resources.blockIO.leafWeight", "cgroup v2 has nothing like it")
    if io.get("weight"):
        found.append(("io", "io.weight", f"default {_io_weight(io['weight'])}"))
    for device in io.get("weightDevice", []):
        if device.get("weight"):
            found.append(("io", "io.weight", f"{device['major']}:{device['minor']} {_io_weight(device['weight'])}"))
    for name, key in (
        ("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"), ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ):  # fmt: skip
        for device in io.get(name, []):
            found.append(("io", "io.max", f"{device['major']}:{device['minor']} {key}={device['rate']}"))
    return found


def _io_weight(value: int) -> int:
    """10..1000 -> 1..10000, as the other runtimes map them."""
    return 1 + (min(max(value, 10), 1000) - 10) * 9999 // 990


# --- both ----------------------------------------------------------------------------------------------------------


def _pids(resources: Json) -> list[Write]:
    limit = resources.get("pids", {}).get("limit", 0)
    return [("pids", "pids.max", "max" if limit < 0 else str(limit))] if limit else []


def _page(limit: Json) -> str:
    size: str = limit["pageSize"]
    if not size[:-2].isdigit() or size[-2:] not in ("KB", "MB", "GB"):
        raise Refused("linux.resources.hugepageLimits.pageSize", f"{size!r} is not like 2MB")
    return size


def _rdma(resources: Json) -> list[Write]:
    found: list[Write] = []
    for device, limits in resources.get("rdma", {}).items():
        if not limits:
            raise Refused(f"linux.resources.rdma.{device}", "hcaHandles or hcaObjects is needed")
        words = [
            f"{key}={limits[name]}"
            for name, key in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if name in limits
        ]
        if words:
            found.append(("rdma", "rdma.max", " ".join((device, *words))))
    return found


def device_rules(resources: Json) -> list[Rule]:
    """(allow, type, major, minor, access) in order, None for any; nothing is allowed before. Raises Refused."""
    found: list[Rule] = []
    for number, rule in enumerate(resources.get("devices", [])):
        where = f"linux.resources.devices[{number}]"
        kind, access = rule.get("type") or "a", rule.get("access") or "rwm"
        if kind not in ("a", "b", "c"):
            raise Refused(f"{where}.type", f"{kind!r}, known are a, b, c")
        if "a" in access and not rule["allow"]:  # "rwa": in use, as runc takes it; what it denies is clear
            access = "rwm"
        if set(access) - _ACCESS:
            raise Refused(f"{where}.access", f"{access!r} is not made of r, w, m")
        major, minor = (None if rule.get(name, -1) == -1 else rule[name] for name in ("major", "minor"))
        if (major or 0) < 0 or (minor or 0) < 0:
            raise Refused(where, "a number below 0")
        found.append((rule["allow"], kind, major, minor, access))
    return [*found, *((True, kind, major, minor, access) for kind, major, minor, access in DEVICES)]


def device_writes(rules: list[Rule]) -> list[tuple[str, str]]:
    """(file, value) for a v1 devices cgroup, from "nothing is allowed" on."""
    found = [("devices.deny", "a")]
    for allow, kind, major, minor, access in rules:
        file = "devices.allow" if allow else "devices.deny"
        if kind == "a" and major is None and minor is None and set(access) == _ACCESS:
            found.append((file, "a"))
            continue
        for each in ("b", "c") if kind == "a" else (kind,):
            found.append((file, f"{each} {_star(major)}:{_star(minor)} {access}"))
    return found


def _star(number: int | None) -> str:
    return "*" if number is None else str(number)


def scope(path: str) -> str:
    """systemd's slice:prefix:name as the path that systemd would give it (systemd.slice(5)). Raises Refused."""
    parts = path.split(":")
    if len(parts) != 3 or not parts[2] or any("/" in part for part in parts):
        raise Refused("linux.cgroupsPath", f"{path!r} is not slice:prefix:name, as --systemd-cgroup wants it")
    slice_, prefix, name = parts
    slice_ = slice_ or "system.slice"
    if slice_ == "-.slice":
        directory = ""
    else:
        if not slice_.endswith(".slice") or slice_.startswith("-") or "--" in slice_:
            raise Refused("linux.cgroupsPath", f"{slice_!r} is not the name of a slice")
        words = slice_.removesuffix(".slice").split("-")
        directory = "/".join("-".join(words[: n + 1]) + ".slice" for n in range(len(words)))
    leaf = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return f"/{directory}/{leaf}" if directory else f"/{leaf}"
