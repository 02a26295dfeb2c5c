"""From a request to a running process: what the pure compiler needs is gathered here, its answer is carried out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import socket
import stat
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from joey import images
from joey.engine.failures import explain, image_layer
from joey.engine.fleet import HOST_LAYER, Fleet, Running, Shard
from joey.engine.slots import Prepared
from joey.host import etc_files, sys
from joey.host.cgroup import CgroupError, InstanceCgroup
from joey.host.instance import Instance
from joey.host.launcher import LauncherError, LauncherGone, is_gone
from joey.host.storage import Storage
from joey.images.users import resolve_image_user
from joey.model import codec
from joey.model.cgroup import DEFAULT_DEVICES, DeviceRule
from joey.model.cgroup import Unenforceable as CgroupUnenforceable
from joey.model.errors import Broken, HostFailed, Invalid, JoeyError, Unenforceable, from_os
from joey.model.facts import HostFacts
from joey.model.image import Identity, Image, Layer
from joey.model.network import mode_of
from joey.model.slot import Slot, slot_name
from joey.model.spec import Mount, Process, Restart, SandboxSpec
from joey.model.storage import BoxPlan
from joey.plan import berth, template
from joey.plan import flags as f
from joey.plan.checks import check_process
from joey.plan.encode import append, encode, renumber
from joey.plan.exec import exec_
from joey.plan.files import files
from joey.plan.launch import launch, program
from joey.plan.ops import Child, Hold, Plan, Source
from joey.plan.process import environment
from joey.plan.process import run as run_program

_CLONE = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
_SHAPES = 256
_GATE_SECONDS = 30.0
_ALIKE = tuple(name for name in Process.__struct_fields__ if name not in ("argv", "env"))
_LIFE: dict[str, Any] = {
    "restart": Restart(),
    "timeout": None,
    "idle_timeout": None,
    "on_timeout": "kill",
    "health": None,
    "proxy_token": None,
}
"""What of a spec is no matter of its plan."""
_EXAMPLE = Slot(name=slot_name(0), base=0x3C00_0000, prepared=SandboxSpec().resources)


@dataclass(frozen=True)
class Request:
    """A spec made complete: its image, who its process is, and which mount sources are no directories."""

    spec: SandboxSpec
    image: Image
    identity: Identity
    files: frozenset[str]
    devices: tuple[DeviceRule, ...] | None

    @cached_property
    def shape(self) -> Hashable:
        """Equal for requests whose plans differ only in their slots and in the program, the last operation."""
        argv = ("?",) if self.spec.process.argv else ()
        process = msgspec.structs.replace(self.spec.process, argv=argv, env={})
        spec = msgspec.structs.replace(self.spec, name="", labels={}, process=process, network=self._network, **_LIFE)
        image = self.image
        return codec.encode(spec), image.layers, image.binds, image.cwd, image.volumes, self.identity, self.files

    @property
    def _network(self) -> str:
        """What of it makes a difference to the plan."""
        mode = mode_of(self.spec.network)
        return mode if mode in ("none", "host") else "nat" if not mode.startswith("container:") else "container:x"


class Within(NamedTuple):
    """A template's sandbox, for those that are inside of it: its user namespace, and a pidfd of its first process."""

    outer: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A running process. fds: role (plan.flags.ROLE_*) → descriptor; they belong to the holder. layers: to `leave` with
    its end.
    """

    shard: Shard
    key: int
    pid: int
    fds: dict[int, int]
    layers: tuple[Layer, ...] = ()


def check_signal(number: int) -> None:
    """Raises Invalid for a number the kernel does not have."""
    if not 0 < number < signal.NSIG:
        raise Invalid("signal", f"{number} is not a signal")


async def send_signal(launched: Launched, number: int, *, group: bool = False) -> None:
    """Signal a process (group: all of the group it leads); nothing when it has ended. Raises JoeyError."""
    try:
        await launched.shard.signal(launched.key, number, group=group)
    except LauncherGone:
        pass
    except OSError as error:
        if not is_gone(error):
            raise from_os(f"send signal {number}", error) from error


class _Planned(NamedTuple):
    """A plan as it is sent, and how to get it in words should it fail."""

    encoded: bytes
    sources: tuple[Source, ...]
    roles: tuple[int, ...]
    compile: Callable[[], Plan]
    at_key: int | None = None


class _Shape(NamedTuple):
    """What all plans of equal requests share. at_key: the operation that has another child's key in it."""

    template: template.Template
    sources: tuple[Source, ...]
    roles: tuple[int, ...]
    at_key: int | None = None


