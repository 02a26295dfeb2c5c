"""Functions, versions, aliases, the durable queue and timers, over instances that contain nothing."""

import asyncio
import json
import time

import pytest

from fn_lab import Lab, echo, failed, lasting
from joey.functions import retries
from joey.functions.dispatch import Bounds
from joey.functions.service import Code, Functions
from joey.functions.timers import Timers
from joey.functions.wire import Answer
from joey.model.errors import Conflict, Invalid, NotFound, TooMany
from joey.model.function import Alias, AsyncConfig, FunctionSpec, Trigger


def spec(name="f", **fields):
    return FunctionSpec(name=name, handler="index.handler", **fields)


def run(work, home, lab=None, **bounds):
    lab = lab or Lab()

    async def main():
        own = Functions(lab.start, home, bounds=Bounds(**bounds))
        await own.open()
        try:
            return await work(own, lab)
        finally:
            await own.close()
            assert not lab.alive

    return asyncio.run(main())


async def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


async def over(own, id):
    await until(lambda: own.task(id, None).finished is not None)
    return own.task(id, None)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(retries, "FIRST", 0.005)


# --- functions and versions ------------------------------------------------------------------------------------------


def test_what_was_set_for_an_alias_or_a_version_goes_with_it_from_disk_too(tmp_path):
    async def first(own, lab):
        await own.create(spec(), owner="")
        await own.publish("f", owner="")
        for name in ("1", "live"):
            if name == "live":
                await own.set_alias("f", Alias(name="live", version="1"), owner="")
            await own.set_provisioned("f", name, 1, owner="")
            await own.set_async("f", name, AsyncConfig(max_retries=7), owner="")
        await own.delete_alias("f", "live", owner="")
        await own.delete_version("f", "1", owner="")

    async def second(own, lab):
        assert own.provisioned("f", owner="") == own.async_configs("f", owner="") == {}
        await own.set_alias("f", Alias(name="live", version="$LATEST"), owner="")
        assert own.async_config("f", "live", owner="").max_retries == 2

    run(first, tmp_path)
    run(second, tmp_path)


def test_a_function_is_made_changed_published_and_removed_and_outlives_the_engine(tmp_path):
    async def first(own, lab):
        made = await own.create(spec(), Code("sha256:" + "a" * 64, "aa", 1), owner="k")
        with pytest.raises(Conflict):
            await own.create(spec(), owner="k")
        await own.create(spec(), owner="other")
        one = await own.publish("f", owner="k", description="first")
        again = await own.publish("f", owner="k")
        assert (one.version, again.version) == ("1", "1")
        changed = await own.update_config("f", {"timeout": 9, "env": {"A": "b"}}, owner="k", revision=made.revision)
        assert changed.spec.timeout == 9
        with pytest.raises(Conflict):
            await own.update_config("f", {}, owner="k", revision=made.revision)
        assert (await own.publish("f", owner="k")).version == "2"
        await own.set_alias("f", Alias(name="live", version="1", weights={"2": 0.5}), owner="k")
        with pytest.raises(Conflict):
            await own.delete_version("f", "2", owner="k")
        await own.set_trigger("f", Trigger(name="web", kind="url"), owner="k")

    async def second(own, lab):
        view = own.get("f", owner="k")
        assert (view.versions, view.aliases, view.spec.timeout, view.triggers) == (("1", "2"), ("live",), 9, ("web",))
        assert own.version("f:1", owner="k").spec.timeout == 3
        assert own.version("f:1", owner="k").spec.code.startswith("sha256:a")
        address = own.trigger("f", "web", owner="k").path
        assert own.registry.addresses[address.split("/")[2]] == ("k", "f", "web")
        seen = {(await own.invoke("f:live", b"", owner="k")).version for _ in range(60)}
        assert seen == {"1", "2"}
        for missing in ("f:3", "f:nobody", "g"):
            with pytest.raises(NotFound):
                await own.invoke(missing, b"", owner="k")
        with pytest.raises(NotFound):
            own.get("f", owner="stranger")
        with pytest.raises(Conflict):
            own.get("f", owner=None)
        await own.delete("f", owner="k")
        assert [one.owner for one in own.list(owner=None)] == ["other"]

    run(first, tmp_path)
    run(second, tmp_path)
    run(lambda own, lab: _is_empty(own), tmp_path)


