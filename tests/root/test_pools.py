"""Warm pools of the real engine: handed out fast and once, also by engines that are killed in the middle of it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from joey.engine import failpoints
from joey.engine.interface import Filter
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound
from joey.model.limits import Limits, NodeLimits
from joey.model.pool import PoolSpec
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec
from machine_state import eventually
from root.conftest import output
from root.test_recovery import home, reaper  # noqa: F401

pytestmark = pytest.mark.timeout(60)
INIT = SandboxSpec(image="host", init=True, entrypoint=(), remove=True)


def replaced(**fields: object) -> SandboxSpec:
    from msgspec.structs import replace

    return replace(INIT, **fields)


async def said(engine: Engine, ref: str, *argv: str) -> bytes:
    process = (await engine.inspect(ref)).spec.process
    attached = await engine.exec(ref, Process(argv=argv, env=process.env, cwd=process.cwd))
    out, _ = await output(attached)
    await attached.close()
    return out


def opened(home: Path, work, slots: int = 2) -> None:  # noqa: F811
    async def main() -> None:
        engine = Engine(Instance.open(home), slots=slots)
        try:
            await engine.open()
            await asyncio.wait_for(work(engine), 40)
        finally:
            await engine.reset()

    asyncio.run(main())


def test_handed_out_as_asked_for(home: Path) -> None:  # noqa: F811
    async def work(engine: Engine) -> None:
        engine.limit(lambda owner: Limits(sandboxes=4, memory=4 << 30), NodeLimits())
        pool = await engine.pool_create(PoolSpec(name="p", spec=INIT, size=2), owner="key", filled=True)
        assert pool.ready == 2 and not await engine.list(Filter(all=True)) and engine.admission.load().sandboxes == 2
        events = [event.type async for event in engine.events()]
        assert events == ["pool.created", "pool.filled"]
        wanted = replaced(
            name="mine", labels={"a": "b"}, timeout=100.0, process=Process(env={"X": "7"}, cwd="/tmp"),
            resources=Resources(memory=64 << 20, swap=0, cpus=0.5, pids=40),
        )  # fmt: skip
        with pytest.raises(NotFound):
            await engine.run(wanted, pool="p")  # not the administrator's
        with pytest.raises(Invalid, match="network"):
            await engine.run(replaced(network="host"), pool="p", owner="key")
        made = (await engine.run(wanted, pool="p", owner="key")).sandbox
        assert (made.name, made.labels, made.owner, made.state) == ("mine", {"a": "b"}, "key", "running")
        assert made.deadline is not None and made.deadline > made.created + 99
        assert await said(engine, made.id, "sh", "-c", "echo $X $PWD") == b"7 /tmp\n"
        usage = (await engine.stats([made.id]))[0].usage
        assert usage.memory_limit == 64 << 20 and usage.pids_max == 40
        with pytest.raises(Conflict, match="mine"):
            await engine.run(wanted, pool="p", owner="key")
        other = (await engine.run(INIT, pool="p", owner="key")).sandbox
        assert other.id != made.id and other.owner == "key"
        await engine.pool_remove("p", owner="key")
        assert {box.id for box in await engine.list(Filter())} == {made.id, other.id}
        assert engine.admission.load().sandboxes == 2
        await engine.remove(made.id, force=True)
        await engine.remove(other.id, force=True)
        await eventually(lambda: engine.admission.load().memory == 0)

    opened(home, work)


def test_a_warm_one_that_dies_is_replaced_and_nobody_reaches_it(home: Path) -> None:  # noqa: F811
    async def work(engine: Engine) -> None:
        await engine.pool_create(PoolSpec(name="p", spec=INIT, size=1), filled=True)
        (member,) = engine.warm.boxes.values()
        with pytest.raises(NotFound):
            engine.resolve(member.id)
        assert member.record.pid is not None
        os.kill(member.record.pid, signal.SIGKILL)
        await eventually(lambda: engine.pool("p").ready == 1 and member.id not in engine.warm.boxes)
        fresh = (await engine.run(INIT, pool="p")).sandbox
        assert fresh.id != member.id and await said(engine, fresh.id, "echo", "here") == b"here\n"

    opened(home, work)


def test_a_limit_that_cannot_be_set_leaves_nothing(home: Path) -> None:  # noqa: F811
    async def work(engine: Engine) -> None:
        await engine.pool_create(PoolSpec(name="p", spec=INIT, size=1), filled=True)
        (member,) = engine.warm.boxes
        wrong = replaced(resources=Resources(memory=64 << 20, swap=0, cpuset_cpus="9000"), name="x")
        with pytest.raises(JoeyError, match="cpuset_cpus"):
            await engine.run(wrong, pool="p")
        assert not await engine.list(Filter(all=True)) and list(engine.warm.boxes) == [member]
        assert (await engine.run(replaced(name="x"), pool="p")).sandbox.id == member

    opened(home, work)


def test_limits_hold_for_concurrent_creates(home: Path) -> None:  # noqa: F811
    async def work(engine: Engine) -> None:
        engine.limit(lambda owner: Limits(sandboxes=5), NodeLimits())
        found = await asyncio.gather(*(engine.run(INIT, owner="key") for _ in range(12)), return_exceptions=True)
        made = [one for one in found if not isinstance(one, BaseException)]
        assert len(made) == 5 and all(getattr(one, "status", 429) == 429 for one in found)
        await asyncio.gather(*(engine.remove(one.sandbox.id, force=True) for one in made))
        assert (await engine.run(INIT, owner="key")).sandbox.state == "running"

    opened(home, work)


def test_the_next_engine_goes_on(home: Path) -> None:  # noqa: F811
    async def main() -> None:
        engine = Engine(Instance.open(home), slots=0)
        await engine.open()
        await engine.pool_create(PoolSpec(name="p", spec=INIT, size=2), owner="key", filled=True)
        mine = (await engine.run(replaced(name="mine"), pool="p", owner="key")).sandbox
        members = set(engine.warm.boxes)
        load = engine.admission.load()
        await engine.close()
        engine = Engine(Instance.open(home), slots=0)
        try:
            await engine.open()
            assert (await engine.inspect("mine")).sandbox.owner == "key" and mine.id not in engine.warm.boxes
            assert members & set(engine.warm.boxes)
            assert engine.admission.load().sandboxes >= load.sandboxes
            await engine.pool_create(PoolSpec(name="p", spec=INIT, size=2), owner="key", filled=True)
            taken = {(await engine.run(INIT, pool="p", owner="key")).sandbox.id for _ in range(2)}
            assert members <= taken | set(engine.warm.boxes) and mine.id not in taken
        finally:
            await engine.reset()

    asyncio.run(asyncio.wait_for(main(), 40))


# --- killed in the middle ------------------------------------------------------------------------------------------

POINTS = [
    "pool.start.after=kill@3", "pool.take.after=kill@2", "pool.hand_out.before=kill@2", "pool.hand_out.after=kill@2",
    "store.commit.before=kill@6", "store.commit.after=kill@6", "launcher.run.before=launchers@8",
]  # fmt: skip


def first(place: Path, point: str, fd: int) -> None:
    """An engine with the failpoint: it tells whom it has handed out."""

    async def main() -> None:
        engine = Engine(Instance.open(place), slots=1)
        try:
            await engine.open()
            await engine.pool_create(PoolSpec(name="p", spec=INIT, size=3), owner="key", filled=True)
            for number in range(5):
                limits = Resources(memory=(64 + number) << 20, swap=0)
                made = await engine.run(replaced(name=f"n{number}", resources=limits), pool="p", owner="key")
                os.write(fd, f"{made.sandbox.id}\n".encode())
        except JoeyError:
            pass
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    os.environ[failpoints.VARIABLE] = point
    asyncio.run(main())


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(home: Path, point: str) -> None:  # noqa: F811
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            first(home, point, write)
        except BaseException as error:
            os.write(write, f"wrong {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as lines:
        answered = [line.rstrip("\n") for line in lines]
    os.waitpid(pid, 0)
    assert not any("wrong" in line for line in answered), answered
    assert len(set(answered)) == len(answered)

    async def work(engine: Engine) -> None:
        found = {box.id: box for box in await engine.list(Filter(all=True, owner="key"))}
        assert set(answered) <= found.keys() and len(found) <= len(answered) + 1
        assert all(box.state == "running" and box.name for box in found.values())
        assert not set(engine.warm.boxes) & found.keys()
        pools = engine.pools("key")
        if answered:
            assert [pool.name for pool in pools] == ["p"]
        for pool in pools:
            await engine.pool_create(PoolSpec(name="p", spec=INIT, size=pool.size), owner="key", filled=True)
            fresh = (await engine.run(INIT, pool="p", owner="key")).sandbox
            assert fresh.id not in found and await said(engine, fresh.id, "echo", "here") == b"here\n"
            await engine.warm.pools.filled(engine.warm.pools.get("p", "key"))
        held = [child.pid for shard in engine.machine.fleet.shards for child in await shard.launcher.list()]
        assert sorted(held) == sorted(box.record.pid or 0 for box in engine.boxes)
        load = engine.admission.load()
        assert load.sandboxes == len(engine.boxes) and load.starts == 0

    opened(home, work, slots=0)
