"""Device control on cgroup v2: an eBPF program attached to a cgroup.

The policy of an instance is attached to its own cgroup with BPF_F_ALLOW_OVERRIDE, so that all sandboxes inherit it at
no cost of theirs, and a sandbox with rules of its own gets a program that takes the place of the inherited one.
Programs that others attached further up (systemd does, with BPF_F_ALLOW_MULTI) stay in force on top: all must allow. A
program lives as long as its cgroup; nothing is pinned and no descriptor is kept. Source: kernel/bpf/cgroup.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from joey.host import bpf
from joey.host.cgroup_files import CgroupError
from joey.model.cgroup import DeviceRule
from joey.plan.devices import program

_REMEDY = "needs CAP_BPF or CAP_SYS_ADMIN and a kernel with CONFIG_CGROUP_BPF; or mount the v1 devices hierarchy"


def available() -> bool:
    """Whether this process may load a device program: tried, not guessed."""
    try:
        os.close(bpf.load(program(())))
    except OSError:
        return False
    return True


def enforce(cgroup: str, rules: Iterable[DeviceRule]) -> None:
    """Attach a program for `rules` to the v2 cgroup directory `cgroup`, replacing ours in one step. Raises
    CgroupError.
    """
    directory = _open(cgroup)
    try:
        fd = bpf.load(program(rules), "joey_devices")
        try:
            bpf.attach(directory, fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError("attach a device program to", cgroup, error, _REMEDY) from error
    finally:
        os.close(directory)


def lift(cgroup: str) -> None:
    """Detach the cgroup's own program, so that the inherited one applies again. Raises CgroupError."""
    directory = _open(cgroup)
    try:
        if bpf.attached(directory):
            bpf.detach(directory)
    except OSError as error:
        raise CgroupError("detach the device program of", cgroup, error) from error
    finally:
        os.close(directory)


def enforced(cgroup: str) -> bool:
    """Whether the cgroup has a device program of its own. Raises CgroupError."""
    directory = _open(cgroup)
    try:
        return bool(bpf.attached(directory))
    except OSError as error:
        raise CgroupError("query the device program of", cgroup, error, _REMEDY) from error
    finally:
        os.close(directory)


def _open(cgroup: str) -> int:
    try:
        return os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CgroupError("open", cgroup, error) from error
