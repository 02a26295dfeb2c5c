"""RUN --mount=type=…: what stands in it. Pure."""

from __future__ import annotations

import csv
import posixpath
from dataclasses import dataclass

from joey.build.dockerfile import Instruction
from joey.model.units import parse_size

_KEYS = {
    "bind": {"target", "source", "from", "ro"},
    "cache": {"target", "id", "sharing", "mode", "uid", "gid", "ro"},
    "tmpfs": {"target", "size"},
    "secret": {"target", "id", "required", "mode", "uid", "gid", "env"},
}
_ALIASES = {"dst": "target", "destination": "target", "src": "source", "readonly": "ro", "rw": "ro", "readwrite": "ro"}
_SWITCHES = ("ro", "required")


@dataclass(frozen=True)
class StepMount:
    """One mount of a RUN. source: a path of the context, or with from_ of a stage or image. mode: permission bits.
    size: bytes.
    """

    type: str = "bind"
    target: str = ""
    source: str = "/"
    from_: str = ""
    id: str = ""
    sharing: str = "shared"
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: int | None = None
    env: str = ""
    required: bool = False
    read_only: bool = False


def parse(one: Instruction, text: str) -> StepMount:
    """Raises Invalid naming the line."""
    values = _values(one, text)
    kind = values.pop("type", "bind")
    if kind == "ssh":
        raise one.error("RUN: --mount=type=ssh is not supported", "give the key as a secret")
    if kind not in _KEYS:
        raise one.error(f"RUN: --mount=type={kind} is unknown", "bind, cache, secret or tmpfs")
    for key in values:
        if key not in _KEYS[kind]:
            raise one.error(f"RUN: --mount=type={kind} knows no {key}", f"it takes {', '.join(sorted(_KEYS[kind]))}")
    target = values.get("target", "")
    name = values.get("id", "")
    if kind == "secret":
        name = name or posixpath.basename(target)
        if not name:
            raise one.error("RUN: --mount=type=secret needs an id", "--mount=type=secret,id=NAME")
        target = target or ("" if values.get("env") else f"/run/secrets/{name}")
    elif not target:
        raise one.error(f"RUN: --mount=type={kind} needs a target", f"--mount=type={kind},target=/DIR")
    if kind == "bind" and values.get("ro") == "false":
        raise one.error("RUN: --mount=type=bind is read-only here", "copy what is to be written")
    sharing = values.get("sharing", "shared")
    if sharing not in ("shared", "private", "locked"):
        raise one.error(f"RUN: sharing={sharing} is unknown", "shared, private or locked")
    default = None if kind != "secret" else 0o400
    return StepMount(
        type=kind, target=target, source=values.get("source", "/"), from_=values.get("from", ""), id=name or target,
        sharing=sharing, mode=_number(one, values, "mode", 8, 0o7777) if "mode" in values else default,
        uid=_number(one, values, "uid", 10, 0xFFFF), gid=_number(one, values, "gid", 10, 0xFFFF),
        size=_size(one, values), env=values.get("env", ""), required=values.get("required", "false") == "true",
        read_only=kind == "bind" or values.get("ro") == "true",
    )  # fmt: skip


def _values(one: Instruction, text: str) -> dict[str, str]:
    try:
        parts = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        raise one.error(f"RUN: --mount={text} makes no sense", "--mount=type=cache,target=/DIR") from None
    values: dict[str, str] = {}
    for part in parts:
        given, equals, value = part.strip().partition("=")
        key = _ALIASES.get(given.lower(), given.lower())
        if key in _SWITCHES:
            value = value.lower() if equals else "true"
            if value not in ("true", "false", "1", "0"):
                raise one.error(f"RUN: --mount: {given} is true or false")
            on = value in ("true", "1")
            value = str(on != (given.lower() in ("rw", "readwrite"))).lower()
        elif not equals:
            raise one.error(f"RUN: --mount: {part!r} has no value")
        if key in values:
            raise one.error(f"RUN: --mount: {key} is given twice")
        values[key] = value
    return values


def _number(one: Instruction, values: dict[str, str], key: str, base: int, most: int) -> int:
    text = values.get(key, "0")
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise one.error(f"RUN: --mount: {key}={text} is no number this takes")
    return number


def _size(one: Instruction, values: dict[str, str]) -> int | None:
    if "size" not in values:
        return None
    try:
        return parse_size(values["size"], "size")
    except ValueError as error:
        raise one.error(f"RUN: --mount: {error}") from None
