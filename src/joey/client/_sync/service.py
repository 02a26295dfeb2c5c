# Generated from ../_async/service.py by joey.client.generate: change that one.
"""One engine as the SDK sees it: requests with retries, errors as exceptions, values decoded."""

from __future__ import annotations

import functools
import os
import secrets
import time
import weakref
from collections.abc import Mapping
from typing import Any

import msgspec

from joey.client import transport
from joey.client._sync.http import Body, Frames, Http, Response
from joey.client._sync.net import in_thread, scope, sleep
from joey.client.endpoint import Endpoint, find, may_start, start
from joey.client.errors import Busy, ConnectionLost, JoeyError, Unreachable, from_problem
from joey.model import frames

PATIENCE = 15.0
"""Seconds for which a call is repeated that is safe to repeat, while the engine is away or says that it is busy."""
_JSON = "Content-Type: application/json\r\n"
_UPGRADE = f"Connection: Upgrade\r\nUpgrade: {frames.NAME}\r\n"
_SAFE = ("GET", "PUT", "DELETE")


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(kind: Any, data: bytes) -> Any:
    """The value of type `kind` in JSON. Raises ConnectionLost if it is none."""
    try:
        return _decoder(kind).decode(data)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ConnectionLost("", f"the engine's answer makes no sense: {error}", "is it of another version?") from None


def quote(text: str) -> str:
    """Percent-encoding of everything but RFC 3986's unreserved characters."""
    return str(transport.quote(text))  # type: ignore[no-untyped-call]


def query(values: Mapping[str, Any]) -> str:
    """`?a=1&b=2`; None and False are left out, True is `true`, a list repeats its name."""
    return str(transport.query(values))  # type: ignore[no-untyped-call]


class Service:
    """Requests to one engine."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.http = Http(endpoint)

    def call(
        self,
        method: str,
        path: str,
        value: Any = None,
        kind: Any = None,
        *,
        safe: bool | None = None,
        headers: str = "",
        wait: float | None = None,
    ) -> Any:
        """Send `value` as JSON, return the answer decoded as `kind` (None: not at all).

        safe: repeat it when its answer was lost (by default GET, PUT and DELETE). Raises JoeyError.
        """
        body = b"" if value is None else msgspec.json.encode(value)
        response = self.open(method, path, body, headers=_JSON + headers, safe=safe, wait=wait)
        data = response.read()
        return decode(kind, data) if kind is not None else None

    def open(
        self,
        method: str,
        path: str,
        body: Body = b"",
        *,
        headers: str = "",
        safe: bool | None = None,
        wait: float | None = None,
    ) -> Response:
        """The answer of a success, its body unread. Raises JoeyError."""
        if not isinstance(body, bytes):
            safe, wait = False, 0.0  # it can be sent only once
        elif safe is None:
            safe = method in _SAFE
        end, delay = 0.0, 0.02
        while True:
            try:
                response = self.http.send(method, path, body, headers)
                if response.status < 300:
                    return response
                raise _problem(response)
            except (Busy, ConnectionLost) as error:
                now = time.monotonic()
                end = end or now + (PATIENCE if wait is None else wait)  # since the first failure: a call may take long
                pause = error.retry_after if isinstance(error, Busy) else delay
                if not self._again(error, safe) or now + pause > end:
                    raise
                if isinstance(error, Unreachable) and may_start(self.endpoint, error):
                    in_thread(start)
            sleep(pause)
            delay = min(2 * delay, 1.0)

    def _again(self, error: Busy | ConnectionLost, safe: bool) -> bool:
        """Whether what failed so may be sent again."""
        if isinstance(error, Busy):
            return error.status == 503  # a full queue; a key's limit does not pass by waiting
        if isinstance(error, Unreachable):
            return not error.lasting
        return safe

    def upgrade(
        self, path: str, value: Any = None, *, headers: str = "", safe: bool = False
    ) -> tuple[Frames, dict[str, str]]:
        """Open a stream of frames; it and the answer's headers."""
        body = b"" if value is None else msgspec.json.encode(value)
        response = self.open("POST", path, body, headers=_JSON + _UPGRADE + headers, safe=safe)
        if response.status != 101:
            response.close()
            raise ConnectionLost("", f"the engine answered {response.status} instead of opening a stream")
        return Frames(*response.take()), response.headers


def _problem(response: Response) -> JoeyError:
    try:
        document = msgspec.json.decode(response.read())
    except (ConnectionLost, msgspec.MsgspecError):
        document = {}
    return from_problem(
        response.status, document if isinstance(document, dict) else {}, response.headers.get("retry-after")
    )


def idempotency() -> str:
    """The header that makes a create safe to repeat."""
    return f"Idempotency-Key: {secrets.token_hex(16)}\r\n"


class _Process:
    """What services are shared within when there is no loop."""


_PROCESS = _Process()
_services: weakref.WeakKeyDictionary[Any, dict[Endpoint, Service]] = weakref.WeakKeyDictionary()
# After a fork both sides would use the same connections: the child forgets them (and closes only its own copies).
os.register_at_fork(after_in_child=_services.clear)


def service(url: str | None = None, api_key: str | None = None) -> Service:
    """The service at an address, shared by all who ask for the same one. Raises Invalid."""
    return shared(find(url, api_key))


def shared(endpoint: Endpoint) -> Service:
    """The service of an endpoint within this loop or process."""
    mine = _services.setdefault(scope() or _PROCESS, {})
    return mine.get(endpoint) or mine.setdefault(endpoint, Service(endpoint))


def close() -> None:
    """Close all connections that are idle. Nobody has to: they are kept for the next call, and cost a descriptor."""
    for one in list(_services.values()):
        for kept in one.values():
            kept.http.close()


__all__ = ["Service", "close", "decode", "idempotency", "query", "quote", "service", "shared"]
