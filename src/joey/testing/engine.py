"""An engine that contains nothing: ordinary child processes behind the interface of `joey.engine.interface`.

For tests of the API, the command line and clients, here and in users' own projects. "Image" `host` is the machine
itself, a rootfs directory must exist but is not entered. Names, states, errors, exit codes, streams, terminals, logs
and waiting are as in the real engine: the same tests run against both. What needs a kernel's containment is not there,
on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from joey._version import __version__
from joey.engine.interface import Filter, LogQuery, Started
from joey.engine.owners import Registry
from joey.model.cgroup import Usage
from joey.model.errors import (
    CannotExecute,
    Conflict,
    ImageError,
    Invalid,
    LaunchFailed,
    ProgramNotFound,
)
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Check, Detail, DiskUsage, Exit, LogEntry, Node, ResetReport, Sandbox, State, Stats
from joey.testing.processes import Child, FakeAttachment

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
    log: list[LogEntry] = field(default_factory=list)
    attachments: list[FakeAttachment] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None

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
        )


class FakeEngine:
    """Fulfils `joey.engine.interface.Engine`. `close` leaves processes alone unless `stop_launcher`; `kill_all` ends
    them.
    """

    def __init__(self) -> None:
        self._boxes: Registry[_Box] = Registry()

    async def open(self) -> None:
        """Nothing to take over."""

    async def close(self, *, stop_launcher: bool = False) -> None:
        """Ends every process: they are children of this one."""
        await self.reset()

    # ---- finding

    def resolve(self, ref: str, owner: str | None = None) -> str:
        """The id."""
        return self._boxes.find(ref, owner).id

    def _find(self, ref: str) -> _Box:
        return self._boxes.find(ref)

    def _running(self, ref: str, verb: str) -> _Box:
        box = self._find(ref)
        if box.state not in ("running", "paused"):
            raise Conflict("state", f"cannot {verb} {box.name}: it is {box.state}")
        return box

    # ---- lifecycle

    async def prepare(self, slots: int) -> None:
        """Nothing: there are no slots."""

    async def create(self, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """Validated as the real engine does, as far as that needs no kernel."""
        if spec.image and spec.image != "host":
            raise ImageError("image", f"no image {spec.image!r}", "this engine has the image host")
        if spec.rootfs and not os.path.isdir(spec.rootfs):
            raise ImageError("rootfs", f"{spec.rootfs} is not a directory")
        for at, mount in enumerate(spec.mounts):
            if not os.path.exists(mount.source):
                raise Invalid(f"mounts[{at}].source", f"{mount.source} does not exist", "create it first")
        argv = (*(spec.entrypoint or ()), *spec.process.argv) or (("sleep", "infinity") if spec.init else ("sh",))
        box = _Box(secrets.token_hex(12), "", spec, argv, owner)
        self._boxes.claim(box, spec.name)
        self._boxes.add(box)
        return box.view()

    async def start(self, ref: str) -> Sandbox:
        """Start the program."""
        box = self._find(ref)
        if box.state not in ("created", "exited"):
            raise Conflict("state", f"cannot start {box.name}: it is {box.state}")
        box.child = _launch(msgspec.structs.replace(box.spec.process, argv=box.argv), box.spec.process.env)
        box.state, box.started, box.finished, box.exit = "running", time.time(), None, None
        box.ended.clear()
        for attachment in box.attachments:
            attachment.bind(box.child)
        box.watcher = asyncio.ensure_future(self._watch(box, box.child))
        return box.view()

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
        box.ended.set()
        for attachment in box.attachments:
            attachment.finish(end)
        async with box.changed:
            box.changed.notify_all()
        if box.spec.remove:
            self._boxes.drop(box)

    async def run(self, spec: SandboxSpec, *, attach: bool = False, owner: str = "") -> Started:
        """create + attach + start; nothing is left if it fails."""
        made = await self.create(spec, owner=owner)
        try:
            attachment = await self.attach(made.id) if attach else None
            return Started(await self.start(made.id), attachment)
        except BaseException:
            self._boxes.drop(self._find(made.id))
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
        """Another process beside the main one. The fake finds none of them again: `keep` and `tag` do nothing."""
        box = self._find(ref)
        if box.state != "running":
            raise Conflict("state", f"cannot run a process in {box.name}: it is {box.state}")
        child = _launch(process, box.spec.process.env | process.env, discard=detach)
        box.execs.append(child)
        attachment = FakeAttachment(child, [], pump=True)
        return attachment

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

    async def pause(self, ref: str) -> Sandbox:
        """SIGSTOP stands for the freezer."""
        box = self._running(ref, "pause")
        assert box.child is not None
        if box.state == "paused":
            raise Conflict("state", f"{box.name} is paused already")
        box.child.kill(signal.SIGSTOP)
        box.state = "paused"
        return box.view()

    async def resume(self, ref: str) -> Sandbox:
        """SIGCONT stands for the freezer."""
        box = self._find(ref)
        if box.state != "paused" or box.child is None:
            raise Conflict("state", f"cannot resume {box.name}: it is {box.state}")
        box.child.kill(signal.SIGCONT)
        box.state = "running"
        return box.view()

    async def rename(self, ref: str, name: str) -> Sandbox:
        """Another name."""
        box = self._find(ref)
        self._boxes.claim(box, name)
        return box.view()

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
        self._boxes.drop(box)

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
        for entry in _tail(box.log, query):
            yield entry
        while query.follow:
            for entry in box.log[done:]:
                if _wanted(entry, query):
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
        boxes = list(self._boxes)
        for box in boxes:
            for child in (*box.execs, *((box.child,) if box.child else ())):
                child.kill(signal.SIGKILL)
        for box in boxes:
            if box.watcher is not None:
                await box.watcher
            for child in box.execs:
                await child.wait()
                child.close()
        self._boxes = Registry()
        return ResetReport(removed={"sandboxes": len(boxes)})


def _wanted(entry: LogEntry, query: LogQuery) -> bool:
    return (
        (query.since is None or entry.at >= query.since)
        and (query.until is None or entry.at <= query.until)
        and (query.stdout if entry.stream == 1 else query.stderr)
    )


def _tail(log: Sequence[LogEntry], query: LogQuery) -> Sequence[LogEntry]:
    entries = [entry for entry in log if _wanted(entry, query)]
    if query.tail is None:
        return entries
    lines = [
        LogEntry(at=entry.at, stream=entry.stream, data=line)
        for entry in entries
        for line in entry.data.splitlines(keepends=True)
    ]
    return lines[len(lines) - query.tail :] if query.tail < len(lines) else lines


def _launch(process: Process, env: dict[str, str], *, discard: bool = False) -> Child:
    path = env.get("PATH", os.defpath + ":/usr/local/bin:/sbin:/usr/sbin")
    name = process.argv[0]
    found = name if "/" in name and os.path.exists(name) else shutil.which(name, mode=os.F_OK, path=path)
    if found is None:
        raise ProgramNotFound("process.argv[0]", f"no program {name!r} in the sandbox", "check the name and PATH")
    if not os.access(found, os.X_OK) or os.path.isdir(found):
        raise CannotExecute("process.argv[0]", f"{found} cannot be executed", "chmod +x it")
    if process.cwd and not os.path.isdir(process.cwd):
        raise LaunchFailed("process.cwd", f"{process.cwd} is not a directory in the sandbox")
    return Child(found, process, {"PATH": path} | env, discard=discard)


__all__ = ["FakeEngine"]
