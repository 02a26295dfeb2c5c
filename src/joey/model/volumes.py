"""Volumes: directories that outlive sandboxes."""

from __future__ import annotations

import msgspec
from msgspec import field

from joey.model.value import Value


class VolumeMount(Value, frozen=True, kw_only=True):
    """A volume in a sandbox, `docker run -v NAME:/path`. name: of a volume of the same owner; one that is not there is
    made. target: absolute, inside. copy: if the volume is still empty, it begins with what the image has at `target`.
    """

    name: str
    target: str
    read_only: bool = False
    copy: bool = True


class VolumeBody(Value, frozen=True, kw_only=True):
    """A volume to make. name: "" for one that is made up. size: bytes that it can hold, None for no bound (of an API
    key: 1 GiB).
    """

    name: str = ""
    size: int | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """owner: "" the administrator's, else an API key's id. created: seconds since the epoch. size: bytes, None for no
    bound. used: bytes, None where counting takes too long or was not asked for. users: ids of sandboxes that have it.
    """

    name: str
    owner: str
    created: float
    size: int | None = None
    used: int | None = None
    labels: dict[str, str] = {}
    users: tuple[str, ...] = ()


class VolumesPruned(msgspec.Struct, frozen=True, kw_only=True):
    """names: that are gone. bytes: freed, as far as they were counted."""

    names: tuple[str, ...] = ()
    bytes: int = 0
