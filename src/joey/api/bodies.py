"""Bodies of requests that are more than one value of the model. They serve the schema and the decoding alike."""

from __future__ import annotations

from msgspec import field

from joey.model.spec import Process, SandboxSpec


class CreateBody(SandboxSpec, frozen=True, kw_only=True):
    """A sandbox to make. Limits that are not mentioned keep their defaults (memory 512 MiB, 1 CPU, 256 processes), null
    takes one away. `seccomp` may also be an OCI or Docker profile.

    start: run it at once. files: absolute path inside -> content (base64), written before the answer.
    """

    start: bool = True
    files: dict[str, bytes] = field(default_factory=dict)


class ExecBody(Process, frozen=True, kw_only=True):
    """A process to run. What is not mentioned is as in the sandbox's main process; `env` is merged over its.

    detach: run it in the background, its output goes nowhere.
    """

    detach: bool = False
