"""Query parameters and headers as the table of routes declares them: name, schema (JSON Schema 2020-12), meaning, and
how the text becomes a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_plus

from joey.api import requests
from joey.model.errors import Invalid


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. `parse` raises ValueError for what it does not take; its text is the problem's detail."""

    name: str
    doc: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    parse: Callable[[str], Any] = str
    many: bool = False
    required: bool = False

    def times(self) -> Param:
        """The same, which may be given more than once: its value is a list."""
        return replace(self, many=True)

    def needed(self) -> Param:
        """The same, which has to be given."""
        return replace(self, required=True)


def text(name: str, doc: str, *, longest: int = 4096, empty: bool = True, **schema: Any) -> Param:
    """Any string of at most `longest` characters without NUL."""

    def parse(value: str) -> str:
        if "\0" in value:
            raise ValueError("holds a NUL character")
        if len(value) > longest:
            raise ValueError(f"is longer than {longest} characters")
        if not value and not empty:
            raise ValueError("is empty")
        return value

    limits = {"maxLength": longest} | ({} if empty else {"minLength": 1})
    return Param(name, doc, {"type": "string", "pattern": "^[^\\u0000]*$", **limits, **schema}, parse)


def flag(name: str, doc: str, default: bool = False) -> Param:
    """`true`, `1` or nothing; `false` or `0`."""
    return Param(name, doc, {"type": "boolean", "default": default}, requests.boolean)


def integer(name: str, doc: str, *, low: int = 0, high: int = 10**15 - 1, default: int | None = None) -> Param:
    """A whole number in decimal."""

    def parse(value: str) -> int:
        number = requests.count(value)
        if not low <= number <= high:
            raise ValueError(f"{value} is not within {low} to {high}")
        return number

    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return Param(name, doc, schema if default is None else {**schema, "default": default}, parse)


def seconds(name: str, doc: str) -> Param:
    """A number of seconds, not negative; or an instant as seconds since the epoch."""
    schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 100_000_000_000}
    return Param(name, doc, schema, requests.seconds)


def choice(name: str, doc: str, choices: Sequence[str], default: str | None = None) -> Param:
    """One of `choices`."""

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return value

    schema: dict[str, Any] = {"type": "string", "enum": list(choices)}
    return Param(name, doc, schema if default is None else {**schema, "default": default}, parse)


def signal(name: str = "signal", doc: str = "Name or number of a signal (signal(7)): TERM, SIGTERM, 15") -> Param:
    """A signal; the value is its number."""
    return Param(name, doc, {"type": "string", "examples": ["TERM", "15"]}, requests.signal_number)


def labels(name: str, doc: str) -> Param:
    """`NAME` or `NAME=VALUE`, more than once. `as_labels` makes the dict of them."""
    return text(name, doc, empty=False).times()


def as_labels(texts: Sequence[str]) -> dict[str, str | None]:
    """NAME -> VALUE, None where any value will do."""
    pairs = (one.partition("=") for one in texts)
    return {name: value if equals else None for name, equals, value in pairs}


def parse(raw: str, known: dict[str, Param], needed: Sequence[str]) -> dict[str, Any]:
    """The values of a query string. Raises Invalid for an unknown parameter, one given twice, one that is missing, one
    whose text makes no sense.
    """
    values: dict[str, Any] = {}
    for part in raw.split("&") if raw else ():
        name, _, value = part.partition("=")
        name = _decoded(name, "query")
        param = known.get(name)
        if param is None:
            allowed = ", ".join(sorted(known)) or "none"
            raise Invalid(name, "unknown query parameter", f"this path takes: {allowed}")
        try:
            parsed = param.parse(_decoded(value, name))
        except Invalid:
            raise
        except ValueError as error:
            raise Invalid(name, str(error)) from None
        if param.many:
            values.setdefault(name, []).append(parsed)
        elif name in values:
            raise Invalid(name, "is given twice")
        else:
            values[name] = parsed
    for name in needed:
        if name not in values:
            raise Invalid(name, "is required", known[name].doc)
    return values


def _decoded(value: str, name: str) -> str:
    try:
        return unquote_plus(value, errors="strict")
    except UnicodeDecodeError:
        raise Invalid(name, "is not UTF-8") from None
