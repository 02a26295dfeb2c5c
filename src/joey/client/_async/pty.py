"""`sbx.pty`: terminals inside a sandbox."""

from __future__ import annotations

import time

from joey.client._async.commands import Commands
from joey.client._async.handle import CommandHandle
from joey.client._async.net import Callback
from joey.client._async.service import Service
from joey.client.bodies import process
from joey.client.types import Command, CommandResult, Envs

_SHELL = "if command -v bash >/dev/null 2>&1; then exec bash -i; else exec sh -i; fi"


class PtyHandle(CommandHandle):
    """A command on a terminal. `wait` calls `on_data` with bytes as they come."""

    _on_data: Callback | None = None

    async def wait(
        self,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Its end; what it prints meanwhile goes to `on_data`, as bytes, and into the result's stdout."""
        return await super().wait(on_stdout or self._on_data, on_stderr, timeout, check)

    async def send_input(self, data: str | bytes) -> None:
        """Type something."""
        await self.send_stdin(data)

    async def read(self, timeout: float | None = None) -> bytes:
        """What it printed since, at least a byte; b"" once it has ended. Raises Timeout."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._end is None:
            if found := await self._next(end):
                return b"".join(data for _, data in found)
        return b""


class Pty:
    """Terminals of one sandbox."""

    def __init__(self, service: Service, sandbox: str) -> None:
        self._service, self._sandbox = service, sandbox
        self._commands = Commands(service, sandbox)

    async def create(
        self,
        cols: int = 80,
        rows: int = 24,
        on_data: Callback | None = None,
        *,
        cmd: Command = _SHELL,
        cwd: str | None = None,
        user: str | None = None,
        envs: Envs | None = None,
    ) -> PtyHandle:
        """Start `cmd` (an interactive shell) on a terminal of that size. `on_data` gets bytes while somebody waits."""
        environment = {"TERM": "xterm-256color", **(envs or {})}
        body = process(cmd, cwd, user, environment, tty=True, stdin=True, rows=rows, cols=cols)
        stream, headers = await self._service.upgrade(f"/v1/sandboxes/{self._sandbox}/processes?keep=true", body)
        handle = PtyHandle(self._service, self._sandbox, headers.get("joey-process", ""), stream=stream)
        handle._on_data, handle._raw = on_data, True
        return handle

    async def connect(self, id: str, on_data: Callback | None = None) -> PtyHandle:
        """Take a running terminal over again. Raises NotFound."""
        view = await self._commands.get(id)
        handle = PtyHandle(self._service, self._sandbox, view.id, view.pid)
        handle._on_data, handle._raw = on_data, True
        return handle

    async def send_input(self, id: str | CommandHandle, data: str | bytes) -> None:
        """Type something."""
        if isinstance(id, CommandHandle):
            await id.send_stdin(data)
        else:
            await self._commands.send_stdin(id, data)

    async def resize(self, id: str | CommandHandle, cols: int, rows: int) -> None:
        """Set a terminal's size."""
        handle = id if isinstance(id, CommandHandle) else CommandHandle(self._service, self._sandbox, id)
        await handle.resize(rows, cols)

    async def kill(self, id: str | CommandHandle) -> bool:
        """Kill what runs on it; False if it has ended."""
        if isinstance(id, CommandHandle):
            return await id.kill()
        return await self._commands.kill(id)
