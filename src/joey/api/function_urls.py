"""Function URLs: any method to /fn/ID/… is an invocation, and so is /fn/NAME/… for its owner.

ID is of a trigger of kind `url`; with auth `none` it needs no key. A name is looked up among the caller's functions.
Functions that speak HTTP (http, wsgi, asgi) get the request as it is; a handler gets AWS Lambda's event of a function
URL (payload format 2.0) and answers as that says: an object with statusCode, headers and body, or anything as JSON.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from joey.api.function_calls import body_of, header_text, in_pieces
from joey.api.light import web
from joey.api.routes import Call, Route
from joey.functions.invocation import Invocation
from joey.functions.service import URLS
from joey.model.errors import NotFound

if TYPE_CHECKING:
    from joey.api.auth import Key
    from joey.api.service import Service

_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "content-length",
))  # fmt: skip
_SECRET = frozenset(("authorization", "x-api-key"))
_TEXT = ("text/", "application/json", "application/x-www-form-urlencoded", "application/xml", "application/javascript")


async def url(call: Call) -> web.StreamResponse:
    """Invoke a function as a web server."""
    raise NotFound("path", "a function URL goes on with /")


ROUTE = Route("POST", "/fn", url, "Invoke a function by its URL", stream=True)
"""Not in the table: what is below it takes any method."""


async def serve(
    service: Service,
    request: web.Request,
    path: str,
    raw_query: str,
    local: bool,
    signed: tuple[Key, bytes] | None = None,
) -> web.StreamResponse:
    """The answer to a request below URLS. signed: whose it is and its body, if a façade has seen to that. Raises
    JoeyError, 401, 405.
    """
    ref, slash, rest = path.removeprefix(URLS).partition("/")
    call = Call(request, ROUTE, service, {})
    own = service.functions
    address = own.registry.addresses.get(ref) if own.known else None
    trigger = None
    if address is not None:
        owner, name, which = address
        trigger = own.registry.entries[owner, name].triggers[which]
        if not trigger.enabled:
            raise NotFound("function", "there is no function URL here")
        if trigger.methods and request.method not in trigger.methods:
            raise web.HTTPMethodNotAllowed(request.method, trigger.methods, text="the URL does not take this method")
    public = trigger is not None and trigger.auth == "none"
    body = None
    if signed is not None:
        call.key, body = signed
        call.owner = "" if call.key.admin else call.key.id
    elif not public:
        _admit(service, call, local)
    if address is None:
        owner, name, qualifier = call.owner, *_named(unquote(ref))
    else:
        if not public and call.owner not in ("", owner):
            raise NotFound("function", "there is no function URL here")
        assert trigger is not None
        qualifier = trigger.qualifier
    call.owner = owner
    with service.counted("" if public else owner):
        return await _invoke(call, owner, name, qualifier, "/" + rest if slash else "/", raw_query, public, body)


def _named(ref: str) -> tuple[str, str]:
    name, _, qualifier = ref.partition(":")
    return name, qualifier


def _admit(service: Service, call: Call, local: bool) -> None:
    headers = call.request.headers
    if not local or "Authorization" in headers or "X-API-Key" in headers:
        service.access.admit(call, local)


async def _invoke(
    call: Call,
    owner: str,
    name: str,
    qualifier: str,
    path: str,
    query: str,
    public: bool,
    given: bytes | None,
) -> web.StreamResponse:
    own, request = call.service.functions, call.request
    spec = own.version(name, owner=owner, qualifier=qualifier).spec
    body = await body_of(call) if given is None else given
    # A key that opened the door is ours: the function's code is not to have it.
    # Names are plain strings: those that aiohttp knows come as a class of its own, which is no JSON.
    headers = [(str(key), value) for key, value in request.headers.items() if public or key.lower() not in _SECRET]
    http: dict[str, Any] | None = None
    id = str(uuid.uuid4())
    if spec.kind == "event":
        body = _event(request, headers, path, query, body, public, id)
    else:
        http = {
            "method": request.method, "path": path, "query": query,
            "headers": [list(pair) for pair in headers if pair[0].lower() not in _HOP],
            "scheme": request.scheme, "client": request.remote or "",
        }  # fmt: skip
    done = await own.invoke(name, body, owner=owner, qualifier=qualifier, http=http, stream=True, request_id=id)
    if done.failure is not None:
        text = json.dumps({"Message": "Internal Server Error"} if public else json.loads(done.failure.json()))
        headers_ = {"Joey-Function-Error": header_text(done.failure.type), "Joey-Request-Id": done.request_id}
        return web.Response(status=502, text=text, content_type="application/json", headers={**headers_, **_APART})
    if done.head is not None and "status" in done.head:
        return await _http(call, done)
    if done.chunks is not None:
        media = str((done.head or {}).get("content_type") or "text/plain")
        return await _pieces(call, done, 200, [("Content-Type", media)])
    return _lambda_answer(done)


async def _http(call: Call, done: Invocation) -> web.StreamResponse:
    """What a program that speaks HTTP has answered."""
    assert done.head is not None
    pairs = [(str(key), str(value)) for key, value in done.head.get("headers", ())]
    if done.chunks is not None:
        return await _pieces(call, done, int(done.head["status"]), pairs)
    response = web.Response(status=int(done.head["status"]), body=done.body or b"")
    _set(response, pairs)
    return response


async def _pieces(call: Call, done: Invocation, status: int, pairs: list[tuple[str, str]]) -> web.StreamResponse:
    assert done.chunks is not None
    response = web.StreamResponse(status=status)
    _set(response, pairs)
    return await in_pieces(call.request, response, done.chunks)


def _set(response: web.StreamResponse, pairs: list[tuple[str, str]]) -> None:
    response.headers.popall("Content-Type", None)
    response.headers.update(_APART)
    for key, value in pairs:
        if key.lower() not in _HOP and key.lower() not in _EVERYBODYS:
            response.headers.add(header_text(key), value.translate(_NO_BREAKS))


_APART = {"Content-Security-Policy": "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"}
"""Pages of functions share their origin with ours, on which somebody may have typed a key: for a browser they are of no
origin at all."""
_EVERYBODYS = frozenset(("clear-site-data", "service-worker-allowed", "strict-transport-security", "alt-svc"))
"""What an answer says of its whole host, which is not the function's."""
_NO_BREAKS = {10: " ", 13: " ", 0: " "}


