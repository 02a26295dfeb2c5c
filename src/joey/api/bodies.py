"""Bodies of requests that are more than one value of the model. They serve the schema and the decoding alike."""

from __future__ import annotations

from msgspec import field

from joey.model.spec import Process, SandboxSpec
from joey.model.value import Value


class CreateBody(SandboxSpec, frozen=True, kw_only=True):
    """A sandbox to make. Limits that are not mentioned keep their defaults (memory 512 MiB, 1 CPU, 256 processes), null
    takes one away. `seccomp` may also be an OCI or Docker profile.

    start: run it at once. files: absolute path inside -> content (base64), written before the answer. pool: a warm one
    of that pool of yours; what is not mentioned is as in the pool, what cannot be changed on a warm one is refused.
    template: forked from that template of yours, with its warm Python inside; name, labels, env and timeouts are given.
    """

    start: bool = True
    pool: str = ""
    template: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


class PoolBody(Value, frozen=True, kw_only=True):
    """A warm pool: `size` sandboxes of `spec` kept started, at most `max_starting` of them started at a time."""

    spec: SandboxSpec = field(default_factory=SandboxSpec)
    size: int = 8
    max_starting: int = 2


class TemplateBody(Value, frozen=True, kw_only=True):
    """A Python that has imported `modules` and run `init`, to fork sandboxes of `spec` from. code: a directory of the
    host, shown as /code (administrator). berths: how many are prepared ahead.
    """

    spec: SandboxSpec = field(default_factory=SandboxSpec)
    python: str = "python3"
    modules: tuple[str, ...] = ()
    init: str = ""
    code: str = ""
    berths: int = 2


class ExecBody(Process, frozen=True, kw_only=True):
    """A process to run. What is not mentioned is as in the sandbox's main process; `env` is merged over its.

    detach: run it in the background, its output goes nowhere.
    """

    detach: bool = False
