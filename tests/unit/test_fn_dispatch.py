"""From invocations to instances, in virtual time."""

import asyncio

import pytest

from fn_lab import Lab, deployed, failed, lasting, unloadable, virtual
from joey.functions.dispatch import Bounds, Dispatcher
from joey.functions.wire import Head, StartFailed
from joey.model.errors import Broken, Busy, TooMany, Unenforceable


def run(work, lab=None, **bounds):
    lab = lab or Lab()

    async def main():
        dispatcher = Dispatcher(lab.start, bounds=Bounds(**bounds))
        try:
            return await work(dispatcher, lab)
        finally:
            await dispatcher.close()
            assert not lab.alive, "instances are left"

    return virtual(main)


async def invoke(dispatcher, one, body=b"x"):
    return await dispatcher.invoke(one, Head("id"), body, 3.0)


def test_the_first_invocation_is_cold_and_the_next_is_not():
    async def work(dispatcher, lab):
        one = deployed()
        first, second = await invoke(dispatcher, one), await invoke(dispatcher, one)
        assert (first.answer.body, first.cold, second.cold) == (b"x", True, False)
        assert first.instance == second.instance

    run(work)


def test_a_thousand_at_once_get_an_instance_each_and_are_done_in_little_more_than_their_time():
    async def work(dispatcher, lab):
        one, loop = deployed(), asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.gather(*(invoke(dispatcher, one) for _ in range(1000)))
        assert loop.time() - begun < 1.0 + 1000 / Bounds().starts * 0.01 + 0.2
        assert lab.most_alive == 1000
        assert lab.most_starting == Bounds().starts

    run(work, Lab(lasting(1.0)))


def test_short_invocations_do_not_get_an_instance_each():
    async def work(dispatcher, lab):
        one = deployed()
        for _ in range(5):
            await invoke(dispatcher, one)  # how long it takes is known now
        await asyncio.gather(*(invoke(dispatcher, one) for _ in range(500)))
        assert lab.most_alive < 30

    run(work, Lab(lasting(0.001), seconds=0.05))


def test_an_instance_takes_as_many_as_it_has_places():
    async def work(dispatcher, lab):
        one = deployed(concurrency=10)
        await asyncio.gather(*(invoke(dispatcher, one) for _ in range(100)))
        assert lab.most_alive == 10
        assert lab.most_under_way == 100

    run(work, Lab(lasting(1.0)))


def test_idle_instances_go_and_the_last_stays_for_its_keep_alive():
    async def work(dispatcher, lab):
        one = deployed(keep_alive=300)
        await asyncio.gather(*(invoke(dispatcher, one) for _ in range(50)))
        await asyncio.sleep(200)
        assert len(lab.alive) == 1
        await asyncio.sleep(200)
        assert not lab.alive
        assert not dispatcher.pools

    run(work, Lab(lasting(1.0)))


def test_what_comes_every_ten_minutes_is_warm_only_then():
    async def work(dispatcher, lab):
        one, cold, warm_seconds = deployed(), 0, 0.0
        for round in range(40):
            cold_now = (await invoke(dispatcher, one)).cold
            if round > 20:
                cold += cold_now
            for _ in range(60):
                await asyncio.sleep(10)
                warm_seconds += 10 * bool(lab.alive) if round > 20 else 0
        assert cold == 0
        assert warm_seconds < 0.4 * 19 * 600

    run(work)


def test_provisioned_instances_are_there_before_anybody_asks_and_stay():
    async def work(dispatcher, lab):
        pool = dispatcher.pool(deployed())
        dispatcher.limit(pool, 5)
        await asyncio.sleep(2)
        assert len(lab.alive) == 5
        next(iter(lab.alive)).end("crashed")
        await asyncio.sleep(3600)
        assert len(lab.alive) == 5
        assert not (await invoke(dispatcher, pool.deployed)).cold

    run(work)


def test_one_that_breaks_is_replaced_for_who_waits():
    async def work(dispatcher, lab):
        one = deployed(max_instances=1)
        tasks = [asyncio.ensure_future(invoke(dispatcher, one)) for _ in range(3)]
        await asyncio.sleep(0.5)

        async def breaks(head, body):
            next(iter(lab.alive)).end("exit 1")
            return failed("Runtime.ExitError")

        lab.handler = breaks
        answers = await asyncio.gather(*tasks)
        assert [one.answer.failure is None for one in answers] == [True, False, False]
        assert len(lab.started) == 2

    run(work, Lab(lasting(1.0)))


