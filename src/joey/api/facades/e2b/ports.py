"""HTTP to any port of a sandbox by the one address of all, as SDKs do with headers (E2b-Sandbox-Id, E2b-Sandbox-Port)
where `get_host` would give a name. The code interpreter is reached so: port 49999.

A request is one connection into the sandbox; when either side leaves, the other one's goes, too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import time

from joey.api.facades.e2b.call import EnvdCall
from joey.api.facades.e2b.connect import Answer
from joey.api.facades.e2b.envd import awake
from joey.api.facades.e2b.errors import GONE, Failure, lacking
from joey.api.facades.e2b.kinds import INTERPRETER, INTERPRETER_PORT, OWN_ENV
from joey.api.light import web
from joey.api.routes import Route
from joey.model import codec
from joey.model.errors import JoeyError
from joey.network.http_body import body
from joey.network.http_head import UNTIL_CLOSE, Refused, Response, end_of, read_response

TRAFFIC = "E2B-Traffic-Access-Token"
_DROPPED = frozenset((
    "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "content-length", "expect", "e2b-sandbox-id", "e2b-sandbox-port", "x-access-token", TRAFFIC.lower(), "x-joey-env",
))  # fmt: skip
_HEAD = 64 << 10
_PIECE = 64 << 10
_STARTS_SECONDS = 30.0
_AGAIN_SECONDS = 0.005


async def forward(call: EnvdCall) -> web.StreamResponse:
    """Answer with what listens at the request's port. Raises Failure: 401 without the token of a sandbox that is not
    for everybody, 502 for what does not run, does not listen, or is no HTTP.
    """
    port, token = call.port, call.detail.spec.proxy_token
    if token is not None:
        given = call.request.headers.get(TRAFFIC, "")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise Failure(401, f"the sandbox's traffic access token ({TRAFFIC}) is missing or wrong")
    if "upgrade" in call.request.headers.get("Connection", "").lower():
        raise lacking("upgrading a connection by this address (use get_host)")
    await awake(call)
    try:
        door = call.engine.door(call.ref)
    except JoeyError:
        raise Failure(502, GONE) from None
    door.hold()
    try:
        reader, writer = await _connected(call, door, port)
        sending = asyncio.ensure_future(_send(call, port, writer))
        try:
            try:
                answer, rest = await _head(call, reader)
            except (OSError, Refused) as error:
                raise await _broken(call, port, error) from None
            return await _passed(call, answer, rest, reader)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.transport.abort()
    finally:
        door.release()


async def _connected(call: EnvdCall, door: object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Of an interpreter that was just started: as soon as it listens."""
    patient = port == INTERPRETER_PORT and INTERPRETER in call.detail.sandbox.labels
    end, pause = time.monotonic() + _STARTS_SECONDS, _AGAIN_SECONDS
    while True:
        try:
            sock = await door.connect(port)  # type: ignore[attr-defined]
            return await asyncio.open_connection(sock=sock, limit=_HEAD)
        except OSError as error:
            if not patient or time.monotonic() > end or not await _runs(call):
                raise await _broken(call, port, error) from None
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, 0.02)


async def _runs(call: EnvdCall) -> bool:
    try:
        return (await call.engine.inspect(call.ref)).sandbox.state in ("running", "paused")
    except JoeyError:
        return False


async def _broken(call: EnvdCall, port: int, error: Exception) -> Failure:
    if not await _runs(call):
        return Failure(502, GONE)
    if isinstance(error, OSError) and not isinstance(error, ConnectionResetError):
        more = ": it was not made from the template code-interpreter-v1" if port == INTERPRETER_PORT else ""
        return Failure(502, f"The sandbox is running but nothing listens on port {port}{more}")
    return Failure(502, f"what listens on port {port} of the sandbox gave no whole answer")


async def _head(call: EnvdCall, reader: asyncio.StreamReader) -> tuple[Response, bytes]:
    """→ the head of the answer, what has come of its body. Raises Refused, OSError."""
    held = bytearray()
    while True:
        while not (stop := end_of(held)):
            if len(held) > _HEAD or not (piece := await reader.read(_PIECE)):
                raise ConnectionResetError
            held += piece
        answer = read_response(bytes(held[:stop]), call.request.method.encode())
        del held[:stop]
        if answer.status >= 200:
            return answer, bytes(held)


async def _passed(call: EnvdCall, answer: Response, data: bytes, reader: asyncio.StreamReader) -> web.StreamResponse:
    """The answer to the client. Raises ConnectionResetError where it is cut off, so that the client sees it."""
    # A head after which nothing has come yet may be all that comes for a while.
    response = (Answer if data else web.StreamResponse)(status=answer.status)
    for name, raw, value in answer.fields:
        if name.decode("latin-1") not in _DROPPED:
            response.headers.add(raw.decode("latin-1"), value.decode("latin-1"))
    content = body(answer.length, framed=False)
    if answer.length >= 0:
        response.content_length = answer.length
    await response.prepare(call.request)
    try:
        while True:
            bare, _ = content.feed(data)
            if bare:
                await response.write(bare)
            if content.done:
                break
            if not (data := await reader.read(_PIECE)):
                if answer.length == UNTIL_CLOSE:
                    break
                raise ConnectionResetError("the answer is not whole")
    except Refused:
        raise ConnectionResetError("the answer is no HTTP") from None
    finally:
        if not content.done and answer.length != UNTIL_CLOSE and call.request.transport is not None:
            call.request.transport.abort()
    await response.write_eof()
    return response


async def _send(call: EnvdCall, port: int, writer: asyncio.StreamWriter) -> None:
    request = call.request
    lines = [f"{request.method} {request.raw_path} HTTP/1.1", f"Host: localhost:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() not in _DROPPED]
    if port == INTERPRETER_PORT and (env := _environment(call)):
        lines.append(f"X-Joey-Env: {env}")
    length = request.content_length
    chunked = length is None and request.body_exists
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    elif length is not None:
        lines.append(f"Content-Length: {length}")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
    with contextlib.suppress(ConnectionError):
        async for piece in call.chunks():
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()


FORWARD = Route("*", "/", forward, "A port of a sandbox", stream=True)


def _environment(call: EnvdCall) -> str:
    """What the sandbox was made with, for programs that run before they could know."""
    own = {name: value for name, value in call.detail.spec.process.env.items() if name not in OWN_ENV}
    own["E2B_SANDBOX_ID"] = call.ref
    return base64.b64encode(codec.encode(own)).decode()
