"""Values to JSON and back. What comes in is untrusted: every error names the field, and nothing unknown is let in.

Field paths are dotted, as in `resources.memory` or `mounts[1].source`; of a mapping's entries the key is not told
(`env[...]`), because it may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from joey.model.errors import Invalid

T = TypeVar("T")

_AT = re.compile(r"(?P<what>.*) - at `(?:key in )?\$(?P<path>.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_NAMED = re.compile(r"([a-zA-Z_][\w.\[\]]*): (.*)", re.DOTALL)


def decode(kind: type[T], data: bytes | str) -> T:
    """The value of type `kind` in the JSON text `data` (RFC 8259, UTF-8).

    Raises Invalid naming the field: malformed JSON, a wrong type, a missing or unknown field, a value that the type
    itself refuses, a NUL character in any string (no path, argument or name of Linux can hold one).
    """
    try:
        value = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _explain(error, kind) from error
    # A NUL can come only as this escape: raw control characters are no JSON.
    if (b"\\u0000" if isinstance(data, bytes) else "\\u0000") in data:  # type: ignore[operator]
        _refuse_nul(msgspec.json.decode(data))
    return value


def convert(kind: type[T], data: Any) -> T:
    """The value of type `kind` in `data`, made of dicts, lists and scalars as a JSON parser would. Raises as decode."""
    try:
        value = msgspec.convert(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _explain(error, kind) from error
    _refuse_nul(data)
    return value


def encode(value: object) -> bytes:
    """`value` as compact JSON. Raises Invalid for text that is not Unicode (undecodable bytes of an argument)."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        text = ascii(error.object[max(0, error.start - 10) : error.end + 10])
        raise Invalid("", f"{text} is not valid UTF-8", "names and arguments must be UTF-8") from error


def to_builtins(value: object) -> Any:
    """`value` as dicts, lists and scalars."""
    return msgspec.to_builtins(value)


def _explain(error: Exception, kind: Any) -> Invalid:
    """The error of msgspec in our words."""
    if isinstance(error, RecursionError):
        return Invalid("", "JSON is nested too deeply")
    if not isinstance(error, msgspec.ValidationError):
        return Invalid("", f"not valid JSON: {str(error).removeprefix('JSON is malformed: ')}")
    match = _AT.fullmatch(str(error))
    what, path = (match["what"], match["path"].lstrip(".")) if match else (str(error), "")
    if unknown := _UNKNOWN.fullmatch(what):
        return Invalid(_join(path, unknown[1]), "unknown field", _known(kind, path))
    if missing := _MISSING.fullmatch(what):
        return Invalid(_join(path, missing[1]), "is required")
    cause = error.__cause__
    if isinstance(cause, Invalid):
        return Invalid(_join(path, cause.where), cause.message, cause.remedy)
    if cause is not None and (named := _NAMED.fullmatch(what)):
        return Invalid(_join(path, named[1]), named[2])
    if what.startswith("Invalid enum value"):
        choices = sorted(repr(choice) for choice in _choices(_field_type(kind, path)))
        return Invalid(path, what[0].lower() + what[1:], f"one of {', '.join(choices)}" if choices else "")
    return Invalid(path, what[0].lower() + what[1:].replace("`", ""))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _known(kind: Any, path: str) -> str:
    names = [
        field.encode_name
        for info in _alternatives(_field_type(kind, path))
        if isinstance(info, msgspec.inspect.StructType)
        for field in info.fields
    ]
    return f"known are {', '.join(names)}" if names else ""


def _choices(info: msgspec.inspect.Type | None) -> Iterator[object]:
    for one in _alternatives(info):
        if isinstance(one, msgspec.inspect.LiteralType):
            yield from one.values
        elif isinstance(one, msgspec.inspect.EnumType):
            yield from (member.value for member in one.cls)


def _alternatives(info: msgspec.inspect.Type | None) -> Iterator[msgspec.inspect.Type]:
    if isinstance(info, msgspec.inspect.UnionType):
        yield from info.types
    elif info is not None:
        yield info


def _field_type(kind: Any, path: str) -> msgspec.inspect.Type | None:
    """The type that stands at `path` in `kind`, None where that cannot be told."""
    info: msgspec.inspect.Type | None = msgspec.inspect.type_info(kind)
    for name, index in re.findall(r"([^.\[\]]+)|(\[[^\]]*\])", path):
        found = [_step(one, name, bool(index)) for one in _alternatives(info)]
        info = next((one for one in found if one is not None), None)
    return info


def _step(info: msgspec.inspect.Type, name: str, index: bool) -> msgspec.inspect.Type | None:
    if index:
        if isinstance(info, msgspec.inspect.DictType):
            return info.value_type
        return getattr(info, "item_type", None)
    if isinstance(info, (msgspec.inspect.StructType, msgspec.inspect.DataclassType)):
        return next((field.type for field in info.fields if field.encode_name == name), None)
    return None


def _refuse_nul(data: Any) -> None:
    """Raises Invalid naming the first string in `data` that holds a NUL."""
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str) and "\0" in value:
            raise Invalid(path, "holds a NUL character")
        if isinstance(value, dict):
            if any(isinstance(key, str) and "\0" in key for key in value):
                raise Invalid(path, "a name in it holds a NUL character")
            waiting += [(_join(path, str(key)), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
