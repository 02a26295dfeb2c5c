"""Names of images: `debian`, `debian:12`, `ghcr.io/owner/name@sha256:…`, `localhost:5000/x`. Pure text.

The grammar is that of distribution/reference (regexp.go, normalize.go): the first component is a registry if it holds
a dot or a colon, or is `localhost`; otherwise the name is Docker Hub's, where names of one component are below
`library/`. Without tag and digest the tag is `latest`.
"""

from __future__ import annotations

import re

import msgspec

from joey.model.errors import Invalid

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_MAX_NAME = 255
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HEX = re.compile(r"[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True):
    """A complete name. registry: `docker.io`, `localhost:5000`. path: `library/debian`. tag, digest: at least one."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The canonical form, which `parse` understands."""
        text = f"{self.registry}/{self.path}"
        return text + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """As people write it: without docker.io and library/, the tag always."""
        path = self.path
        if self.registry == DEFAULT_REGISTRY:
            path = path.removeprefix("library/") if path.count("/") == 1 else path
        else:
            path = f"{self.registry}/{path}"
        return path + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def repository(self) -> str:
        """Registry and path."""
        return f"{self.registry}/{self.path}"

    @property
    def target(self) -> str:
        """What to ask a registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag


def parse(text: str, field: str = "image") -> Reference:
    """The reference in `text`. Raises Invalid naming `field`: bad characters, an unsupported digest, capitals in a
    path, a name that is only an id.
    """
    name, at, digest = text.partition("@")
    if at:
        check_digest(digest, field)
    registry, path = _split_registry(name)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise Invalid(field, f"{text!r}: {tag!r} is not a tag", "letters, digits, _ . -, at most 128")
    if not _DOMAIN.fullmatch(registry):
        raise Invalid(field, f"{text!r}: {registry!r} is not a registry's host name")
    port = registry.rpartition(":")[2] if not registry.endswith("]") and ":" in registry else ""
    if port and not 0 < int(port) < 65536:
        raise Invalid(field, f"{text!r}: {port} is not a port")
    if not _PATH.fullmatch(path):
        remedy = f"in small letters: {text.lower()}" if _PATH.fullmatch(path.lower()) else "such as debian:12"
        raise Invalid(field, f"{text!r} is not a name of an image", remedy)
    if _HEX.fullmatch(path) and registry == DEFAULT_REGISTRY:
        raise Invalid(field, f"{text!r} is an id, and no image has it", "joey image ls")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    if len(registry) + len(path) + 1 > _MAX_NAME:
        raise Invalid(field, f"the name is longer than {_MAX_NAME} characters")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(registry.lower(), path, tag, digest)


def is_name(text: str) -> bool:
    """Whether it is a reference: not an id, and not a path or garbage."""
    try:
        parse(text)
    except Invalid:
        return False
    return True


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return ("docker.io" if first == "index.docker.io" else first), rest
    return DEFAULT_REGISTRY, name


def check_digest(digest: str, field: str = "digest") -> str:
    """`digest` itself. Raises Invalid unless it is sha256:… or sha512:… of the right length."""
    if not _DIGEST.fullmatch(digest):
        raise Invalid(field, f"{digest!r} is not a digest", "sha256: and 64 hexadecimal digits")
    return digest


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
