"""envd's file system service on the engine's files."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import stat as modes
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from joey.api.facades.e2b import connect
from joey.api.facades.e2b.call import EnvdCall
from joey.api.facades.e2b.connect import Fields, Stream
from joey.api.facades.e2b.envd import absolute, user_of
from joey.api.facades.e2b.errors import GONE, Failure, lacking
from joey.api.light import web
from joey.api.routes import Route
from joey.engine.interface import Files
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound
from joey.model.views import FileEvent, FileInfo

_KEEPALIVE = 90.0
_MOST_EVENTS = 10_000
_MOST_WATCHERS = 64
"""Of one sandbox; of more the one that was not asked for longest goes."""
_FORGOTTEN = 3600.0
_DEEPEST = 64
_TYPES = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY", "link": "FILE_TYPE_SYMLINK"}
_EVENTS = {
    "created": "EVENT_TYPE_CREATE", "modified": "EVENT_TYPE_WRITE", "removed": "EVENT_TYPE_REMOVE",
    "moved": "EVENT_TYPE_RENAME", "attributes": "EVENT_TYPE_CHMOD",
}  # fmt: skip
_BITS = {"file": modes.S_IFREG, "directory": modes.S_IFDIR, "link": modes.S_IFLNK, "fifo": modes.S_IFIFO,
         "socket": modes.S_IFSOCK, "char": modes.S_IFCHR, "block": modes.S_IFBLK}  # fmt: skip

Message = dict[str, Any]


async def _asked(call: EnvdCall) -> tuple[Fields, str]:
    """The message and the user's home."""
    asked = Fields(await connect.unary(call, dict[str, Any]))
    return asked, (await user_of(call))[1]


async def _entry(files: Files, info: FileInfo) -> Message:
    """The type of a link is that of what it leads to, as envd has it."""
    kind = info.type
    if kind == "link":
        with contextlib.suppress(NotFound, Invalid, Conflict):
            kind = (await files.stat(info.path, follow=True)).type
    entry: Message = {
        "name": info.name,
        "type": _TYPES.get(kind, "FILE_TYPE_UNSPECIFIED"),
        "path": info.path,
        "size": str(info.size),
        "mode": info.mode,
        "permissions": modes.filemode(_BITS[info.type] | info.mode),
        "owner": info.user or str(info.uid),
        "group": info.group or str(info.gid),
        "modifiedTime": datetime.fromtimestamp(info.modified, UTC).isoformat().replace("+00:00", "Z"),
    }
    if info.type == "link":
        entry["symlinkTarget"] = info.target
    return entry


async def stat(call: EnvdCall) -> Message:
    """One entry."""
    asked, home = await _asked(call)
    files = call.engine.files(call.ref)
    return {"entry": await _entry(files, await files.stat(absolute(asked.text("path", ""), home)))}


async def list_dir(call: EnvdCall) -> Message:
    """What is in a directory."""
    asked, home = await _asked(call)
    path, depth = absolute(asked.text("path", ""), home), asked.number("depth") or 1
    if not 0 < depth <= _DEEPEST:
        raise Invalid("depth", f"is not within 1 and {_DEEPEST}")
    files = call.engine.files(call.ref)
    return {"entries": [await _entry(files, info) for info in await files.list(path, depth)]}


async def make_dir(call: EnvdCall) -> Message:
    """A directory and those above it."""
    asked = Fields(await connect.unary(call, dict[str, Any]))
    user, home = await user_of(call)
    path = absolute(asked.text("path"), home)
    files = call.engine.files(call.ref)
    try:
        made = await call.whole(files.mkdir(path, user=user))
    except Conflict as error:
        raise Failure(409, f"directory already exists: {error.message}", "already_exists") from None
    except NotFound:
        made = await call.whole(files.mkdir(path, user=user, parents=True))
    return {"entry": await _entry(files, made)}


async def move(call: EnvdCall) -> Message:
    """rename(2)."""
    asked, home = await _asked(call)
    files = call.engine.files(call.ref)
    source, target = absolute(asked.text("source"), home), absolute(asked.text("destination"), home)
    return {"entry": await _entry(files, await call.whole(files.move(source, target)))}


async def remove(call: EnvdCall) -> Message:
    """All of it; what is not there is no error."""
    asked, home = await _asked(call)
    path = absolute(asked.text("path"), home)
    with contextlib.suppress(NotFound):
        await call.whole(call.engine.files(call.ref).remove(path, recursive=True))
    return {}


# --- watching --------------------------------------------------------------------------------------------------------


def _event(path: str, event: FileEvent) -> Message | None:
    kind = _EVENTS.get(event.type)
    if kind is None:
        return None
    name = event.path[len(path) :].lstrip("/") if event.path.startswith(path) else event.path
    return {"name": name, "type": kind}


def _checked(asked: Fields) -> bool:
    """Whether to watch what is below, too. Raises Failure."""
    if asked.flag("includeEntry", False):
        raise lacking("includeEntry")
    return asked.flag("recursive", False)


async def _directory(files: Files, path: str) -> None:
    """Raises Failure for what is none, JoeyError for what is not there."""
    if (await files.stat(path, follow=True)).type != "directory":
        raise Failure(400, f"path {path} is not a directory", "invalid_argument")