def test_code_that_cannot_be_loaded_is_told_and_not_tried_for_ever():
    async def work(dispatcher, lab):
        lab.failures = [unloadable() for _ in range(2000)]
        answers = await asyncio.gather(*(invoke(dispatcher, deployed()) for _ in range(500)), return_exceptions=True)
        assert all(isinstance(answer, StartFailed) for answer in answers)
        assert len(lab.started) < 200  # three rounds of those that start at a time

    run(work)


def test_a_full_node_makes_wait_and_then_serves():
    async def work(dispatcher, lab):
        lab.failures = [Busy("sandboxes", "full")] * 3
        assert (await invoke(dispatcher, deployed())).answer.body == b"x"

    run(work)


def test_a_node_that_stays_full_is_told():
    async def work(dispatcher, lab):
        lab.failures = [Busy("sandboxes", "full")] * 1000
        with pytest.raises(Busy):
            await invoke(dispatcher, deployed())

    run(work)


def test_who_waits_is_bounded_in_number_and_time():
    async def work(dispatcher, lab):
        one = deployed(max_instances=1)
        tasks = [asyncio.ensure_future(invoke(dispatcher, one)) for _ in range(20)]
        await asyncio.sleep(0.1)
        with pytest.raises(TooMany):
            await asyncio.gather(*tasks[11:])
        done = await asyncio.gather(*tasks[:11], return_exceptions=True)
        assert sum(isinstance(one, TooMany) for one in done) == 10 - 4 + 1
        function = dispatcher.functions["", "f"]
        assert function.running == function.waiting == dispatcher.waiting == 0
        assert function.stats.throttles == {"waiting": 10, "seconds": 6}

    run(work, Lab(lasting(3.0)), function_waiting=10, seconds=10.0)


def test_reserved_is_what_it_may_have_and_what_others_may_not():
    async def work(dispatcher, lab):
        a, b = deployed("a", "k"), deployed("b", "k")
        dispatcher.reserve("k", "a", 3)
        others = [asyncio.ensure_future(invoke(dispatcher, b)) for _ in range(20)]
        await asyncio.sleep(0.5)
        refused = [task for task in others if task.done() and isinstance(task.exception(), TooMany)]
        assert len(refused) == 20 - (10 - 3)
        mine = [asyncio.ensure_future(invoke(dispatcher, a)) for _ in range(5)]
        done = await asyncio.gather(*mine, return_exceptions=True)
        assert sum(isinstance(one, TooMany) for one in done) == 2
        await asyncio.wait(others)
        dispatcher.reserve("k", "a", None)
        assert (await invoke(dispatcher, a)).answer.body == b"x"

    run(work, Lab(lasting(1.0)), key_running=10)


def test_reserving_nothing_stops_a_function():
    async def work(dispatcher, lab):
        dispatcher.reserve("", "f", 0)
        with pytest.raises(TooMany):
            await invoke(dispatcher, deployed())

    run(work)


