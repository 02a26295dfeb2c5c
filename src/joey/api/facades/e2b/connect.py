"""The Connect protocol with JSON (connectrpc.com/docs/protocol): unary calls are POSTs of JSON, streams are messages
with a prefix of five bytes: flags (2: the last one, about errors; 1: compressed) and the length, big-endian.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from joey.api.facades.e2b import errors
from joey.api.facades.e2b.errors import Failure
from joey.api.light import web
from joey.api.requests import MAX_BODY
from joey.api.routes import Call
from joey.model import codec
from joey.model.errors import Invalid

T = TypeVar("T")
MEDIA = "application/connect+json"
_END, _COMPRESSED = 2, 1
_HEAD = struct.Struct(">BI")
MAX_MESSAGE = MAX_BODY


def checked(call: Call) -> None:
    """Raises Failure for an encoding that is not JSON."""
    kind = call.request.content_type
    if kind not in (MEDIA, "application/json"):
        raise Failure(415, f"{kind} is not supported: send {MEDIA} or application/json", "unimplemented")


async def unary(call: Call, kind: type[T]) -> T:
    """The message of a unary call. Raises Invalid."""
    checked(call)
    return codec.decode(kind, await call.data() or b"{}")


async def single(call: Call, kind: type[T]) -> T:
    """The one message that begins a stream of answers. Raises Invalid."""
    checked(call)
    data = await call.data()
    if len(data) < _HEAD.size:
        raise Invalid("", "the message is missing")
    flags, length = _HEAD.unpack_from(data)
    if flags & _COMPRESSED:
        raise errors.lacking("compression of messages")
    if length != len(data) - _HEAD.size:
        raise Invalid("", "the message is not as long as its prefix says")
    return codec.decode(kind, data[_HEAD.size :])


async def messages(call: Call, kind: type[T]) -> AsyncIterator[T]:
    """A stream of requests, as they come. Raises Invalid."""
    held = bytearray()
    async for piece in call.request.content.iter_any():
        held += piece
        while len(held) >= _HEAD.size:
            flags, length = _HEAD.unpack_from(held)
            if length > MAX_MESSAGE:
                raise Failure(413, f"a message of {length} bytes, at most {MAX_MESSAGE} are taken")
            if len(held) < _HEAD.size + length:
                break
            data = bytes(held[_HEAD.size : _HEAD.size + length])
            del held[: _HEAD.size + length]
            if flags & _END:
                return
            if flags & _COMPRESSED:
                raise errors.lacking("compression of messages")
            yield codec.decode(kind, data)
    if held:
        raise Invalid("", "the stream ends within a message")


class Fields:
    """A message of protobuf as JSON: fields that are missing or null have their defaults, unknown ones are ignored
    (newer clients send more). Raises Invalid.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        self.value: dict[str, Any] = value
        self.where = where

    def _get(self, name: str, kind: type, default: Any) -> Any:
        value = self.value.get(name)
        if value is None:
            if default is None:
                raise Invalid(self.where + name, "is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Invalid(self.where + name, "is of a wrong type")
        return value

    def has(self, name: str) -> bool:
        return self.value.get(name) is not None

    def object(self, name: str, default: Any = None) -> Fields:
        return Fields(self._get(name, dict, None if default is None else {}), f"{self.where}{name}.")

    def text(self, name: str, default: str | None = None) -> str:
        found: str = self._get(name, str, default)
        return found

    def flag(self, name: str, default: bool) -> bool:
        found: bool = self._get(name, bool, default)
        return found

    def number(self, name: str) -> int:
        found: int = self._get(name, int, 0)
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        found = self._get(name, list, [])
        if not all(isinstance(one, str) for one in found):
            raise Invalid(self.where + name, "is a list of texts")
        return tuple(found)

    def mapping(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self._get(name, dict, {})
        if not all(isinstance(one, str) for one in found.values()):
            raise Invalid(self.where + name, "is a mapping of texts")
        return found

    def bytes(self, name: str) -> bytes:
        try:
            return base64.b64decode(self.text(name), validate=True)
        except (binascii.Error, ValueError):
            raise Invalid(self.where + name, "is no base64") from None


class Answer(web.StreamResponse):
    """Its head goes with the first message: a packet less, and a wake-up of the client's."""

    _send_headers_immediately = False


class Stream:
    """An answer of several messages. What goes wrong goes into the last one, so the status is always 200."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    @classmethod
    async def begin(cls, call: Call) -> Stream:
        response = Answer(headers={"Content-Type": MEDIA})
        await response.prepare(call.request)
        return cls(response)

    async def send(self, message: dict[str, Any]) -> None:
        """Waits while the client does not read."""
        await self._response.write(_framed(0, message))

    async def end(self, error: Exception | None = None, last: dict[str, Any] | None = None) -> web.StreamResponse:
        """The handler returns this. last: a message more, which goes in the same packet as the end."""
        end: dict[str, Any] = {}
        if error is not None:
            failure = errors.of(error)
            end["error"] = {"code": failure.code, "message": failure.message}
        await self._response.write_eof((b"" if last is None else _framed(0, last)) + _framed(_END, end))
        return self._response


def _framed(flags: int, message: dict[str, Any]) -> bytes:
    data = codec.encode(message)
    return _HEAD.pack(flags, len(data)) + data


def seconds(call: Call, header: str, unit: float) -> float | None:
    """A time in a header, in seconds; None for none. Raises Invalid."""
    text = call.request.headers.get(header, "")
    if not text:
        return None
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 16):
        raise Invalid(header, f"{text!r} is no number")
    return float(text) * unit or None
