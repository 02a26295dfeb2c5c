"""The templates there are: what was built for E2B's clients (joey.api.facades.e2b.building), and what a name means.

A template belongs to a key, or to all (the administrator's). A build of it is an image of the store; a tag is the name
of one build. Kept in api.db, a JSON document a row.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import msgspec

from joey.api.facades.e2b.errors import Failure
from joey.api.facades.e2b.kinds import (
    BUILD,
    INTERPRETER,
    INTERPRETER_COMMAND,
    INTERPRETER_NAMES,
    Kind,
    host_interprets,
)
from joey.images import library
from joey.images.library import Library
from joey.model.errors import Conflict, ImageError, Invalid, JoeyError

if TYPE_CHECKING:
    from joey.api.service import Service

BUILTIN = {"base": "host"}
"""Template -> image."""
DEFAULT_TAG = "default"
MOST_TEMPLATES, MOST_BUILDS = 100, 20
"""Templates of one key; builds of one template that are remembered, beside those with a tag."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Tag(msgspec.Struct, kw_only=True):
    """The name of a build. created: when it was given, seconds."""

    build: str
    created: float


class Template(msgspec.Struct, kw_only=True):
    """owner: "" for everybody's. spawned: sandboxes made of it by this engine."""

    id: str
    owner: str
    name: str
    created: float
    updated: float
    tags: dict[str, Tag] = {}
    builds: int = 0
    spawned: int = 0
    last_spawned: float | None = None


class Build(msgspec.Struct, kw_only=True):
    """status: waiting, building, ready or error (then with the reason, and the step it failed in). image: its name."""

    id: str
    template: str
    created: float
    status: str = "waiting"
    reason: str = ""
    step: str = ""
    finished: float | None = None
    image: str = ""
    start: str = ""
    ready: str = ""
    interpreter: bool = False
    user: str = ""
    cwd: str = ""
    cpus: int | None = None
    memory: int | None = None
    tags: list[str] = []


def split(name: str, field: str = "name") -> tuple[str, str]:
    """(name, tag or "") of NAME, NAME:TAG, or with a team's name before it. Raises Invalid."""
    text, _, tag = name.rpartition("/")[2].partition(":")
    for part in (text, tag or DEFAULT_TAG):
        if not _NAME.fullmatch(part):
            raise Invalid(field, f"{name!r} is no name of a template", "letters, digits, and . _ - after the first")
    return text.lower(), tag


_catalogues: WeakKeyDictionary[Service, Catalogue] = WeakKeyDictionary()


def of(service: Service) -> Catalogue:
    """The one of a service."""
    if service not in _catalogues:
        _catalogues[service] = Catalogue(service)
    return _catalogues[service]


