"""What CreateFunction and UpdateFunction say, as a FunctionSpec's fields. Pure, but for what Python there is."""

from __future__ import annotations

from typing import Any

from joey.api.facades.fc.errors import lacking
from joey.api.facades.fields import Fields
from joey.api.facades.runtimes import Present, python_of
from joey.model.errors import Invalid
from joey.model.units import MIB

CUSTOM, CONTAINER = "custom", "custom-container"
LAYERS = "joey.fc.layers"
"""The tag that keeps the ARNs of layers."""
_DEBIAN = {"custom.debian11": "11", "custom.debian12": "12"}
_PORT = 9000
"""Of a program of a custom runtime, unless it says another."""
_NEVER: dict[str, tuple[object, ...]] = {
    "customDNS": (),
    "disableInjectCredentials": ("All",),
    "disableOndemand": (False,),
    "enableLongLiving": (False,),
    "gpuConfig": (),
    "instanceIsolationMode": ("SHARE",),
    "juiceFsConfig": (),
    "microSandboxConfig": (),
    "nasConfig": ({"userId": -1, "groupId": -1, "mountPoints": []}, {"mountPoints": []}),
    "ossMountConfig": ({"mountPoints": []},),
    "polarFsConfig": (),
    "resourceGroupId": (),
    "role": (),
    "sessionAffinity": ("NONE",),
    "sessionAffinityConfig": (),
    "tracingConfig": (),
    "vpcConfig": (),
}
"""Parameters of which only the value that asks for nothing is taken."""


def configuration(fields: Fields, runtime: str, here: Present) -> dict[str, Any]:
    """The FunctionSpec fields that the request names. runtime: the function's so far; here: whether an image is.

    Raises Invalid, Failure.
    """
    found: dict[str, Any] = {}
    if "runtime" in fields:
        runtime = fields.take("runtime", str, "")
        found |= runtime_of(runtime, here)
    for name, field in (("handler", "handler"), ("description", "description")):
        if name in fields:
            found[field] = fields.take(name, str, "")
    if "environmentVariables" in fields:
        found["env"] = fields.take("environmentVariables", dict[str, str], {})
    found |= _limits(fields)
    found |= _lifecycle(fields)
    found |= _program(fields, runtime)
    if "internetAccess" in fields:
        found["network"] = "nat" if fields.take("internetAccess", bool, True) else "none"
    if "logConfig" in fields:
        logs = fields.part("logConfig")
        for name in ("enableInstanceMetrics", "enableRequestMetrics", "enableLlmMetrics"):
            logs.only(name, False)
        logs.only("logBeginRule", "None")
        logs.done()
    for name, values in _NEVER.items():
        fields.only(name, *values)
    return found


def _limits(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field, low, high, unit in (
        ("timeout", "timeout", 1, 86400, 1.0),
        ("memorySize", "memory", 64, 1 << 20, MIB),
        ("diskSize", "disk", 16, 1 << 20, MIB),
        ("instanceConcurrency", "concurrency", 1, 200, 1),
        ("idleTimeout", "keep_alive", 0, 86400, 1.0),
    ):
        if name in fields:
            value = fields.take(name, int, 0)
            if not low <= value <= high:
                raise Invalid(name, f"is {value}, not from {low} to {high}")
            found[field] = value * unit
    if "cpu" in fields:
        found["cpus"] = fields.take("cpu", float, 0.0)
    return found


def runtime_of(name: str, here: Present) -> dict[str, Any]:
    """Raises Failure for one that Joey does not have."""
    if (python := python_of(name, here)) is not None:
        image, interpreter = python
        return {"kind": "event", "runtime": name, "image": image, "python": interpreter, "event_format": "bytes"}
    if name == CUSTOM:
        return {"kind": "http", "runtime": name, "image": "", "port": _PORT}
    if name in _DEBIAN:
        image = f"docker.io/library/debian:{_DEBIAN[name]}-slim"
        return {"kind": "http", "runtime": name, "image": image, "port": _PORT}
    if name == CONTAINER:
        return {"kind": "http", "runtime": name, "port": _PORT}
    raise lacking(f"runtime {name[:64]}, other than python3.X, {CUSTOM}, {', '.join(_DEBIAN)} and {CONTAINER},")


def _lifecycle(fields: Fields) -> dict[str, Any]:
    """Hooks: functions of the code, no commands."""
    if "instanceLifecycleConfig" not in fields:
        return {}
    found: dict[str, Any] = {}
    hooks = fields.part("instanceLifecycleConfig")
    for name, field in (("initializer", "initializer"), ("preStop", "pre_stop")):
        if name in hooks:
            hook = hooks.part(name)
            found[field] = hook.take("handler", str, "")
            if "timeout" in hook:
                found[f"{field}_timeout"] = float(hook.take("timeout", int, 0))
            hook.done()
    hooks.done()
    return found


def _program(fields: Fields, runtime: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "customRuntimeConfig" in fields:
        if runtime != CUSTOM and runtime not in _DEBIAN:
            raise Invalid("customRuntimeConfig", "is for custom runtimes")
        part = fields.part("customRuntimeConfig")
        found["command"] = (*part.take("command", list[str], []), *part.take("args", list[str], []))
        _port(part, found)
    if "customContainerConfig" in fields:
        if runtime != CONTAINER:
            raise Invalid("customContainerConfig", f"is for runtime {CONTAINER}")
        part = fields.part("customContainerConfig")
        if "image" in part:
            found["image"] = part.take("image", str, "")
        if "command" in part or "entrypoint" in part:
            found["command"] = (*part.take("entrypoint", list[str], []), *part.take("command", list[str], []))
        part.only("accelerationType", "None", "Default")
        _port(part, found)
    return found


def _port(part: Fields, found: dict[str, Any]) -> None:
    if "port" in part:
        found["port"] = part.take("port", int, 0)
    part.done()
