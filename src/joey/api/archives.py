"""/v1/images: load, save, import, export, diff: images from files and into files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from joey.api import params, transfer
from joey.api.images import ImageView, library_of, seen
from joey.api.light import web
from joey.api.routes import TAR, Call, Route
from joey.api.transfer import Incoming, cut_off
from joey.images import archive, archive_write, diff, index, layers, pack
from joey.images.library import Library
from joey.images.store import StoredImage
from joey.model.errors import ImageError
from joey.model.image import Image, Layer

T = TypeVar("T")
_PIECE = 1 << 18


async def load_images(call: Call) -> Any:
    """Every image of an archive: docker-archive or OCI layout, plain or compressed."""
    name = call.query.get("name", "")
    platform = index.parse_platform(call.query["platform"]) if call.query.get("platform") else None
    own = library_of(call)
    found = await received(call, own, lambda file: archive.load(own.store, file, name=name, platform=platform))
    return [own.summary(one) for one in found]


async def import_image(call: Call) -> Any:
    """An image of one layer from the archive of a root file system, plain or compressed."""
    query = call.query
    settings = Image(
        name=query["name"], layers=(Layer("x", "/"),), argv=tuple(query.get("cmd", ())), cwd=query.get("cwd", ""),
        env=dict(text.partition("=")[::2] for text in query.get("env", ())), user=query.get("user", ""),
    )  # fmt: skip
    platform = index.parse_platform(query["platform"]) if query.get("platform") else None
    own = library_of(call)
    created, comment = query.get("created", "1970-01-01T00:00:00Z"), query.get("comment", "imported")

    def work(file: BinaryIO) -> StoredImage:
        return archive.import_(
            own.store, file, query["name"], settings=settings, platform=platform, created=created, comment=comment
        )

    return own.summary(await received(call, own, work))


async def received(call: Incoming, own: Library, work: Callable[[BinaryIO], T]) -> T:
    """What `work` makes of the archive in the body, as `transfer.received`: the images are others then."""
    done = await transfer.received(call, own.store.root, "archive", work)
    own.changed()
    return done


async def save_images(call: Call) -> web.StreamResponse:
    """An archive of images that other tools load."""
    own = library_of(call)
    names = [seen(call, name) for name in call.query["name"]]
    return await send(call, archive_write.save(own.store, names, call.query.get("format", "docker")))


async def export_image(call: Call) -> web.StreamResponse:
    """The root file system of an image, all its layers in one archive."""
    own = library_of(call)
    return await send_tree(call, own, own.store.find(seen(call, call.path["name"])))


async def send_tree(call: Call, own: Library, image: StoredImage) -> web.StreamResponse:
    """All files of an image as the answer."""
    root = await asyncio.to_thread(tree, own, image)
    with own.store.busy(image.digest, *image.diff_ids):
        return await send(call, pack.pack(root))


async def diff_images(call: Call) -> Any:
    """What is added (A), changed (C) and deleted (D) in an image against another one."""
    own = library_of(call)
    old, new = (own.store.find(seen(call, name)) for name in (call.query["from"], call.path["name"]))

    def work() -> list[diff.Change]:
        with own.store.busy(*old.diff_ids, *new.diff_ids):
            return list(diff.compare(tree(own, old), tree(own, new)))

    return await asyncio.to_thread(work)


def tree(own: Library, image: StoredImage) -> Path:
    """The one directory of an image."""
    layers.prepare(own.store, image, whole=True)
    found = layers.stack(own.store, image)
    if len(found) != 1:
        raise ImageError("image", f"the layers of {image.digest[7:19]} cannot be merged", "see the engine's log")
    return Path(found[0].source)


async def send(call: Incoming, pieces: Iterator[bytes]) -> web.StreamResponse:
    """An archive as the answer."""
    first = await asyncio.to_thread(some, pieces)  # what is wrong is said before the answer begins
    response = web.StreamResponse(headers={"Content-Type": TAR})
    await response.prepare(call.request)
    with cut_off(call.request):
        while first:
            await response.write(first)
            first = await asyncio.to_thread(some, pieces)
    await response.write_eof()
    return response


def some(pieces: Iterator[bytes]) -> bytes:
    """The next of them, as one; b"" when there are no more."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _PIECE:
            break
    return bytes(held)


_NAME = params.text("name", "The image's name", empty=False)
_PLATFORM = params.text("platform", "Such as linux/arm64; this machine's by default")
_SETTINGS = (
    _NAME.needed(), _PLATFORM, params.text("cmd", "Words of the default command").times(),
    params.text("env", "NAME=VALUE").times(), params.text("cwd", "Working directory"), params.text("user", "User"),
    params.text("created", "RFC 3339"), params.text("comment", "Where it comes from"),
)  # fmt: skip

ROUTES = (
    Route(
        "POST", "/v1/images/load", load_images, "Load images from an archive", tag="images", body=bytes, body_media=TAR,
        query=(params.text("name", "For one image that does not say its name"), _PLATFORM),
        answer=tuple[ImageView, ...], stream=True, admin=True,
    ),
    Route(
        "POST", "/v1/images/import", import_image, "Make an image of a root file system", tag="images", body=bytes,
        body_media=TAR, query=_SETTINGS, answer=ImageView, stream=True, admin=True,
    ),
    Route(
        "GET", "/v1/images/save", save_images, "Save images to an archive", tag="images", answer=bytes, media=TAR,
        query=(_NAME.times().needed(), params.choice("format", "Whose format", archive_write.FORMATS)), stream=True,
    ),
    Route(
        "GET", "/v1/images/{name}/export", export_image, "The root file system of an image", tag="images",
        answer=bytes, media=TAR, stream=True,
    ),
    Route(
        "GET", "/v1/images/{name}/diff", diff_images, "What an image changes against another", tag="images",
        query=(params.text("from", "The other image", empty=False).needed(),), answer=tuple[diff.Change, ...],
        stream=True,
    ),
)  # fmt: skip