async def _is_empty(own):
    assert [one.owner for one in own.list(owner=None)] == ["other"]
    assert not own.registry.addresses


def test_secrets_are_not_shown(tmp_path):
    async def work(own, lab):
        view = await own.create(spec(secrets={"TOKEN": "hush"}), owner="")
        assert "hush" not in repr(view)
        assert own.version("f", owner="").spec.secrets == {"TOKEN": "hush"}
        assert "hush" not in repr(await own.publish("f", owner=""))

    run(work, tmp_path)


def test_scaling_leaves_instances_alone_and_code_replaces_them(tmp_path):
    async def work(own, lab):
        await own.create(spec(), owner="")
        first = await own.invoke("f", b"", owner="")
        await own.set_scaling("f", {"max_instances": 3, "keep_alive": 60}, owner="")
        assert (await own.invoke("f", b"", owner="")).instance == first.instance
        await own.update_code("f", Code("sha256:" + "b" * 64, "bb", 1), owner="")
        after = await own.invoke("f", b"", owner="")
        assert after.instance != first.instance
        await until(lambda: len(lab.alive) == 1)
        with pytest.raises(Invalid):
            await own.set_scaling("f", {"timeout": 3}, owner="")
        with pytest.raises(Invalid):
            await own.set_scaling("f", {"reserved": 5000}, owner="")
            await own.set_scaling("f", {"reserved": 50_000}, owner="")

    run(work, tmp_path)


def test_a_program_needs_a_command_unless_an_image_may_have_one(tmp_path):
    async def work(own, lab):
        with pytest.raises(Invalid, match="command: is required"):
            await own.create(spec(kind="http"), owner="")
        await own.create(spec("g", kind="http", image="nginx"), owner="")

    run(work, tmp_path)


def test_provisioned_instances_follow_an_alias(tmp_path):
    async def work(own, lab):
        await own.create(spec(), owner="")
        await own.publish("f", owner="")
        await own.set_alias("f", Alias(name="live", version="1"), owner="")
        await own.set_provisioned("f", "live", 3, owner="")
        await until(lambda: own.provisioned("f", owner="") == {"live": (3, 3)})
        await own.update_config("f", {"timeout": 5}, owner="")
        await own.publish("f", owner="")
        await own.set_alias("f", Alias(name="live", version="2"), owner="")
        await until(lambda: own.provisioned("f", owner="") == {"live": (3, 3)})
        await until(lambda: sum(one.version == "2" for one in own.instances("f", owner="")) == 3)
        await own.set_scaling("f", {"reserved": 5}, owner="")
        with pytest.raises(Invalid, match="6 in all are more than reserved"):
            await own.set_provisioned("f", "", 3, owner="")
        await own.set_provisioned("f", "live", 0, owner="")
        assert own.provisioned("f", owner="") == {}

    run(work, tmp_path)


def test_kinds_of_invocations(tmp_path):
    async def work(own, lab):
        await own.create(spec(), owner="")
        assert (await own.invoke("f", b"", owner="", kind="dry-run")).status == 204
        assert not lab.started
        for bad in ({"kind": "later"}, {"qualifier": "1x:y"}):
            with pytest.raises(Invalid):
                await own.invoke("f", b"", owner="", **bad)
        with pytest.raises(Invalid):
            await own.invoke("f", b"x" * (7 << 20), owner="")
        with pytest.raises(Invalid):
            await own.invoke("f", b"x" * (2 << 20), owner="", kind="async")

    run(work, tmp_path)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_an_asynchronous_invocation_is_done_and_its_answer_kept(tmp_path):
    async def work(own, lab):
        await own.create(spec(), owner="k")
        queued = await own.invoke("f", b'{"a": 1}', owner="k", kind="async")
        assert queued.status == 202
        task = await over(own, queued.request_id)
        assert (task.state, task.attempts, task.result, task.version) == ("succeeded", 1, b'{"a": 1}', "$LATEST")
        with pytest.raises(NotFound):
            own.task(queued.request_id, "stranger")
        return queued.request_id

    id = run(work, tmp_path)

    async def later(own, lab):
        assert own.task(id, "k").result == b'{"a": 1}'
        found, cursor = own.tasks("f", owner="k")
        assert ([one.id for one in found], cursor) == ([id], 0)

    run(later, tmp_path)


