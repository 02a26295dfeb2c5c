"""POST /v1/backup: a consistent copy of the databases, as a tar archive, while work goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from joey.api.light import web
from joey.api.routes import TAR, Call, Route

_PIECE = 1 << 18


async def backup(call: Call) -> web.StreamResponse:
    """`state.db` (sandboxes), `api.db` if there are keys, `functions.db` if there are functions, whose code is not in
    it (keep the directory `functions`). To go back, unpack it into JOEY_HOME of no engine.
    """
    home = call.service.database.folder
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="backup-", dir=home))
    try:
        await call.engine.backup(folder / "state.db")
        call.service.database.backup(folder / "api.db")
        call.service.functions.backup(folder / "functions.db")
        archive = await asyncio.to_thread(_pack, folder)
        response = web.StreamResponse(
            headers={"Content-Type": TAR, "Content-Length": str(archive.stat().st_size)},
        )
        await response.prepare(call.request)
        with archive.open("rb") as source:
            while piece := await asyncio.to_thread(source.read, _PIECE):
                await response.write(piece)
        await response.write_eof()
        return response
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pack(folder: Path) -> Path:
    names = sorted(path for path in folder.iterdir() if path.suffix == ".db")
    archive = folder / "backup.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in names:
            os.chmod(path, 0o600)
            tar.add(path, arcname=path.name)
            path.unlink()
            # An engine that was killed leaves a log, which belongs to another state: unpacking empties it.
            tar.addfile(tarfile.TarInfo(path.name + "-wal"))
    return archive


ROUTES = (
    Route(
        "POST", "/v1/backup", backup, "Copy the engine's databases", tag="node", admin=True, stream=True,
        answer=bytes, media=TAR,
    ),
)  # fmt: skip
