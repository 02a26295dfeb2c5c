"""The ring of events and its readers, the heap of timers, the registry of names: without an engine."""

import asyncio
import itertools

import pytest

from joey.engine.events import LOST, Events, Wanted
from joey.engine.interface import Filter
from joey.engine.owners import Registry
from joey.engine.timers import Timers
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.views import Sandbox


def ring(kept=5, last=0):
    return Events(itertools.count(last + 1).__next__, last, kept)


def fill(events, count):
    for number in range(count):
        events.emit("sandbox.started", sandbox=f"{number:024x}", name=f"n{number}")


async def ids(events, after=None, **more):
    return [event.id async for event in events.read(after, follow=False, wanted=Wanted(**more))]


# ---- events


def test_events_are_kept_so_many_and_the_gap_is_told():
    async def main():
        events = ring()
        fill(events, 3)
        assert await ids(events) == [1, 2, 3] and await ids(events, after=1) == [2, 3] and await ids(events, 3) == []
        fill(events, 6)
        assert await ids(events) == [5, 6, 7, 8, 9]
        found = [event async for event in events.read(2, follow=False, wanted=Wanted(types=("no such",)))]
        assert [(event.type, event.id, event.data) for event in found] == [(LOST, 4, {"count": 2})]

    asyncio.run(main())


def test_after_a_restart_nothing_is_lost_that_nobody_has_missed():
    async def main():
        events = ring(last=41)
        assert await ids(events, after=41) == []
        fill(events, 2)
        assert await ids(events, after=41) == [42, 43]
        lost = [event async for event in events.read(30, follow=False, wanted=Wanted())]
        assert lost[0].data == {"count": 11} and [event.id for event in lost[1:]] == [42, 43]

    asyncio.run(main())


def test_a_slow_reader_holds_nothing_and_is_told():
    async def main():
        events = ring()
        reader = events.read(None, follow=True, wanted=Wanted())
        first = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        fill(events, 1)
        assert (await first).id == 1
        fill(events, 20)
        gap = await anext(reader)
        assert (gap.type, gap.data) == (LOST, {"count": 15})
        assert [(await anext(reader)).id for _ in range(5)] == [17, 18, 19, 20, 21]
        waiting = asyncio.ensure_future(anext(reader, None))
        await asyncio.sleep(0)
        events.close()
        assert await waiting is None

    asyncio.run(main())


