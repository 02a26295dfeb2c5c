"""`joey commit --change`: an instruction of a Dockerfile changes the settings of an image (docker-commit(1)). Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from joey.model.errors import Invalid
from joey.model.image import Image

_KNOWN = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"


def change(image: Image, lines: Sequence[str]) -> Image:
    """The image with these changes, one after the other. Raises Invalid naming `changes[n]`."""
    for number, line in enumerate(lines):
        field = f"changes[{number}]"
        word, _, rest = line.strip().partition(" ")
        try:
            image = _one(image, word.upper(), rest.strip(), field)
        except ValueError as error:
            raise Invalid(field, f"{line!r}: {error}") from None
    return image


def _one(image: Image, word: str, rest: str, field: str) -> Image:
    if not rest and word not in ("CMD", "ENTRYPOINT"):
        raise Invalid(field, f"{word!r} without a value", f"known are {_KNOWN}")
    replace = msgspec.structs.replace
    match word:
        case "CMD":
            return replace(image, argv=_command(rest, field))
        case "ENTRYPOINT":
            return replace(image, entrypoint=_command(rest, field), argv=())
        case "ENV":
            return replace(image, env={**image.env, **_pairs(rest, field)})
        case "LABEL":
            return replace(image, labels={**image.labels, **_pairs(rest, field)})
        case "EXPOSE":
            return replace(image, ports=tuple(sorted({*image.ports, *(_port(one, field) for one in rest.split())})))
        case "VOLUME":
            paths = _list(rest, field) if rest.startswith("[") else tuple(rest.split())
            if not all(path.startswith("/") for path in paths):
                raise Invalid(field, "a volume is an absolute path")
            return replace(image, volumes=tuple(sorted({*image.volumes, *paths})))
        case "USER":
            return replace(image, user=rest)
        case "WORKDIR":
            return replace(image, cwd=rest if rest.startswith("/") else f"{image.cwd.rstrip('/')}/{rest}")
        case "STOPSIGNAL":
            return replace(image, stop_signal=rest)
    raise Invalid(field, f"{word!r} cannot be changed so", f"known are {_KNOWN}")


def _command(text: str, field: str) -> tuple[str, ...]:
    """A JSON list, or text for the shell."""
    if text.startswith("["):
        return _list(text, field)
    return ("/bin/sh", "-c", text) if text else ()


def _list(text: str, field: str) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(text.encode(), type=tuple[str, ...])
    except msgspec.MsgspecError as error:
        raise Invalid(field, f"{text!r} is no JSON list of texts: {error}") from None


def _pairs(text: str, field: str) -> dict[str, str]:
    """`NAME=VALUE …`, quoted as for a shell, or the old `NAME VALUE`."""
    first, _, rest = text.partition(" ")
    if "=" not in first:
        if not rest.strip():
            raise Invalid(field, f"{text!r} is not NAME=VALUE")
        return {first: rest.strip()}
    found = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Invalid(field, f"{word!r} is not NAME=VALUE")
        found[name] = value
    return found


def _port(text: str, field: str) -> str:
    number, _, protocol = text.partition("/")
    if not number.isdecimal() or not 0 < int(number) < 65536 or protocol not in ("", "tcp", "udp", "sctp"):
        raise Invalid(field, f"{text!r} is no port", "80, or 53/udp")
    return f"{int(number)}/{protocol or 'tcp'}"
