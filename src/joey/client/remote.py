"""A Python inside a sandbox that calls one function again and again: the client's side of joey.client.inside."""

from __future__ import annotations

import base64
import importlib.util
import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joey.client.bodies import process
from joey.client.errors import ConnectionLost, Invalid, RemoteError
from joey.model import frames

if TYPE_CHECKING:
    from joey.client._async.handle import CommandHandle
    from joey.client._async.sandbox import AsyncSandbox

START_SECONDS = 60.0
_LINE_LIMIT = 256 << 20
_ERRORS_KEPT = 4096


def payload(function: Callable[[Any], Any]) -> bytes:
    """The line that brings a function into a sandbox. Raises Invalid if it cannot be sent."""
    data = dumped(function)
    found = importlib.util.find_spec("cloudpickle.cloudpickle")
    source = Path(found.origin).read_bytes() if found is not None and found.origin else b""
    return _line({"load": _b64(data), "lib": _b64(source)})


def dumped(function: Callable[..., Any]) -> bytes:
    """A function as a pickle, by value. Raises Invalid."""
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        raise Invalid(
            "work", "sending a function needs the package cloudpickle", "pip install cloudpickle, or map a command"
        ) from None
    try:
        return _dump(cloudpickle, function)
    except Exception as error:
        raise Invalid("work", f"{function!r} cannot be sent: {error}") from None


def _dump(cloudpickle: Any, function: Callable[..., Any]) -> bytes:
    """By value also where it could be imported here: inside there is only what the image has."""
    module = sys.modules.get(getattr(function, "__module__", "") or "")
    mine = module is not None and module.__name__ not in ("__main__", "builtins") and not _standard(module.__name__)
    if mine:
        cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(function, protocol=4)
        return data
    finally:
        if mine:
            cloudpickle.unregister_pickle_by_value(module)


def _standard(name: str) -> bool:
    return name.split(".")[0].lstrip("_") in {one.lstrip("_") for one in sys.stdlib_module_names}


class Worker:
    """One such Python. `call` one item after the other; after an error other than RemoteError it is of no use."""

    def __init__(self, handle: CommandHandle) -> None:
        self._handle = handle
        self._buffer = bytearray()
        self._errors = bytearray()

    @classmethod
    async def start(cls, sandbox: AsyncSandbox, load: bytes, python: str) -> Worker:
        """Start it and give it its function. Raises ProgramNotFound, RemoteError if the function does not load."""
        source = Path(__file__).with_name("inside.py").read_text()
        handle = await sandbox.commands.attached(process([python, "-u", "-c", source], stdin=True))
        worker = cls(handle)
        try:
            await worker._prepare(load, python)
            return worker
        except BaseException:
            await worker.close()
            raise

    async def _prepare(self, load: bytes, python: str) -> None:
        end = time.monotonic() + START_SECONDS
        version = (await self._answer(end)).get("ready")
        if version != list(sys.version_info[:2]):
            here, there = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, version or "?"))
            raise Invalid(
                "python", f"functions are sent between equal versions only: here {here}, inside {there}",
                f"an image with Python {here}, or map a command",
            )  # fmt: skip
        await self._handle.send_stdin(load)
        self._value(await self._answer(end), False)

    async def call(self, item: Any, timeout: float | None, trust: bool) -> Any:
        """The function's result. Raises RemoteError, Timeout, ConnectionLost, Invalid (the item cannot be sent)."""
        try:
            data = pickle.dumps(item, protocol=4)
        except Exception as error:
            raise Invalid("inputs", f"{item!r} cannot be sent: {error}") from None
        end = None if timeout is None else time.monotonic() + timeout
        await self._handle.send_stdin(_line({"item": _b64(data), "trust": trust}))
        return self._value(await self._answer(end), trust)

    async def close(self) -> None:
        """Leave it; it ends when its input does."""
        await self._handle.disconnect()

    def _value(self, document: dict[str, Any], trust: bool) -> Any:
        if isinstance(failure := document.get("error"), dict):
            raise RemoteError(
                str(failure.get("type", "")), str(failure.get("message", "")), str(failure.get("traceback", ""))
            )
        if trust and "pickle" in document:
            return pickle.loads(base64.b64decode(document["pickle"]))
        return document.get("value")

    async def _answer(self, deadline: float | None) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_LIMIT:
                raise RemoteError("ValueError", f"the result is larger than {_LINE_LIMIT} bytes")
            if self._handle.exit_code is not None:
                said = self._errors.decode("utf-8", "replace").strip()
                raise RemoteError("SystemExit", f"Python ended with code {self._handle.exit_code}: {said}")
            for kind, data in await self._handle.pieces(deadline):
                if kind == frames.STDOUT:
                    self._buffer += data
                else:
                    self._errors = (self._errors + data)[-_ERRORS_KEPT:]
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ConnectionLost("", "the Python inside does not answer as it should")
        return document


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
