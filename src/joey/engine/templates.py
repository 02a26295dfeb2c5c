"""Templates: warm processes, and sandboxes forked from them. See `joey.plan.berth` for how, and
docs/decisions/0009-templates.md for why so.

A template is an ordinary sandbox that nobody sees, with a warm process in it (`engine/zygote.py`), and berths: prepared
sandboxes nested in its namespaces, kept by the machinery of warm pools. A fork gives a berth to the owner as `Warm`
hands out a member, and sends the warm process the descriptors by which a child enters it. The warm process can end and
is started again; the template's sandbox stays as long as anything lives that was forked from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from joey.engine import berths, zygote
from joey.engine.berths import Berth, Inner, Outer
from joey.engine.box import Box
from joey.engine.channels import Channel
from joey.engine.launching import Within
from joey.engine.pools import Pool, Pools
from joey.engine.record import SIGKILL, Phase, RemoveAsked, Run, SignalAsked
from joey.engine.warm import launch
from joey.engine.zygote import Zygote
from joey.model import codec
from joey.model.errors import Broken, Invalid, JoeyError, NotFound, TooMany
from joey.model.image import Identity
from joey.model.pool import PoolSpec
from joey.model.pool import warm as as_member
from joey.model.spec import Process, SandboxSpec
from joey.model.template import State, TemplateSpec, TemplateView
from joey.model.views import Exit, Sandbox
from joey.plan import berth as plans
from joey.plan import process as run

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

HIDDEN = "template/"
"""How the pool of a box begins that is a template's: no pool has such a name, so the next engine removes it."""
KEY_COUNT = 100
"""Templates of one API key."""
MOST_ENDED = 1000
"""So many sandboxes of a template may have ended before another one takes its place."""
WARM_SECONDS, HELLO_SECONDS = 300.0, 30.0
_GONE_SECONDS = 5.0
_AGAIN_SECONDS = (0.1, 1.0, 5.0, 30.0, 120.0)
_LIVED_SECONDS = 60.0
_ROOT = Identity(uid=0, gid=0)
_PLAIN_ENV = {"PYTHONDONTWRITEBYTECODE": "1"}
_log = logging.getLogger(__name__)


class Template:
    """One template. `settled` is set while it is neither cold nor warming."""

    def __init__(self, spec: TemplateSpec, owner: str, created: float) -> None:
        self.spec, self.owner, self.created = spec, owner, created
        self.inside = berths.inside(spec)
        self.state: State = "cold"
        self.reason = ""
        self.settled = asyncio.Event()
        self.box: Box | None = None
        self.within: Within | None = None
        self.zygote: Zygote | None = None
        self.pool: Pool[Berth] | None = None
        self.children: set[str] = set()
        self.forks = self.plain = self.ended = 0
        self.seconds = 0.0
        self.over = False
        self.task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    def set(self, state: State, reason: str = "") -> None:
        """It is so now."""
        self.state, self.reason = state, reason
        if state in ("cold", "warming"):
            self.settled.clear()
        else:
            self.settled.set()


