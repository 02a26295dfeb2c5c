"""`@joey.function`: a function of this program, run by the engine as one of its functions (docs/functions.md)."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import importlib.util
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from joey.client import bodies
from joey.client._async.function import AsyncFunction, AsyncTask, fields, packing
from joey.client._sync.function import Function, Task
from joey.client.errors import Busy, Invalid, JoeyError, NotFound, RemoteError
from joey.client.mapping import blocking
from joey.client.remote import dumped
from joey.client.types import Envs, Size, TaskInfo

P = ParamSpec("P")
R = TypeVar("R")

_HANDLER = "joey_shipped.handler"
_TAG = "joey.digest"
CONCURRENCY = 100


@overload
def function(work: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def function(
    work: None = None,
    /,
    *,
    name: str | None = None,
    image: str | None = None,
    python: str | None = None,
    requirements: Sequence[str] = (),
    modules: Sequence[str] = (),
    memory: Size = "512m",
    cpus: float | None = None,
    timeout: float = 60.0,
    env: Envs | None = None,
    secrets: Envs | None = None,
    network: str | Mapping[str, Any] | None = None,
    concurrency: int = 1,
    max_instances: int | None = None,
    provisioned: int | None = None,
    keep_alive: float | None = None,
    retries: int | None = None,
    trust: bool = False,
    spec: Mapping[str, Any] | None = None,
    url: str | None = None,
    api_key: str | None = None,
) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...


def function(work: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a function of this program one that runs in instances of the engine, as many as there are calls.

        @joey.function(memory="256m", modules=["json"])
        def square(x):
            return x * x

        square.remote(3); square.map(range(100)); square.spawn(4).get(); square.local(5)

    It is sent with what it refers to (cloudpickle) at the first call, and stays deployed: another run of the same
    program finds it again, and its instances. Without a name it has one made of its own and of its content.

    image: what it runs in ("host" by default), with a Python of this version, `python` in it. requirements: packages to
    install into it. modules: imported once for all instances, so that a new one has them at once. memory, cpus: limits
    of an instance. timeout: seconds of a call. env, secrets: variables; secrets are shown to nobody. network: as of
    Sandbox.create. concurrency: calls an instance takes at a time. max_instances, provisioned (kept ready), keep_alive
    (seconds; by default learned). retries: of what was spawned, further attempts. spec: further fields of
    joey.model.function.FunctionSpec.

    The result comes back as plain data (None, bool, int, float, str, lists and dicts of these; a tuple as a list).
    `trust=True` brings any picklable value back; unpickling runs whatever the inside sends, so only for code you trust.
    """

    def decorated(work: Callable[..., Any]) -> RemoteFunction[Any, Any]:
        return RemoteFunction(work, name, **options)

    return decorated if work is None else decorated(work)


