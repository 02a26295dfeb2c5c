"""One sandbox in the engine: its record, and what performs the actions that `lifecycle.step` asks for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import time
from collections.abc import Awaitable, Coroutine, Mapping
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from msgspec import UNSET

from joey.engine import events, health, restart, update
from joey.engine.admission import Admission
from joey.engine.attached import Attached
from joey.engine.clocks import Clocks
from joey.engine.launching import Launched, Request, check_signal, send_signal
from joey.engine.lifecycle import step
from joey.engine.logs import Logs
from joey.engine.machine import Machine
from joey.engine.networks import Link, Networks
from joey.engine.output import Output
from joey.engine.record import (
    Action,
    ArmKillTimer,
    Changed,
    Cleared,
    Event,
    ForgetChild,
    Freeze,
    FreezerFailed,
    KillTimer,
    Launch,
    LaunchFailed,
    NotifyWaiters,
    Persist,
    Phase,
    Record,
    Recovered,
    Release,
    RemoveRecord,
    Run,
    SendSignal,
    Thaw,
    view_state,
)  # fmt: skip
from joey.engine.record import Launched as HasLaunched
from joey.engine.schema import Row
from joey.engine.slots import Prepared, Special
from joey.engine.store import Store
from joey.engine.timers import Timers
from joey.host.cgroup_files import CgroupError
from joey.model import codec
from joey.model.cgroup import Unenforceable as CgroupUnenforceable
from joey.model.errors import Broken, Conflict, HostFailed, Invalid, JoeyError, NotFound, Unenforceable, from_os
from joey.model.network import mode_of
from joey.model.resources import Resources
from joey.model.slot import Slot
from joey.model.spec import HealthCheck, Process, SandboxSpec, Update
from joey.model.views import Exit, Sandbox
from joey.plan import flags as f

T = TypeVar("T")
_LEAST_SECONDS, _KEYS_SECONDS = 0.01, 1.0
"""Between health checks that images bring: at the least, and where it is the sandbox of a key."""
_log = logging.getLogger(__name__)


class Context(Protocol):
    """What a box needs of the engine."""

    machine: Machine
    store: Store
    kept: Logs
    launches: asyncio.Semaphore
    admission: Admission
    timers: Timers
    news: events.Events
    networks: Networks

    async def look(self, box: Box, process: Process) -> Attached: ...
    def busy(self, box: Box) -> bool: ...
    def forget(self, launched: Launched) -> None: ...
    def expect(self, key: int, box: Box) -> None: ...
    def unexpect(self, key: int) -> None: ...
    def gone(self, box: Box) -> None: ...


def signal_number(name: str) -> int:
    """`SIGTERM`, `TERM` or `15` → 15. Raises Invalid."""
    text = name.upper()
    with contextlib.suppress(ValueError):
        return int(signal.Signals(int(text)))
    with contextlib.suppress(KeyError):
        return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    raise Invalid("stop_signal", f"unknown signal {name!r}")


class Place(Protocol):
    """Where a sandbox is that is not like others."""

    slot: Special

    async def start(
        self, request: Request, prepared: Prepared, key: int, etc: Mapping[str, str] | None = None
    ) -> Launched:
        """As `Launching.start`."""
        raise NotImplementedError


class Box:
    """The shell around a record. All of it belongs to the event loop; actions that wait are done one after another."""

    def __init__(
        self, context: Context, id: str, name: str, spec: SandboxSpec, created: float, owner: str = ""
    ) -> None:
        self.id, self.name, self.spec, self.created, self.owner = id, name, spec, created, owner
        self.pool = ""
        """The pool of which it is a warm member: nobody else knows of it then."""
        self._encoded = codec.encode(spec)
        self.record = Record(policy=update.policy(spec, signal_number(spec.stop_signal)))
        self.clocks = Clocks(context.timers, self.apply, partial(context.store.next_number, "key"), self._look)
        self.clocks.watched = self._watched
        self.durable = False
        """Whether the next launch is answered only once it is on disk; `on_disk` then is what `Store.flushed` gave."""
        self.on_disk: asyncio.Future[JoeyError | None] | None = None
        self.noted: asyncio.Future[JoeyError | None] | None = None
        """Done when its removal is on disk: not before that do its files go, none are ever missing."""
        self.request: Request | None = None
        self.within = ""
        """The template's sandbox in whose namespaces it lives, and with which it would end."""
        self.slot: Slot | None = None
        self.place: Place | None = None
        """Of one that has to do with a template: a slot and a launch of its own kind."""
        self.link: Link | None = None
        self.launched: Launched | None = None
        self.output: Output | None = None
        self.error: JoeyError | None = None
        self.devpts = spec.devpts or spec.process.tty
        self.removed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._context = context
        self._machine = context.machine
        self._early: list[Attached] = []
        self._waiters: list[asyncio.Future[Exit]] = []
        self._answers: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last: asyncio.Task[None] | None = None

    # --- what is told of it ------------------------------------------------------------------------------------------

    def view(self) -> Sandbox:
        record, spec = self.record, self.request.spec if self.request else self.spec
        before = () if self.request else spec.entrypoint or ()  # of one found at start; an image's own shows later
        return Sandbox(
            id=self.id,
            name=self.name,
            image=spec.image or spec.rootfs,
            argv=(*before, *spec.process.argv),
            state=view_state(record),
            created=self.created,
            started=record.started,
            finished=record.finished,
            pid=record.pid,
            exit=record.exit,
            tty=spec.process.tty,
            labels=spec.labels,
            owner=self.owner,
            restarts=record.restarts,
            deadline=record.deadline,
            restart_at=record.again_at,
            health=record.health,
            network=mode_of(self.spec.network),
            address=self.link.address if self.link and self.alive else "",
            ports=self.link.ports if self.link and self.alive else (),
        )

    def row(self) -> Row:
        launcher = self.launched.shard.number if self.launched else 0
        return Row(
            id=self.id, name=self.name, spec=self._encoded, created=self.created, image=self.spec.image,
            slot=self.slot.name if self.slot else "", base=self.slot.base if self.slot else 0, launcher=launcher,
            owner=self.owner, record=self.record, meta=self._meta(),
        )  # fmt: skip

    def _meta(self) -> bytes:
        if not self.pool and self.link is None and not self.within:
            return b"{}"
        return codec.encode({"pool": self.pool, "link": self.link, "within": self.within})

    @property
    def alive(self) -> bool:
        return self.record.run is Run.ALIVE

    # --- events ------------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take an event and do what follows. Raises Conflict if the state forbids it."""
        before = self.record
        self.record, actions = step(before, event)
        for action in actions:
            self._perform(action)
        if actions or isinstance(event, Recovered):
            for type, data in events.told(before, event, self.record):
                self.tell(type, **data)
            if not self.removed.done():
                self.promise()
                self._follow()

    def _follow(self) -> None:
        check = self.spec.health
        self.clocks.follow(self.record, None if check is None or check.none else check)

    def requested(self) -> Request:
        """What it was started with, or would be. Of one found at start: made when first needed. Raises JoeyError."""
        if self.request is None:
            self.request = self._machine.launching.complete(self.spec, self.id)
        return self.request

    def exchange(self, spec: SandboxSpec) -> None:
        """Of one that was never started: it is to be started as `spec` says."""
        self.spec, self._encoded, self.request = spec, codec.encode(spec), None
        self._context.store.save(self.row())

    def complete(self, request: Request) -> None:
        """It is to be started so. What its image says of its health is its own from now on."""
        self.request = request
        spec = self._looked_after(self.spec, request)
        if spec is not self.spec:
            self.spec, self._encoded = spec, codec.encode(spec)

    def _looked_after(self, spec: SandboxSpec, request: Request) -> SandboxSpec:
        if self.pool:
            return spec
        return restart.with_health(spec, request.image.health, least=_KEYS_SECONDS if self.owner else _LEAST_SECONDS)

    def promise(self) -> None:
        """Enter what memory it may take now."""
        runs = self.record.run is not Run.NONE or self.record.again_at is not None
        self._context.admission.hold(self.id, self.spec.resources.memory, runs=runs)

    def tell(self, type: str, **data: str | int | float | bool | None) -> None:
        """An event `sandbox.` of this one."""
        if self.pool:
            return
        self._context.news.emit(
            f"sandbox.{type}", sandbox=self.id, name=self.name, labels=self.spec.labels, owner=self.owner, **data
        )

    def _perform(self, action: Action) -> None:
        match action:
            case Persist():
                self._context.store.save(self.row())
            case Launch(key):
                self._queue(self._launch(key))
            case SendSignal(number):
                self._queue(self._signal(number))
            case ArmKillTimer(key, seconds):
                self._disarm()
                self._timer = asyncio.get_running_loop().call_later(seconds, self.apply, KillTimer(key))
            case Freeze() | Thaw():
                self._queue(self._freezer(isinstance(action, Freeze), self.record.key))
            case NotifyWaiters(exit):
                self._ended(exit)
            case Release(files):
                self._queue(self._release(files))
            case ForgetChild():
                if self.launched is not None:
                    self._context.forget(self.launched)
                    self.launched = None
            case RemoveRecord():
                self._remove()

    def _queue(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """One action after another: a signal that comes before a thaw is sent before it."""
        previous = self._last

        async def run() -> None:
            if previous is not None and not previous.done():
                await asyncio.wait((previous,))
            await work

        self._last = task = asyncio.ensure_future(run())
        return task

    async def in_turn(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` after what was queued and before what comes, to its end also if nobody waits for it any more."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                done.set_result(await work)
            except Exception as error:
                done.set_exception(error)

        done.add_done_callback(lambda _: done.exception())  # perhaps nobody waits any more
        self._queue(run())
        return await asyncio.shield(done)

    async def settled(self) -> None:
        """Return when all that was queued is done. Raises what went wrong in the last of it."""
        if self._last is not None:
            await asyncio.shield(self._last)

    # --- a run -------------------------------------------------------------------------------------------------------

    async def _launch(self, key: int) -> None:
        self._context.expect(key, self)
        self.error = None
        try:
            async with self._context.launches:
                launched = await self._start(key)
        except JoeyError as error:
            self._failed(key, error)
        except OSError as error:
            self._failed(key, from_os("launch", error))
        except Exception as error:  # a launch must have an end, whatever happens
            _log.exception("launch of %s", self.id)
            self._failed(key, Broken("launch", f"{type(error).__name__}: {error}", "this is a bug of Joey's"))
        else:
            self.took(launched)
            self.apply(HasLaunched(key, launched.pid, time.time()))
            self._answer(None)

    async def _start(self, key: int) -> Launched:
        launching, networks = self._machine.launching, self._context.networks
        if self.request is None:
            self.request = launching.complete(self.spec, self.id)
        prepared = await networks.take(self)
        try:
            self.slot = prepared.slot
            etc = networks.connect(self, self.request.image, prepared.netns)
            self._context.store.save(self.row())
            # The launch takes longer than the disk; what is found running later needs no more than this.
            if self.durable:
                self.durable, self.on_disk = False, self._context.store.flushed()
            start = launching.start if self.place is None else self.place.start
            return await start(self.request, prepared, key, etc)
        finally:
            prepared.close()

    def has_files(self, slot: Slot) -> bool:
        """Not so after a restart of the machine: what was in memory is gone."""
        return (self._machine.storage.scratch / slot.name).is_dir()

    def took(self, launched: Launched) -> None:
        """The process is there: read its output, let those who wait for it in."""
        self.launched = launched
        log = self._context.kept.log(self.id)
        log.begin()
        fds = launched.fds
        self.output = output = Output(
            asyncio.get_running_loop(), fds.get(f.ROLE_STDIN), fds.get(f.ROLE_STDOUT), fds.get(f.ROLE_STDERR),
            fds.get(f.ROLE_TERMINAL), log, partial(launched.shard.end_input, launched.key),
        )  # fmt: skip
        output.closed.add_done_callback(lambda _: log.end() if self.output is output else None)
        early, self._early = self._early, []
        for attached in early:
            attached.pid = launched.pid
            self.output.attach(attached)

    def _failed(self, key: int, error: JoeyError) -> None:
        self.error = error
        self._context.unexpect(key)
        early, self._early = self._early, []
        for attached in early:
            attached.end()
        self.apply(LaunchFailed(key, Exit(code=error.exit_code, at=time.time(), error=str(error))))
        self._answer(error)

    def _answer(self, error: JoeyError | None) -> None:
        answers, self._answers = self._answers, []
        for future in answers:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def answer(self) -> asyncio.Future[None]:
        """Done when the launch under way is; raises why it failed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        return future

    def _ended(self, exit: Exit) -> None:
        self._disarm()
        if self.output is not None:
            self.output.exited()
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(exit)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what it is asked for ----------------------------------------------------------------------------------------

    async def _signal(self, number: int) -> None:
        if self.launched is not None:
            await send_signal(self.launched, number)

    async def signal(self, number: int) -> None:
        """For attachments: nothing when it has ended. Raises Invalid for a number the kernel does not have."""
        check_signal(number)
        await self._signal(number)

    async def _freezer(self, freeze: bool, key: int) -> None:
        if self.slot is None:
            return
        cgroup, slot = self._machine.cgroup, self.slot.name
        try:
            await asyncio.to_thread(cgroup.freeze if freeze else cgroup.thaw, slot)
        except (CgroupError, TimeoutError) as error:
            self.apply(FreezerFailed(key, frozen=not freeze, at=time.time()))
            raise Broken("freeze" if freeze else "thaw", str(error), "try again, or kill it") from error

    async def wait(self) -> Exit:
        """The end of the present run, or of the last one. Raises NotFound if it is removed without one."""
        if self.record.over:
            assert self.record.exit is not None
            return self.record.exit
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        return await future

    def attach(self, *, again: bool = False) -> Attached:
        """An attachment to the main process: of one that is not started yet, from its start. again: one that has ended
        will be started again, too. Raises Conflict.
        """
        attached = Attached(self.wait, self.signal, pid=self.record.pid or 0)
        if self.output is not None and (self.alive or self.record.phase is Phase.REMOVING):
            self.output.attach(attached)
        elif self.record.phase in (Phase.CREATED, Phase.STARTING) or (again and self.record.phase is Phase.EXITED):
            self._early = [*(one for one in self._early if not one.closed), attached]
        else:
            raise Conflict("state", "cannot attach to it: it is not running", "start it first, or read its log")
        return attached

    # --- changes -----------------------------------------------------------------------------------------------------

    async def change(self, change: Update) -> None:
        """All of it or nothing. Raises JoeyError naming the field."""
        update.changed(self.spec, change, self._machine.facts.limits)  # what is wrong in itself need not wait
        await asyncio.shield(self._queue(self._change(change)))

    async def _change(self, change: Update) -> None:
        """In its turn: a launch before it is done, and a Release after it clears away what it has made."""
        old, new = self.spec, update.changed(self.spec, change, self._machine.facts.limits)
        deadline: float | Literal["keep"] | None = "keep"
        if change.timeout is not UNSET:
            deadline = None if change.timeout is None else time.time() + change.timeout
        event = Changed(update.policy(new, self.record.policy.stop_signal), deadline)
        step(self.record, event)  # refuses before anything is done
        request = self._machine.launching.complete(new, self.id)
        self._machine.launching.check(request)
        if self.alive:
            self._context.admission.resize(self.id, new.resources.memory)
        networks = self._context.networks
        try:
            if new.network != old.network:
                networks.check(new, self.owner)
                networks.change(self, new)
            if self.alive and self.slot is not None and new.resources != old.resources:
                await self._limit(self.slot, old.resources, new.resources)
        except BaseException:
            self.promise()
            networks.change(self, old)
            raise
        self._is_now(request, new, event)
        self.tell("updated")

    def _is_now(self, request: Request, spec: SandboxSpec, event: Changed) -> None:
        self.spec, self.request, self._encoded = spec, request, codec.encode(spec)
        self.apply(event)
        self.promise()
        self.clocks.rearm()
        self._follow()
        self._context.store.save(self.row())

    def become(self, spec: SandboxSpec, request: Request) -> None:
        """A warm one is handed out as `spec`, but for its limits, which `limit` changes. Its clocks begin now."""
        deadline = None if spec.timeout is None else time.time() + spec.timeout
        spec = self._looked_after(spec, request)
        self._is_now(request, spec, Changed(update.policy(spec, self.record.policy.stop_signal), deadline))

    async def limit(self, old: Resources) -> None:
        """Bring the limits in force, which are `old`, in line with its spec. Raises JoeyError naming the field."""
        if self.slot is not None:
            await asyncio.shield(self._queue(self._limit(self.slot, old, self.spec.resources)))

    async def _limit(self, slot: Slot, old: Resources, new: Resources) -> None:
        try:
            await asyncio.to_thread(self._machine.cgroup.update, slot.name, old, new)
        except CgroupUnenforceable as error:
            raise Unenforceable(f"resources.{error.field}", error.reason, error.remedy) from None
        except CgroupError as error:
            if error.errno == errno.EBUSY:
                raise Conflict("resources.memory", f"it uses more than that: {error}", "ask for more") from error
            raise HostFailed("change limits", str(error), error.remedy, errno=error.errno or 0) from error

    def check_reclaim(self) -> None:
        """Raises Unenforceable where the kernel has no way to do it."""
        memory = self._machine.layout.of("memory")
        if memory is None or (memory.version == 2 and not memory.has("memory.reclaim")):
            raise Unenforceable("reclaim", "the kernel cannot (v2: Linux 5.19 or newer)", "pause without it")

    async def reclaim(self) -> None:
        """Have the kernel take back what it can of a paused one's memory. Tells how much."""
        slot = self.slot
        if slot is not None and self.record.phase is Phase.PAUSED:
            try:
                gained = await asyncio.to_thread(self._machine.cgroup.reclaim, slot.name)
            except CgroupError as error:
                raise Unenforceable("reclaim", str(error), error.remedy or "pause without it") from error
            self.tell("reclaimed", bytes=gained)

    # --- health ------------------------------------------------------------------------------------------------------

    async def _look(self, check: HealthCheck) -> None:
        """One check. Raises Unhealthy, OSError, JoeyError."""
        pid = self.record.pid
        if pid is None:
            raise health.Unhealthy("it does not run")
        if check.tcp is not None:
            await health.knock(pid, check.tcp)
        elif check.http:
            await health.get(pid, check.http)
        else:
            process = await self._context.look(self, Process(argv=check.command))
            try:
                exit = await process.wait()
            except asyncio.CancelledError:
                await process.signal(signal.SIGKILL)
                raise
            if exit.code:
                raise health.Unhealthy(f"code {exit.code}")

    def _watched(self) -> bool:
        return (self.output is not None and self.output.watched) or self._context.busy(self)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _release(self, files: bool) -> None:
        slot, machine = self.slot, self._machine
        if self.link is not None:
            self._context.networks.release(self)
        if slot is not None:
            if files and self.noted is not None:
                await self.noted  # on a full disk, too, removing goes on
            if self.record.exit is not None and self.record.exit.error:  # nobody has seen its end
                with contextlib.suppress(CgroupError):
                    await asyncio.to_thread(machine.cgroup.kill, slot.name)
            await machine.pool.clear(slot, machine.hierarchies(self.spec), files=files)
            if files:
                if self.spec.storage != "memory" or self.spec.resources.disk is not None:
                    await self._remove_files(slot)
                self.slot = None
        self.apply(Cleared())

    async def _remove_files(self, slot: Slot) -> None:
        try:
            await asyncio.to_thread(self._machine.storage.remove, slot.name)
        except JoeyError as error:  # the next start of the engine tries again
            _log.error("files of %s are left over: %s", self.id, error)

    async def leave(self) -> None:
        """The engine closes. What is under way is waited for, what runs goes on without us."""
        while self._last is not None and not self._last.done():
            await asyncio.wait((self._last,))
        self._disarm()
        self.clocks.close()
        if self.output is not None:
            self.output.close()
        for attached in self._early:
            attached.end()

    def _remove(self) -> None:
        self._disarm()
        self.clocks.close()
        self.tell("removed")
        self._answer(NotFound("sandbox", f"{self.name or self.id} was removed before it was started"))
        for attached in self._early:
            attached.end()
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_exception(NotFound("sandbox", f"{self.name or self.id} was removed before it ran"))
        self._context.store.delete(self.id)
        self._context.kept.remove(self.id)
        self._context.gone(self)
        if not self.removed.done():
            self.removed.set_result(None)
