"""What of HostConfig is mounted: Binds, Mounts, Tmpfs, and volumes without a name."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from joey.api.facades.docker.base import Refused
from joey.api.facades.docker.fields import Fields
from joey.model.errors import Invalid
from joey.model.units import parse_size


@dataclass(slots=True)
class Extra:
    """What of the config concerns the host's: exposed ports, paths of volumes without a name, no network at all; and
    what came of it, as in request.Wanted.
    """

    exposed: dict[str, Any]
    volumes: dict[str, Any]
    disabled: bool
    sources: list[str] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def volume(self, target: str, *, copy: bool = True) -> dict[str, Any]:
        """One without a name, for this container alone."""
        name = secrets.token_hex(32)
        self.anonymous.append(name)
        return {"name": name, "target": target, "copy": copy}


def add(made: dict[str, Any], host: Fields, extra: Extra) -> None:
    """Put into the spec what is mounted. Raises Invalid, Refused naming the field."""
    mounts: list[Any] = []
    volumes: list[Any] = []
    tmpfs: list[Any] = []
    for text in host.take("Binds", list[str], []):
        source, target, options = _bind(text)
        read_only = "ro" in options
        if source.startswith("/"):
            if not os.path.lexists(source):
                extra.sources.append(source)  # Docker makes the directory of a -v that is not there
            one: dict[str, Any] = {"source": source, "target": target, "read_only": read_only}
            for option in options & _PROPAGATION:
                one["propagation"] = option
            mounts.append(one)
        elif options & _PROPAGATION:
            raise Refused("HostConfig.Binds", f"{text!r}: propagation is of directories of the host")
        else:
            volumes.append({"name": source, "target": target, "read_only": read_only, "copy": "nocopy" not in options})
    for mount in host.take("Mounts", list[dict[str, Any]], []):
        _mount(dict(mount), mounts, volumes, tmpfs, extra)
    for target, options_text in host.take("Tmpfs", dict[str, str], {}).items():
        tmpfs.append(_tmpfs(target, options_text))
    taken = {one["target"].rstrip("/") for one in (*mounts, *volumes, *tmpfs)}
    volumes += [extra.volume(path) for path in sorted(extra.volumes) if path.rstrip("/") not in taken]
    made["mounts"], made["volumes"], made["tmpfs"] = mounts, volumes, tmpfs


_PROPAGATION = {"private", "rprivate", "slave", "rslave", "shared", "rshared"}
_OPTIONS = {"ro", "rw", "z", "Z", "nocopy", *_PROPAGATION}
SELINUX = "/sys/fs/selinux/enforce"


def _bind(text: str) -> tuple[str, str, set[str]]:
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not parts[0] or not parts[1].startswith("/"):
        raise Invalid("HostConfig.Binds", f"invalid volume specification: {text!r}", "SOURCE:/target[:ro]")
    options = {option for option in (parts[2].split(",") if len(parts) == 3 else ()) if option}
    if unknown := sorted(options - _OPTIONS):
        raise Refused("HostConfig.Binds", f"{text!r}: the option {unknown[0]} is not known")
    if options & {"z", "Z"} and os.path.exists(SELINUX):  # without SELinux they mean nothing, as with Docker
        raise Refused("HostConfig.Binds", f"{text!r}: Joey gives no SELinux labels")
    return parts[0], parts[1], options


def make_sources(paths: Sequence[str]) -> list[str]:
    """Make directories that are not there; those it made, outermost first. Raises Invalid; then none is left."""
    made: list[str] = []
    for path in paths:
        try:
            missing = [path]
            while not os.path.lexists(above := os.path.dirname(missing[-1])):
                missing.append(above)
            for one in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(one, 0o755)
                    made.append(one)
        except OSError as error:
            drop_sources(made)
            raise Invalid("HostConfig.Binds", f"{path}: {error.strerror}") from None
    return made


def drop_sources(made: Sequence[str]) -> None:
    """Remove them again, unless somebody has put something in."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _mount(one: dict[str, Any], mounts: list[Any], volumes: list[Any], tmpfs: list[Any], extra: Extra) -> None:
    where = "HostConfig.Mounts"
    fields = Fields(where, one)
    kind, target, source = (fields.take(name, str, "") for name in ("Type", "Target", "Source"))
    read_only = fields.take("ReadOnly", bool, False)
    fields.drop("Consistency")  # of Docker Desktop: here there is one
    own = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions"}.get(kind)
    if own is None:
        raise Refused(where, f"mounts of type {kind!r} are not known: bind, volume, tmpfs")
    given = Fields(f"{where}.{own}", fields.take(own, dict[str, Any], {}))
    fields.refuse({}, {})
    if kind == "bind":
        bind = {"source": source, "target": target, "read_only": read_only}
        if propagation := given.take("Propagation", str, ""):
            bind["propagation"] = propagation
        if given.take("NonRecursive", bool, False):
            bind["recursive"] = False
        create = given.take("CreateMountpoint", bool, False)
        if not os.path.lexists(source):
            if not create:
                raise Invalid(where, f"bind source path does not exist: {source}")
            extra.sources.append(source)
        mounts.append(bind)
    elif kind == "volume":
        copy, labels = not given.take("NoCopy", bool, False), given.take("Labels", dict[str, str], {})
        driver = given.take("DriverConfig", dict[str, Any], {})
        if labels or driver.get("Options") or driver.get("Name") not in (None, "", "local"):
            raise Refused(where, "labels and options of a volume are given when it is made: docker volume create")
        volume = {"name": source, "target": target, "copy": copy} if source else extra.volume(target, copy=copy)
        volumes.append({**volume, "read_only": read_only})
    else:
        made: dict[str, Any] = {"target": target}
        for name, ours in (("SizeBytes", "size"), ("Mode", "mode")):
            if value := given.take(name, int, 0):
                made[ours] = value
        if source or read_only:
            raise Invalid(where, "a tmpfs has no source and is not read-only")
        tmpfs.append(made)
    given.refuse({}, {"Subpath": "volumes are mounted whole", "Options": "--tmpfs has them"})


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
