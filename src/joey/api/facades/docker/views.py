"""What the engine tells about a container, in Docker's words (Engine API 1.45)."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from joey.model.image import Image
from joey.model.network import as_spec
from joey.model.spec import HealthCheck, Mount, SandboxSpec
from joey.model.views import Detail, Sandbox

_SECOND = 1_000_000_000
NEVER = "0001-01-01T00:00:00Z"
BRIDGE = "bridge"
"""How Docker calls what Joey calls nat."""


def stamp(at: float | None) -> str:
    """RFC 3339 with nanoseconds; Go's zero time for None."""
    if not at:
        return NEVER
    whole = int(at)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at - whole) * 1e9):09d}Z"


def name(one: Sandbox) -> str:
    """Every container of Docker's has a name; ours without one is called by its id."""
    return "/" + (one.name or one.id)


def state(one: Sandbox) -> str:
    if one.state == "exited" and one.restart_at:
        return "restarting"
    return one.state


def ago(seconds: float) -> str:
    """A duration as Docker says it: "5 seconds", "About a minute", "3 hours"."""
    seconds = int(seconds)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    minutes = seconds // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = seconds // 86400
    for length, word in ((365, "years"), (30, "months"), (7, "weeks")):
        if days >= 2 * length:
            return f"{days // length} {word}"
    return f"{days} days"


def status(one: Sandbox, now: float) -> str:
    """The column STATUS of `docker ps`."""
    shown = state(one)
    if shown in ("running", "paused"):
        text = f"Up {ago(now - (one.started or now))}"
        if shown == "paused":
            return f"{text} (Paused)"
        return text + ({"starting": " (health: starting)"}.get(one.health, f" ({one.health})") if one.health else "")
    code = one.exit.code if one.exit else 0
    if shown == "restarting":
        return f"Restarting ({code}) {ago(now - (one.finished or now))} ago"
    if shown == "exited":
        return f"Exited ({code}) {ago(now - (one.finished or now))} ago"
    return {"created": "Created", "dead": "Dead"}.get(shown, shown)


def network_name(mode: str) -> str:
    return BRIDGE if mode == "nat" else mode


def network_id(name: str) -> str:
    """Of the network of that name: the same as long as it is called so."""
    return hashlib.sha256(f"joey network {name}".encode()).hexdigest()


