"""Arguments of the SDK as bodies of the HTTP API (joey.model.spec). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from joey.client import networks
from joey.client.errors import Invalid
from joey.client.networks import Network, Ports
from joey.client.types import Command, Envs, Size, Volumes
from joey.model.units import parse_size

DEFAULT_TIMEOUT = 300.0
"""Seconds after which a sandbox of the SDK ends, unless told otherwise: one that its program forgot does not stay."""


def size(value: Size | None, field: str) -> int | None:
    """Bytes of a number or of text such as "512m". Raises Invalid naming `field`."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        return parse_size(str(value), field)
    except ValueError as error:
        raise Invalid(field, str(error).removeprefix(f"{field}: ")) from None


def number(value: float | None, field: str) -> float | None:
    """As it is. Raises Invalid for what JSON has no word for: it would arrive as none at all."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Invalid(field, f"{value} is not a number", "None for no limit")
    return value


def argv(command: Command) -> list[str]:
    """Program and arguments. Raises Invalid for an empty command."""
    if isinstance(command, str):
        if not command.strip():
            raise Invalid("cmd", "is empty")
        return ["/bin/sh", "-c", command]
    words = [str(word) for word in command]
    if not words:
        raise Invalid("cmd", "is empty")
    return words


def sandbox(
    image: str | None,
    *,
    cpus: float | None,
    memory: Size | None,
    disk: Size | None,
    timeout: float | None,
    idle_timeout: float | None,
    on_timeout: str,
    network: Network | None,
    ports: Ports | None = None,
    envs: Envs | None,
    metadata: Mapping[str, str] | None,
    name: str | None,
    user: str | None,
    cwd: str | None,
    volumes: Volumes | None,
    read_only: bool,
    restart: str | Mapping[str, Any] | None,
    files: Mapping[str, str | bytes] | None,
    spec: Mapping[str, Any] | None,
    pool: Any = None,
    template: str | None = None,
) -> dict[str, Any]:
    """The body of POST /v1/sandboxes. `spec`: further fields of SandboxSpec, which win. pool: a Pool or a name; of what
    it has in common only what was given is sent. Raises Invalid.
    """
    process: dict[str, Any] = {"env": dict(envs or {}), "cwd": cwd, "user": user}
    resources = {"cpus": number(cpus, "cpus"), "memory": size(memory, "memory"), "disk": size(disk, "disk")}
    body: dict[str, Any] = {
        "image": image,
        "name": name,
        "init": True,
        "process": _given(process),
        "resources": _given(resources),
        "labels": dict(metadata or {}),
        "network": networks.network(network, ports),
        "mounts": mounts(volumes),
        "volumes": named(volumes),
        "read_only": read_only or None,
        "timeout": number(timeout, "timeout"),
        "idle_timeout": number(idle_timeout, "idle_timeout"),
        "on_timeout": on_timeout if on_timeout != "kill" else None,
        "restart": {"policy": restart} if isinstance(restart, str) else restart,
        "remove": restart is None or restart == "no",
        "files": contents(files),
    }
    body = _given(body)
    if template is not None:
        body |= {"template": template} | ({"pool": getattr(pool, "name", pool)} if pool is not None else {})
        return _merged(body, spec)
    if pool is not None:
        del body["init"]
        body["pool"] = getattr(pool, "name", pool)
        return _merged(body, spec)
    if not (spec or {}).get("process", {}).get("argv"):
        body["entrypoint"] = []  # nothing but joey-init, whatever the image would run
    body = _merged(body, spec)
    if body.get("rootfs"):
        body.pop("image", None)
    elif "image" not in body:
        body["image"] = "host"
    return body


def _merged(body: dict[str, Any], spec: Mapping[str, Any] | None) -> dict[str, Any]:
    for field, value in (spec or {}).items():
        both = isinstance(body.get(field), dict) and isinstance(value, Mapping)
        body[field] = {**body[field], **value} if both else value
    return body


def mounts(volumes: Volumes | None) -> list[dict[str, Any]]:
    """Mount values of `volumes`: what has a path of the host."""
    if volumes is None:
        return []
    if not isinstance(volumes, Mapping):
        return [dict(one) for one in volumes if "name" not in one]
    found = []
    for source, target in volumes.items():
        text = str(target)
        if _is_named(target):
            continue
        read_only = text.endswith(":ro")
        found.append({"source": str(source), "target": text.removesuffix(":ro").removesuffix(":rw")})
        if read_only:
            found[-1]["read_only"] = True  # type: ignore[assignment]
    return found


def named(volumes: Volumes | None) -> list[dict[str, Any]]:
    """VolumeMount values of `volumes`: what has a name."""
    if volumes is None:
        return []
    if not isinstance(volumes, Mapping):
        return [dict(one) for one in volumes if "name" in one]
    found: list[dict[str, Any]] = []
    for target, volume in volumes.items():
        if _is_named(volume):
            name = str(getattr(volume, "name", volume))
            found.append({"name": name.removesuffix(":ro").removesuffix(":rw"), "target": str(target)})
            if name.endswith(":ro"):
                found[-1]["read_only"] = True
    return found


def _is_named(volume: Any) -> bool:
    return not isinstance(volume, str) or not volume.startswith("/")


def contents(files: Mapping[str, str | bytes] | None) -> dict[str, bytes] | None:
    """Files to write before the sandbox is handed out; bytes become base64 when encoded."""
    if not files:
        return None
    return {path: data.encode() if isinstance(data, str) else bytes(data) for path, data in files.items()}


def process(
    command: Command | Sequence[str],
    cwd: str | None = None,
    user: str | None = None,
    envs: Envs | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The body that runs a command."""
    body: dict[str, Any] = {"argv": argv(command)}
    if cwd is not None:
        body["cwd"] = cwd
    if user is not None:
        body["user"], body["groups"] = user, []
    if envs:
        body["env"] = dict(envs)
    return body | more


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {} and value != []}
