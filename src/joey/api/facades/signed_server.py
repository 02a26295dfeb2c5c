"""The one place each request to a façade whose clients sign goes through: route, body, signature, owner, limits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

from joey.api import function_urls
from joey.api.budget import SMALL
from joey.api.facades import links, signing
from joey.api.facades.signed import Signed
from joey.api.facades.signing import UNKNOWN, Unsigned
from joey.api.light import web
from joey.api.routes import Call, NoSuchPath, Route, Router, WrongMethod
from joey.functions.service import URLS
from joey.model.errors import Busy, JoeyError, TooMany

if TYPE_CHECKING:
    from joey.api.auth import Key
    from joey.api.service import Service
    from joey.functions.service import Functions
    from joey.model.function import Version

MAX_CODE = 72 << 20
"""Bytes of a body with code: 50 MiB of zip in base64, and what stands around it."""
MAX_URL_BODY = 6 << 20
"""Bytes of a signed body to a function URL."""
_MAX_REQUEST = 1 << 20
"""Bytes of a body with neither code nor an event."""


class SignedCall(Call):
    """One signed request. id: of the request; content: its body; params: of its query, by name."""

    __slots__ = ("content", "facade", "id", "params")

    def __init__(
        self, request: web.Request, route: Route, service: Service, path: dict[str, str], facade: Signed, id: str
    ) -> None:
        super().__init__(request, route, service, path)
        self.facade, self.id = facade, id
        self.content = b""
        self.params: dict[str, list[str]] = {}

    @property
    def functions(self) -> Functions:
        """Joey's own."""
        return self.service.functions

    def version(self, name: str, qualifier: str = "") -> Version:
        """Of a function of the caller's: what a qualifier stands for. Raises NotFound."""
        return self.functions.version(name, owner=self.visible, qualifier=qualifier)

    def param(self, name: str, default: str = "") -> str:
        """The last value of a query parameter."""
        return self.params.get(name, [default])[-1]

    def allow(self, lacking: Callable[[str], Exception], *names: str) -> None:
        """No other query parameter may be given, unless it is empty."""
        for name, values in self.params.items():
            if name not in names and any(values):
                raise lacking(name)


def route(
    method: str, path: str, handler: Callable[[SignedCall], Awaitable[Any]], summary: str, tag: str = ""
) -> Route:
    """A route of these façades, whose handlers get a SignedCall. summary: the operation's name; tag: "invoke",
    "code" or nothing, which says how long a body may be.
    """
    return Route(method, path, cast(Any, handler), summary, tag=tag)


