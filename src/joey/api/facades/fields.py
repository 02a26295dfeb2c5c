"""Members of a JSON request of another system's API, taken one by one: what nobody takes is refused, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from joey.model import codec
from joey.model.errors import Invalid

T = TypeVar("T")
_NOTHING: tuple[object, ...] = (None, "", [], {})
"""Values that say no more than leaving them out."""


class Fields:
    """One JSON object. lacking: makes the exception for something that Joey does not do. where: stands before names."""

    def __init__(self, values: dict[str, Any], lacking: Callable[[str], Exception], where: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._lacking, self._where = lacking, where

    @classmethod
    def of(cls, body: bytes, lacking: Callable[[str], Exception]) -> Fields:
        """Of a body; an empty one has no members. Raises Invalid."""
        value = codec.decode(object, body) if body else {}
        if not isinstance(value, dict):
            raise Invalid("body", "must be a JSON object")
        return cls(value, lacking)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type[T], default: T) -> T:
        """The member, once. Raises Invalid naming it for another type."""
        if name not in self._left:
            return default
        value = self._left.pop(name)
        if kind is float and type(value) is int:
            value = float(value)
        try:
            return codec.convert(kind, value)
        except Invalid as error:
            inner = f"{self._where}{name}"
            raise Invalid(inner + (f".{error.where}" if error.where else ""), error.message, error.remedy) from None

    def need(self, name: str, kind: type[T]) -> T:
        """As `take`, of one that is required."""
        if name not in self._left:
            raise Invalid(f"{self._where}{name}", "is required")
        return self.take(name, kind, kind())

    def need_one(self, name: str) -> None:
        """It must be there; somebody else takes it. Raises Invalid."""
        if name not in self._left:
            raise Invalid(f"{self._where}{name}", "is required")

    def part(self, name: str) -> Fields:
        """A member that is an object itself; an empty one if it is not there."""
        return Fields(self.take(name, dict, {}), self._lacking, f"{self._where}{name}.")

    def only(self, name: str, *values: object) -> None:
        """A member that may be there if it says what is so anyway."""
        if name in self._left and (value := self._left.pop(name)) not in (*_NOTHING, *values):
            said = f"{self._where}{name}: {value}"
            raise self._lacking(said if len(said) <= 200 else f"{self._where}{name}")

    def done(self) -> None:
        """Nothing else may be there, unless it is empty."""
        if left := sorted(name for name, value in self._left.items() if value not in _NOTHING):
            raise self._lacking(f"{self._where}{left[0]}")
