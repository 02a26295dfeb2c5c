"""Sandboxes of templates, in the engine: the template's own, and berths, which wait for a child of its warm process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import joey
from joey.engine.launching import Launched, Request, Within
from joey.engine.slots import Prepared, Special
from joey.host import sys
from joey.model.errors import Broken, JoeyError, from_os
from joey.model.facts import HostFacts
from joey.model.image import Identity
from joey.model.network import NetworkSpec
from joey.model.spec import Mount, SandboxSpec
from joey.model.template import TemplateSpec
from joey.plan import berth as plans
from joey.plan import flags as f
from joey.plan import process as run

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.channels import Channel
    from joey.engine.supervisor import Engine

_NAMESPACES = ("pid", "cgroup", "ipc", "uts", "net", "mnt", "user")
"""In the order in which the warm process is given them (functions/runtime/zygote.py)."""
_READ = os.O_RDONLY | os.O_CLOEXEC
_BEFORE, _AFTER = (partial(plans.inner_slot, before=before) for before in (True, False))
_TIMES = 8
"""The memory limit of a template's own sandbox, over that of an instance."""
RUNTIME = Path(joey.__file__).parent / "functions" / "runtime"
"""What is shown inside as /opt/joey-runtime."""


class Outer:
    """The place of a template's own sandbox: launched as any other, in a user namespace that can hold others."""

    def __init__(self, engine: Engine) -> None:
        self.slot = Special(lambda slot: plans.outer_slot)
        self.start = engine.machine.launching.start


