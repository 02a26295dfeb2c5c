"""/v1/snapshots, and what becomes of a sandbox's files: snapshot, fork, commit, changes, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joey.api import archives, problem
from joey.api.creation import BatchLine
from joey.api.images import library_of
from joey.api.light import web
from joey.api.routes import NDJSON, TAR, Call, Route
from joey.model.errors import Broken, JoeyError
from joey.model.snapshots import CommitBody, FileChange, ForkBody, Snapshot, SnapshotBody

if TYPE_CHECKING:
    from joey.engine.snapshots import Snapshots


def of(call: Call) -> Snapshots:
    """The engine's. Raises Broken for an engine without any (a fake)."""
    found: Snapshots | None = getattr(call.engine, "snapshots", None)
    if found is None:
        raise Broken("snapshots", "this engine keeps no images")
    return found


async def take_snapshot(call: Call) -> Snapshot:
    """Its files as they are now become an image of the sandbox's owner, who alone can see and use it. The sandbox
    stands still for some milliseconds and goes on. Takes time for what it has changed, not for its image.
    """
    body: SnapshotBody = await call.body()
    return await call.whole(of(call).take(call.ref, body))


async def commit_sandbox(call: Call) -> Snapshot:
    """An image for everybody, with the sandbox's settings (docker commit)."""
    body: CommitBody = await call.body()
    return await call.whole(of(call).commit(call.ref, body))


async def sandbox_changes(call: Call) -> Any:
    """Files it has added (A), changed (C) and deleted (D) in its image, in order of path."""
    return await of(call).changes(call.ref)


async def fork_sandbox(call: Call) -> web.StreamResponse:
    """A line a sandbox, as of a batch: new ones on the same files and of the same specification, without names. Main
    programs start anew. If the client leaves, what it has not been told of is removed.
    """
    from joey.engine.forks import fork

    body: ForkBody = await call.body()
    of(call)
    answers = fork(call.engine, call.ref, body)  # type: ignore[arg-type]
    try:
        first = await anext(answers)  # what is wrong is said before the answer begins
        lines = await call.lines()
        await lines.add(_line(*first))
        told = 1
        async for number, one in answers:
            await lines.add(_line(number, one))
            told += 1
            if told % _AT_ONCE == 0:
                await lines.flush()
        return await lines.end()
    finally:
        await answers.aclose()


_AT_ONCE = 16


def _line(number: int, one: Any) -> BatchLine:
    if isinstance(one, JoeyError):
        return BatchLine(index=number, error=problem.Problem(**problem.document(one)))
    return BatchLine(index=number, sandbox=one)


async def export_sandbox(call: Call) -> web.StreamResponse:
    """Its whole file system as an archive: its image and what it has changed. What is mounted in it is not."""
    own, snapshots = library_of(call), of(call)
    image = await call.whole(snapshots.for_forks(call.engine.find(call.ref)))  # type: ignore[attr-defined]
    try:
        return await archives.send_tree(call, own, image)
    finally:
        snapshots.drop(image)


async def snapshots(call: Call) -> Any:
    """The caller's, the newest first; an administrator sees all."""
    return of(call).all(call.visible)


async def snapshot(call: Call) -> Snapshot:
    """One of them, by name or id."""
    return of(call).view(call.path["name"], call.visible)


async def remove_snapshot(call: Call) -> None:
    """Refused while sandboxes use it."""
    await call.whole(of(call).remove(call.path["name"], call.visible))


ROUTES = (
    Route(
        "POST", "/v1/sandboxes/{ref}/snapshot", take_snapshot, "Make an image of its files", tag="snapshots",
        body=SnapshotBody, body_optional=True, answer=Snapshot, status=201, stream=True, example={"name": "ready:1"},
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/fork", fork_sandbox, "Make new sandboxes on the same files", tag="snapshots",
        body=ForkBody, body_optional=True, answer=BatchLine, media=NDJSON, stream=True, example={"count": 3},
    ),
    Route(
        "POST", "/v1/sandboxes/{ref}/commit", commit_sandbox, "Make an image for everybody", tag="snapshots",
        body=CommitBody, body_optional=True, answer=Snapshot, status=201, stream=True, admin=True,
        example={"name": "app:1", "changes": ['CMD ["python3", "app.py"]']},
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/changes", sandbox_changes, "Files it has changed in its image", tag="snapshots",
        answer=tuple[FileChange, ...], stream=True,
    ),
    Route(
        "GET", "/v1/sandboxes/{ref}/export", export_sandbox, "Its whole file system", tag="snapshots", answer=bytes,
        media=TAR, stream=True,
    ),
    Route("GET", "/v1/snapshots", snapshots, "List snapshots", tag="snapshots", answer=tuple[Snapshot, ...]),
    Route("GET", "/v1/snapshots/{name}", snapshot, "One snapshot", tag="snapshots", answer=Snapshot),
    Route("DELETE", "/v1/snapshots/{name}", remove_snapshot, "Remove one", tag="snapshots", status=204),
)  # fmt: skip
