"""Templates of functions: warm processes that instances are forked from, made when there is need and let go again.

One for each version that runs (same code, image, limits: `Deployed.key`), of its owner like all of it. It has imported
what the function names (`modules`) and what the file of its handler imports at its top, as far as that is not its own
code: the handler's own module is loaded in each instance, so that nothing of one tenant's state is in two. A version
with `modules` gets its template when it is deployed, any other one after its first start.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from joey.functions.instance import Paths, sandbox_spec
from joey.functions.pool import Deployed
from joey.model.errors import JoeyError
from joey.model.function import PYTHON_KINDS, FunctionSpec
from joey.model.template import TemplateSpec

log = logging.getLogger("joey.functions")
PREFIX = "fn-"
MOST = 64
"""Templates of functions at a time; of whoever has most of them the one used longest ago goes."""
UNUSED_SECONDS = 3600.0
AGAIN_SECONDS = 600.0
"""After which one that could not be forked from is made anew: what was in the way may be gone."""
_MOST_SOURCE = 1 << 20
_IMPORT = re.compile(r"^(?:import[ \t]+([^#;\\\n]{1,1000})|from[ \t]+([\w.]{1,200})[ \t]+import\b)", re.MULTILINE)
Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Warm:
    name: str
    owner: str
    state: Literal["making", "ready", "plain"]
    made: float
    used: float


class WarmFunctions:
    """Templates of an engine's functions. engine: one that has templates; plain: told of functions whose instances
    cannot be forked, and why.
    """

    def __init__(self, engine: Any, plain: Callable[[Deployed, str], None] | None = None) -> None:
        self._engine = engine
        self._plain = plain
        self._all: dict[Key, _Warm] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def sweep(self) -> None:
        """Remove what an earlier engine left."""
        for view in self._engine.templates(None):
            if view.name.startswith(PREFIX):
                await self._remove(view.name, view.owner)

    def name(self, deployed: Deployed, paths: Paths) -> str:
        """The template to fork from; "" if there is none (yet): it is being made then, if it can be."""
        found = self._all.get(deployed.key)
        if found is None:
            self.make(deployed, paths)
            return ""
        found.used = time.monotonic()
        if found.state == "plain" and found.used - found.made > AGAIN_SECONDS:
            self.drop(deployed.key)
            self.make(deployed, paths)
        return found.name if found.state == "ready" else ""

    def make(self, deployed: Deployed, paths: Paths) -> None:
        """Begin to make one. There already, or not for this kind: nothing."""
        spec = deployed.version.spec
        if spec.kind not in PYTHON_KINDS or not spec.template or deployed.key in self._all:
            return
        while len(self._all) >= MOST:
            self.drop(self._dearest())
        name = PREFIX + secrets.token_hex(12)  # the one before may still be on its way out
        now = time.monotonic()
        self._all[deployed.key] = warm = _Warm(name, deployed.owner, "making", now, now)
        self._spawn(self._make(deployed, paths, warm))

    def _dearest(self) -> Key:
        owners = Counter(warm.owner for warm in self._all.values())
        return max(self._all, key=lambda key: (owners[self._all[key].owner], -self._all[key].used))

    def drop(self, key: Key) -> None:
        """It is not needed any more; what was forked from it goes on."""
        warm = self._all.pop(key, None)
        if warm is not None:
            self._spawn(self._remove(warm.name, warm.owner))

    def tidy(self, alive: set[Key]) -> None:
        """Let go of those of versions that are gone, or that nobody has used for an hour."""
        late = time.monotonic() - UNUSED_SECONDS
        for key in [key for key, warm in self._all.items() if key not in alive or warm.used < late]:
            self.drop(key)

    async def close(self) -> None:
        """Remove all: the next engine makes its own."""
        for key in list(self._all):
            self.drop(key)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def _make(self, deployed: Deployed, paths: Paths, warm: _Warm) -> None:
        try:
            source = await asyncio.to_thread(_handler_source, deployed.version.spec, paths)
            view = await self._engine.template_create(
                template_spec(deployed, paths, warm.name, source), owner=deployed.owner
            )
        except JoeyError as error:
            warm.state, reason = "plain", str(error)
        except Exception as error:  # a defect of ours costs this function its template, no more
            log.exception("template of function %s", deployed.version.name)
            warm.state, reason = "plain", f"{type(error).__name__}: {error}"
        else:
            warm.state, reason = ("ready", "") if view.state == "ready" else ("plain", view.reason)
        if warm.state == "plain":
            log.info("function %s: instances are not forked: %s", deployed.version.name, reason)
            if self._plain is not None and self._all.get(deployed.key) is warm:
                self._plain(deployed, reason)
        if self._all.get(deployed.key) is not warm:  # dropped meanwhile
            await self._remove(warm.name, warm.owner)

    async def _remove(self, name: str, owner: str) -> None:
        try:
            await self._engine.template_remove(name, owner=owner or None)
        except JoeyError as error:
            log.debug("template %s: %s", name, error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def template_spec(deployed: Deployed, paths: Paths, name: str, source: str) -> TemplateSpec:
    """What a version's instances are forked from. source: of its handler's file."""
    import msgspec

    spec = deployed.version.spec
    box = sandbox_spec(deployed.version, Paths(None, paths.layers))
    box = msgspec.structs.replace(
        box, mounts=tuple(mount for mount in box.mounts if mount.target == "/opt"), labels={}
    )  # fmt: skip
    found = [one for one in imports(source) if one not in spec.modules and not _own(one, paths)]
    init = "".join(f"try:\n    import {one}\nexcept Exception:\n    pass\n" for one in found[:64])
    return TemplateSpec(
        name=name, spec=box, python=spec.python, modules=(*_ours(spec, source), *spec.modules), init=init,
        code=str(paths.code) if paths.code is not None else "",
    )  # fmt: skip


def _ours(spec: FunctionSpec, source: str) -> list[str]:
    """Modules of the runtime that its instances need."""
    found = [f"joey_runtime.{spec.kind}"]
    if spec.kind == "asgi" or "async def" in source:
        found.append("joey_runtime.loop")  # and with it asyncio
    elif spec.concurrency > 1:
        found.append("joey_runtime.threads")
    return found


def imports(source: str) -> list[str]:
    """Names of modules that a file imports in lines that begin with it, whatever they are. A stranger's file is not
    parsed here: that would hold up everybody for seconds. Lines within a text count too, which does no harm.
    """
    found: dict[str, None] = {}
    for match in _IMPORT.finditer(source):
        names = [name.split()[0] for name in match[1].split(",") if name.strip()] if match[1] else [match[2]]
        found.update((name, None) for name in names if all(part.isidentifier() for part in name.split(".")))
    return list(found)


def _own(module: str, paths: Paths) -> bool:
    """Whether it is of the function's own code rather than something that is installed."""
    if paths.code is None:
        return False
    top = module.partition(".")[0]
    return (paths.code / f"{top}.py").exists() or _is_source(paths, top)


def _is_source(paths: Paths, top: str) -> bool:
    """A folder of its code that pip has not put there."""
    assert paths.code is not None
    return (paths.code / top).is_dir() and not any(paths.code.glob(f"{top}-*.dist-info"))


def _handler_source(spec: FunctionSpec, paths: Paths) -> str:
    module = spec.handler.rpartition(".")[0].replace(".", "/")
    if paths.code is None or not all(module.split("/")):  # "/etc/x.y" names a file of this machine
        return ""
    path = paths.code / f"{module}.py"
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_SOURCE:
            return ""
        return path.read_text(errors="replace")
    except OSError:
        return ""
