"""What a key that is no administrator's may not ask for: with it a tenant would own the machine, or starve the others.

The tables name every field of what a request can hold, so that one that is added later must be put somewhere
(tests/unit/test_api_tenant.py). Everything here raises NotPermitted (403) naming the field, or Invalid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from joey.api.auth import ADMINISTRATOR
from joey.api.routes import Call
from joey.images import reference
from joey.model import codec
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.errors import Invalid, NotPermitted
from joey.model.function import FunctionSpec, Version
from joey.model.network import EgressRule, NetworkSpec, mode_of, protected, public
from joey.model.spec import Process, SandboxSpec, Update

MAX_SPEC = 256 << 10
"""Bytes of a key's specification as JSON: the engine keeps it in memory and on disk as long as the sandbox is there."""
MAX_PORTS = 64
"""Published ports of one sandbox: each holds a descriptor of the engine."""
MAX_PIDS = 4096
OWN = "joey.function"
"""A label of the engine's own, and all that begin so: what has it is removed when an engine starts."""
_FIRST_OPEN_PORT = 1024
_ORDINARY_SHARES, _ORDINARY_IO = 1024, 100
_SECONDS_OF_HEALTH = 1.0
_REALTIME = ("NICE", "RTPRIO")


def restrict(call: Call, spec: SandboxSpec) -> SandboxSpec:
    """The spec as the caller may have it: an image of a registry that is not for keys is not asked for."""
    if not call.owner:
        return spec
    host: dict[str, Any] = {
        "rootfs": spec.rootfs,
        "mounts": spec.mounts,
        "devices": spec.devices,
        "network": mode_of(spec.network) == "host",
        "seccomp": spec.seccomp != "default",
        "masked_paths": spec.masked_paths is not None,
        "readonly_paths": spec.readonly_paths is not None,
        "oom_score_adj": spec.oom_score_adj < 0,
        "sysctls": spec.sysctls,
    }
    for field, asked in host.items():
        if asked:
            raise _refused(field)
    restrict_process(call, spec.process, "process.")
    _resources({name: getattr(spec.resources, name) for name in spec.resources.__struct_fields__})
    if spec.health is not None and min(spec.health.interval, spec.health.start_interval) < _SECONDS_OF_HEALTH:
        raise _refused("health.interval", f"checks are {_SECONDS_OF_HEALTH:g} s apart at least")
    if spec.storage == "disk" and spec.resources.disk is None:
        raise NotPermitted("resources.disk", "storage on disk needs a limit", "give one, or storage memory")
    if not isinstance(spec.network, str):
        _network(call, spec.network)
    if len(codec.encode(spec)) > MAX_SPEC:
        raise Invalid("body", f"the specification is longer than {MAX_SPEC} bytes", "write what is long as files")
    if any(name == OWN or name.startswith(OWN + ".") for name in spec.labels):
        raise _refused("labels", f"{OWN} is how instances of functions are told from other sandboxes")
    return _pulled(call, spec)


def restrict_function(call: Call, spec: FunctionSpec) -> None:
    """What a function's instances are asked to be: what a sandbox of the caller may be."""
    if not call.owner:
        return
    from joey.functions.instance import Paths, sandbox_spec

    asked = sandbox_spec(Version(spec=spec), Paths())
    box = restrict(call, msgspec.structs.replace(asked, mounts=(), labels={}))  # those are ours: runtime, code, marks
    if box.pull == "never" and box.image != "host":
        names = ", ".join(call.service.keys_pull) or "none"
        raise _refused("image", f"{box.image} is of no registry that keys may have asked ({names})")


def _refused(field: str, why: str = "only an administrator may ask for this") -> NotPermitted:
    return NotPermitted(field, why, ADMINISTRATOR)


