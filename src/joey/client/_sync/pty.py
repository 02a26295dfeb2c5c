# Generated from ../_async/pty.py by joey.client.generate: change that one.
"""`sbx.pty`: terminals inside a sandbox."""

from __future__ import annotations

import time

from joey.client._sync.commands import Commands
from joey.client._sync.handle import CommandHandle
from joey.client._sync.net import Callback
from joey.client._sync.service import Service
from joey.client.bodies import process
from joey.client.types import Command, CommandResult, Envs

_SHELL = "if command -v bash >/dev/null 2>&1; then exec bash -i; else exec sh -i; fi"


class PtyHandle(CommandHandle):
    """A command on a terminal. `wait` calls `on_data` with bytes as they come."""

    _on_data: Callback | None = None

    def wait(
        self,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Its end; what it prints meanwhile goes to `on_data`, as bytes, and into the result's stdout."""
        return super().wait(on_stdout or self._on_data, on_stderr, timeout, check)

    def send_input(self, data: str | bytes) -> None:
        """Type something."""
        self.send_stdin(data)

    def read(self, timeout: float | None = None) -> bytes:
        """What it printed since, at least a byte; b"" once it has ended. Raises Timeout."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._end is None:
            if found := self._next(end):
                return b"".join(data for _, data in found)
        return b""


class Pty:
    """Terminals of one sandbox."""

    def __init__(self, service: Service, sandbox: str) -> None:
        self._service, self._sandbox = service, sandbox
        self._commands = Commands(service, sandbox)

    def create(
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
        stream, headers = self._service.upgrade(f"/v1/sandboxes/{self._sandbox}/processes?keep=true", body)
        handle = PtyHandle(self._service, self._sandbox, headers.get("joey-process", ""), stream=stream)
        handle._on_data, handle._raw = on_data, True
        return handle

    def connect(self, id: str, on_data: Callback | None = None) -> PtyHandle:
        """Take a running terminal over again. Raises NotFound."""
        view = self._commands.get(id)
        handle = PtyHandle(self._service, self._sandbox, view.id, view.pid)
        handle._on_data, handle._raw = on_data, True
        return handle

    def send_input(self, id: str | CommandHandle, data: str | bytes) -> None:
        """Type something."""
        if isinstance(id, CommandHandle):
            id.send_stdin(data)
        else:
            self._commands.send_stdin(id, data)

    def resize(self, id: str | CommandHandle, cols: int, rows: int) -> None:
        """Set a terminal's size."""
        handle = id if isinstance(id, CommandHandle) else CommandHandle(self._service, self._sandbox, id)
        handle.resize(rows, cols)

    def kill(self, id: str | CommandHandle) -> bool:
        """Kill what runs on it; False if it has ended."""
        if isinstance(id, CommandHandle):
            return id.kill()
        return self._commands.kill(id)
