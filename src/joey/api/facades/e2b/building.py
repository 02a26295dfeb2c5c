"""Templates are built: files are taken in, steps go to our builder, its output becomes the log that clients poll.

A build has a directory of its own among the image store's from its first file on, which goes with it; what was never
started goes after an hour. One build of a key runs at a time. Its image is named after template and build.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from joey.api import problem
from joey.api.facades.e2b import catalogue, starting
from joey.api.facades.e2b.catalogue import Build, Catalogue, Template, kind_of
from joey.api.facades.e2b.errors import Failure
from joey.api.facades.e2b.kinds import OWN_ENV, Kind
from joey.api.facades.e2b.recipe import Recipe, recipe
from joey.build import session
from joey.build.workshop import LABEL as STEP
from joey.build.workshop import Options, Workshop
from joey.images import host_image, snapshot
from joey.images.library import Library
from joey.model.errors import Invalid, JoeyError, TooMany
from joey.model.network import NetworkSpec
from joey.model.spec import Process, SandboxSpec

if TYPE_CHECKING:
    from joey.api.facades.e2b.recipe import Step
    from joey.api.service import Service

READY_SECONDS = 300.0
_UNUSED_SECONDS = 3600.0
_LINES, _LINE = 2000, 1024
_MOST_WAITING, _REMEMBERED = 16, 50
_KEY_MEMORY = 2 << 30
_NAMES = "localhost/joey-e2b/"
_HOST_IMAGE = _NAMES + "host:base"
_COLOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Message = dict[str, Any]


class Job:
    """A build on its way. entries: its log. place: its directory, once there is one."""

    def __init__(self, build: Build, template: Template) -> None:
        self.build, self.template = build, template
        self.entries: deque[Message] = deque(maxlen=_LINES)
        self.dropped = 0
        self.place: Path | None = None
        self.begun = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.recipe = Recipe()
        self._step = 0

    def say(self, message: str, level: str = "info", step: int | None = None) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z"
        number = self._step if step is None else step
        if len(self.entries) == _LINES:
            self.dropped += 1
        entry = {"timestamp": at, "level": level, "message": message[:_LINE], "step": _name(number)}
        self.entries.append(entry)

    def tell(self, event: Message) -> None:
        """What the builder says."""
        if "instruction" in event:
            step, title = self.recipe.steps.get(event["line"], (0, event["instruction"]))
            if step != self._step or not self.entries:
                self._step = step
                self.say(f"[builder {step}/{max(one for one, _ in self.recipe.steps.values())}] {title}")
        elif "output" in event:
            for line in event["output"].splitlines():
                if text := _COLOR.sub("", line.rpartition("\r")[2]).rstrip():
                    self.say(text, "warn" if event["stream"] == 2 else "info")
        elif event.get("cached"):
            self.say("cached", "debug")
        elif "warning" in event:
            self.say(event["warning"], "warn")

    @property
    def step(self) -> str:
        return _name(self._step)


def _name(step: int) -> str:
    return "base" if step == 0 else "finalize" if step < 0 else str(step)


class Yard:
    """All jobs of a service."""

    def __init__(self, service: Service, templates: Catalogue) -> None:
        self._service, self._catalogue = service, templates
        self.jobs: dict[str, Job] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def close(self) -> None:
        tasks = [job.task for job in self.jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in self.jobs.values():
            await self._clear(job)

    @property
    def images(self) -> Library:
        """Raises Failure for an engine without images (a fake)."""
        found = catalogue.images_of(self._service)
        if found is None:
            raise Failure(501, "this engine keeps no images")
        return found

    def add(self, build: Build, template: Template) -> None:
        """A build that was asked for. Raises TooMany before anything is kept."""
        self.jobs[build.id] = Job(build, template)
        done = [id for id, job in self.jobs.items() if job.build.status in ("ready", "error")]
        for id in done[: max(0, len(done) - _REMEMBERED)]:
            del self.jobs[id]

    async def room(self, owner: str) -> None:
        """Raises TooMany where the key has too many builds under way. What was never started goes."""
        now = time.monotonic()
        waiting = [job for job in self.jobs.values() if job.template.owner == owner and job.build.status == "waiting"]
        for job in waiting:
            if job.task is None and now - job.begun > _UNUSED_SECONDS:
                await self._failed(job, "it was never started")
        if sum(job.build.status in ("waiting", "building") for job in waiting) >= _MOST_WAITING:
            raise TooMany("builds", f"{_MOST_WAITING} of this key are waiting", "start them", retry_after=5)

    def waiting(self, template: Template) -> Job | None:
        """The newest build of a template that was not started yet."""
        found = [job for job in self.jobs.values() if job.template.id == template.id and job.task is None]
        return found[-1] if found and found[-1].build.status == "waiting" else None

    async def place(self, job: Job) -> Path:
        if job.place is None:
            path = self.images.store.root / f".build-{secrets.token_hex(8)}"
            await asyncio.to_thread((path / "context").mkdir, 0o700, True)
            job.place = path
        return job.place

    def start(self, job: Job, steps: list[Step], base: Kind | None, image: str, force: bool) -> None:
        """Begin. base: the template it starts from, else `image`. Raises Invalid."""
        name = _HOST_IMAGE if base is not None and base.image == "host" else base.image if base else image
        job.recipe = recipe(name, steps, base.user if base is not None and base.build else "")
        missing = [digest for digest in job.recipe.hashes if not self.has(job, digest)]
        if missing:
            raise Invalid("steps", f"the files of hash {missing[0]} were not uploaded")
        options = Options(
            tags=(f"{_NAMES}{job.template.id}:{job.build.id}",),
            no_cache=force or any(step.force for step in steps),
            owner=job.template.owner,
            memory=self._memory(job),
        )
        job.task = asyncio.ensure_future(self._run(job, options))

    def _config(self, image: str) -> Message:
        """How its programs run, as OCI has it."""
        return self.images.detail(image)["oci"].get("config") or {}

    @staticmethod
    def has(job: Job, digest: str) -> bool:
        return job.place is not None and (job.place / "context" / digest).is_dir()

    def _memory(self, job: Job) -> int:
        """Of a step of a key's build."""
        owner = job.template.owner
        if not owner:
            return 0
        wanted = max(_KEY_MEMORY, (job.build.memory or 0) << 20)
        most = self._service.access.limits(owner).memory
        return min(wanted, most) if most else wanted

    async def _run(self, job: Job, options: Options) -> None:
        turn = self._turns.setdefault(job.template.owner, asyncio.Lock())
        try:
            async with turn:
                job.build.status = "building"
                self._catalogue.save(job.build)
                await self._built(job, options)
        except asyncio.CancelledError:
            await self._failed(job, "the build was given up")
            raise
        except Exception as error:
            if isinstance(error, (JoeyError, Failure)):
                message = error.message if isinstance(error, Failure) else _said(error)
            else:
                message = str(problem.unexpected(error)["detail"])
            await self._failed(job, message)

    async def _built(self, job: Job, options: Options) -> None:
        place, images = await self.place(job), self.images
        if _HOST_IMAGE in job.recipe.text:
            await asyncio.to_thread(_host_image, images)
        shop = Workshop(self._service.engine, images, place, options, job.tell)  # type: ignore[arg-type]
        try:
            file = await asyncio.to_thread(session.read, place, "Dockerfile", job.recipe.text.encode())
            await session.carry_out(shop, file, session.plan(file, options))
        finally:
            images.changed()
        job.build.image = options.tags[0]
        config = self._config(job.build.image)
        job.build.user, job.build.cwd = config.get("User") or "root", config.get("WorkingDir") or "/"
        job._step = -1
        try:
            await self._tried(job)
        except BaseException:
            with contextlib.suppress(JoeyError):
                await images.remove(options.tags[0], force=True)
            job.build.image = ""
            raise
        job.say("template is ready")
        self._catalogue.finished(job.build)
        await self.discard()
        await self._clear(job)

    async def _tried(self, job: Job) -> None:
        """A sandbox of it starts, and its start command leads to its ready command's success."""
        kind = kind_of(job.template, job.build)
        spec = SandboxSpec(
            image=kind.image, entrypoint=(), init=True,
            process=Process(argv=kind.argv, env=OWN_ENV, user=kind.user, cwd=kind.cwd), remove=True,
            labels={STEP: job.build.id}, network=NetworkSpec(mode="nat"), resources=kind.resources,
            mounts=kind.mounts,
        )  # fmt: skip
        engine = self._service.engine
        sandbox = (await engine.run(spec, owner=job.template.owner)).sandbox
        try:
            if kind.start:
                job.say(f"start command: {kind.start}")
            if kind.ready and not starting.only_time(kind):
                job.say(f"ready command: {kind.ready}")
                await starting.checked(engine, sandbox.id, kind, READY_SECONDS)
        finally:
            with contextlib.suppress(JoeyError):
                await asyncio.shield(engine.remove(sandbox.id, force=True))

    async def _failed(self, job: Job, message: str) -> None:
        build = job.build
        build.status, build.reason, build.step, build.finished = "error", message, job.step, time.time()
        job.say(message, "error")
        if build.id in self._catalogue.builds:
            self._catalogue.save(build)
        await self._clear(job)

    async def _clear(self, job: Job) -> None:
        place, job.place = job.place, None
        if place is not None:
            await session.remove(place)

    async def discard(self) -> None:
        """Remove the images of builds that are no more; those in use stay until somebody discards again."""
        images = catalogue.images_of(self._service)
        if images is None or not images.exists:
            return
        for image in await asyncio.to_thread(images.store.all):
            for name in image.names:
                build = name.rpartition(":")[2]
                if name.startswith(_NAMES) and name != _HOST_IMAGE and build not in self._catalogue.builds:
                    with contextlib.suppress(JoeyError):
                        await images.remove(name)

    async def forget(self, template: Template) -> None:
        """A template is deleted: its builds end."""
        for job in [one for one in self.jobs.values() if one.template.id == template.id]:
            if job.task is not None:
                job.task.cancel()
                await asyncio.gather(job.task, return_exceptions=True)
            await self._clear(job)
            del self.jobs[job.build.id]


def _said(error: JoeyError) -> str:
    message = re.sub(r"^Dockerfile:\d+: ", "", f"{error.where}: {error.message}" if error.where else error.message)
    return message.partition("\n")[0] + (f" (try: {error.remedy})" if error.remedy else "")


def _host_image(images: Library) -> None:
    """This machine's own system as an image that can be built on: no layer of it, but that it lies there. Blocks."""
    if catalogue.here(images, _HOST_IMAGE):
        return
    with snapshot.taken(images.store, None) as taken, taken.kept() as layer:
        settings = msgspec.structs.replace(host_image(images.instance), layers=(), binds=())
        snapshot.enter(images.store, None, layer, settings, names=[_HOST_IMAGE], created_by="joey: image host")
    images.changed()
