"""All routes, module by module. A module that has routes has a tuple ROUTES and is named here."""

from __future__ import annotations

from joey.api import (
    access,
    archives,
    backup,
    build,
    creation,
    documents,
    doorway,
    events,
    files,
    function_calls,
    functions,
    functions_page,
    images,
    logs,
    metrics,
    networks,
    node,
    pools,
    processes,
    registries,
    sandboxes,
    snapshots,
    templates,
    volumes,
)
from joey.api.facades.aws_lambda import entry as aws_lambda
from joey.api.facades.docker import entry as docker
from joey.api.facades.e2b import entry as e2b
from joey.api.facades.e2b import interpreter as e2b_interpreter
from joey.api.facades.fc import entry as fc
from joey.api.routes import Route

MODULES = (
    creation,
    sandboxes,
    processes,
    files,
    logs,
    events,
    pools,
    templates,
    functions,
    function_calls,
    functions_page,
    archives,
    build,
    images,
    registries,
    snapshots,
    volumes,
    networks,
    doorway,
    node,
    metrics,
    access,
    backup,
    documents,
    e2b,
    e2b_interpreter,
    docker,
    aws_lambda,
    fc,
)

TAGS = {
    "sandboxes": "Isolated environments: create, look, change, end",
    "processes": "Programs inside a sandbox",
    "files": "Files of a sandbox, without an agent inside",
    "pools": "Sandboxes kept warm, handed out at once",
    "templates": "Warm processes that sandboxes are forked from",
    "functions": "Code that runs when it is called",
    "images": "What sandboxes are made from",
    "networks": "Private networks, shared by several sandboxes",
    "snapshots": "Files of a sandbox as an image, and new sandboxes on them",
    "volumes": "Directories that outlive sandboxes",
    "node": "This machine and this engine",
    "keys": "API keys (administrator)",
}


def table() -> tuple[Route, ...]:
    """Every route of the API, in the order of the documentation."""
    return tuple(route for module in MODULES for route in module.ROUTES)
