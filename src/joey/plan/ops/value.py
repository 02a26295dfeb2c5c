"""What an operation is made of: msgspec's Struct for those who have it imported, and the engine has.

A command that lives for one plan (joey-oci) would spend most of its life importing msgspec and typing: 30 ms, where
Python itself takes 10. So without msgspec in the process the base is a class of this file, with as much of Struct as
operations use: fields from annotations, defaults, comparison by value, no change.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False


class Lean:
    """A frozen value whose fields are the annotations of its class and of its bases."""

    __struct_fields__: tuple[str, ...] = ()

    def __init_subclass__(cls, frozen: bool = True) -> None:
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - inspect is not imported for this
        cls.__struct_fields__ = (*cls.__struct_fields__, *(name for name in own if name not in cls.__struct_fields__))

    def __init__(self, *values: object, **named: object) -> None:
        fields = self.__struct_fields__
        if not named and len(values) == len(fields):
            self.__dict__.update(zip(fields, values, strict=True))
            return
        given = dict(zip(fields, values, strict=False))
        given.update(named)
        if len(given) != len(values) + len(named):
            raise TypeError(f"{type(self).__name__}: too many values, or one given twice")
        if len(given) < len(fields):
            for name in fields:
                if name not in given and not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__}: {name} is missing")
        if not named.keys() <= set(fields):
            raise TypeError(f"{type(self).__name__}: unknown among {', '.join(named)}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"immutable type: {type(self).__name__!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lean) and type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__struct_fields__)})"

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__struct_fields__])


if TYPE_CHECKING:
    from msgspec import Struct as Struct
else:
    Struct = sys.modules["msgspec"].Struct if "msgspec" in sys.modules else Lean