class Berth:
    """A sandbox that can be entered. fds: its namespaces; joins: the files by which its cgroups are joined. channel: to
    the child that waits in it, once there is one.

    Those files are not the warm process's to have: whoever holds one that root has opened moves all whom he sees, also
    a process of the launcher on its way into a berth, say to where it has no processor time, or is frozen.
    """

    def __init__(self, box: Box) -> None:
        self.id, self.box = box.id, box
        self.fds: tuple[int, ...] = ()
        self.joins: tuple[int, ...] = ()
        self.channel: Channel | None = None

    def entered(self) -> None:
        """Nobody else is going to enter it. Done again: nothing."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)

    async def move(self, pid: int, outer: os.stat_result) -> None:
        """Move a child of the warm process into its cgroups. pid: of the host, as the kernel told it; outer: the
        template's user namespace, in which nothing of ours is. Raises OSError, Broken if it is nobody's of the
        template.
        """
        pidfd, joins = sys.pidfd_open(pid), self.joins
        try:
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), outer):
                raise Broken("fork", "whoever says to be the template's child is none")
        except BaseException:
            os.close(pidfd)
            raise
        self.joins = ()
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, _join, pid, pidfd, joins))

    def close(self) -> None:
        """Let go of all: who waits in it ends. Done again: nothing."""
        self.entered()
        joins, self.joins = self.joins, ()
        for fd in joins:
            os.close(fd)
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()


class Inner:
    """The place of a berth, inside a template's sandbox. berth: it, once it is there."""

    def __init__(self, engine: Engine, within: Within, base: int, box: Box) -> None:
        self._engine, self._within = engine, within
        self.berth = Berth(box)
        self.slot = Special(lambda slot: _BEFORE if slot.base < base else _AFTER, (within.outer,))

    async def start(
        self, request: Request, prepared: Prepared, key: int, etc: Mapping[str, str] | None = None
    ) -> Launched:
        """See `box.Place`."""
        machine = self._engine.machine
        second = self._engine.store.next_number("key")
        launched = await machine.launching.berth(request, prepared, key, second, etc or {}, self._within)
        taken = {"mnt": launched.fds[f.ROLE_MNTNS]}
        try:
            taken["net"], taken["user"] = os.dup(prepared.netns), os.dup(prepared.userns)
            for kind in ("pid", "cgroup", "ipc", "uts"):
                taken[kind] = os.open(f"/proc/{launched.pid}/ns/{kind}", _READ)
            for one in plans.joined(request.spec, machine.facts):
                file = f.JOIN_V1 if one.version == 1 else "cgroup.procs"
                path = f"{machine.cgroup.path(one, prepared.slot.name)}/{file}"
                taken[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            for fd in taken.values():
                os.close(fd)
            with contextlib.suppress(OSError, JoeyError):
                await launched.shard.signal(key, 9)
            raise from_os("enter a sandbox that was prepared", error) from error
        self.berth.fds = tuple(taken.pop(kind) for kind in _NAMESPACES)
        self.berth.joins = tuple(taken.values())
        return Launched(launched.shard, key, launched.pid, {}, launched.layers)


def within(pid: int) -> Within:
    """The template's sandbox whose first process is `pid`, which our launcher has not reaped. Raises OSError."""
    outer = os.open(f"/proc/{pid}/ns/user", _READ)
    try:
        return Within(outer, sys.pidfd_open(pid))
    except OSError:
        os.close(outer)
        raise


def _join(pid: int, pidfd: int, joins: Sequence[int]) -> None:
    """In a thread: the kernel has a process of another wait for all forks of the machine. Closes all descriptors."""
    try:
        for fd in joins:
            signal.pidfd_send_signal(pidfd, 0)  # ESRCH if its number may be another's
            os.write(fd, b"%d" % pid)
    finally:
        for fd in (pidfd, *joins):
            os.close(fd)


def become(spec: SandboxSpec, identity: Identity, facts: HostFacts) -> dict[str, object]:
    """What the warm process makes of a child that is about to be `spec`'s (zygote.py: `enter`)."""
    process = spec.process
    wanted = run.check_capabilities(process)
    return {
        "uid": identity.uid, "gid": identity.gid, "groups": list(identity.groups), "bounding": wanted,
        "kept": wanted if identity.uid == 0 else 0, "umask": process.umask, "cwd": process.cwd or "/",
        "oom_score_adj": spec.oom_score_adj,
        "filter": plans.filter_of_child(wanted, facts.arch).hex(),
    }  # fmt: skip


# --- what each of them is ----------------------------------------------------------------------------------------


def inside(spec: TemplateSpec) -> SandboxSpec:
    """What is forked from it: with the runtime and the code, unless it has brought its own."""
    one = spec.spec
    taken = {mount.target for mount in one.mounts}
    more = [("/opt/joey-runtime", str(RUNTIME)), *([("/code", spec.code)] if spec.code else [])]
    mounts = [Mount(source=source, target=target, read_only=True) for target, source in more if target not in taken]
    return msgspec.structs.replace(
        one, init=True, entrypoint=(), remove=True, mounts=(*one.mounts, *mounts),
        process=msgspec.structs.replace(one.process, argv=()),
    )  # fmt: skip


def outside(inside: SandboxSpec) -> SandboxSpec:
    """The template's own sandbox: no network, no devices, no volumes, no power. It may use more memory than one of its
    children: what a child writes to before it has joined its cgroups is charged to it, of every child that lives.
    """
    process = msgspec.structs.replace(inside.process, capabilities=(), user="", groups=(), cwd="")
    resources = inside.resources
    if resources.memory is not None:
        resources = msgspec.structs.replace(resources, memory=_TIMES * resources.memory)
    return msgspec.structs.replace(
        inside, network=NetworkSpec(mode="none"), devices=(), volumes=(), sysctls={}, process=process, labels={},
        resources=resources,
    )  # fmt: skip


def handed(request: Request, spec: SandboxSpec) -> SandboxSpec:
    """What a berth was started with, as what it is handed out as."""
    return msgspec.structs.replace(
        request.spec, name=spec.name, labels={**request.spec.labels, **spec.labels}, process=spec.process,
        timeout=spec.timeout, idle_timeout=spec.idle_timeout, on_timeout=spec.on_timeout,
    )  # fmt: skip
