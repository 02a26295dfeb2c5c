"""The control groups of one instance of Joey: its subtree in every hierarchy, and a cgroup a sandbox below it.

    <hierarchy's mount>/<instance>/<slot>         a sandbox
    <hierarchy's mount>/<instance>/_<name>        Joey's own: names that start with an underscore are no slots

On the way of a launch nothing here runs: the launcher makes the directories and writes the limits of a sandbox from
plan operations (joey.plan.cgroup). This is for what happens once an instance (create, adopt, destroy) or to a sandbox
that runs (usage, freeze, kill, update) or is gone (remove, sweep). Calls are short and blocking; those that wait take a
timeout.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from joey.host import cgroup_v1, cgroup_v2, devices_bpf
from joey.host.cgroup_files import CgroupError, children, integer, make, processes, read, remove_tree, write
from joey.host.cgroup_probe import V2_CONTROLLERS, examine, probe, refine
from joey.model.cgroup import DEFAULT_DEVICES, CgroupLayout, DeviceRule, Hierarchy, Setting, Usage
from joey.model.resources import Resources
from joey.plan import cgroup as plan
from joey.plan.devices import list_writes

__all__ = ["CgroupError", "InstanceCgroup", "examine", "probe"]

DEFAULT_POLICY = "_default"
ENGINE = "_engine"
_NAME = re.compile(r"joey(-[a-z0-9]{1,32})?")
_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class InstanceCgroup:
    """The subtree of the instance called `name` (`joey` or `joey-…`) in the hierarchies of `layout`.

    layout: as probed; after `create` as the instance's own cgroups show it to be, which is the one to plan with.
    pending: slots whose removal has not succeeded yet.
    Raises ValueError for another name. Every method raises CgroupError when the kernel refuses.
    """

    def __init__(self, layout: CgroupLayout, name: str) -> None:
        if not _NAME.fullmatch(name) or name.startswith("joey-probe-"):
            raise ValueError(f"instance: {name!r} must be joey, or joey- and up to 32 letters and digits")
        self.layout, self.name = layout, name
        self.pending: set[str] = set()

    # --- the instance ------------------------------------------------------------------------------------------------

    def create(self, ceiling: Resources | None = None, devices: Iterable[DeviceRule] = DEFAULT_DEVICES) -> None:
        """Make the subtree, enable controllers and put the device policy in force. Does nothing twice.

        ceiling: limits of all sandboxes together, if given. devices: what a sandbox may open that asks for nothing
        else.
        """
        refined = []
        for hierarchy in self.layout.hierarchies:
            directory = self.directory(hierarchy)
            if hierarchy.version == 2:
                self._enable_above(hierarchy)
            make(directory)
            if hierarchy.version == 2:
                hierarchy = refine(hierarchy, directory)
                cgroup_v2.enable(directory, hierarchy.controllers & set(V2_CONTROLLERS))
            else:
                _prepare_v1(hierarchy, directory)
                hierarchy = refine(hierarchy, directory)
            refined.append(hierarchy)
        self.layout = replace(self.layout, hierarchies=tuple(refined))
        if ceiling is not None:
            for setting in plan.settings(self.layout, ceiling):
                write(f"{self.directory(self.layout.named(setting.hierarchy))}/{setting.file}", setting.value)
        self._set_policy(tuple(devices))

    def _enable_above(self, hierarchy: Hierarchy) -> None:
        """Controllers reach the instance only if its parent enables them, and a parent with processes in it may not."""
        wanted = hierarchy.controllers & set(V2_CONTROLLERS)
        try:
            cgroup_v2.enable(hierarchy.mount, wanted)
        except CgroupError as error:
            if error.errno != errno.EBUSY:
                raise
            self._move_out(hierarchy)
            cgroup_v2.enable(hierarchy.mount, wanted)

    def _move_out(self, hierarchy: Hierarchy) -> None:
        """Move this process and its children from the cgroup delegated to us into a leaf; refuse if others sit
        there.
        """
        inside = [int(pid) for pid in (read(f"{hierarchy.mount}/cgroup.procs") or "").split()]
        strangers = [pid for pid in inside if not _is_ours(pid)]
        if strangers:
            remedy = (
                f"its processes {strangers[:5]} are not Joey's; start Joey in a cgroup of its own, with "
                "`systemd-run --scope -p Delegate=yes` or in a service with Delegate=yes"
            )
            raise CgroupError("enable controllers in", hierarchy.mount, None, remedy)
        leaf = f"{self.directory(hierarchy)}/{ENGINE}"
        make(self.directory(hierarchy))
        make(leaf)
        for pid in inside:
            _move(pid, leaf)

    def _set_policy(self, rules: tuple[DeviceRule, ...]) -> None:
        hierarchy = self.layout.of("devices")
        if hierarchy is None:
            remedy = "mount the v1 devices hierarchy, or give Joey CAP_BPF on a kernel with CONFIG_CGROUP_BPF"
            raise CgroupError("control devices in", self.name, None, remedy)
        if hierarchy.version == 2:
            devices_bpf.enforce(self.directory(hierarchy), rules)
            return
        directory = f"{self.directory(hierarchy)}/{DEFAULT_POLICY}"
        make(directory)
        writes = list_writes(rules)
        allowed = {value for file, value in writes if file == "devices.allow"}
        if set((read(f"{directory}/devices.list") or "").splitlines()) == allowed:
            return  # A v1 list cannot be swapped in one step, and running sandboxes would see it empty.
        for file, value in writes:
            write(f"{directory}/{file}", value)

    @property
    def launcher_directories(self) -> tuple[str, ...]:
        """cgroups the launcher itself must join once, for its children to inherit: the v1 device policy, or none."""
        hierarchy = self.layout.of("devices")
        if hierarchy is None or hierarchy.version == 2:
            return ()
        return (f"{self.directory(hierarchy)}/{DEFAULT_POLICY}",)

    def adopt(self, ceiling: Resources | None = None, devices: Iterable[DeviceRule] = DEFAULT_DEVICES) -> list[str]:
        """`create` for an instance whose sandboxes may be running: they stay untouched. Returns the slots found."""
        self.create(ceiling, devices)
        return self.sweep()

    def sweep(self) -> list[str]:
        """Slots that have a cgroup in any hierarchy, sorted."""
        found = {name for h in self.layout.hierarchies for name in children(self.directory(h)) if _SLOT.fullmatch(name)}
        return sorted(found)

    def destroy(self, timeout: float = 5.0) -> None:
        """Kill and remove every sandbox, then the subtree. Raises CgroupError naming what is left after `timeout` s."""
        deadline = time.monotonic() + timeout
        slots = self.sweep()
        for slot in slots:
            self.kill(slot, timeout=max(0.0, deadline - time.monotonic()))
        self._leave()
        left = [self.directory(h) for h in self.layout.hierarchies]
        while left := [directory for directory in left if not remove_tree(directory)]:
            if time.monotonic() > deadline:
                raise CgroupError("remove", " ".join(left), None, f"processes are still there: {_busy(left)}")
            time.sleep(0.002)
        self.pending.clear()

    def _leave(self) -> None:
        """Out of our own leaves again, this process too: back to where it was before `create`."""
        for hierarchy in self.layout.hierarchies:
            directory = self.directory(hierarchy)
            ours = [p for leaf in (ENGINE, DEFAULT_POLICY) for p in processes(f"{directory}/{leaf}") if _is_ours(p)]
            if ours and hierarchy.version == 2:
                cgroup_v2.disable(directory)
                cgroup_v2.disable(hierarchy.mount)
            for pid in ours:
                _move(pid, hierarchy.mount)

    # --- one sandbox -------------------------------------------------------------------------------------------------

    def directory(self, hierarchy: Hierarchy) -> str:
        """The instance's own cgroup in `hierarchy`."""
        return f"{hierarchy.mount}/{self.name}"

    def path(self, hierarchy: Hierarchy, slot: str) -> str:
        """The cgroup of `slot` in `hierarchy`; it need not exist. Raises ValueError for a name that is no slot."""
        if not _SLOT.fullmatch(slot):
            raise ValueError(
                f"slot: {slot!r} must be letters, digits, dots, dashes, not starting with a dot or underscore"
            )
        return f"{hierarchy.mount}/{self.name}/{slot}"

    def ensure(self, slot: str, hierarchies: Iterable[Hierarchy]) -> None:
        """Make the cgroups of `slot` where they are missing, and move its running processes into the new ones."""
        new = [path for h in hierarchies if not os.path.isdir(path := self.path(h, slot))]
        for path in new:
            make(path)
        if new and os.path.isdir(self._first(slot)):
            for path in new:
                self._fill(slot, path)

    def _fill(self, slot: str, path: str) -> None:
        """Until no process of the slot is outside of `path`: one may fork while it is being moved."""
        for _ in range(100):
            outside = set(self.procs(slot)) - set(processes(path))
            if not outside:
                return
            for pid in outside:
                _move(pid, path)
        raise CgroupError(
            "move every process to", path, None, "the sandbox forks faster than it can be moved: pause it first"
        )

    def apply(self, slot: str, settings: Iterable[Setting]) -> None:
        """Write `settings` in order, making the cgroups that every sandbox has and those that they need."""
        settings = tuple(settings)
        named = [self.layout.named(name) for name in dict.fromkeys(s.hierarchy for s in settings)]
        self.ensure(slot, [*self.layout.default, *named])
        for setting in settings:
            hierarchy = self.layout.named(setting.hierarchy)
            path = f"{self.path(hierarchy, slot)}/{setting.file}"
            if setting.value == plan.AS_PARENT:
                self._write_as_parent(hierarchy, path, setting.file)
            else:
                write(path, setting.value)

    def _write_as_parent(self, hierarchy: Hierarchy, path: str, file: str) -> None:
        """Take back a cpuset. While processes are inside v1 refuses an empty one, and so do older kernels with v2."""
        parent = f"{self.directory(hierarchy)}/{file}"
        if hierarchy.version == 2:
            try:
                return write(path, plan.AS_PARENT)
            except CgroupError as error:
                if error.errno != errno.ENOSPC:
                    raise
            parent += ".effective"
        write(path, read(parent) or plan.AS_PARENT)

    def allow_devices(self, slot: str, rules: tuple[DeviceRule, ...] | None) -> None:
        """Give `slot` device rules of its own (v2: swapped in one step), or with None the instance's again."""
        hierarchy = self.layout.of("devices")
        assert hierarchy is not None  # create() has refused a host without
        if rules is None and hierarchy.version == 1:
            rules = DEFAULT_DEVICES
        for rule in rules or ():
            rule.validate()
        self.ensure(slot, (hierarchy,))
        path = self.path(hierarchy, slot)
        if hierarchy.version == 2:
            devices_bpf.lift(path) if rules is None else devices_bpf.enforce(path, rules)
        else:
            for file, value in list_writes(rules or ()):
                write(f"{path}/{file}", value)

    def update(self, slot: str, old: Resources, new: Resources) -> None:
        """Turn limits `old` into `new`; when one is refused, those already written are taken back.

        Raises CgroupError (EBUSY: the sandbox uses more than `new` allows), Unenforceable.
        """
        writes = plan.update(self.layout, old, new)
        self.ensure(slot, plan.hierarchies(self.layout, new))
        self._make_room(slot, writes)
        for done, setting in enumerate(writes):
            try:
                self.apply(slot, (setting,))
            except CgroupError:
                written = {(s.hierarchy, s.file) for s in writes[:done]}
                undo = [s for s in plan.update(self.layout, new, old) if (s.hierarchy, s.file) in written]
                self.apply(slot, undo)
                raise

    def _make_room(self, slot: str, writes: tuple[Setting, ...]) -> None:
        """v1 refuses a limit below what is used; v2 would kill for it, so the same is asked first."""
        for setting in writes:
            if setting.file != "memory.max" or not setting.value.isdigit():
                continue
            path = self.path(self.layout.named(setting.hierarchy), slot)
            excess = (integer(f"{path}/memory.current") or 0) - int(setting.value)
            if excess > 0 and self.layout.named(setting.hierarchy).has("memory.reclaim"):
                cgroup_v2.reclaim(path, excess)
            used = integer(f"{path}/memory.current") or 0
            if used > int(setting.value):
                refusal = OSError(errno.EBUSY, f"it uses {used} bytes, more than the new limit")
                raise CgroupError(f"write {setting.value!r} to", f"{path}/memory.max", refusal)

    def usage(self, slot: str) -> Usage:
        """What the sandbox uses, some ten small reads. Raises CgroupError if it has no cgroup."""
        self._present(slot)
        figures: dict[str, int | None] = {}
        readers: tuple[tuple[str, Callable[[str], cgroup_v1.Figures], Callable[[str], cgroup_v1.Figures]], ...] = (
            ("memory", cgroup_v1.memory, cgroup_v2.memory),
            ("usage", cgroup_v1.cpu_time, cgroup_v2.cpu_time),
            ("cpu", cgroup_v1.throttling, cgroup_v2.throttling),
            ("pids", cgroup_v1.pids, cgroup_v2.pids),
            ("io", cgroup_v1.io, cgroup_v2.io),
        )
        for controller, v1, v2 in readers:
            hierarchy = self.layout.of(controller)
            if hierarchy is not None:
                figures |= (v1 if hierarchy.version == 1 else v2)(self.path(hierarchy, slot))
        return Usage(**figures)

    def oom_kills(self, slot: str) -> int | None:
        """How often the kernel has killed in this sandbox for lack of memory; one read.

        To be asked when a process of it died of SIGKILL: that needs no descriptor a sandbox. None if not known here.
        """
        hierarchy = self.layout.of("memory")
        if hierarchy is None:
            return None
        backend = cgroup_v1.oom_kills if hierarchy.version == 1 else cgroup_v2.oom_kills
        return backend(self.path(hierarchy, slot))

    def procs(self, slot: str) -> list[int]:
        """Its process ids as this process sees them."""
        return processes(self._first(slot))

    def freeze(self, slot: str, timeout: float = 2.0) -> None:
        """Stop every process and wait until all have; after `timeout` seconds thaw again and raise CgroupError."""
        backend, path = self._freezer(slot)
        backend.set_frozen(path, True)
        deadline, pause = time.monotonic() + timeout, 0.0
        while not backend.is_frozen(path):
            if time.monotonic() > deadline:
                backend.set_frozen(path, False)
                raise CgroupError(
                    "freeze", path, None, f"a process did not stop within {timeout} s; it is in the kernel"
                )
            time.sleep(pause)
            pause = min(0.01, pause + 0.0002)

    def thaw(self, slot: str) -> None:
        backend, path = self._freezer(slot)
        backend.set_frozen(path, False)

    def is_frozen(self, slot: str) -> bool:
        backend, path = self._freezer(slot)
        return backend.is_frozen(path)

    def reclaim(self, slot: str) -> int:
        """Push out what can be of the memory of a (paused) sandbox: cache, and the rest if there is swap. Bytes
        gained.
        """
        hierarchy = self.layout.of("memory")
        if hierarchy is None:
            raise CgroupError("reclaim memory of", slot, None, "the host has no memory controller")
        path = self.path(hierarchy, slot)
        file = "memory.usage_in_bytes" if hierarchy.version == 1 else "memory.current"
        before = integer(f"{path}/{file}") or 0
        if hierarchy.version == 1:
            cgroup_v1.reclaim(path)
        elif not hierarchy.has("memory.reclaim"):
            raise CgroupError("reclaim memory of", path, None, "needs Linux 5.19 or newer")
        elif before:
            cgroup_v2.reclaim(path, before)
        return max(0, before - (integer(f"{path}/{file}") or 0))

    def kill(self, slot: str, timeout: float = 5.0) -> None:
        """SIGKILL to every process of the sandbox, frozen or not, until none is left. One that is gone is no error.

        Raises CgroupError if some are still there after `timeout` seconds.
        """
        hierarchy = self.layout.of("kill")
        if hierarchy is not None and os.path.isdir(path := self.path(hierarchy, slot)):
            cgroup_v2.kill(path)
        deadline = time.monotonic() + timeout
        while left := self._kill_round(slot, stop=hierarchy is None):
            if time.monotonic() > deadline:
                raise CgroupError("kill everything in", self._first(slot), None, f"{left} processes are still there")
            time.sleep(0.001)
        self._unfreeze(slot)  # or the slot's next process would never start

    def _kill_round(self, slot: str, stop: bool) -> int:
        """Signal whoever is in any cgroup of the slot; how many there were.

        stop: freeze first, or a fork bomb makes more of itself than are killed. Thaw after: v1's freezer holds even
        SIGKILL back.
        """
        if not any(processes(self.path(h, slot)) for h in self.layout.hierarchies):
            return 0
        if stop and self.layout.of("freezer") is not None:
            backend, path = self._freezer(slot)
            if os.path.isdir(path):
                backend.set_frozen(path, True)
        left = 0
        for hierarchy in self.layout.hierarchies:
            left = max(left, cgroup_v1.signal_all(self.path(hierarchy, slot), signal.SIGKILL))
        self._unfreeze(slot)
        return left

    def _unfreeze(self, slot: str) -> None:
        if self.layout.of("freezer") is not None:
            backend, path = self._freezer(slot)
            if os.path.isdir(path):
                backend.set_frozen(path, False)

    def remove(self, slot: str, timeout: float = 0.5) -> bool:
        """Remove its cgroups everywhere; False if processes keep them busy for `timeout` s: it then stays in
        `pending`.
        """
        self.pending.add(slot)
        paths = [self.path(h, slot) for h in self.layout.hierarchies]
        deadline, pause = time.monotonic() + timeout, 0.0005
        while paths := [path for path in paths if not remove_tree(path)]:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(0.02, pause * 2)
        self.pending.discard(slot)
        return True

    def remove_pending(self) -> set[str]:
        """Try once more what `remove` could not; the slots that are still there."""
        for slot in sorted(self.pending):
            self.remove(slot, timeout=0)
        return set(self.pending)

    def _first(self, slot: str) -> str:
        return self.path(self.layout.default[0], slot)

    def _present(self, slot: str) -> None:
        if not os.path.isdir(path := self._first(slot)):
            raise CgroupError("use", path, FileNotFoundError(errno.ENOENT, "no such cgroup"), "the sandbox is gone")

    def _freezer(self, slot: str) -> tuple[type[_V1] | type[_V2], str]:
        hierarchy = self.layout.of("freezer")
        if hierarchy is None:
            raise CgroupError(
                "freeze", slot, None, "needs cgroup v2 on Linux 5.2 or newer, or the v1 freezer hierarchy"
            )
        return (_V1 if hierarchy.version == 1 else _V2), self.path(hierarchy, slot)


