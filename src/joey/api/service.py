"""What one server carries, and the one place every request goes through: route, caller, owner, query, errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from joey.api import function_urls, params, problem
from joey.api.auth import Access
from joey.api.budget import SMALL, Budget
from joey.api.config import Settings
from joey.api.database import Database
from joey.api.doorway import Doorway
from joey.api.facades.aws_lambda.entry import Lambda
from joey.api.facades.docker.entry import Docker
from joey.api.facades.e2b.entry import E2B
from joey.api.facades.fc.entry import FC
from joey.api.idempotency import Idempotency
from joey.api.keys import Activity
from joey.api.light import web
from joey.api.metrics import Counters
from joey.api.routes import Call, NoSuchPath, Route, Router, WrongMethod, reply
from joey.engine.interface import Engine
from joey.functions.deploy import Deployments
from joey.functions.service import URLS
from joey.model.errors import Busy, JoeyError, TooMany


class Service:
    """An engine and what stands around it. `table` is every route; several applications (listeners) may share one."""

    def __init__(
        self, engine: Engine, table: Iterable[Route], database: Path | None = None, settings: Settings | None = None
    ) -> None:
        """`database`: the file for keys and answers; without one they last as long as this."""
        self.engine = engine
        self.table = tuple(table)
        self.router = Router(self.table)
        self.database = Database(database)
        self.access = Access(self.database)
        self.idempotency = Idempotency(self.database)
        self.counters = Counters()
        self.documents: dict[str, bytes] = {}
        self.activity = Activity()
        self.doorway = Doorway(engine, settings or Settings(), database.parent if database else None)
        self.functions = Deployments(
            engine, database.parent if database else None, lambda owner: self.access.limits(owner).invocations
        )
        self.e2b = E2B(self, database.parent if database else None)
        self.aws_lambda = Lambda(self, database.parent if database else None)
        self.fc = FC(self, database.parent if database else None)
        self.docker = Docker(self, database.parent if database else None, settings or Settings())
        self.ended = asyncio.Event()
        settings = settings or Settings()
        engine.limit(self.access.limits, settings.node)
        self.max_requests, self.body_timeout = settings.max_requests, settings.body_timeout
        self.max_per_key, self.keys_pull = settings.max_requests_per_key, settings.keys_pull
        self.by_owner: dict[str, int] = {}
        self.budget = Budget()
        self.in_flight = 0
        self.parsers = {
            id(route): (
                {param.name: param for param in route.query},
                tuple(param.name for param in route.query if param.required),
            )
            for route in self.table
        }

    def handler(self, local: bool) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """What answers every request of one listener. local: it is the unix socket, whose clients administer."""

        async def handle(request: web.Request) -> web.StreamResponse:
            activity = self.activity
            activity.open += 1
            try:
                return await self._answer(request, local)
            except JoeyError as error:
                failures = self.counters.failures
                failures[error.code] = failures.get(error.code, 0) + 1
                return problem.response(error)
            except NoSuchPath:
                return problem.answer(404, "no-such-path", "Not found", "there is nothing at this path")
            except WrongMethod as error:
                allowed = ", ".join(error.allowed)
                return problem.answer(
                    405, "method", "Method not allowed", f"this path takes {allowed}", headers={"Allow": allowed}
                )
            except web.HTTPException as error:
                return problem.of_http(error)
            except (ConnectionError, asyncio.CancelledError):
                raise  # the client went away
            except Exception as error:
                return problem.defect(error)
            finally:
                activity.done()

        return handle

    async def _answer(self, request: web.Request, local: bool) -> web.StreamResponse:
        path, _, raw_query = request.raw_path.partition("?")
        if path.startswith(URLS):
            return await function_urls.serve(self, request, path, raw_query, local)
        route, variables = self.router.find(request.method, path)
        call = Call(request, route, self, variables)
        if not local or "Authorization" in request.headers or "X-API-Key" in request.headers:
            self.access.admit(call, local)
        if raw_query or route.query:
            call.query = params.parse(raw_query, *self.parsers[id(route)])
        if call.ref:
            call.ref = self.engine.resolve(call.ref, call.visible)
        if not call.owner:
            return await self._handle(call)
        with self.counted(call.owner):
            return await self._handle(call)

    @contextlib.contextmanager
    def counted(self, owner: str) -> Iterator[None]:
        """A request of that owner is under way inside the block. Raises TooMany."""
        mine = self.by_owner.get(owner, 0)
        if owner and mine >= self.max_per_key:
            raise TooMany("key", f"{mine} requests of this key are under way", "wait for some of them", retry_after=1)
        self.by_owner[owner] = mine + 1
        try:
            yield
        finally:
            left = self.by_owner[owner] - 1
            if left:
                self.by_owner[owner] = left
            else:
                del self.by_owner[owner]

    async def _handle(self, call: Call) -> web.StreamResponse:
        try:
            return await self._whole(call, await self._called(call))
        finally:
            if call.held:
                self.budget.give(call.owner, call.held)

    @staticmethod
    async def _whole(call: Call, response: web.StreamResponse) -> web.StreamResponse:
        """A large answer is sent while it counts: a client that does not read it holds it."""
        if isinstance(response, web.Response) and response.content_length and response.content_length > SMALL:
            call.hold(response.content_length)
            await response.prepare(call.request)
            await response.write_eof()
        return response

    async def _called(self, call: Call) -> web.StreamResponse:
        route = call.route
        if route.stream:
            return self._response(call, await route.handler(call))
        if self.in_flight >= self.max_requests:
            raise Busy("requests", f"{self.in_flight} are in flight", "come back later", retry_after=1)
        self.in_flight += 1
        try:
            return self._response(call, await route.handler(call))
        finally:
            self.in_flight -= 1

    @staticmethod
    def _response(call: Call, value: Any) -> web.StreamResponse:
        if isinstance(value, web.StreamResponse):
            return value
        if value is None and call.route.status == 204:
            return web.Response(status=204)
        return reply(value, call.route.status)
