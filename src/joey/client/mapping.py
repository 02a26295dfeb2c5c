"""`joey.map`: one function or command over many inputs, spread over sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, TextIO

from joey.client._async.sandbox import AsyncSandbox
from joey.client.errors import Busy, CommandExit, Conflict, ConnectionLost, Invalid, JoeyError, NotFound, RemoteError
from joey.client.errors import Timeout as Late
from joey.client.progress import Progress
from joey.client.remote import Worker, payload
from joey.client.types import CommandResult

Work = Callable[[Any], Any] | str | Sequence[str]
_AWAY = (ConnectionLost, NotFound, Conflict)
"""The sandbox itself has gone: another one is made for the next attempt."""
CONCURRENCY = 8


async def amap(
    work: Work,
    inputs: Iterable[Any],
    *,
    image: str | None = None,
    concurrency: int = CONCURRENCY,
    retries: int = 0,
    timeout: float | None = None,
    on_error: Literal["raise", "return"] = "raise",
    progress: bool | TextIO = True,
    fresh: bool = False,
    trust: bool = False,
    python: str = "python3",
    **options: Any,
) -> list[Any]:
    """`joey.map` for asyncio: the same arguments and result, awaited."""
    items = list(inputs)
    if concurrency < 1:
        raise Invalid("concurrency", f"{concurrency} is not above 0")
    if retries < 0:
        raise Invalid("retries", f"{retries} is negative")
    if on_error not in ("raise", "return"):
        raise Invalid("on_error", f"{on_error!r} is neither 'raise' nor 'return'")
    run = _Map(work, items, image, retries, timeout, on_error, fresh, trust, python, options)
    with Progress(len(items), progress) as bar:
        return await run.all(min(concurrency, len(items)), bar)


def map(
    work: Work,
    inputs: Iterable[Any],
    *,
    image: str | None = None,
    concurrency: int = CONCURRENCY,
    retries: int = 0,
    timeout: float | None = None,
    on_error: Literal["raise", "return"] = "raise",
    progress: bool | TextIO = True,
    fresh: bool = False,
    trust: bool = False,
    python: str = "python3",
    **options: Any,
) -> list[Any]:
    """`[work(item) for item in inputs]`, each call inside a sandbox; results in the order of the inputs.

    work: a function of one argument, which is sent with what it refers to and run by the sandbox's `python` (of the
    same version as this one); or a command, text or list, in which {} stands for the input (quoted for the shell in
    text; at the end if there is no {}), whose results are CommandResults.

    concurrency: so many sandboxes at most. A sandbox does one item after the other; with `fresh` each item gets its
    own. retries: further attempts at an item. timeout: seconds for one attempt. image and `options`: as of
    Sandbox.create. progress: a bar on stderr if that is a terminal (False: none).

    on_error: "raise" (default) ends all work at the first item that failed for good and raises why; "return" puts the
    exception into the item's place. What counts: an exception of the function (RemoteError), a code other than 0
    (CommandExit), Timeout, a sandbox that cannot be made.

    A function's result comes back as plain data: None, bool, int, float, str, and lists and dicts of these (a tuple
    as a list), so that what runs inside can do nothing to this process. `trust=True` brings any picklable value back;
    unpickling runs whatever the inside sends, so only for code and images you trust.

    Ctrl-C removes the sandboxes and raises KeyboardInterrupt. Raises JoeyError.
    """
    arguments: dict[str, Any] = {
        "image": image, "concurrency": concurrency, "retries": retries, "timeout": timeout, "on_error": on_error,
        "progress": progress, "fresh": fresh, "trust": trust, "python": python, **options,
    }  # fmt: skip
    return blocking(lambda: amap(work, inputs, **arguments))


def blocking(make: Callable[[], Coroutine[Any, Any, list[Any]]]) -> list[Any]:
    """Run what `make` begins to its end; within a running loop (a notebook) on one of our own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    return _beside(make)


def _beside(make: Callable[[], Any]) -> list[Any]:
    found: list[list[Any]] = []
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(make())

    def work() -> None:
        try:
            found.append(loop.run_until_complete(task))
        except BaseException as error:
            failed.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=work, name="joey-map")
    thread.start()
    try:
        thread.join()
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failed:
        raise failed[0]
    return found[0]


