"""What the interface of an engine says of templates: `joey.engine.templates` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from joey.model.spec import SandboxSpec
from joey.model.template import TemplateSpec, TemplateView
from joey.model.views import Sandbox

if TYPE_CHECKING:
    from joey.engine.channels import Channel
    from joey.engine.templates import Templates


class WithTemplates:
    """Templates are an owner's own: nobody else forks from them, or hears of them."""

    forks: Templates

    async def template_create(self, template: TemplateSpec, *, owner: str = "") -> TemplateView:
        """Make a template, or make the one of that name anew; returns when it is warm, or cannot be (`state`). Raises
        JoeyError naming the field, TooMany.
        """
        return self.forks.view(await self.forks.create(template, owner))

    def templates(self, owner: str | None = None) -> Sequence[TemplateView]:
        """All of an owner's, in order of name."""
        return [self.forks.view(one) for one in self.forks.list(owner)]

    def template(self, name: str, owner: str | None = None) -> TemplateView:
        """Raises NotFound."""
        return self.forks.view(self.forks.find(name, owner))

    async def template_remove(self, name: str, *, owner: str | None = None) -> None:
        """Remove one; sandboxes forked from it go on. Raises NotFound."""
        await self.forks.remove(name, owner)

    async def fork(
        self, template: str, owner: str = "", *, env: dict[str, str] | None = None,
        labels: dict[str, str] | None = None, name: str = "", main: bool = True, durable: bool = False,
    ) -> tuple[Sandbox, Channel]:  # fmt: skip
        """A new sandbox with a child of the template's warm process in it, which serves its channel; where the template
        cannot be forked (`unsafe`, `failed`), with an interpreter started in it. main: it ends with that process.
        durable: return once it is on disk. Raises JoeyError, nothing is left then.
        """
        return await self.forks.fork(
            template, owner, env=env, labels=labels, called=name, main=main, durable=durable
        )  # fmt: skip

    async def forked(self, template: str, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """See the interface. The warm child waits in it (`forks.waiting`) as long as this engine and the sandbox live.
        Raises JoeyError, nothing is left then.
        """
        later = {name: getattr(spec, name) for name in ("timeout", "idle_timeout", "on_timeout")}
        sandbox, channel = await self.forks.fork(
            template, owner, env=spec.process.env, labels=spec.labels, called=spec.name, main=False, durable=True,
            later=later,
        )  # fmt: skip
        self.forks.keep(sandbox.id, channel)
        return sandbox
