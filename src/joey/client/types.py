"""What the SDK returns. Most are the engine's own views (joey.model.views): frozen, with typed fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from joey.model.function_views import FunctionView, InstanceView, TaskView
from joey.model.snapshots import FileChange, Snapshot
from joey.model.spec import HealthCheck, Mount, Process, Restart, SandboxSpec, Tmpfs
from joey.model.views import Detail, Event, Exit, FileEvent, FileInfo, Node, Pool, PortHost, ProcessView, Sandbox, Stats
from joey.model.volumes import Volume

SandboxInfo = Sandbox
"""One row of `Sandbox.list()`: id, name, image, state, created, labels (the metadata), exit, deadline, health …"""
ProcessInfo = ProcessView
PoolInfo = Pool
"""What a warm pool is and how it does: name, size, ready, starting, handed_out, missed, error, spec."""
SandboxMetrics = Stats
State = str

Command = str | Sequence[str]
"""Text is run by the sandbox's /bin/sh; a list is a program and its arguments, run as it is."""
Envs = Mapping[str, str]
Size = int | str
"""Bytes, or text such as "512m" or "2g" (powers of 1024)."""
Volumes = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""{path inside: name of a volume or a Volume}, {host path: path inside}, "…:ro" at the end of the latter for read-only;
or VolumeMount and Mount values as dicts."""
VolumeInfo = Volume
FunctionInfo = FunctionView
InstanceInfo = InstanceView
TaskInfo = TaskView


class CommandResult:
    """How a command ended.

    exit_code: its status, or 128 + `signal`. oom: it was killed for lack of memory. error: why it never started.
    truncated: it printed more than was kept. stdout, stderr: as text; `stdout_bytes`, `stderr_bytes`: as they came.
    """

    __slots__ = ("error", "exit_code", "oom", "signal", "stderr_bytes", "stdout_bytes", "truncated")

    def __init__(self, end: Exit, stdout: bytes = b"", stderr: bytes = b"", truncated: bool = False) -> None:
        self.exit_code: int = end.code
        self.signal: int = end.signal
        self.oom: bool = end.oom
        self.error: str = end.error
        self.stdout_bytes: bytes = stdout
        self.stderr_bytes: bytes = stderr
        self.truncated: bool = truncated

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; what is not becomes U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8; what is not becomes U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"CommandResult(exit_code={self.exit_code}, stdout={self.stdout!r}, stderr={self.stderr!r})"


__all__ = [
    "Command", "CommandResult", "Detail", "Envs", "Event", "Exit", "FileEvent", "FileInfo", "FunctionInfo",
    "HealthCheck", "InstanceInfo", "Mount",
    "Node", "PoolInfo", "PortHost", "Process", "ProcessInfo", "Restart", "SandboxInfo", "SandboxMetrics", "SandboxSpec",
    "Size",
    "FileChange", "Snapshot", "State", "TaskInfo", "Tmpfs", "VolumeInfo", "Volumes",
]  # fmt: skip