def test_many_follow_and_one_that_leaves_harms_nobody():
    async def main():
        events = ring(kept=1000)

        async def follow():
            found = []
            async for event in events.read(None, follow=True, wanted=Wanted()):
                found.append(event.id)
                if len(found) == 700:
                    return found

        readers = [asyncio.ensure_future(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        readers.pop().cancel()
        for _ in range(7):
            fill(events, 100)
            await asyncio.sleep(0)
        assert await asyncio.gather(*readers) == [list(range(1, 701))] * 2

    asyncio.run(main())


def test_what_a_reader_wants():
    async def main():
        events = ring(kept=100)
        events.emit("sandbox.started", sandbox="ab" * 12, name="one", labels={"a": "1"}, owner="k")
        events.emit("process.started", sandbox="cd" * 12, name="two", labels={"a": "2"})
        events.emit("pool.created")
        for wanted, found in (
            ({"types": ("sandbox.started", "pool.")}, [1, 3]),
            ({"types": ("sandbox",)}, []),
            ({"refs": ("abab", "two")}, [1, 2]),
            ({"refs": ("a",)}, []),
            ({"labels": {"a": None}}, [1, 2]),
            ({"labels": {"a": "2"}}, [2]),
            ({"owner": "k"}, [1]),
            ({"owner": ""}, [2, 3]),
            ({}, [1, 2, 3]),
        ):
            assert await ids(events, **wanted) == found, wanted

    asyncio.run(main())


# ---- timers


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_timers_come_in_order_and_only_when_due():
    async def main():
        clock, came = Clock(), []
        timers = Timers(clock)
        for at in (1005.0, 1001.0, 1003.0, 1001.0):
            timers.at(at, lambda at=at: came.append(at))
        cancelled = timers.at(1002.0, lambda: came.append("cancelled"))
        cancelled.cancel()
        cancelled.cancel()
        assert len(timers) == 4
        timers.look()
        assert came == []
        clock.now = 1003.0
        timers.look()
        assert came == [1001.0, 1001.0, 1003.0] and len(timers) == 1
        timers.close()
        clock.now = 2000.0
        timers.look()
        assert len(came) == 3

    asyncio.run(main())


def test_a_timer_that_is_due_comes_by_itself_also_when_made_by_another():
    async def main():
        timers, done = Timers(), asyncio.get_running_loop().create_future()
        timers.at(0.0, lambda: timers.at(1.0, lambda: done.set_result(True)))
        assert await asyncio.wait_for(done, 5)

    asyncio.run(main())


def test_one_that_fails_does_not_keep_others_from_coming(caplog):
    async def main():
        timers, came = Timers(), []
        timers.at(1.0, lambda: 1 / 0)
        timers.at(2.0, lambda: came.append(1))
        timers.look()
        assert came == [1]

    asyncio.run(main())
    assert "a timer failed" in caplog.text


def test_cancelled_timers_take_no_room():
    async def main():
        timers = Timers()
        keep = timers.at(1e12, lambda: None)
        for _ in range(20_000):
            timers.at(1e12, lambda: None).cancel()
        assert len(timers) == 1 and len(timers._heap) < 3000
        keep.cancel()
        assert len(timers) == 0
        timers.close()

    asyncio.run(main())


# ---- names and owners


class Box:
    def __init__(self, id, created, owner=""):
        self.id, self.name, self.owner, self.created = id, "", owner, created

    def view(self):
        return Sandbox(id=self.id, name=self.name, image="", argv=(), state="running", created=self.created)


def registry(count=6):
    found = Registry()
    for number in range(count):
        box = Box(f"{number:02x}" * 12, float(number), owner="k" if number % 2 else "")
        found.claim(box, f"n{number // 2}")
        found.add(box)
    return found


def test_names_belong_to_owners():
    boxes = registry()
    assert boxes.find("n0").owner == "" and boxes.find("n0", "k").owner == "k"
    with pytest.raises(Conflict, match="taken"):
        boxes.claim(Box("ff" * 12, 9.0, "k"), "n0")
    with pytest.raises(NotFound):
        boxes.find("00" * 12, "k")
    with pytest.raises(NotFound):
        boxes.find("0", None)
    with pytest.raises(Conflict, match="2 ids"):
        registry_with_twins().find("abc")
    boxes.drop(boxes.find("n1", ""))
    assert boxes.find("n1").owner == "k"  # the administrator finds everybody's
    with pytest.raises(NotFound):
        boxes.find("n1", "")
    for name in ("", "n1"):
        boxes.claim(box := Box("ee" * 12, 9.0), name)
        assert box.name
    with pytest.raises(Invalid, match="name"):
        boxes.claim(Box("ee" * 12, 9.0), "no/name")


def registry_with_twins():
    found = Registry()
    for id in ("abc1" * 6, "abc2" * 6):
        found.add(Box(id, 1.0))
    return found


def test_pages_of_a_list_go_on_after_a_cursor_that_is_gone():
    boxes = registry()
    ids = [view.id for view in boxes.list(Filter())]
    assert ids == sorted(ids, reverse=True) and len(ids) == 6
    page = boxes.list(Filter(limit=2))
    assert [view.id for view in page] == ids[:2]
    assert [view.id for view in boxes.list(Filter(limit=2, cursor=ids[1]))] == ids[2:4]
    boxes.drop(boxes.find(ids[1]))
    assert [view.id for view in boxes.list(Filter(cursor=ids[1]))] == ids[2:]
    assert [view.id for view in boxes.list(Filter(owner="k", limit=1, cursor=ids[2]))] == [ids[4]]
    with pytest.raises(Invalid, match="cursor"):
        boxes.list(Filter(cursor="nonsense"))
