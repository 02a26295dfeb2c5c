"""The table of routes and what is made from it: router, queries, OpenAPI document, page."""

import json
import re
from collections import Counter

import pytest

from joey.api import params
from joey.api.docs_page import page
from joey.api.openapi import document, operation_ids
from joey.api.routes import NoSuchPath, Route, Router, WrongMethod
from joey.api.table import TAGS, table
from joey.model.errors import Invalid


async def one(call): ...


async def other(call): ...


ROUTER = Router(
    [
        Route("GET", "/v1/things", one, ""),
        Route("POST", "/v1/things/batch", other, ""),
        Route("GET", "/v1/things/{ref}", other, ""),
        Route("POST", "/v1/things/{ref}/parts/{id}", one, ""),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "handler", "variables"),
    [
        ("GET", "/v1/things", one, {}),
        ("GET", "/v1/things/x%2Fy", other, {"ref": "x/y"}),
        ("GET", "/v1/things/batch", other, {"ref": "batch"}),
        ("POST", "/v1/things/batch", other, {}),
        ("POST", "/v1/things/ä/parts/%C3%A4", one, {"ref": "ä", "id": "ä"}),
    ],
)
def test_the_router_finds(method, path, handler, variables):
    route, found = ROUTER.find(method, path)
    assert route.handler is handler and found == variables


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v1/", "/v1/things/", "//v1/things", "/v1/things/x/", "/v1/things/x/parts/", "*", "/v2/x"]
)
def test_the_router_finds_nothing(path):
    with pytest.raises(NoSuchPath):
        ROUTER.find("GET", path)


def test_the_router_names_the_methods():
    with pytest.raises(WrongMethod) as caught:
        ROUTER.find("DELETE", "/v1/things/batch")
    assert caught.value.allowed == ["GET", "POST"]


@pytest.mark.parametrize("path", ["/v1/things/%00", "/v1/things/%ff"])
def test_the_router_refuses(path):
    with pytest.raises(Invalid):
        ROUTER.find("GET", path)


def test_a_route_is_declared_once():
    with pytest.raises(ValueError, match="twice"):
        Router([Route("GET", "/a/{x}", one, ""), Route("GET", "/a/{y}", one, "")])


KNOWN = {
    param.name: param
    for param in (
        params.flag("all", ""), params.integer("n", "", low=2, high=9), params.text("name", "", longest=3).times(),
        params.choice("kind", "", ("a", "b")), params.seconds("at", ""), params.signal(),
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ("", {}), ("all", {"all": True}), ("all=0&n=2", {"all": False, "n": 2}),
        ("name=a&name=%C3%A4+b", {"name": ["a", "ä b"]}),
        ("kind=b", {"kind": "b"}), ("at=1.5", {"at": 1.5}), ("signal=sigterm", {"signal": 15}),
    ],
)  # fmt: skip
def test_queries(raw, values):
    assert params.parse(raw, KNOWN, ()) == values


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("x=1", "x"), ("all=1&all=1", "all"), ("n=1", "n"), ("n=10", "n"), ("n=+3", "n"), ("name=abcd", "name"),
        ("name=%00", "name"), ("name=%ff", "name"), ("kind=c", "kind"), ("at=-1", "at"), ("at=inf", "at"),
        ("signal=x", "signal"),
        ("&", ""), ("n=%D9%A3", "n"), ("at=%C2%B2", "at"), ("signal=%C2%B2", "signal"),
    ],
)  # fmt: skip
def test_wrong_queries_name_the_parameter(raw, field):
    with pytest.raises(Invalid) as caught:
        params.parse(raw, KNOWN, ())
    assert caught.value.where == field


def test_a_needed_parameter():
    with pytest.raises(Invalid, match="n: is required"):
        params.parse("all", KNOWN, ["n"])


def test_the_document_is_openapi():
    validator = pytest.importorskip("openapi_spec_validator")
    made = document(table(), TAGS)
    validator.validate(made)
    assert json.loads(json.dumps(made)) == made


def test_every_operation_has_a_name_a_summary_and_a_tag():
    names = operation_ids(table())
    assert [name for name, often in Counter(names).items() if often > 1] == []
    for route in table():
        assert route.summary and route.tag in TAGS and (route.handler.__doc__ or route.description), route.path


def test_every_reference_in_the_document_leads_somewhere():
    text = json.dumps(made := document(table(), TAGS))
    for ref in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found = made
        for part in ref.split("/"):
            found = found[part]


def test_the_page_names_every_operation_and_loads_nothing():
    text = page(document(table(), TAGS))
    for route, name in zip(table(), operation_ids(table()), strict=True):
        assert f'<article id="{name}"' in text and route.path in text
    assert not re.search(r'(?:src|href)="(?!#|/openapi\.json)', text) and "@import" not in text and "url(" not in text
    for link in set(re.findall(r'href="#([^"]+)"', text)):
        assert f'id="{link}"' in text, link
