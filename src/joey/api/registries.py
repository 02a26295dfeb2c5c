"""Routes of registries: who we are to them."""

from __future__ import annotations

from typing import cast

from joey.api import params
from joey.api.images import library_of
from joey.api.routes import Call, Route
from joey.images import auth, login
from joey.images.reference import DEFAULT_REGISTRY
from joey.model.errors import Invalid
from joey.model.value import Value


class LoginBody(Value, frozen=True, kw_only=True):
    """registry: a host as in an image's name, docker.io by default."""

    registry: str = DEFAULT_REGISTRY
    username: str
    password: str


class LoggedIn(Value, frozen=True, kw_only=True):
    """file: where the credentials are kept on the engine's machine, as Docker keeps them."""

    registry: str
    file: str


class LoggedOut(Value, frozen=True, kw_only=True):
    """removed: whether there were credentials."""

    registry: str
    removed: bool


def _registry(text: str) -> str:
    name = text or DEFAULT_REGISTRY
    if any(char in name for char in "/@ ?#\\") or not name.isprintable():
        raise Invalid("registry", f"{text!r} is no host[:port]", "registry.example.com")
    return name


async def log_in(call: Call) -> LoggedIn:
    """Keep a name and a password for a registry, if it takes them."""
    body = cast(LoginBody, await call.body())
    registry = _registry(body.registry)
    if not body.username or ":" in body.username:
        raise Invalid("username", "is empty, or holds a colon (RFC 7617)")
    known = auth.Credentials(body.username, body.password)
    return LoggedIn(registry=registry, file=str(await login.login(registry, known, library_of(call).config())))


async def log_out(call: Call) -> LoggedOut:
    """Forget them."""
    registry = _registry(call.query.get("registry", ""))
    return LoggedOut(registry=registry, removed=await login.logout(registry))


ROUTES = (
    Route(
        "POST", "/v1/registries/login", log_in, "Keep credentials for a registry", tag="images", body=LoginBody,
        answer=LoggedIn, admin=True, example={"registry": "registry.example.com", "username": "ci", "password": "…"},
    ),
    Route(
        "DELETE", "/v1/registries/login", log_out, "Forget credentials for a registry", tag="images",
        query=(params.text("registry", "docker.io by default"),), answer=LoggedOut, admin=True,
    ),
)  # fmt: skip
