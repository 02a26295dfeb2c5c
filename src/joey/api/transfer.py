"""Bodies too large for memory, both ways: what the API and Docker's façade share of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from joey.api.light import web
from joey.model.errors import JoeyError, from_os

T = TypeVar("T")
_LARGE = 1 << 20
"""Bytes: a piece beyond is written in a thread."""


class Incoming(Protocol):
    """A request of either API: routes.Call, or Req of Docker's façade."""

    request: web.Request

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def whole(self, work: Coroutine[Any, Any, T]) -> T: ...


async def received(call: Incoming, folder: Path, what: str, work: Callable[[BinaryIO], T]) -> T:
    """The body in a file without a name in `folder`, then `work` with it in a thread, to its end even if the client
    leaves. what: it is, for the error. Raises what `work` does; an OSError as `from_os` has it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            async for piece in call.chunks():
                await asyncio.to_thread(file.write, piece) if len(piece) > _LARGE else file.write(piece)
            file.seek(0)
            return await call.whole(asyncio.to_thread(work, file))
    except OSError as error:
        raise from_os(f"keep the {what}", error) from error


@contextmanager
def cut_off(request: web.Request) -> Iterator[None]:
    """An answer under way that fails has its connection dropped: half an archive is never taken for a whole one."""
    try:
        yield
    except JoeyError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the archive cannot be finished") from None
