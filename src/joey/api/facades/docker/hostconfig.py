"""HostConfig and NetworkingConfig of a create: limits, mounts, network, isolation."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from joey.api.facades.docker.base import Refused
from joey.model import codec
from joey.model.capabilities import DEFAULT_CAPABILITIES, adjust
from joey.model.errors import Invalid
from joey.model.units import parse_size

if TYPE_CHECKING:
    from joey.api.facades.docker.request import Fields

_USUAL: dict[str, tuple[Any, ...]] = {
    "MemorySwappiness": (-1,), "ConsoleSize": ([0, 0],), "CgroupnsMode": ("private",),
    "IpcMode": ("private", "shareable"),
    "PidMode": ("private",), "UTSMode": ("private",), "Isolation": ("default",), "VolumeDriver": ("local",),
    "LogConfig": ({"Type": "", "Config": {}}, {"Type": "", "Config": None}, {"Type": "json-file", "Config": {}}),
    "Runtime": ("joey", "runc"), "OomKillDisable": (False,), "UsernsMode": ("private",),
}  # fmt: skip
_WHY = {
    "Privileged": "name what it needs: --cap-add, --device, --security-opt",
    "LogConfig": "Joey keeps logs itself: docker logs", "VolumesFrom": "name the volumes: -v NAME:/path",
    "Links": "use a network: docker network create, --network NAME", "DeviceRequests": "--device for each device node",
    "IpcMode": "namespaces of their own only", "PidMode": "namespaces of their own only",
    "UTSMode": "namespaces of their own only", "UsernsMode": "every container has a user namespace of its own",
    "CgroupnsMode": "namespaces of their own only", "CgroupParent": "Joey places its containers itself",
    "StorageOpt": "only size is known", "BlkioWeight": "weights of block devices are not offered",
}  # fmt: skip
_MODES = {"default": "nat", "bridge": "nat", "nat": "nat", "none": "none", "host": "host", "": "nat"}


def add(
    made: dict[str, Any], process: dict[str, Any], host: Fields, networking: Fields, *, exposed: dict[str, Any],
    disabled: bool, anonymous: dict[str, Any],
) -> None:  # fmt: skip
    """Put into the spec and its process what the two objects say. Raises Invalid, Refused naming the field."""
    made["resources"] = resources(host)
    _mounts(made, host, anonymous)
    _isolation(made, process, host)
    made["network"] = _network(host, networking, exposed, disabled)
    made["remove"] = host.take("AutoRemove", bool, False)
    made["restart"] = restart(host)
    made["init"] = host.take("Init", bool, False)
    made["read_only"] = host.take("ReadonlyRootfs", bool, False)
    if size := host.take("ShmSize", int, 0):
        made["shm_size"] = size
    made["oom_score_adj"] = host.take("OomScoreAdj", int, 0)
    rows, cols = [*host.take("ConsoleSize", list[int], [0, 0]), 0, 0][:2]
    if rows and cols:
        process["rows"], process["cols"] = rows, cols
    host.drop("ContainerIDFile", "Annotations", "CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth")
    host.refuse(_USUAL, _WHY)


def resources(host: Fields) -> dict[str, Any]:
    """What was said of limits, as fields of Resources; also for `docker update`. 0 is "not said"."""
    found: dict[str, Any] = {}
    memory = host.take("Memory", int, 0)
    swap = host.take("MemorySwap", int, 0)
    if memory:
        found["memory"] = memory
    if swap == -1:
        found["swap"] = None
    elif swap:
        if not memory or swap < memory:
            raise Invalid("HostConfig.MemorySwap", "is memory and swap together: not less than Memory, which it needs")
        found["swap"] = swap - memory
    for field, ours in (("MemoryReservation", "memory_reservation"), ("CpuShares", "cpu_shares")):
        if value := host.take(field, int, 0):
            found[ours] = value
    for field, ours in (("CpusetCpus", "cpuset_cpus"), ("CpusetMems", "cpuset_mems")):
        if text := host.take(field, str, ""):
            found[ours] = text
    _cpus(host, found)
    pids = host.take("PidsLimit", int, 0)
    if pids:
        found["pids"] = pids if pids > 0 else None
    if host.take("OomKillDisable", bool, False):
        found["oom_kill_disable"] = True
    if limits := _io(host):
        found["io_limits"] = limits
    if size := host.take("StorageOpt", dict[str, str], {}):
        if set(size) != {"size"}:
            raise Refused("HostConfig.StorageOpt", "only size is known")
        found["disk"] = parse_size(size["size"], "HostConfig.StorageOpt.size")
    return found


def _cpus(host: Fields, found: dict[str, Any]) -> None:
    nano, quota, period = (host.take(name, int, 0) for name in ("NanoCpus", "CpuQuota", "CpuPeriod"))
    if nano and (quota or period):
        raise Invalid("HostConfig.NanoCpus", "conflicting options: CpuQuota and CpuPeriod say the same thing")
    if nano:
        found["cpus"] = nano / 1e9
    elif quota:
        found["cpus"] = quota / (period or 100_000) if quota > 0 else None
    elif period:
        raise Refused("HostConfig.CpuPeriod", "means nothing without CpuQuota")


def _io(host: Fields) -> list[dict[str, Any]]:
    limits = []
    for field, kind in (
        ("BlkioDeviceReadBps", "read_bps"), ("BlkioDeviceWriteBps", "write_bps"),
        ("BlkioDeviceReadIOps", "read_iops"), ("BlkioDeviceWriteIOps", "write_iops"),
    ):  # fmt: skip
        for one in host.take(field, list[dict[str, Any]], []):
            try:
                number = os.stat(str(one.get("Path"))).st_rdev
            except OSError as error:
                raise Invalid(f"HostConfig.{field}", f"{one.get('Path')}: {error.strerror}") from None
            limits.append({"major": os.major(number), "minor": os.minor(number), "kind": kind, "rate": one.get("Rate")})
    return limits


def restart(host: Fields) -> dict[str, Any]:
    """RestartPolicy as Restart; also for `docker update`."""
    policy = host.take("RestartPolicy", dict[str, Any], {})
    name, retries = policy.get("Name") or "no", policy.get("MaximumRetryCount") or 0
    if name not in ("no", "on-failure", "always", "unless-stopped"):
        raise Invalid("HostConfig.RestartPolicy.Name", f"{name!r} is none of no, on-failure, always, unless-stopped")
    if retries and name != "on-failure":
        raise Invalid("HostConfig.RestartPolicy.MaximumRetryCount", f"can only be used with on-failure, not {name}")
    return {"policy": name, "max_retries": retries or None}


def _mounts(made: dict[str, Any], host: Fields, anonymous: dict[str, Any]) -> None:
    mounts: list[Any] = []
    volumes: list[Any] = []
    tmpfs: list[Any] = []
    for text in host.take("Binds", list[str], []):
        source, target, options = _bind(text)
        read_only = "ro" in options
        if source.startswith("/"):
            _make_source(source)
            one: dict[str, Any] = {"source": source, "target": target, "read_only": read_only}
            for option in options & {"private", "rprivate", "slave", "rslave", "shared", "rshared"}:
                one["propagation"] = option
            mounts.append(one)
        else:
            volumes.append({"name": source, "target": target, "read_only": read_only, "copy": "nocopy" not in options})
    for one in host.take("Mounts", list[dict[str, Any]], []):
        _mount(dict(one), mounts, volumes, tmpfs)
    for target, options_text in host.take("Tmpfs", dict[str, str], {}).items():
        tmpfs.append(_tmpfs(target, options_text))
    taken = {one["target"].rstrip("/") for one in (*mounts, *volumes, *tmpfs)}
    if extra := sorted(path for path in anonymous if path.rstrip("/") not in taken):
        raise Refused("Volumes", f"{extra[0]}: Joey has no volumes without a name: -v NAME:{extra[0]}")
    made["mounts"], made["volumes"], made["tmpfs"] = mounts, volumes, tmpfs


_OPTIONS = {"ro", "rw", "z", "Z", "nocopy", "private", "rprivate", "slave", "rslave", "shared", "rshared"}


def _bind(text: str) -> tuple[str, str, set[str]]:
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not parts[0] or not parts[1].startswith("/"):
        raise Invalid("HostConfig.Binds", f"invalid volume specification: {text!r}", "SOURCE:/target[:ro]")
    options = {option for option in (parts[2].split(",") if len(parts) == 3 else ()) if option}
    if unknown := sorted(options - _OPTIONS):
        raise Refused("HostConfig.Binds", f"{text!r}: the option {unknown[0]} is not known")
    return parts[0], parts[1], options


def _make_source(path: str) -> None:
    """Docker makes the directory of a -v that is not there."""
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except FileExistsError:
        return
    except OSError as error:
        raise Invalid("HostConfig.Binds", f"{path}: {error.strerror}") from None


def _mount(one: dict[str, Any], mounts: list[Any], volumes: list[Any], tmpfs: list[Any]) -> None:
    kind, target, source = (one.pop(name, None) or "" for name in ("Type", "Target", "Source"))
    where = "HostConfig.Mounts"
    read_only = bool(one.pop("ReadOnly", False))
    one.pop("Consistency", None)
    options = {name: one.pop(name, None) or {} for name in ("BindOptions", "VolumeOptions", "TmpfsOptions")}
    if left := sorted(name for name, value in one.items() if value):
        raise Refused(where, f"{left[0]} is not known")
    if kind == "bind":
        bind = {"source": source, "target": target, "read_only": read_only}
        given = options["BindOptions"]
        if given.get("Propagation"):
            bind["propagation"] = given["Propagation"]
        if given.get("NonRecursive"):
            bind["recursive"] = False
        if given.get("CreateMountpoint"):
            _make_source(source)
        elif not os.path.exists(source):
            raise Invalid(where, f"bind source path does not exist: {source}")
        mounts.append(bind)
    elif kind == "volume":
        given = options["VolumeOptions"]
        if not source:
            raise Refused(where, "Joey has no volumes without a name: give src=NAME")
        if given.get("Subpath") or (given.get("DriverConfig") or {}).get("Name") not in (None, "", "local"):
            raise Refused(where, "volumes have no subpaths and no drivers")
        volumes.append({"name": source, "target": target, "read_only": read_only, "copy": not given.get("NoCopy")})
    elif kind == "tmpfs":
        given = options["TmpfsOptions"]
        made: dict[str, Any] = {"target": target}
        if given.get("SizeBytes"):
            made["size"] = given["SizeBytes"]
        if given.get("Mode"):
            made["mode"] = given["Mode"]
        tmpfs.append(made)
    else:
        raise Refused(where, f"mounts of type {kind!r} are not known: bind, volume, tmpfs")


def _tmpfs(target: str, text: str) -> dict[str, Any]:
    made: dict[str, Any] = {"target": target}
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name == "size":
            made["size"] = parse_size(value, "HostConfig.Tmpfs.size")
        elif name == "mode" and re.fullmatch("[0-7]{1,5}", value):
            made["mode"] = int(value, 8)
        elif name == "noexec":
            made["noexec"] = True
        elif name not in ("rw", "exec", "nosuid", "nodev"):
            raise Refused("HostConfig.Tmpfs", f"the option {option!r} is not known")
    return made


def _isolation(made: dict[str, Any], process: dict[str, Any], host: Fields) -> None:
    added, dropped = host.take("CapAdd", list[str], []), host.take("CapDrop", list[str], [])
    if added or dropped:
        try:
            process["capabilities"] = adjust(DEFAULT_CAPABILITIES, added, dropped)
        except ValueError as error:
            raise Invalid("HostConfig.CapAdd", str(error)) from None
    groups = host.take("GroupAdd", list[str], [])
    if bad := [group for group in groups if not group.isdigit()]:
        raise Refused("HostConfig.GroupAdd", f"{bad[0]!r}: give the group's number")
    process["groups"] = [int(group) for group in groups]
    process["rlimits"] = [
        {"name": one["Name"].upper(), "soft": _limit(one["Soft"]), "hard": _limit(one["Hard"])}
        for one in host.take("Ulimits", list[dict[str, Any]], [])
    ]
    for text in host.take("SecurityOpt", list[str], []):
        _security(text, made, process)
    for field, ours in (("MaskedPaths", "masked_paths"), ("ReadonlyPaths", "readonly_paths")):
        paths = host.take(field, list[str])
        if paths is not None:
            made[ours] = paths
    made["sysctls"] = host.take("Sysctls", dict[str, str], {})
    made["devices"] = [
        {"path": one.get("PathOnHost"), "target": one.get("PathInContainer") or "",
         "access": one.get("CgroupPermissions") or "rwm"}
        for one in host.take("Devices", list[dict[str, Any]], [])
    ]  # fmt: skip


def _limit(value: int) -> int | None:
    return None if value < 0 else value


def _security(text: str, made: dict[str, Any], process: dict[str, Any]) -> None:
    name, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
    if name == "seccomp":
        made["seccomp"] = value if value in ("unconfined", "default") else codec.decode(dict[str, Any], value)
    elif name == "no-new-privileges" and value in ("", "true", "false"):
        process["no_new_privileges"] = value != "false"
    elif name == "systempaths" and value == "unconfined":
        made["masked_paths"], made["readonly_paths"] = [], []
    else:
        raise Refused("HostConfig.SecurityOpt", f"{text!r} cannot be enforced: seccomp and no-new-privileges can")


def _network(host: Fields, networking: Fields, exposed: dict[str, Any], disabled: bool) -> Any:
    mode = host.take("NetworkMode", str, "")
    endpoints = networking.take("EndpointsConfig", dict[str, Any], {})
    networking.refuse({}, {})
    if len(endpoints) > 1:
        raise Refused("NetworkingConfig.EndpointsConfig", "a container is in one network")
    found: dict[str, Any] = {"mode": "none" if disabled else _MODES.get(mode, mode)}
    for name, endpoint in endpoints.items():
        if name != mode and not (_MODES.get(name) == "nat" and found["mode"] == "nat"):
            raise Refused(
                "NetworkingConfig.EndpointsConfig", f"{name}: a container is in one network, {mode or 'bridge'}"
            )
        found["aliases"] = _aliases(endpoint or {}, found["mode"])
    ports = _ports(host.take("PortBindings", dict[str, Any], {}))
    if host.take("PublishAllPorts", bool, False):
        ports += [
            _port(text, {}) for text in exposed if not any(text == f"{p['container']}/{p['protocol']}" for p in ports)
        ]
        found["publish_all"] = True
    if ports and (found["mode"] in ("none", "host") or ":" in found["mode"]):
        ports = []  # as Docker: they are dropped where the network has none to publish
    if ports:
        found["ports"] = ports
    for field, ours in (("Dns", "dns"), ("DnsSearch", "dns_search"), ("DnsOptions", "dns_options")):
        if value := host.take(field, list[str], []):
            found[ours] = value
    found["extra_hosts"] = dict(_extra(text) for text in host.take("ExtraHosts", list[str], []))
    return found


def _extra(text: str) -> tuple[str, str]:
    name, _, address = text.replace("=", ":", 1).partition(":")
    if address == "host-gateway":
        raise Refused("HostConfig.ExtraHosts", f"{text!r}: the host is never reachable")
    return name, address


def _aliases(endpoint: dict[str, Any], mode: str) -> list[str]:
    left = {
        name: value for name, value in endpoint.items() if value and name not in ("Aliases", "DNSNames", "NetworkID")
    }
    ipam = left.pop("IPAMConfig", None)
    if ipam and any(ipam.values()):
        raise Refused("NetworkingConfig.IPAMConfig", "addresses are the engine's")
    if left:
        raise Refused(f"NetworkingConfig.{sorted(left)[0]}", "Joey has nothing like it")
    return [] if mode == "nat" else list(endpoint.get("Aliases") or ())


def _ports(bindings: dict[str, Any]) -> list[dict[str, Any]]:
    return [_port(text, one) for text, ones in bindings.items() for one in (ones or [{}])]


def _port(text: str, binding: dict[str, Any]) -> dict[str, Any]:
    number, _, protocol = text.partition("/")
    host, _, last = (binding.get("HostPort") or "").partition("-")
    if not number.isdigit() or (host and not host.isdigit()) or (last and not last.isdigit()):
        raise Invalid("HostConfig.PortBindings", f"{text} {binding}: invalid port specification")
    address = binding.get("HostIp") or ""
    made = {"container": int(number), "host": int(host or 0), "protocol": protocol or "tcp"}
    if last:
        made["host_last"] = int(last)
    if address and address != "0.0.0.0":
        made["host_ip"] = address
    return made
