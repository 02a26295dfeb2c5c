"""ASGI applications (version 3: `async def app(scope, receive, send)`): lifespan and http."""

import asyncio
from urllib.parse import unquote

from . import loader

_VERSIONS = {"version": "3.0", "spec_version": "2.3"}


class Application:
    """One application; a request and its answer are an invocation."""

    asynchronous = True

    def __init__(self, application, config):
        self.application = application
        self.state = {}
        self._lifespan = None

    async def begin(self):
        """The lifespan's startup, of an application that has one. Raises what it fails with."""
        self._events = asyncio.Queue()
        self._told = asyncio.Queue()
        self._lifespan = asyncio.ensure_future(self._live())
        await self._events.put({"type": "lifespan.startup"})
        told = await self._told.get()
        if told.get("type") == "lifespan.startup.failed":
            raise loader.Failed("Runtime.ExitError", "the application did not start: " + told.get("message", ""))

    async def _live(self):
        scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self.state}
        try:
            await self.application(scope, self._events.get, self._told.put)
        except Exception:
            pass  # the specification's way to say that it knows no lifespan
        finally:
            self._told.put_nowait({})

    async def end(self):
        """The lifespan's shutdown."""
        if self._lifespan is not None and not self._lifespan.done():
            await self._events.put({"type": "lifespan.shutdown"})
            await self._told.get()
            self._lifespan.cancel()

    def scope(self, call):
        """What an application gets."""
        http = call.head.get("http") or {"method": "POST", "path": "/invoke", "query": "", "headers": []}
        return {
            "type": "http",
            "asgi": _VERSIONS,
            "http_version": "1.1",
            "method": http["method"],
            "scheme": http.get("scheme", "http"),
            "path": unquote(http["path"]),
            "raw_path": http["path"].encode("latin-1", "replace"),
            "query_string": http.get("query", "").encode("latin-1", "replace"),
            "root_path": "",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in http["headers"]],
            "client": (http["client"], 0) if http.get("client") else None,
            "server": None,
            "state": dict(self.state),
            "lambda.context": call.context,
            "fc.context": call.context,
        }

    async def arun(self, call):
        """One invocation, to its end."""
        request = _Request(call)
        try:
            await self.application(self.scope(call), request.receive, request.send)
            if not request.ended:
                raise loader.Failed("Runtime.ExitError", "the application returned before it had answered")
        except (Exception, KeyboardInterrupt) as error:
            if request.ended:
                loader.tell(loader.failure(error, call.context.aws_request_id))
            else:
                call.failed(error)
        finally:
            request.finish()


class _Request:
    def __init__(self, call):
        self.call = call
        self.head = None
        self.asked = self.ended = False
        self.over = asyncio.Event()
        self.whole = None

    async def receive(self):
        """The request's body, then its end."""
        if self.asked:
            await self.over.wait()
            return {"type": "http.disconnect"}
        self.asked = True
        return {"type": "http.request", "body": self.call.body, "more_body": False}

    async def send(self, message):
        """The answer's head and pieces."""
        kind = message["type"]
        if kind == "http.response.start":
            if self.head is not None:
                raise RuntimeError("http.response.start was sent before")
            headers = [[_text(name), _text(value)] for name, value in message.get("headers", ())]
            self.head = {"status": message["status"], "headers": headers}
            return
        if kind != "http.response.body" or self.head is None or self.ended:
            raise RuntimeError(f"{kind} was not expected")
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self.call.started and not more and len(body) <= self.call.credit:
            self.whole = bytes(body)
        elif not self.call.started:
            self.call.open(self.head)
            await self.call.awrite(body)
        else:
            await self.call.awrite(body)
        if not more:
            self.ended = True
            self.over.set()

    def finish(self):
        """The application is through with it: what it does after its answer is part of the invocation."""
        if self.ended:
            if self.whole is not None:
                self.call.complete(self.head, self.whole)
            else:
                self.call.done()


def _text(value):
    return bytes(value).decode("latin-1")
