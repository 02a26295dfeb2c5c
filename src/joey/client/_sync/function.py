# Generated from ../_async/function.py by joey.client.generate: change that one.
"""`Function`: a deployed function, and `Task`, an invocation that is under way."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from joey.client import bodies
from joey.client._sync.http import Response
from joey.client._sync.net import in_thread, sleep
from joey.client._sync.service import Service, query, quote, service
from joey.client.errors import ConnectionLost, Invalid, NotFound, RemoteError, Timeout
from joey.client.package import Code, inline, pack, requires
from joey.client.types import Envs, FunctionInfo, InstanceInfo, Size, TaskInfo

Self = TypeVar("Self", bound="Function")
_UNSET: Any = object()
_LATE = ("Sandbox.Timedout", "Sandbox.InitTimedout")
_OPEN = ("queued", "running")


class Invocation(msgspec.Struct, frozen=True):
    """What came of one invocation. body: the result as it came, of a failure {"errorType", "errorMessage", …}. error:
    the type of a failure, "" of none. logs: the end of what it printed, if that was asked for.
    """

    body: bytes
    error: str
    request_id: str
    version: str
    logs: str = ""

    def value(self) -> Any:
        """The result as JSON has it. Raises RemoteError, Timeout."""
        if self.error:
            raise failure(self.error, self.body)
        return loads(self.body)


class Function:
    """A function by its name; `deploy` makes or changes one. qualifier: a version or an alias, "" the newest code.

    code = {"app.py": "def handler(event, context): return event"}
    function = Function.deploy("hello", code, "app.handler")
    print(function.invoke({"a": 1}))
    """

    def __init__(self, name: str, qualifier: str = "", *, url: str | None = None, api_key: str | None = None) -> None:
        self.name, self.qualifier = name, qualifier
        self._where: dict[str, Any] = {"url": url, "api_key": api_key}
        self._path = f"/v1/functions/{quote(name)}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{':' + self.qualifier if self.qualifier else ''}>"

    @property
    def _service(self) -> Service:
        return service(**self._where)

    @classmethod
    def deploy(
        cls: type[Self],
        name: str,
        code: Code | None = None,
        handler: str | None = None,
        *,
        requirements: str | Sequence[str] | None = None,
        image: str | None = None,
        memory: Size | None = None,
        cpus: float | None = None,
        disk: Size | None = None,
        timeout: float | None = None,
        env: Envs | None = None,
        secrets: Envs | None = None,
        concurrency: int | None = None,
        modules: Sequence[str] | None = None,
        spec: Mapping[str, Any] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """Make a function, or change what is given of one that is there.

        code: a folder, a .zip or a file of this machine, the bytes of a zip archive, or {name: content}
        handler: "module.function" of it. requirements: packages to install into it, lines of a requirements.txt; a file
            of that name in the code counts too
        memory, cpus, disk: limits of an instance. timeout: seconds of an invocation. concurrency: invocations an
            instance takes at a time. modules: imported once for all instances, before there is a request
        spec: any further fields of joey.model.function.FunctionSpec

        Raises Invalid naming the field, JoeyError.
        """
        function = cls(name, url=url, api_key=api_key)
        body = fields(
            handler=handler, image=image, memory=bodies.size(memory, "memory"), cpus=bodies.number(cpus, "cpus"),
            disk=bodies.size(disk, "disk"), timeout=bodies.number(timeout, "timeout"), env=env, secrets=secrets,
            concurrency=concurrency, modules=modules, spec=spec,
        )  # fmt: skip
        text = requirements if requirements is None or isinstance(requirements, str) else "\n".join(requirements)
        packed = None if code is None else in_thread(packing, code, text)
        function._put(body, packed)
        return function

    def _put(self, body: dict[str, Any], packed: bytes | None) -> None:
        """Small code goes along with the settings, both or none. Larger code follows them where the function is new,
        else it goes first: a new handler may be in the new code.
        """
        try:
            there: FunctionInfo | None = self.info()
        except NotFound:
            there = None
        along = {} if packed is None else in_thread(inline, packed)
        if along or packed is None:
            self._service.call("PUT" if there is None else "PATCH", self._path, body | along, safe=True)
            return
        if there is None:
            self._service.call("PUT", self._path, body, safe=True)
        try:
            self._upload(packed)
        except BaseException:
            if there is None:
                self.remove()
            raise
        if there is not None and body:
            self._service.call("PATCH", self._path, body, safe=True)

    def _upload(self, packed: bytes) -> None:
        headers = "Content-Type: application/zip\r\n"
        asked = query({"requirements": bool(in_thread(requires, packed))})
        response = self._service.open("PUT", f"{self._path}/code{asked}", packed, headers=headers)
        response.read()

    # ---- invoking

    def invoke(self, event: Any = None) -> Any:
        """Its result for an event, both as JSON. Raises RemoteError (it failed), Timeout, NotFound, Busy."""
        return (self.call(msgspec.json.encode(event))).value()

    def call(self, body: bytes = b"", *, logs: bool = False, headers: Mapping[str, str] | None = None) -> Invocation:
        """One invocation with bytes as they are. A failure of the function is not raised but told in `error`.

        logs: bring the end of what it printed along. Raises NotFound, Busy, ConnectionLost.
        """
        asked = query({"qualifier": self.qualifier or None, "logs": "tail" if logs else None})
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        response = self._service.open("POST", f"{self._path}/invoke{asked}", body, headers=_JSON + more, safe=False)
        return answered(response, response.read())

    def stream(self, event: Any = None) -> Iterator[bytes]:
        """Its answer in pieces, as it yields them. Leaving early leaves the function to itself.

        Raises RemoteError, Timeout (it failed before the first piece), ConnectionLost (later), NotFound, Busy.
        """
        asked = query({"qualifier": self.qualifier or None, "stream": True})
        body = msgspec.json.encode(event)
        response = self._service.open("POST", f"{self._path}/invoke{asked}", body, headers=_JSON, safe=False)
        if error := response.headers.get("joey-function-error", ""):
            raise failure(error, response.read())
        try:
            yield from response.pieces()
        except ConnectionLost:
            text = "the answer ended in the middle: the function failed (its logs say how), or the engine did"
            raise ConnectionLost("", text) from None

    def spawn(self, event: Any = None) -> Task:
        """Invoke it without waiting: the engine keeps the event on disk, and tries again if it fails."""
        asked = query({"qualifier": self.qualifier or None, "mode": "async"})
        body = msgspec.json.encode(event)
        response = self._service.open("POST", f"{self._path}/invoke{asked}", body, headers=_JSON, safe=False)
        response.read()
        return Task(response.headers["joey-request-id"], **self._where)

    # ---- looking and changing

    def logs(self, *, follow: bool = False, since: float | None = None) -> Iterator[tuple[str, str]]:
        """What its instances have printed, the oldest first: ("stdout" or "stderr", text).

        follow: go on with what comes. since: seconds since the epoch. Raises NotFound.
        """
        response = self._service.open("GET", f"{self._path}/logs{query({'follow': follow, 'since': since})}")
        for line in response.lines():
            piece = msgspec.json.decode(line)
            yield ("stderr" if piece["stream"] == 2 else "stdout"), piece["text"]

    def info(self) -> FunctionInfo:
        """What it is (`spec`, `revision`, `versions`, `aliases`, …) and how it does (`figures`). Raises NotFound."""
        found: FunctionInfo = self._service.call("GET", self._path, kind=FunctionInfo)
        return found

    def publish(self, description: str = "") -> str:
        """Keep what it is now as a version that never changes; its number."""
        found = self._service.call("POST", f"{self._path}/versions", {"description": description}, dict[str, Any])
        return str(found["version"])

    def versions(self) -> Sequence[str]:
        """Those that were published, oldest first."""
        return (self.info()).versions

    def alias(self, name: str, version: str, weights: Mapping[str, float] | None = None) -> None:
        """Give a version another name, or change whose it is. weights: {another version: its share of invocations}."""
        body = {"version": version, "weights": dict(weights or {})}
        self._service.call("PUT", f"{self._path}/aliases/{quote(name)}", body, safe=True)

    def scale(
        self,
        *,
        reserved: int | None = _UNSET,
        provisioned: int = _UNSET,
        max_instances: int | None = _UNSET,
        keep_alive: float | None = _UNSET,
    ) -> None:
        """How many instances there may be (`max_instances`), are kept ready (`provisioned`), are its own (`reserved`),
        and for how many seconds one that is idle stays (`keep_alive`, None: as it has learned). What is not given
        stays.
        """
        given = {
            "reserved": reserved,
            "provisioned": provisioned,
            "max_instances": max_instances,
            "keep_alive": keep_alive,
        }
        body = {name: value for name, value in given.items() if value is not _UNSET}
        self._service.call("PUT", f"{self._path}/scaling", body, safe=True)

    def instances(self) -> Sequence[InstanceInfo]:
        """Those that run."""
        found: Sequence[InstanceInfo] = self._service.call(
            "GET", f"{self._path}/instances", kind=tuple[InstanceInfo, ...]
        )
        return found

    def stop_instance(self, id: str) -> bool:
        """End one; another takes its place if there is need. False if it was gone."""
        try:
            self._service.call("DELETE", f"{self._path}/instances/{quote(id)}")
        except NotFound:
            return False
        return True

    def remove(self) -> bool:
        """It and its versions; False if it was gone."""
        try:
            self._service.call("DELETE", self._path)
        except NotFound:
            return False
        return True


class Task:
    """An invocation that is under way, from `spawn`. id: by which other programs find it."""

    def __init__(self, id: str, *, url: str | None = None, api_key: str | None = None) -> None:
        self.id = id
        self._where: dict[str, Any] = {"url": url, "api_key": api_key}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def info(self) -> TaskInfo:
        """How it is: `state` (queued, running, succeeded, failed, expired, stopped), `attempts`, `error` … Raises
        NotFound.
        """
        path = f"/v1/tasks/{quote(self.id)}"
        found: TaskInfo = service(**self._where).call("GET", path, kind=TaskInfo)
        return found

    def get(self, timeout: float | None = None) -> Any:
        """Its result, once it has ended for good, as JSON. Raises RemoteError, Timeout."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.005
        while True:
            found = self.info()
            if found.state not in _OPEN:
                return result(found)
            if end is not None and time.monotonic() + pause > end:
                raise Timeout("timeout", f"the task has not ended within {timeout} s")
            sleep(pause)
            pause = min(2 * pause, 0.5)

    def stop(self) -> None:
        """Do not try it (again)."""
        service(**self._where).call("POST", f"/v1/tasks/{quote(self.id)}/stop")


