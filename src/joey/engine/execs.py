"""Processes that exec started: they live and end beside a sandbox's main process.

One that was started to be kept (a background process, or with a tag) outlives its clients and the engine: what nobody
has read yet is kept (`output.Backlog`), clients may come again, the launcher holds its streams and its exit status, and
a record on disk says whose it is. Every other belongs to the client that started it: when that leaves its pipes are
closed, and an engine that starts again forgets it.

Ended ones stay listed, the newest KEPT_ENDED of a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from joey.engine.attached import Attached, Piece
from joey.engine.ends import UNSEEN, exit_of_child
from joey.engine.fleet import Running
from joey.engine.launching import Launched, Launching, Request, check_signal, send_signal
from joey.engine.output import Output
from joey.engine.record import SIGKILL
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.errors import Conflict, Invalid, JoeyError, LaunchFailed, NotFound
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Exit, ProcessView
from joey.plan import flags as f

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.fleet import Fleet, Shard
    from joey.engine.store import Store
    from joey.host.wire import Child

KEPT_ENDED = 32
KEPT_BYTES = 64 << 20
"""Unread output of ended processes, of all sandboxes together; beyond that the oldest is dropped."""
_log = logging.getLogger(__name__)
_TURNS, _TURN_SECONDS = 20, 0.01


class Record(msgspec.Struct, frozen=True):
    """What is on disk of a process that is kept: `exit` None while it runs. unread: output that an engine had read, and
    nobody from it when it was ended.
    """

    argv: tuple[str, ...]
    cwd: str
    user: str
    tty: bool
    tag: str
    pid: int
    started: float
    exit: Exit | None = None
    unread: tuple[Piece, ...] = ()


class Forget(Protocol):
    """`supervisor.Engine.forget`."""

    def __call__(self, launched: Launched, *, durable: bool = True) -> None: ...


class _Exec:
    """One process. `ended` is done with its end."""

    def __init__(self, key: int, sandbox: str, process: Process, tag: str, keep: bool) -> None:
        self.key, self.sandbox, self.process, self.tag, self.keep = key, sandbox, process, tag, keep
        self.started = time.time()
        self.pid = 0
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launched: Launched | None = None
        self.output: Output | None = None
        self.listed = True
        self.unread: Sequence[Piece] = ()

    @property
    def exit(self) -> Exit | None:
        return self.ended.result() if self.ended.done() else None

    def view(self) -> ProcessView:
        process = self.process
        return ProcessView(
            id=str(self.key), sandbox=self.sandbox, pid=self.pid, argv=process.argv, cwd=process.cwd, user=process.user,
            tty=process.tty, tag=self.tag, started=self.started, exit=self.exit,
        )  # fmt: skip

    def record(self, unread: Sequence[Piece] = ()) -> bytes:
        process = self.process
        return msgspec.json.encode(
            Record(
                process.argv, process.cwd, process.user, process.tty, self.tag, self.pid, self.started, self.exit,
                tuple(unread),
            )
        )  # fmt: skip

    async def wait(self) -> Exit:
        return self.ended.result() if self.ended.done() else await asyncio.shield(self.ended)

    async def signal(self, number: int) -> None:
        check_signal(number)
        if self.launched is not None and not self.ended.done():
            # What is killed can pass nothing on: a command that took too long would leave behind what it has started.
            await send_signal(self.launched, number, group=number == SIGKILL)

    def took(self, launched: Launched) -> None:
        """It is there: read its output."""
        self.launched, self.pid = launched, launched.pid
        fds = launched.fds
        self.output = Output(
            asyncio.get_running_loop(), fds.get(f.ROLE_STDIN), fds.get(f.ROLE_STDOUT), fds.get(f.ROLE_STDERR),
            fds.get(f.ROLE_TERMINAL), None, partial(launched.shard.end_input, self.key), keep=self.keep,
        )  # fmt: skip
        self.output.restore(self.unread)
        self.unread = ()

    def attachment(self) -> Attached:
        assert self.output is not None
        owner = None
        if not self.keep and self.launched is not None:
            owner = partial(self._end_streams, self.launched.shard)
        return Attached(self.wait, self.signal, pid=self.pid, id=str(self.key), owner=owner)

    def _end_streams(self, shard: Shard) -> None:
        if not self.ended.done():  # else all of it is about to be forgotten
            shard.end_streams(self.key)

    def end(self, exit: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(exit)
        if self.output is None and self.unread:  # nothing is left of it but that
            self.output = Output(asyncio.get_running_loop(), keep=True)
            self.output.restore(self.unread)
        if self.output is not None:
            self.output.exited()


class Execs:
    """All of them, by the launcher's key and by sandbox."""

    def __init__(self, launching: Launching, store: Store, forget: Forget) -> None:
        self._launching = launching
        self._store = store
        self._forget = forget
        self._known: dict[int, _Exec] = {}
        self._of: dict[str, dict[int, _Exec]] = {}
        self._unread: OrderedDict[int, int] = OrderedDict()  # bytes that nobody has read of ended ones
        self._unread_bytes = 0
        self._ending: set[asyncio.Task[None]] = set()
        self.told: Callable[[ProcessView], None] = lambda view: None
        """Is called when one has started, and again when it has ended (then it has an `exit`)."""
        self.oom_kills: Callable[[str], int] = lambda sandbox: 0
        """How often the kernel has killed in a sandbox for lack of memory."""
        self._oom_seen: dict[str, int] = {}
        self._older: frozenset[str] = frozenset()
        """Sandboxes of an earlier engine: what was killed in them then is not the end of what ends now."""

    # --- starting ----------------------------------------------------------------------------------------------------

    async def start(
        self, box: Box, process: Process, *, output: bool, tag: str = "", keep: bool = False, listed: bool = True
    ) -> Attached:
        """Run `process` in a running box. keep: it outlives the attachment. listed: it is one of the sandbox's
        processes, not a look of ours inside. Raises JoeyError.
        """
        assert box.launched is not None and box.slot is not None
        request = box.requested()
        process = within(process, request.spec, request.image.cwd)
        if not process.argv:
            raise Invalid("argv", "name a program to run")
        one = _Exec(self._store.next_number("key"), box.id, process, tag, keep or bool(tag))
        one.listed = listed
        work = asyncio.ensure_future(self._start(box, request, one, output))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandon)
            raise

    async def _start(self, box: Box, request: Request, one: _Exec, output: bool) -> Attached:
        if box.launched is None or box.slot is None:
            raise Conflict("state", "cannot run a process in it: it has just ended")
        main, process = box.launched, one.process
        if box.id in self._older:
            self._oom_seen.setdefault(box.id, self.oom_kills(box.id))
        self._known[one.key] = one
        if one.keep:  # whoever comes after us then knows whose it is; written while it is launched
            self._store.save_process(one.key, one.sandbox, one.record())
            self._store.flushed()
        devpts = process.tty and not box.devpts
        box.devpts = box.devpts or devpts  # the launcher runs plans in order: who comes next finds it
        try:
            launched = await self._launching.exec(
                process, request, main, box.slot, one.key, output=output, devpts=devpts, kept=one.keep
            )
        except BaseException as error:
            del self._known[one.key]
            self._drop(one)
            box.devpts = box.devpts and not devpts
            if isinstance(error, JoeyError) and await _is_over(main, error):
                raise Conflict("state", "cannot run a process in it: it has just ended") from error
            raise
        launched.shard.children += 1
        one.took(launched)
        assert one.output is not None
        if one.listed:
            self._of.setdefault(box.id, {})[one.key] = one
            self.told(msgspec.structs.replace(one.view(), exit=None))
        attached = one.attachment()
        one.output.attach(attached)
        if one.ended.done():  # its end was told together with its beginning
            one.output.exited()
            self._settle(one)
            self._forget(launched, durable=one.keep)
        elif one.keep:
            self._store.save_process(one.key, one.sandbox, one.record())
        if one.keep and (unsaved := await self._store.flushed()):
            await _end(attached)  # nobody shall find running what was said to have failed
            raise unsaved
        return attached

    def _abandon(self, work: asyncio.Future[Attached]) -> None:
        """Who asked for it has gone away: end it."""
        if not work.cancelled() and work.exception() is None:
            self._ending.add(task := asyncio.ensure_future(_end(work.result())))
            task.add_done_callback(self._ending.discard)

    # --- those that are there ----------------------------------------------------------------------------------------

    def find(self, sandbox: str, id: str) -> _Exec:
        """Raises NotFound."""
        found = self._of.get(sandbox, {}).get(int(id)) if id.isascii() and id.isdigit() and len(id) < 20 else None
        if found is None:
            raise NotFound("process", f"no process {id!r} in this sandbox", "ended ones are forgotten after a while")
        return found

    def list(self, sandbox: str) -> Sequence[ProcessView]:
        return [one.view() for one in self._of.get(sandbox, {}).values()]

    def view(self, sandbox: str, id: str) -> ProcessView:
        return self.find(sandbox, id).view()

    def connect(self, sandbox: str, id: str) -> Attached:
        """Once more; of one that is not kept, too, as long as its first client is there. Raises NotFound, Conflict."""
        one = self.find(sandbox, id)
        if one.output is None:
            raise Conflict("process", "its output is gone: it ended while no engine ran")
        attached = Attached(one.wait, one.signal, pid=one.pid, id=id)
        one.output.attach(attached)
        self._uncount(one.key)
        return attached

    async def signal(self, sandbox: str, id: str, number: int) -> None:
        one = self.find(sandbox, id)
        check_signal(number)
        if one.ended.done():
            raise Conflict("process", f"process {id} has ended")
        await one.signal(number)

    async def wait(self, sandbox: str, id: str) -> Exit:
        return await self.find(sandbox, id).wait()

    async def feed(self, sandbox: str, id: str, data: bytes, *, close: bool) -> None:
        """Standard input; returns when the program can have taken it. Raises Conflict if it has none."""
        one = self.find(sandbox, id)
        if one.ended.done() or one.output is None:
            raise Conflict("process", f"process {id} has ended")
        if not (one.process.stdin or one.process.tty):
            raise Conflict("process", f"process {id} has no standard input", "start it with stdin")
        writer = Attached(one.wait, one.signal, pid=one.pid, id=id)
        try:
            if data:
                await one.output.input.write(data, writer)
            if close:
                one.output.input.finish()
        finally:
            writer.closed = True

    def resize(self, sandbox: str, id: str, rows: int, cols: int) -> None:
        one = self.find(sandbox, id)
        if not one.process.tty:
            raise Conflict("process", f"process {id} has no terminal")
        if one.output is not None:
            one.output.resize(rows, cols)

    # --- ends --------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The engine closes; what runs goes on without us, and what nobody has read yet waits for the next engine."""
        for some in self._of.values():
            for one in some.values():
                if one.output is not None:
                    one.output.close()
                    if one.keep and one.output.unread:
                        self._store.save_process(one.key, one.sandbox, one.record(one.output.take()))

    def ended(self, child: Child) -> bool:
        """A child has ended; whether it was one of ours."""
        one = self._known.pop(child.key, None)
        if one is None:
            return False
        one.end(exit_of_child(child, oom=self._oom(one.sandbox, child)))
        if one.launched is not None:
            self._settle(one)
            self._forget(one.launched, durable=one.keep)
        return True

    def _oom(self, sandbox: str, child: Child) -> bool:
        """Whether it was killed for lack of memory: it or, says a shell, what it ran last."""
        if not child.status or child.unknown:
            return False
        kills, seen = self.oom_kills(sandbox), self._oom_seen.get(sandbox, 0)
        if kills != seen:  # below it: it has been run again
            self._oom_seen[sandbox] = kills
        return kills > seen and (child.status & 0x7F == SIGKILL or child.status >> 8 & 0xFF == 128 + SIGKILL)

    def _settle(self, one: _Exec) -> None:
        """After its end: on disk before the launcher may forget it, and room made in the list."""
        if not one.listed:
            return
        self.told(one.view())
        some = self._of.setdefault(one.sandbox, {})
        if one.keep:
            self._store.save_process(one.key, one.sandbox, one.record())
            if one.output is not None:
                one.output.closed.add_done_callback(lambda _: self._count(one))
        ended = [key for key, other in some.items() if other.ended.done()]
        for key in ended[: max(0, len(ended) - KEPT_ENDED)]:
            self._drop(some.pop(key))

    def _count(self, one: _Exec) -> None:
        """All it has written is read: what nobody has seen of it counts from now on."""
        if one.output is None or not one.output.unread or one.key not in self._of.get(one.sandbox, {}):
            return
        self._unread[one.key] = one.output.unread
        self._unread_bytes += one.output.unread
        while self._unread_bytes > KEPT_BYTES:
            key, size = self._unread.popitem(last=False)
            self._unread_bytes -= size
            for some in self._of.values():
                if key in some and (output := some[key].output) is not None:
                    output.drop()

    def _uncount(self, key: int) -> None:
        self._unread_bytes -= self._unread.pop(key, 0)

    def _drop(self, one: _Exec) -> None:
        self._uncount(one.key)
        if one.keep:
            self._store.delete_process(one.key)

    def running(self, sandbox: str) -> bool:
        """Whether any runs in it."""
        return any(not one.ended.done() for one in self._of.get(sandbox, {}).values())

    def gone(self, sandbox: str) -> None:
        """The sandbox is removed."""
        self._oom_seen.pop(sandbox, None)
        for one in self._of.pop(sandbox, {}).values():
            self._drop(one)

    def output(self, key: int) -> Output | None:
        """The streams of one of ours."""
        one = self._known.get(key)
        return one.output if one is not None else None

    # --- after a restart ---------------------------------------------------------------------------------------------

    def load(self) -> None:
        """What an earlier engine has written down. `keys` are then theirs that may still run."""
        for key, sandbox, data in self._store.load_processes():
            record = msgspec.json.decode(data, type=Record)
            process = Process(argv=record.argv, cwd=record.cwd, user=record.user, tty=record.tty)
            one = _Exec(key, sandbox, process, record.tag, True)
            one.started, one.pid, one.unread = record.started, record.pid, record.unread
            self._of.setdefault(sandbox, {})[key] = one
            if record.exit is None:
                self._known[key] = one
                continue
            one.end(record.exit)
            if record.unread:
                self._count(one)
                self._store.save_process(key, sandbox, one.record())

    @property
    def keys(self) -> frozenset[int]:
        return frozenset(self._known)

    def places(self, slots: dict[str, str]) -> dict[int, tuple[str, bool]]:
        """What `Running` says of those that may run, by key. slots: sandbox → name of its slot."""
        return {key: (slots[one.sandbox], False) for key, one in self._known.items() if one.sandbox in slots}

    async def take_over(self, known: dict[int, tuple[Shard, Child]], slots: dict[str, str], fleet: Fleet) -> None:
        """Intent meets reality: take those over that launchers hold, or that run on although theirs is gone, and say of
        all others that their end was not seen. Those of sandboxes that are no more are forgotten. slots: sandbox → name
        of its slot.
        """
        self._older = frozenset(slots)
        for sandbox in [id for id in self._of if id not in slots]:
            for key in self._of[sandbox]:
                if self._known.pop(key, None) is not None and key in known:
                    known[key][0].children -= 1
                    with contextlib.suppress(OSError):
                        await known[key][0].launcher.disown(key)
            self.gone(sandbox)
        unanswered: set[str] = set()
        for key, one in tuple(self._known.items()):
            slot = slots[one.sandbox]
            found = known.get(key) or await self._find(one, slot, fleet)
            if found is not None:
                shard, child = found
                fds = await shard.fetch(key)
                one.process = replace(one.process, stdin=f.ROLE_STDIN in fds)
                if child.running:
                    shard.running[key] = Running(child.pid, slot, False)
                one.took(Launched(shard, key, child.pid, fds))
                self._store.save_process(key, one.sandbox, one.record())
            elif one.pid:
                del self._known[key]
                one.end(Exit(code=125, at=time.time(), error=UNSEEN))
                self._settle(one)
            else:  # nobody was ever told of it
                del self._known[key], self._of[one.sandbox][key]
                self._drop(one)
                unanswered.add(slot)
        for slot in filter(None, unanswered):
            fleet.end_unanswered(slot)

    async def _find(self, one: _Exec, slot: str, fleet: Fleet) -> tuple[Shard, Child] | None:
        """One whose launcher ended while no engine was there."""
        if not (slot and one.pid):
            return None
        try:
            found = await fleet.find(one.key, slot, one.started, one.pid)
        except OSError as error:
            _log.error("process %s of %s runs on, but cannot be taken over: %s", one.key, one.sandbox, error)
            return None
        if found is not None:
            found[0].children += 1
        return found


