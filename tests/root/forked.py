"""Sandboxes forked from a template, for tests: text is run in the forked child itself, over its channel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import Any

from joey.engine.channels import Channel
from joey.functions.runtime.frames import CONFIG, ERROR, HEADER, INVOKE, READY, RESULT, Frames, frame
from joey.model.spec import SandboxSpec
from joey.model.template import TemplateSpec
from joey.model.views import Sandbox
from root.conftest import Lab
from root.inside import Inside

INIT = """
import sys
def handler(event, context):
    scope = {"__name__": "inside"}
    sys.argv = ["-c", *event["args"]]
    exec(compile(event["text"], "<test>", "exec"), scope)
    return scope.get("found")
"""
"""What runs any text, and gives its `found`."""
_PLAIN = "\nfound = json.loads(json.dumps(found))\n"


def template(name: str, **more: Any) -> TemplateSpec:
    """A template whose children run texts."""
    more["init"] = INIT + more.get("init", "")
    return TemplateSpec(**{"name": name, "spec": SandboxSpec(image="host"), **more})


class Talk:
    """The daemon's end of a child's channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._frames = Frames()
        self._ready: list[tuple[int, int, bytes]] = []
        self._number = 0

    async def _next(self) -> tuple[int, int, bytes]:
        loop = asyncio.get_running_loop()
        while not self._ready:
            data = await loop.sock_recv(self.channel.sock, 1 << 16)
            if not data:
                with contextlib.suppress(BlockingIOError):
                    raise EOFError(os.read(self.channel.err, 4096).decode())
                raise EOFError
            self._ready += [one for one in self._frames.feed(data) if one[0] in (READY, RESULT, ERROR, 17)]
        return self._ready.pop(0)

    async def begin(self) -> None:
        static = dict.fromkeys(("name", "version", "arn", "handler", "log_group", "log_stream"), "test")
        static |= {"memory_mb": 128, "timeout": 60}
        config = {
            "handler": "joey_init.handler", "env": {}, "code": "", "layers": "", "kind": "event", "static": static,
            "concurrency": 1, "initializer": "", "pre_stop": "", "event_format": "json",
        }  # fmt: skip
        await self._send(frame(CONFIG, 0, json.dumps(config).encode()))
        kind, _, payload = await self._next()
        assert kind == READY, payload

    async def run(self, text: str, *args: str) -> Any:
        """`found` of a text run inside. Raises EOFError when it ends instead."""
        self._number += 1
        body = b"{}\n" + json.dumps({"text": text, "args": args}).encode()
        await self._send(HEADER.pack(len(body), INVOKE, self._number) + body)
        kind, _, payload = await self._next()
        assert kind == RESULT, payload.decode()
        return json.loads(payload)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.channel.sock, data)


class Forked(Inside):
    """`Inside`, whose sandboxes are forked from one template and whose texts run in the forked child."""

    def __init__(self, lab: Lab, name: str = "inside") -> None:
        super().__init__(lab)
        self.name = name
        self.talks: dict[str, Talk] = {}
        view = lab.do(lab.engine.template_create(template(name)))
        assert view.state == "ready", view.reason

    def box(self, *argv: str, **more: Any) -> Sandbox:
        assert not argv and not more
        return self.lab.do(self._box())

    async def _box(self) -> Sandbox:
        box, channel = await self.lab.engine.fork(self.name)
        talk = self.talks[box.id] = Talk(channel)
        await talk.begin()
        return box

    def ask(self, box: Sandbox | str, text: str, *args: str, seconds: float = 20, **more: Any) -> dict[str, Any]:
        if more:
            return super().ask(box, text, *args, seconds=seconds, **more)
        id = box if isinstance(box, str) else box.id
        found: dict[str, Any] = self.lab.do(self.talks[id].run(f"{self._prelude}{text}{_PLAIN}", *args), seconds)
        return found

    def remove(self, *boxes: Sandbox) -> None:
        for box in boxes:
            self.talks.pop(box.id).channel.close()
            self.lab.do(self._gone(box.id))

    async def _gone(self, id: str) -> None:
        from joey.model.errors import NotFound

        try:
            await self.lab.engine.remove(id, force=True)
        except NotFound:
            pass
