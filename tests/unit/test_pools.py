"""Warm pools without an engine: handed out once, refilled, replaced, never while somebody else is in a hurry."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from joey.engine.pools import Pool, Pools
from joey.model import codec
from joey.model.errors import Invalid, JoeyError, NotFound, Unenforceable
from joey.model.pool import PoolSpec, builtins, check, merged, warm
from joey.model.resources import Resources
from joey.model.spec import HealthCheck, Mount, Process, Restart, SandboxSpec

INIT = SandboxSpec(image="host", init=True, entrypoint=())


class Warmed:
    """A member: a number."""

    def __init__(self, id: str) -> None:
        self.id, self.alive, self.discarded = id, True, False


class Host:
    """Starts members at once, or as a test wants it."""

    def __init__(self) -> None:
        self.made: list[Warmed] = []
        self.under_way = self.most = 0
        self.failing: JoeyError | None = None
        self.busy = False
        self.told: list[str] = []
        self.gate: asyncio.Event | None = None

    async def start_member(self, pool: Pool[Warmed]) -> Warmed:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.under_way -= 1
        if self.failing:
            raise self.failing
        self.made.append(Warmed(str(len(self.made))))
        return self.made[-1]

    def usable(self, member: Warmed) -> bool:
        return member.alive

    def discard(self, member: Warmed) -> None:
        member.discarded = True

    def crowded(self) -> bool:
        return self.busy

    def tell_pool(self, pool: Pool[Warmed], type: str, **data: str | int) -> None:
        self.told.append(type)

    @property
    def warm(self) -> int:
        return sum(not one.discarded for one in self.made)


def story(work: Callable[[Host, Pools[Warmed]], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        host = Host()
        pools: Pools[Warmed] = Pools(host)
        try:
            await asyncio.wait_for(work(host, pools), 10)
        finally:
            await pools.close()

    asyncio.run(main())


async def until(met: Callable[[], bool]) -> None:
    for _ in range(2000):
        if met():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("never")


def test_filled_handed_out_once_and_refilled():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=5, max_starting=2))
        await pools.filled(pool)
        assert len(pool.ready) == 5 and host.most == 2 and host.told == ["created", "filled"]
        taken = [pools.take(pool) for _ in range(7)]
        assert len({one.id for one in taken if one}) == 5 and taken[5:] == [None, None]
        assert (pool.handed_out, pool.missed) == (5, 2)
        await pools.filled(pool)
        assert not {one.id for one in taken if one} & pool.members.keys() and host.warm == 10

    story(work)


def test_what_has_died_is_replaced_and_not_handed_out():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=3))
        await pools.filled(pool)
        host.made[0].alive = False
        assert pools.take(pool) is host.made[1] and host.made[0].discarded
        pools.lost(host.made[2].id)
        assert not pool.ready
        pools.lost(host.made[1].id)  # handed out: not its any more
        await until(lambda: len(pool.ready) == 3)

    story(work)


def test_not_while_others_are_in_a_hurry():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        host.busy = True
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=2))
        await asyncio.sleep(0.05)
        assert not host.made
        host.busy = False
        await pools.filled(pool)

    story(work)


def test_what_cannot_be_started_is_said_and_tried_again():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        host.failing = JoeyError("image", "there is none")
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=2))
        await pools.filled(pool)
        assert pool.view().error == "image: there is none" and not pool.ready and pools.take(pool) is None
        host.failing = None
        await until(lambda: len(pool.ready) == 2)
        assert pool.view().error == ""

    story(work)


def test_members_that_end_at_once_do_not_make_a_storm():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=1))
        waiting = asyncio.ensure_future(pools.filled(pools.put("", PoolSpec(name="p", spec=INIT, size=2))))
        await until(lambda: bool(pool.members))
        pools.lost(next(iter(pool.members)))
        await waiting  # it will not be full
        for _ in range(100):
            if pool.members:
                pools.lost(next(iter(pool.members)))
            await asyncio.sleep(0.002)
        assert len(host.made) < 5 and "ended" in pool.view().error

    story(work)


def test_another_size_keeps_them_another_spec_does_not():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=4))
        await pools.filled(pool)
        pools.put("", PoolSpec(name="p", spec=INIT, size=2))
        assert [one.discarded for one in host.made] == [False, False, True, True]
        host.gate = asyncio.Event()
        pools.put("", PoolSpec(name="p", spec=INIT, size=3))
        await until(lambda: host.under_way == 1)
        pools.put("", PoolSpec(name="p", spec=SandboxSpec(image="other"), size=3))
        assert all(one.discarded for one in host.made) and not pool.ready
        host.gate.set()
        await pools.filled(pool)
        assert host.made[4].discarded and len(pool.ready) == 3  # it was begun as the old one

    story(work)


def test_removed_with_what_is_under_way():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        host.gate = asyncio.Event()
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=2))
        await until(lambda: host.under_way == 2)
        waiting = asyncio.ensure_future(pools.filled(pool))
        await asyncio.sleep(0)
        pools.remove(pool)
        await waiting
        host.gate.set()
        await until(lambda: len(host.made) == 2 and host.warm == 0)
        with pytest.raises(NotFound):
            pools.get("p", "")

    story(work)


def test_owners_do_not_share():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        mine, other = (pools.put(owner, PoolSpec(name="p", spec=INIT, size=1)) for owner in ("a", "b"))
        await pools.filled(mine)
        await pools.filled(other)
        assert pools.get("p", "a") is mine and pools.find("p", "b") is other and [*pools.list("a")] == [mine]
        with pytest.raises(NotFound):
            pools.get("p", "")
        with pytest.raises(JoeyError, match="2 owners"):
            pools.find("p", None)
        first, second = pools.take(mine), pools.take(other)
        assert first is not None and second is not None and first is not second

    story(work)


def test_given_back_it_is_the_next():
    async def work(host: Host, pools: Pools[Warmed]) -> None:
        pool = pools.put("", PoolSpec(name="p", spec=INIT, size=2))
        await pools.filled(pool)
        one = pools.take(pool)
        assert one is not None
        pools.give_back(pool, one)
        assert pools.take(pool) is one and pool.handed_out == 1

    story(work)


# --- what can be changed on a warm one ------------------------------------------------------------------------------


LATER: list[dict[str, Any]] = [
    {"proxy_token": "0123456789"},
    {"name": "n"}, {"labels": {"a": "b"}}, {"timeout": 3.0}, {"idle_timeout": 3.0}, {"on_timeout": "pause"},
    {"restart": Restart(policy="always")}, {"health": HealthCheck(tcp=1)}, {"remove": True}, {"stop_timeout": 1.0},
    {"resources": Resources(memory=1 << 30)}, {"process": Process(env={"A": "b"}, cwd="/tmp")},
]  # fmt: skip


@pytest.mark.parametrize("change", LATER, ids=str)
def test_may_be_chosen_when_handed_out(change: dict[str, Any]):
    check("p", INIT, codec.convert(SandboxSpec, builtins(INIT) | codec.to_builtins(change)))


@pytest.mark.parametrize(
    "change, field",
    [
        ({"image": "other"}, "image"),
        ({"hostname": "h"}, "hostname"),
        ({"network": "host"}, "network"),
        ({"mounts": [codec.to_builtins(Mount(source="/a", target="/b"))]}, "mounts"),
        ({"seccomp": "unconfined"}, "seccomp"),
        ({"process": {"argv": ["true"]}}, "process.argv"),
        ({"process": {"user": "1"}}, "process.user"),
        ({"process": {"capabilities": []}}, "process.capabilities"),
        ({"resources": {"disk": 1 << 30}}, "resources.disk"),
    ],
    ids=str,
)
def test_may_not(change: dict[str, Any], field: str):
    with pytest.raises((Invalid, Unenforceable)) as caught:
        check("p", INIT, codec.convert(SandboxSpec, merged(change, builtins(INIT))))
    assert caught.value.where == field and "'p'" in caught.value.message


def test_every_field_is_either_free_or_compared():
    """A field that is new to the model is refused until somebody says that it may change."""
    for name in SandboxSpec.__struct_fields__:
        if name in ("resources", "process"):  # have fields of their own, see above
            continue
        other = replace(INIT, **{name: "host" if name == "network" else "otherwise"})
        if any(name in change for change in LATER) or name == "pull":
            check("p", INIT, other)
        else:
            with pytest.raises(Invalid):
                check("p", INIT, other)


def test_env_of_a_program_that_runs_cannot_be_changed():
    program = SandboxSpec(image="host", process=Process(argv=("sleep", "1")))
    with pytest.raises(Invalid) as caught:
        check("p", program, codec.convert(SandboxSpec, merged({"process": {"env": {"A": "b"}}}, builtins(program))))
    assert caught.value.where == "process.env"


def test_what_is_not_mentioned_is_the_pools():
    pool = builtins(SandboxSpec(image="host", labels={"a": "1"}, process=Process(env={"A": "1"}, cwd="/tmp")))
    found = merged({"labels": {"b": "2"}, "process": {"env": {"B": "2"}}, "resources": {"pids": 5}}, pool)
    assert found["labels"] == {"a": "1", "b": "2"} and found["process"]["env"] == {"A": "1", "B": "2"}
    assert found["process"]["cwd"] == "/tmp" and found["resources"]["pids"] == 5
    assert found["resources"]["memory"] == Resources.default().memory and pool["labels"] == {"a": "1"}


def test_a_member_is_started_without_what_acts_in_time():
    spec = SandboxSpec(
        image="host", timeout=5.0, idle_timeout=1.0, restart=Restart(policy="always"), health=HealthCheck(tcp=1)
    )
    found = warm(spec)
    assert found.remove and found.timeout is found.idle_timeout is found.health is None and found.restart == Restart()


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"name": "a b"}, "name"),
        ({"size": -1}, "size"),
        ({"size": 10_001}, "size"),
        ({"max_starting": 0}, "max_starting"),
    ],
)
def test_bad_pools(fields: dict[str, Any], name: str):
    with pytest.raises(Invalid) as caught:
        PoolSpec(**{"name": "p", "spec": INIT} | fields)
    assert caught.value.where == name
