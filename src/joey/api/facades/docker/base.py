"""A request of a Docker client, what handlers need of it, and errors in Docker's shape: {"message": …}."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, unquote

from joey.api.light import web
from joey.api.requests import MAX_BODY
from joey.api.routes import whole
from joey.images import library
from joey.model import codec
from joey.model.errors import Broken, Invalid, JoeyError, NotFound

if TYPE_CHECKING:
    from joey.api.facades.docker.state import State
    from joey.api.service import Service
    from joey.engine.interface import Engine
    from joey.images.library import Library

T = TypeVar("T")
VERSION = "1.45"
LEAST = "1.24"
_MOST, _LEAST = (tuple(int(part) for part in text.split(".")) for text in (VERSION, LEAST))
NOT_IMPLEMENTED = 501


class Refused(JoeyError):
    """Joey lacks what is asked for: 501 with a message that says so."""

    status = NOT_IMPLEMENTED
    code = "not-supported"
    title = "Not supported"


class Req:
    """One request. path: the variables of the route; query: the last value of each parameter."""

    __slots__ = ("_data", "_values", "engine", "path", "query", "request", "service", "state")

    def __init__(self, request: web.Request, service: Service, state: State, path: dict[str, str], query: str) -> None:
        self.request = request
        self.service = service
        self.engine: Engine = service.engine
        self.state = state
        self.path = path
        self._values = parse_qs(query, keep_blank_values=True)
        self.query = {name: values[-1] for name, values in self._values.items()}
        self._data: bytes | None = None

    @property
    def id(self) -> str:
        """The container of the path. Raises NotFound in Docker's words."""
        return self.find(self.path["id"])

    def find(self, ref: str) -> str:
        """The id of a container by id, unique beginning of one or name."""
        try:
            return self.engine.resolve(ref.removeprefix("/"))
        except NotFound:
            raise NotFound("", f"No such container: {ref}") from None

    def flag(self, name: str, default: bool = False) -> bool:
        """As Go's httputils.BoolValue: everything but "", 0, no, false and none is true."""
        text = self.query.get(name)
        return default if text is None else text.strip().lower() not in ("", "0", "no", "false", "none")

    def many(self, name: str) -> list[str]:
        """All values of a parameter that may come several times."""
        return [value for value in self._values.get(name, ()) if value]

    def changes(self) -> tuple[str, ...]:
        """Instructions of a Dockerfile, a line each."""
        return tuple(line for text in self.many("changes") for line in text.split("\n") if line)

    def number(self, name: str, default: int | None = None) -> int | None:
        """Raises Invalid naming the parameter."""
        text = self.query.get(name, "")
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise Invalid(name, f"{text!r} is not a whole number") from None

    def moment(self, name: str) -> float | None:
        """Seconds since the epoch, as the command line sends it: SECONDS.NANOSECONDS. Raises Invalid."""
        text = self.query.get(name, "")
        if text in ("", "0"):
            return None
        try:
            return float(text)
        except ValueError:
            raise Invalid(name, f"{text!r} is not a number of seconds") from None

    def tell(self, kind: str, action: str, id: str, **attributes: str) -> None:
        """Something happened that the engine has no event for (events.py)."""
        one = self.engine.find(id).view() if kind == "container" else None  # type: ignore[attr-defined]
        if one is not None:
            attributes["image"] = one.image
        labels = dict(one.labels) if one is not None else {}
        name = one.name if one is not None else attributes.pop("name", "")
        self.state.news.emit(f"{kind}.{action}", sandbox=id, name=name, labels=labels, **attributes)

    def filters(self, *known: str) -> dict[str, list[str]]:
        """The parameter `filters`, {name: [value]} or {name: {value: true}}. Raises Invalid for one not `known`."""
        text = self.query.get("filters", "")
        try:
            found = codec.decode(dict[str, dict[str, bool] | list[str]], text) if text else {}
        except Invalid as failure:
            raise Invalid("", f"invalid filter: {failure}") from None
        for name in found:
            if name not in known:
                raise Invalid("", f"invalid filter '{name}': Joey knows {', '.join(known) or 'none'} here")
        return {
            name: [key for key, on in values.items() if on] if isinstance(values, dict) else [str(v) for v in values]
            for name, values in found.items()
        }

    async def data(self) -> bytes:
        """The body, MAX_BODY bytes at most. Raises 413."""
        if self._data is None:
            if (self.request.content_length or 0) > MAX_BODY:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY, self.request.content_length or 0)
            async with asyncio.timeout(self.service.body_timeout):
                self._data = await self.request.read()
        return self._data

    async def json(self) -> dict[str, Any]:
        """The body as an object; {} if there is none. Raises Invalid."""
        data = await self.data()
        value = codec.decode(object, data) if data.strip() else {}
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Invalid("body", "must be a JSON object")
        return value

    async def chunks(self) -> AsyncIterator[bytes]:
        """A body of any size as it comes."""
        while True:
            async with asyncio.timeout(self.service.body_timeout):
                piece = await self.request.content.readany()
            if not piece:
                return
            yield piece

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` to its end even if the client leaves."""
        return await whole(work)

    @property
    def images(self) -> Library:
        """Raises Broken for an engine without any (a fake)."""
        instance = getattr(self.engine, "instance", None)
        if instance is None:
            raise Broken("images", "this engine keeps no images")
        return library.of(instance)

    @property
    def gateway(self) -> str:
        """Of all networks; "" while there is none."""
        fabric = getattr(getattr(self.engine, "networks", None), "fabric", None)
        return str(fabric.gateway) if fabric is not None else ""

    async def stream(self, media: str = "application/json") -> web.StreamResponse:
        """Begin an answer that lasts: its head is sent at once."""
        response = web.StreamResponse(headers={"Content-Type": media})
        await response.prepare(self.request)
        return response


_NOTHING = ("", "0", "false", "none", "null", "[]", "{}")
Handler = Callable[[Req], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """path: `{id}` is one segment, `{name}` may hold slashes. query: the parameters it knows, between spaces; a request
    with another one is refused. What a handler returns: None is 204, a StreamResponse itself, anything else JSON with
    `status`.
    """

    method: str
    path: str
    handler: Handler
    query: str = ""
    status: int = 200

    def check(self, query: Mapping[str, str]) -> None:
        """Raises Refused for a parameter that nobody would look at, unless its value asks for nothing."""
        known = self.query.split()
        for name, value in query.items():
            if name not in known and value.lower() not in _NOTHING:
                there = f"it knows {', '.join(known)}" if known else "it knows none"
                raise Refused("", f"the parameter {name}={value!r} is not supported by {self.path}: {there}")

    @property
    def pattern(self) -> re.Pattern[str]:
        text = re.sub(r"\{name\}", "(?P<name>.+)", self.path)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text))


def error(status: int, message: str) -> web.Response:
    """Docker's shape of an error."""
    return answer({"message": message}, status)


def answer(value: Any, status: int = 200) -> web.Response:
    """JSON, of exactly that media type: Docker's client reads errors of no other."""
    return web.Response(body=codec.encode(value), status=status, content_type="application/json")


def described(failure: JoeyError) -> web.Response:
    """The answer for an error of ours."""
    text = str(failure)
    if failure.remedy:
        text += f" (try: {failure.remedy})"
    return error(status_of(failure), text)


def status_of(failure: JoeyError) -> int:
    """What Docker's clients understand: a request that cannot be served as it is is 400."""
    return {422: 400, 507: 500}.get(failure.status, failure.status)


def split(raw: str) -> tuple[str, str]:
    """Path without /vN.NN, decoded, and query. Raises Invalid for a version we do not speak."""
    path, _, query = raw.partition("?")
    if match := re.match(r"/v(\d+)\.(\d+)(?=/)", path):
        asked = int(match[1]), int(match[2])
        if not _LEAST <= asked <= _MOST:
            old = "old. Minimum" if asked < _LEAST else "new. Maximum"
            least = LEAST if asked < _LEAST else VERSION
            text = f"client version {asked[0]}.{asked[1]} is too {old} supported API version is {least}"
            raise Invalid("", f"{text} (try: DOCKER_API_VERSION={VERSION})")
        path = path[match.end() :]
    try:
        return unquote(path, errors="strict"), query
    except UnicodeDecodeError:
        raise Invalid("path", "is not UTF-8") from None


@contextmanager
def said_as(kind: str, name: str) -> Iterator[None]:
    """What is not found is said as Docker says it: clients look for the words."""
    try:
        yield
    except JoeyError as failure:
        if failure.status != 404:
            raise
        raise NotFound("", f"No such {kind}: {name}") from None


__all__ = ["LEAST", "VERSION", "Handler", "Refused", "Req", "Route", "answer", "described", "error", "said_as", "split"]
