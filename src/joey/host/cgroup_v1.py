"""What is particular to cgroup v1: where figures stand, the freezer, killing without cgroup.kill. Directories in,
values out.

Sources: Documentation/admin-guide/cgroup-v1/{memory,cpuacct,freezer-subsystem,pids,blkio-controller}.rst.
"""

from __future__ import annotations

import os
import signal

from joey.host.cgroup_files import integer, keyed, processes, read, write

Figures = dict[str, int | None]


def memory(directory: str) -> Figures:
    stat = keyed(f"{directory}/memory.stat")
    return {
        "memory_current": integer(f"{directory}/memory.usage_in_bytes"),
        "memory_peak": integer(f"{directory}/memory.max_usage_in_bytes"),
        "memory_limit": integer(f"{directory}/memory.limit_in_bytes"),
        "swap_current": stat.get("total_swap"),
        "cache": stat.get("total_cache"),
        "rss": stat.get("total_rss"),
        "oom_kills": oom_kills(directory),
    }


def oom_kills(directory: str) -> int | None:
    return keyed(f"{directory}/memory.oom_control").get("oom_kill")


def cpu_time(directory: str) -> Figures:
    return {
        "cpu_ns": integer(f"{directory}/cpuacct.usage"),
        "cpu_user_ns": integer(f"{directory}/cpuacct.usage_user"),
        "cpu_system_ns": integer(f"{directory}/cpuacct.usage_sys"),
    }


def throttling(directory: str) -> Figures:
    stat = keyed(f"{directory}/cpu.stat")
    return {"throttled_ns": stat.get("throttled_time"), "throttled_periods": stat.get("nr_throttled")}


def pids(directory: str) -> Figures:
    return {"pids_current": integer(f"{directory}/pids.current"), "pids_max": integer(f"{directory}/pids.max")}


def io(directory: str) -> Figures:
    """Bytes that reached a block device, by the throttling layer's count (kept with or without limits)."""
    text = read(f"{directory}/blkio.throttle.io_service_bytes_recursive")
    if text is None:
        return {}
    total = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in total:
            total[fields[1]] += int(fields[2])
    return {"io_read_bytes": total["Read"], "io_write_bytes": total["Write"]}


def set_frozen(directory: str, on: bool) -> None:
    write(f"{directory}/freezer.state", "FROZEN" if on else "THAWED")


def is_frozen(directory: str) -> bool:
    """Reading the state also moves FREEZING on to FROZEN."""
    return (read(f"{directory}/freezer.state") or "").strip() == "FROZEN"


def signal_all(directory: str, number: int = signal.SIGKILL) -> int:
    """One round of `number` to every process in the cgroup and below; how many there were.

    Each is opened as a pidfd and looked for once more before it is signalled, so that a number used again by a stranger
    is never hit. What forks meanwhile is met in the caller's next round.
    """
    found = processes(directory)
    opened: list[tuple[int, int]] = []
    try:
        for pid in found:
            try:
                opened.append((pid, os.pidfd_open(pid)))
            except (ProcessLookupError, ValueError):
                continue
        still = set(processes(directory))
        for pid, fd in opened:
            if pid in still:
                try:
                    signal.pidfd_send_signal(fd, number)
                except ProcessLookupError:
                    continue
    finally:
        for _, fd in opened:
            os.close(fd)
    return len(found)


def reclaim(directory: str) -> None:
    """Push out all memory that can be; blocks as long as that takes."""
    write(f"{directory}/memory.force_empty", "0")
