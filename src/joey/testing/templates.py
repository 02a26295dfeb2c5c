"""Templates of the fake engine: warm by declaration; what is forked from one is an ordinary sandbox of the fake."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from joey.model.errors import NotFound
from joey.model.spec import SandboxSpec
from joey.model.template import TemplateSpec, TemplateView
from joey.model.views import Sandbox


class FakeTemplates:
    """The part of `FakeEngine` that has to do with templates."""

    _templates: dict[tuple[str, str], TemplateView]
    run: Any

    async def template_create(self, template: TemplateSpec, *, owner: str = "") -> TemplateView:
        """Nothing is imported."""
        made = TemplateView(
            name=template.name, owner=owner, created=time.time(), spec=template.spec, python=template.python,
            modules=template.modules, state="ready", berths=template.berths,
        )  # fmt: skip
        self._templates[owner, template.name] = made
        return made

    def templates(self, owner: str | None = None) -> Sequence[TemplateView]:
        """All of an owner."""
        return [one for (whose, _), one in sorted(self._templates.items()) if owner in (None, whose)]

    def template(self, name: str, owner: str | None = None) -> TemplateView:
        """One."""
        found = self._templates.get((owner or "", name))
        if found is None:
            raise NotFound("template", f"no template has the name {name!r}", "joey template ls")
        return found

    async def template_remove(self, name: str, *, owner: str | None = None) -> None:
        """It."""
        found = self.template(name, owner)
        del self._templates[found.owner, found.name]

    async def forked(self, template: str, spec: SandboxSpec, *, owner: str = "") -> Sandbox:
        """A sandbox as the template says."""
        found = self.template(template, owner)
        process = msgspec.structs.replace(found.spec.process, env={**found.spec.process.env, **spec.process.env})
        spec = msgspec.structs.replace(
            found.spec, name=spec.name, labels=spec.labels, timeout=spec.timeout, init=True, process=process
        )
        self._templates[found.owner, found.name] = msgspec.structs.replace(found, forks=found.forks + 1)
        made: Sandbox = (await self.run(spec, owner=owner)).sandbox
        return made
