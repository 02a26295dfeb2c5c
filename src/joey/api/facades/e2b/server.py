"""The one place every request of an E2B client goes through: which half it is for, who calls, errors."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from weakref import WeakSet

from joey.api import streams
from joey.api.auth import Key
from joey.api.facades.e2b import (
    catalogue,
    control,
    envd,
    errors,
    filesystem,
    output,
    ports,
    process,
    snapshots,
    templates,
)
from joey.api.facades.e2b.building import Yard
from joey.api.facades.e2b.call import EnvdCall, Owned
from joey.api.facades.e2b.entry import E2B
from joey.api.facades.e2b.errors import GONE, Failure
from joey.api.facades.e2b.kinds import compiled
from joey.api.facades.e2b.warmth import Warmth
from joey.api.keys import ACTIVITY, ENDED, ENGINE, SERVICE, STREAMS
from joey.api.light import web
from joey.api.requests import MAX_BODY
from joey.api.routes import Call, NoSuchPath, Route, Router, WrongMethod
from joey.api.service import Service
from joey.model.errors import Invalid, JoeyError, NotFound, TooMany
from joey.model.views import Detail

_HOST = re.compile(r"(\d{1,5})-([0-9a-f]{24})\.")
ENVD_PORT = 49983
_ID = re.compile(r"[0-9a-f]{24}")
_ID_LENGTH = 24
ENVD = ("/health", "/files", "/metrics", "/envs", "/init", "/process.Process/", "/filesystem.Filesystem/")


def application(service: Service, e2b: E2B) -> web.Application:
    """What serves on the façade's socket."""
    app = web.Application(client_max_size=MAX_BODY)
    app[SERVICE], app[ENGINE], app[ENDED], app[ACTIVITY] = service, service.engine, service.ended, service.activity
    app[STREAMS] = WeakSet()
    server = Server(service, e2b)
    e2b.welcome = server.welcome

    async def begin(app: web.Application) -> None:
        server.warmth.open()
        await asyncio.gather(server.yard.discard(), asyncio.to_thread(compiled))

    async def end(app: web.Application) -> None:
        await server.warmth.close()
        await server.yard.close()

    app.on_startup.append(begin)
    app.on_shutdown.append(streams.end_all)
    app.on_cleanup.append(end)
    app.router.add_route("*", r"/{tail:[\s\S]*}", server.handle)
    return app


