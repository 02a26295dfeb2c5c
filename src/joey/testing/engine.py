"""An engine that contains nothing: ordinary child processes behind the interface of `joey.engine.interface`.

For tests of the API, the command line and clients, here and in users' own projects. "Image" `host` is the machine
itself, a rootfs directory must exist but is not entered. Names, states, errors, exit codes, streams, terminals, logs
and waiting are as in the real engine: the same tests run against both. What needs a kernel's containment is not there,
on purpose; nor are restarts, idle timeouts and health checks, which it takes and does not act on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from joey._version import __version__
from joey.engine import restart
from joey.engine.admission import Admission
from joey.engine.events import Events, Wanted
from joey.engine.interface import Filter, LogQuery, Started
from joey.engine.owners import Registry
from joey.engine.pools import Pools
from joey.engine.private import PrivateNetworks, WithNetworks
from joey.engine.update import changed
from joey.model.cgroup import Usage
from joey.model.errors import (
    Conflict,
    ImageError,
    Invalid,
    JoeyError,
    NotFound,
)
from joey.model.limits import Limits, NodeLimits
from joey.model.network import mode_of
from joey.model.spec import Process, SandboxSpec, Update
from joey.model.views import (
    Check,
    Detail,
    DiskUsage,
    Event,
    Exit,
    LogEntry,
    NetworkMember,
    Node,
    ProcessView,
    ResetReport,
    Sandbox,
    State,
    Stats,
)
from joey.testing.doors import FakeDoor, fake_door
from joey.testing.files import FakeFiles
from joey.testing.logs import tail, wanted
from joey.testing.pools import FakePools
from joey.testing.processes import Child, FakeAttachment, launch
from joey.testing.templates import FakeTemplates

_LOG_BYTES = 1 << 20
"""More is not kept: a test's program may print without end."""
_LOG_PIECES = 100


@dataclass
class _Box:
    """One sandbox of the fake."""

    id: str
    name: str
    spec: SandboxSpec
    argv: tuple[str, ...]
    owner: str = ""
    created: float = field(default_factory=time.time)
    state: State = "created"
    started: float | None = None
    finished: float | None = None
    exit: Exit | None = None
    child: Child | None = None
    execs: list[Child] = field(default_factory=list)
    files: FakeFiles = field(default_factory=FakeFiles)
    log: list[LogEntry] = field(default_factory=list)
    attachments: list[FakeAttachment] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None
    deadline: float | None = None
    timer: asyncio.TimerHandle | None = None
    processes: dict[str, _Process] = field(default_factory=dict)
    pool: str = ""

    def view(self) -> Sandbox:
        return Sandbox(
            id=self.id,
            name=self.name,
            image=self.spec.image or self.spec.rootfs,
            argv=self.argv,
            state=self.state,
            created=self.created,
            started=self.started,
            finished=self.finished,
            pid=self.child.pid if self.child and self.state in ("running", "paused") else None,
            exit=self.exit,
            tty=self.spec.process.tty,
            labels=self.spec.labels,
            owner=self.owner,
            deadline=self.deadline,
            network=mode_of(self.spec.network),
        )


@dataclass
class _Process:
    """One that exec started."""

    view: ProcessView
    child: Child
    exit: Exit | None = None

    def now(self) -> ProcessView:
        return msgspec.structs.replace(self.view, exit=self.exit)

    async def ends(self) -> None:
        self.exit = await self.child.wait()