def _event(
    request: web.Request, pairs: list[tuple[str, str]], path: str, query: str, body: bytes, public: bool, id: str
) -> bytes:
    """AWS Lambda's payload format 2.0 ("Invoking Lambda function URLs")."""
    headers: dict[str, str] = {}
    for key, value in pairs:
        key = key.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    cookies = [one.strip() for one in headers.pop("cookie", "").split(";") if one.strip()]
    now = time.time()
    media = headers.get("content-type", "")
    text = media.startswith(_TEXT) or not media
    found: Mapping[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": unquote(path),
        "rawQueryString": query,
        **({"cookies": cookies} if cookies else {}),
        "headers": headers,
        **({"queryStringParameters": _joined(query)} if query else {}),
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "joey",
            "domainName": headers.get("host", ""),
            "http": {
                "method": request.method, "path": unquote(path), "protocol": "HTTP/1.1",
                "sourceIp": request.remote or "", "userAgent": headers.get("user-agent", ""),
            },
            "authentication": None if public else "key",
            "requestId": id,
            "routeKey": "$default",
            "stage": "$default",
            "time": datetime.fromtimestamp(now, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now * 1000),
        },
        **_body(body, text),
    }  # fmt: skip
    return json.dumps(found).encode()


def _body(body: bytes, text: bool) -> dict[str, Any]:
    if not body:
        return {"isBase64Encoded": False}
    if text:
        try:
            return {"body": body.decode(), "isBase64Encoded": False}
        except UnicodeDecodeError:
            pass
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def _joined(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _lambda_answer(done: Invocation) -> web.Response:
    """An object with statusCode says all; anything else is the body of a 200."""
    body = done.body or b""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return web.Response(body=body, content_type="application/octet-stream", headers=_APART)
    if not isinstance(value, dict) or "statusCode" not in value:
        return web.Response(body=body, content_type="application/json", headers=_APART)
    try:
        status = int(value["statusCode"])
        text = value.get("body") or ""
        text = text if isinstance(text, str) else json.dumps(text)
        data = base64.b64decode(text) if value.get("isBase64Encoded") else text.encode()
        response = web.Response(status=status if 200 <= status < 600 else 502, body=data)
        pairs = [(str(key), str(one)) for key, one in (value.get("headers") or {}).items()]
        pairs += [("Set-Cookie", str(cookie)) for cookie in value.get("cookies") or ()]
    except (TypeError, ValueError, AttributeError):
        return web.Response(status=502, text='{"Message": "Internal Server Error"}', content_type="application/json")
    if not any(key.lower() == "content-type" for key, _ in pairs):
        pairs.append(("Content-Type", "application/json"))
    _set(response, pairs)
    return response
