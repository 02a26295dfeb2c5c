"""Processes as resources: they outlive their client and the engine, and nothing of them is lost."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from joey.engine import execs
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.spec import Process, Resources, SandboxSpec
from machine_state import eventually
from root.conftest import output
from root.test_recovery import reaper  # noqa: F401

EATER = "head -c 100M /dev/zero | tail -c 90M >/dev/null"
SLEEP = SandboxSpec(image="host", process=Process(argv=("sleep", "600")))


@pytest.fixture
def home(joey_home):
    yield joey_home
    if joey_home.exists():
        asyncio.run(Engine(Instance.open(joey_home)).reset())


def sh(text, **more):
    return Process(argv=("sh", "-c", text), **more)


async def ended(engine, ref, id):
    async with asyncio.timeout(10):
        return await engine.wait_process(ref, id)


def test_life_of_processes(home):
    async def main() -> None:
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        box = (await engine.run(SLEEP)).sandbox.id
        other = (await engine.run(SLEEP)).sandbox.id
        # It goes on without a client, and what it printed waits for the next one.
        first = await engine.exec(box, sh("echo one; read x; echo got $x; read y; exit 7", stdin=True), tag="t")
        id = first.id
        assert (await first.read()) == (1, b"one\n")
        await first.close()
        view = await engine.process(box, id)
        assert (view.tag, view.exit, view.pid, view.argv[0]) == ("t", None, first.pid, "sh")
        await engine.feed_process(box, id, b"typed\n")
        await asyncio.sleep(0.1)
        again = await engine.connect(box, id)
        assert await again.read() == (1, b"got typed\n")
        await engine.feed_process(box, id, b"", close=True)
        assert await again.read() is None and (await ended(engine, box, id)).code == 7
        await again.close()
        with pytest.raises(Conflict):
            await engine.signal_process(box, id, 15)
        with pytest.raises(Conflict):
            await engine.feed_process(box, id, b"late")
        for wrong in ("9999999", "x", "-1", "", id + "0" * 20):
            with pytest.raises(NotFound):
                await engine.process(box, wrong)
        with pytest.raises(NotFound):
            await engine.process(other, id)  # another sandbox's
        # Nobody reads: the newest MiB is kept, the program does not wait.
        noisy = await engine.exec(box, sh("head -c 3000000 /dev/zero; printf end"), keep=True)
        await noisy.close()
        assert (await ended(engine, box, noisy.id)).code == 0
        await asyncio.sleep(0.05)
        reader = await engine.connect(box, noisy.id)
        out, _ = await output(reader)
        assert 1 << 19 < len(out) <= 1 << 20 and out.endswith(b"\0end")
        await reader.close()
        # Unread bytes of one client go to the next.
        much = await engine.exec(box, sh("printf 12345; sleep 600"), keep=True)
        await asyncio.sleep(0.1)
        await much.close()
        reader = await engine.connect(box, much.id)
        assert await reader.read() == (1, b"12345")
        await engine.signal_process(box, much.id, 9)
        with pytest.raises(Invalid):
            await engine.signal_process(box, much.id, 1000)
        assert (await ended(engine, box, much.id)).signal == 9
        for _ in range(execs.KEPT_ENDED + 3):
            quick = await engine.exec(box, Process(argv=("true",)), keep=True)
            await quick.wait()
            await quick.close()
        listed = await engine.processes(box)
        assert len(listed) == execs.KEPT_ENDED and listed[-1].id == quick.id
        await engine.reset()

    asyncio.run(main())


def test_what_ends_for_lack_of_memory_says_so_and_what_is_killed_leaves_nothing_behind(home):
    async def main() -> None:
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        spec = msgspec.structs.replace(SLEEP, init=True, resources=Resources(memory=32 << 20, swap=0))
        box = (await engine.run(spec)).sandbox.id
        ends = []
        for text in ("kill -9 $$", EATER, f"{EATER}; exit $?", "exit 137", "sleep 77 & sleep 77; :"):
            one = await engine.exec(box, sh(text), detach=True)
            if "sleep" in text:
                await asyncio.sleep(0.1)
                await engine.signal_process(box, one.id, signal.SIGKILL)
            ends.append(await ended(engine, box, one.id))
        assert [end.oom for end in ends] == [False, True, True, False, False], ends
        assert [end.code for end in ends] == [137] * 5
        look = await engine.exec(box, Process(argv=("pgrep", "-fx", "sleep 77")))
        assert (await output(look))[0] == b""
        await look.close()
        await engine.remove(box, force=True)
        await engine.close()

    asyncio.run(main())


def test_the_engine_comes_back(home):
    """What ran, what ended meanwhile, and what had ended: all are there, with their output and their exits."""

    async def main() -> None:
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        box = (await engine.run(SLEEP)).sandbox.id
        runs = await engine.exec(box, sh("echo a; read x; echo b; exit 3", stdin=True), tag="runs")
        ends = await engine.exec(box, sh("sleep 0.3; echo meanwhile; exit 4"), keep=True)
        over = await engine.exec(box, sh("exit 5"), keep=True)
        mine = await engine.exec(box, sh("sleep 600"))
        said = await engine.exec(box, sh("echo first; sleep 0.5; echo second; exit 6"), keep=True)
        done = await engine.exec(box, sh("echo done"), keep=True)
        await said.close()
        await done.close()
        await over.wait()
        await done.wait()
        await asyncio.sleep(0.05)
        await engine.close()
        await asyncio.sleep(0.6)
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        views = {view.id: view for view in await engine.processes(box)}
        assert set(views) == {runs.id, ends.id, over.id, said.id, done.id}, (
            "one that belonged to a client is nobody's now"
        )
        assert views[runs.id].tag == "runs" and views[runs.id].exit is None and views[over.id].exit.code == 5
        assert (await ended(engine, box, ends.id)).code == 4
        reader = await engine.connect(box, ends.id)
        assert (await output(reader))[0] == b"meanwhile\n"
        for id, text, code in ((said.id, b"first\nsecond\n", 6), (done.id, b"done\n", 0)):
            reader = await engine.connect(box, id)
            assert (await output(reader))[0] == text and (await reader.wait()).code == code
        reader = await engine.connect(box, runs.id)
        await reader.write(b"x\n")
        assert (await output(reader))[0].endswith(b"b\n") and (await reader.wait()).code == 3
        with pytest.raises(Conflict):
            await engine.connect(box, over.id)
        await engine.remove(box, force=True)
        await engine.store.flush()
        assert mine.id and engine.store.load_processes() == []
        await engine.reset()

    asyncio.run(main())


def test_what_was_answered_is_on_disk_and_found_again_without_a_launcher(home):
    """Engine and launchers gone at once, right after the answer: kept processes run on, and are taken over; what was
    being started is ended, and nothing waits for ever at a pipe that nobody reads.
    """

    async def main() -> None:
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        box = (await engine.run(SLEEP)).sandbox.id
        flags = sh("trap 'exit 6' TERM; echo a; while :; do sleep 0.02; echo b; done")
        runs = await engine.exec(box, flags, keep=True)
        quick = await engine.exec(box, sh("exit 5"), keep=True)
        lost = await engine.exec(box, sh("yes"), tag="lost")
        await quick.wait()
        stored = {key: data for key, _, data in engine.store.load_processes()}
        assert set(stored) == {int(one.id) for one in (runs, quick, lost)}
        assert msgspec.json.decode(stored[int(runs.id)])["pid"] == runs.pid
        record = msgspec.json.decode(stored[int(lost.id)], type=execs.Record)
        unanswered = msgspec.structs.replace(record, pid=0)
        engine.store.save_process(int(lost.id), box, msgspec.json.encode(unanswered))
        await engine.store.flush()
        launchers = [shard.launcher.pid for shard in engine.machine.fleet.shards]
        await engine.close()
        for pid in launchers:
            os.kill(pid, signal.SIGKILL)
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        views = {view.id: view for view in await engine.processes(box)}
        assert set(views) == {runs.id, quick.id} and views[runs.id].exit is None
        assert views[runs.id].pid == runs.pid
        await eventually(lambda: not os.path.exists(f"/proc/{lost.pid}/exe"))
        reader = await engine.connect(box, runs.id)
        assert (await reader.read())[1].startswith(b"b")
        await engine.signal_process(box, runs.id, 15)
        assert (await ended(engine, box, runs.id)).code == 6
        # of one that no record tells of: nobody was answered to, and its pipe is full before long
        unknown = await engine.exec(box, sh("yes"), keep=True)
        engine.store.delete_process(int(unknown.id))
        mine = await engine.exec(box, sh("sleep 600"))
        await engine.close()
        engine = Engine(Instance.open(home), slots=1)
        await engine.open()
        await eventually(lambda: not os.path.exists(f"/proc/{unknown.pid}"))
        assert os.path.exists(f"/proc/{mine.pid}/exe"), "a client's own goes on, it hears of the end of its pipes"
        await engine.reset()

    asyncio.run(main())
