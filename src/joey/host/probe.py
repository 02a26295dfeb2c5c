"""What this host can do: `probe` reads what /proc and /sys say and tries the rest (joey.host.trials).

The trials' results are kept in `instance.run` for the same boot, kernel and capabilities, but only while nothing is
missing: what an administrator repairs works at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from joey.host import cgroup, loop, python, quota, trials
from joey.model.capabilities import CAPABILITIES
from joey.model.facts import MASKED_PROC, READONLY_PROC, HostFacts, QuotaMethod
from joey.model.units import parse_cpu_list

if TYPE_CHECKING:
    from joey.host.instance import Instance

SYSCTLS = (
    "fs.file-max", "fs.inotify.max_user_instances", "fs.mount-max", "fs.nr_open", "kernel.keys.maxkeys",
    "kernel.pid_max", "kernel.sched_autogroup_enabled", "kernel.threads-max", "kernel.unprivileged_userns_clone",
    "net.ipv4.neigh.default.gc_thresh3", "user.max_cgroup_namespaces", "user.max_ipc_namespaces",
    "user.max_mnt_namespaces", "user.max_net_namespaces", "user.max_pid_namespaces", "user.max_user_namespaces",
    "user.max_uts_namespaces", "vm.max_map_count", "vm.overcommit_memory",
)  # fmt: skip
_RLIMITS = tuple(name.removeprefix("RLIMIT_") for name in dir(resource) if name.startswith("RLIMIT_"))
_CACHE = "facts.json"


def probe(instance: Instance | None = None) -> HostFacts:
    """The facts of this host, for an engine whose files are those of `instance` (None: for nobody in particular).

    Changes nothing but the cache file. Call it before there are threads.
    """
    release = os.uname().release
    boot = _text("/proc/sys/kernel/random/boot_id")
    effective = _effective_capabilities()
    layers = _existing(instance.images if instance else Path("/"))
    layout, problems = cgroup.examine()
    sysctls = _sysctls()
    return HostFacts(
        arch=os.uname().machine,
        kernel=_version(release),
        release=release,
        boot_id=boot,
        cpus=_numbers("/sys/devices/system/cpu/online", frozenset(range(os.cpu_count() or 1))),
        mems=_numbers("/sys/devices/system/node/online", frozenset({0})),
        mem_total=_meminfo("MemTotal"),
        swap_total=_meminfo("SwapTotal"),
        page_size=resource.getpagesize(),
        cgroups=layout,
        cgroup_problems=tuple(problems),
        proc_masked=_present(MASKED_PROC),
        proc_readonly=_present(READONLY_PROC),
        seccomp_actions=tuple(_text("/proc/sys/kernel/seccomp/actions_avail").split()),
        seccomp=bool(_text("/proc/sys/kernel/seccomp/actions_avail")),
        quota=_quota(_existing(instance.disk)) if instance else None,
        capabilities_missing=_missing(effective),
        rlimit_hard=_hard_limits(effective, sysctls),
        lsm=_security_modules(),
        selinux=os.path.isdir("/sys/fs/selinux"),
        apparmor=_text("/sys/module/apparmor/parameters/enabled") == "Y",
        sysctls=sysctls,
        python=python.usable()[1],
        **_tried(instance, layers, f"{boot} {release} {effective:x} {layers}"),
    )


def _tried(instance: Instance | None, layers: Path, key: str) -> dict[str, bool]:
    place = instance.run / _CACHE if instance else None
    try:
        kept = json.loads(place.read_text()) if place else {}
        if kept.get("key") == key:
            found: dict[str, bool] = kept["found"]
            return found
    except (OSError, ValueError, AttributeError, KeyError):
        pass
    found = trials.run(layers)
    if place and place.parent.is_dir() and found and all(found[name] for name in found if name not in _OPTIONAL):
        fresh = place.with_name(f"{_CACHE}.{os.getpid()}")
        with contextlib.suppress(OSError):  # only to be quicker next time; a full disk is for others to complain about
            fresh.write_text(json.dumps({"key": key, "found": found}))
            fresh.rename(place)
    return found


_OPTIONAL = frozenset({"idmap_tmpfs"})
"""Abilities that depend on nothing but the kernel's version: missing, they stay so until the next boot."""


def _quota(disk: Path) -> QuotaMethod | None:
    if quota.enforced(disk):
        return "project"
    return "loop" if loop.supported() else None


def _existing(path: Path) -> Path:
    """The nearest directory above that exists: its file system is the one that counts."""
    while not path.is_dir():
        path = path.parent
    return path


def _version(release: str) -> tuple[int, int]:
    numbers = [part for part in release.replace("-", ".").split(".") if part.isdecimal()]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _numbers(path: str, otherwise: frozenset[int]) -> frozenset[int]:
    text = _text(path)
    return parse_cpu_list(text) if text else otherwise


def _meminfo(field: str) -> int:
    for line in _text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return 0


def _present(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for path in paths if os.path.exists(path))


def _effective_capabilities() -> int:
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _missing(effective: int) -> tuple[str, ...]:
    last = _text("/proc/sys/kernel/cap_last_cap")
    known = int(last) + 1 if last.isdecimal() else len(CAPABILITIES)
    return tuple(name for number, name in enumerate(CAPABILITIES[:known]) if not effective >> number & 1)


def _hard_limits(effective: int, sysctls: dict[str, int]) -> dict[str, int | None]:
    if effective >> CAPABILITIES.index("CAP_SYS_RESOURCE") & 1:
        return {"NOFILE": sysctls.get("fs.nr_open", 1 << 20)}
    limits = {}
    for name in _RLIMITS:
        if name != "OFILE":  # the old name of NOFILE
            hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
            limits[name] = None if hard == resource.RLIM_INFINITY else hard
    return limits


def _security_modules() -> tuple[str, ...]:
    """securityfs need not be mounted; then what can be told from elsewhere."""
    text = _text("/sys/kernel/security/lsm")
    if text:
        return tuple(text.split(","))
    places = (("selinux", "/sys/fs/selinux"), ("smack", "/sys/fs/smackfs"), ("yama", "/proc/sys/kernel/yama"))
    found = [name for name, place in places if os.path.isdir(place)]
    return tuple([*found, "apparmor"] if _text("/sys/module/apparmor/parameters/enabled") == "Y" else found)


def _sysctls() -> dict[str, int]:
    found = {}
    for name in SYSCTLS:
        text = _text(f"/proc/sys/{name.replace('.', '/')}")
        if text.lstrip("-").isdecimal():
            found[name] = int(text)
    return found
