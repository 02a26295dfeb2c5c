"""Functions over a real engine: instances from code that is in the code store, and what they print."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from joey.functions.logs import Logs
from joey.functions.pool import Deployed, Runner
from joey.functions.service import Code, Functions
from joey.functions.wire import STDERR
from joey.model.errors import Broken, Invalid, JoeyError, NotFound, Unenforceable, from_os
from joey.model.function import FunctionSpec, check_name
from joey.model.function_views import InstanceView, LayerView
from joey.model.views import Stats

if TYPE_CHECKING:
    from joey.engine.interface import Engine
    from joey.functions.code import Code as StoredCode
    from joey.functions.code import CodeStore
    from joey.functions.warm import WarmFunctions

log = logging.getLogger("joey.functions")
_MOST_LOGS = 1000
"""Functions of which output is kept; of whoever has most of them that of the oldest goes."""
CODE = "functions"
"""Folder of the code store, in the instance's."""


class Deployments(Functions):
    """All functions of an engine. home: of the instance; without one nothing outlives this."""

    def __init__(self, engine: Engine, home: Path | None, limits: Callable[[str], int | None] | None = None) -> None:
        super().__init__(self._instance, home, happened=self._tell, limits=limits)
        self._engine = engine
        self._printed: dict[tuple[str, str], Logs] = {}
        self._codes: CodeStore | None = None
        self._warm: WarmFunctions | None = None
        self._warming: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Remove what an earlier engine left running, then take up its queues. Raises JoeyError."""
        if self.known:
            from joey.functions.instance import sweep

            engine: Any = self._engine
            await sweep(engine)
            if hasattr(engine, "template_create"):
                await self.warm().sweep()
        await super().open()

    async def close(self) -> None:
        await super().close()
        if self._warm is not None:
            await self._warm.close()

    def warm(self) -> WarmFunctions:
        """Templates of functions, of an engine that has templates."""
        if self._warm is None:
            from joey.functions.warm import WarmFunctions

            self._warm = WarmFunctions(self._engine, self._not_forked)
        return self._warm

    def _not_forked(self, deployed: Deployed, reason: str) -> None:
        """What its author asked for costs more than it should: said where he looks."""
        version = deployed.version.version
        text = f"[joey] instances are not forked from a template, and start slower: {reason}\n"
        self.logs_of(*deployed.function).add("", version, "", STDERR, text.encode())
        self._tell("unforked", deployed, reason=reason)

    # --- instances ---------------------------------------------------------------------------------------------------

    async def _instance(self, deployed: Deployed) -> Runner:
        """A new instance. Raises StartFailed, JoeyError."""
        from joey.functions import instance

        engine: Any = self._engine  # the real one
        if not hasattr(engine, "channel"):
            raise Unenforceable("function", "this engine runs no functions", "use the real one")
        version = deployed.version
        id = ""

        def printed(request: str, stream: int, data: bytes) -> None:
            kept.add(id, version.version, request, stream, data)

        kept = self.logs_of(*deployed.function)
        paths = await self.codes.prepare(version.spec)
        template = self.warm().name(deployed, paths) if hasattr(engine, "template_create") else ""
        start = functools.partial(instance.Instance.start, engine, version, paths, owner=deployed.owner, log=printed)
        try:
            made = await start(template=template)
        except (Broken, NotFound) as error:
            if not template:
                raise
            log.info("function %s: not forked: %s", version.name, error)
            made = await start()
        id = made.id
        return made

    def _tell(self, kind: str, deployed: Deployed, **data: str | int | float | bool | None) -> None:
        """Of the engine's events: those of functions."""
        if kind in ("created", "updated") and deployed.version.spec.modules:
            self._warming = asyncio.ensure_future(self._warm_up(deployed))
        news = getattr(self._engine, "news", None)
        if news is not None:
            version = deployed.version
            news.emit(
                f"function.{kind}", name=version.name, owner=deployed.owner,
                labels={"joey.function": version.name, "joey.function.version": version.version}, **data,
            )  # fmt: skip

    async def _warm_up(self, deployed: Deployed) -> None:
        """Have a template of it before anybody asks."""
        if hasattr(self._engine, "template_create"):
            try:
                self.warm().make(deployed, await self.codes.prepare(deployed.version.spec))
            except JoeyError as error:
                log.info("function %s: no template: %s", deployed.version.name, error)

    async def measured(self, found: Sequence[InstanceView], engine: Engine) -> list[InstanceView]:
        """With the memory that is charged to each."""
        stats: list[Stats] = []
        for one in found:
            with contextlib.suppress(NotFound):  # it has just ended
                stats += await engine.stats([one.id])
        memory = {each.id: each.usage.memory_current for each in stats}
        return [replace(one, memory=memory.get(one.id)) for one in found]

    # --- what they print ---------------------------------------------------------------------------------------------

    def logs_of(self, owner: str, name: str) -> Logs:
        """Made if need be."""
        found = self._printed.get((owner, name))
        if found is None:
            while len(self._printed) >= _MOST_LOGS:
                owners = Counter(whose for whose, _ in self._printed)
                del self._printed[max(self._printed, key=lambda key: owners[key[0]])]
            found = self._printed[owner, name] = Logs()
        return found

    def logs(self, name: str, *, owner: str | None) -> Logs:
        """What a function printed. Raises NotFound."""
        return self.logs_of(*self.registry.find(name, owner).key)

    async def delete(self, name: str, *, owner: str | None) -> None:
        key = self.registry.find(name, owner).key
        await super().delete(name, owner=owner)
        self._printed.pop(key, None)
        await self.tidy()

    # --- code --------------------------------------------------------------------------------------------------------

    @property
    def codes(self) -> CodeStore:
        """Where code lies, made if need be. Raises HostFailed and its kin."""
        if self._codes is None:
            from joey.functions.code import CodeStore

            engine: Any = self._engine
            codes = CodeStore(self.folder / CODE, engine)
            try:
                codes.open()
            except OSError as error:
                raise from_os("open the code store", error) from error
            self._codes = codes
        return self._codes

    async def code(
        self, spec: FunctionSpec, *, files: dict[str, str], packed: bytes, requirements: str, owner: str
    ) -> Code:
        """Code given inline or as a zip archive, into the code store. requirements: of pip, beside the code's own
        requirements.txt if that is "requirements.txt". Raises Invalid.
        """
        if files:
            made = await self.codes.add_inline(files)
        elif packed:
            made = await self.codes.add_zip(packed)
        else:
            raise Invalid("requirements", "goes with the code", "send files or zip, too")
        if requirements:
            return await self.required(spec, _code(made), requirements, owner=owner)
        return _code(made)

    async def required(self, spec: FunctionSpec, code: Code, text: str | None = None, *, owner: str) -> Code:
        """The code with what its requirements.txt (or `text`) names. Raises Invalid with pip's last words."""
        return _code(
            await self.codes.with_requirements(
                code.digest, text, image=spec.image, python=spec.python, owner=owner
            )
        )  # fmt: skip

    async def take(self, chunks: AsyncIterator[bytes]) -> Code:
        """An archive (zip, tar, compressed tar) as it comes. Raises Invalid, HostFailed."""
        from joey.functions.archives import MAX_ARCHIVE

        path = self.codes.path / f".making-{secrets.token_hex(8)}.upload"
        try:
            size, first = 0, b""
            with path.open("xb") as file:
                async for piece in chunks:
                    first = first or piece[:2]
                    if (size := size + len(piece)) > MAX_ARCHIVE:
                        raise Invalid("body", f"more than {MAX_ARCHIVE >> 20} MiB", "put what is large into an image")
                    file.write(piece)
            if not size:
                raise Invalid("body", "is missing", "send a zip or tar archive")
            return _code(await (self.codes.add_zip(path) if first == b"PK" else self.codes.add_tar(path)))
        except OSError as error:
            raise from_os("keep the code", error) from error
        finally:
            path.unlink(missing_ok=True)

    async def archive(self, name: str, *, owner: str | None, qualifier: str = "") -> bytes:
        """The code of a version as a zip. Raises NotFound."""
        spec = self.version(name, owner=owner, qualifier=qualifier).spec
        if not spec.code:
            raise NotFound("code", f"function {name} has none of its own: it is all in its image")
        return await self.codes.archive(spec.code)

    async def tidy(self) -> None:
        """Remove code that nothing names any more."""
        await super().tidy()
        if self._warm is not None:
            alive = {self.deployed(entry, one).key for entry in self.registry.entries.values() for one in entry.all()}
            self._warm.tidy(alive)
        if self._codes is not None:
            specs = [version.spec for entry in self.registry.entries.values() for version in entry.all()]
            specs += [pool.deployed.version.spec for pool in self.all_pools()]
            specs += [FunctionSpec(name="layer", handler="x", code=layer.digest) for layer in self.layers(owner=None)]
            await self.codes.collect(specs)

    # --- layers ------------------------------------------------------------------------------------------------------

    async def set_layer(self, name: str, code: Code, *, owner: str, labels: dict[str, str] | None = None) -> LayerView:
        """Code by a name, to lie under functions' own at /opt. Functions that have an older one keep that."""
        check_name(name)
        layer = LayerView(
            name=name, owner=owner, digest=code.digest, size=code.size, created=time.time(), sha256=code.sha256,
            labels=labels or {},
        )  # fmt: skip
        self.registry.set_layer(layer)
        await self.saved()
        return layer

    def layers(self, *, owner: str | None) -> list[LayerView]:
        """In order of name."""
        return sorted(self.registry.layers_of(owner), key=lambda layer: (layer.name, layer.owner)) if self.known else []

    async def delete_layer(self, name: str, *, owner: str) -> None:
        """Functions that have it keep it. Raises NotFound."""
        self.registry.remove_layer(owner, name)
        await self.saved()


def _code(made: StoredCode) -> Code:
    return Code(made.digest, made.sha256, made.size)


__all__ = ["Deployments"]
