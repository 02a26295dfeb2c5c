"""A library of images on an instance of its own, for tests, and two layers."""

import asyncio
import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import registries
from joey.host.instance import Instance
from joey.images import auth, index, store_gc
from joey.images.library import Library
from joey.images.login import login as keep
from joey.images.pull import Progress
from joey.images.store import StoredImage

BASE = registries.layer({"etc/": b"", "etc/passwd": b"root:x:0:0::/:/bin/sh\n", "bin/": b"", "bin/sh": b"#!"})
BIG = registries.layer({"big": random.Random(1).randbytes(3 << 20)})
QUICK = "timeout = 5\nretries = 2\n"


class Home:
    """A library on an instance of its own, and short ways to use it."""

    def __init__(self, path: Path, settings: str = QUICK) -> None:
        self.instance = Instance(path)
        self.instance.prepare()
        (path / "registries.toml").write_text(settings)
        self.seen: list[Progress] = []
        self.open()

    def open(self) -> None:
        self.library = Library(self.instance)
        self.store = self.library.store

    def run(self, work: Callable[[], Any]) -> Any:
        async def main() -> Any:
            try:
                return await asyncio.wait_for(work(), 30)
            finally:
                await self.library.close()

        try:
            return asyncio.run(main())
        finally:
            self.open()

    def pull(self, name: str, platform: str = "") -> StoredImage:
        chosen = index.parse_platform(platform) if platform else None
        return self.run(lambda: self.library.obtain(name, "always", chosen, self.seen.append))

    def push(self, name: str, target: str, chunk: int = 0) -> str:
        return self.run(lambda: self.library.push(name, target, self.seen.append, chunk=chunk))

    def login(self, registry: str, name: str, password: str) -> Path:
        return self.run(lambda: keep(registry, auth.Credentials(name, password), self.library.config()))

    def files(self, image: StoredImage) -> dict[str, bytes | None]:
        return registries.merged([self.store.layer_path(one) for one in image.diff_ids])

    def whole(self) -> None:
        """Nothing is damaged, and nothing half-made has a final name or stays after a sweep."""
        assert store_gc.verify(self.store) == []
        store_gc.prune(self.store, parts=True)
        wanted = {one for image in self.store.all() for one in image.diff_ids}
        assert {f"sha256:{path.name}" for path in self.store.layers.iterdir()} == wanted
        for path in self.store.blobs.iterdir():
            assert store_gc.hash_file(path) == f"sha256:{path.name}"


def login(folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, text: str) -> None:
    entry = {"auths": {host: {"auth": base64.b64encode(text.encode()).decode()}}}
    (folder / "config.json").write_text(json.dumps(entry))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
