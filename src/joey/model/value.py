"""The base of every value of the model."""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Immutable, compared and hashed by content, strict when decoded: an unknown field is refused, never ignored.

    Both properties are inherited, but mypy wants to read `frozen=True` at every class, and `kw_only=True` counts only
    for the fields of the class that says it: `class X(Value, frozen=True, kw_only=True)`.
    """
