"""An image's configuration: OCI's (image-spec, config.md) and Docker's, which are one in what we read, to the model's
Image and back. Pure.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from joey.images.index import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST, Descriptor, Platform
from joey.model.errors import ImageError
from joey.model.image import DEFAULT_PATH, Image, Layer
from joey.model.spec import HealthCheck

_SECOND = 1_000_000_000
_Nanoseconds = Annotated[int, msgspec.Meta(ge=0)]
_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 6: "SIGABRT", 9: "SIGKILL", 10: "SIGUSR1", 12: "SIGUSR2",
            15: "SIGTERM", 28: "SIGWINCH"}  # fmt: skip


class _Health(msgspec.Struct, rename="pascal"):
    test: list[str] | None = None
    interval: _Nanoseconds = 0
    timeout: _Nanoseconds = 0
    start_period: _Nanoseconds = 0
    start_interval: _Nanoseconds = 0
    retries: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Run(msgspec.Struct, rename="pascal"):
    """How programs run: the object `config`. Go writes null for what is empty."""

    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None
    healthcheck: _Health | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None


class _Config(msgspec.Struct):
    config: _Run | None = None
    os: str = "linux"


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of an image's history. created: RFC 3339. empty_layer: the step changed no file."""

    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


def image(name: str, config: bytes, layers: Sequence[Layer]) -> Image:
    """The model's image of a configuration, a JSON text. Raises ImageError naming the field."""
    try:
        found = msgspec.json.decode(config, type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ImageError("image", f"{name}: its configuration is wrong: {error}", "the image is damaged") from error
    if found.os not in ("", "linux"):
        raise ImageError("image", f"{name} is for {found.os}, not for linux")
    run = found.config or _Run()
    if b"\\u0000" in config:
        _refuse_nul(name, msgspec.to_builtins(run))
    if not layers:
        raise ImageError("image", f"{name} has no layers: there is nothing to run in it")
    cwd = run.working_dir or ""
    return Image(
        name=name, layers=tuple(layers), env=_environment(run.env or ()), entrypoint=tuple(run.entrypoint or ()),
        argv=tuple(run.cmd or ()), cwd=cwd if not cwd or cwd.startswith("/") else f"/{cwd}", user=run.user or "",
        stop_signal=_signal(name, run.stop_signal or ""), labels=run.labels or {}, health=_health(run.healthcheck),
        ports=tuple(sorted(run.exposed_ports or ())), volumes=_directories(run.volumes or ()),
    )  # fmt: skip


def _directories(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({posixpath.normpath("/" + path.lstrip("/")) for path in paths}))


def _refuse_nul(name: str, value: Any) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ImageError("image", f"{name}: its configuration holds a zero character")
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _refuse_nul(name, part)


def _environment(lines: Sequence[str]) -> dict[str, str]:
    """The last of a name counts, as for a shell; PATH is Docker's unless there is one."""
    env = {"PATH": DEFAULT_PATH}
    for line in lines:
        key, _, value = line.partition("=")
        if key:
            env[key] = value
    return env


def _signal(name: str, text: str) -> str:
    """SIGTERM, TERM, 15, RTMIN+3: as Docker reads them."""
    word = text.strip().upper()
    if not word:
        return ""
    if word.isdecimal() and len(word) < 4:
        number = int(word)
        if number in _SIGNALS:
            return _SIGNALS[number]
        if 34 <= number <= 64:
            return f"SIGRTMIN+{number - 34}"
    word = word if word.startswith("SIG") else f"SIG{word}"
    if not re.fullmatch(r"SIG[A-Z0-9]+([+-]\d+)?", word):
        raise ImageError("image", f"{name}: its stop signal {text!r} is none")
    return word


def _health(found: _Health | None) -> HealthCheck | None:
    """HEALTHCHECK; None where there is none, or NONE. Zero is "as usual"."""
    if found is None or not found.test or found.test[0] == "NONE" or len(found.test) < 2:
        return None
    kind, *words = found.test
    if kind not in ("CMD", "CMD-SHELL"):
        raise ImageError("image", f"its health check is of kind {kind!r}", "CMD, CMD-SHELL or NONE")
    usual = HealthCheck(command=("true",))
    return HealthCheck(
        command=tuple(words) if kind == "CMD" else ("/bin/sh", "-c", words[0]),
        interval=found.interval / _SECOND or usual.interval, timeout=found.timeout / _SECOND or usual.timeout,
        start_period=found.start_period / _SECOND, retries=found.retries or usual.retries,
        start_interval=found.start_interval / _SECOND or usual.start_interval,
    )  # fmt: skip


# --- and back --------------------------------------------------------------------------------------------------------


def config(
    source: Image,
    diff_ids: Sequence[str],
    platform: Platform,
    *,
    created: str = "1970-01-01T00:00:00Z",
    history: Sequence[Step] = (),
    author: str = "",
    built: Mapping[str, Any] | None = None,
) -> bytes:
    """The configuration of an image as OCI has it (Docker reads it too): the same bytes for the same values.

    diff_ids: of its layers, lowest first. created: RFC 3339. built: what `for_builds` found in another's.
    """
    run: dict[str, Any] = {
        "User": source.user, "ExposedPorts": {port: {} for port in source.ports},
        "Env": [f"{key}={value}" for key, value in source.env.items()], "Entrypoint": list(source.entrypoint),
        "Cmd": list(source.argv), "Volumes": {path: {} for path in source.volumes}, "WorkingDir": source.cwd,
        "Labels": source.labels, "StopSignal": source.stop_signal, "Healthcheck": _docker_health(source.health),
        **(built or {}),
    }  # fmt: skip
    steps = [msgspec.to_builtins(step) for step in history]
    value = {
        "created": created, "author": author, "architecture": platform.architecture, "os": platform.os,
        "variant": platform.variant, "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)}, "history": steps,
    }  # fmt: skip
    optional = ("author", "variant", "history")
    return _json({key: part for key, part in value.items() if part or key not in optional})


def for_builds(config: bytes) -> dict[str, Any]:
    """What a configuration says to whoever builds on it, and no sandbox looks at: SHELL and ONBUILD."""
    found = msgspec.json.decode(config)
    run = (found.get("config") or {}) if isinstance(found, dict) else {}
    return {name: run[name] for name in ("Shell", "OnBuild") if run.get(name)}


def _docker_health(found: HealthCheck | None) -> dict[str, Any] | None:
    if found is None or not found.command:
        return None
    words = found.command
    test = ["CMD-SHELL", words[2]] if len(words) == 3 and words[:2] == ("/bin/sh", "-c") else ["CMD", *words]
    times = {"Interval": found.interval, "Timeout": found.timeout, "StartPeriod": found.start_period}
    times["StartInterval"] = found.start_interval
    return {"Test": test, **{key: int(value * _SECOND) for key, value in times.items()}, "Retries": found.retries}


def manifest(configuration: Descriptor, layers: Sequence[Descriptor], *, docker: bool = False) -> bytes:
    """The manifest that names them, OCI's or Docker's schema 2."""
    parts = [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in (configuration, *layers)]
    kind = DOCKER_MANIFEST if docker else OCI_MANIFEST
    parts[0]["mediaType"] = DOCKER_CONFIG if docker else OCI_CONFIG
    return _json({"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]})


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of a blob that is at hand."""
    return Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)
