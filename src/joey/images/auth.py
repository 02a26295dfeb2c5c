"""Who we are to a registry: credentials as Docker keeps them, and the tokens bought with them.

Credentials are looked for in `$DOCKER_CONFIG/config.json` (else `~/.docker/config.json`): `credHelpers` for the host,
`credsStore` for all, `auths` in the file; then in podman's `$REGISTRY_AUTH_FILE`. Helpers are programs
`docker-credential-NAME` on PATH that are given the host on stdin (docker/docker-credential-helpers).

Tokens: RFC 6750 challenges as in distribution's "Token Authentication Specification".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import shutil
import subprocess
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

from joey.images.reference import DEFAULT_REGISTRY
from joey.model.errors import Invalid, RegistryFailed

HUB_KEY = "https://index.docker.io/v1/"
"""Under this name Docker keeps the credentials of docker.io."""
_HELPER = re.compile(r"[A-Za-z0-9_.-]+")
_HELPER_SECONDS = 30
_CHALLENGE = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Credentials(msgspec.Struct, frozen=True):
    """identity: an OAuth2 refresh token instead of name and password."""

    username: str = ""
    password: str = ""
    identity: str = ""

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Challenge(msgspec.Struct, frozen=True):
    """One of a WWW-Authenticate header. scheme: in small letters."""

    scheme: str
    parameters: dict[str, str]


def challenges(headers: list[str]) -> list[Challenge]:
    """What WWW-Authenticate headers ask for (RFC 9110, 11.6.1)."""
    found = []
    for text in headers:
        at = 0
        while (match := _CHALLENGE.match(text, at)) is not None:
            at, parameters = match.end(), {}
            while (pair := _PARAMETER.match(text, at)) is not None:
                value = re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3]
                parameters[pair[1].lower()] = value
                at = pair.end()
            found.append(Challenge(match[1].lower(), parameters))
            rest = re.match(r"\s*,\s*", text[at:])
            at += rest.end() if rest else 0
    return found


def config_files() -> list[Path]:
    """Where credentials may be, best first."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    found = [Path(folder) / "config.json"]
    if extra := os.environ.get("REGISTRY_AUTH_FILE"):
        found.insert(0, Path(extra))
    return found


given: ContextVar[tuple[str, Credentials] | None] = ContextVar("given", default=None)
"""A registry and the credentials for it that came with the request that is being served, instead of ours."""


async def credentials(registry: str) -> Credentials | None:
    """Those for `registry` (a host as in a reference), None for none. Raises Invalid for a file or helper that is
    broken: its name and why.
    """
    if (brought := given.get()) is not None and brought[0] == registry:
        return brought[1]
    for path in config_files():
        try:
            value = json.loads(await asyncio.to_thread(path.read_bytes))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise Invalid(str(path), f"cannot be used: {error}") from error
        found = await _of(value if isinstance(value, dict) else {}, registry, path)
        if found is not None:
            return found
    return None


def keys(registry: str) -> tuple[str, ...]:
    """Names under which credentials of `registry` may stand; new ones get the first."""
    if registry in (DEFAULT_REGISTRY, "registry-1.docker.io"):
        return (HUB_KEY, DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io")
    return (registry, f"https://{registry}", f"http://{registry}", f"https://{registry}/", f"https://{registry}/v1/",
            f"https://{registry}/v2/")  # fmt: skip


async def _of(value: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    names = keys(registry)
    helpers = value.get("credHelpers")
    for key in names:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return await _ask(helpers[key], key, path)
    auths = value.get("auths")
    entries = [auths[key] for key in names if isinstance(auths, dict) and isinstance(auths.get(key), dict)]
    for entry in entries:
        if found := _stored(entry, registry, path):
            return found
    store = value.get("credsStore")
    if isinstance(store, str) and store:
        return await _ask(store, names[0], path)
    return None


def _stored(entry: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        return Credentials(identity=entry["identitytoken"])
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            name, colon, word = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeError) as error:
            raise Invalid(str(path), f"auths {registry}: auth is no base64 of name:password") from error
        if not colon:
            raise Invalid(str(path), f"auths {registry}: auth is no base64 of name:password")
        return Credentials(name, word.rstrip("\0"))
    if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
        return Credentials(entry["username"], entry["password"])
    return None


async def _ask(helper: str, key: str, path: Path) -> Credentials | None:
    """What a credential helper has for `key`."""
    out = await asyncio.to_thread(run_helper, helper, "get", path, key)
    if out is None:
        return None
    try:
        value = json.loads(out)
        name, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{path}: helper {helper}", "its answer is no JSON with Username and Secret") from error
    return Credentials(identity=secret) if name == "<token>" else Credentials(name, secret)


def run_helper(helper: str, verb: str, path: Path, text: str) -> bytes | None:
    """What a credential helper answers to `verb` (get, store, erase) and `text`; None if it knows no such credentials.
    path: the file that names it. Blocks. Raises Invalid.
    """
    where = f"{path}: helper {helper}"
    program = shutil.which(f"docker-credential-{helper}") if _HELPER.fullmatch(helper) else None
    if program is None:
        raise Invalid(where, f"there is no program docker-credential-{helper} on PATH")
    try:
        done = subprocess.run(
            [program, verb], input=text.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Invalid(where, f"did not answer within {_HELPER_SECONDS} s") from None
    except OSError as error:
        raise Invalid(where, f"cannot be run: {error.strerror}") from error
    if not done.returncode:
        return done.stdout
    message = (done.stdout or done.stderr).decode(errors="replace").strip()
    if "credentials not found" in message.lower():
        return None
    raise Invalid(where, f"failed: {message[:200] or f'exit code {done.returncode}'}")


class Token(msgspec.Struct, frozen=True):
    """expires: of time.monotonic."""

    value: str
    expires: float

    @property
    def usable(self) -> bool:
        return time.monotonic() < self.expires


def token_of(answer: bytes, where: str) -> Token:
    """The token in a token server's answer. Raises RegistryFailed."""
    try:
        value = json.loads(answer)
        text = value.get("token") or value.get("access_token")
        seconds = float(value.get("expires_in") or 60)
    except (ValueError, AttributeError, TypeError) as error:
        raise RegistryFailed(where, "its answer is no token") from error
    if not isinstance(text, str) or not text or set(text) & set("\r\n\0"):
        raise RegistryFailed(where, "its answer holds no token")
    # A tenth early: clocks differ, and a blob takes a while.
    return Token(text, time.monotonic() + max(5.0, min(seconds, 86400.0) * 0.9))