class Templates:
    """All of an engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._all: dict[tuple[str, str], Template] = {}
        self.pools: Pools[Berth] = Pools(self)
        self._pool_names: dict[str, Template] = {}
        self._of: dict[str, Template] = {}
        self._retired: set[Template] = set()
        self._coming: set[Template] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.waiting: dict[str, Channel] = {}
        """By sandbox: channels of children that wait for somebody who has something to run in them."""

    # --- of the interface --------------------------------------------------------------------------------------------

    async def create(self, spec: TemplateSpec, owner: str) -> Template:
        """Make one, or make it anew as `spec` says; on disk, and warm if it can be, when it returns. Raises JoeyError
        naming the field of `spec`.
        """
        engine, key = self._engine, (owner, spec.name)
        self._check(spec, owner)
        before = self._all.get(key)
        if before is not None and before.spec == spec and before.state != "failed":
            await self._warm(before)
            return before
        if before is None and owner and sum(whose == owner for whose, _ in self._all) >= KEY_COUNT:
            raise TooMany("templates", f"this key has {KEY_COUNT} already", "remove some")
        template = self._all[key] = Template(spec, owner, time.time())
        if before is not None:
            await self._retire(before)
        engine.store.save_template(owner, spec.name, codec.encode(spec), template.created)
        await engine.store.flush()
        await self._warm(template)
        return template

    def _check(self, spec: TemplateSpec, owner: str) -> None:
        """Raises JoeyError naming the field."""
        engine = self._engine
        if spec.code and not os.path.isdir(spec.code):
            raise Invalid("code", f"{spec.code} is no directory")
        of = spec.spec
        for field, given in (("process.argv", of.process.argv), ("entrypoint", of.entrypoint)):
            if given:
                raise Invalid(f"spec.{field}", "a template runs no command", "name what it imports")
        if of.restart.policy != "no":
            raise Invalid("spec.restart", "what is forked from a template is removed when it ends", "leave it out")
        try:
            plans.check(berths.inside(spec))
            engine.networks.check(berths.inside(spec), owner)
        except JoeyError as error:
            error.where = f"spec.{error.where}"
            raise

    def find(self, name: str, owner: str | None) -> Template:
        """owner None: anybody's, the administrator's first. Raises NotFound."""
        found = self._all.get((owner or "", name))
        if found is None and owner is None:
            found = next((one for (_, called), one in self._all.items() if called == name), None)
        if found is None:
            raise NotFound("template", f"no template has the name {name!r}", "joey template ls")
        return found

    def list(self, owner: str | None) -> list[Template]:
        """In order of name."""
        some = (one for one in self._all.values() if owner in (None, one.owner))
        return sorted(some, key=lambda one: (one.owner, one.name))

    def view(self, template: Template) -> TemplateView:
        """What is told of it."""
        memory, box = 0, template.box
        if box is not None and box.slot is not None:
            with contextlib.suppress(OSError, JoeyError):
                memory = self._engine.machine.cgroup.usage(box.slot.name).memory_current or 0
        spec, warm = template.spec, template.zygote
        alive = sum(id not in self._engine.warm.boxes for id in template.children)
        return TemplateView(
            name=spec.name, owner=template.owner, created=template.created, spec=spec.spec, python=spec.python,
            modules=spec.modules, state=template.state, reason=template.reason, memory=memory, forks=template.forks,
            plain=template.plain, berths=len(template.pool.ready) if template.pool else 0,
            instances=alive, pid=warm.channel.pid if warm else 0, seconds=template.seconds,
        )  # fmt: skip

    async def remove(self, name: str, owner: str | None) -> None:
        """What was forked from it goes on. Raises NotFound."""
        template = self.find(name, owner)
        del self._all[template.owner, template.name]
        self._engine.store.delete_template(template.owner, template.name)
        await self._retire(template)
        await self._engine.store.flush()

    # --- forking -----------------------------------------------------------------------------------------------------

    async def fork(
        self, name: str, owner: str, *, env: dict[str, str] | None = None, labels: dict[str, str] | None = None,
        called: str = "", main: bool = True, durable: bool = False, later: Mapping[str, Any] | None = None,
    ) -> tuple[Sandbox, Channel]:  # fmt: skip
        """A sandbox with a child of the warm process in it, which serves its channel; the plain way, an interpreter
        started in a new sandbox, where the template cannot be forked. main: the sandbox ends with the child. durable:
        return once it is on disk. later: its timeouts. Raises JoeyError, nothing is left then.
        """
        template = self.find(name, owner)
        if template.state in ("cold", "warming"):
            await self._warm(template)
        spec = msgspec.structs.replace(
            template.inside, **(later or {}), name=called, labels={**template.inside.labels, **(labels or {})},
            process=msgspec.structs.replace(
                template.inside.process, env={**template.inside.process.env, **(env or {})}
            ),
        )  # fmt: skip
        if template.state == "ready" and template.pool is not None:
            try:
                berth = self.pools.take(template.pool) or await self.start_member(template.pool)
                return await self._hand_out(template, berth, spec, main=main, durable=durable)
            except Broken as error:  # the warm process has ended, or the child at once
                if self._closing or (template.over and (template.owner, name) not in self._all):
                    raise
                if template.over:  # another one has taken its place
                    return await self.fork(
                        name, owner, env=env, labels=labels, called=called, main=main, durable=durable, later=later
                    )  # fmt: skip
                _log.warning("template %s: %s", template.name, error)
        template.plain += 1
        return await self._plain(template, spec, owner, main=main)

    async def _hand_out(
        self, template: Template, berth: Berth, spec: SandboxSpec, *, main: bool, durable: bool
    ) -> tuple[Sandbox, Channel]:
        engine, box = self._engine, berth.box
        assert box.request is not None and box.slot is not None
        try:
            engine.claim(box, spec.name)
        except JoeyError:
            self.discard(berth)
            raise
        request = dataclasses.replace(box.request, spec=berths.handed(box.request, spec))
        engine.warm.boxes.pop(box.id, None)
        box.pool, box.created = "", time.time()
        template.children.add(box.id)
        self._of[box.id] = template
        engine.add(box)
        box.become(spec, request)
        env = run.environment(
            request.image.env, request.spec.process, request.identity, request.spec.hostname or box.slot.name
        )
        channel, berth.channel = berth.channel, None
        assert channel is not None
        try:
            on_disk = engine.store.flushed() if durable else None
            await zygote.tell(channel, env, main=main)
            await zygote.hello(channel, HELLO_SECONDS)
            if on_disk is not None and (error := await on_disk):
                raise error
        except BaseException:
            channel.close()
            with contextlib.suppress(JoeyError):
                box.apply(RemoveAsked(True))
            await asyncio.wait((box.removed,), timeout=_GONE_SECONDS)  # its name is free then
            raise
        template.forks += 1
        box.tell("created", template=template.name)
        box.tell("started", restarts=0)
        self._spawn(_tell_end(box, channel))
        return box.view(), channel

    async def _enter(self, template: Template, berth: Berth) -> None:
        """Have a child in it, which waits. Raises Broken."""
        box = berth.box
        if template.zygote is None or template.state != "ready":
            raise Broken("fork", "the template's process has just ended", "try again")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        out, err = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        channel = berth.channel = Channel(ours, out[0], err[0], 0, lambda: _kill(box))
        try:
            template.zygote.fork((*berth.fds, out[1], err[1], theirs.fileno()))
        finally:
            theirs.close()
            os.close(out[1])
            os.close(err[1])
            berth.entered()
        if template.within is None:
            raise Broken("fork", "the template's sandbox has just ended", "try again")
        outer = os.fstat(template.within.outer)
        await zygote.born(channel, partial(berth.move, outer=outer), HELLO_SECONDS)
        await zygote.hello(channel, HELLO_SECONDS)

    async def _plain(self, template: Template, spec: SandboxSpec, owner: str, *, main: bool) -> tuple[Sandbox, Channel]:
        """What there is without a warm process."""
        engine = self._engine
        box = (await engine.run(spec, owner=owner)).sandbox
        argv = (template.spec.python, "/opt/joey-runtime/bootstrap.py")
        try:
            channel = await engine.channel(box.id, Process(argv=argv, env={**_PLAIN_ENV, **spec.process.env}))
        except BaseException:
            with contextlib.suppress(JoeyError):
                await engine.remove(box.id, force=True)
            raise
        if main:
            self._spawn(self._end_with(box.id, channel))
        return box, channel

    async def _end_with(self, id: str, channel: Channel) -> None:
        await channel.wait()
        with contextlib.suppress(JoeyError):
            await self._engine.remove(id, force=True)

    # --- warming -----------------------------------------------------------------------------------------------------

    async def _warm(self, template: Template) -> None:
        """Return when it is warm, or cannot be."""
        if template.task is None or template.task.done():
            if template.state in ("ready", "unsafe", "failed"):
                return
            template.set("warming")
            template.task = self._spawn(self._keep_warm(template))
        await template.settled.wait()

    async def _keep_warm(self, template: Template) -> None:
        """Live as long as its warm process, and start it again."""
        failures = 0
        while not (template.over or self._closing):
            began = time.monotonic()
            try:
                await self._start(template)
            except JoeyError as error:
                template.set("failed", str(error))
                _log.warning("template %s: %s", template.name, error)
            except OSError as error:
                template.set("failed", f"{error.strerror}")
            warm = template.zygote
            if warm is None or template.state != "ready":
                if warm is not None:
                    warm.close()
                    template.zygote = None
                return
            exit = await warm.channel.wait()
            template.zygote = None
            warm.close()
            if template.over or self._closing:
                return
            _log.warning("template %s: its process has ended with code %d%s", template.name, exit.code, warm.why)
            failures = 0 if time.monotonic() - began > _LIVED_SECONDS else failures + 1
            template.set("warming", f"its process has ended with code {exit.code}{', out of memory' * exit.oom}")
            if failures:
                await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS)) - 1])

    async def _start(self, template: Template) -> None:
        """Its sandbox, if it has none, and its warm process. Raises JoeyError, OSError."""
        engine, spec = self._engine, template.spec
        if template.box is None or not _runs(template.box):
            await self._leave(template)
            template.box = await self._start_box(template)
        box = template.box
        assert box.record.pid is not None and box.slot is not None
        if template.within is None:
            template.within = berths.within(box.record.pid)
        request = box.requested()
        inside = msgspec.structs.replace(
            request.spec, seccomp=plans.filter_of_template(run.check_capabilities(template.inside.process))
        )
        env = {**run.environment(request.image.env, spec.spec.process, _ROOT, box.slot.name), **_PLAIN_ENV}
        process = msgspec.structs.replace(
            plans.warm(spec.spec), argv=(spec.python, "/opt/joey-runtime/zygote.py"), env=env, cwd="/"
        )
        asked = dataclasses.replace(request, spec=inside, identity=_ROOT)
        template.zygote = warm = Zygote(await engine.channels.open(box, process, asked))
        identity = engine.machine.launching.complete(template.inside, box.id).identity
        settings = {
            "modules": list(spec.modules), "init": spec.init, "code": "/code", "layers": "/opt",
            **berths.become(template.inside, identity, engine.machine.facts),
        }  # fmt: skip
        answer = await warm.warm(settings, WARM_SECONDS)
        template.seconds = answer.seconds
        if answer.state != "ready":
            template.set("unsafe" if answer.state == "unsafe" else "failed", answer.reason)
            return
        if template.pool is None and not template.over:
            pool = PoolSpec(name=f"t{id(template)}", spec=template.inside, size=spec.berths)
            self._pool_names[pool.name] = template
            template.pool = self.pools.put(template.owner, pool, template.created)
        template.set("ready")

    async def _start_box(self, template: Template) -> Box:
        spec = as_member(berths.outside(template.inside))
        box = self._box(template, spec)
        box.place = Outer(self._engine)
        return await launch(self._engine, box)

    def _box(self, template: Template, spec: SandboxSpec) -> Box:
        engine = self._engine
        box = Box(engine, secrets.token_hex(12), "", spec, time.time(), template.owner)
        box.pool = HIDDEN + template.name
        engine.admission.enter(box.id, box.owner)
        engine.warm.boxes[box.id] = box
        return box

    # --- berths: joey.engine.pools.Host ------------------------------------------------------------------------------

    async def start_member(self, pool: Pool[Berth]) -> Berth:
        template = self._pool_names[pool.spec.name]
        outer = template.box
        if outer is None or outer.slot is None or template.within is None or template.over:
            raise Broken("template", "its sandbox has just ended", "try again")
        box = self._box(template, as_member(template.inside))
        box.within = outer.id
        place = box.place = Inner(self._engine, template.within, outer.slot.base, box)
        template.children.add(box.id)
        self._of[box.id] = template
        try:
            await launch(self._engine, box)
            await self._enter(template, place.berth)
            if template.over or self._closing:
                raise Broken("template", "it was removed")
        except BaseException:
            self.discard(place.berth)
            raise
        return place.berth

    def usable(self, member: Berth) -> bool:
        return _runs(member.box) and member.channel is not None

    def discard(self, member: Berth) -> None:
        member.close()
        with contextlib.suppress(JoeyError):
            member.box.apply(RemoveAsked(True))

    def crowded(self) -> bool:
        return self._engine.crowded

    def tell_pool(self, pool: Pool[Berth], type: str, **data: str | int) -> None:
        """Nobody asked for this pool."""

    # --- ends --------------------------------------------------------------------------------------------------------

    def keep(self, id: str, channel: Channel) -> None:
        """Until somebody takes it out of `waiting`, or the sandbox is gone."""
        self.waiting[id] = channel
        channel.ended.add_done_callback(lambda _: self._close_waiting(id))

    def _close_waiting(self, id: str) -> None:
        channel = self.waiting.pop(id, None)
        if channel is not None:
            channel.close()

    def gone(self, box: Box) -> None:
        """A sandbox is removed; perhaps the last that holds a template that is over."""
        self._close_waiting(box.id)
        template = self._of.pop(box.id, None)
        if isinstance(box.place, Inner):
            box.place.berth.close()
            self.pools.lost(box.id)
        if template is not None:
            template.children.discard(box.id)
            template.ended += 1
            if template.ended == MOST_ENDED and not (template.over or self._closing):
                self._spawn(self._renew(template))
            if template in self._retired and not template.children:
                self._spawn(self._leave(template))

    async def _retire(self, template: Template) -> None:
        """Its warm process and berths end; its sandbox with the last that was forked from it."""
        template.over = True
        self._retired.add(template)
        template.set("failed", "it was removed")
        filling = template.pool.task if template.pool is not None else None
        if template.pool is not None:
            self.pools.remove(template.pool)
        if template.zygote is not None:
            with contextlib.suppress(JoeyError):
                await template.zygote.channel.kill()
        if tasks := [task for task in (template.task, filling) if task is not None]:
            await asyncio.wait(tasks)
        if not template.children:
            await self._leave(template)

    async def _renew(self, template: Template) -> None:
        """Another one in its place: who is hostile keeps descriptors of the namespaces of all that have ended, which
        count for nobody, and they go with the sandbox they are kept in.
        """
        key = template.owner, template.name
        fresh = Template(template.spec, template.owner, template.created)
        self._coming.add(fresh)
        try:
            await self._warm(fresh)
            old = fresh
            if self._all.get(key) is template and fresh.state == "ready":
                self._all[key], old = fresh, template
                fresh.forks, fresh.plain = template.forks, template.plain
            template.ended = 0
            await self._retire(old)
        finally:
            self._coming.discard(fresh)

    async def _leave(self, template: Template) -> None:
        """Remove its sandbox."""
        self._retired.discard(template)
        if template.within is not None:
            os.close(template.within.outer)
            os.close(template.within.pidfd)
            template.within = None
        box, template.box = template.box, None
        if box is not None and not box.removed.done():
            with contextlib.suppress(JoeyError):
                box.apply(RemoveAsked(True))
            await asyncio.wait((box.removed,))

    def load(self) -> None:
        """What an earlier engine had: cold until somebody asks for it. To be called before anything is saved."""
        for owner, data, created in self._engine.store.load_templates():
            spec = codec.decode(TemplateSpec, data)
            self._all[owner, spec.name] = Template(spec, owner, created)

    def holds(self, box: Box) -> bool:
        """Of one that an earlier engine left: whether it is a template's sandbox in which others live. It stays as long
        as they do.
        """
        inside = {one.id for one in self._engine.boxes if one.within == box.id and not one.pool}
        if not inside or not _runs(box):
            return False
        template = Template(TemplateSpec(name=box.pool.removeprefix(HIDDEN)), box.owner, box.created)
        template.over, template.box, template.children = True, box, inside
        self._retired.add(template)
        self._of.update(dict.fromkeys(inside, template))
        return True

    async def clear(self) -> None:
        """All of them go, and what was forked from them."""
        for template in self.list(None):
            with contextlib.suppress(JoeyError):
                await self.remove(template.name, template.owner)

    async def close(self) -> None:
        """The engine closes: warm processes end, sandboxes are the next engine's affair."""
        self._closing = True
        for id in tuple(self.waiting):
            self._close_waiting(id)
        await self.pools.close()
        for template in (*self._all.values(), *self._retired, *self._coming):
            if template.zygote is not None:
                template.zygote.close()
                template.zygote.channel.end(Exit(code=125, at=time.time(), error="the engine has ended"))
            if template.pool is not None:
                for berth in template.pool.ready:
                    berth.close()
            if template.within is not None:
                os.close(template.within.outer)
                os.close(template.within.pidfd)
                template.within = None
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _runs(box: Box) -> bool:
    return box.record.phase is Phase.RUNNING and box.record.run is Run.ALIVE


async def _kill(box: Box) -> None:
    with contextlib.suppress(JoeyError):
        box.apply(SignalAsked(SIGKILL))


async def _tell_end(box: Box, channel: Channel) -> None:
    try:
        channel.end(await box.wait())
    except JoeyError as error:
        channel.end(Exit(code=125, at=time.time(), error=str(error)))
