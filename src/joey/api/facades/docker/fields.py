"""The fields of one object of a request: each is taken by who understands it, what is left must mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joey.api.facades.docker.base import Refused
from joey.model import codec
from joey.model.errors import Invalid


class Fields:
    """The fields of one object of a request, each taken once, by names in any case, as Go reads JSON."""

    def __init__(self, where: str, values: Any) -> None:
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise Invalid(where, "must be a JSON object")
        self.where = where
        self._values = {name.lower(): (name, value) for name, value in values.items()}

    def name(self, field: str) -> str:
        return f"{self.where}.{field}" if self.where else field

    def take(self, field: str, kind: Any, default: Any = None) -> Any:
        """The field as `kind`; `default` for what is missing or null. Raises Invalid naming it."""
        _, value = self._values.pop(field.lower(), ("", None))
        if value is None:
            return default
        try:
            return codec.convert(kind, value)
        except Invalid as error:
            raise Invalid(f"{self.name(field)}{'.' if error.where else ''}{error.where}", error.message) from None

    def drop(self, *fields: str) -> None:
        """Those mean nothing here."""
        for field in fields:
            self._values.pop(field.lower(), None)

    def refuse(self, usual: Mapping[str, tuple[Any, ...]], why: Mapping[str, str]) -> None:
        """Raises Refused for the first field left that means something. usual: values that mean nothing."""
        for field, value in self._values.values():
            if value in (None, "", 0, False) or value in ([], {}) or value in usual.get(field, ()):
                continue
            reason = why.get(field, "Joey has nothing like it")
            raise Refused(self.name(field), f"{value!r} is not supported: {reason}")