def test_one_that_fails_is_tried_again_and_goes_to_the_dead_letters(tmp_path):
    async def work(own, lab):
        async def fails(head, body):
            return failed("KeyError")

        lab.handler = fails
        await own.create(spec(async_=AsyncConfig(max_retries=2, on_failure="queue:dead")), owner="")
        queued = await own.invoke("f", b'"x"', owner="", kind="async")
        task = await over(own, queued.request_id)
        assert (task.state, task.attempts, task.error) == ("failed", 3, "KeyError")
        await own.saved()
        [message] = own.messages("dead", owner="")
        record = json.loads(message.body)
        assert record["requestContext"]["condition"] == "RetriesExhausted"
        assert record["requestContext"]["approximateInvokeCount"] == 3
        assert (record["requestPayload"], record["responsePayload"]["errorType"]) == ("x", "KeyError")
        await own.remove_messages("dead", message.id, owner="")
        assert not own.messages("dead", owner="")

    run(work, tmp_path)


def test_destinations_are_invoked_and_one_that_is_gone_loses_nothing(tmp_path):
    async def work(own, lab):
        seen = []

        async def keeps(head, body):
            seen.append(body)
            return Answer(body=b'"done"')

        lab.handler = keeps
        await own.create(spec("a", async_=AsyncConfig(on_success="function:b")), owner="")
        await own.create(spec("b", async_=AsyncConfig(on_success="function:gone")), owner="")
        await own.invoke("a", b"1", owner="", kind="async")
        await until(lambda: own.messages("undelivered", owner=""))
        assert json.loads(seen[1])["responsePayload"] == "done"
        assert json.loads(own.messages("undelivered", owner="")[0].body)["requestPayload"]["requestPayload"] == 1

    run(work, tmp_path)


def test_a_circle_of_destinations_comes_to_an_end(tmp_path):
    async def work(own, lab):
        await own.create(spec(async_=AsyncConfig(on_success="function:f")), owner="")
        await own.invoke("f", b"1", owner="", kind="async")
        await until(lambda: own.messages("undelivered", owner=""))
        assert 10 < len(own.tasks("f", owner="")[0]) < 30

    run(work, tmp_path)


def test_what_finds_no_place_waits_costs_no_attempt_and_is_tried_when_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "FIRST", 100.0)

    async def work(own, lab):
        await own.create(spec(reserved=0), owner="")
        queued = await own.invoke("f", b"1", owner="", kind="async")
        await until(lambda: own.task(queued.request_id, None).error == "too-many-requests")
        await own.set_scaling("f", {"reserved": None}, owner="")
        task = await over(own, queued.request_id)
        assert (task.state, task.attempts) == ("succeeded", 1)

    run(work, tmp_path)


def test_tasks_are_stopped(tmp_path):
    async def work(own, lab):
        await own.create(spec(reserved=1), owner="")
        first = (await own.invoke("f", b"1", owner="", kind="async")).request_id
        second = (await own.invoke("f", b"2", owner="", kind="async")).request_id
        await until(lambda: own.task(first, None).state == "running")
        assert (await own.stop_task(second, None)).state == "stopped"
        assert (await own.stop_task(first, None)).state == "stopped"
        with pytest.raises(Conflict):
            await own.stop_task(first, None)
        assert lab.under_way == 0
        assert [one.state for one in own.tasks("f", owner="", state="stopped")[0]] == ["stopped", "stopped"]

    run(work, tmp_path, Lab(lasting(100)))


def test_the_queue_of_a_function_is_bounded(tmp_path, monkeypatch):
    from joey.functions import queue

    monkeypatch.setattr(queue, "MOST_OPEN", 5)

    async def work(own, lab):
        await own.create(spec(reserved=0), owner="")
        for _ in range(5):
            await own.invoke("f", b"1", owner="", kind="async")
        with pytest.raises(TooMany):
            await own.invoke("f", b"1", owner="", kind="async")

    run(work, tmp_path)


def test_a_long_queue_is_paged(tmp_path):
    async def work(own, lab):
        await own.create(spec(), owner="")
        ids = await asyncio.gather(*(own.invoke("f", b"%d" % n, owner="", kind="async") for n in range(25)))
        for one in ids:
            await over(own, one.request_id)
        seen, cursor = [], 0
        while True:
            page, cursor = own.tasks("f", owner="", limit=10, cursor=cursor)
            seen += [own.task(one.id, "").result for one in page]
            if not cursor:
                break
        assert seen == [b"%d" % n for n in reversed(range(25))]

    run(work, tmp_path)


