"""All of this machine that the engine works with, opened and closed in order."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable

from joey.engine.fleet import Fleet
from joey.engine.launching import Launching
from joey.engine.slots import SlotPool
from joey.host.cgroup import InstanceCgroup
from joey.host.cgroup_files import CgroupError
from joey.host.idranges import IdRanges
from joey.host.instance import Instance
from joey.host.probe import probe
from joey.host.storage import Storage
from joey.model.errors import Broken, HostFailed, NotPermitted, from_os
from joey.model.spec import SandboxSpec
from joey.plan import cgroup as cgroups

_log = logging.getLogger(__name__)

READY_SLOTS = 16
"""Slots kept ready by default: enough for a burst, some 3 MiB of memory."""


class Machine:
    """One instance's hold on the machine. Raises JoeyError naming the step that failed."""

    def __init__(self, instance: Instance, slots: int = READY_SLOTS) -> None:
        if os.geteuid() != 0:
            raise NotPermitted("engine", "needs root: it makes cgroups, mounts and namespaces", "run it with sudo")
        self.instance = instance
        try:
            instance.prepare()
        except OSError as error:
            raise from_os(f"prepare {instance.home}", error) from error
        self.facts = probe(instance)
        self.cgroup = InstanceCgroup(self.facts.cgroups, instance.name)
        try:
            self.cgroup.create()
        except CgroupError as error:
            raise HostFailed("prepare cgroups", str(error), error.remedy) from error
        self.layout = self.cgroup.layout
        self.storage = Storage(instance, self.facts)
        self.storage.prepare()
        (instance.scratch / ".logs").mkdir(mode=0o700, exist_ok=True)
        self.fleet = Fleet(instance, self.layout, self.cgroup)
        try:
            self.ids = IdRanges()
        except OSError as error:
            raise from_os("claim ids", error) from error
        self.fleet.keep((self.ids.fd,))
        self.launching = Launching(instance, self.facts, self.fleet, self.cgroup, self.storage)
        self._slots = slots
        self.pool: SlotPool

    def start_pool(self, number: Callable[[], int]) -> None:
        """number: gives slots their numbers, none ever twice."""
        self.pool = SlotPool(self.fleet, self.layout, self.ids, number, self._slots)

    def hierarchies(self, spec: SandboxSpec) -> tuple[str, ...]:
        """Names of the hierarchies in which a sandbox of `spec` has a cgroup."""
        found = [h.name for h in cgroups.hierarchies(self.layout, spec.resources)]
        devices = self.layout.of("devices")
        if spec.devices and devices is not None and devices.name not in found:
            found.append(devices.name)
        return tuple(found)

    def sweep(self, running: Iterable[str], files: Iterable[str]) -> None:
        """Remove what earlier engines left: cgroups, and what runs in them, of all slots but `running`; boxes of all
        but `files`. What cannot be removed now is for the next start.
        """
        kept = frozenset(running)
        for slot in self.cgroup.sweep():
            if slot not in kept:
                try:
                    self.cgroup.kill(slot)
                    self.cgroup.remove(slot, timeout=5.0)
                except CgroupError as error:
                    _log.error("%s is left over: %s", slot, error)
        try:
            self.storage.sweep(files)
        except HostFailed as error:
            _log.error("files are left over: %s", error)

    def abandon(self) -> None:
        """Let go before anything was started."""
        self.ids.close()

    async def close(self, *, stop_launchers: bool) -> None:
        """Let go. Sandboxes go on; slots that nobody has taken are removed."""
        await self.pool.close()
        await self.fleet.close(stop=stop_launchers)
        self.ids.close()


def demolish(instance: Instance) -> dict[str, int]:
    """Remove everything an instance ever made, whatever state it is in: → kind → number. Works without an engine."""
    removed = {"cgroups": 0, "mounts": 0, "processes": 0}
    facts = probe()
    cgroup = InstanceCgroup(facts.cgroups, instance.name)
    slots = cgroup.sweep()
    removed["cgroups"] = len(slots)
    for slot in slots:
        with contextlib.suppress(CgroupError):
            removed["processes"] += len(cgroup.procs(slot))
            cgroup.kill(slot)
    try:
        cgroup.destroy()
    except CgroupError as error:
        if error.errno != errno.ENOENT:
            raise Broken("remove cgroups", str(error), error.remedy) from error
    removed["mounts"] = Storage(instance, facts).destroy()
    return removed
