"""_ping, version, info, system df."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from joey._version import __version__
from joey.api.facades.docker import containers, images, views, volumes
from joey.api.facades.docker.base import LEAST, VERSION, Refused, Req, Route
from joey.api.light import web
from joey.engine.interface import Filter

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


async def ping(r: Req) -> web.Response:
    """What every client asks first. Builder-Version 1: no BuildKit."""
    headers = {"Builder-Version": "1", "Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
    return web.Response(text="" if r.request.method == "HEAD" else "OK", headers=headers)


async def version(r: Req) -> Any:
    machine = os.uname()
    arch = _ARCHITECTURES.get(machine.machine, machine.machine)
    about = {
        "ApiVersion": VERSION,
        "MinAPIVersion": LEAST,
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": machine.release,
    }
    engine = {"Name": "Engine", "Version": __version__, "Details": {**about, "Experimental": "false"}}
    return {"Platform": {"Name": "Joey"}, "Components": [engine], "Version": __version__, **about, "GitCommit": "",
            "GoVersion": "", "BuildTime": ""}  # fmt: skip


async def info(r: Req) -> Any:
    node = await r.engine.node()
    counts = node.counts
    own = getattr(r.engine, "instance", None)
    stored = len(await images.listed(r)) if own else 0
    return {
        "ID": node.instance, "Containers": sum(counts.values()), "ContainersRunning": counts.get("running", 0),
        "ContainersPaused": counts.get("paused", 0), "Images": stored,
        "ContainersStopped": sum(counts.get(state, 0) for state in ("created", "exited", "dead")),
        "Driver": "overlay", "DriverStatus": [["Engine", "Joey"]], "DockerRootDir": node.home, "Name": platform.node(),
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"],
                    "Authorization": None, "Log": ["json-file"]},
        "MemoryLimit": True, "SwapLimit": True, "CpuCfsPeriod": True, "CpuCfsQuota": True, "CPUShares": True,
        "CPUSet": True, "PidsLimit": True, "IPv4Forwarding": True, "OomKillDisable": False, "Debug": False,
        "NFd": 0, "NGoroutines": 0, "SystemTime": views.stamp(time.time()), "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs", "CgroupVersion": "2" if _unified() else "1", "NEventsListener": 0,
        "KernelVersion": node.kernel, "OperatingSystem": f"Joey on {node.arch}", "OSType": "linux", "OSVersion": "",
        "Architecture": node.arch, "NCPU": node.cpus, "MemTotal": node.memory_total, "GenericResources": None,

        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": []},
        "HttpProxy": "", "HttpsProxy": "", "NoProxy": "", "Labels": [], "ExperimentalBuild": False,
        "ServerVersion": node.version, "Runtimes": {"joey": {"path": "joey-launcher"}}, "DefaultRuntime": "joey",
        "Swarm": {"LocalNodeState": "inactive"}, "LiveRestoreEnabled": True, "Isolation": "", "InitBinary": "joey-init",
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"], "Warnings": None,
    }  # fmt: skip


def _unified() -> bool:
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


async def df(r: Req) -> Any:
    own = getattr(r.engine, "instance", None)
    rows = []
    for one in await r.engine.list(Filter(all=True)):
        detail = await r.engine.inspect(one.id)
        rows.append(
            {**views.row(one, containers.image_id(r, one), views.mounts(detail.spec), time.time()), "SizeRw": 0}
        )
    stored = await images.listed(r) if own else []
    kept = (await volumes.index(r))["Volumes"] if getattr(r.engine, "volumes", None) else []
    layers = sum(row["Size"] for row in stored)
    return {"LayersSize": layers, "Images": stored, "Containers": rows, "Volumes": kept, "BuildCache": []}


async def auth(r: Req) -> Any:
    raise Refused("auth", "Joey reads the host's docker config.json: log in with the file")


async def swarm(r: Req) -> Any:
    raise Refused("swarm", "Joey is one machine: there is no swarm")


ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/system/df", df),
    Route("POST", "/auth", auth),
    *(Route("GET", f"/{what}", swarm) for what in ("swarm", "nodes", "services", "tasks", "secrets", "configs")),
)