class RemoteFunction(Generic[P, R]):
    """What `@joey.function` makes. Called as it is, it runs here, as `local` does."""

    def __init__(
        self,
        work: Callable[P, R],
        name: str | None = None,
        *,
        image: str | None = None,
        python: str | None = None,
        requirements: Sequence[str] = (),
        modules: Sequence[str] = (),
        memory: Size = "512m",
        cpus: float | None = None,
        timeout: float = 60.0,
        env: Envs | None = None,
        secrets: Envs | None = None,
        network: str | Mapping[str, Any] | None = None,
        concurrency: int = 1,
        max_instances: int | None = None,
        provisioned: int | None = None,
        keep_alive: float | None = None,
        retries: int | None = None,
        trust: bool = False,
        spec: Mapping[str, Any] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        if not callable(work):
            raise Invalid("work", f"{work!r} is no function")
        functools.update_wrapper(cast(Any, self), work)
        self._work, self._given, self._trust = work, name, trust
        self._requirements = "".join(f"{line}\n" for line in requirements) or None
        self._where: dict[str, Any] = {"url": url, "api_key": api_key}
        self._spec = fields(
            spec, image=image, python=python, memory=bodies.size(memory, "memory"), cpus=bodies.number(cpus, "cpus"),
            timeout=bodies.number(timeout, "timeout"), env=env and dict(env), secrets=secrets and dict(secrets),
            network=network, concurrency=concurrency, max_instances=max_instances, provisioned=provisioned,
            keep_alive=keep_alive, modules=[*modules, "joey_shipped"], handler=_HANDLER,
        )  # fmt: skip
        if retries is not None:
            self._spec["async"] = {"max_retries": retries}
        self._packed: tuple[str, bytes] | None = None
        self._there = False

    def __repr__(self) -> str:
        return f"<joey.function {getattr(self._work, '__qualname__', self._work)}>"

    def __call__(self, *args: P.args, **named: P.kwargs) -> R:
        """Here."""
        return self._work(*args, **named)

    def local(self, *args: P.args, **named: P.kwargs) -> R:
        """Here, without the engine."""
        return self._work(*args, **named)

    @property
    def name(self) -> str:
        """What it is called at the engine."""
        if self._given is not None:
            return self._given
        own = re.sub(r"[^A-Za-z0-9_-]+", "-", getattr(self._work, "__name__", "")).strip("-_") or "function"
        return f"{own[:80]}-{self._package()[0][:16]}"

    # ---- calling

    def remote(self, *args: P.args, **named: P.kwargs) -> R:
        """Its result, from an instance. Raises RemoteError (an exception inside), Timeout, Busy, JoeyError."""
        self._ready()
        return self._result(Function(self.name, **self._where).invoke(self._event(args, named)))

    def spawn(self, *args: P.args, **named: P.kwargs) -> SpawnedTask[R]:
        """Let the engine do it, whatever becomes of this program: a task, of which `get()` is the result."""
        self._ready()
        task = Function(self.name, **self._where).spawn(self._event(args, named))
        return SpawnedTask(task.id, self._where, trust=self._trust)

    def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[R]:
        """The results for many inputs, in their order, so many at a time. on_error: "raise" (default) ends all work at
        the first failure; "return" puts the exception into the input's place.
        """
        return cast("list[R]", blocking(lambda: self.amap(inputs, concurrency=concurrency, on_error=on_error)))

    async def aremote(self, *args: P.args, **named: P.kwargs) -> R:
        """`remote` for asyncio."""
        await asyncio.to_thread(self._ready)
        return await self._acall(args, named)

    async def aspawn(self, *args: P.args, **named: P.kwargs) -> SpawnedTask[R]:
        """`spawn` for asyncio."""
        await asyncio.to_thread(self._ready)
        task = await AsyncFunction(self.name, **self._where).spawn(self._event(args, named))
        return SpawnedTask(task.id, self._where, trust=self._trust)

    async def amap(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[R]:
        """`map` for asyncio."""
        items = list(inputs)
        if concurrency < 1:
            raise Invalid("concurrency", f"{concurrency} is not above 0")
        if on_error not in ("raise", "return"):
            raise Invalid("on_error", f"{on_error!r} is neither 'raise' nor 'return'")
        await asyncio.to_thread(self._ready)
        results: list[Any] = [None] * len(items)
        waiting = iter(range(len(items)))

        async def lane() -> None:
            for index in waiting:
                try:
                    results[index] = await self._patient(items[index])
                except JoeyError as error:
                    if on_error == "raise":
                        error.add_note(f"joey.function: item {index}")
                        raise
                    results[index] = error

        lanes = [asyncio.create_task(lane()) for _ in range(min(concurrency, len(items)))]
        try:
            await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        return results

    async def _patient(self, item: Any) -> R:
        """In a map, a limit is a reason to wait."""
        while True:
            try:
                return await self._acall((item,), {})
            except Busy as error:
                await asyncio.sleep(error.retry_after)

    async def _acall(self, args: Any, named: Any) -> R:
        event = self._event(args, named)
        return self._result(await AsyncFunction(self.name, **self._where).invoke(event))

    def _event(self, args: Any, named: Any) -> dict[str, Any]:
        try:
            data = pickle.dumps((args, named), protocol=4)
        except Exception as error:
            raise Invalid("arguments", f"cannot be sent: {error}") from None
        return {"call": base64.b64encode(data).decode(), **({"trust": True} if self._trust else {})}

    def _result(self, answer: Any) -> R:
        return cast(R, value(answer, self._trust))

    # ---- deploying

    def deploy(self) -> str:
        """Have it at the engine as it is now, without calling it; its name there."""
        self._there = False
        self._ready()
        return self.name

    def remove(self) -> bool:
        """Take it away from the engine, with its instances; False if it was gone."""
        self._there = False
        return Function(self.name, **self._where).remove()

    def _ready(self) -> None:
        """There, and as it is here. Asked once."""
        if self._there:
            return
        digest, code = self._package()
        deployed = Function(self.name, **self._where)
        try:
            there = deployed.info().spec.tags.get(_TAG)
        except NotFound:
            there = None
        if there != digest:
            # The mark comes last: whoever sees it sees the code it stands for.
            deployed._put(self._spec | {"tags": {}}, code)
            deployed._put({"tags": {_TAG: digest}}, None)
        self._there = True

    def _package(self) -> tuple[str, bytes]:
        """(digest of all that makes it what it is, its code as a zip archive)."""
        if self._packed is None:
            about = {"python": list(sys.version_info[:2])}
            files: dict[str, str | bytes] = {
                "joey_shipped.py": Path(__file__).with_name("shipped.py").read_bytes(),
                "joey_inside.py": Path(__file__).with_name("inside.py").read_bytes(),
                "joey_function.json": json.dumps(about),
                "joey_function.pickle": dumped(self._work),
                **_cloudpickle(),
            }
            code = packing(files, self._requirements)
            digest = hashlib.sha256(code + json.dumps(self._spec, sort_keys=True, default=str).encode()).hexdigest()
            self._packed = digest, code
        return self._packed


class SpawnedTask(Generic[R]):
    """What `spawn` began. id: by which other programs find it: `SpawnedTask(id)`."""

    def __init__(self, id: str, where: Mapping[str, Any] | None = None, *, trust: bool = False) -> None:
        self.id, self._where, self._trust = id, dict(where or {}), trust

    def __repr__(self) -> str:
        return f"<SpawnedTask {self.id}>"

    def get(self, timeout: float | None = None) -> R:
        """Its result, when it has ended for good. Raises RemoteError, Timeout (`timeout` seconds have passed)."""
        return cast(R, value(Task(self.id, **self._where).get(timeout), self._trust))

    async def aget(self, timeout: float | None = None) -> R:
        """`get` for asyncio."""
        return cast(R, value(await AsyncTask(self.id, **self._where).get(timeout), self._trust))

    def info(self) -> TaskInfo:
        """How it is: `state`, `attempts`, `error` …"""
        return Task(self.id, **self._where).info()

    def stop(self) -> None:
        """Do not try it (again)."""
        Task(self.id, **self._where).stop()


def value(answer: Any, trust: bool) -> Any:
    """The value in an answer of shipped.py."""
    if isinstance(answer, dict):
        if trust and "pickle" in answer:
            return pickle.loads(base64.b64decode(answer["pickle"]))
        if "value" in answer:
            return answer["value"]
    raise RemoteError("TypeError", f"the function answers {str(answer)[:200]!r}, which @joey.function did not send", "")


def _cloudpickle() -> dict[str, str | bytes]:
    """The sender's own, for images that have none."""
    found = importlib.util.find_spec("cloudpickle")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    return {f"cloudpickle/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))} if folder else {}


__all__ = ["RemoteFunction", "SpawnedTask", "function"]
