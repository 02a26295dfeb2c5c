# Generated from ../_async/pool.py by joey.client.generate: change that one.
"""`Pool`: sandboxes kept warm."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeVar

from joey.client import bodies
from joey.client._sync.images import named
from joey.client._sync.sandbox import Sandbox
from joey.client._sync.service import query, quote, service
from joey.client.errors import JoeyError, NotFound
from joey.client.image import Image
from joey.client.types import Envs, PoolInfo, Size, Volumes

Self = TypeVar("Self", bound="Pool")


class Pool:
    """`size` sandboxes that are started ahead, so that `create` hands one out at once. It refills itself.

        with Pool("host", size=20) as pool:
            sandbox = pool.create(envs={"JOB": "7"})

    The block begins when the pool is full; at its end it is removed with all that is still warm. What it has handed out
    stays. Options as of `Sandbox.create`: what every sandbox of it has in common. name: under which other programs
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

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self, *, filled: bool = True) -> PoolInfo:
        """Make it, its image too if it is to be built, and wait until it is full. Raises JoeyError if one cannot be
        started, or does not stay.
        """
        if isinstance(self._image, Image):
            self._body["spec"]["image"] = named(service(**self._where), self._image)
        info: PoolInfo = service(**self._where).call(
            "PUT", self._path + query({"filled": filled}), self._body, PoolInfo
        )
        if filled and info.error:
            raise JoeyError("pool", info.error)
        return info

    def create(self, **options: Any) -> Sandbox:
        """A sandbox of it; options as of `Sandbox.create`. If none is warm just now it is started like any other.

        Raises Invalid naming an option that cannot be changed on a warm sandbox (image, disk, volumes, user, …).
        """
        return Sandbox.create(pool=self.name, **self._where, **options)

    def resize(self, size: int) -> PoolInfo:
        """Keep so many from now on."""
        self._body["size"] = size
        return self.start(filled=False)

    def info(self) -> PoolInfo:
        """How it does: how many are ready, how many it has handed out. Raises NotFound."""
        found: PoolInfo = service(**self._where).call("GET", self._path, kind=PoolInfo)
        return found

    def remove(self) -> bool:
        """It and what is warm in it; False if it was gone."""
        try:
            service(**self._where).call("DELETE", self._path)
        except NotFound:
            return False
        return True
