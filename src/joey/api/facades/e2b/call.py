"""A request to the façade on its way through a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joey.api.light import web
from joey.api.routes import Call, Route
from joey.api.service import Service
from joey.model.views import Detail

if TYPE_CHECKING:
    from joey.api.facades.e2b.building import Yard
    from joey.api.facades.e2b.catalogue import Catalogue
    from joey.api.facades.e2b.entry import E2B
    from joey.api.facades.e2b.envd import State
    from joey.api.facades.e2b.warmth import Warmth


class Owned(Call):
    """Of the control plane: `ref` is an id among the key's sandboxes."""

    __slots__ = ("catalogue", "e2b", "warmth", "yard")
    catalogue: Catalogue
    warmth: Warmth
    yard: Yard

    def __init__(self, request: web.Request, route: Route, service: Service, path: dict[str, str], e2b: E2B) -> None:
        super().__init__(request, route, service, path)
        self.e2b = e2b


class EnvdCall(Owned):
    """Of envd, or another port. detail: the sandbox, which runs; owner: its own."""

    __slots__ = ("detail", "port", "state")
    detail: Detail
    port: int
    state: State