class FakeEngine(FakePools, FakeTemplates, WithNetworks):
    """Fulfils `joey.engine.interface.Engine`. `close` leaves processes alone unless `stop_launcher`; `kill_all` ends
    them.
    """

    def __init__(self) -> None:
        self._boxes: Registry[_Box] = Registry()
        self.private = PrivateNetworks(self._members_of)
        self._news = Events(itertools.count(1).__next__)
        self._keys = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.admission = Admission(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        self._pools: Pools[_Box] = Pools(self)
        self._warm: dict[str, _Box] = {}
        self._templates = {}

    def limit(self, owners: Callable[[str], Limits], node: NodeLimits) -> None:
        """As the real engine does."""
        self.admission.limits, self.admission.node = owners, node

    async def open(self) -> None:
        """Nothing to take over."""

    async def close(self, *, stop_launcher: bool = False) -> None:
        """Ends every process: they are children of this one."""
        await self._pools.close()
        await self.reset()
        self._news.close()

    # ---- finding

    def resolve(self, ref: str, owner: str | None = None) -> str:
        """The id."""
        return self._boxes.find(ref, owner).id

    def _find(self, ref: str) -> _Box:
        return self._boxes.find(ref)

    def _tell(self, box: _Box, type: str, **data: str | int | float | bool | None) -> None:
        if box.pool:
            return
        self._news.emit(
            f"sandbox.{type}", sandbox=box.id, name=box.name, labels=box.spec.labels, owner=box.owner, **data
        )

    def _running(self, ref: str, verb: str) -> _Box:
        box = self._find(ref)
        if box.state not in ("running", "paused"):
            raise Conflict("state", f"cannot {verb} {box.name}: it is {box.state}")
        return box

    # ---- lifecycle

    def _members_of(self, name: str, owner: str) -> list[NetworkMember]:
        boxes = [box for box in self._boxes if box.owner == owner and mode_of(box.spec.network) == name]
        return [NetworkMember(id=box.id, name=box.name) for box in boxes]

    async def prepare(self, slots: int, *, linked: int = 0) -> None:
        """Nothing: there are no slots."""

    async def create(self, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """Validated as the real engine does, as far as that needs no kernel."""
        box = self._box(spec, owner)
        self._boxes.claim(box, spec.name)
        try:
            self.admission.enter(box.id, owner)
        except JoeyError:
            self._boxes.unname(box)
            raise
        self._boxes.add(box)
        self._tell(box, "created")
        return box.view()

    def _box(self, spec: SandboxSpec, owner: str) -> _Box:
        if spec.image and spec.image != "host":
            raise ImageError("image", f"no image {spec.image!r}", "this engine has the image host")
        if spec.rootfs and not os.path.isdir(spec.rootfs):
            raise ImageError("rootfs", f"{spec.rootfs} is not a directory")
        for at, mount in enumerate(spec.mounts):
            if not os.path.exists(mount.source):
                raise Invalid(f"mounts[{at}].source", f"{mount.source} does not exist", "create it first")
        restart.check(spec)
        argv = (*(spec.entrypoint or ()), *spec.process.argv) or (("sleep", "infinity") if spec.init else ("sh",))
        return _Box(secrets.token_hex(12), "", spec, argv, owner)

    async def start(self, ref: str) -> Sandbox:
        """Start the program."""
        box = self._find(ref)
        if box.state not in ("created", "exited"):
            raise Conflict("state", f"cannot start {box.name}: it is {box.state}")
        self.admission.start(box.id, box.spec.resources.memory)
        try:
            await self._run(box)
        finally:
            self.admission.started(box.id)
            self.admission.hold(box.id, box.spec.resources.memory, runs=box.state == "running")
        return box.view()

    async def _run(self, box: _Box) -> None:
        box.child = launch(msgspec.structs.replace(box.spec.process, argv=box.argv), box.spec.process.env)
        box.state, box.started, box.finished, box.exit = "running", time.time(), None, None
        box.ended.clear()
        for attachment in box.attachments:
            attachment.bind(box.child)
        box.watcher = asyncio.ensure_future(self._watch(box, box.child))
        self._tell(box, "started", restarts=0)
        self._set_deadline(box, box.spec.timeout)

    def _set_deadline(self, box: _Box, seconds: float | None) -> None:
        """From now on; None for none."""
        if box.timer is not None:
            box.timer.cancel()
        box.timer = box.deadline = None
        if seconds is not None and box.state in ("running", "paused"):
            box.deadline = time.time() + seconds
            box.timer = asyncio.get_running_loop().call_later(seconds, self._late, box)

    def _late(self, box: _Box) -> None:
        box.timer = box.deadline = None
        if box.child is None or box.state not in ("running", "paused"):
            return
        self._tell(box, "timeout", idle=False)
        if box.spec.on_timeout == "kill":
            box.child.kill(signal.SIGKILL)
        elif box.state == "running":
            box.child.kill(signal.SIGSTOP)
            box.state = "paused"
            self._tell(box, "paused")

    async def _watch(self, box: _Box, child: Child) -> None:
        while (piece := await child.read()) is not None:
            async with box.changed:
                if sum(len(entry.data) for entry in box.log[-_LOG_PIECES:]) < _LOG_BYTES:
                    box.log.append(LogEntry(at=time.time(), stream=piece[0], data=piece[1]))
                box.changed.notify_all()
            for attachment in list(box.attachments):
                await attachment.put(piece)
        end = await child.wait()
        for other in box.execs:
            other.kill(signal.SIGKILL)
            await other.wait()
        child.close()
        box.state, box.finished, box.exit = "exited", end.at, end
        self.admission.hold(box.id, None, runs=False)
        self._set_deadline(box, None)
        self._tell(box, "exited", code=end.code, signal=end.signal, oom=end.oom, error=end.error)
        box.ended.set()
        box.files.close()
        for attachment in box.attachments:
            attachment.finish(end)
        async with box.changed:
            box.changed.notify_all()
        if box.spec.remove:
            self._drop(box)
            self._tell(box, "removed")

    def _drop(self, box: _Box) -> None:
        self.admission.leave(box.id)
        if self._warm.pop(box.id, None) is not None:
            self._pools.lost(box.id)
        else:
            self._boxes.drop(box)

    async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "", pool: str = "") -> Started:
        """create + attach + start; nothing is left if it fails."""
        if pool and (warm := await self._hand_out(pool, spec, owner)) is not None:
            return Started(warm.view())
        made = await self.create(spec, owner=owner)
        try:
            attachment = await self.attach(made.id) if attach else None
            return Started(await self.start(made.id), attachment)
        except BaseException:
            self._drop(self._find(made.id))
            raise

    async def attach(self, ref: str) -> FakeAttachment:
        """Output from now on."""
        box = self._find(ref)
        if box.state in ("exited", "dead"):
            raise Conflict("state", f"cannot attach to {box.name}: it is {box.state}")
        attachment = FakeAttachment(box.child, box.attachments)
        box.attachments.append(attachment)
        return attachment

    async def exec(
        self, ref: str, process: Process, *, detach: bool = False, keep: bool = False, tag: str = ""
    ) -> FakeAttachment:
        """Another process beside the main one. `keep` does nothing: what nobody reads waits in the pipe."""
        box = self._find(ref)
        if box.state != "running":
            raise Conflict("state", f"cannot run a process in {box.name}: it is {box.state}")
        child = launch(process, box.spec.process.env | process.env, discard=detach)
        box.execs.append(child)
        attachment = FakeAttachment(child, [], pump=True)
        attachment.id = id = str(next(self._keys))
        view = ProcessView(
            id=id, sandbox=box.id, pid=child.pid, argv=process.argv, cwd=process.cwd, user=process.user,
            tty=process.tty, tag=tag, started=time.time(),
        )  # fmt: skip
        box.processes[id] = one = _Process(view, child)
        task = asyncio.ensure_future(one.ends())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return attachment

    def _process(self, ref: str, id: str) -> _Process:
        found = self._find(ref).processes.get(id)
        if found is None:
            raise NotFound("process", f"no process {id!r}", "list them")
        return found

    async def processes(self, ref: str) -> Sequence[ProcessView]:
        """All there ever were."""
        return [one.now() for one in self._find(ref).processes.values()]

    async def process(self, ref: str, id: str) -> ProcessView:
        """One of them."""
        return self._process(ref, id).now()

    async def connect(self, ref: str, id: str) -> FakeAttachment:
        """To its pipes, if they are still open."""
        attachment = FakeAttachment(self._process(ref, id).child, [], pump=True)
        attachment.id = id
        return attachment

    async def signal_process(self, ref: str, id: str, number: int) -> None:
        """A signal."""
        one = self._process(ref, id)
        if one.exit is not None:
            raise Conflict("state", "cannot signal it: it has ended")
        one.child.kill(number)

    async def wait_process(self, ref: str, id: str) -> Exit:
        """Its end."""
        return await self._process(ref, id).child.wait()

    async def feed_process(self, ref: str, id: str, data: bytes, *, close: bool = False) -> None:
        """Input of it."""
        attachment = FakeAttachment(self._process(ref, id).child, [])
        if data:
            await attachment.write(data)
        if close:
            await attachment.close_stdin()

    async def resize_process(self, ref: str, id: str, rows: int, cols: int) -> None:
        """Of its terminal."""
        one = self._process(ref, id)
        if not one.view.tty:
            raise Conflict("process", f"process {id} has no terminal")
        one.child.resize(rows, cols)

    def door(self, id: str) -> FakeDoor:
        """To ports of this machine's own loopback, where its programs run."""
        return fake_door(self._boxes.get(id))

    def files(self, ref: str) -> FakeFiles:
        """A tree in memory, of each sandbox its own."""
        return self._find(ref).files

    async def stop(self, ref: str, timeout: float | None = None) -> Sandbox:
        """Signal, wait, SIGKILL."""
        box = self._find(ref)
        if box.state in ("running", "paused") and box.child is not None:
            box.child.kill(getattr(signal, box.spec.stop_signal, signal.SIGTERM))
            box.child.kill(signal.SIGCONT)
            try:
                await asyncio.wait_for(box.ended.wait(), box.spec.stop_timeout if timeout is None else timeout)
            except TimeoutError:
                box.child.kill(signal.SIGKILL)
                await box.ended.wait()
        return box.view()

    async def kill(self, ref: str, signal: int) -> None:
        """A signal to the main process."""
        box = self._running(ref, "signal")
        assert box.child is not None
        box.child.kill(signal)

    async def pause(self, ref: str, *, reclaim: bool = False) -> Sandbox:
        """SIGSTOP stands for the freezer. There is nothing to reclaim."""
        box = self._running(ref, "pause")
        assert box.child is not None
        if box.state == "paused":
            raise Conflict("state", f"{box.name} is paused already")
        box.child.kill(signal.SIGSTOP)
        box.state = "paused"
        self._tell(box, "paused")
        return box.view()

    async def resume(self, ref: str) -> Sandbox:
        """SIGCONT stands for the freezer."""
        box = self._find(ref)
        if box.state != "paused" or box.child is None:
            raise Conflict("state", f"cannot resume {box.name}: it is {box.state}")
        box.child.kill(signal.SIGCONT)
        box.state = "running"
        self._tell(box, "resumed")
        if box.deadline is None:
            self._set_deadline(box, box.spec.timeout)
        return box.view()

    async def rename(self, ref: str, name: str) -> Sandbox:
        """Another name."""
        box = self._find(ref)
        before = box.name
        self._boxes.claim(box, name)
        self._tell(box, "renamed", before=before)
        return box.view()

    async def update(self, ref: str, change: Update) -> Sandbox:
        """Of limits only what the model knows."""
        box = self._find(ref)
        after = changed(box.spec, change)
        if box.state in ("running", "paused"):
            self.admission.resize(box.id, after.resources.memory)
        box.spec = after
        if change.timeout is not msgspec.UNSET:
            self._set_deadline(box, change.timeout)
        self._tell(box, "updated")
        return box.view()

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
        """As the real engine's, but for what it does not do."""
        wanted = Wanted(tuple(types), tuple(refs), labels or {}, owner)
        async for event in self._news.read(after, follow=follow, wanted=wanted):
            yield event

    async def remove(self, ref: str, *, force: bool = False) -> None:
        """Forget it; kill it first with force."""
        box = self._find(ref)
        if box.state in ("running", "paused"):
            if not force:
                raise Conflict(
                    "state", f"cannot remove it: it is {box.state}", "stop it first, or remove it with force"
                )
            assert box.child is not None
            box.child.kill(signal.SIGKILL)
            await box.ended.wait()
        self._drop(box)
        self._tell(box, "removed")

    async def wait(self, ref: str) -> Exit:
        """The end of its run."""
        box = self._find(ref)
        if box.exit is None:
            await box.ended.wait()
        assert box.exit is not None
        return box.exit

    # ---- looking

    async def inspect(self, ref: str) -> Detail:
        """All there is."""
        box = self._find(ref)
        return Detail(sandbox=box.view(), spec=box.spec)

    async def list(self, filter: Filter) -> Sequence[Sandbox]:
        """Newest first."""
        return self._boxes.list(filter)

    async def stats(self, refs: Sequence[str]) -> Sequence[Stats]:
        """Invented figures that grow with time, of running ones."""
        boxes = [self._find(ref) for ref in refs] or list(self._boxes)
        return [
            Stats(
                id=box.id,
                name=box.name,
                at=time.time(),
                cpus=box.spec.resources.cpus,
                usage=Usage(
                    memory_current=8 << 20,
                    memory_limit=box.spec.resources.memory,
                    cpu_ns=int(time.monotonic() * 5e8),
                    pids_current=1,
                    pids_max=box.spec.resources.pids,
                ),
            )
            for box in boxes
            if box.state in ("running", "paused")
        ]

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogEntry]:
        """Kept output, then what comes."""
        box = self._find(ref)
        done = len(box.log)
        for entry in tail(box.log, query):
            yield entry
        while query.follow:
            for entry in box.log[done:]:
                if wanted(entry, query):
                    yield entry
                done += 1
            if box.state not in ("running", "paused", "created") or (query.until and time.time() > query.until):
                return
            async with box.changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(box.changed.wait(), 0.2)

    async def explain(self, spec: SandboxSpec) -> str:
        """A plan of one step."""
        program = " ".join((*(spec.entrypoint or ()), *spec.process.argv))
        return f" 0 exec {program} without any containment\n"

    async def node(self) -> Node:
        """This machine."""
        counts: dict[str, int] = {}
        for box in self._boxes:
            counts[box.state] = counts.get(box.state, 0) + 1
        uname = os.uname()
        return Node(
            version=__version__,
            home="",
            instance="fake",
            kernel=uname.release,
            arch=uname.machine,
            cpus=os.cpu_count() or 1,
            memory_total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            counts=counts,
            load=self.admission.load(),
            checks=(
                Check(name="processes", state="ok", found="subprocess"),
                Check(name="containment", state="missing", found="none", remedy="use the real engine"),
            ),
        )

    async def disk_usage(self) -> Sequence[DiskUsage]:
        """Logs are all it keeps."""
        size = sum(len(entry.data) for box in self._boxes for entry in box.log)
        return [DiskUsage(kind="logs", count=len(self._boxes), memory=size)]

    async def backup(self, path: Path) -> None:
        """It keeps nothing: the names of what there is."""
        path.write_text("".join(f"{box.id} {box.name}\n" for box in self._boxes))

    async def reset(self) -> ResetReport:
        """End and forget everything."""
        for pool in self._pools.list():
            self._pools.remove(pool)
        boxes = [*self._boxes, *self._warm.values()]
        for box in boxes:
            for child in (*box.execs, *((box.child,) if box.child else ())):
                child.kill(signal.SIGKILL)
        for box in boxes:
            if box.watcher is not None:
                await box.watcher
            for child in box.execs:
                await child.wait()
                child.close()
        for box in boxes:
            self.admission.leave(box.id)
        self._boxes, self._warm = Registry(), {}
        return ResetReport(removed={"sandboxes": len(boxes)})


__all__ = ["FakeEngine"]