class Catalogue:
    """All of it, in memory and on disk."""

    def __init__(self, service: Service) -> None:
        self._database = service.database
        self.templates: dict[str, Template] = {}
        self.builds: dict[str, Build] = {}
        for (document,) in self._database.read("SELECT document FROM e2b_templates"):
            template = msgspec.json.decode(document, type=Template)
            self.templates[template.id] = template
        for (document,) in self._database.read("SELECT document FROM e2b_builds "):
            build = msgspec.json.decode(document, type=Build)
            if build.status in ("waiting", "building"):
                build.status, build.reason = "error", "the engine was restarted meanwhile: build again"
            self.builds[build.id] = build
        self.snapshots: dict[tuple[str, str], Kind] = {}
        for owner, name, document in self._database.read("SELECT owner, name, document FROM e2b_snapshots"):
            self.snapshots[owner, name] = msgspec.json.decode(document, type=Kind)
        self.builds = dict(sorted(self.builds.items(), key=lambda pair: pair[1].created))

    # --- finding -----------------------------------------------------------------------------------------------------

    def of_owner(self, owner: str | None) -> list[Template]:
        """Those of a key; None: of all."""
        return [one for one in self.templates.values() if owner in (None, one.owner)]

    def template(self, ref: str, owner: str) -> Template | None:
        """By id or name, a team's before it or not: the owner's own, or everybody's."""
        team, _, name = ref.lower().rpartition("/")
        if "/" in team or "." in team or ":" in team:
            return None  # an image of a registry
        found = [one for one in self.templates.values() if one.owner in ("", owner) and name in (one.id, one.name)]
        return max(found, key=lambda one: (one.owner == owner, one.created), default=None)

    def own(self, ref: str, owner: str | None) -> Template:
        """To change it. Raises Failure: 404 for none, 403 for everybody's."""
        found = self.template(ref, owner or "")
        if found is None and owner is None and ref in self.templates:
            found = self.templates[ref]
        if found is None:
            raise Failure(404, f"template '{ref}' not found")
        if owner is not None and found.owner != owner:
            raise Failure(403, f"template '{ref}' is the administrator's")
        return found

    def build(self, template: Template, id: str) -> Build:
        found = self.builds.get(id)
        if found is None or found.template != template.id:
            raise Failure(404, f"build '{id}' of template '{template.name}' not found")
        return found

    def tagged(self, template: Template, tag: str) -> Build:
        """Raises Failure (404)."""
        named = template.tags.get(tag or DEFAULT_TAG)
        if named is None or named.build not in self.builds:
            has = ", ".join(sorted(template.tags)) or "none: no build of it is ready"
            raise Failure(404, f"template '{template.name}' has no tag '{tag or DEFAULT_TAG}' (it has {has})")
        return self.builds[named.build]

    def kind(self, ref: str, owner: str, images: Library | None, seen: str) -> Kind:
        """What a sandbox of `ref` is made of. seen: what the key means by it as an image. Raises Failure (404)."""
        if ref in BUILTIN:
            return Kind(key=ref, image=BUILTIN[ref])
        template = self.template(ref.partition(":")[0], owner) or self.template(ref, owner)
        if template is not None:
            build = self.tagged(template, ref.partition(":")[2])
            if build.image != "host" and not (images is not None and here(images, build.image)):
                raise Failure(404, f"template '{ref}' not found: the image of its build was removed, build it again")
            template.spawned += 1
            template.last_spawned = time.time()
            return kind_of(template, build)
        if (made := self.snapshots.get((owner, ref))) is not None and images is not None and here(images, seen):
            return msgspec.structs.replace(made, key=seen, image=seen)
        interpreter = ref.partition(":")[0] in INTERPRETER_NAMES
        name = INTERPRETER_NAMES[0] if interpreter else seen
        if images is not None and here(images, name):
            return Kind(key=name, image=name, interpreter=interpreter, warm=interpreter)
        if interpreter and host_interprets():
            return Kind(key=name, image="host", interpreter=True)
        if interpreter:
            raise Failure(404, f"template '{ref}' not found: make it by `{INTERPRETER_COMMAND}`")
        return Kind(key=name, image=name, warm=False)

    # --- changing ----------------------------------------------------------------------------------------------------

    def request(self, owner: str, name: str, tags: list[str], cpus: int | None, memory: int | None) -> Build:
        """A build of a template of that name, which is made if there is none. Raises Invalid, Conflict."""
        name, tag = split(name)
        wanted = list(dict.fromkeys([*([tag] if tag else []), *tags])) or [DEFAULT_TAG]
        for one in wanted:
            if not _NAME.fullmatch(one):
                raise Invalid("tags", f"{one!r} is no tag")
        if name in BUILTIN:
            raise Conflict("name", f"{name!r} is a template of Joey's own", "take another name")
        mine = [one for one in self.templates.values() if one.owner == owner]
        template = next((one for one in mine if one.name == name), None)
        if template is None:
            if len(mine) >= MOST_TEMPLATES:
                raise Conflict("name", f"this key has {MOST_TEMPLATES} templates", "delete some")
            now = time.time()
            template = Template(id=uuid.uuid4().hex[:20], owner=owner, name=name, created=now, updated=now)
        build = Build(
            id=str(uuid.uuid4()), template=template.id, created=time.time(), tags=wanted, cpus=cpus, memory=memory
        )
        template.builds += 1
        self.templates[template.id], self.builds[build.id] = template, build
        self.save(template)
        self.save(build)
        return build

    def interpret(self, image: str) -> None:
        """The administrator says which image the code interpreter runs in."""
        name, now = INTERPRETER_NAMES[0], time.time()
        if (old := self.templates.get(name)) is not None:
            self.remove(old)
        build = Build(
            id=str(uuid.uuid4()), template=name, created=now, finished=now, status="ready", image=image,
            interpreter=True, tags=[DEFAULT_TAG],
        )  # fmt: skip
        template = Template(id=name, owner="", name=name, created=now, updated=now, builds=1)
        template.tags[DEFAULT_TAG] = Tag(build=build.id, created=now)
        self.templates[name], self.builds[build.id] = template, build
        self.save(template)
        self.save(build)

    def snapshotted(self, name: str, owner: str, labels: Mapping[str, str]) -> None:
        """Sandboxes of a snapshot begin with what the one with these labels began with. Without labels: it is gone."""
        build = self.builds.get(labels.get(BUILD, ""))
        if build is not None or INTERPRETER in labels:
            template = self.templates.get(build.template) if build is not None else None
            kind = kind_of(template, build) if template and build else Kind(key=name, image=name, interpreter=True)
            kind = self.snapshots[owner, name] = msgspec.structs.replace(kind, warm=False)
            sql = "INSERT OR REPLACE INTO e2b_snapshots (owner, name, document) VALUES (?, ?, ?)"
            self._database.write(sql, owner, name, msgspec.json.encode(kind))
        elif self.snapshots.pop((owner, name), None) is not None:
            self._database.write("DELETE FROM e2b_snapshots WHERE owner = ? AND name = ?", owner, name)

    def finished(self, build: Build) -> None:
        """A build is ready, so its tags are its own now."""
        template = self.templates[build.template]
        now = build.finished = template.updated = time.time()
        build.status = "ready"
        for tag in build.tags:
            template.tags[tag] = Tag(build=build.id, created=now)
        self.save(template)
        self.save(build)
        self.forget_old(template)

    def forget_old(self, template: Template) -> None:
        """Forget builds that have no tag, but for the newest ones."""
        named = {tag.build for tag in template.tags.values()}
        others = [
            one for one in self.builds.values()
            if one.template == template.id and one.id not in named and one.status not in ("waiting", "building")
        ]  # fmt: skip
        gone = others[:-MOST_BUILDS] if len(others) > MOST_BUILDS else []
        for build in gone:
            del self.builds[build.id]
            self._database.write("DELETE FROM e2b_builds WHERE id = ?", build.id)

    def remove(self, template: Template) -> None:
        """It and its builds."""
        builds = [one for one in self.builds.values() if one.template == template.id]
        for build in builds:
            del self.builds[build.id]
        del self.templates[template.id]
        self._database.write("DELETE FROM e2b_builds WHERE template = ?", template.id)
        self._database.write("DELETE FROM e2b_templates WHERE id = ?", template.id)

    def save(self, one: Template | Build) -> None:
        document = msgspec.json.encode(one)
        if isinstance(one, Template):
            self._database.write("INSERT OR REPLACE INTO e2b_templates (id, document) VALUES (?, ?)", one.id, document)
            return
        sql = "INSERT OR REPLACE INTO e2b_builds (id, template, document) VALUES (?, ?, ?)"
        self._database.write(sql, one.id, one.template, document)


def kind_of(template: Template, build: Build) -> Kind:
    return Kind(
        key=template.id, image=build.image, start=build.start, ready=build.ready, interpreter=build.interpreter,
        cpus=build.cpus, memory=build.memory, user=build.user, cwd=build.cwd,
        build="" if build.image == "host" else build.id,
    )  # fmt: skip


def images_of(service: Service) -> Library | None:
    """None for an engine without any (a fake)."""
    instance = getattr(service.engine, "instance", None)
    return None if instance is None else library.of(instance)


def here(images: Library, name: str) -> bool:
    if name == "host":
        return True
    if not images.exists:
        return False
    try:
        images.store.find(name)
    except (ImageError, Invalid, Conflict):
        return False
    return True


def not_found(ref: str, error: JoeyError) -> Failure:
    """Of an image that is not here and could not be pulled."""
    return Failure(404, f"template '{ref}' not found: no template of this name was built, and as an image: {error}")
