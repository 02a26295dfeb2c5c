# Generated from ../_async/commands.py by joey.client.generate: change that one.
"""`sbx.commands`: programs inside a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import msgspec

from joey.client._sync.handle import LIMIT, CommandHandle, number_of
from joey.client._sync.net import Callback
from joey.client._sync.service import Service, query, quote
from joey.client.bodies import number, process
from joey.client.errors import CommandExit, Conflict, Invalid, NotFound, Timeout
from joey.client.types import Command, CommandResult, Envs, Exit, ProcessInfo

_INPUT_LIMIT = 2 << 20  # larger input goes by a stream


class _Ran(msgspec.Struct):
    """The answer of POST …/run."""

    exit: Exit
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False
    timed_out: bool = False


class Commands:
    """Run, list and signal programs of one sandbox."""

    def __init__(self, service: Service, sandbox: str) -> None:
        self._service, self._sandbox = service, sandbox
        self._base = f"/v1/sandboxes/{sandbox}"

    @overload
    def run(
        self,
        cmd: Command,
        *,
        background: Literal[False] = False,
        cwd: str | None = None,
        user: str | None = None,
        envs: Envs | None = None,
        stdin: str | bytes | bool | None = None,
        timeout: float | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        check: bool = False,
        limit: int = LIMIT,
    ) -> CommandResult: ...

    @overload
    def run(
        self,
        cmd: Command,
        *,
        background: Literal[True],
        cwd: str | None = None,
        user: str | None = None,
        envs: Envs | None = None,
        stdin: str | bytes | bool | None = None,
        timeout: float | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        check: bool = False,
        limit: int = LIMIT,
    ) -> CommandHandle: ...

    def run(
        self,
        cmd: Command,
        *,
        background: bool = False,
        cwd: str | None = None,
        user: str | None = None,
        envs: Envs | None = None,
        stdin: str | bytes | bool | None = None,
        timeout: float | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        check: bool = False,
        limit: int = LIMIT,
    ) -> CommandResult | CommandHandle:
        """Run a command: text by /bin/sh, a list as program and arguments. Its end, or with `background` a handle.

        cwd, user, envs: else as the sandbox has them. stdin: its whole input (background: True keeps it open for
        `send_stdin`). timeout: seconds; then it is killed. on_stdout, on_stderr: called with text as it comes. limit:
        bytes of output that the result keeps (64 MiB).

        With a callback, or in the background, the command is found again when the engine restarts meanwhile; without,
        ConnectionLost says that its result is lost.

        A code other than 0 is no error, unless `check` is given: then CommandExit is raised, with the result.
        Raises Timeout (with the output so far), ProgramNotFound, NotFound, Conflict (it does not run).
        """
        if background:
            for name, value in {"on_stdout": on_stdout, "on_stderr": on_stderr, "timeout": timeout}.items():
                if value is not None:
                    raise Invalid(name, "goes to wait() of a command in the background")
            return self.start(cmd, cwd=cwd, user=user, envs=envs, stdin=stdin)
        data = stdin.encode() if isinstance(stdin, str) else (stdin if isinstance(stdin, bytes) else b"")
        body = process(cmd, cwd, user, envs)
        if on_stdout is None and on_stderr is None and len(data) <= _INPUT_LIMIT:
            result = self._ran(body, data, timeout, limit)
        else:
            result = self._streamed(body, data, timeout, limit, on_stdout, on_stderr)
        if check and result.exit_code != 0:
            raise CommandExit(result)
        return result

    def start(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        user: str | None = None,
        envs: Envs | None = None,
        stdin: str | bytes | bool | None = None,
        tag: str | None = None,
    ) -> CommandHandle:
        """Start a command in the background; `tag` is a name of your own, shown by `list`.

        The handle follows it from its first byte on, as long as no more than 1 MiB of its output waits unread: of more,
        the oldest is dropped, because the command never waits for a reader who may not come.
        """
        body = process(cmd, cwd, user, envs)
        if stdin is not None and stdin is not False:
            body["stdin"] = True
        view = self._service.call("POST", f"{self._base}/processes{query({'tag': tag})}", body, ProcessInfo)
        handle = CommandHandle(self._service, self._sandbox, view.id, view.pid)
        if isinstance(stdin, (str, bytes)):
            handle.send_stdin(stdin)
            handle.close_stdin()
        return handle

    def connect(self, id: str | CommandHandle) -> CommandHandle:
        """Follow a command that runs: what nobody has read yet, then what comes. Raises NotFound."""
        view = self.get(id.id if isinstance(id, CommandHandle) else id)
        return CommandHandle(self._service, self._sandbox, view.id, view.pid)

    def list(self) -> Sequence[ProcessInfo]:
        """Commands that run, and the last that have ended (`exit` is then set)."""
        found: Sequence[ProcessInfo] = self._service.call(
            "GET", f"{self._base}/processes", kind=tuple[ProcessInfo, ...]
        )
        return found

    def get(self, id: str) -> ProcessInfo:
        """One of them. Raises NotFound."""
        view: ProcessInfo = self._service.call("GET", f"{self._base}/processes/{quote(id)}", kind=ProcessInfo)
        return view

    def kill(self, id: str | CommandHandle, signal: int | str = 9) -> bool:
        """Send a command a signal; False if it has ended."""
        name = id.id if isinstance(id, CommandHandle) else id
        path = f"{self._base}/processes/{quote(name)}/signal{query({'signal': number_of(signal)})}"
        try:
            self._service.call("POST", path)
        except (Conflict, NotFound):
            return False
        return True

    def send_stdin(self, id: str | CommandHandle, data: str | bytes, *, close: bool = False) -> None:
        """Feed a command's standard input; `close` ends it after that. Raises NotFound, Conflict."""
        name = id.id if isinstance(id, CommandHandle) else id
        data = data.encode() if isinstance(data, str) else data
        path = f"{self._base}/processes/{quote(name)}/stdin{query({'close': close})}"
        (self._service.open("POST", path, bytes(data))).read()

    # ---- below

    def _ran(self, body: dict[str, Any], data: bytes, timeout: float | None, limit: int) -> CommandResult:
        """In one round trip."""
        seconds = number(timeout, "timeout")
        more = {"input": data or None, "timeout": seconds, "limit": limit if limit != LIMIT else None}
        body = body | {name: value for name, value in more.items() if value is not None}
        ran: _Ran = self._service.call("POST", f"{self._base}/run", body, _Ran)
        if ran.timed_out:
            raise Timeout(
                "timeout", f"the command did not end within {timeout} s", stdout=ran.stdout, stderr=ran.stderr
            )
        return CommandResult(ran.exit, ran.stdout, ran.stderr, ran.truncated)

    def _streamed(
        self,
        body: dict[str, Any],
        data: bytes,
        timeout: float | None,
        limit: int,
        on_stdout: Callback | None,
        on_stderr: Callback | None,
    ) -> CommandResult:
        handle = self.attached(body | ({"stdin": True} if data else {}))
        handle._limit = limit
        done = False
        try:
            if data:
                handle.send_stdin(data)
                handle.close_stdin()
            result = handle.wait(on_stdout, on_stderr, timeout)
            done = True
            return result
        finally:
            if not done:  # a timeout, a callback's exception, Ctrl-C: nobody waits for it any more
                abandon(handle)

    def attached(self, body: dict[str, Any]) -> CommandHandle:
        """A process with this connection as its pipes. If the connection breaks the process goes on, and is found
        again.
        """
        stream, headers = self._service.upgrade(f"{self._base}/processes?keep=true", body)
        return CommandHandle(self._service, self._sandbox, headers.get("joey-process", ""), stream=stream)


def abandon(handle: CommandHandle) -> None:
    """Kill and leave; whether that works out no longer matters."""
    try:
        handle.kill()
    except Exception:
        pass
    handle.disconnect()