def _planned(plan: Plan) -> _Planned:
    return _Planned(encode(plan), plan.sources, _roles(plan), lambda: plan)


def _roles(plan: Plan) -> tuple[int, ...]:
    """Whose descriptors come back, in the order in which they come."""
    return tuple(sorted(op.role for op in plan.ops if isinstance(op, Hold) and op.send))


class Launching:
    """Starts processes. Holds no state of any sandbox."""

    def __init__(
        self, instance: Instance, facts: HostFacts, fleet: Fleet, cgroup: InstanceCgroup, storage: Storage
    ) -> None:
        self._instance = instance
        self._facts = facts
        self._fleet = fleet
        self._cgroup = cgroup
        self._storage = storage
        self._shapes: dict[Hashable, _Shape | None] = {}
        self._execs: dict[Hashable, tuple[Request, bytes, tuple[int, ...]]] = {}
        self._rootfs: dict[str, tuple[_State, Image]] = {}
        self.volumes: Callable[[SandboxSpec, str], tuple[Mount, ...]] = lambda spec, id: ()
        """What a sandbox of an id mounts for its volumes."""
        self._users: dict[Hashable, tuple[tuple[_State, ...], Identity]] = {}

    def warm(self) -> None:
        """Make the `host` image, which takes tens of milliseconds the first time."""
        images.resolve(self._instance, SandboxSpec(image="host"))

    def complete(self, spec: SandboxSpec, owner: str = "") -> Request:
        """Look at everything a spec names. Raises JoeyError naming the field; `check` finds the rest.

        owner: the sandbox whose image it is, see `joey.images.ensure`.
        """
        try:
            spec.resources.validate(self._facts.limits)
        except ValueError as error:
            field, _, message = str(error).partition(": ")
            raise Invalid(f"resources.{field}", message) from None
        image = self._image(spec, owner)
        spec = _with_network(_with_image(spec, image))
        if spec.volumes:
            spec = msgspec.structs.replace(spec, mounts=(*spec.mounts, *self.volumes(spec, owner)))
        identity = self._identity(image, spec.process)
        files, devices = self._look_at_sources(spec)
        return Request(spec, image, identity, files, devices)

    def check(self, request: Request) -> Plan:
        """The plan it would be started with, in a slot that does not exist. Raises JoeyError naming the field."""
        return self.plan(request, _EXAMPLE, BoxPlan(storage=request.spec.storage, directory=_EXAMPLE.name))

    def plan(self, request: Request, slot: Slot, box: BoxPlan) -> Plan:
        """The plan that starts it in `slot`."""
        try:
            return launch(request.spec, request.image, request.identity, self._facts, slot, box, request.files)
        except CgroupUnenforceable as error:
            raise Unenforceable(f"resources.{error.field}", error.reason, error.remedy) from None

    async def start(
        self, request: Request, prepared: Prepared, key: int, etc: Mapping[str, str] | None = None
    ) -> Launched:
        """Start it. The slot is the caller's to clear, whatever happens. etc: files to write into its /etc before.
        Raises JoeyError.
        """
        shard = await self._fleet.shard()
        layers = tuple(layer for layer in request.image.attached if not layer.id.startswith(HOST_LAYER))
        shard.use(layers)
        try:
            launched = await self._start(request, prepared, key, shard, etc or {})
        except BaseException:
            shard.leave(layers)
            raise
        return dataclasses.replace(launched, layers=layers) if layers else launched

    async def _start(
        self, request: Request, prepared: Prepared, key: int, shard: Shard, etc: Mapping[str, str]
    ) -> Launched:
        slot = prepared.slot
        box = await self._furnish(request, slot, shard, etc)
        plan = self._planned(request, slot, box)
        shard.children += 1
        try:
            with ExitStack() as stack:
                fds = [self._open(source, prepared, stack) for source in plan.sources]
                return await self._run(shard, key, plan, fds, slot, main=True)
        except BaseException:
            shard.children -= 1
            raise

    async def _furnish(self, request: Request, slot: Slot, shard: Shard, etc: Mapping[str, str]) -> BoxPlan:
        """What a launch finds ready."""
        await self._attach(shard, request.image)
        box = self._storage.box(slot.name, request.spec)
        if etc:
            etc_files.write(self._storage.upper(box), etc, slot.base)
        if request.devices is not None:
            self._allow(slot, request.devices)
        return box

    async def berth(
        self, request: Request, prepared: Prepared, key: int, second: int, etc: Mapping[str, str], within: Within
    ) -> Launched:
        """Start the first process of a sandbox that others can be forked into (joey.plan.berth); with its mount
        namespace (ROLE_MNTNS). second: the key of what builds that. The slot is the caller's to clear. Raises
        JoeyError.
        """
        shard = await self._fleet.shard()
        layers = tuple(layer for layer in request.image.attached if not layer.id.startswith(HOST_LAYER))
        shard.use(layers)
        shard.children += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with ours:
                with theirs:
                    more = {"outer": within.outer, "gate": theirs.fileno(), "template": within.pidfd}
                    launched = await self._berth(request, prepared, (key, second), shard, etc, more)
                await _pass_on(ours, launched.fds[f.ROLE_MNTNS])
        except BaseException:
            shard.running.pop(key, None)
            shard.children -= 1
            shard.leave(layers)
            with contextlib.suppress(OSError):  # it is not there
                await shard.signal(key, signal.SIGKILL)
            raise
        return dataclasses.replace(launched, layers=layers)

    async def _berth(
        self, request: Request, prepared: Prepared, keys: tuple[int, int], shard: Shard, etc: Mapping[str, str],
        more: Mapping[str, int],
    ) -> Launched:  # fmt: skip
        slot = prepared.slot
        box = await self._furnish(request, slot, shard, etc)
        plan, second = self._plans_of_berth(request, slot, box, keys[0])
        with ExitStack() as stack:
            fds = [self._open(source, prepared, stack, more) for source in plan.sources]
            launched = await self._run(shard, keys[0], plan, fds, slot, main=True)
            plan = second
            fds = [self._open(source, prepared, stack, more) for source in plan.sources]
            built = await self._run(shard, keys[1], plan, fds, slot)
        shard.running.pop(keys[1], None)  # it has ended
        return dataclasses.replace(launched, fds=built.fds)

    def _plans_of_berth(self, request: Request, slot: Slot, box: BoxPlan, key: int) -> tuple[_Planned, _Planned]:
        """What starts its first process, and what builds its mount namespace: filled in where possible."""
        spec, facts = request.spec, self._facts

        def first(slot: Slot) -> Plan:
            return berth.first(spec, request.identity, facts, slot)

        def build(slot: Slot) -> Plan:
            there = msgspec.structs.replace(box, directory=slot.name)
            return berth.build(spec, request.image, facts, slot, there, key, request.files)

        if box.mount or box.directory != slot.name:
            plan = berth.build(spec, request.image, facts, slot, box, key, request.files)
            return _planned(first(slot)), _planned(plan)
        second = self._filled(("build", request.shape), build, slot)
        if second.at_key is not None:
            second = second._replace(encoded=renumber(second.encoded, second.at_key, key))
        return self._filled(("first", request.shape), first, slot), second

    def _filled(self, shape: Hashable, compile: Callable[[Slot], Plan], slot: Slot) -> _Planned:
        if shape not in self._shapes:
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            made, plan = template.make(lambda one: encode(compile(one)), slot.prepared), compile(slot)
            at = next((at for at, one in enumerate(plan.ops) if isinstance(one, Child)), None)
            self._shapes[shape] = _Shape(made, plan.sources, _roles(plan), at) if made is not None else None
        found = self._shapes[shape]
        if found is None:
            return _planned(compile(slot))
        return _Planned(found.template.fill(slot), found.sources, found.roles, lambda: compile(slot), found.at_key)

    def _allow(self, slot: Slot, devices: tuple[DeviceRule, ...]) -> None:
        try:
            self._cgroup.allow_devices(slot.name, (*DEFAULT_DEVICES, *devices))
        except CgroupError as error:
            raise HostFailed("devices", str(error), error.remedy, errno=error.errno or 0) from error

    async def exec(
        self, process: Process, request: Request, where: Launched, slot: Slot, key: int, *, output: bool, devpts: bool,
        kept: bool = False, channel: int | None = None,
    ) -> Launched:  # fmt: skip
        """Run one more process in a running sandbox. devpts: mount its terminals first, there are none yet. kept: it
        shall outlive whoever reads its output. channel: a socket that becomes its descriptor 3; the launcher then keeps
        nothing of it.
        """
        identity = self._identity(request.image, process) if process.user or process.groups else request.identity
        env = environment(request.image.env, process, identity, request.spec.hostname or slot.name)
        spec, facts, main = request.spec, self._facts, where.key
        fds, talks = ([], False) if channel is None else ([channel], True)

        def compile() -> Plan:
            return exec_(
                process, env, identity, spec, facts, slot, main, output=output, add_devpts=devpts, kept=kept,
                channel=talks,
            )  # fmt: skip

        # What differs between two programs of one sandbox is the last operation, if they are asked for alike.
        alike = (main, identity, output, devpts, kept, talks, *(getattr(process, name) for name in _ALIKE))
        known = self._execs.get(alike)
        if known is None or known[0] is not request:
            plan = compile()
            launched = await self._run(where.shard, key, _planned(plan), fds, slot)
            if len(self._execs) >= _SHAPES:
                self._execs.clear()
            self._execs[alike] = (request, encode(Plan(plan.ops[:-1])), _roles(plan))
            return launched
        check_process(process, env)
        planned = _Planned(append(known[1], run_program(process, env, False)), (), known[2], compile)
        return await self._run(where.shard, key, planned, fds, slot)

    async def files(
        self, request: Request, where: Launched, slot: Slot, key: int, program: int, *, joined: bool
    ) -> Launched:
        """Run joey-files, whose file is `program`, in a running sandbox. See `joey.plan.files`."""
        plan = files(request.spec, self._facts, slot, where.key, joined=joined)
        return await self._run(where.shard, key, _planned(plan), [program], slot)

    def _image(self, spec: SandboxSpec, owner: str) -> Image:
        """The image; a rootfs directory is looked at again only when it is another one."""
        if not spec.rootfs or spec.image:
            return images.resolve(self._instance, spec, owner)
        state = _state(spec.rootfs)
        known = self._rootfs.get(spec.rootfs)
        if known is None or known[0] != state:
            known = self._rootfs[spec.rootfs] = (state, images.resolve(self._instance, spec))
        return known[1]

    def _identity(self, image: Image, process: Process) -> Identity:
        """Who the process is. Remembered until the image's users change."""
        key, source = (image.attached, image.user, process.user), image.layers[-1].source
        state = tuple(_state(f"{source}/{name}") for name in ("etc", "etc/passwd", "etc/group"))
        known = self._users.get(key)
        if known is None or known[0] != state:
            known = self._users[key] = (state, resolve_image_user(image, process.user))
        identity = known[1]
        if not process.groups:
            return identity
        return msgspec.structs.replace(identity, groups=tuple(sorted({*identity.groups, *process.groups})))

    def _planned(self, request: Request, slot: Slot, box: BoxPlan) -> _Planned:
        """The encoded plan: filled in where one like it was compiled before."""
        if box.mount:
            return _planned(self.plan(request, slot, box))
        if request.shape not in self._shapes:
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            self._shapes[request.shape] = self._shape(request, slot, box)
        shape = self._shapes[request.shape]
        if shape is None:
            return _planned(self.plan(request, slot, box))
        last = program(request.spec, request.image, request.identity, slot)
        encoded = append(shape.template.fill(slot), last)
        return _Planned(encoded, shape.sources, shape.roles, lambda: self.plan(request, slot, box))

    def _shape(self, request: Request, slot: Slot, box: BoxPlan) -> _Shape | None:
        def compile(one: Slot) -> bytes:
            plan = self.plan(request, one, msgspec.structs.replace(box, directory=one.name))
            return encode(Plan(plan.ops[:-1]))

        found = template.make(compile, slot.prepared)
        if found is None or box.directory != slot.name:
            return None
        plan = self.plan(request, slot, box)
        return _Shape(found, plan.sources, _roles(plan))

    async def _run(
        self, shard: Shard, key: int, plan: _Planned, fds: list[int] | tuple[()], slot: Slot, *, main: bool = False
    ) -> Launched:
        await shard.ready()
        life = shard.life
        try:
            done = await shard.run(key, plan.encoded, fds)
        except LauncherError as error:
            raise explain(plan.compile(), error) from error
        except LauncherGone as error:
            raise _went_away() from error
        self._fleet.started(shard, key, Running(done.pid, slot.name, main), life)
        return Launched(shard, key, done.pid, dict(zip(plan.roles, done.fds, strict=True)))

    async def _attach(self, shard: Shard, image: Image) -> None:
        for layer in image.attached:
            try:
                await shard.attach(layer)
            except LauncherGone as error:
                raise _went_away() from error
            except OSError as error:
                raise image_layer(layer.id, layer.source, error) from error

    def _open(self, source: Source, prepared: Prepared, stack: ExitStack, more: Mapping[str, int] | None = None) -> int:
        if more and source.kind in more:
            return more[source.kind]
        if source.kind == "userns":
            return prepared.userns
        if source.kind == "netns":
            return prepared.netns
        flags = _CLONE | (sys.AT_RECURSIVE if source.recursive else 0)
        try:
            fd = sys.open_tree(sys.AT_FDCWD, source.path, flags)
        except OSError as error:
            raise _unreachable("mounts", f"source {source.path}", error) from error
        stack.callback(os.close, fd)
        return fd

    def _look_at_sources(self, spec: SandboxSpec) -> tuple[frozenset[str], tuple[DeviceRule, ...] | None]:
        files: set[str] = set()
        for number, mount in enumerate(spec.mounts):
            mode = _stat(mount.source, f"mounts[{number}].source").st_mode
            if not stat.S_ISDIR(mode):
                files.add(mount.source)
        rules: list[DeviceRule] = []
        for number, device in enumerate(spec.devices):
            found = _stat(device.path, f"devices[{number}].path")
            if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
                raise Invalid(f"devices[{number}].path", f"{device.path} is not a device")
            rule = DeviceRule(
                "c" if stat.S_ISCHR(found.st_mode) else "b",
                os.major(found.st_rdev),
                os.minor(found.st_rdev),
                device.access,
            )
            _validate(rule, f"devices[{number}].access")
            rules.append(rule)
        return frozenset(files), tuple(rules) or None


