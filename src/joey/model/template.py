"""Templates: a warm process from which sandboxes are forked, what one is, and what is told of it. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import field

from joey.model.errors import Invalid
from joey.model.spec import SandboxSpec
from joey.model.value import Value

MOST_BERTHS = 1000
MOST_MODULES, MOST_INIT = 256, 64 << 10
State = Literal["cold", "warming", "ready", "unsafe", "failed"]


class TemplateSpec(Value, frozen=True, kw_only=True):
    """An image and a Python that has imported what is needed.

    spec      what is forked from it is a sandbox of this: image, resources, network, env, mounts …; nothing runs in it
              but joey-init and the child
    python    the interpreter inside, a path or a name
    modules   (n,) imported in order
    init      Python source, run after the imports
    code      absolute directory of the host, shown read-only as /code and searched for modules; "" for none
    berths    how many sandboxes are prepared ahead
    """

    name: str
    spec: SandboxSpec = field(default_factory=SandboxSpec)
    python: str = "python3"
    modules: tuple[str, ...] = ()
    init: str = ""
    code: str = ""
    berths: int = 2

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum() and self.name[0].isalnum() and len(self.name) <= 128):
            remedy = "letters, digits, and _ . - after the first"
            raise Invalid("name", f"{self.name!r} is not a name for a template", remedy)
        if not 0 <= self.berths <= MOST_BERTHS:
            raise Invalid("berths", f"is a whole number from 0 to {MOST_BERTHS}")
        if self.spec.name:
            raise Invalid("spec.name", "sandboxes of a template are named when they are forked")
        if not self.python:
            raise Invalid("python", "names no program")
        if len(self.modules) > MOST_MODULES:
            raise Invalid("modules", f"are more than {MOST_MODULES}")
        for number, name in enumerate(self.modules):
            if not all(part.isidentifier() for part in name.split(".")):
                raise Invalid(f"modules[{number}]", f"{name!r} is not the name of a module")
        if len(self.init) > MOST_INIT:
            raise Invalid("init", f"is longer than {MOST_INIT} characters", "put it into a module of the code")
        if self.code and not self.code.startswith("/"):
            raise Invalid("code", f"{self.code!r} is not an absolute path")

    def of(self, spec: SandboxSpec) -> TemplateSpec:
        """The same for other sandboxes."""
        return msgspec.structs.replace(self, spec=spec)


class TemplateView(msgspec.Struct, frozen=True, kw_only=True):
    """How one does. reason: why it is not ready. memory: bytes its warm process and what belongs to it take. forks:
    since the engine started; plain: sandboxes that were started without it meanwhile. berths: ready. pid: of the warm
    process, 0 without one. instances: what runs that was forked from it.
    """

    name: str
    owner: str
    created: float
    spec: SandboxSpec
    python: str
    modules: tuple[str, ...]
    state: State
    reason: str = ""
    memory: int = 0
    forks: int = 0
    plain: int = 0
    berths: int = 0
    instances: int = 0
    pid: int = 0
    seconds: float = 0.0