class Watcher:
    """Events that a client fetches."""

    def __init__(self, sandbox: str) -> None:
        self.sandbox = sandbox
        self.events: deque[Message] = deque(maxlen=_MOST_EVENTS)
        self.asked = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    async def follow(self, files: Files, path: str, recursive: bool, begun: asyncio.Future[None]) -> None:
        """Until cancelled, or until the sandbox ends."""
        try:
            async with files.watching(path, recursive=recursive) as events:
                begun.set_result(None)
                async for event in events:
                    if (told := _event(path, event)) is not None:
                        self.events.append(told)
        except JoeyError as error:
            if not begun.done():
                begun.set_exception(error)


async def create_watcher(call: EnvdCall) -> Message:
    """Answers when it watches."""
    asked, home = await _asked(call)
    path, recursive = absolute(asked.text("path"), home), _checked(asked)
    watchers = call.state.watchers
    await _directory(call.engine.files(call.ref), path)
    await _sweep(call)
    id, watcher = secrets.token_hex(8), Watcher(call.ref)
    begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    files = call.engine.files(call.ref)
    watcher.task = asyncio.ensure_future(watcher.follow(files, path, recursive, begun))
    try:
        await begun
    except BaseException:
        await _stop(watcher)
        raise
    watchers[id] = watcher
    return {"watcherId": id}


async def _sweep(call: EnvdCall) -> None:
    """Those that nobody asks any more, whose sandbox has ended, and one too many of this sandbox."""
    watchers, now = call.state.watchers, time.monotonic()
    for id, one in list(watchers.items()):
        if now - one.asked > _FORGOTTEN or one.task is None or one.task.done():
            await _stop(watchers.pop(id))
    mine = sorted((one.asked, id) for id, one in watchers.items() if one.sandbox == call.ref)
    if len(mine) >= _MOST_WATCHERS:
        await _stop(watchers.pop(mine[0][1]))


async def _stop(watcher: Watcher) -> None:
    if watcher.task is not None:
        watcher.task.cancel()
        await asyncio.gather(watcher.task, return_exceptions=True)


def _watcher(call: EnvdCall, id: str) -> Watcher:
    watcher = call.state.watchers.get(id)
    if watcher is None or watcher.sandbox != call.ref:
        raise Failure(404, f"watcher with id {id} not found")
    watcher.asked = time.monotonic()
    return watcher


async def get_watcher_events(call: EnvdCall) -> Message:
    """Those since the last call, 10,000 at most."""
    asked = Fields(await connect.unary(call, dict[str, Any]))
    watcher = _watcher(call, asked.text("watcherId"))
    found = list(watcher.events)
    watcher.events.clear()
    return {"events": found}


async def remove_watcher(call: EnvdCall) -> Message:
    """No more."""
    asked = Fields(await connect.unary(call, dict[str, Any]))
    id = asked.text("watcherId")
    watcher = _watcher(call, id)
    del call.state.watchers[id]
    await _stop(watcher)
    return {}


async def watch_dir(call: EnvdCall) -> web.StreamResponse:
    """Events as they happen, until the client leaves."""
    asked = Fields(await connect.single(call, dict[str, Any]))
    _, home = await user_of(call)
    path = absolute(asked.text("path"), home)
    stream = await Stream.begin(call)
    interval = connect.seconds(call, "Keepalive-Ping-Interval", 1) or _KEEPALIVE
    try:
        recursive = _checked(asked)
        await _directory(call.engine.files(call.ref), path)
        async with (
            asyncio.timeout(connect.seconds(call, "Connect-Timeout-Ms", 0.001)),
            call.engine.files(call.ref).watching(path, recursive=recursive) as events,
        ):
            await stream.send({"start": {}})
            await _tell(stream, path, events, interval)
    except TimeoutError:
        return await stream.end(Failure(408, "the time of the request is over"))
    except (JoeyError, Failure) as error:
        return await stream.end(error)
    return await stream.end(Failure(502, GONE))


async def _tell(stream: Stream, path: str, events: Any, interval: float) -> None:
    waiting: asyncio.Future[Any] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events, None))
            await asyncio.wait((waiting,), timeout=interval)
            if not waiting.done():
                await stream.send({"keepalive": {}})
                continue
            event, waiting = waiting.result(), None
            if event is None:
                return
            if (told := _event(path, event)) is not None:
                await stream.send({"filesystem": told})
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


_BASE = "/filesystem.Filesystem/"
ROUTES = (
    Route("POST", _BASE + "Stat", stat, "Look at an entry"),
    Route("POST", _BASE + "ListDir", list_dir, "List a directory"),
    Route("POST", _BASE + "MakeDir", make_dir, "Make a directory"),
    Route("POST", _BASE + "Move", move, "Move an entry"),
    Route("POST", _BASE + "Remove", remove, "Remove an entry"),
    Route("POST", _BASE + "CreateWatcher", create_watcher, "Begin to watch"),
    Route("POST", _BASE + "GetWatcherEvents", get_watcher_events, "What has changed"),
    Route("POST", _BASE + "RemoveWatcher", remove_watcher, "Watch no more"),
    Route("POST", _BASE + "WatchDir", watch_dir, "What changes, as a stream", stream=True),
)
