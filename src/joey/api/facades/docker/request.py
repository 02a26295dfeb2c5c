"""`docker create`: the request of Docker's API to a SandboxSpec. What cannot be honoured is refused, never ignored.

Every field is taken out of the request by who understands it; what is left must mean nothing (null, empty, zero, or
the value that stands for "as usual"). Source: Docker Engine API 1.45, ContainerConfig and HostConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joey.api.facades.docker import hostconfig
from joey.api.facades.docker.base import Refused
from joey.api.requests import sandbox_spec
from joey.model import codec
from joey.model.errors import Invalid
from joey.model.spec import SandboxSpec

_SECOND = 1_000_000_000
_HARMLESS = {
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ArgsEscaped",
    "ExposedPorts",
    "Volumes",
    "Shell",
    "OnBuild",
}
"""Of the config: about the client's streams, for people, or of images."""


class Fields:
    """The fields of one object of a request, each taken once. `rest` refuses what nobody has taken."""

    def __init__(self, where: str, values: Any) -> None:
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise Invalid(where, "must be a JSON object")
        self.where = where
        self._values = dict(values)

    def name(self, field: str) -> str:
        return f"{self.where}.{field}" if self.where else field

    def take(self, field: str, kind: Any, default: Any = None) -> Any:
        """The field as `kind`; `default` for what is missing or null. Raises Invalid naming it."""
        value = self._values.pop(field, None)
        if value is None:
            return default
        try:
            return codec.convert(kind, value)
        except Invalid as error:
            raise Invalid(f"{self.name(field)}{'.' if error.where else ''}{error.where}", error.message) from None

    def drop(self, *fields: str) -> None:
        """Those mean nothing here."""
        for field in fields:
            self._values.pop(field, None)

    def refuse(self, usual: Mapping[str, tuple[Any, ...]], why: Mapping[str, str]) -> None:
        """Raises Refused for the first field left that means something. usual: values that mean nothing."""
        for field, value in self._values.items():
            if value in (None, "", 0, False) or value in ([], {}) or value in usual.get(field, ()):
                continue
            reason = why.get(field, "Joey has nothing like it")
            raise Refused(self.name(field), f"{value!r} is not supported: {reason}")


def spec(body: dict[str, Any], name: str, platform: str) -> tuple[SandboxSpec, bool]:
    """(the spec, whether standard input stays open when a client leaves). Raises Invalid, Refused naming the field."""
    fields = Fields("", body)
    host = Fields("HostConfig", fields.take("HostConfig", dict[str, Any], {}))
    networking = Fields("NetworkingConfig", fields.take("NetworkingConfig", dict[str, Any], {}))
    stays = not fields.take("StdinOnce", bool, False)
    exposed = fields.take("ExposedPorts", dict[str, Any], {})
    made: dict[str, Any] = {
        "image": _image(fields), "name": name, "platform": platform, "pull": "never",
        "labels": fields.take("Labels", dict[str, str], {}), "storage": "disk",
    }  # fmt: skip
    process = _process(fields)
    entrypoint = fields.take("Entrypoint", list[str] | str)
    if entrypoint:  # [] is the image's, [""] is none
        words = [entrypoint] if isinstance(entrypoint, str) else entrypoint
        made["entrypoint"] = [] if words == [""] else words
    for field, ours in (("Hostname", "hostname"), ("StopSignal", "stop_signal")):
        if value := fields.take(field, str, ""):
            made[ours] = value
    made["stop_timeout"] = float(fields.take("StopTimeout", int, 10))
    if check := fields.take("Healthcheck", dict[str, Any]):
        made["health"] = _health(Fields("Healthcheck", check))
    volumes = fields.take("Volumes", dict[str, Any], {})
    disabled = fields.take("NetworkDisabled", bool, False)
    hostconfig.add(made, process, host, networking, exposed=exposed, disabled=disabled, anonymous=volumes)
    fields.drop(*_HARMLESS)
    fields.refuse({}, {"Domainname": "give the domain in Hostname", "MacAddress": "addresses are the engine's"})
    made["process"] = process
    return sandbox_spec(made), stays


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
    for field, ours in (("WorkingDir", "cwd"), ("User", "user")):
        if value := fields.take(field, str, ""):
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


def _health(fields: Fields) -> dict[str, Any] | None:
    test = fields.take("Test", list[str], [])
    seconds = {
        ours: value / _SECOND
        for field, ours in (
            ("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period"),
            ("StartInterval", "start_interval"),
        )
        if (value := fields.take(field, int, 0))
    }  # fmt: skip
    retries = fields.take("Retries", int, 0)
    fields.refuse({}, {})
    if test == ["NONE"]:
        raise Refused("Healthcheck.Test", "the image's own check cannot be switched off")
    if not test:
        if seconds or retries:
            raise Refused("Healthcheck.Test", "the image's own check cannot be changed: give the command too")
        return None
    if test[0] == "CMD-SHELL" and len(test) == 2:
        command = ["/bin/sh", "-c", test[1]]
    elif test[0] == "CMD" and len(test) > 1:
        command = test[1:]
    else:
        raise Invalid("Healthcheck.Test", f"{test!r} is neither NONE, CMD nor CMD-SHELL with a command")
    return {"command": command, **seconds, **({"retries": retries} if retries else {})}
