"""A repository of a registry (distribution-spec 1.1): manifests and blobs by tag and digest, in both directions."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from joey.images import index
from joey.images.config import RegistriesConfig, endpoints
from joey.images.index import Descriptor
from joey.images.reference import Reference, is_digest
from joey.images.registry_http import Http, TryAgain, attempts
from joey.model.errors import ImageError, RegistryFailed

T = TypeVar("T")
PIECE = 1 << 20


class Repository:
    """Pulls from one repository, its mirrors first. An async context manager."""

    def __init__(self, reference: Reference, config: RegistriesConfig, *, push: bool = False, source: str = "") -> None:
        """source: path of another repository of this registry, from which blobs may be mounted."""
        self.reference, self.config = reference, config
        found = endpoints(reference.registry, config, push=push)
        scopes: tuple[str, ...] = (f"repository:{reference.path}:{'pull,push' if push else 'pull'}",)
        if source:
            scopes = (*scopes, f"repository:{source}:pull")
        self._all = [Http(endpoint, config, scopes) for endpoint in found]
        self._path = f"/v2/{reference.path}"

    async def __aenter__(self) -> Repository:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(http.close() for http in self._all))

    @property
    def own(self) -> Http:
        """The registry itself."""
        return self._all[-1]

    async def _anywhere(self, work: Callable[[Http], Coroutine[Any, Any, T]]) -> T:
        """From the first endpoint that has it: a mirror that fails in any way is passed over."""
        for http in self._all[:-1]:
            try:
                return await attempts(functools.partial(work, http), min(1, self.config.retries))
            except (RegistryFailed, ImageError):
                continue
        found: T = await attempts(functools.partial(work, self.own), self.config.retries)
        return found

    # --- pulling -----------------------------------------------------------------------------------------------------

    async def manifest(self, target: str, size: int | None = None) -> tuple[bytes, str, str]:
        """(bytes, media type, digest) of the manifest of a tag or digest, verified. Raises ImageError,
        RegistryFailed.
        """
        where = f"image {self.reference.familiar}" + (f" manifest {target[7:19]}" if is_digest(target) else "")

        async def once(http: Http) -> tuple[bytes, str, str]:
            path = f"{self._path}/manifests/{target}"
            async with http.request("GET", path, where, headers={"Accept": index.ACCEPT}) as response:
                data = await _all(response, index.MAX_MANIFEST, where)
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                stated = response.headers.get("Docker-Content-Digest", "")
            expected = target if is_digest(target) else stated
            digest = index.digest_of(data)
            if expected and is_digest(expected):
                digest = f"{expected.partition(':')[0]}:{hashlib.new(expected.partition(':')[0], data).hexdigest()}"
                if digest != expected:
                    raise TryAgain(RegistryFailed(where, f"its manifest has digest {digest}, not {expected}"))
            if size is not None and len(data) != size:
                raise TryAgain(RegistryFailed(where, f"its manifest has {len(data)} bytes, not {size}"))
            return data, kind, digest

        return await self._anywhere(once)

    async def digest(self, target: str) -> str | None:
        """The digest of a tag without its manifest, if the registry says; None if not. Raises as `manifest`."""
        where = f"image {self.reference.familiar}"

        async def once(http: Http) -> str | None:
            path = f"{self._path}/manifests/{target}"
            async with http.request("HEAD", path, where, headers={"Accept": index.ACCEPT}) as response:
                return response.headers.get("Docker-Content-Digest")

        return await self._anywhere(once)

    async def small(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob, verified."""
        where = f"image {self.reference.familiar} blob {blob.short}"

        async def once(http: Http) -> bytes:
            async with http.request("GET", f"{self._path}/blobs/{blob.digest}", where) as response:
                data = await _all(response, blob.size, where)
            if len(data) != blob.size:
                raise TryAgain(RegistryFailed(where, f"ended after {len(data)} of {blob.size} bytes"))
            if hashlib.new(blob.digest.partition(":")[0], data).hexdigest() != blob.digest.partition(":")[2]:
                raise RegistryFailed(where, f"what {http.endpoint.base} sends does not have the digest {blob.digest}")
            return data

        return await self._anywhere(once)

    async def blob(self, blob: Descriptor, have: Callable[[], int], take: Callable[[bytes], Awaitable[None]]) -> None:
        """Give `take` the bytes of a blob from `have()` on, piece by piece, going on after interruptions.

        Registries that ignore Range are read from the start, and what is there already is skipped. The caller
        verifies the digest. Raises ImageError, RegistryFailed (also for too many and, after retries, too few bytes).
        """
        where = f"image {self.reference.familiar} blob {blob.short}"

        async def once(http: Http) -> None:
            start = have()
            if start >= blob.size:
                return
            headers = {"Range": f"bytes={start}-"} if start else {}
            path = f"{self._path}/blobs/{blob.digest}"
            async with http.request("GET", path, where, headers=headers, accept=(200, 206)) as response:
                skip = start if response.status == 200 else 0
                if response.status == 206 and not _begins_at(response.headers.get("Content-Range", ""), start):
                    raise RegistryFailed(where, f"{http.endpoint.base} sends another range than it was asked for")
                async for piece in _pieces(response):
                    if skip:
                        cut = min(skip, len(piece))
                        skip, piece = skip - cut, piece[cut:]
                    if have() + len(piece) > blob.size:
                        raise RegistryFailed(where, f"{http.endpoint.base} sends more than its {blob.size} bytes")
                    if piece:
                        await take(piece)
            if have() < blob.size:
                raise TryAgain(RegistryFailed(where, f"ended after {have()} of {blob.size} bytes"))

        for http in self._all[:-1]:
            try:
                return await attempts(functools.partial(once, http), min(1, self.config.retries), have)
            except (RegistryFailed, ImageError):
                continue
        await attempts(functools.partial(once, self.own), self.config.retries, have)


async def _all(response: Any, limit: int, where: str) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise RegistryFailed(where, f"the answer is longer than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def _pieces(response: Any) -> AsyncIterator[bytes]:
    """The body in pieces of about a MiB: each costs a hop to a thread."""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(parts)
                parts, size = [], 0
    except Exception:
        if parts:  # what has arrived need not come again
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)


def _begins_at(content_range: str, start: int) -> bool:
    """Whether `bytes 5-9/10` begins at `start`."""
    unit, _, rest = content_range.partition(" ")
    return unit == "bytes" and rest.partition("-")[0] == str(start)
