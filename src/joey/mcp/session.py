"""Sessions: which sandboxes an agent may reach, and that they go when it goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
from mcp.server.mcpserver.exceptions import ToolError

from joey import AsyncSandbox
from joey.client.errors import JoeyError, NotFound
from joey.client.types import SandboxInfo
from joey.mcp.settings import Settings

LABEL = "joey.mcp"
"""A sandbox's label: the session that made it."""


class Session:
    """The sandboxes of one agent. shared: several may use it (requests without a session, with the same key), so it has
    no sandbox that is meant when none is named.
    """

    def __init__(self, settings: Settings, api_key: str | None = None, *, shared: bool = False) -> None:
        self.settings, self.shared = settings, shared
        self.id = secrets.token_hex(8)
        self._key = api_key
        self._boxes: dict[str, AsyncSandbox] = {}
        self._making: set[asyncio.Task[AsyncSandbox]] = set()
        self._first = asyncio.Lock()
        self._ended = False

    async def create(self, **options: Any) -> AsyncSandbox:
        """A new sandbox of this session, options as of AsyncSandbox.create. Raises ToolError, JoeyError."""
        if self._ended:
            raise ToolError("the session has ended")
        if len(self._boxes) + len(self._making) >= self.settings.max_sandboxes:
            await self.forget()
        if len(self._boxes) + len(self._making) >= self.settings.max_sandboxes:
            raise ToolError(
                f"this session has {len(self._boxes)} sandboxes, and may have no more\n"
                "try: kill_sandbox for one that is no longer needed"
            )
        task = asyncio.ensure_future(self._make(options))
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        # Whoever asked may leave meanwhile: the sandbox is known to us all the same, and goes with the session.
        return await asyncio.shield(task)

    async def _make(self, options: dict[str, Any]) -> AsyncSandbox:
        settings = self.settings
        defaults = {"memory": settings.memory, "cpus": settings.cpus, "timeout": None, "idle_timeout": settings.idle}
        metadata = {LABEL: self.id}
        box = await AsyncSandbox.create(**{**defaults, **options}, metadata=metadata, api_key=self._key)
        self._boxes[box.id] = box
        return box

    async def find(self, ref: str) -> AsyncSandbox:
        """The sandbox of an id, the beginning of one, or a name; "": the newest, made if there is none.

        Raises ToolError.
        """
        if not ref:
            return await self._usual()
        found = [box for box in self._boxes.values() if ref in (box.id, box.name)]
        found = found or [box for box in self._boxes.values() if box.id.startswith(ref)]
        if len(found) == 1:
            return found[0]
        if not found and self.settings.keep:
            return await self._earlier(ref)
        what = f"{len(found)} sandboxes of this session begin with" if found else "no sandbox of this session is"
        raise ToolError(f"sandbox: {what} {ref!r}\ntry: list_sandboxes")

    async def _usual(self) -> AsyncSandbox:
        if self.shared:
            raise ToolError("sandbox: name the one you mean\ntry: create_sandbox, and give its id from then on")
        async with self._first:  # of several calls at once, one makes it
            if not self._boxes:
                return await self.create(image=self.settings.image)
            return next(reversed(self._boxes.values()))

    async def _earlier(self, ref: str) -> AsyncSandbox:
        """With --keep: one that another session made."""
        box = await AsyncSandbox.connect(ref, api_key=self._key)
        if LABEL not in (await box.get_info()).labels:
            raise NotFound("sandbox", f"{ref!r} was not made by an agent", "list_sandboxes")
        self._boxes[box.id] = box
        return box

    async def list(self) -> list[SandboxInfo]:
        """Those that are there, the newest first."""
        wanted = {LABEL: None if self.settings.keep else self.id}
        return [one async for one in AsyncSandbox.list(metadata=wanted, all=True, api_key=self._key)]

    async def kill(self, box: AsyncSandbox) -> bool:
        """Remove one; False if it was gone."""
        self._boxes.pop(box.id, None)
        return await box.kill()

    async def forget(self) -> None:
        """Sandboxes that have ended by themselves no longer count."""
        there = {one.id for one in await self.list()}
        for id in [id for id in self._boxes if id not in there]:
            del self._boxes[id]

    async def end(self) -> None:
        """Remove what it made, unless it is to be kept."""
        self._ended = True
        if self._making:
            await asyncio.gather(*self._making, return_exceptions=True)
        boxes = () if self.settings.keep else tuple(self._boxes.values())
        self._boxes.clear()
        results = await asyncio.gather(*(box.kill() for box in boxes), return_exceptions=True)
        for box, result in zip(boxes, results, strict=True):
            if isinstance(result, JoeyError):
                print(f"joey mcp: {box.id}: {result}", file=sys.stderr)
            elif isinstance(result, BaseException):
                raise result


class Sessions:
    """All sessions of a server: of stdio one, of HTTP one a session of the protocol, or one a key where a client has
    none (the protocol knows none since 2026-07-28).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, Session] = {}

    def of(self, name: str, api_key: str | None = None, *, shared: bool = False) -> Session:
        """The session of a name."""
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = Session(self._settings, api_key, shared=shared)
        return found

    async def end(self, name: str) -> None:
        """One session has ended; nothing if it made no sandbox."""
        if found := self._open.pop(name, None):
            await found.end()

    async def end_all(self) -> None:
        """The server ends."""
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*(self.end(name) for name in list(self._open)))

    @contextlib.asynccontextmanager
    async def living(self, _server: object) -> AsyncIterator[Sessions]:
        """The life of a server."""
        try:
            yield self
        finally:
            await self.end_all()


def of_key(key: str) -> str:
    """What stands for a key where the key itself must not."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]