async def _pass_on(gate: socket.socket, mounts: int) -> None:
    """Return when it has them and has become what it shall be: its end of the gate closes with that."""
    gate.setblocking(False)
    socket.send_fds(gate, [b"\1"], [mounts])
    async with asyncio.timeout(_GATE_SECONDS):
        await asyncio.get_running_loop().sock_recv(gate, 1)


def _went_away() -> Broken:
    return Broken("launcher", "it went away while starting", "try again")


_State = tuple[int, int, int] | None


def _state(path: str) -> _State:
    """Another value as soon as it is another file, or was written to; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _validate(rule: DeviceRule, field: str) -> None:
    try:
        rule.validate(field)
    except ValueError as error:
        raise Invalid(field, str(error).removeprefix(f"{field}: ")) from None


def _stat(path: str, field: str) -> os.stat_result:
    if not path.startswith("/"):
        raise Invalid(field, f"{path!r} is not an absolute path")
    try:
        return os.stat(path)
    except OSError as error:
        raise _unreachable(field, path, error) from None


_OF_THE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def _unreachable(field: str, path: str, error: OSError) -> JoeyError:
    """The path's fault or the host's: the limit of open files says nothing about the request."""
    if error.errno in _OF_THE_PATH:
        return Invalid(field, f"{path}: {error.strerror}")
    return from_os(f"open {path}", error)


def _with_network(spec: SandboxSpec) -> SandboxSpec:
    """Who is given the host's network also gets its names, read-only (as Docker does)."""
    if mode_of(spec.network) != "host":
        return spec
    taken = {mount.target for mount in spec.mounts}
    names = [path for path in ("/etc/resolv.conf", "/etc/hosts") if path not in taken and os.path.isfile(path)]
    more = [Mount(source=os.path.realpath(path), target=path, read_only=True, idmap=False) for path in names]
    return msgspec.structs.replace(spec, mounts=(*spec.mounts, *more))


def _with_image(spec: SandboxSpec, image: Image) -> SandboxSpec:
    """The image's defaults where the request says nothing: program, stop signal, labels (image-spec config.md)."""
    process = spec.process
    if spec.entrypoint is None:
        argv = (*image.entrypoint, *(process.argv or image.argv))
    else:
        argv = (*spec.entrypoint, *process.argv)  # the image's arguments were meant for its own entrypoint
    if not argv and not spec.init and spec.process.tty:
        raise Invalid("argv", "the image names no program, and none is given")
    stop = image.stop_signal if image.stop_signal and spec.stop_signal == "SIGTERM" else spec.stop_signal
    return msgspec.structs.replace(
        spec,
        process=msgspec.structs.replace(process, argv=argv),
        stop_signal=stop,
        labels={**image.labels, **spec.labels},
    )
