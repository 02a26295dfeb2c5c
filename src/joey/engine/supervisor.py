"""The engine: sandboxes by id and name, and the requests of `joey.engine.interface` on them. asyncio, one loop.

It decides little: `lifecycle` says what follows from an event, `Box` performs it, `Launching` starts processes,
`recovery` finds again what an earlier engine left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from joey import images
from joey.engine import doors, failpoints, looking, recovery, reset, restart
from joey.engine.acknowledge import Acknowledgements
from joey.engine.admission import Admission
from joey.engine.attached import Attached
from joey.engine.box import Box
from joey.engine.channels import Channel, Channels
from joey.engine.events import Data, Events, Wanted
from joey.engine.execs import Execs
from joey.engine.files import BoxFiles
from joey.engine.files_helper import Helpers
from joey.engine.fleet import Shard
from joey.engine.forking import WithTemplates
from joey.engine.gauges import Gauges, gauges
from joey.engine.interface import Attachment, Filter, LogQuery, Started
from joey.engine.launching import Launched, check_signal
from joey.engine.logs import Logs
from joey.engine.machine import READY_SLOTS, Machine
from joey.engine.networks import Networks
from joey.engine.owners import Registry
from joey.engine.private import WithNetworks
from joey.engine.record import (
    Exited,
    PauseAsked,
    Phase,
    RemoveAsked,
    ResumeAsked,
    Run,
    SignalAsked,
    StartAsked,
    StopAsked,
)
from joey.engine.snapshots import Snapshots
from joey.engine.store import Store
from joey.engine.templates import Templates
from joey.engine.timers import Timers
from joey.engine.volumes import Volumes
from joey.engine.warm import Warm
from joey.host.instance import Instance
from joey.host.launcher import LauncherGone
from joey.host.wire import Child
from joey.model.errors import Broken, Conflict, Invalid, JoeyError, from_os
from joey.model.limits import Limits, NodeLimits
from joey.model.pool import PoolSpec
from joey.model.spec import Process, SandboxSpec, Update
from joey.model.views import Detail, DiskUsage, Event, Exit, LogEntry, Node, ProcessView, ResetReport, Sandbox, Stats
from joey.model.views import Pool as PoolView

LAUNCHES_AT_ONCE = 16
"""Starts in flight: more would only wait for each other in the kernel (mount and network namespace locks)."""
_GC_THRESHOLDS = (20_000, 20, 50)
"""Of the collector of cycles: walking the objects of thousands of sandboxes as often as by default costs a tenth."""
_CROWD = 2
_log = logging.getLogger(__name__)


class Engine(WithNetworks, WithTemplates):
    """Lifecycle of all sandboxes of one instance. See `joey.engine.interface.Engine` for what each method promises."""

    def __init__(self, instance: Instance, *, slots: int = READY_SLOTS) -> None:
        self.instance = instance
        self.machine: Machine
        self.store: Store
        self.kept = Logs(instance.logs, fast=instance.scratch / ".logs")
        self.launches: asyncio.Semaphore
        self.timers: Timers
        self.news: Events
        self._slots = slots
        self._boxes: Registry[Box] = Registry()
        self._keys: dict[int, Box] = {}
        self.acknowledgements: Acknowledgements
        self.execs: Execs
        self.helpers: Helpers
        self.channels = Channels(self)
        self.forks = Templates(self)
        self.admission = Admission()
        self.warm = Warm(self)
        self.networks = Networks(self)
        self.private = self.networks.private
        self.snapshots = Snapshots(self)
        self.volumes = Volumes(self)
        self._warming: asyncio.Future[None] | None = None
        self._launching = 0
        self._open = False
        self._resetting: asyncio.Future[ResetReport] | None = None

    # --- open, close, reset ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        failpoints.arm(os.environ.get(failpoints.VARIABLE))
        self.launches = asyncio.Semaphore(LAUNCHES_AT_ONCE)
        self.machine = Machine(self.instance, self._slots)
        self.admission.machine = self.machine.facts.mem_total + self.machine.facts.swap_total
        try:
            self.store = Store(self.instance.db)
        except BaseException:
            self.machine.abandon()
            raise
        self.acknowledgements = Acknowledgements(lambda: self.store.flush(), self.machine.fleet)
        self.timers = Timers()
        self.news = Events(lambda: self.store.next_number("event"), self.store.last_number("event"))
        self.machine.start_pool(lambda: self.store.next_number("slot"))
        self.machine.pool.crowded = lambda: self.crowded
        self.execs = Execs(self.machine.launching, self.store, self.forget)
        self.execs.told = self._told
        self.execs.oom_kills = lambda id: looking.oom_kills(self, self._boxes.get(id))
        self.helpers = Helpers(self.machine.launching, self.store)
        self._open = True
        gc.set_threshold(*_GC_THRESHOLDS)
        try:
            await self.volumes.load()
            await self._take_over()
        except BaseException as error:
            await self.close(stop_launcher=True)
            if isinstance(error, OSError):
                _log.error("take over what an earlier engine left", exc_info=error)
                raise from_os("take over what an earlier engine left", error) from error
            raise

    async def _take_over(self) -> None:
        await recovery.recover(self)
        self.machine.fleet.on_exit = self._on_exit
        self.machine.fleet.held = self._held
        for shard in self.machine.fleet.shards:
            with contextlib.suppress(LauncherGone):  # the next one is subscribed to at once
                await shard.launcher.subscribe()
        # The first sandbox shall wait for neither; but where some run already, others are answered first.
        for _ in range(self.machine.fleet.width):
            await self.machine.fleet.shard()
        self._warming = recovery.warm(self.machine.launching)
        if not self._boxes:
            await self._warming
        self.warm.recover()

    async def close(self, *, stop_launcher: bool = False) -> None:
        if not self._open:
            return
        self._open = False
        if self._warming is not None:
            await asyncio.wait((self._warming,))
        self.timers.close()
        await self.warm.pools.close()
        await self.forks.close()
        self.news.close()
        await asyncio.gather(*(box.leave() for box in self.boxes))
        self.execs.leave()
        await self.helpers.close()
        await self.channels.close()
        await self.acknowledgements.close()
        with contextlib.suppress(JoeyError):
            await self.store.flush()
        await self.networks.close()
        await self.machine.close(stop_launchers=stop_launcher)
        await self.snapshots.close()
        await images.close(self.instance)
        self.kept.close()
        with contextlib.suppress(JoeyError):  # has been logged, and told to whoever asked for it
            await self.store.close()

    def gauges(self) -> Gauges:
        """For /metrics."""
        return gauges(
            self.machine,
            self.admission.load(),
            [pool.view() for pool in self.warm.pools.list()],
            self.networks.totals(),
        )

    async def backup(self, path: Path) -> None:
        """See the interface."""
        await self.store.backup(path)

    async def reset(self) -> ResetReport:
        """See the interface. Who asks while one is under way waits for that one: two of them would leave launchers."""
        if self._resetting is None or self._resetting.done():
            self._resetting = asyncio.ensure_future(reset.reset(self))
        return await asyncio.shield(self._resetting)

    async def prepare(self, slots: int, *, linked: int = 0) -> None:
        await self.machine.pool.prepare(slots)
        if linked:
            await self.networks.prepare(linked)

    async def _networks_kept(self) -> None:
        await self.store.flush()

    # --- life --------------------------------------------------------------------------------------------------------

    def resolve(self, ref: str, owner: str | None = None) -> str:
        return self.find(ref, owner).id

    def limit(self, owners: Callable[[str], Limits], node: NodeLimits) -> None:
        self.admission.limits, self.admission.node = owners, node

    @property
    def crowded(self) -> bool:
        """Whether so many are being started for somebody that what is made ahead had better be made later."""
        return self._launching > _CROWD

    async def create(self, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        box = self._new(spec, owner)
        try:
            await self.complete(box)
            assert box.request is not None
            self.machine.launching.check(box.request)
        except BaseException:
            self.gone(box)
            raise
        self.store.save(box.row())
        box.tell("created")
        try:
            await self.store.flush()
        except JoeyError:
            box.apply(RemoveAsked(True))
            raise
        return box.view()

    async def complete(self, box: Box) -> None:
        """Look at everything the spec names, and have its image, pulled if need be, until the box is gone."""
        if not images.local(box.spec):
            await images.ensure(self.instance, box.spec, box.id)
        elif self._warming is not None and not self._warming.done():
            await asyncio.wait((self._warming,))  # the host's image is being made: others get their answers meanwhile
        if box.record.phase is Phase.REMOVING:
            raise Conflict("state", "it was removed while its image was pulled")
        await self.volumes.prepare(box)
        box.complete(self.machine.launching.complete(box.spec, box.id))

    async def start(self, ref: str) -> Sandbox:
        box = self._touched(ref)
        await self._start(box, durable=True)
        return box.view()

    async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "", pool: str = "") -> Started:
        if pool and (warm := await self.warm.hand_out(pool, spec, owner)) is not None:
            return Started(warm.view())
        box = self._new(spec, owner)
        try:
            await self.complete(box)
        except BaseException:
            self.gone(box)
            raise
        attached = box.attach() if attach else None
        box.tell("created")
        try:
            await self._start(box, durable=not attach)
        except JoeyError:
            await self._remove(box, force=True)
            raise
        except BaseException:  # nobody waits any more: removed in the background
            box.apply(RemoveAsked(True))
            raise
        return Started(box.view(), attached)

    async def _start(self, box: Box, *, durable: bool) -> None:
        """Return only when it will be found again, whatever happens. durable: or not at all; else it may run when it
        cannot be written down (a full disk). Raises JoeyError.
        """
        self.admission.start(box.id, box.spec.resources.memory)
        self._launching += 1
        try:
            box.durable, box.on_disk = True, None
            box.apply(StartAsked(self.store.next_number("key")))
            await box.answer()
            if box.on_disk is not None and (error := await box.on_disk) and durable:
                box.apply(StopAsked(0.0, time.time()))  # nobody shall find running what was said to have failed
                raise error
        except BaseException:
            box.promise()
            raise
        finally:
            self._launching -= 1
            self.admission.started(box.id)

    async def stop(self, ref: str, timeout: float | None = None) -> Sandbox:
        box = self._touched(ref)
        seconds = box.spec.stop_timeout if timeout is None else timeout
        if seconds < 0:
            raise Invalid("timeout", f"{seconds} seconds is negative")
        if box.record.run is not Run.NONE:
            box.apply(StopAsked(seconds, time.time()))
            await box.wait()
        elif box.record.again_at is not None:
            box.apply(StopAsked(seconds, time.time()))
        return box.view()

    async def kill(self, ref: str, signal: int) -> None:
        box = self._touched(ref)
        check_signal(signal)
        box.apply(SignalAsked(signal))
        await box.settled()

    async def pause(self, ref: str, *, reclaim: bool = False) -> Sandbox:
        box = self._touched(ref)
        if reclaim:
            box.check_reclaim()
        box.apply(PauseAsked())
        await box.settled()
        if reclaim:
            await box.reclaim()
        return box.view()

    async def resume(self, ref: str) -> Sandbox:
        box = self._touched(ref)
        box.apply(ResumeAsked(time.time()))
        await box.settled()
        return box.view()

    async def update(self, ref: str, change: Update) -> Sandbox:
        box = self._touched(ref)
        await box.change(change)
        await self.store.flush()
        return box.view()

    async def rename(self, ref: str, name: str) -> Sandbox:
        box = self._touched(ref)
        if name != box.name:
            before = box.name
            self.claim(box, name)
            self.store.save(box.row())
            box.tell("renamed", before=before)
            await self.store.flush()
        return box.view()

    async def remove(self, ref: str, *, force: bool = False) -> None:
        await self._remove(self.find(ref), force=force)
        await self.store.flush()

    async def _remove(self, box: Box, *, force: bool) -> None:
        box.apply(RemoveAsked(force))
        if not box.spec.remove and box.slot is not None:
            box.noted = self.store.flushed()
        self._boxes.unname(box)
        await asyncio.shield(box.removed)

    async def wait(self, ref: str) -> Exit:
        return await self.find(ref).wait()

    # --- processes ---------------------------------------------------------------------------------------------------

    async def attach(self, ref: str) -> Attachment:
        return self._touched(ref).attach()

    async def exec(
        self, ref: str, process: Process, *, detach: bool = False, tag: str = "", keep: bool = False
    ) -> Attachment:
        box = self._touched(ref)
        self._check_running(box)
        return await self.execs.start(box, process, output=not detach, tag=tag, keep=keep or detach)

    async def channel(self, ref: str, process: Process) -> Channel:
        """Run `process` in a running sandbox with a stream socket to it as its descriptor 3. Raises JoeyError."""
        return await self.channels.open(self._touched(ref), process)

    def _told(self, process: ProcessView) -> None:
        """A process has started or ended."""
        box = self._boxes.get(process.sandbox)
        if box is not None:
            box.clocks.touch()
            exit, type = process.exit, "started" if process.exit is None else "exited"
            more: Data = {} if exit is None else {"code": exit.code, "signal": exit.signal, "oom": exit.oom}
            data: Data = {"process": process.id, "tag": process.tag, **more}
            labels = box.spec.labels
            self.news.emit(f"process.{type}", sandbox=box.id, name=box.name, labels=labels, owner=box.owner, **data)

    def busy(self, box: Box) -> bool:
        """Whether processes run in it beside its own."""
        return self.execs.running(box.id)

    async def look(self, box: Box, process: Process) -> Attached:
        """Run a health check: nobody's process, which makes nobody busy."""
        self._check_running(box)
        return await self.execs.start(box, process, output=False, listed=False)

    def _check_running(self, box: Box) -> None:
        if box.record.phase is not Phase.RUNNING or box.launched is None or box.slot is None:
            raise Conflict("state", f"cannot run a process in it: it is {box.view().state}", "start or resume it first")

    async def processes(self, ref: str) -> Sequence[ProcessView]:
        return self.execs.list(self.find(ref).id)

    async def process(self, ref: str, id: str) -> ProcessView:
        return self.execs.view(self.find(ref).id, id)

    async def connect(self, ref: str, id: str) -> Attachment:
        return self.execs.connect(self._touched(ref).id, id)

    async def signal_process(self, ref: str, id: str, number: int) -> None:
        await self.execs.signal(self._touched(ref).id, id, number)

    async def wait_process(self, ref: str, id: str) -> Exit:
        return await self.execs.wait(self.find(ref).id, id)

    async def feed_process(self, ref: str, id: str, data: bytes, *, close: bool = False) -> None:
        await self.execs.feed(self._touched(ref).id, id, data, close=close)

    async def resize_process(self, ref: str, id: str, rows: int, cols: int) -> None:
        self.execs.resize(self._touched(ref).id, id, rows, cols)

    def door(self, id: str) -> doors.Door:
        return doors.door(self._boxes.get(id))

    def files(self, ref: str) -> BoxFiles:
        return BoxFiles(self._touched(ref), self.helpers)

    def _touched(self, ref: str) -> Box:
        """The sandbox of a request that does more than ask: it is not idle."""
        box = self.find(ref)
        box.clocks.touch()
        return box

    # --- pools -------------------------------------------------------------------------------------------------------

    async def pool_create(self, pool: PoolSpec, *, owner: str = "", filled: bool = False) -> PoolView:
        made = await self.warm.put(pool, owner)
        if filled:
            await self.warm.pools.filled(made)
        return made.view()

    def pools(self, owner: str | None = None) -> Sequence[PoolView]:
        return [pool.view() for pool in self.warm.pools.list(owner)]

    def pool(self, name: str, owner: str | None = None) -> PoolView:
        return self.warm.pools.find(name, owner).view()

    async def pool_remove(self, name: str, *, owner: str | None = None) -> None:
        await self.warm.remove(name, owner)

    # --- questions ---------------------------------------------------------------------------------------------------

    def find(self, ref: str, owner: str | None = None) -> Box:
        """The sandbox of an id, a name, or a unique prefix of an id. Raises NotFound, Conflict (not unique)."""
        return self._boxes.find(ref, owner)

    async def inspect(self, ref: str) -> Detail:
        return looking.detail(self, self.find(ref))

    async def list(self, filter: Filter) -> Sequence[Sandbox]:
        return self._boxes.list(filter)

    async def stats(self, refs: Sequence[str]) -> Sequence[Stats]:
        return looking.stats(self, [self.find(ref) for ref in refs] if refs else list(self._boxes))

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogEntry]:
        async for entry in self.kept.read(self.find(ref).id, query):
            yield entry

    async def events(
        self,
        after: int | None = None,
        *,
        follow: bool = False,
        types: Sequence[str] = (),
        refs: Sequence[str] = (),
        labels: dict[str, str | None] | None = None,
        owner: str | None = None,
    ) -> AsyncIterator[Event]:
        wanted = Wanted(tuple(types), tuple(refs), labels or {}, owner)
        async for event in self.news.read(after, follow=follow, wanted=wanted):
            yield event

    async def explain(self, spec: SandboxSpec) -> str:
        launching = self.machine.launching
        return launching.check(launching.complete(spec)).describe()

    async def node(self) -> Node:
        return await looking.node(self)

    async def disk_usage(self) -> Sequence[DiskUsage]:
        return await asyncio.to_thread(reset.disk_usage, self.instance, self.machine.storage, list(self._boxes))

    # --- of boxes ----------------------------------------------------------------------------------------------------

    def add(self, box: Box) -> None:
        """A sandbox found at start."""
        self.admission.keep(box.id, box.owner)
        if box.pool:
            self.warm.found(box)
        else:
            self._boxes.add(box, named=box.record.phase is not Phase.REMOVING)

    def claim(self, box: Box, name: str) -> None:
        """Give it a name, any if `name` is empty. Raises Invalid, Conflict."""
        self._boxes.claim(box, name)
        self.networks.renamed(box)

    @property
    def boxes(self) -> Iterable[Box]:
        """All there are, warm ones too."""
        return (*self._boxes, *self.warm.boxes.values())

    def expect(self, key: int, box: Box) -> None:
        """The end of `key` is this box's."""
        self._keys[key] = box

    def gone(self, box: Box) -> None:
        self.execs.gone(box.id)
        self.helpers.forget(box.id)
        self.admission.leave(box.id)
        if self.warm.boxes.pop(box.id, None) is not None:
            self.warm.pools.lost(box.id)
        else:
            self._boxes.drop(box)
        self.snapshots.left(box)
        self.forks.gone(box)

    def unexpect(self, key: int) -> None:
        """There is no process of that key."""
        self._keys.pop(key, None)

    def forget(self, launched: Launched, *, durable: bool = True) -> None:
        """Acknowledge an exit to the launcher, together with others, once all that is known of it is on disk; durable
        False: nothing ever is.
        """
        launched.shard.children -= 1
        launched.shard.running.pop(launched.key, None)
        launched.shard.leave(launched.layers)
        self._keys.pop(launched.key, None)
        self.acknowledgements.add(launched.shard, launched.key, durable=durable)

    # --- of launchers ------------------------------------------------------------------------------------------------

    def _on_exit(self, shard: Shard, child: Child) -> None:
        box = self._keys.get(child.key)
        if box is not None:
            box.apply(Exited(child.key, self.exit_of(box, child)))
        elif not self.execs.ended(child) and not self.channels.ended(child):
            self.acknowledgements.add(shard, child.key, durable=False)

    def exit_of(self, box: Box, child: Child) -> Exit:
        return looking.exit_of(self, box, child)

    def _held(self, key: int) -> Mapping[int, int]:
        """What of a process's streams is open here, for a launcher that takes it over."""
        box = self._keys.get(key)
        output = self.execs.output(key) if box is None else box.output
        return output.descriptors() if output is not None else {}

    # --- names -------------------------------------------------------------------------------------------------------

    def _new(self, spec: SandboxSpec, owner: str) -> Box:
        if not self._open:
            raise Broken("engine", "it is not open")
        restart.check(spec)
        spec = self.snapshots.admit(spec, owner)
        self.networks.check(spec, owner)
        box = Box(self, secrets.token_hex(12), "", spec, time.time(), owner)
        self._boxes.claim(box, spec.name)
        try:
            self.admission.enter(box.id, owner)
        except JoeyError:
            self._boxes.unname(box)
            raise
        self._boxes.add(box)
        return box