_JSON = "Content-Type: application/json\r\n"


def packing(code: Code, requirements: str | None) -> bytes:
    """The archive of a function's code. Raises Invalid."""
    try:
        data = pack(code, requirements)
        requires(data)
        return data
    except (OSError, ValueError) as error:
        raise Invalid("code", f"cannot be packed: {error}") from None


def fields(spec: Mapping[str, Any] | None, **given: Any) -> dict[str, Any]:
    """Fields of a FunctionSpec: those that are given, and `spec`, which wins."""
    return {name: value for name, value in given.items() if value is not None} | dict(spec or {})


def answered(response: Response, body: bytes) -> Invocation:
    """What an answer of …/invoke says."""
    headers = response.headers
    tail = base64.b64decode(headers.get("joey-log-tail", "")).decode("utf-8", "replace")
    return Invocation(
        body, headers.get("joey-function-error", ""), headers.get("joey-request-id", ""),
        headers.get("joey-function-version", ""), tail,
    )  # fmt: skip


def loads(body: bytes) -> Any:
    """JSON, None of nothing. Raises RemoteError for what is none."""
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError):
        raise RemoteError("ValueError", f"the result is no JSON: {body[:200]!r}", "") from None


def failure(type: str, body: bytes) -> Exception:
    """The exception for a failure of a function."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError):
        document = None
    if not isinstance(document, dict):
        document = {}
    message = str(document.get("errorMessage") or body[:2000].decode("utf-8", "replace"))
    type = str(document.get("errorType") or type)
    if type in _LATE:
        return Timeout("timeout", message)
    trace = document.get("stackTrace")
    text = "".join(map(str, trace)) if isinstance(trace, list) else str(trace or "")
    return RemoteError(type, message, text)


def result(task: TaskInfo) -> Any:
    """Of a task that has ended. Raises RemoteError, Timeout."""
    if task.state == "succeeded":
        return loads(task.result or b"")
    raise failure(task.error or task.state, task.result or f"the task is {task.state}".encode())


__all__ = ["Function", "Task", "Invocation"]
