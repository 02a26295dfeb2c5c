"""When a sandbox whose template has a start command can be used: its ready command succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import msgspec

from joey.api.facades.e2b.errors import Failure
from joey.api.facades.e2b.kinds import Kind
from joey.engine.interface import Engine
from joey.model.errors import JoeyError

READY_SECONDS = 60.0
_SLEEP = re.compile(r"\s*sleep\s+[\d.]+\s*")
_SHELL = 'if [ -x /bin/bash ]; then exec /bin/bash -l -c "$1"; else exec /bin/sh -l -c "$1"; fi'
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def only_time(kind: Kind) -> bool:
    """Whether being ready is nothing but a time to wait, which builds wait for and sandboxes do not."""
    return bool(_SLEEP.fullmatch(kind.ready))


async def ready(engine: Engine, id: str, kind: Kind, seconds: float = READY_SECONDS) -> None:
    """Return when it is. Raises Failure (503), and the sandbox is removed, if it does not become so."""
    if not kind.ready or only_time(kind):
        return
    try:
        await checked(engine, id, kind, seconds)
    except BaseException:
        with contextlib.suppress(JoeyError):
            await asyncio.shield(engine.remove(id, force=True))
        raise


async def checked(engine: Engine, id: str, kind: Kind, seconds: float) -> None:
    """As `ready`, and the sandbox stays."""
    process = (await engine.inspect(id)).spec.process
    process = msgspec.structs.replace(process, argv=("/bin/sh", "-c", _SHELL, "sh", kind.ready), stdin=False, tty=False)
    end, tries = time.monotonic() + seconds, 0
    while True:
        attachment = await engine.exec(id, process, detach=True)
        try:
            async with asyncio.timeout(max(0.1, end - time.monotonic())):
                if (await attachment.wait()).code == 0:
                    return
        except TimeoutError:
            with contextlib.suppress(JoeyError):
                await attachment.signal(9)
        finally:
            await attachment.close()
        if time.monotonic() > end:
            raise Failure(503, f"the template's ready command has not succeeded in {seconds:g} seconds: {kind.ready}")
        await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        tries += 1
