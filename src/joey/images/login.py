"""`joey login`: credentials are tried at their registry, then kept where Docker keeps them (see joey.images.auth)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import secrets
from pathlib import Path
from typing import Any

from joey.images import auth, config
from joey.images.registry_http import Http, attempts
from joey.model.errors import Invalid, from_os


async def login(registry: str, known: auth.Credentials, settings: config.RegistriesConfig) -> Path:
    """Keep `known` for `registry` (a host as in a reference) if it takes them; where they are now.

    Raises RegistryDenied if it does not, RegistryFailed, Invalid for a file or helper that is broken.
    """
    await verify(registry, known, settings)
    return await asyncio.to_thread(_keep, registry, known)


async def verify(registry: str, known: auth.Credentials, settings: config.RegistriesConfig) -> None:
    """Raises RegistryDenied if a registry does not take them, RegistryFailed."""
    http = Http(config.endpoints(registry, settings, push=True)[-1], settings, (), known)
    try:
        await attempts(functools.partial(_ask, http, registry), settings.retries)
    finally:
        await http.close()


async def _ask(http: Http, registry: str) -> None:
    async with http.request("GET", "/v2/", f"registry {registry}"):
        pass  # distribution-spec, "Determining Support": 200 for whom it lets in


async def logout(registry: str) -> bool:
    """Forget them; False if there were none. Raises Invalid for a file or helper that is broken."""
    return await asyncio.to_thread(_forget, registry)


def _keep(registry: str, known: auth.Credentials) -> Path:
    path, key = auth.config_files()[-1], auth.keys(registry)[0]
    value = _read(path)
    if helper := _helper(value, key):
        auth.run_helper(helper, "store", path, json.dumps(
            {"ServerURL": key, "Username": known.username, "Secret": known.password}
        ))  # fmt: skip
        return path
    _section(value, path)[key] = {"auth": known.basic().removeprefix("Basic ")}
    _write(path, value)
    return path


def _forget(registry: str) -> bool:
    path, keys = auth.config_files()[-1], auth.keys(registry)
    value = _read(path)
    if helper := _helper(value, keys[0]):
        return auth.run_helper(helper, "erase", path, keys[0]) is not None
    section = _section(value, path)
    found = [key for key in keys if section.pop(key, None) is not None]
    if found:
        _write(path, value)
    return bool(found)


def _helper(value: dict[str, Any], key: str) -> str:
    """The program that keeps the credentials of `key`; "" for the file itself."""
    helpers = value.get("credHelpers")
    found = helpers.get(key) if isinstance(helpers, dict) else None
    found = found or value.get("credsStore")
    return found if isinstance(found, str) else ""


def _section(value: dict[str, Any], path: Path) -> dict[str, Any]:
    section = value.setdefault("auths", {})
    if not isinstance(section, dict):
        raise Invalid(str(path), "its auths is no object")
    return section


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Invalid(str(path), f"cannot be used: {error}") from error
    if not isinstance(value, dict):
        raise Invalid(str(path), "is no JSON object")
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all, and for nobody else to read. What the file is a link to is written."""
    path = Path(os.path.realpath(path))
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(value, file, indent="\t")
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            raise
    except OSError as error:
        raise from_os(f"write {path}", error) from error
