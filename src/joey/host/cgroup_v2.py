"""What is particular to cgroup v2: where figures stand, freezing, killing, enabling controllers. Directories in, values
out.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno

from joey.host.cgroup_files import CgroupError, integer, keyed, read, write

Figures = dict[str, int | None]


def memory(directory: str) -> Figures:
    stat = keyed(f"{directory}/memory.stat")
    return {
        "memory_current": integer(f"{directory}/memory.current"),
        "memory_peak": integer(f"{directory}/memory.peak"),
        "memory_limit": integer(f"{directory}/memory.max"),
        "swap_current": integer(f"{directory}/memory.swap.current"),
        "cache": stat.get("file"),
        "rss": stat.get("anon"),
        "oom_kills": oom_kills(directory),
    }


def oom_kills(directory: str) -> int | None:
    return keyed(f"{directory}/memory.events").get("oom_kill")


def cpu_time(directory: str) -> Figures:
    """cpu.stat counts microseconds, and counts them with or without the cpu controller."""
    stat = keyed(f"{directory}/cpu.stat")
    names = (("cpu_ns", "usage_usec"), ("cpu_user_ns", "user_usec"), ("cpu_system_ns", "system_usec"))
    return {name: stat[key] * 1000 for name, key in names if key in stat}


def throttling(directory: str) -> Figures:
    stat = keyed(f"{directory}/cpu.stat")
    held = stat.get("throttled_usec")
    return {"throttled_ns": None if held is None else held * 1000, "throttled_periods": stat.get("nr_throttled")}


def pids(directory: str) -> Figures:
    return {"pids_current": integer(f"{directory}/pids.current"), "pids_max": integer(f"{directory}/pids.max")}


def io(directory: str) -> Figures:
    text = read(f"{directory}/io.stat")
    if text is None:
        return {}
    total = {"rbytes": 0, "wbytes": 0}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key in total and value.isdigit():
                total[key] += int(value)
    return {"io_read_bytes": total["rbytes"], "io_write_bytes": total["wbytes"]}


def set_frozen(directory: str, on: bool) -> None:
    write(f"{directory}/cgroup.freeze", "1" if on else "0")


def is_frozen(directory: str) -> bool:
    return keyed(f"{directory}/cgroup.events").get("frozen") == 1


def kill(directory: str) -> None:
    """SIGKILL to all in the cgroup and below at once; also reaches what forks meanwhile and what is frozen."""
    write(f"{directory}/cgroup.kill", "1")


def reclaim(directory: str, size: int) -> None:
    """Ask the kernel to push out `size` bytes; it may manage less, which is no error."""
    try:
        write(f"{directory}/memory.reclaim", str(size))
    except CgroupError as error:
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            raise


def enable(directory: str, controllers: frozenset[str]) -> None:
    """Let children of `directory` use those of `controllers` it has. Raises CgroupError, EBUSY if it has processes.

    A controller that the kernel refuses for another reason (cpu, while real-time processes run outside of the root) is
    left out; the caller sees that in what the child then has.
    """
    have = set((read(f"{directory}/cgroup.controllers") or "").split())
    enabled = set((read(f"{directory}/cgroup.subtree_control") or "").split())
    wanted = sorted((controllers & have) - enabled)
    # Not left to the kernel: it lets cpu and pids pass, makes a threaded domain of it and then refuses memory.
    # The root of all, which alone has no cgroup.type, may hold both processes and controllers.
    if wanted and read(f"{directory}/cgroup.type") is not None and read(f"{directory}/cgroup.procs"):
        raise CgroupError("enable controllers in", directory, OSError(errno.EBUSY, "processes are in it"))
    for controller in wanted:
        try:
            write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        except CgroupError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                raise


def disable(directory: str) -> None:
    """Take back what `enable` did, so that processes may sit in the cgroup itself again. Raises CgroupError."""
    for controller in (read(f"{directory}/cgroup.subtree_control") or "").split():
        write(f"{directory}/cgroup.subtree_control", f"-{controller}")
