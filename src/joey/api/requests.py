"""What comes in, decoded strictly: an unknown query parameter or body field is refused, never ignored."""

from __future__ import annotations

import os
import signal as _signal
from typing import Any

import msgspec

from joey.model import codec
from joey.model.capabilities import DEFAULT_CAPABILITIES, canonical
from joey.model.errors import Invalid
from joey.model.resources import Resources
from joey.model.seccomp import SeccompPolicy
from joey.model.seccomp_oci import policy_from_oci
from joey.model.spec import Process, SandboxSpec, check_labels

MAX_BODY = 4 << 20
"""Bytes of a request's body: a plan holds no more (PLAN_MAX_BYTES)."""
_DEFAULT_RESOURCES: dict[str, Any] = codec.to_builtins(Resources.default())


def sandbox_spec(body: dict[str, Any]) -> SandboxSpec:
    """A SandboxSpec of a body. Limits that are not mentioned keep their defaults; null takes a limit away. `seccomp`
    may be an OCI or Docker profile. Raises Invalid naming the field.
    """
    body = dict(body)
    resources = body.get("resources", {})
    if isinstance(resources, dict):
        merged = _DEFAULT_RESOURCES | resources
        if resources.get("memory", 0) is None and "swap" not in resources:
            merged["swap"] = None  # it counts what goes beyond a memory limit
        body["resources"] = merged
    profile = body.get("seccomp")
    if isinstance(profile, dict):
        del body["seccomp"]
    spec = codec.convert(SandboxSpec, body)
    spec = msgspec.structs.replace(spec, process=_checked(spec.process, "process."))
    try:
        spec.resources.validate()
    except ValueError as error:
        raise _named(error, "resources.") from None
    if isinstance(profile, dict):
        spec = msgspec.structs.replace(spec, seccomp=_seccomp(profile, spec.process.capabilities))
    check_labels(spec.labels)
    if bool(spec.image) == bool(spec.rootfs):
        raise Invalid("image", "give either image or rootfs", "image is a name such as host, rootfs a directory")
    return spec


def _seccomp(profile: dict[str, Any], capabilities: tuple[str, ...]) -> SeccompPolicy:
    machine = os.uname()
    major, minor = (int(part) for part in machine.release.split("-")[0].split(".")[:2])
    # A call no kernel has is harmless in a list of what is allowed; in a list of what is refused it is a mistake.
    strict = str(profile.get("defaultAction")) in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
    try:
        return policy_from_oci(
            profile,
            unknown="error" if strict else "ignore",
            arch=machine.machine,
            capabilities=frozenset(capabilities),
            kernel=(major, minor),
        )
    except ValueError as error:
        raise _named(error, "seccomp.") from None


def process(body: dict[str, Any], main: Process) -> Process:
    """A Process of a body, for exec. What is not mentioned is as in the sandbox's main process, except for what belongs
    to one process only: argv, stdin, tty and the terminal's size. env is merged. Raises Invalid.
    """
    inherited = codec.to_builtins(main)
    for name in ("argv", "stdin", "tty", "rows", "cols"):
        inherited.pop(name, None)
    env = body.get("env", {})
    merged = inherited | body
    if isinstance(env, dict):
        merged["env"] = inherited["env"] | env
    value = _checked(codec.convert(Process, merged), "")
    if not value.argv:
        raise Invalid("argv", "the program to run is missing")
    return value


def checked_process(value: Process) -> Process:
    """With its capabilities' full names. Raises Invalid for an unknown one."""
    return value if value.capabilities is DEFAULT_CAPABILITIES else _checked(value, "")


def _checked(value: Process, prefix: str) -> Process:
    try:
        names = tuple(canonical(name) for name in value.capabilities)
    except ValueError as error:
        raise _named(error, prefix) from None
    return value if names == value.capabilities else msgspec.structs.replace(value, capabilities=names)


def _named(error: ValueError, prefix: str) -> Invalid:
    name, colon, message = str(error).partition(": ")
    return Invalid(prefix + name, message) if colon else Invalid(prefix.rstrip("."), str(error))


def boolean(text: str) -> bool:
    """`true`/`1`/`` or `false`/`0`."""
    if text.lower() in ("true", "1", ""):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(f"{text!r} is not true or false")


def seconds(text: str) -> float:
    """A finite number that is not negative."""
    value = float(text) if text.replace(".", "", 1).isdigit() else -1.0
    if not 0 <= value < 1e11:
        raise ValueError(f"{text!r} is not a number of seconds")
    return value


def count(text: str) -> int:
    """A whole number that is not negative."""
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def signal_number(text: str) -> int:
    """`TERM`, `SIGTERM`, `15`, `RTMIN+3` as a number (signal(7))."""
    name = text.upper().removeprefix("SIG")
    if name.isdigit():
        number = int(name)
    elif name.startswith("RTMIN+") and name[6:].isdigit():
        number = _signal.SIGRTMIN + int(name[6:])
    else:
        number = int(getattr(_signal, "SIG" + name, 0)) if name.isidentifier() and not name.startswith("_") else 0
    if not 1 <= number <= _signal.SIGRTMAX:
        raise ValueError(f"{text!r} is no signal of this kernel")
    return number


__all__ = ["MAX_BODY", "boolean", "count", "process", "sandbox_spec", "seconds", "signal_number"]
