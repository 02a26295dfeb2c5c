"""From the store to a registry (distribution-spec, "Pushing"): blobs that it lacks, then the manifest.

A blob that the registry has is not sent; one that another repository of the same registry has is mounted from there.
Otherwise it is uploaded: in one request, or in chunks, of which an interrupted one is asked after and gone on with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote, urljoin

from joey.images.config import RegistriesConfig
from joey.images.index import Descriptor, digest_of
from joey.images.pull import Listener, Progress, nobody, together
from joey.images.reference import Reference, parse
from joey.images.registry import Repository
from joey.images.registry_http import Http, TryAgain, attempts
from joey.images.store import Store, StoredImage
from joey.model.errors import ImageError, RegistryFailed, from_os

_PIECE = 1 << 18


async def push(
    store: Store, image: StoredImage, target: Reference, config: RegistriesConfig, listener: Listener = nobody,
    *, chunk: int = 0,
) -> str:  # fmt: skip
    """Push an image under a tag, or under its own digest; → the digest of its manifest.

    chunk: bytes of a request at a time, 0 for whole blobs. Raises ImageError (a layer's compressed form is not here;
    a digest that is not the image's), RegistryFailed, RegistryDenied.
    """
    if target.digest and target.digest != image.digest:
        raise ImageError(f"image {target.familiar}", f"the image's digest is {image.digest}, it cannot be another")
    blobs = list({one.digest: one for one in (*image.layers, image.config)}.values())
    for one in blobs:
        if not store.has_blob(one.digest):
            raise ImageError(
                f"image {target.familiar} blob {one.short}", "its compressed form was not kept (keep-layers = false)",
                "set keep-layers = true in registries.toml and pull the image again",
            )  # fmt: skip
    source = _source(image, target)
    with store.busy(image.digest, *(one.digest for one in blobs)):
        async with Repository(target, config, push=True, source=source) as repository:
            pusher = _Pusher(store, repository.own, target, config, listener, source, chunk)
            limit = asyncio.Semaphore(config.parallel)
            for one in blobs:
                listener(Progress(one.short, "waiting", 0, one.size))
            await together(pusher.blob(one, limit) for one in blobs)
            return await pusher.manifest(image)


def _source(image: StoredImage, target: Reference) -> str:
    """The path of a repository of the same registry that probably has the blobs, "" if none is known."""
    for name in (*((image.source,) if "/" in image.source else ()), *image.names):
        known = parse(name)
        if known.registry == target.registry and known.path != target.path:
            return known.path
    return ""


class _Pusher:
    def __init__(
        self, store: Store, http: Http, target: Reference, config: RegistriesConfig, listener: Listener, source: str,
        chunk: int,
    ) -> None:  # fmt: skip
        self._store, self._http, self._target = store, http, target
        self._config, self._tell, self._source, self._chunk = config, listener, source, chunk
        self._path = f"/v2/{target.path}"

    async def blob(self, blob: Descriptor, limit: asyncio.Semaphore) -> None:
        where = f"image {self._target.familiar} blob {blob.short}"
        async with limit:
            if await attempts(lambda: self._is_there(blob, where), self._config.retries):
                self._tell(Progress(blob.short, "exists", blob.size, blob.size))
                return
            await attempts(lambda: self._upload(blob, where), self._config.retries)
            self._tell(Progress(blob.short, "done", blob.size, blob.size))

    async def _is_there(self, blob: Descriptor, where: str) -> bool:
        path = f"{self._path}/blobs/{blob.digest}"
        async with self._http.request("HEAD", path, where, accept=(200, 404)) as response:
            return response.status == 200

    async def _upload(self, blob: Descriptor, where: str) -> None:
        query = f"?mount={blob.digest}&from={quote(self._source, safe='')}" if self._source else ""
        path = f"{self._path}/blobs/uploads/{query}"
        async with self._http.request("POST", path, where, accept=(201, 202), data=b"") as response:
            if response.status == 201:
                return  # mounted
            place = self._place(response, where)
        if self._chunk and blob.size > self._chunk:
            place, start = await self._chunks(place, blob, where)
        else:
            start = 0
        mark = "&" if "?" in place else "?"
        size = blob.size - start
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        data: Any = self._reader(blob, start, size) if size else b""
        url = f"{place}{mark}digest={quote(blob.digest, safe='')}"
        async with self._http.request("PUT", url, where, headers=headers, data=data, accept=(201, 202, 204)):
            return

    async def _chunks(self, place: str, blob: Descriptor, where: str) -> tuple[str, int]:
        """All but what the closing PUT carries; → where that goes, and from which byte on."""
        start = 0
        while blob.size - start > self._chunk:
            place, start = await self._patch(place, blob, start, where)
        return place, start

    async def _patch(self, place: str, blob: Descriptor, start: int, where: str) -> tuple[str, int]:
        size = min(self._chunk, blob.size - start)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{start}-{start + size - 1}",
        }
        data = self._reader(blob, start, size)
        try:
            async with self._http.request("PATCH", place, where, headers=headers, data=data, accept=(202,)) as response:
                return self._place(response, where), start + size
        except TryAgain as again:
            # How far did it get? The registry knows; if it does not, the upload begins anew.
            try:
                async with self._http.request("GET", place, where, accept=(204,)) as response:
                    last = response.headers.get("Range", "").rpartition("-")[2]
                    return self._place(response, where), int(last) + 1 if last.isdigit() and last != "0" else 0
            except (RegistryFailed, ImageError):
                raise again from None

    def _place(self, response: Any, where: str) -> str:
        location = response.headers.get("Location", "")
        if not location:
            raise RegistryFailed(where, "the registry does not say where to upload to")
        return urljoin(str(response.url), location)

    def _reader(self, blob: Descriptor, start: int, size: int) -> Callable[[], AsyncIterator[bytes]]:
        """A function that gives the bytes from `start` on, anew for each try."""
        path = self._store.blob_path(blob.digest)

        async def pieces() -> AsyncIterator[bytes]:
            left = size
            try:
                file = await asyncio.to_thread(open, path, "rb")
            except OSError as error:
                raise from_os(f"read blob {blob.short}", error) from error
            with contextlib.closing(file):
                file.seek(start)
                while left and (piece := await asyncio.to_thread(file.read, min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
                    self._tell(Progress(blob.short, "uploading", start + size - left, blob.size))

        return pieces

    async def manifest(self, image: StoredImage) -> str:
        """Send the manifest; → its digest."""
        name = self._target.familiar
        data = await asyncio.to_thread(self._store.read_blob, image.digest)
        headers = {"Content-Type": image.media_type}

        async def once() -> None:
            path = f"{self._path}/manifests/{self._target.target}"
            where = f"image {name} manifest"
            async with self._http.request(
                "PUT", path, where, headers=headers, data=data, accept=(200, 201, 202)
            ) as response:
                stated = response.headers.get("Docker-Content-Digest", image.digest)
                if stated != image.digest:
                    raise RegistryFailed(where, f"the registry stored {stated} instead of {image.digest}")

        await attempts(once, self._config.retries)
        return digest_of(data)
