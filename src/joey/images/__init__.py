"""Images: from what the user names to directories that can be mounted.

`ensure` (may take a while: it pulls) and then `resolve` (takes nothing) are the doors for the engine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from joey.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joey.host.instance import Instance
    from joey.model.image import Image
    from joey.model.spec import SandboxSpec

_host: dict[str, Image] = {}
_making = threading.Lock()


def local(spec: SandboxSpec) -> bool:
    """Whether the image is one that needs no store: this machine's own system, or a directory."""
    return bool(spec.rootfs) or spec.image in ("host", "")


async def ensure(instance: Instance, spec: SandboxSpec, owner: str) -> None:
    """Have the image of `spec`, pulled if need be, and hold it for the sandbox `owner` until `release`.

    Not to be called where `local(spec)`. Raises Invalid, ImageError, RegistryFailed, Exhausted.
    """
    from joey.images import index, library

    platform = index.parse_platform(spec.platform) if spec.platform else None
    await library.of(instance).ensure(spec.image, owner, spec.pull, platform)


def release(instance: Instance, owner: str) -> None:
    """The sandbox is gone, or was never made. Nothing if it held nothing."""
    from joey.images import library

    library.of(instance).release(owner)


def recover(instance: Instance, owners: Iterable[tuple[str, str]]) -> None:
    """At the engine's start: (id, image) of every sandbox whose image is in the store. Raises Broken, Exhausted."""
    from joey.images import library

    library.of(instance).recover(owners)


def usage(instance: Instance) -> tuple[int, int]:
    """(images, bytes on disk): those of the store, and `host`. Blocks."""
    from joey.host import trees
    from joey.images import library, store_gc

    own = [path for path in instance.images.glob("host-*") if path.is_dir()]
    count, size = len(own), sum(trees.disk_usage(path) or 0 for path in own)
    if library.of(instance).exists:
        found = store_gc.usage(library.of(instance).store)
        count, size = count + found["images"], size + found["layers"] + found["blobs"]
    return count, size


async def close(instance: Instance) -> None:
    """End pulls and close the store."""
    from joey.images import library

    await library.close(instance)


def resolve(instance: Instance, spec: SandboxSpec, owner: str = "") -> Image:
    """The image a sandbox is to run on. The first call for `host` writes its skeleton (tens of milliseconds).

    owner: a sandbox keeps the image that `ensure` got for it, wherever its name leads later. Raises Invalid unless
    exactly one of image and rootfs is given, ImageError naming the field if it cannot be used or is not here,
    HostFailed and its kin if the engine could not prepare it.
    """
    if bool(spec.image) == bool(spec.rootfs):
        raise Invalid("image", "give either an image or a rootfs" + (", not both" if spec.image else ""))
    if local(spec) and (spec.pull != "missing" or spec.platform):
        field = "platform" if spec.platform else "pull"
        raise Invalid(field, "only images of registries are pulled, and come for several platforms", "leave it out")
    if spec.rootfs:
        from joey.images import rootfs

        return rootfs.prepare(spec.rootfs, instance.home)
    if spec.image != "host":
        from joey.images import library

        return library.of(instance).image(spec.image, owner)
    return host_image(instance)


def host_image(instance: Instance) -> Image:
    """Made once in the life of an engine: what an administrator changes in /etc shows after its restart."""
    from joey.host import python
    from joey.images import host

    key = str(instance.images)
    if key not in _host:
        with _making:  # an engine that takes sandboxes over has a thread make it meanwhile
            if key not in _host:
                _host[key] = host.prepare(instance, python.usable()[0])
    return _host[key]
