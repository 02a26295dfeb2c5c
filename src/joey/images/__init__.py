"""Images: from what the user names to directories that can be mounted. `resolve` is the only door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joey.model.errors import ImageError, Invalid

if TYPE_CHECKING:
    from joey.host.instance import Instance
    from joey.model.image import Image
    from joey.model.spec import SandboxSpec

_host: dict[str, Image] = {}


def resolve(instance: Instance, spec: SandboxSpec) -> Image:
    """The image a sandbox is to run on. The first call for `host` writes its skeleton (tens of milliseconds).

    Raises Invalid unless exactly one of image and rootfs is given, ImageError naming the field if it cannot be used,
    HostFailed and its kin if the engine could not prepare it.
    """
    if bool(spec.image) == bool(spec.rootfs):
        raise Invalid("image", "give either an image or a rootfs" + (", not both" if spec.image else ""))
    if spec.rootfs:
        from joey.images import rootfs

        return rootfs.prepare(spec.rootfs, instance.home)
    if spec.image != "host":
        raise ImageError(
            "image", f"unknown image {spec.image!r}", "the image there is: host; or give a rootfs directory"
        )
    return _host_image(instance)


def _host_image(instance: Instance) -> Image:
    """Made once in the life of an engine: what an administrator changes in /etc shows after its restart."""
    from joey.host import python
    from joey.images import host

    key = str(instance.images)
    if key not in _host:
        _host[key] = host.prepare(instance, python.usable()[0])
    return _host[key]
