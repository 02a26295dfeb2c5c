"""_ping, version, info, system df."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from joey._version import __version__
from joey.api.facades.docker import containers, images, sizes, views, volumes
from joey.api.facades.docker.base import LEAST, VERSION, Refused, Req, Route, error
from joey.api.facades.docker.fields import Fields
from joey.api.light import web
from joey.engine.interface import Filter
from joey.images import login
from joey.images.auth import Credentials
from joey.images.reference import DEFAULT_REGISTRY
from joey.model.errors import Invalid, JoeyError

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
    stored = len(await images.all_of(r)) if own else 0
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


_KINDS = {"container": "Containers", "image": "Images", "volume": "Volumes", "build-cache": "BuildCache"}


async def df(r: Req) -> Any:
    wanted = r.many("type") or list(_KINDS)
    if unknown := [kind for kind in wanted if kind not in _KINDS]:
        raise Invalid("", f"unknown object type: {unknown[0]}")
    own = getattr(r.engine, "instance", None)
    stored = await images.all_of(r) if own else []
    found: dict[str, Any] = {"LayersSize": sum(row["Size"] for row in stored), "Images": stored, "BuildCache": []}
    if "container" in wanted:
        rows = [await containers.shown(r, one) for one in await r.engine.list(Filter(all=True))]
        found["Containers"] = await sizes.added(r, rows)
    if "volume" in wanted:
        found["Volumes"] = (await volumes.all_of(r)) if getattr(r.engine, "volumes", None) else []
    return {name: found[name] for name in ("LayersSize", *(_KINDS[kind] for kind in wanted))}


async def auth(r: Req) -> Any:
    """Whether a registry takes the credentials: the client keeps them, and sends them with a pull or push."""
    fields = Fields("", await r.json())
    known = Credentials(*(fields.take(name, str, "") for name in ("username", "password", "identitytoken")))
    server = fields.take("serveraddress", str, "").removeprefix("https://").removeprefix("http://").rstrip("/")
    registry = server.partition("/")[0]
    if registry in ("", "index.docker.io"):
        registry = DEFAULT_REGISTRY
    fields.drop("email", "auth")
    fields.refuse({}, {})
    try:
        await login.verify(registry, known, r.images.config())
    except JoeyError as failure:
        if failure.status in (401, 403):
            return error(401, f"Get {registry}: unauthorized: {failure}")
        raise
    return {"Status": "Login Succeeded", "IdentityToken": ""}


SWARM = ("swarm", "nodes", "services", "tasks", "secrets", "configs")


def no_swarm(path: str) -> None:
    """Raises Refused for whatever is asked of a swarm."""
    if path.split("/")[1] in SWARM:
        raise Refused("swarm", "Joey is one machine: there is no swarm")


ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/system/df", df, "type"),
    Route("POST", "/auth", auth),
)
