"""The OpenAPI 3.1 document (spec.openapis.org/oas/v3.1.0) of a table of routes."""

from __future__ import annotations

import http
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from joey._version import __version__
from joey.api.params import Param
from joey.api.problem import MEDIA_TYPE, Problem
from joey.api.routes import NDJSON, TEXT, Answer, Route, types_of
from joey.model import frames

_REF = "#/components/schemas/{name}"
_DESCRIPTION = """One Linux machine as a pool of sandboxes.

`{ref}` is an id, an unambiguous beginning of one (at least 2 characters) or a name. Unknown fields and query parameters
are refused. Errors are problem documents (RFC 9457) that name the field and the remedy. Times are seconds since the
epoch, sizes bytes, binary content base64.

Over the unix socket no key is needed; over TCP send `Authorization: Bearer KEY` or `X-API-Key: KEY`. A key sees the
sandboxes made with it; others do not exist for it (404).

`application/x-ndjson` answers have a JSON value a line. Operations that take `Upgrade: joey-stream` turn the connection
into a two-way stream of frames: type (1 byte), length (4 bytes, big endian), payload."""
_REF_DOC = "Id of a sandbox, an unambiguous beginning of it, or its name"


def document(routes: Sequence[Route], tags: Mapping[str, str]) -> dict[str, Any]:
    """The document as builtins."""
    kinds = [*types_of(routes), Problem]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_type = list(zip(kinds, schemas, strict=True))

    def schema(kind: Any) -> Any:
        return next(found for known, found in by_type if known is kind or known == kind)

    names = operation_ids(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route, name in zip(routes, names, strict=True):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, name, schema)
    _widen(components)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Joey",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "responses": {
                "Problem": {
                    "description": "A problem document",
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
        },
        "security": [{"bearer": []}, {"header": []}, {}],
    }
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))  # lists where the types say tuples
    return found


def operation_ids(routes: Iterable[Route]) -> list[str]:
    """A name for each route: its handler's, with the tag before it where two are called the same."""
    routes = list(routes)
    often = Counter(route.name for route in routes)
    return [route.name if often[route.name] == 1 else f"{route.tag}_{route.name}" for route in routes]


def _operation(route: Route, name: str, schema: Any) -> dict[str, Any]:
    text = route.description or (route.handler.__doc__ or "").strip()
    if route.admin:
        text += "\n\nOnly for administrators: the unix socket, or a key made with --admin."
    if route.upgrade:
        text += f"\n\nTakes `Connection: Upgrade` with `Upgrade: {frames.NAME}`."
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "description": " ".join(text.split(" ")).strip(),
        "tags": [route.tag] if route.tag else [],
        "parameters": [
            *(_parameter(Param(name, _REF_DOC if name == "ref" else ""), "path") for name in route.variables),
            *(_parameter(param, "query") for param in route.query),
            *(_parameter(param, "header") for param in route.headers),
        ],
        "responses": _responses(route, schema),
    }
    if route.body is not None:
        content: dict[str, Any] = {"schema": _content_schema(route.body, schema)}
        if route.example is not None:
            content["example"] = route.example
        operation["requestBody"] = {"required": not route.body_optional, "content": {route.body_media: content}}
    if route.open:
        operation["security"] = [{}]
    return operation


def _parameter(param: Param, where: str) -> dict[str, Any]:
    kind: dict[str, Any] = param.schema
    if where == "path":
        kind = {**kind, "minLength": 1}
    if param.many:
        kind = {"type": "array", "items": kind}
    found: dict[str, Any] = {"name": param.name, "in": where, "schema": kind}
    if param.doc:
        found["description"] = param.doc
    if param.required or where == "path":
        found["required"] = True
    if param.many:
        found |= {"style": "form", "explode": True}
    return found


def _responses(route: Route, schema: Any) -> dict[str, Any]:
    first = Answer(route.answer, route.media)  # type: ignore[arg-type]
    found = {route.status: first, **route.also}
    if route.upgrade:
        found.setdefault(101, Answer(doc=f"The connection is a stream of frames ({frames.NAME})"))
    responses: dict[str, Any] = {}
    for status, answer in sorted(found.items()):
        one: dict[str, Any] = {"description": answer.doc or http.HTTPStatus(status).phrase}
        if answer.type is not None:
            media = (answer.media,) if isinstance(answer.media, str) else answer.media
            one["content"] = {kind: {"schema": _media_schema(kind, answer.type, schema)} for kind in media}
        responses[str(status)] = one
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _media_schema(media: str, kind: Any, schema: Any) -> dict[str, Any]:
    if kind is bytes or media.startswith(TEXT):
        return {"type": "string"} if media.startswith(TEXT) else {}
    if media == NDJSON:
        # A line's schema cannot be said to a validator of whole bodies: it stands in the description.
        return {"type": "string", "description": f"A line each: {_said(schema(kind))}"}
    return dict(schema(kind))


def _said(schema: Any) -> str:
    return str(schema.get("$ref", schema.get("items", schema))).rpartition("/")[2].rstrip("'}")


def _content_schema(kind: Any, schema: Any) -> dict[str, Any]:
    return {} if kind is bytes else dict(schema(kind))


def _widen(components: dict[str, Any]) -> None:
    """What a request may say beyond its type."""
    body = components.get("CreateBody", {}).get("properties", {})
    if "seccomp" in body:
        profile = {"type": "object", "description": "An OCI or Docker profile", "required": ["defaultAction"]}
        body["seccomp"] = {"anyOf": [profile, {"enum": ["default", "unconfined"]}], "default": "default"}
