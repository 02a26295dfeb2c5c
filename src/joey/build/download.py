"""ADD of a URL."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import os
from pathlib import Path
from typing import Any

from joey.model.errors import Invalid, RegistryFailed

LARGEST = 16 << 30
_SILENCE = 60.0


async def fetch(url: str, path: Path, checksum: str = "") -> None:
    """The file at `url` as `path`, mode 0600, of the time its server says. checksum: sha256:HEX it must have.

    Through the proxies of the engine's environment. Raises Invalid (what the server says, the checksum),
    RegistryFailed when there is no answer.
    """
    import aiohttp

    if checksum and (not checksum.startswith("sha256:") or len(checksum) != 71):
        raise Invalid("checksum", f"{checksum} is no digest", "sha256: and 64 digits")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session, session.get(url) as answer:
            if answer.status != 200:
                raise Invalid("url", f"the server answers {answer.status} {answer.reason}")
            digest = await _keep(answer, path)
            stamp = _time(answer.headers.get("Last-Modified", ""))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RegistryFailed(f"fetch {url}", str(error) or "no answer", "is the network reachable?") from error
    if checksum and digest != checksum:
        raise Invalid("checksum", f"has digest {digest}, not {checksum}")
    os.utime(path, (stamp, stamp))


async def _keep(answer: Any, path: Path) -> str:
    digest, total = hashlib.sha256(), 0
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        async for piece in answer.content.iter_chunked(1 << 20):
            total += len(piece)
            if total > LARGEST:
                raise Invalid("url", f"is larger than {LARGEST} bytes")
            digest.update(piece)
            await asyncio.to_thread(file.write, piece)
    return f"sha256:{digest.hexdigest()}"


def _time(text: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return 0.0