async def _is_over(main: Launched, error: JoeyError) -> bool:
    """Whether the sandbox's first process, and so all in it, has ended: perhaps a moment after `error`, if that is one
    of those that a namespace gives whose first process is about to end (pid_namespaces(7)).
    """
    dying = isinstance(error, LaunchFailed) and error.errno in (errno.ENOMEM, errno.ECANCELED, errno.ESRCH)
    for _ in range(_TURNS if dying else 1):
        try:
            await main.shard.signal(main.key, 0)
        except OSError:
            return True
        await asyncio.sleep(_TURN_SECONDS if dying else 0)
    return False


async def _end(attached: Attached) -> None:
    await attached.close()
    with contextlib.suppress(JoeyError):
        await attached.signal(SIGKILL)


def within(process: Process, spec: SandboxSpec, image_cwd: str) -> Process:
    """What exec says nothing about is as for the main process; and it never has more power than that one."""
    main, asked = spec.process, process.capabilities
    held = tuple(name for name in asked if name in main.capabilities)
    return replace(
        process,
        capabilities=main.capabilities if asked == DEFAULT_CAPABILITIES else held,
        no_new_privileges=process.no_new_privileges or main.no_new_privileges,
        cwd=process.cwd or main.cwd or image_cwd,
        user=process.user or main.user,
        rlimits=process.rlimits or main.rlimits,
        env={**main.env, **process.env},
    )
