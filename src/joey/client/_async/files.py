"""`sbx.files`: files of a sandbox. Paths are absolute, as seen inside; links never lead out of it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from joey.client import trees
from joey.client._async.http import Response
from joey.client._async.net import in_thread
from joey.client._async.service import Service, decode, query
from joey.client.errors import Invalid, NotFound
from joey.client.types import FileEvent, FileInfo

_RAW = "Content-Type: application/octet-stream\r\n"
_TAR = "Content-Type: application/x-tar\r\n"
_PIECE = 1 << 20
_BEYOND = 416
"""Reading where a file has ended gives nothing, as of any file."""


class Files:
    """Read, write and watch the files of one sandbox, running or stopped."""

    def __init__(self, service: Service, sandbox: str) -> None:
        self._service = service
        self._base = f"/v1/sandboxes/{sandbox}/files"

    @overload
    async def read(
        self, path: str, format: Literal["text"] = "text", *, offset: int = 0, length: int | None = None
    ) -> str: ...

    @overload
    async def read(
        self, path: str, format: Literal["bytes"], *, offset: int = 0, length: int | None = None
    ) -> bytes: ...

    @overload
    async def read(
        self, path: str, format: Literal["stream"], *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",
        *,
        offset: int = 0,
        length: int | None = None,
    ) -> str | bytes | AsyncIterator[bytes]:
        """A file as text (UTF-8; what is not becomes U+FFFD), as bytes, or as an iterator over pieces of it.

        offset, length: a part of it, in bytes. Raises NotFound, Invalid (not a regular file).
        """
        headers = ""
        if offset or length is not None:
            if length == 0:
                await self.stat(path)
                return "" if format == "text" else b""
            last = "" if length is None else str(offset + length - 1)
            headers = f"Range: bytes={offset}-{last}\r\n"
        try:
            response = await self._service.open("GET", self._base + query({"path": path}), headers=headers)
        except Invalid as error:
            if error.status != _BEYOND:
                raise
            return self._nothing() if format == "stream" else "" if format == "text" else b""
        if format == "stream":
            return response.pieces()
        data = await response.read()
        return data.decode("utf-8", "replace") if format == "text" else data

    async def write(
        self,
        path: str,
        data: str | bytes | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = True,
    ) -> FileInfo:
        """Write a file, all or nothing; directories above are made. mode: permission bits (0o644 of a new file).

        `data` may be an iterator of pieces. Raises Invalid, Conflict, Exhausted (its disk or memory is full).
        """
        octal = None if mode is None else f"{mode:o}"
        asked = query({"path": path, "mode": octal, "user": user, "parents": parents})
        body = data.encode() if isinstance(data, str) else data
        if isinstance(body, (bytearray, memoryview)):
            body = bytes(body)
        response = await self._service.open("PUT", self._base + asked, body, headers=_RAW)
        info: FileInfo = decode(FileInfo, await response.read())
        return info

    async def write_files(self, files: Mapping[str, str | bytes]) -> Sequence[FileInfo]:
        """Write several: {path: content}."""
        return [await self.write(path, data) for path, data in files.items()]

    async def stat(self, path: str) -> FileInfo:
        """About one file, directory or link (of the link itself). Raises NotFound."""
        return await self._info("GET", "/stat", path=path)

    async def exists(self, path: str) -> bool:
        """Whether there is something."""
        try:
            await self.stat(path)
        except NotFound as error:
            if error.where == "path":
                return False
            raise
        return True

    async def list(self, path: str = "/", *, depth: int = 1) -> Sequence[FileInfo]:
        """What is in a directory, in order of path; depth 2: also what is in those, and so on."""
        asked = query({"path": path, "depth": depth if depth != 1 else None})
        found: Sequence[FileInfo] = await self._service.call(
            "GET", f"{self._base}/list{asked}", kind=tuple[FileInfo, ...]
        )
        return found

    async def make_dir(self, path: str, *, mode: int | None = None, user: str | None = None) -> FileInfo:
        """Make a directory and those above it; one that is there is left as it is."""
        octal = None if mode is None else f"{mode:o}"
        return await self._info("POST", "/mkdir", path=path, parents=True, mode=octal, user=user)

    mkdir = make_dir

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with recursive all below it. Raises NotFound, Conflict (not empty)."""
        await self._service.call("DELETE", self._base + query({"path": path, "recursive": recursive}))

    async def rename(self, old: str, new: str) -> FileInfo:
        """Move a file or directory; a file at `new` is replaced."""
        return await self._info("POST", "/move", path=old, to=new)

    move = rename

    async def chmod(self, path: str, mode: int) -> FileInfo:
        """Set permission bits, e.g. 0o755."""
        return await self._info("POST", "/chmod", path=path, mode=f"{mode:o}")

    async def chown(self, path: str, user: str) -> FileInfo:
        """Give it to "name", "uid", "name:group" or "uid:gid" of the sandbox."""
        return await self._info("POST", "/chown", path=path, user=user)

    async def watch_dir(self, path: str, *, recursive: bool = False) -> AsyncIterator[FileEvent]:
        """What changes below a directory from the return of this call on, until the sandbox ends.

        Leave the loop to stop. Raises NotFound, Invalid (not a directory).
        """
        asked = query({"path": path, "recursive": recursive})
        return self._events(await self._service.open("GET", f"{self._base}/watch{asked}"))

    async def upload(self, local: str | Path, remote: str) -> None:
        """Copy a file or a whole directory of this machine to `remote` (a directory's content into it)."""
        source = Path(local)
        if not source.is_dir():
            await self.write(remote, await in_thread(source.read_bytes), mode=source.stat().st_mode & 0o777)
            return
        await self.make_dir(remote)
        with await in_thread(trees.pack, source) as archive:
            response = await self._service.open(
                "PUT", f"{self._base}/archive{query({'path': remote})}", self._pieces(archive), headers=_TAR
            )
            await response.read()

    async def download(self, remote: str, local: str | Path) -> Path:
        """Copy a file, or a directory's content, to `local` on this machine; the path.

        What comes is not trusted: everything belongs to us, and Invalid is raised for names and links that lead out of
        `local` and for devices.
        """
        target = Path(local)
        info = await self.stat(remote)
        if info.type != "directory":
            with target.open("wb") as file:
                async for piece in await self.read(remote, "stream"):
                    file.write(piece)
            return target
        response = await self._service.open("GET", f"{self._base}/archive{query({'path': remote})}")
        with trees.spool() as archive:
            async for piece in response.pieces():
                archive.write(piece)
            await in_thread(trees.unpack, archive, target, 0 if info.path == "/" else 1)
        return target

    # ---- below

    async def _nothing(self) -> AsyncIterator[bytes]:
        for piece in ():
            yield piece

    async def _info(self, method: str, verb: str, **values: Any) -> FileInfo:
        info: FileInfo = await self._service.call(method, self._base + verb + query(values), kind=FileInfo)
        return info

    async def _events(self, response: Response) -> AsyncIterator[FileEvent]:
        async for line in response.lines():
            yield decode(FileEvent, line)

    async def _pieces(self, archive: Any) -> AsyncIterator[bytes]:
        while piece := archive.read(_PIECE):
            yield piece
