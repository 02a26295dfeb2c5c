"""Images as sandboxes are made from them: a name, or an Image that is built first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from joey.client._async.service import Service, decode, query
from joey.client.errors import ConnectionLost, from_problem
from joey.client.image import Image

_TAR = "Content-Type: application/x-tar\r\n"
_SAID, _SAID_LINES = 4096, 20
"""Of what a step printed, characters and lines that the error of its failure shows."""


async def build(
    engine: Service,
    image: Image,
    asked: Mapping[str, Any],
    secrets: Mapping[str, bytes],
    progress: Callable[[dict[str, Any]], None] | None,
) -> str:
    """Have `image` built; → its id. Raises JoeyError."""
    await engine.call("GET", "/v1/health")  # an archive is sent only once: who is to take it has to be there
    response = await engine.open(
        "POST", f"/v1/images/build{query(asked)}", _pieces(image.archive(secrets)), headers=_TAR
    )
    found = said = ""
    async for text in response.lines():
        line: dict[str, Any] = decode(dict, text)
        if line.get("error"):
            raise from_problem(int(line["error"].get("status", 500)), _explained(line["error"], said))
        said = "" if line.get("step") else (said + line.get("output", ""))[-_SAID:]
        if line.get("image"):
            found = str(line["image"]["id"])
        elif progress is not None:
            progress(line)
    if not found:
        raise ConnectionLost("", "the engine's answer was cut off")
    return found


def _explained(problem: dict[str, Any], said: str) -> dict[str, Any]:
    """With the end of what the step that failed has printed."""
    lines = [line for line in said.splitlines() if line.strip()][-_SAID_LINES:]
    return {**problem, "detail": "\n".join([str(problem.get("detail", "")), *(f"    {line}" for line in lines)])}


async def _pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def named(engine: Service, image: str | Image | None) -> str | None:
    """The name of an image; an Image is built the first time."""
    if not isinstance(image, Image):
        return image
    key = str(engine.endpoint)
    if key not in image._built:
        image._built[key] = await build(engine, image, image._asked((), None, False, False, ""), {}, None)
    return image._built[key]
