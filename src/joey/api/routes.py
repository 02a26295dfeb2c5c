"""The table of routes: what the API is. Router, OpenAPI document and docs page are made from it.

A module of the API has a tuple ROUTES of Route and is named in `joey.api.table.MODULES`. A handler takes a Call and
returns what the answer's body is (None: 204, a web.StreamResponse: that itself, anything else: JSON with the route's
status). By then the caller's key is checked, the query parsed, and `{ref}` resolved among the sandboxes of the key's
owner, in one place for all routes: a handler uses `call.ref` and cannot reach anybody else's sandbox.

    Route("POST", "/v1/sandboxes/{ref}/kill", kill, "Signal the main process", tag="sandboxes",
          query=(params.signal(),), status=204)

    async def kill(call: Call) -> None:
        await call.whole(call.engine.kill(call.ref, call.query.get("signal", 9)))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from joey.api.budget import SMALL
from joey.api.light import web
from joey.api.params import Param
from joey.api.requests import MAX_BODY
from joey.model import codec
from joey.model.errors import Invalid

if TYPE_CHECKING:
    from joey.api.auth import Key
    from joey.api.service import Service
    from joey.engine.interface import Engine

T = TypeVar("T")
JSON = "application/json"
NDJSON = "application/x-ndjson"
BINARY = "application/octet-stream"
TAR = "application/x-tar"
TEXT = "text/plain"


@dataclass(frozen=True, slots=True)
class Answer:
    """Another answer of a route. type: of a JSON body, or of a line of NDJSON; bytes for anything; None for no body."""

    type: Any = None
    media: str = JSON
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. Everything but method, path and handler is also what documentation says about it.

    path: `{name}` stands for one segment, percent-decoded. body: the type of the JSON body (`body_media` of another
    kind of body: bytes); a handler gets it by `call.body()`. answer: type of the body at `status`, media its type.
    also: other answers by status. upgrade: takes `Upgrade: joey-stream`. stream: lasts, so it is not counted among the
    requests in flight. admin: only for the unix socket and administrators' keys. open: needs no key. example: a body
    for the docs page.
    """

    method: str
    path: str
    handler: Callable[[Call], Awaitable[Any]]
    summary: str
    tag: str = ""
    description: str = ""
    query: tuple[Param, ...] = ()
    headers: tuple[Param, ...] = ()
    body: Any = None
    body_media: str = JSON
    body_optional: bool = False
    answer: Any = None
    status: int = 200
    media: str | tuple[str, ...] = JSON
    also: dict[int, Answer] = field(default_factory=dict)
    upgrade: bool = False
    stream: bool = False
    admin: bool = False
    open: bool = False
    example: Any = None

    @property
    def name(self) -> str:
        """operationId: `create`, `list_files`: the handler's name, with the tag where that is needed (see table)."""
        return self.handler.__name__.strip("_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the path's variables, in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


class Call:
    """One request on its way through a handler.

    ref: the sandbox's id (of an administrator what was given: the engine resolves it). path: the other variables.
    query: given parameters by name. owner: whose the sandboxes are, "" for the administrator. key: None without one.
    """

    __slots__ = ("engine", "held", "key", "owner", "path", "query", "ref", "request", "route", "service")

    def __init__(self, request: web.Request, route: Route, service: Service, path: dict[str, str]) -> None:
        self.request = request
        self.route = route
        self.service = service
        self.engine: Engine = service.engine
        self.path = path
        self.query: dict[str, Any] = {}
        self.key: Key | None = None
        self.owner = ""
        self.held = 0
        self.ref = path.get("ref", "")

    @property
    def visible(self) -> str | None:
        """The owner to filter by; None for the administrator, who sees all."""
        return self.owner or None

    async def body(self) -> Any:
        """The JSON body as the route's `body` type. Raises Invalid naming the field."""
        data = await self.data()
        if not data:
            if self.route.body_optional:
                return codec.convert(self.route.body, {})
            raise Invalid("body", "is missing")
        return codec.decode(self.route.body, data)

    async def json_object(self) -> dict[str, Any]:
        """The JSON body as a dict, for what is not simply a type. Raises Invalid."""
        data = await self.data()
        value = codec.decode(object, data) if data else {}
        if not isinstance(value, dict):
            raise Invalid("body", "must be a JSON object")
        return value

    async def data(self) -> bytes:
        """The body as it came, MAX_BODY bytes at most. Raises 413."""
        if (self.request.content_length or 0) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, self.request.content_length or 0)  # before it is sent
        if not self.held and not self.request.content.is_eof():
            length = self.request.content_length
            if (size := MAX_BODY if length is None else length) > SMALL:
                self.hold(size)
        return await self._in_time(self.request.read())

    def hold(self, size: int) -> None:
        """So many bytes more are in memory until the answer is sent. Raises TooMany, Busy."""
        self.service.budget.take(self.owner, size)
        self.held += size

    async def chunks(self) -> AsyncIterator[bytes]:
        """A body of any size in pieces as they come. Raises 408 when nothing comes for the service's body_timeout."""
        content = self.request.content
        while piece := await self._in_time(content.readany()):
            yield piece

    async def _in_time(self, work: Coroutine[Any, Any, bytes]) -> bytes:
        if self.request.content.is_eof():  # all of it is here: no timer is needed
            return await work
        try:
            async with asyncio.timeout(self.service.body_timeout):
                return await work
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body did not come in time") from None

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` to its end even if the client leaves: what changes a sandbox is never left half-way."""
        return await whole(work)

    async def lines(self, **headers: str) -> Lines:
        """Begin an NDJSON answer."""
        response = web.StreamResponse(headers={"Content-Type": NDJSON, **headers})
        await response.prepare(self.request)
        return Lines(response)

    def reply(self, value: object, status: int | None = None, headers: dict[str, str] | None = None) -> web.Response:
        """A JSON answer."""
        return reply(value, self.route.status if status is None else status, headers)


class Lines:
    """An NDJSON answer under way: `write` waits when the client is slow, so nothing is buffered without bound."""

    _PIECE = 1 << 15

    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response
        self._held = bytearray()

    async def write(self, value: object) -> None:
        """One line, at once."""
        self._held += codec.encode(value) + b"\n"
        await self.flush()

    async def add(self, value: object) -> None:
        """One of many lines: sent when enough are there. `flush` or `end` sends the last."""
        self._held += codec.encode(value) + b"\n"
        if len(self._held) >= self._PIECE:
            await self.flush()

    async def flush(self) -> None:
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            await self.response.write(held)

    async def end(self) -> web.StreamResponse:
        """The handler returns this."""
        await self.flush()
        await self.response.write_eof()
        return self.response


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` to its end even if the client leaves."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody is left to be told
        raise


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=codec.encode(value), content_type=JSON, headers=headers)


