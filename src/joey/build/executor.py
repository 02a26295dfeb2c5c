"""A build from beginning to end: stage after stage, step after step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from joey.build import mounts, settings
from joey.build.dockerfile import Dockerfile, Instruction, trigger
from joey.build.placing import PlaceStep
from joey.build.planner import EPOCH, PROXIES, Plan, Stage, arguments_of, expand
from joey.build.running import RunStep
from joey.build.state import State, rfc3339
from joey.build.trees import Tree
from joey.build.workshop import Workshop
from joey.images import reference
from joey.images.store import StoredImage
from joey.model import codec
from joey.model.errors import Invalid, JoeyError


class Build:
    """One build. `run` is to be called once; the shop is the caller's to close."""

    def __init__(self, shop: Workshop, file: Dockerfile, plan: Plan) -> None:
        self.shop, self.file, self.plan = shop, file, plan
        self.states: dict[int, State] = {}
        self.used: set[str] = set()
        self.number = 0
        self.total = plan.steps
        self._images: dict[str, Tree] = {}

    async def run(self) -> StoredImage:
        """→ the image. Raises JoeyError naming file and line. What is cancelled leaves nothing."""
        names = tuple(str(self._name(tag)) for tag in self.shop.options.tags)
        for stage in self.plan.order:
            self.states[stage.number] = await self._stage(stage)
        state = self.states[self.plan.order[-1].number]
        self._finish(state)
        self._unused()
        return await self.shop.thread(lambda: self.shop.put(state, names, "build"))

    def _name(self, tag: str) -> reference.Reference:
        name = reference.parse(tag, "tag")
        if name.digest:
            raise Invalid("tag", f"{tag!r} has a digest, which cannot be chosen", "a name and a tag")
        return name

    def _finish(self, state: State) -> None:
        options = self.shop.options
        if options.labels:
            state.run["Labels"] = {**(state.run.get("Labels") or {}), **options.labels}
        if options.epoch is not None:
            state.created = rfc3339(options.epoch)
        state.config["config"] = {key: value for key, value in state.run.items() if value not in (None, {}, [], "")}

    def _unused(self) -> None:
        known = {*self.used, *PROXIES, EPOCH}
        for name in self.shop.options.arguments:
            if name not in known:
                self.shop.tell({"warning": f"the build argument {name} is used by no ARG"})

    # --- stages ------------------------------------------------------------------------------------------------------

    async def _stage(self, stage: Stage) -> State:
        one = stage.opening
        with located(one):
            began = self._begin(stage, one)
            state = await self._base(stage)
            self._end(began, cached=False)
            for text in settings.triggers(state):
                step = trigger(text, one.file, one.line, self.file.escape)
                self.total += 1
                await self._step(stage, state, step)
        for step in stage.steps:
            await self._step(stage, state, step)
        return state

    async def _base(self, stage: Stage) -> State:
        if stage.base is not None:
            return self.states[stage.base].fork()
        if not stage.image:
            return State.scratch(self.plan.platform["TARGETPLATFORM"])
        found = await self._pulled(stage.image)
        config = await self.shop.thread(lambda: codec.decode(dict, self.shop.store.read_blob(found.config.digest)))
        return State.of(config, list(zip(found.diff_ids, found.layers, strict=True)))

    async def _pulled(self, name: str) -> StoredImage:
        """An image by name, pulled if it is not here; held."""
        if name == "host":
            raise Invalid("image", "host is this machine's own system, no image", "joey image bootstrap debian:12")
        policy: Any = "always" if self.shop.options.pull else "missing"

        def listen(progress: Any) -> None:
            if progress.id:
                self.shop.tell({"pull": name, "id": progress.id, "status": progress.status, "done": progress.done,
                                "total": progress.total})  # fmt: skip

        found = await self.shop.library.obtain(name, policy, None, listen)
        self.shop.hold(found.digest, found.config.digest, *found.diff_ids, *(blob.digest for blob in found.layers))
        return found

    # --- steps -------------------------------------------------------------------------------------------------------

    def _begin(self, stage: Stage, one: Instruction) -> float:
        self.number += 1
        said = {"step": self.number, "total": self.total, "stage": stage.label, "instruction": one.text}
        self.shop.tell({**said, "line": one.line})
        return time.monotonic()

    def _end(self, began: float, *, cached: bool) -> None:
        self.shop.tell({"done": self.number, "cached": cached, "seconds": round(time.monotonic() - began, 3)})

    async def _step(self, stage: Stage, state: State, one: Instruction) -> None:
        with located(one):
            began = self._begin(stage, one)
            cached = False
            if one.keyword == "ARG":
                self._arg(state, one)
                state.note(one.text, empty=True)
            elif one.keyword == "RUN":
                cached = await self._run(state, one)
            elif one.keyword in ("COPY", "ADD", "WORKDIR"):
                cached = await self._place(state, one)
            elif settings.apply(state, one, self.file.escape):
                state.note(one.text, empty=True)
            else:
                raise one.error(f"{one.keyword} cannot stand here")
            self._end(began, cached=cached)

    def _arg(self, state: State, one: Instruction) -> None:
        """--build-arg, else the default, else what an ARG before the first FROM says, else the platform's."""
        given = self.shop.options.arguments
        for name, default in arguments_of(one, self.file.escape):
            self.used.add(name)
            value: str | None = given.get(name)
            if value is None and default is not None:
                value = expand(one, default, state.values, self.file.escape)
            if value is None:
                value = self.plan.globals.get(name)
            if value is None:
                value = self.plan.platform.get(name)
            if value is not None:
                state.args[name] = value

    async def _run(self, state: State, one: Instruction) -> bool:
        names = [mounts.parse(one, expand(one, text, state.values, self.file.escape)).from_
                 for key, text in one.flags if key == "mount"]  # fmt: skip
        roots = {name: await self._root(one, name) for name in filter(None, names)}
        step = RunStep(self.shop, state, one, self.file.escape, roots)
        key = await self.shop.thread(step.key)
        return await self.shop.layer(state, one.text, key, step.make)

    async def _place(self, state: State, one: Instruction) -> bool:
        root = await self._root(one, one.flag("from")) if one.flag("from") else self.shop.context
        step = PlaceStep(self.shop, state, one, self.file.escape, root)
        await step.prepare()
        key = await self.shop.thread(step.key)

        async def make() -> Any:
            return await self.shop.thread(step.make)

        cached = await self.shop.layer(state, one.text, key, make)
        if one.keyword == "WORKDIR":
            state.run["WorkingDir"] = step.target.rstrip("/") or "/"
        return cached

    async def _root(self, one: Instruction, name: str) -> Tree:
        """The files of a stage or image."""
        stage = self.plan.stage(name)
        if stage is not None and stage.number in self.states:
            found = await self.shop.thread(lambda: self.shop.tree(self.states[stage.number]))
            if found is None:
                raise one.error(f"the stage {name} has no files")
            return found
        if stage is not None:
            raise one.error(f"the stage {name} comes later and was not known to be needed", "name it without variables")
        if name == "scratch":
            raise one.error("scratch has no files")
        if name not in self._images:
            image = await self._pulled(name)
            self._images[name] = await self.shop.thread(lambda: self.shop.files(image))
        return self._images[name]


@contextmanager
def located(one: Instruction) -> Iterator[None]:
    """Whatever fails inside names file and line, and shows the line."""
    try:
        yield
    except JoeyError as error:
        place = f"{one.file}:"
        if error.where.startswith(place):
            raise
        message = f"{error.where}: {error.message}" if error.where else error.message
        shown = one.error(message)
        error.where, error.message = shown.where, shown.message
        error.args = (str(shown),)
        raise


def declared(file: Dockerfile) -> set[str]:
    """Names of all ARG before the first FROM."""
    found: set[str] = set()
    for one in _until_from(file.instructions):
        found |= {name for name, _ in arguments_of(one, file.escape)}
    return found


def _until_from(instructions: Iterable[Instruction]) -> Iterator[Instruction]:
    for one in instructions:
        if one.keyword == "FROM":
            return
        if one.keyword == "ARG":
            yield one


async def build(shop: Workshop, file: Dockerfile, plan: Plan) -> StoredImage:
    """Do it, and let everything go that was held, however it ends."""
    work = Build(shop, file, plan)
    work.used |= declared(file)
    try:
        return await work.run()
    finally:
        await asyncio.shield(shop.close())