def ports_of(one: Sandbox) -> dict[str, Any]:
    """NetworkSettings.Ports."""
    found: dict[str, Any] = {}
    for port in one.ports:
        binding = {"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.host)}
        found.setdefault(f"{port.container}/{port.protocol}", []).append(binding)
    return found


def networks_of(one: Sandbox, gateway: str, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    """NetworkSettings.Networks. gateway: where a container's routes lead, an address of this host."""
    mode = one.network
    if mode.startswith("container:"):
        return {}
    shown = network_name(mode)
    return {
        shown: {
            "IPAMConfig": None, "Links": None, "Aliases": list(aliases) or None, "MacAddress": "", "DriverOpts": None,
            "NetworkID": network_id(shown), "EndpointID": one.id if one.address else "",
            "Gateway": gateway if one.address else "", "IPAddress": one.address,
            "IPPrefixLen": 32 if one.address else 0, "IPv6Gateway": "", "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "DNSNames": [one.name, one.id[:12]] if one.name else None,
        }
    }  # fmt: skip


def row(one: Sandbox, image_id: str, mounts: list[dict[str, Any]], now: float, gateway: str) -> dict[str, Any]:
    """One of `containers/json`."""
    ports = [
        {"IP": port.host_ip or "0.0.0.0", "PrivatePort": port.container, "PublicPort": port.host, "Type": port.protocol}
        for port in one.ports
    ]
    return {
        "Id": one.id, "Names": [name(one)], "Image": one.image, "ImageID": image_id, "Command": " ".join(one.argv),
        "Created": int(one.created), "Ports": ports, "Labels": one.labels, "State": state(one),
        "Status": status(one, now), "HostConfig": {"NetworkMode": network_name(one.network)},
        "NetworkSettings": {"Networks": networks_of(one, gateway)}, "Mounts": mounts,
    }  # fmt: skip


def _binds(spec: SandboxSpec) -> list[Mount]:
    """Directories of the host. Of one that has run its volumes are among the mounts, too."""
    volumes = {one.target for one in spec.volumes}
    return [one for one in spec.mounts if one.target not in volumes]


def mounts(spec: SandboxSpec) -> list[dict[str, Any]]:
    """MountPoints."""
    found: list[dict[str, Any]] = [
        {"Type": "bind", "Source": one.source, "Destination": one.target, "Mode": "ro" if one.read_only else "",
         "RW": not one.read_only, "Propagation": one.propagation}
        for one in _binds(spec)
    ]  # fmt: skip
    found += [
        {"Type": "volume", "Name": one.name, "Source": "", "Destination": one.target, "Driver": "local",
         "Mode": "ro" if one.read_only else "z", "RW": not one.read_only, "Propagation": ""}
        for one in spec.volumes
    ]  # fmt: skip
    return found


def inspect(
    detail: Detail, image: Image | None, image_id: str, execs: list[str], stays: bool, gateway: str
) -> dict[str, Any]:
    """`containers/{id}/json`. image: None if it is not here any more."""
    one, spec = detail.sandbox, detail.spec
    argv = list(one.argv)
    return {
        "Id": one.id, "Created": stamp(one.created), "Path": argv[0] if argv else "", "Args": argv[1:],
        "State": _state(one), "Image": image_id, "ResolvConfPath": "", "HostnamePath": "", "HostsPath": "",
        "LogPath": detail.paths.get("log", ""), "Name": name(one), "RestartCount": one.restarts, "Driver": "overlay",
        "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "", "ExecIDs": execs or None,
        "HostConfig": host_config(spec, one), "GraphDriver": {"Name": "overlay", "Data": None},
        "Mounts": mounts(spec), "Config": _config(spec, one, image, stays, detail.slot),
        "NetworkSettings": _settings(one, spec, gateway),
    }  # fmt: skip


def _state(one: Sandbox) -> dict[str, Any]:
    shown, end = state(one), one.exit
    found: dict[str, Any] = {
        "Status": shown, "Running": shown in ("running", "paused", "restarting"), "Paused": shown == "paused",
        "Restarting": shown == "restarting", "OOMKilled": bool(end and end.oom and shown != "running"),
        "Dead": shown == "dead", "Pid": one.pid or 0, "ExitCode": end.code if end and not one.pid else 0,
        "Error": end.error if end else "", "StartedAt": stamp(one.started), "FinishedAt": stamp(one.finished),
    }  # fmt: skip
    if one.health:
        found["Health"] = {"Status": one.health, "FailingStreak": 0, "Log": []}
    return found


def _config(spec: SandboxSpec, one: Sandbox, image: Image | None, stays: bool, slot: str) -> dict[str, Any]:
    process, check = spec.process, spec.health or (image.health if image else None)
    entrypoint = list(spec.entrypoint) if spec.entrypoint is not None else list(image.entrypoint) if image else []
    env = {**(image.env if image else {}), **process.env}
    command = list(process.argv) or (list(image.argv) if image and spec.entrypoint is None else [])
    exposed: dict[str, Any] = {text: {} for text in (*(image.ports if image else ()), *ports_of(one))}
    exposed |= {f"{port.container}/{port.protocol}": {} for port in as_spec(spec.network).ports}
    return {
        "Hostname": spec.hostname or slot, "Domainname": "",
        "User": process.user or (image.user if image else ""),
        "AttachStdin": process.stdin, "AttachStdout": True, "AttachStderr": True, "ExposedPorts": exposed,
        "Tty": process.tty, "OpenStdin": process.stdin, "StdinOnce": process.stdin and not stays,
        "Env": [f"{key}={value}" for key, value in env.items()], "Cmd": command or None, "Image": spec.image,
        "Volumes": {path: {} for path in image.volumes} if image and image.volumes else None,
        "WorkingDir": process.cwd or (image.cwd if image else ""), "Entrypoint": entrypoint or None, "OnBuild": None,
        "Labels": {**(image.labels if image else {}), **one.labels}, "StopSignal": spec.stop_signal,
        "StopTimeout": int(spec.stop_timeout), **({"Healthcheck": _check(check)} if check else {}),
    }  # fmt: skip


def _check(check: HealthCheck) -> dict[str, Any]:
    return {
        "Test": ["NONE"] if check.none else ["CMD", *check.command],
        "Interval": int(check.interval * _SECOND), "Retries": check.retries,
        "Timeout": int(check.timeout * _SECOND), "StartPeriod": int(check.start_period * _SECOND),
    }  # fmt: skip


def host_config(spec: SandboxSpec, one: Sandbox) -> dict[str, Any]:
    """HostConfig as it is in force, defaults of Joey included."""
    limits, network, process = spec.resources, as_spec(spec.network), spec.process
    swap = -1 if limits.swap is None else (limits.memory or 0) + limits.swap
    bindings: dict[str, Any] = {}
    for port in network.ports:
        given = {"HostIp": port.host_ip, "HostPort": str(port.host) if port.host else ""}
        bindings.setdefault(f"{port.container}/{port.protocol}", []).append(given)
    return {
        "Binds": [f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in _binds(spec)]
        + [f"{v.name}:{v.target}{':ro' if v.read_only else ''}" for v in spec.volumes] or None,
        "ContainerIDFile": "", "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": network_name(network.mode), "PortBindings": bindings, "AutoRemove": spec.remove,
        "RestartPolicy": {"Name": spec.restart.policy, "MaximumRetryCount": spec.restart.max_retries or 0},
        "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [process.rows, process.cols],
        "CapAdd": None, "CapDrop": None, "Capabilities": list(process.capabilities), "CgroupnsMode": "private",
        "Dns": list(network.dns), "DnsOptions": list(network.dns_options), "DnsSearch": list(network.dns_search),
        "ExtraHosts": [f"{key}:{value}" for key, value in network.extra_hosts.items()] or None,
        "GroupAdd": [str(group) for group in process.groups] or None, "IpcMode": "private", "Cgroup": "", "Links": None,
        "OomScoreAdj": spec.oom_score_adj, "PidMode": "", "Privileged": False, "PublishAllPorts": network.publish_all,
        "ReadonlyRootfs": spec.read_only, "UTSMode": "", "UsernsMode": "private", "Runtime": "joey",
        "SecurityOpt": [f"no-new-privileges={'true' if process.no_new_privileges else 'false'}"],
        "ShmSize": spec.shm_size or 67108864, "Isolation": "", "CpuShares": limits.cpu_shares or 0,
        "Memory": limits.memory or 0, "MemorySwap": swap, "MemoryReservation": limits.memory_reservation or 0,
        "NanoCpus": int((limits.cpus or 0) * 1e9), "CpusetCpus": limits.cpuset_cpus or "",
        "CpusetMems": limits.cpuset_mems or "", "CgroupParent": "", "BlkioWeight": 0, "CpuPeriod": 0, "CpuQuota": 0,
        "PidsLimit": limits.pids if limits.pids is not None else -1, "OomKillDisable": limits.oom_kill_disable,
        "Tmpfs": {one.target: f"size={one.size}" if one.size else "" for one in spec.tmpfs}, "Init": spec.init,
        "Ulimits": [{"Name": r.name.lower(), "Soft": _top(r.soft), "Hard": _top(r.hard)} for r in process.rlimits],
        "Devices": [
            {"PathOnHost": d.path, "PathInContainer": d.target or d.path, "CgroupPermissions": d.access}
            for d in spec.devices
        ],
        "Sysctls": spec.sysctls, "MaskedPaths": list(spec.masked_paths) if spec.masked_paths is not None else None,
        "ReadonlyPaths": list(spec.readonly_paths) if spec.readonly_paths is not None else None,
    }  # fmt: skip


def _top(value: int | None) -> int:
    return -1 if value is None else value


def _settings(one: Sandbox, spec: SandboxSpec, gateway: str) -> dict[str, Any]:
    return {
        "Bridge": "", "SandboxID": one.id, "SandboxKey": "", "Ports": ports_of(one), "HairpinMode": False,
        "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None, "EndpointID": "", "Gateway": gateway if one.address else "",
        "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "IPAddress": one.address,
        "IPPrefixLen": 32 if one.address else 0, "IPv6Gateway": "", "MacAddress": "",
        "Networks": networks_of(one, gateway, as_spec(spec.network).aliases),
    }  # fmt: skip