class SignedServer:
    """Handles a façade's requests. A subclass says how it verifies and answers. scheme: how Authorization begins;
    max_payload: bytes of a synchronous invocation's event.
    """

    scheme = ""
    routes: tuple[Route, ...] = ()
    max_payload = 0

    def __init__(self, facade: Signed) -> None:
        self.facade, self.service = facade, facade.service
        self.router = Router(self.routes)

    def verify(self, request: signing.Request) -> str:
        """The key id that signed. Raises Unsigned."""
        raise NotImplementedError

    def verify_url(self, request: signing.Request) -> str:
        """As `verify`, of a request to a function URL."""
        return self.verify(request)

    def failed(self, error: Exception, id: str) -> web.Response:
        """The answer for an exception; id: of the request."""
        raise NotImplementedError

    def unknown(self, method: str, path: str) -> Exception:
        """What is raised for what no route is there for."""
        raise NotImplementedError

    def application(self) -> web.Application:
        """What serves on the façade's socket."""
        app = web.Application(client_max_size=MAX_CODE)
        app.router.add_route("*", r"/{tail:[\s\S]*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        activity, id = self.service.activity, _request_id()
        activity.open += 1
        call: SignedCall | None = None
        try:
            path, _, query = request.raw_path.partition("?")
            if path.startswith(URLS):
                signed = await self._signer_of_url(request, path, query)
                return await function_urls.serve(self.service, request, path, query, False, signed)
            if path.startswith(links.PATH):
                return await links.serve(self.facade, request, path, now())
            try:
                route, variables = self.router.find(request.method, path.rstrip("/"))
            except (NoSuchPath, WrongMethod):
                raise self.unknown(request.method, path) from None
            call = SignedCall(request, route, self.service, variables, self.facade, id)
            await self._admit(call, path, query)
            return await self._counted(call)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            if isinstance(error, JoeyError):
                failures = self.service.counters.failures
                failures[error.code] = failures.get(error.code, 0) + 1
            return self.failed(error, id)
        finally:
            activity.done()
            if call is not None and call.held:
                self.service.budget.give(call.owner, call.held)

    async def _admit(self, call: SignedCall, path: str, query: str) -> None:
        """Set key, owner, content and params: the body is read for somebody who names a key, and then checked."""
        given = call.request.headers.get("Authorization", "")
        name = _key_id(given)
        if given and (key := self.service.access.of(name)) is not None:
            call.owner = "" if key.admin else key.id  # whose memory the body takes
        elif given and name:
            raise Unsigned("unknown", UNKNOWN)
        call.content = await self._body(call) if given else b""
        request = _signed(call.request, path, query, call.content)
        if len(call.content) > SMALL:
            signer = await asyncio.to_thread(self.verify, request)  # hashing it takes long
        else:
            signer = self.verify(request)
        if (key := self.service.access.of(signer)) is None or signer != name:
            raise Unsigned("malformed", "Authorization names two keys")  # whoever holds the body is who signed
        call.key, call.owner = key, "" if key.admin else key.id
        call.params = {}
        for field, value in parse_qsl(query, keep_blank_values=True):
            call.params.setdefault(field, []).append(value)

    async def _signer_of_url(self, request: web.Request, path: str, query: str) -> tuple[Key, bytes] | None:
        """Who signed a request to a function URL, and its body; None for nobody. Raises Unsigned."""
        given = request.headers.get("Authorization", "")
        if not given.startswith(self.scheme):
            return None
        if self.service.access.of(_key_id(given)) is None:
            raise Unsigned("unknown", UNKNOWN)
        if (request.content_length or MAX_URL_BODY) > MAX_URL_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_URL_BODY, request.content_length or 0)
        content = await self._of_url(request)
        key = self.service.access.of(self.verify_url(_signed(request, path, query, content)))
        assert key is not None  # it has just been found
        return key, content

    async def _of_url(self, request: web.Request) -> bytes:
        """A body that nobody has signed yet, as far as we know, and that may not say how long it is."""
        found = bytearray()
        async with asyncio.timeout(self.service.body_timeout):
            while piece := await request.content.readany():
                found += piece
                if len(found) > MAX_URL_BODY:
                    raise web.HTTPRequestEntityTooLarge(MAX_URL_BODY, len(found))
        return bytes(found)

    def _limit(self, route: Route) -> int:
        if route.tag == "invoke":
            return self.max_payload
        return MAX_CODE if route.tag == "code" else _MAX_REQUEST

    async def _body(self, call: SignedCall) -> bytes:
        most, length = self._limit(call.route), call.request.content_length
        if length is not None and length > most:
            raise web.HTTPRequestEntityTooLarge(most, length)
        if call.request.content.is_eof() and not length:
            return b""
        if (size := most if length is None else length) > SMALL:
            call.hold(size)
        pieces, got = [], 0
        async for piece in call.chunks():
            got += len(piece)
            if got > most:
                raise web.HTTPRequestEntityTooLarge(most, got)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _counted(self, call: SignedCall) -> web.StreamResponse:
        """A key's requests count together with those to Joey's own API."""
        service, owner = self.service, call.owner
        mine = service.by_owner.get(owner, 0)
        if owner and mine >= service.max_per_key:
            raise TooMany("key", f"{mine} requests of this key are under way", "wait for some", retry_after=1)
        if service.in_flight >= service.max_requests:
            raise Busy("requests", f"{service.in_flight} are in flight", "come back later", retry_after=1)
        service.by_owner[owner] = mine + 1
        service.in_flight += 1
        try:
            handler: Callable[[Any], Awaitable[web.StreamResponse]] = call.route.handler
            return await handler(call)
        finally:
            service.in_flight -= 1
            left = service.by_owner[owner] - 1
            if left:
                service.by_owner[owner] = left
            else:
                del service.by_owner[owner]


def _key_id(authorization: str) -> str:
    return authorization.partition("Credential=")[2].partition(",")[0].partition("/")[0].strip()


def _signed(request: web.Request, path: str, query: str, content: bytes) -> signing.Request:
    headers: dict[str, list[str]] = {}
    for field, value in request.headers.items():
        headers.setdefault(field.lower(), []).append(value)
    return signing.Request(request.method, path, query, headers, content)


def now() -> float:
    """Seconds since the epoch: signatures are compared with it."""
    return time.time()


def _request_id() -> str:
    """Of the form of a UUID, as both APIs have them."""
    text = secrets.token_hex(16)
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def url_of(call: SignedCall, path: str) -> str:
    """Where a function URL is reached: at the façade's own address, which is there whatever else is served."""
    return f"{call.facade.url}{path}"
