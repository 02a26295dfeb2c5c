"""Functions over a real engine: instances from code that is in the code store, and what they print."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msgspec.structs import replace

from joey.functions.logs import Logs
from joey.functions.pool import Deployed, Runner, StartFailed
from joey.functions.service import Code, Functions
from joey.model.errors import Unenforceable
from joey.model.function import FunctionSpec
from joey.model.function_views import InstanceView

if TYPE_CHECKING:
    from joey.engine.interface import Engine

log = logging.getLogger("joey.functions")


class Deployments(Functions):
    """All functions of an engine. home: of the instance; without one nothing outlives this."""

    def __init__(self, engine: Engine, home: Path | None) -> None:
        super().__init__(self._instance, home, happened=self._tell)
        self._engine = engine
        self._printed: dict[tuple[str, str], Logs] = {}

    async def open(self) -> None:
        """Remove what an earlier engine left running, then take up its queues. Raises JoeyError."""
        if self.known:
            from joey.functions.instance import sweep

            await sweep(self._engine)  # type: ignore[arg-type]
        await super().open()

    # --- instances ---------------------------------------------------------------------------------------------------

    async def _instance(self, deployed: Deployed) -> Runner:
        """A new instance. Raises StartFailed, JoeyError."""
        from joey.functions import instance

        if not hasattr(self._engine, "channel"):
            raise Unenforceable("function", "this engine runs no functions", "use the real one")
        version = deployed.version
        id = ""

        def printed(request: str, stream: int, data: bytes) -> None:
            kept.add(id, version.version, request, stream, data)

        kept = self.logs_of(*deployed.function)
        try:
            made = await instance.Instance.start(
                self._engine,
                version,
                await self.paths(deployed),
                owner=deployed.owner,
                log=printed,  # type: ignore[arg-type]
            )
        except instance.StartFailed as failed:
            raise StartFailed(failed.failure, failed.logs) from None
        id = made.id
        return made

    async def paths(self, deployed: Deployed) -> Any:
        """Where its code lies. Raises NotFound, Broken."""
        from joey.functions.instance import Paths

        code = deployed.version.spec.code
        return Paths(self.code_folder() / code.removeprefix("sha256:") if code else None)

    def _tell(self, kind: str, deployed: Deployed, **data: str | int | float | bool | None) -> None:
        """Of the engine's events: those of functions."""
        news = getattr(self._engine, "news", None)
        if news is not None:
            version = deployed.version
            news.emit(
                f"function.{kind}", name=version.name, owner=deployed.owner,
                labels={"joey.function": version.name, "joey.function.version": version.version}, **data,
            )  # fmt: skip

    async def measured(self, found: Sequence[InstanceView], engine: Engine) -> list[InstanceView]:
        """With the memory that is charged to each."""
        stats = await engine.stats([one.id for one in found]) if found else ()
        memory = {one.id: one.usage.memory_current for one in stats}
        return [replace(one, memory=memory.get(one.id)) for one in found]

    # --- what they print ---------------------------------------------------------------------------------------------

    def logs_of(self, owner: str, name: str) -> Logs:
        """Made if need be."""
        found = self._printed.get((owner, name))
        if found is None:
            found = self._printed[owner, name] = Logs()
        return found

    def logs(self, name: str, *, owner: str | None) -> Logs:
        """What a function printed. Raises NotFound."""
        return self.logs_of(*self.registry.find(name, owner).key)

    async def delete(self, name: str, *, owner: str | None) -> None:
        key = self.registry.find(name, owner).key
        await super().delete(name, owner=owner)
        self._printed.pop(key, None)

    # --- code --------------------------------------------------------------------------------------------------------

    async def code(
        self, spec: FunctionSpec, *, files: dict[str, str], packed: bytes, requirements: str, owner: str
    ) -> Code:
        """Code given inline or as a zip archive, into the code store. Raises Invalid."""
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        folder = self.code_folder() / digest
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return Code(f"sha256:{digest}", digest, sum(map(len, files.values())))

    def code_folder(self) -> Path:
        """On the file system of the code store, for what comes in."""
        assert self._home is not None
        return self._home / "code"

    def take_code(self, file: BinaryIO, requirements: bool = False) -> Code:
        """An archive (zip, tar) into the code store. For a thread. Raises Invalid."""
        raise NotImplementedError

    async def required(self, spec: FunctionSpec, code: Code, *, owner: str) -> Code:
        """The same code with what its requirements.txt names. Raises Invalid, LaunchFailed."""
        raise NotImplementedError


def functions_of(engine: Engine, home: Path | None) -> Deployments:
    """The functions of an engine."""
    return Deployments(engine, home)


__all__ = ["Deployments", "asyncio", "functions_of"]
