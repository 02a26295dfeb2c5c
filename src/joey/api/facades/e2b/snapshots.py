"""E2B's snapshots and forks: of files. Programs start anew in what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from joey.api import snapshots as ours
from joey.api.facades.e2b import errors
from joey.api.facades.e2b.call import Owned
from joey.api.facades.e2b.control import DEFAULT_TIMEOUT, living, made, seconds
from joey.api.facades.e2b.errors import Failure, lacking
from joey.api.images import library_of
from joey.api.light import web
from joey.api.routes import Route
from joey.engine.forks import fork as fork_of
from joey.model import codec
from joey.model.errors import Invalid, JoeyError, NotFound
from joey.model.snapshots import ForkBody, SnapshotBody
from joey.model.spec import Update
from joey.model.views import Sandbox

if TYPE_CHECKING:
    from joey.model.snapshots import Snapshot

_MOST_FORKS = 100
_PAGE = 100

Message = dict[str, Any]


class _SnapshotRequest(msgspec.Struct, kw_only=True):
    name: str = ""
    memory: bool | None = None


class _ForkRequest(msgspec.Struct, kw_only=True):
    timeout: float | None = None
    count: int = 1


def _view(one: Snapshot) -> Message:
    return {"snapshotID": one.name, "names": [one.name]}


async def take(call: Owned) -> Message:
    """Its files as they are now; the name is a template from then on."""
    body = codec.decode(_SnapshotRequest, await call.data() or b"{}")
    if body.memory:
        raise lacking("memory: true (a snapshot holds files)")
    labels = (await living(call)).sandbox.labels

    async def work() -> Snapshot:
        taken = await ours.of(call).take(call.ref, SnapshotBody(name=body.name))
        call.catalogue.snapshotted(taken.name, call.owner, labels)
        return taken

    return _view(await call.whole(work()))


async def index(call: Owned) -> web.StreamResponse:
    """A page of the key's; the newest first."""
    query = call.request.query
    found = list(ours.of(call).all(call.visible))
    if id := query.get("sandboxID"):
        maker = f"joey snapshot {id[:12]}"  # joey.engine.snapshots writes it into the image's history
        library = library_of(call)
        found = [one for one in found if library.history(one.id)[0]["created_by"] == maker]
    if name := query.get("name"):
        found = [one for one in found if name in (one.name, one.name.rpartition(":")[0])]
    if token := query.get("nextToken"):
        place = next((at for at, one in enumerate(found) if one.name == token), None)
        if place is None:
            raise Invalid("nextToken", "is not one of ours, or that snapshot is gone")
        found = found[place + 1 :]
    text = query.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1000):
        raise Invalid("limit", "is a whole number from 1 to 1000")
    page = found[: int(text)]
    headers = {"x-next-token": page[-1].name} if len(found) > len(page) else {}
    return call.reply([_view(one) for one in page], 200, headers)


async def remove(call: Owned) -> None:
    """A template that is a snapshot of the key's."""
    name = call.path["name"]
    try:
        await call.whole(ours.of(call).remove(name, call.visible))
        call.catalogue.snapshotted(name, call.owner, {})
    except NotFound:
        raise Failure(404, f"there is no snapshot {name!r} of this key's") from None


async def fork(call: Owned) -> list[Message]:
    """New sandboxes on the same files."""
    body = codec.decode(_ForkRequest, await call.data() or b"{}")
    if not 1 <= body.count <= _MOST_FORKS:
        raise Invalid("count", f"is a whole number from 1 to {_MOST_FORKS}")
    timeout = seconds(DEFAULT_TIMEOUT if body.timeout is None else body.timeout)
    await living(call)
    ours.of(call)

    async def work() -> list[Message]:
        found = []
        async for _, one in fork_of(call.engine, call.ref, ForkBody(count=body.count)):  # type: ignore[arg-type]
            found.append(await _forked(call, one, timeout))
        return found

    return await call.whole(work())


async def _forked(call: Owned, one: Sandbox | JoeyError, timeout: float) -> Message:
    try:
        if isinstance(one, JoeyError):
            raise one
        changed = await call.engine.update(one.id, Update(timeout=timeout))
        token = (await call.engine.inspect(one.id)).spec.proxy_token
        return {"sandbox": await made(call, changed, token)}
    except JoeyError as error:
        failure = errors.of(error)
        return {"error": {"code": failure.status, "message": failure.message}}


_ONE = "/sandboxes/{ref}"
ROUTES = (
    Route("POST", _ONE + "/snapshots", take, "Keep its files", status=201),
    Route("GET", "/snapshots", index, "Those of the key"),
    Route("POST", _ONE + "/fork", fork, "More on its files", status=201),
)
