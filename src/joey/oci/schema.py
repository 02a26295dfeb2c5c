"""config.json as the runtime specification has it (1.2, Linux): a table, and the reader that holds a text against it.

The table is data rather than msgspec types because msgspec takes longer to import (30 ms) than a whole call may take.
As the specification wants it, unknown properties are ignored; what is known must have the right type, and the error
names the property. `null` stands for "not there", as it does for the Go programs that write these files.
Sources: runtime-spec config.md, config-linux.md, schema/*.json.
"""

from __future__ import annotations

from joey.client import jsontext
from joey.oci.errors import Invalid

MAX_BYTES = 16 << 20
"""Of a config.json. Real ones have some ten KiB."""

S, B, ANY = "string", "bool", "any"
U16, U32, U64 = ("int", 0, (1 << 16) - 1), ("int", 0, (1 << 32) - 1), ("int", 0, (1 << 64) - 1)
I32, I64 = ("int", -(1 << 31), (1 << 31) - 1), ("int", -(1 << 63), (1 << 63) - 1)


def many(kind):
    return ("list", kind)


def mapping(kind):
    return ("map", kind)


def need(kind):
    """A property that has to be there."""
    return ("need", kind)


_IDS = many({"containerID": need(U32), "hostID": need(U32), "size": need(U32)})
_HOOKS = many({"path": need(S), "args": many(S), "env": many(S), "timeout": I64})
_CAPS = {name: many(S) for name in ("bounding", "effective", "permitted", "inheritable", "ambient")}
_PROCESS = {
    "terminal": B,
    "consoleSize": {"height": need(U16), "width": need(U16)},
    "user": {"uid": U32, "gid": U32, "umask": U32, "additionalGids": many(U32), "username": S},
    "args": many(S),
    "commandLine": S,
    "env": many(S),
    "cwd": need(S),
    "capabilities": _CAPS,
    "rlimits": many({"type": need(S), "hard": need(U64), "soft": need(U64)}),
    "noNewPrivileges": B,
    "apparmorProfile": S,
    "oomScoreAdj": I32,
    "selinuxLabel": S,
    "ioPriority": {"class": need(S), "priority": I32},
    "scheduler": {
        "policy": need(S), "nice": I32, "priority": I32, "flags": many(S), "runtime": U64, "deadline": U64,
        "period": U64,
    },
    "execCPUAffinity": {"initial": S, "final": S},
}  # fmt: skip
_THROTTLE = many({"major": need(I64), "minor": need(I64), "rate": need(U64)})
_RESOURCES = {
    "devices": many({"allow": need(B), "type": S, "major": I64, "minor": I64, "access": S}),
    "memory": {
        "limit": I64, "reservation": I64, "swap": I64, "kernel": I64, "kernelTCP": I64, "swappiness": U64,
        "disableOOMKiller": B, "useHierarchy": B, "checkBeforeUpdate": B,
    },
    "cpu": {
        "shares": U64, "quota": I64, "burst": U64, "period": U64, "realtimeRuntime": I64, "realtimePeriod": U64,
        "cpus": S, "mems": S, "idle": I64,
    },
    "pids": {"limit": I64},
    "blockIO": {
        "weight": U16, "leafWeight": U16,
        "weightDevice": many({"major": need(I64), "minor": need(I64), "weight": U16, "leafWeight": U16}),
        "throttleReadBpsDevice": _THROTTLE, "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE, "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": many({"pageSize": need(S), "limit": need(U64)}),
    "network": {"classID": U32, "priorities": many({"name": need(S), "priority": need(U32)})},
    "rdma": mapping({"hcaHandles": U32, "hcaObjects": U32}),
    "unified": mapping(S),
}  # fmt: skip
_SECCOMP = {
    "defaultAction": need(S),
    "defaultErrnoRet": U32,
    "architectures": many(S),
    "flags": many(S),
    "listenerPath": S,
    "listenerMetadata": S,
    "syscalls": many({
        "names": need(many(S)), "action": need(S), "errnoRet": U32,
        "args": many({"index": need(U32), "value": need(U64), "valueTwo": U64, "op": need(S)}),
    }),
}  # fmt: skip
_LINUX = {
    "namespaces": many({"type": need(S), "path": S}),
    "uidMappings": _IDS,
    "gidMappings": _IDS,
    "timeOffsets": mapping({"secs": I64, "nanosecs": U32}),
    "devices": many({
        "type": need(S), "path": need(S), "major": I64, "minor": I64, "fileMode": U32, "uid": U32, "gid": U32,
    }),
    "cgroupsPath": S,
    "resources": _RESOURCES,
    "rootfsPropagation": S,
    "seccomp": _SECCOMP,
    "sysctl": mapping(S),
    "maskedPaths": many(S),
    "readonlyPaths": many(S),
    "mountLabel": S,
    "intelRdt": {"closID": S, "l3CacheSchema": S, "memBwSchema": S, "enableCMT": B, "enableMBM": B},
    "personality": {"domain": need(S), "flags": many(S)},
}  # fmt: skip
MOUNT = {
    "destination": need(S), "source": S, "type": S, "options": many(S), "uidMappings": _IDS, "gidMappings": _IDS,
}  # fmt: skip
_HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
CONFIG = {
    "ociVersion": need(S),
    "root": {"path": need(S), "readonly": B},
    "mounts": many(MOUNT),
    "process": _PROCESS,
    "hostname": S,
    "domainname": S,
    "annotations": mapping(S),
    "hooks": dict.fromkeys(_HOOK_KINDS, _HOOKS),
    "linux": _LINUX,
}
PROCESS, RESOURCES = _PROCESS, _RESOURCES


def decode(data, kind=None):
    """The JSON text `data` (bytes) held against `kind` (CONFIG if None). Raises Invalid."""
    if len(data) > MAX_BYTES:
        raise Invalid("", f"has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        value = jsontext.loads(data)
    except ValueError as error:
        raise Invalid("", f"is not JSON: {error}") from None
    except RecursionError:
        raise Invalid("", "is nested too deep") from None
    return check(value, CONFIG if kind is None else kind, "")


def check(value, kind, path):
    """What `kind` knows of `value`; unknown properties and nulls are left out. Raises Invalid naming the property."""
    if isinstance(kind, dict):
        return _object(value, kind, path)
    if kind == S:
        return _string(value, path)
    if kind == B:
        if value is not True and value is not False:
            raise Invalid(path, "must be true or false")
        return value
    if kind[0] == "int":
        # Go writes no fractions, but other programs have 1.0 for 1
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(path, "must be an integer")
        if not kind[1] <= value <= kind[2]:
            raise Invalid(path, f"{value} is not within {kind[1]} and {kind[2]}")
        return value
    if kind[0] == "list":
        if not isinstance(value, list):
            raise Invalid(path, "must be an array")
        return [check(item, kind[1], f"{path}[{at}]") for at, item in enumerate(value)]
    if not isinstance(value, dict):  # a map
        raise Invalid(path, "must be an object")
    return {_string(k, path): check(v, kind[1], f"{path}.{k}") for k, v in value.items() if v is not None}


def _string(value, path):
    if not isinstance(value, str):
        raise Invalid(path, "must be a string")
    if "\0" in value:
        raise Invalid(path, "has a NUL byte in it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(path, "is not valid UTF-8") from None
    return value


def _object(value, kind, path):
    if not isinstance(value, dict):
        raise Invalid(path, "must be an object")
    found = {}
    for name, inner in kind.items():
        here = f"{path}.{name}" if path else name
        given = value.get(name)
        needed = inner[0] == "need" if isinstance(inner, tuple) else False
        if given is None:
            if needed:
                raise Invalid(here, "is missing")
            continue
        found[name] = check(given, inner[1] if needed else inner, here)
    return found
