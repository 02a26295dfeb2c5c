"""Serving: by standard input and output, or by HTTP with the engine's keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings

from joey._version import __version__
from joey.client._async.service import Service
from joey.client.endpoint import find
from joey.client.errors import AuthenticationError, Invalid, JoeyError
from joey.mcp.session import Sessions, of_key
from joey.mcp.settings import Settings
from joey.mcp.tools import Tools

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/mcp"
_INSTRUCTIONS = (
    "Sandboxes are isolated Linux machines, made in milliseconds. Without a sandbox's id the tools use the newest of "
    "this session, and make one first if there is none. Files stay in a sandbox as long as it lives; it is removed "
    "when this session ends, so bring results out with read_file."
)


class Server(MCPServer[Any]):
    """The library's, that refuses what it would drop."""

    _known: dict[str, dict[str, Any]] | None = None

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        """An argument that a tool does not have is an error: what is asked for is never ignored."""
        if self._known is None:
            self._known = {tool.name: tool.input_schema.get("properties", {}) for tool in await self.list_tools()}
        known = self._known.get(name, arguments)
        if unknown := sorted(arguments.keys() - known.keys()):
            raise ToolError(f"{unknown[0]}: {name} has no such argument\ntry: {', '.join(known) or 'none'}")
        return await super().call_tool(name, arguments, context)


def make(settings: Settings) -> tuple[MCPServer[Any], Sessions]:
    """A server with its tools, and the sessions it serves."""
    sessions = Sessions(settings)
    server = Server(
        "joey", title="Joey", instructions=_INSTRUCTIONS, version=__version__, lifespan=sessions.living,
        log_level="WARNING",
    )  # fmt: skip
    Tools(sessions, settings).add_to(server)
    return server, sessions


def stdio(settings: Settings) -> int:
    """Serve one agent, until it closes our input."""
    server, sessions = make(settings)

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        async def leave(number: int) -> None:
            # Reading from standard input cannot be interrupted: whoever does it is left behind.
            await sessions.end_all()
            os._exit(128 + number)

        leaving: set[asyncio.Task[None]] = set()

        def told(number: int) -> None:
            leaving.add(loop.create_task(leave(number)))

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, told, number)
        await server.run_stdio_async()

    asyncio.run(serve())
    return 0


def http(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> int:
    """Serve agents by HTTP, until a signal. `say` is told the URL. Raises OSError if the address cannot be had."""
    server, sessions = make(settings)
    sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = sock.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    app = Door(server.streamable_http_app(host=host, transport_security=_security(host)), sessions)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    say(f"http://{shown}:{port}{PATH}")
    with contextlib.closing(sock), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))
    return 0


def _security(host: str) -> TransportSecuritySettings | None:
    """What keeps pages of a browser from calling a server of this machine by a name of their own (DNS rebinding): on
    the loopback the library's own check. Elsewhere we do not know our names, and the key does it, which no browser
    sends by itself.
    """
    if host in ("127.0.0.1", "localhost", "::1"):
        return None
    return TransportSecuritySettings(enable_dns_rebinding_protection=False)


class Door:
    """Lets in who brings a key of the engine, and sees sessions end."""

    def __init__(self, app: App, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, _, key = headers.get("authorization", "").partition(" ")
        refusal = await _refusal(key.strip() if scheme.lower() == "bearer" else "")
        if refusal:
            await _answer(send, *refusal)
            return
        token = AccessToken(token=key.strip(), client_id=of_key(key.strip()), scopes=[])
        scope["user"] = AuthenticatedUser(token)  # by which the library holds a session to the key that began it
        session = headers.get("mcp-session-id", "")
        if scope["method"] != "DELETE" or not session:
            await self._app(scope, receive, send)
            return

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                await self._sessions.end(session)  # before the answer: who has it finds nothing left
            await send(message)

        await self._app(scope, receive, seen)


async def _refusal(key: str) -> tuple[int, str] | None:
    """Why a key does not let in. The engine is asked each time: a key that was revoked is none at once."""
    if not key:
        return 401, "an API key of Joey is missing: Authorization: Bearer KEY (joey keys create)"
    try:
        # One of our own: a shared one would stay, for every key that somebody tries.
        service = Service(find(api_key=key))
    except Invalid as error:
        return 401, str(error)
    try:
        await service.call("GET", "/v1/health", wait=2.0)
    except AuthenticationError:
        return 401, "the API key is wrong or revoked"
    except JoeyError as error:
        return 503, str(error)
    finally:
        service.http.close()
    return None


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="joey"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
