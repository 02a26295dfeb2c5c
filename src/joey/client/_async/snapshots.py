"""What becomes of a sandbox's files: snapshots, forks, and what it has changed."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import msgspec

from joey.client._async.service import Service, decode
from joey.client.errors import ConnectionLost, from_problem
from joey.client.types import FileChange, SandboxInfo, Snapshot

Self = TypeVar("Self", bound="Snapshots")


class _Line(msgspec.Struct):
    """One line of the answer of …/fork."""

    index: int
    sandbox: SandboxInfo | None = None
    error: dict[str, Any] | None = None


class Snapshots:
    """The part of a sandbox that keeps its files."""

    _service: Service
    _path: str

    def __init__(self, service: Service, info: SandboxInfo) -> None:
        self._service = service
        self._path = f"/v1/sandboxes/{info.id}"

    async def snapshot(self, name: str | None = None, *, pause: bool = True) -> Snapshot:
        """Its files as an image, in milliseconds: time is taken for what it has changed, whatever size its image has.
        It goes on running. `create(snapshot.name)` makes sandboxes of it, `snapshot.name` being made up without `name`.

        pause: it stands still meanwhile. Nobody with another API key can see or use it. Raises Conflict, Invalid.
        """
        body = {"name": name or "", "pause": pause}
        found: Snapshot = await self._service.call("POST", f"{self._path}/snapshot", body, Snapshot)
        return found

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """All of the caller's, newest first, whichever sandboxes they are of."""
        found: tuple[Snapshot, ...] = await self._service.call("GET", "/v1/snapshots", kind=tuple[Snapshot, ...])
        return found

    async def fork(self: Self, count: int = 1, *, pause: bool = True) -> list[Self]:
        """So many new sandboxes on its files as they are now, with the same limits, user, network and volumes. Files
        only: nothing that runs is copied. If one cannot be made, none is left, and why is raised.
        """
        body = msgspec.json.encode({"count": count, "pause": pause})
        made: dict[int, Self] = {}
        try:
            response = await self._service.open(
                "POST", f"{self._path}/fork", body, headers="Content-Type: application/json\r\n"
            )
            async for text in response.lines():
                line: _Line = decode(_Line, text)
                if line.sandbox is None:
                    problem = line.error or {}
                    raise from_problem(int(problem.get("status", 500)), problem)
                made[line.index] = type(self)(self._service, line.sandbox)
            if len(made) < count:
                raise ConnectionLost("", "the engine's answer was cut off")
        except BaseException:
            for one in made.values():
                with contextlib.suppress(ConnectionLost):
                    await self._service.call("DELETE", f"{one._path}?force=true")
            raise
        return [made[number] for number in range(count)]

    async def changes(self) -> tuple[FileChange, ...]:
        """Files of its image that it has added (kind "A"), changed ("C") or deleted ("D"), in order of path."""
        found: tuple[FileChange, ...] = await self._service.call(
            "GET", f"{self._path}/changes", kind=tuple[FileChange, ...]
        )
        return found
