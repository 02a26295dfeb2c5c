"""`AsyncVolume`: a directory that outlives sandboxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from joey.client import bodies
from joey.client._async.service import quote, service
from joey.client.errors import NotFound
from joey.client.types import Size, VolumeInfo

Self = TypeVar("Self", bound="AsyncVolume")


class AsyncVolume:
    """A volume, by its name: `create(volumes={"/data": volume})` shows it in a sandbox. Several may share it. The
    constructor asks nobody; a volume that is not there is made when a sandbox names it.
    """

    def __init__(self, name: str, *, url: str | None = None, api_key: str | None = None) -> None:
        self.name = name
        self._where: dict[str, Any] = {"url": url, "api_key": api_key}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @classmethod
    async def create(
        cls: type[Self],
        name: str | None = None,
        *,
        size: Size | None = None,
        metadata: Mapping[str, str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """Make one, or find the one of that name and size. size: what it can hold, in bytes or as "1g".

        Raises Unenforceable where the host cannot bound it, Conflict if it is there with another size.
        """
        body = {"name": name or "", "size": bodies.size(size, "size"), "labels": dict(metadata or {})}
        made = await service(url, api_key).call("POST", "/v1/volumes", body, VolumeInfo)
        return cls(made.name, url=url, api_key=api_key)

    @classmethod
    async def list(cls, *, url: str | None = None, api_key: str | None = None) -> tuple[VolumeInfo, ...]:
        """The caller's volumes, in order of name."""
        found: tuple[VolumeInfo, ...] = await service(url, api_key).call(
            "GET", "/v1/volumes", kind=tuple[VolumeInfo, ...]
        )
        return found

    @classmethod
    async def prune(cls, *, url: str | None = None, api_key: str | None = None) -> tuple[str, ...]:
        """Remove the caller's volumes that no sandbox has; their names."""
        found = await service(url, api_key).call("POST", "/v1/volumes/prune", kind=dict[str, Any])
        return tuple(found["names"])

    async def get_info(self) -> VolumeInfo:
        """Its size, what is used of it, and by which sandboxes. Raises NotFound."""
        found: VolumeInfo = await service(**self._where).call("GET", self._path, kind=VolumeInfo)
        return found

    async def remove(self) -> bool:
        """With all that is in it; False if it was gone. Raises Conflict while a sandbox has it."""
        try:
            await service(**self._where).call("DELETE", self._path)
        except NotFound:
            return False
        return True

    @property
    def _path(self) -> str:
        return f"/v1/volumes/{quote(self.name)}"