def restrict_process(call: Call, process: Process, where: str = "") -> None:
    """Of a sandbox, or run inside later. `where` stands before the field's name."""
    if not call.owner:
        return
    if not process.no_new_privileges:
        raise _refused(where + "no_new_privileges")
    if more := sorted(set(process.capabilities) - set(DEFAULT_CAPABILITIES)):
        raise _refused(where + "capabilities", f"{more[0]} is not one of the default ones")
    for index, limit in enumerate(process.rlimits):
        if limit.name.upper().removeprefix("RLIMIT_") in _REALTIME:
            raise _refused(f"{where}rlimits[{index}]", f"{limit.name} lets it push others aside")


def restrict_update(call: Call, change: Update) -> None:
    """Of a running sandbox."""
    if not call.owner:
        return
    _resources(change.resources)
    if any(name == OWN or name.startswith(OWN + ".") for name in change.labels):
        raise _refused("labels", f"{OWN} is the engine's own")
    if "rules" in change.network:
        try:
            rules = codec.convert(tuple[EgressRule, ...], change.network["rules"])
        except Invalid as error:
            raise Invalid(f"network.rules{error.where}", error.message, error.remedy) from None
        restrict_rules(call, rules, "network.rules")


def _resources(given: Mapping[str, Any]) -> None:
    """Limits that are given: there must be one where the machine itself has none to spare, and no weight above others'.

    Numbers that are none are refused elsewhere.
    """

    def above(name: str, most: int) -> bool:
        value = given.get(name)
        return isinstance(value, (int, float)) and value > most

    for name in ("memory", "pids"):
        if name in given and given[name] is None:
            raise _refused(f"resources.{name}", "a limit is needed")
    if above("pids", MAX_PIDS):
        raise _refused("resources.pids", f"at most {MAX_PIDS}: the machine has few process numbers")
    if above("swap", 0) or ("swap" in given and given["swap"] is None):
        raise _refused("resources.swap", "swap is not limited for all keys together")
    if above("cpu_shares", _ORDINARY_SHARES) or above("io_weight", _ORDINARY_IO):
        name = "cpu_shares" if above("cpu_shares", _ORDINARY_SHARES) else "io_weight"
        raise _refused(f"resources.{name}", "more than an ordinary sandbox's")
    for name in ("memory_reservation", "oom_kill_disable"):
        if given.get(name):
            raise _refused(f"resources.{name}")


def _network(call: Call, network: NetworkSpec) -> None:
    restrict_rules(call, network.policy.rules, "network.policy.rules")
    if len(network.ports) > MAX_PORTS:
        raise Invalid("network.ports", f"{len(network.ports)} ports, at most {MAX_PORTS}")
    for index, port in enumerate(network.ports):
        if 0 < port.host < _FIRST_OPEN_PORT:
            raise NotPermitted(f"network.ports[{index}].host", f"below {_FIRST_OPEN_PORT}", ADMINISTRATOR)
    for index, server in enumerate(network.dns):
        if not public(server):  # our forwarder would ask it, from the host
            raise NotPermitted(f"network.dns[{index}]", f"{server} is not public", ADMINISTRATOR)


def restrict_rules(call: Call, rules: tuple[EgressRule, ...], where: str) -> None:
    """Refuse rules that open protected ranges (the local network, metadata services)."""
    for index, rule in enumerate(rules if call.owner else ()):
        if rule.action == "allow" and rule.network is not None and protected(rule.network):
            raise NotPermitted(f"{where}[{index}].cidr", f"{rule.cidr} is a protected range", ADMINISTRATOR)


def _pulled(call: Call, spec: SandboxSpec) -> SandboxSpec:
    """A pull is a request that the engine sends, from the host and with the host's credentials, to whatever the name
    says: the host's own loopback, a metadata service, a private registry.
    """
    if spec.pull == "never" or spec.image in ("host", ""):
        return spec
    try:
        registry = reference.parse(spec.image).registry
    except Invalid:  # an id, or no name at all: said where it is looked for
        registry = ""
    allowed = call.service.keys_pull
    if registry in allowed:
        return spec
    if spec.pull == "always":
        names = ", ".join(allowed) or "none"
        raise _refused("pull", f"{registry or spec.image} is no registry that keys may have asked ({names})")
    return msgspec.structs.replace(spec, pull="never")
