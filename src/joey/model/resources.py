"""How much of the machine one sandbox may use. Values and their checks; nothing here touches a host."""

from __future__ import annotations

import re
from typing import Literal

from joey.model.units import MIB, format_size, parse_cpu_list
from joey.model.value import Value

MEMORY_FLOOR = 6 * MIB
"""Below this a process cannot even exec reliably: its page tables, stack and the kernel's own pages are charged too."""
CPUS_FLOOR = 0.01
"""The kernel's smallest quota is 1 ms, of a period of 100 ms (min_cfs_quota_period in kernel/sched/core.c)."""
CPU_PERIOD_US = 100_000
_PIDS_TOP = 4 * 1024 * 1024  # PID_MAX_LIMIT of a 64-bit kernel
_INT64_TOP = (1 << 63) - 1


class HostLimits(Value, frozen=True):
    """What a request is checked against: numbers of the CPUs and memory nodes online. None skips that check.

    A memory limit above the host's memory is not an error: it is a ceiling, not a claim.
    """

    cpus: frozenset[int] | None = None
    mems: frozenset[int] | None = None


class IoLimit(Value, frozen=True):
    """A ceiling for one block device: `rate` bytes (bps) or requests (iops) a second, for reads or for writes."""

    major: int
    minor: int
    kind: Literal["read_bps", "write_bps", "read_iops", "write_iops"]
    rate: int


class Resources(Value, frozen=True, kw_only=True):
    """Limits of one sandbox; None means no limit of that kind.

    memory: bytes of anonymous memory, page cache and kernel memory together. memory_reservation: bytes kept for it when
    the host is short. swap: bytes of swap beyond `memory`, 0 for none. cpus: CPU seconds a second. cpu_shares: weight
    against other sandboxes when CPUs are short, v1 scale (2 to 262144, 1024 is ordinary). cpuset_cpus, cpuset_mems:
    lists such as "0-2,7". pids: processes and threads. io_weight: 1 to 10000, 100 is ordinary. disk: bytes the sandbox
    may write to its root (enforced by the overlay, not by a cgroup). oom_kill_disable: processes wait instead of being
    killed (v1 only).
    """

    memory: int | None = None
    memory_reservation: int | None = None
    swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None
    io_weight: int | None = None
    io_limits: tuple[IoLimit, ...] = ()
    disk: int | None = None
    oom_kill_disable: bool = False

    @classmethod
    def default(cls) -> Resources:
        """What a sandbox gets that asks for nothing: enough for ordinary programs, harmless to everybody else.

        - memory 512 MiB, no swap: a memory hog is killed in its own cgroup, and cannot make the host swap.
        - one CPU: a hog with many threads leaves the rest of the machine alone (on top, all sandboxes share one branch
          of the scheduler's tree, so that the engine and the host's other programs are not outweighed by their number).
        - 256 processes and threads: a fork bomb ends at EAGAIN long before kernel.pid_max (32768 on small machines).
        """
        return cls(memory=512 * MIB, swap=0, cpus=1.0, pids=256)

    def validate(self, host: HostLimits | None = None) -> None:
        """Raises ValueError, its message starting with the field's name, for what no kernel or this host could take."""
        host = host or HostLimits()
        self._check_memory()
        self._check_cpu(host)
        _check_range("pids", self.pids, 1, _PIDS_TOP)
        _check_range("io_weight", self.io_weight, 1, 10_000)
        _check_range("disk", self.disk, 1 * MIB, _INT64_TOP)
        self._check_io_limits()

    def _check_memory(self) -> None:
        _check_type("memory", self.memory, int)
        if self.memory is not None and self.memory < MEMORY_FLOOR:
            raise ValueError(
                f"memory: {self.memory} bytes is below the least a program starts in, {format_size(MEMORY_FLOOR)}"
            )
        _check_range("memory", self.memory, MEMORY_FLOOR, _INT64_TOP)
        _check_range("swap", self.swap, 0, _INT64_TOP - (self.memory or 0))
        if self.swap is not None and self.memory is None:
            raise ValueError("swap: needs a memory limit, because it counts what goes beyond it")
        _check_range("memory_reservation", self.memory_reservation, 0, _INT64_TOP)
        if self.memory_reservation is not None and self.memory is not None and self.memory_reservation > self.memory:
            raise ValueError(
                f"memory_reservation: {self.memory_reservation} bytes is above the memory limit, {self.memory}"
            )
        if self.oom_kill_disable and self.memory is None:
            raise ValueError("oom_kill_disable: needs a memory limit: without one it would stall the whole host")

    def _check_cpu(self, host: HostLimits) -> None:
        if self.cpus is not None:
            if isinstance(self.cpus, bool) or not isinstance(self.cpus, (int, float)):
                raise ValueError(f"cpus: {self.cpus!r} is not a number")
            if not self.cpus >= CPUS_FLOOR:  # also refuses NaN
                raise ValueError(f"cpus: {self.cpus} is below the kernel's least, {CPUS_FLOOR}")
            top = len(host.cpus) if host.cpus is not None else 8192
            if self.cpus > top:
                raise ValueError(f"cpus: {self.cpus} is more than this host has, {top}")
        _check_range("cpu_shares", self.cpu_shares, 2, 262_144)
        _check_list("cpuset_cpus", self.cpuset_cpus, host.cpus, "CPUs")
        _check_list("cpuset_mems", self.cpuset_mems, host.mems, "memory nodes")

    def _check_io_limits(self) -> None:
        seen: set[tuple[int, int, str]] = set()
        for limit in self.io_limits:
            if limit.kind not in ("read_bps", "write_bps", "read_iops", "write_iops"):
                raise ValueError(f"io_limits: {limit.kind!r} is not read_bps, write_bps, read_iops or write_iops")
            _check_range("io_limits: rate", limit.rate, 1, _INT64_TOP)
            _check_range("io_limits: major", limit.major, 0, 0xFFF)
            _check_range("io_limits: minor", limit.minor, 0, 0xFFFFF)
            key = (limit.major, limit.minor, limit.kind)
            if key in seen:
                raise ValueError(f"io_limits: {limit.kind} of device {limit.major}:{limit.minor} is given twice")
            seen.add(key)


def parse_cpus(text: str, field: str = "cpus") -> float:
    """`"0.5"` or `"2"` as a float. Raises ValueError naming `field` (also for nan, inf, signs and exponents)."""
    if re.fullmatch(r"\d+(\.\d+)?|\.\d+", text.strip(), re.ASCII) is None:
        raise ValueError(f"{field}: {text!r} is not a number of CPUs such as 0.5 or 2")
    return float(text)


def _check_type(field: str, value: object, kind: type) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise ValueError(f"{field}: {value!r} is not a whole number")


def _check_range(field: str, value: int | None, least: int, most: int) -> None:
    _check_type(field, value, int)
    if value is not None and not least <= value <= most:
        raise ValueError(f"{field}: {value} is not between {least} and {most}")


def _check_list(field: str, text: str | None, online: frozenset[int] | None, what: str) -> None:
    if text is None:
        return
    numbers = parse_cpu_list(text, field)
    missing = numbers - online if online is not None else frozenset()
    if missing:
        raise ValueError(f"{field}: {text!r}: this host has no {what} {sorted(missing)}")