class _V1:
    set_frozen, is_frozen = staticmethod(cgroup_v1.set_frozen), staticmethod(cgroup_v1.is_frozen)


class _V2:
    set_frozen, is_frozen = staticmethod(cgroup_v2.set_frozen), staticmethod(cgroup_v2.is_frozen)


def _prepare_v1(hierarchy: Hierarchy, directory: str) -> None:
    if "cpuset" in hierarchy.controllers and not (read(f"{directory}/cpuset.cpus") or "").strip():
        # A v1 cpuset starts empty and admits nobody; children then copy ours.
        for file in ("cpuset.mems", "cpuset.cpus"):
            write(f"{directory}/{file}", (read(f"{hierarchy.mount}/{file}") or "").strip())
        write(f"{directory}/cgroup.clone_children", "1")
    if "memory" in hierarchy.controllers and integer(f"{directory}/memory.use_hierarchy") == 0:
        write(
            f"{directory}/memory.use_hierarchy", "1"
        )  # before Linux 5.11 limits of a parent ignored its children otherwise


def _move(pid: int, directory: str) -> None:
    try:
        write(f"{directory}/cgroup.procs", str(pid))
    except CgroupError as error:
        if error.errno != errno.ESRCH:  # It may have exited meanwhile.
            raise


def _is_ours(pid: int) -> bool:
    """Whether it is this process or descends from it."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == os.getpid()


def _busy(directories: list[str]) -> list[int]:
    return sorted({pid for directory in directories for pid in processes(directory)})[:10]
