"""Reading and writing control files: small helpers with one error convention.

Every failure is a CgroupError that names the directory or file, the value and the remedy. A control file that this
kernel does not have reads as None; a cgroup that is not there at all is an error.
"""

from __future__ import annotations

import errno
import os

_HINTS = {
    errno.EBUSY: "processes are still in it, or it uses more than the new limit allows",
    errno.ENOENT: "the cgroup is gone or this kernel lacks the file",
    errno.EACCES: "run as root, or in a cgroup delegated to you",
    errno.EPERM: "run as root, or in a cgroup delegated to you",
    errno.EROFS: "the cgroup file system is mounted read-only here: remount it rw",
    errno.EINVAL: "the kernel refuses the value: it may be more than the parent cgroup has",
    errno.ENOSPC: "the limit of cgroups is reached (cgroup.max.descendants), or a cpuset has no cpus or mems",
    errno.EAGAIN: "a limit of an ancestor cgroup is reached",
}


class CgroupError(RuntimeError):
    """An action on a cgroup failed. action: what was tried; path: on what; errno: the kernel's answer or None."""

    def __init__(self, action: str, path: str, error: OSError | None = None, remedy: str = "") -> None:
        self.action, self.path, self.errno = action, path, error.errno if error else None
        self.remedy = remedy or (_HINTS.get(error.errno or 0, "") if error else "")
        reason = f": {errno.errorcode.get(error.errno or 0, '?')} ({error.strerror})" if error else ""
        super().__init__(f"cgroup: {action} {path}{reason}" + (f"; {self.remedy}" if self.remedy else ""))


def read(path: str) -> str | None:
    """The whole file, or None if there is no such file (or its device is gone). Raises CgroupError otherwise."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CgroupError("open", path, error) from error
    try:
        data = os.read(fd, 65536)
        # The kernel returns whole lines, a page at most at once: what is well below a page is all there is.
        while len(data) > 3072 and (more := os.read(fd, 65536)):
            data += more
        return data.decode()
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise CgroupError("read", path, error) from error
    finally:
        os.close(fd)


def write(path: str, value: str) -> None:
    """One write(2) of `value`, as control files want it. Raises CgroupError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(f"write {value.strip()!r} to", path, error) from error


def integer(path: str) -> int | None:
    """The number in a file; None for `max`, for v1's "no limit" (nearly 2**63), and for no such file."""
    text = read(path)
    if text is None or text.strip() == "max":
        return None
    value = int(text)
    return None if value >= 1 << 62 or value < 0 else value


def keyed(path: str) -> dict[str, int]:
    """A flat keyed file (`name number` a line) as a dict; empty if there is no such file."""
    found = {}
    for line in (read(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def make(path: str) -> None:
    """mkdir unless it is there. Raises CgroupError."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise CgroupError("mkdir", path, error) from error


def children(path: str) -> list[str]:
    """Names of the child cgroups, sorted; none if the cgroup is not there."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CgroupError("list", path, error) from error


def remove_tree(path: str) -> bool:
    """rmdir a cgroup and those below it, deepest first. True if it is gone, False while processes are in it (EBUSY)."""
    try:
        os.rmdir(path)  # Nearly always a leaf: one call.
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise CgroupError("rmdir", path, error) from error
    below = children(path)
    gone = [remove_tree(f"{path}/{name}") for name in below]  # all of them, whatever the first one says
    if not below or not all(gone):
        return False
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise CgroupError("rmdir", path, error) from error
    return True


def processes(path: str) -> list[int]:
    """Process ids in the cgroup and those below it; none if it is not there. 0: one outside of our pid namespace."""
    pids = [int(line) for line in (read(f"{path}/cgroup.procs") or "").split()]
    for name in children(path):
        pids += processes(f"{path}/{name}")
    return pids
