"""Engine, launcher or worker is killed: what runs goes on, what ended is known, nothing is left that has no record."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from joey.bench.chaos_parts import reap_orphan
from joey.engine.ends import UNSEEN
from joey.engine.interface import Filter, LogQuery
from joey.engine.record import Phase, Run
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Broken, JoeyError
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Sandbox
from machine_state import descriptors, eventually, mounts, until

pytestmark = pytest.mark.timeout(60)

CHILD = Path(__file__).with_name("engine_child.py")
SLEEP = SandboxSpec(image="host", process=Process(argv=("sleep", "1000")))


@pytest.fixture
def home(joey_home: Path) -> Iterator[Path]:
    """A JOEY_HOME that is empty afterwards, also when the test fails."""
    yield joey_home
    if joey_home.exists():
        asyncio.run(Engine(Instance.open(joey_home)).reset())


@pytest.fixture(autouse=True)
def reaper() -> Iterator[None]:
    """Orphans of a launcher come to us (the tests' process is a subreaper): wait for them, as PID 1 does. A sandbox's
    first process cannot end before all in it have been waited for (pid_namespaces(7)).
    """
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.01):
            while reap_orphan():
                pass

    thread = threading.Thread(target=reap)
    thread.start()
    yield
    over.set()
    thread.join()


@contextmanager
def engine_process(home: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """engine_child.py, killed at the end of the block and waited for."""
    with subprocess.Popen([sys.executable, str(CHILD), str(home), *args], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def taken_over(home: Path, work) -> None:
    """Run `work(engine)` with a new engine on `home`, then reset."""

    async def main() -> None:
        engine = Engine(Instance.open(home), slots=0)
        try:
            await engine.open()
            await asyncio.wait_for(work(engine), 30)
        finally:
            report = await engine.reset()
        assert not os.path.exists(home), report

    asyncio.run(main())


def kill_launchers(engine: Engine) -> set[int]:
    """All but the worker; their pids."""
    pids = {shard.launcher.pid for shard in engine.machine.fleet.shards}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


async def replaced(engine: Engine, killed: set[int]) -> None:
    """There is another launcher for each of those, and it has taken over what runs."""
    fleet = engine.machine.fleet
    await eventually(lambda: not any(shard.launcher.pid in killed for shard in fleet.shards))
    await eventually(lambda: not fleet._rescues)
    assert not any(shard.gone for shard in fleet.shards)


async def consistent(engine: Engine, execs: int = 0) -> list[Sandbox]:
    """Assert that records and reality agree; the sandboxes that run."""
    machine = engine.machine
    await eventually(lambda: not any(box.record.held and not box.alive for box in engine.boxes))
    await eventually(lambda: not machine.pool.pending)
    boxes = await engine.list(Filter(all=True))
    running = [box for box in boxes if box.state in ("running", "paused")]
    known = {child.pid for shard in machine.fleet.shards for child in await shard.launcher.list() if child.running}
    assert {box.pid for box in running} <= known and len(known) == len(running) + execs
    assert all(box.state in ("running", "paused", "exited", "created") for box in boxes)
    slots = {engine.find(box.id).slot.name for box in running}
    assert set(machine.cgroup.sweep()) == slots
    for box in running:
        inside = machine.cgroup.procs(engine.find(box.id).slot.name)
        assert box.pid in inside or not os.path.exists(f"/proc/{box.pid}/exe"), "or it has just ended"
    files = {box.slot.name for box in engine.boxes if box.slot is not None}
    found = {name for name in os.listdir(machine.storage.scratch) if not name.startswith(".")}
    assert files == found
    assert set(os.listdir(machine.storage.disk)) <= files | {".images", ".templates"}
    return running


def gone(boxes: Iterable[Sandbox]) -> bool:
    """Whether the processes of `boxes` are no more."""
    return not any(os.path.exists(f"/proc/{box.pid}") for box in boxes)


async def text_of(engine: Engine, ref: str) -> bytes:
    return b"".join([entry.data async for entry in engine.logs(ref, LogQuery())])


# --- the engine is killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [1, 20, 60, 150])
def test_engine_killed_in_the_middle_of_fifty_launches(home, lines):
    with engine_process(home, "launch", "50") as child:
        for _ in range(lines):
            assert child.stdout.readline()

    async def check(engine: Engine) -> None:
        running = await consistent(engine)
        assert running or lines == 1  # its record may not have been written down yet
        for box in running[:3]:
            assert (await engine.stop(box.id, 0)).exit.signal == 9
        assert (await engine.run(SLEEP)).sandbox.state == "running"
        await consistent(engine)

    taken_over(home, check)


def test_a_hundred_run_on_and_no_exit_or_output_is_lost(home):
    with engine_process(home, "hold", "100") as child:
        assert child.stdout.readline() == "all run\n"

    async def check(engine: Engine) -> None:
        boxes = {box.name: box for box in await engine.list(Filter(all=True))}
        assert len(boxes) == 120
        ends = await asyncio.gather(*(engine.wait(f"e{i}") for i in range(20)))
        assert [end.code for end in ends] == [7] * 20
        await eventually(lambda: not any(b.output and b.name[0] == "e" and b.output._streams for b in engine.boxes))
        assert {await text_of(engine, f"e{i}") for i in range(20)} == {b"bye\n"}
        running = await consistent(engine)
        assert len(running) == 100
        pids = {boxes[box.name].pid for box in running}
        assert pids == {box.pid for box in running}, "restarted"
        lines = (await text_of(engine, "t5")).split()
        assert lines == [b"%d" % i for i in range(len(lines))] and len(lines) > 20
        await engine.kill("t7", 9)
        assert (await engine.wait("t7")).signal == 9
        attached = await engine.exec("t8", Process(argv=("true",)))
        assert (await attached.wait()).code == 0
        await attached.close()

    import time

    time.sleep(1.1)  # those that end do so while no engine is there
    taken_over(home, check)


async def exited(shard) -> int:
    return sum([not child.running for child in await shard.launcher.list()])


def test_engine_restarts_in_order(home):
    """Again and again, with everything running: nothing grows, not even the launcher's mounts."""

    async def main() -> None:
        instance = Instance.open(home)
        engine = Engine(instance, slots=2)
        await engine.open()
        box = (await engine.run(SLEEP)).sandbox
        paused = (await engine.run(SLEEP)).sandbox
        await engine.pause(paused.id)
        created = await engine.create(SLEEP)
        found = []
        for _ in range(3):
            await engine.close()
            engine = Engine(instance, slots=2)
            await engine.open()
            assert (await engine.inspect(box.id)).sandbox.pid == box.pid
            assert (await engine.inspect(paused.id)).sandbox.state == "paused"
            assert (await engine.inspect(created.id)).sandbox.state == "created"
            await engine.remove((await engine.run(SLEEP)).sandbox.id, force=True)
            for shard in engine.machine.fleet.shards:
                await eventually(lambda s=shard: s.children <= 1)
                await until(partial(exited, shard), 0)
            pids = [shard.launcher.pid for shard in engine.machine.fleet.shards]
            found.append([(pid, descriptors(pid), mounts(pid)) for pid in pids])
            await eventually(lambda e=engine: not e.machine.pool.pending)
        assert found[1] == found[2]
        await engine.start(created.id)
        await engine.stop(paused.id, 0)
        await engine.close(stop_launcher=True)
        engine = Engine(instance)
        await engine.open()
        assert (await engine.inspect(box.id)).sandbox.pid == box.pid
        await engine.reset()

    asyncio.run(main())


def test_reset_without_an_engine_removes_what_one_left(home):
    with engine_process(home, "hold", "10") as child:
        assert child.stdout.readline()
    report = asyncio.run(Engine(Instance.open(home)).reset())
    assert report.removed["processes"] >= 10 and not home.exists()
    assert asyncio.run(Engine(Instance.open(home)).reset()).removed == {}


# --- a launcher is killed --------------------------------------------------------------------------------------------


async def opened(home: Path, slots: int = 0) -> Engine:
    engine = Engine(Instance.open(home), slots=slots)
    await engine.open()
    return engine


def test_launcher_killed_with_sandboxes_running(home):
    async def main() -> None:
        engine = await opened(home)
        boxes = [(await engine.run(SLEEP)).sandbox for _ in range(6)]
        attached = await engine.exec(boxes[0].id, Process(argv=("sleep", "1000")))
        waiting = [asyncio.ensure_future(engine.wait(box.id)) for box in boxes]
        await asyncio.sleep(0)
        killed = kill_launchers(engine)
        await replaced(engine, killed)
        assert await consistent(engine, execs=1) == list(reversed(boxes))
        await attached.signal(signal.SIGKILL)
        assert (await attached.wait()).signal == 9
        await attached.close()
        await engine.kill(boxes[1].id, 9)
        assert (await waiting[1]).signal == 9
        again = await engine.exec(boxes[0].id, Process(argv=("sh", "-c", "exit 3")))
        assert (await again.wait()).code == 3
        await again.close()
        assert (await engine.start(boxes[1].id)).state == "running"
        await engine.stop(boxes[2].id, 0)
        await engine.close()  # and the next engine finds them in the new launcher
        engine = await opened(home)
        assert {box.pid for box in await consistent(engine)} >= {boxes[i].pid for i in (0, 3, 4, 5)}
        for one in waiting:
            one.cancel()
        await engine.reset()

    asyncio.run(main())


def test_exit_codes_and_output_around_the_end_of_a_launcher(home):
    """What ends later is known as ever; what ended unseen says so; nobody who writes notices."""
    script = "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"

    async def main() -> None:
        engine = await opened(home)
        box = (await engine.run(SandboxSpec(image="host", process=Process(argv=("sh", "-c", script))))).sandbox
        brief = (await engine.run(SLEEP)).sandbox
        typing = SandboxSpec(image="host", process=Process(argv=("sh", "-c", "read x; exit $x"), stdin=True))
        started = await engine.run(typing, attach=True)
        fleet = engine.machine.fleet
        start_launcher = fleet._start_launcher

        async def later(number: int):  # for every launcher
            with suppress(ProcessLookupError):
                os.kill(brief.pid, signal.SIGKILL)
            await eventually(lambda: gone([brief]))
            return await start_launcher(number)

        fleet._start_launcher = later
        for shard in fleet.shards:
            os.kill(shard.launcher.pid, signal.SIGKILL)
        end = await engine.wait(brief.id)
        assert (end.signal, end.error) in ((9, ""), (0, UNSEEN)) and end.code in (137, 125)
        assert (await engine.wait(box.id)).code == 5
        await eventually(lambda: engine.find(box.id).output.closed.done())
        assert await text_of(engine, box.id) == b"".join(b"%d\n" % i for i in range(40))
        await started.attachment.write(b"6\n")
        assert (await started.attachment.wait()).code == 6
        await started.attachment.close()
        await engine.reset()

    asyncio.run(main())


@pytest.mark.parametrize("turns", [5, 40, 150])
def test_launcher_killed_while_launching(home, turns):
    async def main() -> None:
        engine = await opened(home)
        work = [asyncio.ensure_future(engine.run(SLEEP)) for _ in range(30)]
        execs = await engine.run(SLEEP)
        work += [asyncio.ensure_future(engine.exec(execs.sandbox.id, SLEEP.process)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        killed = kill_launchers(engine)
        ends = await asyncio.gather(*work, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                assert isinstance(end, JoeyError), repr(end)
        await replaced(engine, killed)
        await consistent(engine, sum(not isinstance(end, BaseException) for end in ends[30:]))
        assert (await engine.run(SLEEP)).sandbox.state == "running"
        await engine.reset()

    asyncio.run(main())


def test_launcher_killed_while_no_engine_is_there(home):
    with engine_process(home, "hold", "10") as child:
        assert child.stdout.readline()

    async def launchers() -> list[int]:
        from joey.host.launcher import connect

        found = []
        for path in (home / "run").glob("launcher-?.sock"):
            launcher = await connect(path)
            found.append(launcher.pid)
            launcher.close()
        return found

    for pid in asyncio.run(launchers()):
        os.kill(pid, signal.SIGKILL)

    import time

    time.sleep(1.2)  # some end, and pipes fill, while nobody is there

    async def check(engine: Engine) -> None:
        assert len(await consistent(engine)) == 10
        ended = [box for box in await engine.list(Filter(all=True)) if box.state == "exited"]
        assert sorted(box.name for box in ended) == ["e0", "e1"]
        assert {(box.exit.code, box.exit.error) for box in ended} == {(125, UNSEEN)}

        async def lines() -> list[bytes]:
            return (await text_of(engine, "t5")).split()

        before = len(await lines())
        await eventually(lambda: engine.find("t5").output is not None)
        while len(found := await lines()) < before + 10:
            await asyncio.sleep(0.01)
        assert found == [b"%d" % i for i in range(len(found))] and len(found) > 40
        await engine.kill("t3", 9)
        assert (await engine.wait("t3")).signal == 9

    taken_over(home, check)


def test_worker_killed(home):
    async def main() -> None:
        engine = await opened(home, slots=8)
        for _ in range(5):
            work = [asyncio.ensure_future(engine.run(SLEEP)) for _ in range(10)]
            await asyncio.sleep(0.002)
            os.kill((await engine.machine.fleet.worker()).launcher.pid, signal.SIGKILL)
            ends = await asyncio.gather(*work, return_exceptions=True)
            assert all(isinstance(end, Broken) or not isinstance(end, BaseException) for end in ends), ends
            running = (await engine.list(Filter()))[:10]
            asks = [engine.remove(box.id, force=True) for box in running]
            os.kill((await engine.machine.fleet.worker()).launcher.pid, signal.SIGKILL)
            await asyncio.gather(*asks)
        assert (await engine.run(SLEEP)).sandbox.state == "running"
        await engine.reset()

    asyncio.run(main())


# --- records and reality differ --------------------------------------------------------------------------------------


def test_a_launch_of_which_is_not_written_down_where_is_unknown(home):
    """The engine ended between launch and commit: nobody was answered, and what is ended was not killed by anybody."""

    async def main() -> None:
        engine = await opened(home)
        box = engine.find((await engine.run(SLEEP)).sandbox.id)
        pid = box.record.pid
        starting = msgspec.structs.replace(box.record, phase=Phase.STARTING, run=Run.LAUNCHING, pid=None, started=None)
        engine.store.save(msgspec.structs.replace(box.row(), slot="", base=0, record=starting))
        await engine.close()
        engine = await opened(home)
        end = await engine.wait(box.id)
        assert (end.code, end.error) == (125, UNSEEN) and not os.path.exists(f"/proc/{pid}/exe")
        assert await consistent(engine) == []
        assert (await engine.start(box.id)).state == "running"
        await engine.reset()

    asyncio.run(main())


def test_output_that_was_not_read_yet_when_the_end_was_written_down(home):
    async def main() -> None:
        engine = await opened(home)
        spec = SandboxSpec(
            image="host", process=Process(argv=("sh", "-c", "read x; echo out; echo err >&2"), stdin=True)
        )
        started = await engine.run(spec, attach=True)
        box = engine.find(started.sandbox.id)
        for stream in box.output._streams:  # as if killed before it came to that
            asyncio.get_running_loop().remove_reader(stream.fd)
        engine.acknowledgements.add = lambda *_, **__: None
        await started.attachment.write(b"\n")
        await engine.wait(box.id)
        await started.attachment.close()
        await engine.close()
        engine = await opened(home)
        assert sorted((await text_of(engine, box.id)).splitlines()) == [b"err", b"out"]
        await engine.reset()

    asyncio.run(main())


def test_what_runs_without_a_record_is_ended(home):
    """The engine ended before the record was on disk: in a slot of its own, and in the kept slot of another run."""

    async def main() -> None:
        engine = await opened(home)
        kept = await engine.create(SandboxSpec(image="host", process=Process(argv=("sh", "-c", "test -e /x || > /x"))))
        await engine.start(kept.id)
        await engine.wait(kept.id)
        await eventually(lambda: not engine.find(kept.id).record.held)
        await engine.store.flush()
        engine.store.save = engine.store.delete = lambda *_: None  # from here on nothing reaches the disk
        lost = (await engine.run(SLEEP)).sandbox
        engine.find(kept.id).request = None
        engine.find(kept.id).spec = SLEEP
        again = await engine.start(kept.id)
        await engine.close()
        engine = await opened(home)
        assert [box.id for box in await engine.list(Filter(all=True))] == [kept.id]
        assert await consistent(engine) == []
        await eventually(lambda: gone((lost, again)))
        assert engine.find(kept.id).record.run is Run.NONE
        await engine.start(kept.id)
        assert (await engine.wait(kept.id)).code == 0
        await engine.reset()

    asyncio.run(main())
