"""GET /openapi.json and /docs: the table of routes, for programs and for people. Made once, when first asked for."""

from __future__ import annotations

from typing import Any

from joey.api.light import web
from joey.api.routes import JSON, Call, Route
from joey.model import codec

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


async def openapi(call: Call) -> web.Response:
    """This document."""
    return web.Response(body=_made(call, "openapi", _openapi), content_type=JSON)


async def docs(call: Call) -> web.Response:
    """The API as a page: nothing is loaded from elsewhere."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    body = _made(call, "docs", _docs)
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


def _made(call: Call, name: str, make: Any) -> bytes:
    kept = call.service.documents
    if name not in kept:
        kept[name] = make(call)
    return kept[name]


def _openapi(call: Call) -> bytes:
    from joey.api.openapi import document
    from joey.api.table import TAGS

    return codec.encode(document(call.service.table, TAGS))


def _docs(call: Call) -> bytes:
    from joey.api.docs_page import page
    from joey.api.openapi import document
    from joey.api.table import TAGS

    return page(document(call.service.table, TAGS)).encode()


ROUTES = (
    Route("GET", "/openapi.json", openapi, "The API as an OpenAPI 3.1 document", tag="node", answer=dict, open=True),
    Route("GET", "/docs", docs, "The API as a page", tag="node", answer=bytes, media="text/html", open=True),
)
