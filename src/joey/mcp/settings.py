"""What a server allows, as the command line of `joey mcp` says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """keep: sandboxes outlive their session. image: where none is asked for. memory (bytes), cpus: of each sandbox, and
    the most that may be asked for. network: whether an agent may ask for one that reaches the internet. max_sandboxes:
    of a session at a time. idle: seconds without a request after which a sandbox ends, None for never. command_seconds:
    the longest a command may take. output: characters of each stream that an answer holds.
    """

    keep: bool = False
    image: str = "host"
    memory: int = 512 << 20
    cpus: float = 1.0
    network: bool = False
    max_sandboxes: int = 10
    idle: float | None = 1800.0
    command_seconds: float = 600.0
    output: int = 30_000