def test_a_crowd_of_one_function_does_not_keep_anothers_first_from_starting():
    async def work(dispatcher, lab):
        crowd = [asyncio.ensure_future(invoke(dispatcher, deployed("crowd"))) for _ in range(1000)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await invoke(dispatcher, deployed("single"))
        assert loop.time() - begun < 1.0 + 2.5 * 0.1
        await asyncio.gather(*crowd)

    run(work, Lab(lasting(1.0), seconds=0.1), starts=4, seconds=300.0)


def test_who_leaves_leaves_nothing():
    async def work(dispatcher, lab):
        one = deployed(max_instances=1)
        tasks = [asyncio.ensure_future(invoke(dispatcher, one)) for _ in range(100)]
        await asyncio.sleep(0.3)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.wait(tasks)
        function = dispatcher.functions["", "f"]
        assert function.running == function.waiting == dispatcher.waiting == 0
        assert (await invoke(dispatcher, one)).answer.body == b"x"

    run(work, Lab(lasting(0.1)))


def test_an_old_revision_serves_what_it_has_and_goes():
    async def work(dispatcher, lab):
        old, new = deployed(max_instances=1), deployed(timeout=9)
        tasks = [asyncio.ensure_future(invoke(dispatcher, old)) for _ in range(5)]
        await asyncio.sleep(0.5)
        dispatcher.retire(dispatcher.pools[old.key])
        await invoke(dispatcher, new)
        await asyncio.gather(*tasks)
        await asyncio.sleep(2)
        assert list(dispatcher.pools) == [new.key]
        assert len(lab.alive) == 1

    run(work, Lab(lasting(1.0)))


def test_a_stream_holds_its_place_to_its_end():
    async def work(dispatcher, lab):
        async def pieces():
            for piece in (b"a", b"b"):
                yield piece

        async def stream(head, body):
            answer = await lasting(0)(head, body)
            answer.body, answer.chunks = None, pieces()
            return answer

        lab.handler = stream
        one = deployed()
        served = await invoke(dispatcher, one)
        pool = dispatcher.pools[one.key]
        assert pool.running == 1
        assert [piece async for piece in served.answer.chunks] == [b"a", b"b"]
        assert pool.running == 0
        served = await invoke(dispatcher, one)
        await served.answer.chunks.aclose()
        await asyncio.sleep(0.1)
        assert pool.running == 0

    run(work)


def test_a_start_that_fails_by_our_fault_is_tried_again_and_not_for_ever():
    async def work(dispatcher, lab):
        lab.failures = [Broken("fork", "no")] * 100
        answers = await asyncio.gather(*(invoke(dispatcher, deployed()) for _ in range(100)))
        assert len(answers) == 100
        lab.failures = [Broken("fork", "no")] * 100_000
        with pytest.raises(Broken):
            await invoke(dispatcher, deployed("other"))
        lab.failures = [Unenforceable("disk", "no")] * 2
        with pytest.raises(Unenforceable):
            await invoke(dispatcher, deployed("third"))
        lab.failures = []
        assert (await invoke(dispatcher, deployed("third"))).answer.body == b"x"

    run(work)


def test_invocations_that_last_longer_than_those_before_get_instances_soon():
    async def work(dispatcher, lab):
        one, loop = deployed(), asyncio.get_running_loop()
        for _ in range(10):
            await invoke(dispatcher, one)
        lab.handler = lasting(1.0)
        begun = loop.time()
        await asyncio.gather(*(invoke(dispatcher, one) for _ in range(200)))
        assert loop.time() - begun < 1.5
        assert lab.most_alive > 150

    run(work, Lab(lasting(0.001), seconds=0.05))


def test_a_full_node_takes_back_what_is_idle():
    async def work(dispatcher, lab):
        await asyncio.gather(*(invoke(dispatcher, deployed(f"f{n}", "k")) for n in range(10)))
        kept = dispatcher.pool(deployed("kept", "k"))
        dispatcher.limit(kept, 2)
        await asyncio.sleep(1)
        full = lab.start

        async def start(one):
            if len(lab.alive) >= 12:
                raise Busy("sandboxes", "full")
            return await full(one)

        dispatcher._start = start
        answers = await asyncio.gather(*(invoke(dispatcher, deployed(f"g{n}", "k")) for n in range(5)))
        assert len(answers) == 5
        assert len(kept.members) == 2
        assert len(lab.alive) <= 12

    run(work)


def test_an_invocation_whose_caller_has_left_has_its_place_to_its_end():
    async def work(dispatcher, lab):
        one, loop = deployed(), asyncio.get_running_loop()
        left = asyncio.ensure_future(invoke(dispatcher, one))
        await asyncio.sleep(0.5)
        left.cancel()
        await asyncio.wait([left])
        assert lab.under_way == 1
        begun = loop.time()
        await invoke(dispatcher, one)  # by another instance: that one is busy
        assert loop.time() - begun < 5
        assert len(lab.started) == 2
        await asyncio.sleep(10)
        pool = dispatcher.pools[one.key]
        assert (lab.under_way, pool.running, dispatcher.functions["", "f"].running) == (0, 0, 0)

    async def lasts(head, body):
        return await lasting(4.0 if len(lab.started) > 1 else 8.0)(head, body)

    lab = Lab(lasts)
    run(work, lab)
