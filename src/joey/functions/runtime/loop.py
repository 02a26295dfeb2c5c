"""Handlers that are `async def`, and ASGI applications: every invocation is a task of one event loop."""

import asyncio
from contextvars import ContextVar

from .frames import CANCEL

_current = ContextVar("joey_invocation", default=0)


def run(server):
    """Serve until STOP (what is in flight is finished) or the channel's end. False: it could not begin."""
    server.current = _current.get
    return asyncio.run(_Loop(server).run())


class _Loop:
    def __init__(self, server):
        self.server = server
        self.tasks = {}

    async def run(self):
        loop = asyncio.get_running_loop()
        self.quiet = loop.create_future()
        try:
            await self.server.application.begin()
        except Exception as error:
            self.server.unable(error)
            return False
        self.server.begin("loop")
        try:
            loop.add_reader(self.server.link.fd, self._readable)
            self._start()
            await self.quiet
        finally:
            loop.remove_reader(self.server.link.fd)
        await self.server.application.end()
        return True

    def _readable(self):
        frames = self.server.link.receive(wait=False)
        if frames is None:
            self._end()
            return
        for frame in frames:
            self.server.dispatch(frame)
            if frame[0] == CANCEL and frame[1] in self.tasks:
                self.tasks[frame[1]].cancel()
        self._start()

    def _start(self):
        while self.server.ready:
            call = self.server.ready.popleft()
            call.signal = asyncio.Event()
            self.tasks[call.id] = task = asyncio.ensure_future(self._one(call))
            task.add_done_callback(self._over)
        if self.server.stopping and not self.tasks:
            self._end()

    async def _one(self, call):
        _current.set(call.id)
        try:
            await self.server.application.arun(call)
        except asyncio.CancelledError:
            call.cancelled = True
            call.failed(BrokenPipeError("nobody wants the answer any more"))
        finally:
            del self.server.calls[call.id], self.tasks[call.id]
            if self.server.stopping and not self.tasks:
                self._end()

    def _over(self, task):
        if not task.cancelled() and task.exception() is not None and not self.quiet.done():
            self.quiet.set_exception(task.exception())

    def _end(self):
        if not self.quiet.done():
            self.quiet.set_result(None)