class Server:
    """Handles requests. Answers as Joey's own API does to whom it must be fair to: by key."""

    def __init__(self, service: Service, e2b: E2B) -> None:
        self.service, self.e2b = service, e2b
        self.control = Router((*control.ROUTES, *snapshots.ROUTES, *templates.ROUTES, *output.ROUTES))
        self.envd = Router((*envd.ROUTES, *process.ROUTES, *filesystem.ROUTES))
        self.state = envd.State()
        self.catalogue = catalogue.of(service)
        self.warmth = Warmth(service)
        self.yard = Yard(service, self.catalogue)
        self._welcomed: set[str] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        activity = self.service.activity
        activity.open += 1
        path = request.raw_path.partition("?")[0]
        answer: Callable[[Exception], web.Response] = errors.response
        try:
            port = _port(request)
            if port not in (0, ENVD_PORT):
                return await self._forward(request, port)
            if path.startswith(ENVD):
                if path.count("/") == 2:
                    answer = errors.connect
                return await self._envd(request, path)
            return await self._control(request, path)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            return answer(error)
        finally:
            activity.done()

    async def _control(self, request: web.Request, path: str) -> web.StreamResponse:
        key = self.service.access.find(request.headers.get("X-API-KEY", ""))
        uploads = path.startswith(templates.UPLOADS) and request.method == "PUT"  # by a link, which says who may
        if key is None and not uploads:
            raise Failure(401, "the API key (E2B_API_KEY) is missing, wrong or revoked: joey keys create --e2b")
        route, variables = _found(self.control, request.method, path)
        call = self._owned(request, route, variables, key)
        if call.ref:
            call.ref = self._id(call.ref, call.visible)
        try:
            return await self._counted(call)
        finally:
            if key is not None:
                self._greet(call)

    def _owned(self, request: web.Request, route: Route, variables: dict[str, str], key: Key | None) -> Owned:
        call = Owned(request, route, self.service, variables, self.e2b)
        call.catalogue, call.warmth, call.yard = self.catalogue, self.warmth, self.yard
        call.key, call.owner = key, "" if key is None or key.admin else key.id
        return call

    def _greet(self, call: Owned) -> None:
        """A key that is seen for the first time, once its request is done."""
        if call.owner not in self._welcomed:
            self._welcomed.add(call.owner)
            control.welcome(call)

    def welcome(self, call: Call, key: Key) -> None:
        """A key that somebody has just asked for: `joey env e2b`."""
        owned = self._owned(call.request, call.route, {}, key)
        self._welcomed.add(owned.owner)
        control.welcome(owned, interpreter=True)

    async def _envd(self, request: web.Request, path: str) -> web.StreamResponse:
        route, variables = _found(self.envd, request.method, path)
        call = EnvdCall(request, route, self.service, variables, self.e2b)
        call.state = self.state
        id = await self._sandbox(request, path)
        call.detail = await self._detail(id)
        if path != "/health":
            self._admit(call)
        call.ref = call.detail.sandbox.id
        call.owner = call.detail.sandbox.owner
        await envd.awake(call)
        return await self._counted(call)

    async def _forward(self, request: web.Request, port: int) -> web.StreamResponse:
        """To another port of a sandbox."""
        call = EnvdCall(request, ports.FORWARD, self.service, {}, self.e2b)
        call.detail = await self._detail(await self._sandbox(request, ""))
        call.ref, call.owner = call.detail.sandbox.id, call.detail.sandbox.owner
        call.port = port
        return await self._counted(call)

    async def _sandbox(self, request: web.Request, path: str) -> str:
        """Of the headers that SDKs send, of the host, or of the signature of a link."""
        if id := request.headers.get("E2b-Sandbox-Id"):
            return id
        if match := _HOST.match(request.headers.get("Host", "")):
            return match[2]
        if token := request.headers.get("X-Access-Token"):
            return token[:_ID_LENGTH]  # 2.10 says no more of a sandbox that it has connected to
        if path == "/files" and (signature := request.query.get("signature")):
            return await envd.signed_for(self.service.engine, self.e2b, request, signature)
        raise Failure(400, "no sandbox is named: send the header E2b-Sandbox-Id")

    async def _detail(self, id: str) -> Detail:
        try:
            if not _ID.fullmatch(id):
                raise NotFound("", GONE)
            detail = await self.service.engine.inspect(id)
        except NotFound:
            raise Failure(502, GONE) from None
        if detail.sandbox.state not in ("running", "paused"):
            raise Failure(502, GONE)
        return detail

    def _admit(self, call: EnvdCall) -> None:
        id = call.detail.sandbox.id
        given = call.request.headers.get("X-Access-Token")
        if given is None and (signature := call.request.query.get("signature")):
            if envd.signature_holds(call.request, self.e2b.token(id), signature):
                return
            raise Failure(401, "the signature is wrong or has expired")
        if given is None or not hmac.compare_digest(given.encode(), self.e2b.token(id).encode()):
            raise Failure(401, "the sandbox's access token (X-Access-Token) is missing or wrong")

    def _id(self, ref: str, owner: str | None) -> str:
        """Whole ids only, as E2B has them."""
        try:
            if not _ID.fullmatch(ref):
                raise NotFound("", "")
            return self.service.engine.resolve(ref, owner)
        except NotFound:
            raise Failure(404, f"Sandbox \"{ref}\" doesn't exist or you don't have access to it") from None

    async def _counted(self, call: Owned) -> web.StreamResponse:
        """A key's requests count together with those to Joey's own API."""
        service, owner = self.service, call.owner
        mine = service.by_owner.get(owner, 0)
        if owner and mine >= service.max_per_key:
            raise TooMany("key", f"{mine} requests of this key are under way", "wait for some", retry_after=1)
        service.by_owner[owner] = mine + 1
        try:
            value = await _called(call)
        finally:
            left = service.by_owner[owner] - 1
            if left:
                service.by_owner[owner] = left
            else:
                del service.by_owner[owner]
            if call.held:
                service.budget.give(owner, call.held)
        if isinstance(value, web.StreamResponse):
            return value
        if value is None:
            return web.Response(status=call.route.status)
        return call.reply(value)


async def _called(call: Owned) -> object:
    handler: Callable[[Call], Awaitable[object]] = call.route.handler
    try:
        return await handler(call)
    except JoeyError as error:
        failures = call.service.counters.failures
        failures[error.code] = failures.get(error.code, 0) + 1
        raise


def _port(request: web.Request) -> int:
    """Of a sandbox, if a request names one; else 0. Raises Invalid."""
    text = request.headers.get("E2b-Sandbox-Port", "")
    if not text and (match := _HOST.match(request.headers.get("Host", ""))):
        text = match[1]
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise Invalid("E2b-Sandbox-Port", f"{text!r} is no port")
    return int(text)


def _found(router: Router, method: str, path: str) -> tuple[Route, dict[str, str]]:
    try:
        return router.find(method, path)
    except (NoSuchPath, WrongMethod):
        raise errors.lacking(f"{method} {path}") from None