class _Map:
    """One run of map."""

    def __init__(
        self,
        work: Work,
        items: list[Any],
        image: str | None,
        retries: int,
        timeout: float | None,
        on_error: str,
        fresh: bool,
        trust: bool,
        python: str,
        options: dict[str, Any],
    ) -> None:
        self._items, self._image, self._retries, self._timeout = items, image, retries, timeout
        self._raise, self._fresh, self._trust, self._python = on_error == "raise", fresh, trust, python
        self._options = {"timeout": None, "metadata": {"joey.map": "1"}, **options}
        if "timeout" not in options:
            # Ctrl-C and exceptions remove them; a killed client's sandboxes end by themselves.
            self._options["idle_timeout"] = options.get("idle_timeout", max(600.0, 2 * (timeout or 0)))
        self._work = work
        self._payload = payload(work) if callable(work) else None
        self._results: list[Any] = [None] * len(items)
        self._waiting = iter(range(len(items)))

    async def all(self, concurrency: int, bar: Progress) -> list[Any]:
        """Every item done, by so many sandboxes at a time."""
        tasks = [asyncio.create_task(self._lane(bar)) for _ in range(concurrency)]
        try:
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if not task.cancelling():  # told twice, it would leave its sandbox behind
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # they remove their sandboxes
        return self._results

    async def _lane(self, bar: Progress) -> None:
        lane = _Lane(self)
        try:
            for index in self._waiting:
                try:
                    self._results[index] = await self._attempts(lane, self._items[index])
                except JoeyError as error:
                    bar.failed += 1
                    if self._raise:
                        error.add_note(f"joey.map: item {index}")
                        raise
                    self._results[index] = error
                bar.step()
                if self._fresh:
                    await lane.drop()
        finally:
            await lane.drop()

    async def _attempts(self, lane: _Lane, item: Any) -> Any:
        for attempt in range(self._retries + 1):
            try:
                return await lane.do(item)
            except JoeyError as error:
                if isinstance(error, (*_AWAY, Late)):
                    await lane.drop()
                if attempt == self._retries or isinstance(error, Invalid):
                    raise
                if isinstance(error, Busy):
                    await asyncio.sleep(error.retry_after)
        raise AssertionError

    async def make(self) -> AsyncSandbox:
        """A sandbox for a lane."""
        return await AsyncSandbox.create(self._image, **self._options)


class _Lane:
    """One sandbox at a time, and in it the worker that calls the function."""

    def __init__(self, run: _Map) -> None:
        self._run = run
        self._sandbox: AsyncSandbox | None = None
        self._worker: Worker | None = None

    async def do(self, item: Any) -> Any:
        """One attempt at one item."""
        run = self._run
        if self._sandbox is None:
            self._sandbox = await _whole(run.make())
        if run._payload is None:
            return await self._command(self._sandbox, item)
        if self._worker is None:
            self._worker = await Worker.start(self._sandbox, run._payload, run._python)
        try:
            return await self._worker.call(item, run._timeout, run._trust)
        except RemoteError:
            raise
        except BaseException:
            await self._worker.close()
            self._worker = None  # late, or gone: its next answer would be another item's
            raise

    async def _command(self, sandbox: AsyncSandbox, item: Any) -> CommandResult:
        command = filled(self._run._work, item)
        result = await sandbox.commands.run(command, timeout=self._run._timeout)
        if result.exit_code != 0:
            raise CommandExit(result)
        return result

    async def drop(self) -> None:
        """Remove the sandbox, also when we are being cancelled."""
        if self._worker is not None:
            await self._worker.close()
        sandbox, self._sandbox, self._worker = self._sandbox, None, None
        if sandbox is not None:
            try:
                await asyncio.shield(asyncio.ensure_future(sandbox.kill()))
            except ConnectionLost:
                print(f"joey.map: could not remove sandbox {sandbox.id[:12]}: it ends by itself", file=sys.stderr)


async def _whole(making: Coroutine[Any, Any, AsyncSandbox]) -> AsyncSandbox:
    """The sandbox; if we are cancelled meanwhile, it is waited for and removed, since nobody else knows of it."""
    task = asyncio.ensure_future(making)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(JoeyError):
            await (await task).kill()
        raise


def filled(work: Any, item: Any) -> str | list[str]:
    """A command with the input in the place of {}."""
    text = str(item)
    if isinstance(work, str):
        quoted = shlex.quote(text)
        return work.replace("{}", quoted) if "{}" in work else f"{work} {quoted}"
    words = [str(word) for word in work]
    if any("{}" in word for word in words):
        return [word.replace("{}", text) for word in words]
    return [*words, text]
