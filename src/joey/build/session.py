"""A build as a request: the context's archive in, an image out, and nothing left of the work in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from msgspec import field

from joey.build import dockerfile, planner
from joey.build.dockerfile import Dockerfile
from joey.build.executor import build
from joey.build.planner import Plan
from joey.build.trees import Tree, inside, leave_out
from joey.build.workshop import LABEL, SECRET, Options, Workshop, forget_steps
from joey.engine.interface import Engine, Filter
from joey.host import trees
from joey.images import index, store_gc
from joey.images.library import Library
from joey.images.store import Store, StoredImage
from joey.images.unpack import Limits, unpack
from joey.model import codec, ignore
from joey.model.errors import Invalid, from_os
from joey.model.value import Value

_PREFIX = ".build-"
EXTRAS = ".joey-build.json"
"""A member of the context's archive that is no file of the context: what has no place in a request's query."""


class Extras(Value, frozen=True, kw_only=True):
    """dockerfile: the text, when it is not a file of the context. secrets: id -> content."""

    dockerfile: bytes | None = None
    secrets: dict[str, bytes] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def folder(store: Store) -> AsyncIterator[Path]:
    """A directory of a build's own, gone at the end."""
    path = store.root / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
        yield path
    except OSError as error:
        raise from_os("make the build's directory", error) from error
    finally:
        await remove(path)


async def tidy(engine: Engine, library: Library) -> None:
    """At the engine's start: remove what builds have left that were under way when an earlier one was killed."""
    left = list(library.instance.images.glob(f"{_PREFIX}*"))
    if not left:
        return
    for one in await engine.list(Filter(all=True, labels={LABEL: None})):
        await engine.remove(one.id, force=True)
    library.flush()
    await asyncio.to_thread(forget_steps, library.store)
    library.changed()
    await asyncio.to_thread(store_gc.sweep, library.store)
    for path in library.instance.scratch.glob(f"{SECRET}*"):
        path.unlink(missing_ok=True)
    for path in left:
        await remove(path)


async def remove(path: Path) -> None:
    """Remove a build's directory; nothing if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        await asyncio.shield(asyncio.to_thread(trees.remove, path))


def sweep(store: Store) -> None:
    """Remove what builds of an engine that was killed have left. Only while there is none."""
    for path in store.root.glob(f"{_PREFIX}*"):
        trees.remove(path)


def receive(archive: BinaryIO, place: Path) -> Extras:
    """Unpack a context into the build's directory; → what came beside it. Blocks. Raises ImageError, Invalid."""
    context = place / "context"
    archive.seek(0, os.SEEK_END)
    if archive.tell():
        archive.seek(0)
        unpack(archive, context, limits=Limits(clamp_ids=True), durable=False)
    else:
        context.mkdir()
    try:
        fd = os.open(context / EXTRAS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Extras()
    with os.fdopen(fd, "rb") as file:
        data = file.read(64 << 20)
    (context / EXTRAS).unlink()
    return codec.decode(Extras, data)


def read(place: Path, name: str, text: bytes | None) -> Dockerfile:
    """The instructions; the context then holds no more what a .dockerignore leaves out. Blocks. Raises Invalid."""
    tree = Tree(place / "context")
    data = _file(tree, name) if text is None else text
    if data is None:
        raise Invalid("file", f"the context has no {name}", "-f FILE names another one")
    shown = name if name not in ("", "-") else "Dockerfile"
    file = dockerfile.parse(data, shown)
    rules = _file(tree, f"{name}.dockerignore") or _file(tree, ".dockerignore")
    if rules:
        try:
            found = ignore.parse(rules.decode("utf-8-sig", "surrogateescape"))
        except ValueError as error:
            raise Invalid("context", str(error)) from None
        try:
            leave_out(tree.root, found)
        except OSError as error:
            raise from_os("leave files out of the context", error) from error
    return file


def _file(tree: Tree, name: str) -> bytes | None:
    try:
        path = tree.real(inside(name))
        if not os.path.isfile(tree.place(path)):
            return None
        with os.fdopen(tree.open(path), "rb") as file:
            return file.read(dockerfile.MAX_BYTES + 1)
    except ValueError as error:
        raise Invalid("file", str(error), "send its text along with the context") from None
    except OSError as error:
        raise from_os(f"read {name}", error) from error


def plan(file: Dockerfile, options: Options) -> Plan:
    """Raises Invalid naming the line, or `platform`."""
    own = str(index.platform_of(os.uname().machine))
    if options.platform and not planner.same_platform(options.platform, own):
        raise Invalid("platform", f"this machine builds for {own}, not for {options.platform}", "leave it out")
    return planner.plan(file, options.arguments, own, options.target)


async def carry_out(shop: Workshop, file: Dockerfile, chosen: Plan) -> StoredImage:
    """Build, then remove what only its steps needed."""
    try:
        return await build(shop, file, chosen)
    finally:
        await asyncio.shield(asyncio.to_thread(store_gc.sweep, shop.store))
