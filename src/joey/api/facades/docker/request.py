"""`docker create`: the request of Docker's API to a SandboxSpec. What cannot be honoured is refused, never ignored.

Every field is taken out of the request by who understands it; what is left must mean nothing (null, empty, zero, or
the value that stands for "as usual"). Source: Docker Engine API 1.45, ContainerConfig and HostConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from joey.api.facades.docker import hostconfig, mounts
from joey.api.facades.docker.base import Refused
from joey.api.facades.docker.fields import Fields
from joey.api.requests import sandbox_spec
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.spec import HealthCheck, SandboxSpec

_SECOND = 1_000_000_000
_STREAMS = ("AttachStdin", "AttachStdout", "AttachStderr")
"""About the client's streams: it attaches by a request of its own."""
_WHY = {
    "Domainname": "give the domain in Hostname", "MacAddress": "addresses are the engine's",
    "OnBuild": "it belongs into a Dockerfile", "Shell": "it belongs into a Dockerfile",
    "ArgsEscaped": "it is of Windows",
}  # fmt: skip
NO_CHECK = ("NONE",)
"""HealthCheck.command of a container that is not looked after, whatever its image says."""


@dataclass(slots=True)
class Wanted:
    """What a create asks for. stays: standard input stays open when a client leaves. sources: directories of the host
    to make first. anonymous: names of volumes that are made for it alone. warnings: for the one who asks.
    """

    spec: SandboxSpec
    stays: bool
    sources: list[str] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def spec(
    body: dict[str, Any], name: str, platform: str, check_of: Callable[[str], HealthCheck | None] = lambda image: None
) -> Wanted:
    """What is asked for. check_of: an image's health check, where only part of one is given. Changes nothing. Raises
    Invalid, Refused naming the field.
    """
    fields = Fields("", body)
    host = Fields("HostConfig", fields.take("HostConfig", dict[str, Any], {}))
    networking = Fields("NetworkingConfig", fields.take("NetworkingConfig", dict[str, Any], {}))
    stays = not fields.take("StdinOnce", bool, False)
    made: dict[str, Any] = {
        "image": _image(fields), "name": name, "platform": platform, "pull": "never",
        "labels": fields.take("Labels", dict[str, str], {}), "storage": "disk",
    }  # fmt: skip
    process = _process(fields)
    entrypoint = fields.take("Entrypoint", list[str] | str)
    if entrypoint:  # [] is the image's, [""] is none
        words = [entrypoint] if isinstance(entrypoint, str) else entrypoint
        made["entrypoint"] = [] if words == [""] else words
    for name_of, ours in (("Hostname", "hostname"), ("StopSignal", "stop_signal")):
        if value := fields.take(name_of, str, ""):
            made[ours] = value
    made["stop_timeout"] = float(fields.take("StopTimeout", int, 10))
    if check := fields.take("Healthcheck", dict[str, Any]):
        made["health"] = _health(Fields("Healthcheck", check), lambda: check_of(made["image"]))
    extra = mounts.Extra(
        exposed=fields.take("ExposedPorts", dict[str, Any], {}), volumes=fields.take("Volumes", dict[str, Any], {}),
        disabled=fields.take("NetworkDisabled", bool, False),
    )  # fmt: skip
    hostconfig.add(made, process, host, networking, extra)
    fields.drop(*_STREAMS)
    fields.refuse({}, _WHY)
    made["process"] = process
    return Wanted(sandbox_spec(made), stays, extra.sources, extra.anonymous, extra.warnings)


def _image(fields: Fields) -> str:
    image: str = fields.take("Image", str, "")
    if not image:
        raise Invalid("Image", "no image is given")
    return image


def _process(fields: Fields) -> dict[str, Any]:
    command = fields.take("Cmd", list[str] | str, [])
    process: dict[str, Any] = {
        "argv": [command] if isinstance(command, str) else command, "env": environment(fields, "Env"),
        "tty": fields.take("Tty", bool, False), "stdin": fields.take("OpenStdin", bool, False),
    }  # fmt: skip
    for name, ours in (("WorkingDir", "cwd"), ("User", "user")):
        if value := fields.take(name, str, ""):
            process[ours] = value
    return process


def environment(fields: Fields, name: str) -> dict[str, str]:
    """NAME=VALUE lines as a mapping. Raises Invalid, Refused."""
    found = {}
    for line in fields.take(name, list[str], []):
        key, equals, value = line.partition("=")
        if not key:
            raise Invalid(name, f"{line!r} has no name")
        if not equals:
            raise Refused(name, f"{line!r}: a variable of the image cannot be taken away")
        found[key] = value
    return found


def _health(fields: Fields, image: Callable[[], HealthCheck | None]) -> dict[str, Any] | None:
    test = fields.take("Test", list[str], [])
    seconds = {
        ours: value / _SECOND
        for name, ours in (
            ("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period"),
            ("StartInterval", "start_interval"),
        )
        if (value := fields.take(name, int, 0))
    }  # fmt: skip
    retries = fields.take("Retries", int, 0)
    given = {**seconds, **({"retries": retries} if retries else {})}
    fields.refuse({}, {})
    if test == ["NONE"]:
        return {"command": list(NO_CHECK)}
    if not test:
        own = image() if given else None
        if given and own is None:
            raise Invalid("Healthcheck.Test", "the image has no check of its own: give the command too")
        return {**codec.to_builtins(own), **given} if own else None
    if test[0] == "CMD-SHELL" and len(test) == 2:
        command = ["/bin/sh", "-c", test[1]]
    elif test[0] == "CMD" and len(test) > 1:
        command = test[1:]
    else:
        raise Invalid("Healthcheck.Test", f"{test!r} is neither NONE, CMD nor CMD-SHELL with a command")
    if tuple(command) == NO_CHECK:
        raise Invalid("Healthcheck.Test", "a program NONE must be given with its path: alone it means no check")
    return {"command": command, **given}
