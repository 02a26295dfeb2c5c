"""A hostile warm process: init code that does not come back, but speaks with the engine itself."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import pytest

from joey.engine import templates, zygote
from root.conftest import Lab
from root.forked import template

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]

HOSTILE = """
import array, ctypes, json, os, socket, struct, time
sock = next(socket.socket(fileno=os.dup(int(fd))) for fd in os.listdir("/proc/self/fd")
            if os.path.exists("/proc/self/fd/" + fd) and os.readlink("/proc/self/fd/" + fd).startswith("socket:"))
def say(data): sock.sendall(struct.pack(">I", len(data)) + data)
def ready(): say(json.dumps({"state": "ready", "reason": "", "python": "x", "seconds": 0.0}).encode())
def asked():
    fds = array.array("i")
    byte, more, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(64 * 4))
    for _, _, data in more: fds.frombytes(data)
    if not byte: os._exit(0)
    return list(fds)
def attempt(what, *args):
    try: return what(*args)
    except OSError as error: return error.strerror
def born(fd, data=b"\\2", *more):
    channel = socket.socket(fileno=os.dup(fd))
    channel.setblocking(True)
    channel.sendmsg([data], list(more))
    return channel
"""


async def _hostile(lab: Lab, name: str, text: str) -> Any:
    return await lab.engine.template_create(template(name, init=HOSTILE + text, berths=0))


async def _told(channel: Any) -> Any:
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while not data.endswith(b"\n"):
            data += await loop.sock_recv(channel.sock, 1 << 16)
    return json.loads(data)


def test_it_gets_nothing_by_which_others_are_moved_and_nobody_elses_number_is_believed(lab: Lab) -> None:
    """The files of cgroups that root has opened move whoever is seen, also the launcher's process on its way in."""
    text = """
ready()
fds = asked()
found = {"links": [os.readlink("/proc/self/fd/%d" % fd) for fd in fds], "forged": {}}
for pid in (1, *(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())):
    forged = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, 0, 0))]
    found["forged"][pid] = attempt(lambda: str(born(fds[9], b"\\2", *forged)))
rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]).tobytes())
channel = born(fds[9], b"\\2", rights)
found["go"] = channel.recv(1).decode()
found["cgroup"] = open("/proc/self/cgroup").read()
channel.sendall(b"\\1")
channel.recv(1 << 16)
channel.sendall(b"\\1" + json.dumps(found).encode() + b"\\n")
time.sleep(60)
"""

    async def work() -> None:
        view = await _hostile(lab, "mover", text)
        assert view.state == "ready", view.reason
        before = len(os.listdir("/proc/self/fd"))
        box, channel = await lab.engine.fork("mover")
        found = await _told(channel)
        assert len(found["links"]) == 10 and not any("cgroup" in one and "/" in one for one in found["links"]), found
        assert set(found["forged"].values()) <= {"Operation not permitted"} and len(found["forged"]) >= 2
        assert found["go"] == "\2"  # and so it has moved itself
        assert len(os.listdir("/proc/self/fd")) <= before + 8, "descriptors of a stranger were taken"
        channel.close()
        await lab.engine.template_remove("mover")
        await lab.engine.remove(box.id, force=True)

    lab.do(work(), 30)


def test_one_that_never_answers_holds_up_nobody_but_its_owner(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "HELLO_SECONDS", 0.5)
    monkeypatch.setattr(templates, "_GONE_SECONDS", 0.1)
    monkeypatch.setattr(zygote, "_TAKEN_SECONDS", 0.5)
    deaf = "ready()\nfds = asked()\nchannel = born(fds[9])\nchannel.recv(1)\nchannel.sendall(b'\\1')\ntime.sleep(60)\n"

    async def work() -> None:
        good = await lab.engine.template_create(template("good", berths=0))
        assert good.state == "ready", good.reason
        for name, text in (("silent", "ready()\ntime.sleep(60)\n"), ("deaf", deaf)):
            view = await _hostile(lab, name, text)
            assert view.state == "ready", view.reason
        loop = asyncio.get_running_loop()
        begun = loop.time()
        hung = [
            asyncio.ensure_future(lab.engine.fork("silent")),
            asyncio.ensure_future(
                lab.engine.fork("deaf", env={"A": "x" * 100_000, "B": "x" * 100_000, "C": "x" * 100_000})
            ),
        ]
        _, channel = await lab.engine.fork("good")
        assert loop.time() - begun < 0.45
        channel.close()
        for box, talk in await asyncio.gather(*hung):  # they were started plainly
            talk.close()
            await lab.engine.remove(box.id, force=True)
        assert loop.time() - begun < 6
        assert [lab.engine.template(name).plain for name in ("silent", "deaf", "good")] == [1, 1, 0]
        for name in ("silent", "deaf", "good"):
            await lab.engine.template_remove(name)

    lab.do(work(), 30)


def test_what_it_says_is_nonsense_or_without_end(lab: Lab) -> None:
    flood = "ready()\nfor fd in (1, 2): os.set_blocking(fd, True)\nwhile True: os.write(1, b'x' * 65536)\n"

    async def work() -> None:
        deep = await _hostile(
            lab, "deep", "say(b'{\"state\": \"ready\", \"more\": ' + b'[' * 30000 + b']' * 30000 + b'}')\n"
        )
        assert deep.state == "failed" and "nonsense" in deep.reason
        other = await _hostile(lab, "other", 'say(b\'{"state": "warming"}\')\ntime.sleep(60)\n')
        assert other.state == "failed"
        await _hostile(lab, "flood", flood)
        begun = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - begun < 0.3, "the engine reads what nobody wants"
        for name in ("deep", "other", "flood"):
            await lab.engine.template_remove(name)

    lab.do(work(), 30)


def test_what_it_keeps_of_sandboxes_that_have_ended_goes_in_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network namespace is 0.2 MiB of kernel memory that counts for nobody: descriptors keep it."""
    monkeypatch.setattr(templates, "MOST_ENDED", 4)

    async def work() -> None:
        view = await lab.engine.template_create(template("keeper", berths=1))
        assert view.state == "ready", view.reason
        first = lab.engine.forks.find("keeper", None)
        stays, talk = await lab.engine.fork("keeper")

        async def one() -> None:
            box, channel = await lab.engine.fork("keeper")
            channel.close()
            await lab.engine.remove(box.id, force=True)

        for _ in range(4):  # who forks while it is replaced does not notice
            await asyncio.gather(*(one() for _ in range(3)))
        async with asyncio.timeout(10):
            while (now := lab.engine.template("keeper")).pid in (0, view.pid):
                await asyncio.sleep(0.02)
            assert now.state == "ready" and now.forks >= 5 and first.over
            box, channel = await lab.engine.fork("keeper")
            assert lab.engine.template("keeper").plain == 0 and first.box is not None
            talk.close()
            await lab.engine.remove(stays.id, force=True)
            while first.box is not None:
                await asyncio.sleep(0.02)
        channel.close()
        await lab.engine.remove(box.id, force=True)
        await lab.engine.template_remove("keeper")

    lab.do(work(), 30)
