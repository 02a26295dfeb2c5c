"""HostConfig and NetworkingConfig of a create: limits, network, isolation; what is mounted is in mounts.py."""

from __future__ import annotations

import os
from typing import Any

from joey.api.facades.docker import mounts
from joey.api.facades.docker.base import Refused
from joey.api.facades.docker.fields import Fields
from joey.api.facades.docker.mounts import SELINUX, Extra
from joey.model import codec
from joey.model.capabilities import DEFAULT_CAPABILITIES, adjust
from joey.model.errors import Invalid
from joey.model.units import parse_size

_USUAL: dict[str, tuple[Any, ...]] = {
    "MemorySwappiness": (-1,), "ConsoleSize": ([0, 0],), "CgroupnsMode": ("private",),
    "IpcMode": ("private", "shareable"),
    "PidMode": ("private",), "UTSMode": ("private",), "Isolation": ("default",), "VolumeDriver": ("local",),
    "Runtime": ("joey", "joey-oci", "runc", "io.containerd.runc.v2"), "UsernsMode": ("private",),
}  # fmt: skip
_WHY = {
    "Privileged": "name what it needs: --cap-add, --device, --security-opt", "Annotations": "labels are kept: --label",
    "VolumesFrom": "name the volumes: -v NAME:/path", "Runtime": "Joey has one, which is called runc too",
    "Links": "use a network: docker network create, --network NAME", "DeviceRequests": "--device for each device node",
    "DeviceCgroupRules": "--device for each device node", "Cgroup": "namespaces of their own only",
    "IpcMode": "namespaces of their own only", "PidMode": "namespaces of their own only",
    "UTSMode": "namespaces of their own only", "UsernsMode": "every container has a user namespace of its own",
    "CgroupnsMode": "namespaces of their own only", "CgroupParent": "Joey places its containers itself",
    "StorageOpt": "only size is known", "BlkioWeight": "weights of block devices are not offered",
    "BlkioWeightDevice": "weights of block devices are not offered", "VolumeDriver": "volumes have one driver, local",
}  # fmt: skip
MODES = {"default": "nat", "bridge": "nat", "nat": "nat", "none": "none", "host": "host", "": "nat"}


def add(made: dict[str, Any], process: dict[str, Any], host: Fields, networking: Fields, extra: Extra) -> None:
    """Put into the spec and its process what the two objects say. Raises Invalid, Refused naming the field."""
    made["resources"] = resources(host)
    mounts.add(made, host, extra)
    _isolation(made, process, host)
    made["network"] = _network(host, networking, extra)
    made["remove"] = host.take("AutoRemove", bool, False)
    made["restart"] = restart(host)
    if made["remove"] and made["restart"]["policy"] != "no":
        raise Invalid("HostConfig.AutoRemove", "can't create 'AutoRemove' container with restart policy")
    made["init"] = host.take("Init", bool, False)
    made["read_only"] = host.take("ReadonlyRootfs", bool, False)
    if size := host.take("ShmSize", int, 0):
        made["shm_size"] = size
    made["oom_score_adj"] = host.take("OomScoreAdj", int, 0)
    rows, cols = [*host.take("ConsoleSize", list[int], [0, 0]), 0, 0][:2]
    if rows and cols:
        process["rows"], process["cols"] = rows, cols
    _logs(host)
    host.drop("ContainerIDFile")  # the client writes it
    host.refuse(_USUAL, _WHY)


def _logs(host: Fields) -> None:
    """Joey's logs are what json-file is to Docker, with bounds of their own."""
    given = host.take("LogConfig", dict[str, Any], {})
    kind, options = given.get("Type") or "json-file", given.get("Config") or {}
    if kind != "json-file":
        raise Refused("HostConfig.LogConfig", f"the driver {kind!r} is not supported: Joey keeps logs: docker logs")
    if options:
        raise Refused("HostConfig.LogConfig", f"{sorted(options)[0]!r}: Joey's logs have bounds of their own")


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


_LABELS_OFF = ("label=disable", "label:disable")


def _security(text: str, made: dict[str, Any], process: dict[str, Any]) -> None:
    name, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
    if name == "seccomp":
        made["seccomp"] = value if value in ("unconfined", "default") else codec.decode(dict[str, Any], value)
    elif name == "no-new-privileges" and value in ("", "true", "false"):
        process["no_new_privileges"] = value != "false"
    elif name == "systempaths" and value == "unconfined":
        made["masked_paths"], made["readonly_paths"] = [], []
    elif (name, value) == ("apparmor", "unconfined") or (text in _LABELS_OFF and not os.path.exists(SELINUX)):
        pass  # they are: Joey has neither
    else:
        raise Refused("HostConfig.SecurityOpt", f"{text!r} cannot be enforced: seccomp and no-new-privileges can")


def _network(host: Fields, networking: Fields, extra: Extra) -> Any:
    mode = host.take("NetworkMode", str, "")
    endpoints = networking.take("EndpointsConfig", dict[str, Any], {})
    networking.refuse({}, {})
    if len(endpoints) > 1:
        raise Refused("NetworkingConfig.EndpointsConfig", "a container is in one network")
    found: dict[str, Any] = {"mode": "none" if extra.disabled else MODES.get(mode, mode)}
    for name, endpoint in endpoints.items():
        if name != mode and not (MODES.get(name) == "nat" and found["mode"] == "nat"):
            raise Refused(
                "NetworkingConfig.EndpointsConfig", f"{name}: a container is in one network, {mode or 'bridge'}"
            )
        found["aliases"] = endpoint_aliases(endpoint or {}, found["mode"])
    ports = _ports(host.take("PortBindings", dict[str, Any], {}))
    if host.take("PublishAllPorts", bool, False):
        given = {f"{port['container']}/{port['protocol']}" for port in ports}
        ports += [_port(text, {}) for text in extra.exposed if text not in given]
        found["publish_all"] = True
    if ports and found["mode"] == "host":
        ports = []
        extra.warnings.append("Published ports are discarded when using host network mode")
    elif ports and (found["mode"] == "none" or ":" in found["mode"]):
        where = "the network none" if found["mode"] == "none" else f"the network of {mode.partition(':')[2]}"
        raise Invalid("HostConfig.PortBindings", f"conflicting options: {where} has no ports to publish")
    if ports:
        found["ports"] = ports
    for field_of, ours in (("Dns", "dns"), ("DnsSearch", "dns_search"), ("DnsOptions", "dns_options")):
        if value := host.take(field_of, list[str], []):
            found[ours] = value
    found["extra_hosts"] = dict(_extra(text) for text in host.take("ExtraHosts", list[str], []))
    return found


def _extra(text: str) -> tuple[str, str]:
    name, _, address = text.replace("=", ":", 1).partition(":")
    if address == "host-gateway":
        raise Refused("HostConfig.ExtraHosts", f"{text!r}: the host is never reachable")
    return name, address


def endpoint_aliases(endpoint: dict[str, Any], mode: str) -> list[str]:
    """What an EndpointConfig asks for. Raises Refused for what is more than names."""
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
