"""Manifests and indexes: what a registry serves under a name. Pure: bytes in, values out.

Understood are the OCI image manifest and index (image-spec 1.1) and Docker's schema 2 manifest and manifest list.
Schema 1, foreign layers, artifacts that are no images, and media types nobody knows are refused by name.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from joey.images.reference import is_digest
from joey.model import codec
from joey.model.errors import ImageError, Invalid

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
OCI_LAYERS = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
"""Compression of a layer -> its media type."""
DOCKER_LAYERS = {
    "none": "application/vnd.docker.image.rootfs.diff.tar",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
LAYERS = frozenset({*OCI_LAYERS.values(), *DOCKER_LAYERS.values()})
MAX_MANIFEST = 4 << 20
"""Bytes: what registries accept at most (distribution-spec, "Pushing Manifests")."""
MAX_CONFIG = 8 << 20
MAX_LAYERS = 127
"""More lower directories than Docker's own limit, and a sign of a broken or hostile manifest."""
_MAX_SIZE = 1 << 44

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "riscv64": ("riscv64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}
_ALSO = {"arm": {"v8": ("v8", "v7", "v6", "v5"), "v7": ("v7", "v6", "v5"), "v6": ("v6", "v5")}}


class Descriptor(msgspec.Struct, frozen=True):
    """A blob: what it is, its digest, how many bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def short(self) -> str:
        """The digest's first 12 digits, for people."""
        return self.digest.partition(":")[2][:12]


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's words."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Manifest(msgspec.Struct, frozen=True):
    """One image: its configuration and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(msgspec.Struct, frozen=True):
    """Images for several platforms."""

    media_type: str
    entries: tuple[tuple[Descriptor, Platform], ...]


def platform_of(machine: str) -> Platform:
    """The platform of a kernel's machine name (uname -m)."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str, field: str = "platform") -> Platform:
    """`linux/arm64/v8`, `linux/amd64`, `arm64`. Raises Invalid naming `field`."""
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(part and part.replace(".", "").replace("-", "").isalnum() for part in parts):
        raise Invalid(field, f"{text!r} is not a platform", "such as linux/amd64 or linux/arm64/v8")
    alias = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
    return Platform(parts[0], alias.get(parts[1], parts[1]), parts[2] if len(parts) == 3 else "")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(data: bytes, media_type: str, name: str) -> Manifest | Index:
    """What `data` is. media_type: of the answer that carried it, "" if there was none. name: for messages.

    Raises ImageError naming the manifest and what is wrong with it.
    """
    where = f"image {name}"
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ImageError(where, f"its manifest is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageError(where, "its manifest is no JSON object")
    stated = value.get("mediaType", "")
    kind = media_type.partition(";")[0].strip()
    kind = stated if isinstance(stated, str) and stated else kind
    if value.get("schemaVersion") == 1 or kind in SCHEMA1:
        raise ImageError(
            where,
            "it is stored in Docker's schema 1, which cannot be verified and is not supported",
            "push it again with a current tool",
        )
    if value.get("schemaVersion") != 2:
        raise ImageError(where, f"its manifest has schemaVersion {value.get('schemaVersion')!r}, not 2")
    if kind not in (*MANIFESTS, *INDEXES):
        if "manifests" in value and not stated:
            kind = OCI_INDEX
        elif "layers" in value and "config" in value and not stated:
            kind = OCI_MANIFEST
        else:
            raise ImageError(where, f"its manifest is of media type {kind!r}, which is not supported")
    if ("manifests" in value) == ("layers" in value) or ("manifests" in value) != (kind in INDEXES):
        raise ImageError(where, f"its manifest says {kind} and has the fields of something else")
    return _index(value, kind, where) if kind in INDEXES else _manifest(value, kind, where)


def _manifest(value: dict[str, Any], kind: str, where: str) -> Manifest:
    config = descriptor(value.get("config"), f"{where} config")
    if config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        raise ImageError(where, f"its config is {config.media_type!r}: it is an artifact, not an image to run")
    if config.size > MAX_CONFIG:
        raise ImageError(where, f"its config of {config.size} bytes is larger than {MAX_CONFIG}")
    found = value.get("layers")
    if not isinstance(found, list):
        raise ImageError(where, "its layers are no list")
    if len(found) > MAX_LAYERS:
        raise ImageError(where, f"it has {len(found)} layers; {MAX_LAYERS} is the most")
    layers = []
    for number, item in enumerate(found):
        layer = descriptor(item, f"{where} layers[{number}]")
        check_layer(layer, f"{where} layers[{number}]")
        layers.append(layer)
    return Manifest(kind, config, tuple(layers))


def check_layer(layer: Descriptor, where: str) -> None:
    """Raises ImageError for a layer that cannot be unpacked, naming its media type."""
    if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
        raise ImageError(
            where, f"{layer.digest} is a foreign layer ({layer.media_type}), which its registry does not hold"
        )
    if layer.media_type not in LAYERS:
        raise ImageError(where, f"{layer.digest} is of media type {layer.media_type!r}, which is not supported")


def _index(value: dict[str, Any], kind: str, where: str) -> Index:
    found = value.get("manifests")
    if not isinstance(found, list):
        raise ImageError(where, "its manifests are no list")
    entries = []
    for number, item in enumerate(found):
        one = descriptor(item, f"{where} manifests[{number}]")
        entries.append((one, _platform(item.get("platform"))))
    return Index(kind, tuple(entries))


def _platform(value: Any) -> Platform:
    value = value if isinstance(value, dict) else {}
    return Platform(*(text if isinstance(text := value.get(name, ""), str) else ""
                      for name in ("os", "architecture", "variant")))  # fmt: skip


def descriptor(value: Any, where: str) -> Descriptor:
    """A descriptor (image-spec descriptor.md). Raises ImageError naming `where`."""
    if not isinstance(value, dict):
        raise ImageError(where, "is no descriptor")
    kind, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(kind, str) or not isinstance(digest, str) or not is_digest(digest):
        raise ImageError(where, "has no media type, or no digest of sha256 or sha512")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _MAX_SIZE:
        raise ImageError(where, f"has no sensible size ({size!r})")
    return Descriptor(kind, digest, size)


def choose(index: Index, wanted: Platform, name: str) -> Descriptor:
    """The entry for a platform: the same variant first, then older ones that run on it. Raises ImageError that lists
    what there is.
    """
    images = [(one, there) for one, there in index.entries if one.media_type in (*MANIFESTS, *INDEXES)]
    fits = [(one, there) for one, there in images if (there.os, there.architecture) == (wanted.os, wanted.architecture)]
    for variant in _variants(wanted):
        for one, there in fits:
            if there.variant == variant:
                return one
    known = sorted({str(there) for _, there in images if there.os not in ("", "unknown")})
    raise ImageError(
        f"image {name}", f"there is none for {wanted}", f"it has: {', '.join(known)}" if known else "it has no platform"
    )


def _variants(wanted: Platform) -> tuple[str, ...]:
    variant = wanted.variant
    if wanted.architecture == "arm64":
        return (variant, "v8", "") if variant in ("", "v8") else (variant,)
    if wanted.architecture == "arm":
        return (*_ALSO["arm"].get(variant or "v7", (variant,)), "")
    if wanted.architecture == "amd64":
        return (variant, "v1", "") if variant in ("", "v1") else (variant,)
    return (variant, "")


class Config(msgspec.Struct, frozen=True):
    """What the store needs of an image's configuration; the rest is joey.images.oci's."""

    platform: Platform
    diff_ids: tuple[str, ...]
    created: str = ""


def parse_config(data: bytes, manifest: Manifest, name: str) -> Config:
    """Raises ImageError: no JSON, or it does not have a diff id for every layer."""
    where = f"image {name} config {manifest.config.short}"
    try:
        value = codec.decode(dict, data)
    except Invalid as error:
        raise ImageError(where, error.message) from error
    rootfs = value.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, str) and is_digest(one) for one in found):
        raise ImageError(where, "has no rootfs.diff_ids")
    if len(found) != len(manifest.layers):
        raise ImageError(where, f"{len(found)} diff ids for {len(manifest.layers)} layers")
    created = value.get("created")
    return Config(_platform(value), tuple(found), created if isinstance(created, str) else "")