def test_what_was_queued_or_under_way_at_a_crash_is_done_by_the_next_engine(tmp_path):
    """The first engine is abandoned as a killed one would be; its database is what a commit has left."""

    async def crash():
        lab = Lab(lasting(100))
        own = Functions(lab.start, tmp_path)
        await own.create(spec(reserved=3), owner="")
        ids = [(await own.invoke("f", b"%d" % n, owner="", kind="async")).request_id for n in range(10)]
        await until(lambda: lab.under_way == 3)
        await own.saved()
        own.queue._closing = own.dispatcher._closing = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return ids

    ids = asyncio.run(crash())

    async def work(own, lab):
        tasks = [await over(own, id) for id in ids]
        assert {(task.state, task.attempts) for task in tasks} == {("succeeded", 1)}
        assert [task.result for task in tasks] == [b"%d" % n for n in range(10)]

    run(work, tmp_path)


# --- timers ----------------------------------------------------------------------------------------------------------


def test_a_timer_invokes_and_is_off_when_it_is_off(tmp_path):
    async def work(own, lab):
        seen = []

        async def keeps(head, body):
            seen.append(body)
            return await echo(head, body)

        lab.handler = keeps
        await own.create(spec(), owner="")
        with pytest.raises(Invalid):
            await own.set_trigger("f", Trigger(name="t", kind="timer", schedule="rate(0 seconds)"), owner="")
        view = await own.set_trigger(
            "f", Trigger(name="t", kind="timer", schedule="rate(1 second)", payload='{"x": 1}'), owner=""
        )
        assert 0 < view.next - time.time() <= 1
        await until(lambda: seen)
        assert seen[0] == b'{"x": 1}'
        off = Trigger(name="t", kind="timer", schedule="rate(1 second)", enabled=False)
        assert (await own.set_trigger("f", off, owner="")).next is None
        await own.delete_trigger("f", "t", owner="")

    run(work, tmp_path)


class Shelf:
    """A store that keeps what `fired` rows there would be."""

    def __init__(self):
        self.rows = {}

    def read(self, sql):
        return [(*key, at) for key, at in self.rows.items()]

    def write(self, sql, *values):
        self.rows[values[:3]] = values[3]


def test_what_fell_due_while_no_engine_ran_is_made_up_for_once():
    key, trigger = ("", "f", "t"), Trigger(name="t", kind="timer", schedule="rate(10 minutes)")

    async def main():
        shelf, now, fired = Shelf(), [1000.0], []

        def fire(key, trigger, due, statement):
            fired.append(due)
            shelf.write(*((statement[0], *statement[1])))

        first = Timers(shelf, fire, lambda: now[0])
        first.set(key, trigger)
        assert first.next(key) == 1600
        first.close()
        now[0] = 10_000.0
        second = Timers(shelf, fire, lambda: now[0])
        second.set(key, trigger)
        await asyncio.sleep(0)
        second._awake()
        assert fired == [1600]
        assert second.next(key) == 10_600
        second.close()

    asyncio.run(main())


def test_what_a_key_may_queue_and_what_is_kept_is_bounded(tmp_path, monkeypatch):
    from joey.functions import queue

    monkeypatch.setattr(queue, "MOST_BYTES", 1000)
    monkeypatch.setattr(queue, "TASK_COST", 0)
    monkeypatch.setattr(queue, "KEEP_MESSAGE_ROWS", 3)

    async def work(own, lab):
        await own.create(spec(async_=AsyncConfig(on_success="queue:q")), owner="k")
        await own.set_scaling("f", {"reserved": 0}, owner="k")
        await own.invoke("f", b"x" * 600, owner="k", kind="async")
        with pytest.raises(TooMany):
            await own.invoke("f", b"x" * 600, owner="k", kind="async")
        await own.set_scaling("f", {"reserved": None}, owner="k")
        await until(lambda: not own.queue.tasks)
        for _ in range(6):
            done = await own.invoke("f", b"y" * 400, owner="k", kind="async")
            await over(own, done.request_id)
        own.queue.prune()
        await own.saved()
        kept = own.store.read("SELECT length(result) FROM tasks WHERE result IS NOT NULL")
        assert kept == [(400,), (400,)]
        assert len(own.messages("q", owner="k")) == 3

    run(work, tmp_path)
