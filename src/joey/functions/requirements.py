"""requirements.txt → a tree of packages, installed by pip in a sandbox that sees the code and the network, nothing
else. What comes out is an archive of a stranger's, and treated so.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from joey.functions.archives import MAX_UNPACKED
from joey.functions.instance import CODE_AT
from joey.model.errors import Invalid, JoeyError
from joey.model.resources import Resources
from joey.model.spec import Mount, Process, SandboxSpec

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

SECONDS = 900.0
MEMORY = 2 << 30
_SAID = 4096
# Compiled once here, and valid whatever the times of files: else every cold start would compile it anew.
_SCRIPT = """
set -e
cat > /tmp/requirements.txt
mkdir -p /tmp/packages
"$0" -m pip install --no-input --no-cache-dir --disable-pip-version-check --no-compile --root-user-action=ignore \
    --no-warn-script-location --quiet --target /tmp/packages -r /tmp/requirements.txt
"$0" -m compileall -q -j 0 --invalidation-mode unchecked-hash /tmp/packages || true
"""


async def install(engine: Engine, code: Path, text: str, image: str, python: str, owner: str, temporary: Path) -> Path:
    """A tar of what `text` asks for, in a new file in `temporary`. Raises Invalid (field requirements), JoeyError."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    settings["PYTHONSAFEPATH"] = "1"  # the code lies where pip runs, and may have modules of the same names
    spec = SandboxSpec(
        image=image or "host",
        init=True,
        entrypoint=(),
        network="nat",
        mounts=(Mount(source=str(code), target=CODE_AT, read_only=True),),
        resources=Resources(memory=MEMORY, swap=0, cpus=2.0, pids=512),
        timeout=SECONDS,
        labels={"joey.function.build": "requirements"},
        remove=True,
    )
    box = (await engine.run(spec, owner=owner)).sandbox.id
    try:
        process = Process(argv=("/bin/sh", "-c", _SCRIPT, python), cwd=CODE_AT, stdin=True, env=settings)
        running = await engine.exec(box, process)
        try:
            await running.write(text.encode())
            await running.close_stdin()
            said = b""
            while (piece := await running.read()) is not None:
                said = (said + piece[1])[-_SAID:]
            exit = await running.wait()
        finally:
            await running.close()
        if exit.code:
            words = said.decode("utf-8", "replace").strip() or f"pip ended with {exit.code}"
            raise Invalid("requirements", f"could not be installed: {words}", "try it with pip install --target")
        return await _fetch(engine, box, temporary)
    finally:
        await _remove(engine, box)


async def _fetch(engine: Engine, box: str, temporary: Path) -> Path:
    path, size = temporary / f".making-{secrets.token_hex(8)}.tar", 0
    try:
        with path.open("xb") as file:
            async for piece in engine.files(box).pack("/tmp/packages"):
                size += len(piece)
                if size > 2 * MAX_UNPACKED:
                    raise Invalid("requirements", f"are more than {MAX_UNPACKED >> 20} MiB", "put them into an image")
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


async def _remove(engine: Engine, box: str) -> None:
    try:
        await engine.remove(box, force=True)
    except JoeyError:
        pass  # it is gone


__all__ = ["install"]
