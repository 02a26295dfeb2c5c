"""`AsyncPool`: sandboxes kept warm."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeVar

from joey.client import bodies
from joey.client._async.images import named
from joey.client._async.sandbox import AsyncSandbox
from joey.client._async.service import query, quote, service
from joey.client.errors import JoeyError, NotFound
from joey.client.image import Image
from joey.client.types import Envs, PoolInfo, Size, Volumes

Self = TypeVar("Self", bound="AsyncPool")


class AsyncPool:
    """`size` sandboxes that are started ahead, so that `create` hands one out at once. It refills itself.

        async with AsyncPool("host", size=20) as pool:
            sandbox = await pool.create(envs={"JOB": "7"})

    The block begins when the pool is full; at its end it is removed with all that is still warm. What it has handed out
    stays. Options as of `AsyncSandbox.create`: what every sandbox of it has in common. name: under which other programs
    find it (`create(pool="name")`), made up by default. max_starting: so many are started at a time.
    """

    def __init__(
        self,
        image: str | Image | None = None,
        size: int = 8,
        *,
        name: str | None = None,
        max_starting: int = 2,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        network: str | None = None,
        envs: Envs | None = None,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        volumes: Volumes | None = None,
        read_only: bool = False,
        spec: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        url: str | None = None,
    ) -> None:
        self.name = name or f"pool-{secrets.token_hex(6)}"
        self._where: dict[str, Any] = {"url": url, "api_key": api_key}
        self._image = image
        self._path = f"/v1/pools/{quote(self.name)}"
        made_of = bodies.sandbox(
            image if isinstance(image, str) else None,
            cpus=cpus,
            memory=memory,
            disk=disk,
            timeout=None,
            idle_timeout=None,
            on_timeout="kill",
            network=network,
            envs=envs,
            metadata=metadata,
            name=None,
            user=user,
            cwd=cwd,
            volumes=volumes,
            read_only=read_only,
            restart=None,
            files=None,
            spec=spec,
        )
        self._body: dict[str, Any] = {"spec": made_of, "size": size, "max_starting": max_starting}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    async def __aenter__(self: Self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remove()

    async def start(self, *, filled: bool = True) -> PoolInfo:
        """Make it, its image too if it is to be built, and wait until it is full. Raises JoeyError if one cannot be
        started, or does not stay.
        """
        if isinstance(self._image, Image):
            self._body["spec"]["image"] = await named(service(**self._where), self._image)
        info: PoolInfo = await service(**self._where).call(
            "PUT", self._path + query({"filled": filled}), self._body, PoolInfo
        )
        if filled and info.error:
            raise JoeyError("pool", info.error)
        return info

    async def create(self, **options: Any) -> AsyncSandbox:
        """A sandbox of it; options as of `AsyncSandbox.create`. If none is warm just now it is started like any other.

        Raises Invalid naming an option that cannot be changed on a warm sandbox (image, disk, volumes, user, …).
        """
        return await AsyncSandbox.create(pool=self.name, **self._where, **options)

    async def resize(self, size: int) -> PoolInfo:
        """Keep so many from now on."""
        self._body["size"] = size
        return await self.start(filled=False)

    async def info(self) -> PoolInfo:
        """How it does: how many are ready, how many it has handed out. Raises NotFound."""
        found: PoolInfo = await service(**self._where).call("GET", self._path, kind=PoolInfo)
        return found

    async def remove(self) -> bool:
        """It and what is warm in it; False if it was gone."""
        try:
            await service(**self._where).call("DELETE", self._path)
        except NotFound:
            return False
        return True
