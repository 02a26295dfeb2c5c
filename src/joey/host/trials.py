"""Find out what the kernel lets this process do by doing it, in a child with a mount namespace of its own: whatever it
makes is gone with it. Some ten milliseconds.

The child is a fork that runs Python, so `run` is for a process that has no other threads yet.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from joey.host import sys as kernel

_FIRST_ID = 100_000
_TIMEOUT = 20


def run(layers: Path | None = None) -> dict[str, bool]:
    """Name of an ability of HostFacts -> whether it is there.

    layers: a directory of the file system on which layers live; id-mapping is an ability of the file system.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            signal.alarm(_TIMEOUT)  # whatever hangs, ends
            os.write(write, json.dumps(_all(layers or Path("/"))).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    found: dict[str, bool] = json.loads(data or b"{}")
    return found


def _all(layers: Path) -> dict[str, bool]:
    found = {name: _works(trial) for name, trial in _SIMPLE.items()}
    if not _works(_private_mounts):
        return found
    found |= {name: _works(trial) for name, trial in _NAMESPACES.items()}
    found["devpts"] = _works(lambda: os.close(_mounted("devpts")))
    found["mqueue"] = _works(lambda: os.close(_mounted("mqueue")))
    user, userns = _user_namespace()
    try:
        found["user_namespaces"] = userns is not None
        found |= _mounts(layers, userns)
    finally:
        if user:
            os.kill(user, signal.SIGKILL)
            os.waitpid(user, 0)
    return found


def _works(trial: Callable[[], object]) -> bool:
    try:
        trial()
        return True
    except (OSError, ValueError):
        return False


def _mounts(layers: Path, userns: int | None) -> dict[str, bool]:
    """Abilities around overlay. Everything is on a tmpfs stacked over /, where only its descriptor leads."""
    names = ("mount_api", "mount_setattr", "overlay", "idmap", "idmap_tmpfs")
    found = dict.fromkeys(names, False)
    try:
        top = _mounted("tmpfs")
        kernel.move_mount(top, "", kernel.AT_FDCWD, "/", kernel.MOVE_MOUNT_F_EMPTY_PATH)
        for name in ("lower", "upper", "work", "place"):
            os.mkdir(name, dir_fd=top)
        lower = os.open("lower", os.O_PATH | os.O_CLOEXEC, dir_fd=top)
        detached = kernel.open_tree(top, "lower", kernel.OPEN_TREE_CLONE)
    except OSError:
        return found
    found["mount_api"] = True
    found["mount_setattr"] = _works(lambda: _set_nosuid(detached))
    found["overlay"] = _works(lambda: _overlay(top, lower))
    if userns is not None:
        found["idmap_tmpfs"] = _works(lambda: _idmapped(top, "lower", userns))
        found["idmap"] = _works(lambda: _overlay(top, _attached(top, _idmapped(kernel.AT_FDCWD, str(layers), userns))))
    return found


def _attached(top: int, tree: int) -> int:
    kernel.move_mount(tree, "", top, "place", kernel.MOVE_MOUNT_F_EMPTY_PATH)
    return tree


def _mounted(kind: str) -> int:
    """→ descriptor of a new, detached file system."""
    context = kernel.fsopen(kind)
    try:
        if kind == "devpts":
            kernel.fsconfig(context, kernel.FSCONFIG_SET_FLAG, "newinstance")
        kernel.fsconfig(context, kernel.FSCONFIG_CMD_CREATE)
        return kernel.fsmount(context)
    finally:
        os.close(context)


def _set_nosuid(tree: int) -> None:
    kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, set_=kernel.MOUNT_ATTR_NOSUID)


def _idmapped(directory: int, path: str, userns: int) -> int:
    """→ descriptor of a clone of the tree at `path`, in which the host's root is somebody of the namespace."""
    tree = kernel.open_tree(directory, path, kernel.OPEN_TREE_CLONE)
    kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, set_=kernel.MOUNT_ATTR_IDMAP, userns_fd=userns)
    if os.stat(f"/proc/self/fd/{tree}").st_uid < _FIRST_ID:
        raise OSError(errno.EINVAL, "the mapping has no effect")
    return tree


def _overlay(top: int, lower: int) -> None:
    """Mount an overlay of `lower` under the tmpfs and write to it."""
    context = kernel.fsopen("overlay")
    try:
        kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, "lowerdir", f"/proc/self/fd/{lower}")
        for name in ("upper", "work"):
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
            kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, f"{name}dir", f"/proc/self/fd/{fd}")
        kernel.fsconfig(context, kernel.FSCONFIG_CMD_CREATE)
        root = kernel.fsmount(context)
    finally:
        os.close(context)
    os.mkdir("made", dir_fd=root)
    os.rmdir("made", dir_fd=root)
    os.close(root)  # nothing else holds it: the directories can be used for the next one


def _private_mounts() -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)


def _user_namespace() -> tuple[int, int | None]:
    """(a process in a user namespace whose ids are those from _FIRST_ID on, a descriptor of it); (0, None): none."""
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    try:
        if os.read(ready_read, 1) != b"1":
            return child, None
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {_FIRST_ID} 65536")
        return child, os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return child, None
    finally:
        os.close(ready_read)


def _clone3() -> None:
    """Without arguments: EINVAL where it is there, ENOSYS where it is not or a filter hides it."""
    try:
        kernel.call("clone3", None, 0)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise


_SIMPLE: dict[str, Callable[[], object]] = {
    "clone3": _clone3,
    "pidfd": lambda: os.close(kernel.pidfd_open(os.getpid())),
    "openat2": lambda: os.close(kernel.openat2(kernel.AT_FDCWD, "/", os.O_PATH, resolve=kernel.RESOLVE_NO_MAGICLINKS)),
    "close_range": lambda: kernel.close_range(0x7FFFFFF0, 0x7FFFFFF0),
}
_NAMESPACES: dict[str, Callable[[], object]] = {
    "net_namespaces": lambda: kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS),
    "cgroup_namespaces": lambda: kernel.unshare(kernel.CLONE_NEWCGROUP),
}