class NoSuchPath(Exception):
    """Nothing is at the path."""


class WrongMethod(Exception):
    """Something is, but not for that method. `allowed`: the methods there are."""

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__()
        self.allowed = sorted(allowed)


class _Node:
    __slots__ = ("fixed", "routes", "variable")

    def __init__(self) -> None:
        self.fixed: dict[str, _Node] = {}
        self.variable: _Node | None = None
        self.routes: dict[str, tuple[Route, tuple[str, ...]]] = {}


class Router:
    """Finds the route of a path, segment by segment. A fixed segment goes before a variable."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            node = self._root
            for part in route.path.split("/")[1:]:
                if part.startswith("{"):
                    node.variable = node.variable or _Node()
                    node = node.variable
                else:
                    node = node.fixed.setdefault(part, _Node())
            if route.method in node.routes:
                raise ValueError(f"{route.method} {route.path} is declared twice")
            node.routes[route.method] = (route, route.variables)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its variables for a percent-encoded path. Raises NoSuchPath, WrongMethod, Invalid."""
        allowed: set[str] = set()
        found = self._search(self._root, method, path.split("/")[1:], 0, [], allowed)
        if found is None:
            raise WrongMethod(allowed) if allowed else NoSuchPath
        return found

    def _search(
        self, node: _Node, method: str, parts: list[str], at: int, values: list[str], allowed: set[str]
    ) -> tuple[Route, dict[str, str]] | None:
        if at == len(parts):
            route = node.routes.get(method)
            if route is None:
                allowed.update(node.routes)
                return None
            return route[0], dict(zip(route[1], map(_segment, values), strict=True))
        part = parts[at]
        below = node.fixed.get(part)
        if below is not None:
            found = self._search(below, method, parts, at + 1, values, allowed)
            if found is not None:
                return found
        if node.variable is None or not part:
            return None
        # A sandbox may be called as a fixed segment is.
        return self._search(node.variable, method, parts, at + 1, [*values, part], allowed)


def _segment(text: str) -> str:
    if "%" in text:
        try:
            text = unquote(text, errors="strict")
        except UnicodeDecodeError:
            raise Invalid("path", "is not UTF-8") from None
        if "\0" in text:
            raise Invalid("path", "holds a NUL character")
    return text


def types_of(routes: Iterable[Route]) -> list[Any]:
    """Every type the routes name, for the document's schemas."""
    found: list[Any] = []
    for route in routes:
        for kind in (route.body, route.answer, *(other.type for other in route.also.values())):
            if kind is not None and kind is not bytes and kind not in found:
                found.append(kind)
    return found


__all__ = [
    "BINARY", "JSON", "NDJSON", "TAR", "TEXT", "Answer", "Call", "Lines", "NoSuchPath", "Route", "Router",
    "WrongMethod", "reply", "types_of", "whole",
]  # fmt: skip
