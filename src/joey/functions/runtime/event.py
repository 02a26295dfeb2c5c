"""Handlers of events: `handler(event, context)`. What they give is JSON, or pieces of a stream."""

from json import dumps, loads
from types import GeneratorType

from . import loader

STREAM = "application/octet-stream"


class Application:
    """One handler. `bytes` events are Function Compute's, JSON's are AWS Lambda's."""

    def __init__(self, handler, config):
        self.handler = handler
        self.raw = config["event_format"] == "bytes"
        self.asynchronous = loader.asynchronous(handler)

    async def begin(self):
        """Before the first invocation: nothing."""

    end = begin

    def event(self, body):
        """What the handler gets. Raises Failed."""
        if self.raw:
            return body
        if not body:
            return {}
        try:
            return loads(body)
        except (ValueError, RecursionError) as error:
            raise loader.Failed("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None

    def encode(self, result):
        """The answer to what a handler gave. Raises Failed."""
        if self.raw:
            if isinstance(result, str):
                return result.encode("utf-8", "surrogateescape")
            if isinstance(result, (bytes, bytearray, memoryview)):
                return bytes(result)
            if result is None:
                return b""
        try:
            return dumps(result, ensure_ascii=False, default=_default).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise loader.Failed("Runtime.MarshalError", f"Unable to marshal response: {error}") from None

    def piece(self, item):
        """A piece of a stream: text and bytes as they are, everything else a line of JSON."""
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, (bytes, bytearray, memoryview)):
            return bytes(item)
        return self.encode(item) + b"\n"

    def run(self, call):
        """One invocation, to its end."""
        try:
            result = self.handler(self.event(call.body), call.context)
            if isinstance(result, GeneratorType):
                self._stream(call, result)
                return
            if hasattr(result, "__await__"):
                import asyncio

                result = asyncio.run(_wait(result))
            body = self.encode(result)
        except (Exception, KeyboardInterrupt) as error:
            call.failed(error)
        else:
            call.result(body)

    def _stream(self, call, pieces):
        if not call.head.get("stream"):
            call.result(b"".join(map(self.piece, pieces)))
            return
        for item in pieces:
            piece = self.piece(item)
            if call.started:
                call.write(piece)
            else:
                call.open({"content_type": STREAM}, piece)
        if not call.started:
            call.open({"content_type": STREAM})
        call.done()

    async def arun(self, call):
        """The same of an asynchronous handler."""
        try:
            result = self.handler(self.event(call.body), call.context)
            if hasattr(result, "__anext__"):
                await self._astream(call, result)
                return
            body = self.encode(await result)
        except (Exception, KeyboardInterrupt) as error:
            call.failed(error)
        else:
            call.result(body)

    async def _astream(self, call, pieces):
        if not call.head.get("stream"):
            call.result(b"".join([self.piece(item) async for item in pieces]))
            return
        async for item in pieces:
            piece = self.piece(item)
            if call.started:
                await call.awrite(piece)
            else:
                call.open({"content_type": STREAM}, piece)
        if not call.started:
            call.open({"content_type": STREAM})
        call.done()


async def _wait(awaitable):
    return await awaitable


def _default(value):
    kind = type(value)
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"Object of type {kind.__name__} is not JSON serializable")
