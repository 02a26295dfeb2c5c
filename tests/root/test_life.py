"""What comes to a sandbox with time, for real: timeouts, restarts, health, live limits, events; across engines too."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time

import pytest

from joey.engine.interface import Filter, LogQuery
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid, NotFound, Unenforceable
from joey.model.spec import HealthCheck, Process, Restart, SandboxSpec, Update
from machine_state import eventually

pytestmark = pytest.mark.leak_scope("module")

FOREVER = ("sleep", "1000")
ALWAYS, FAILING = Restart(policy="always"), Restart(policy="on-failure", max_retries=2)
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        import os
        self.send_response(200 if os.path.exists("/tmp/well") else 500)
        self.end_headers()
    log_message = print
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


def sandbox(*argv: str, **more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=argv or FOREVER), **more)


def sh(script: str, **more: object) -> SandboxSpec:
    return sandbox("sh", "-c", script, **more)


@pytest.fixture(autouse=True)
def empty(lab):
    yield
    lab.do(remove_all(lab.engine))


async def remove_all(engine: Engine) -> None:
    await asyncio.gather(*(engine.remove(box.id, force=True) for box in engine.boxes), return_exceptions=True)


async def becomes(engine: Engine, ref: str, **wanted: object) -> object:
    """The sandbox, as soon as its view has these values."""

    def there() -> bool:
        view = engine.find(ref).view()
        return all(getattr(view, name) == value for name, value in wanted.items())

    await eventually(there)
    return engine.find(ref).view()


async def types(engine: Engine, **wanted: object) -> list[str]:
    return [event.type.removeprefix("sandbox.") async for event in engine.events(**wanted)]


# ---- time


def test_a_timeout_kills_and_no_policy_revives(lab):
    async def life() -> None:
        made = (await lab.engine.run(sandbox(timeout=0.3, restart=ALWAYS, name="brief"))).sandbox
        assert made.started is not None and made.deadline == pytest.approx(made.started + 0.3, abs=0.05)
        assert (await lab.engine.wait("brief")).signal == 9
        view = lab.engine.find("brief").view()
        assert (view.deadline, view.restart_at, view.restarts) == (None, None, 0)
        assert "timeout" in await types(lab.engine, refs=("brief",))

    lab.do(life())


def test_a_timeout_may_pause_and_be_moved(lab):
    async def life() -> None:
        spec = sandbox(timeout=60.0, on_timeout="pause", name="later")
        await lab.engine.run(spec)
        moved = await lab.engine.update("later", Update(timeout=0.2))
        assert moved.deadline == pytest.approx(time.time() + 0.2, abs=0.1)
        await becomes(lab.engine, "later", state="paused", deadline=None)
        again = await lab.engine.resume("later")
        assert again.state == "running" and again.deadline == pytest.approx(time.time() + 0.2, abs=0.1)
        assert (await lab.engine.update("later", Update(timeout=None))).deadline is None

    lab.do(life())


def test_an_idle_one_ends_but_not_while_somebody_is_there(lab):
    async def life() -> None:
        engine = lab.engine
        await engine.run(sandbox(idle_timeout=0.4, name="quiet"))
        attached = await engine.attach("quiet")
        busy = await engine.exec("quiet", Process(argv=("sleep", "0.9")))
        begun = time.time()
        assert (await busy.wait()).code == 0  # longer than its patience, and it is there still
        await attached.close()
        await engine.wait("quiet")
        assert time.time() - begun > 1.2
        told = await types(engine, refs=("quiet",))
        assert told[-2:] == ["timeout", "exited"] and told.count("process.started") == told.count("process.exited") == 1

    lab.do(life())


def test_restarts_follow_the_policy_until_it_gives_up(lab):
    async def life() -> None:
        engine = lab.engine
        await engine.run(sh("echo run; exit 3", restart=FAILING, name="failing"))
        await becomes(engine, "failing", restarts=2, restart_at=None)
        assert (await engine.wait("failing")).code == 3
        assert engine.find("failing").view().restart_at is None
        logged = b""  # one log of all runs
        async for entry in engine.logs("failing", LogQuery(follow=True)):
            logged += entry.data
        assert logged == b"run\n" * 3
        await engine.run(sh("exit 0", restart=FAILING, name="well"))
        await engine.wait("well")
        assert engine.find("well").view().restart_at is None
        started = [event async for event in engine.events(types=("sandbox.started",), refs=("failing",))]
        assert [event.data["restarts"] for event in started] == [0, 1, 2]

    lab.do(life())


def test_a_stop_ends_a_row_of_restarts(lab):
    async def life() -> None:
        engine = lab.engine
        await engine.run(sh("exit 1", restart=ALWAYS, name="again"))
        await becomes(engine, "again", restarts=2)
        stopped = await engine.stop("again", 0)
        assert stopped.restart_at is None
        count = stopped.restarts
        await asyncio.sleep(0.5)
        assert engine.find("again").view().restarts == count
        await engine.start("again")
        await becomes(engine, "again", restarts=1)

    lab.do(life())


# ---- health


@pytest.mark.parametrize(
    "check",
    [
        HealthCheck(command=("test", "-e", "/tmp/well"), interval=0.1, retries=2),
        HealthCheck(http="http://localhost:8080/x", interval=0.1, retries=2),
    ],
    ids=["exec", "http"],
)
def test_health_follows_what_the_checks_find(lab, check):
    async def life() -> None:
        engine = lab.engine
        made = (await engine.run(sandbox("python3", "-c", SERVER, health=check, name="checked"))).sandbox
        assert made.health == "starting"
        await becomes(engine, "checked", health="unhealthy")
        touch = await engine.exec("checked", Process(argv=("touch", "/tmp/well")))
        assert (await touch.wait()).code == 0
        await becomes(engine, "checked", health="healthy")
        found = [event.data["health"] async for event in engine.events(types=("sandbox.health",), refs=(made.id,))]
        assert found == ["starting", "unhealthy", "healthy"]
        assert len(await engine.processes("checked")) == 1  # the touch: looks are nobody's processes
        assert (await engine.stop("checked", 0)).health is None

    lab.do(life())


def test_a_port_is_looked_for_in_the_sandboxs_own_network(lab):
    async def life() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)  # on the host
        port = server.sockets[0].getsockname()[1]
        check = HealthCheck(tcp=port, interval=0.1, retries=1)
        await lab.engine.run(sandbox(health=check, name="elsewhere"))
        await becomes(lab.engine, "elsewhere", health="unhealthy")
        listen = f"import socket; s = socket.create_server(('127.0.0.1', {port})); [s.accept() for _ in iter(int, 1)]"
        await lab.engine.exec("elsewhere", Process(argv=("python3", "-c", listen)), detach=True)
        await becomes(lab.engine, "elsewhere", health="healthy")
        server.close()
        await server.wait_closed()

    lab.do(life())


# ---- changes


def test_limits_change_while_it_runs(lab):
    async def life() -> None:
        engine = lab.engine
        await engine.run(sandbox(name="grows", labels={"a": "1", "b": "2"}))
        view = await engine.update(
            "grows", Update(resources={"memory": 64 << 20, "pids": 33, "cpus": 0.5}, labels={"a": None, "c": "3"})
        )
        assert view.labels == {"b": "2", "c": "3"}
        usage = (await engine.stats(["grows"]))[0].usage
        assert (usage.memory_limit, usage.pids_max) == (64 << 20, 33)
        spec = (await engine.inspect("grows")).spec
        assert (spec.resources.memory, spec.resources.cpus) == (64 << 20, 0.5)
        for change, error, field in (
            ({"memory": 1 << 40, "cpus": 1e6}, Invalid, "resources.cpus"),
            ({"nonsense": 1}, Invalid, "resources.nonsense"),
            ({"memory": "much"}, Invalid, "resources.memory"),
            ({"disk": 1 << 30}, Unenforceable, "resources.disk"),
        ):
            with pytest.raises(error) as caught:
                await engine.update("grows", Update(resources=change))
            assert caught.value.where == field
        with pytest.raises(Invalid, match="idle_timeout"):
            await engine.update("grows", Update(idle_timeout=-1.0))
        after = (await engine.stats(["grows"]))[0].usage
        assert (after.memory_limit, after.pids_max) == (64 << 20, 33)
        assert (await engine.inspect("grows")).spec == spec
        await engine.stop("grows", 0)
        await engine.update("grows", Update(resources={"pids": 44}))
        await engine.start("grows")
        assert (await engine.stats(["grows"]))[0].usage.pids_max == 44

    lab.do(life())


def test_memory_in_use_cannot_be_taken_away(lab):
    async def life() -> None:
        hog = "x = bytearray(40 << 20); x[::4096] = b'1' * len(x[::4096]); print('ready', flush=True); input()"
        await lab.engine.run(
            SandboxSpec(image="host", name="hog", process=Process(argv=("python3", "-c", hog), stdin=True))
        )
        async for entry in lab.engine.logs("hog", LogQuery(follow=True)):
            if b"ready" in entry.data:
                break
        with pytest.raises(Conflict, match=r"resources\.memory"):
            await lab.engine.update("hog", Update(resources={"memory": 16 << 20, "pids": 77}))
        usage = (await lab.engine.stats(["hog"]))[0].usage
        assert usage.memory_limit == 512 << 20 and usage.pids_max == 256  # nothing of it was done

    lab.do(life())


def test_a_paused_one_gives_back_its_page_cache(lab):
    async def life() -> None:
        engine = lab.engine
        # On disk: what a file of tmpfs takes is no cache.
        write = "head -c 30M /dev/zero > /big; sync /big; cat /big >/dev/null; echo ready; sleep 1000"
        await engine.run(sh(write, name="cached", storage="disk"))
        async for entry in engine.logs("cached", LogQuery(follow=True)):
            if b"ready" in entry.data:
                break
        assert (await engine.pause("cached", reclaim=True)).state == "paused"
        told = [event async for event in engine.events(types=("sandbox.reclaimed",), refs=("cached",))]
        assert len(told) == 1 and int(told[0].data["bytes"] or 0) > 20 << 20
        assert (await engine.resume("cached")).state == "running"

    lab.do(life())


# ---- owners, events, the store


def test_what_is_anothers_does_not_exist(lab):
    async def life() -> None:
        engine = lab.engine
        mine = (await engine.run(sandbox(name="same"), owner="k1")).sandbox
        other = (await engine.run(sandbox(name="same"), owner="k2")).sandbox
        with pytest.raises(Conflict, match="taken"):
            await engine.create(sandbox(name="same"), owner="k1")
        assert engine.resolve("same", "k1") == mine.id and engine.resolve("same", "k2") == other.id
        for ref in (mine.id, mine.id[:8]):
            assert engine.resolve(ref, "k1") == engine.resolve(ref, None) == mine.id
            with pytest.raises(NotFound):
                engine.resolve(ref, "k2")
        with pytest.raises(Conflict, match="owners"):
            engine.resolve("same")
        assert [view.id for view in await engine.list(Filter(owner="k1"))] == [mine.id]
        assert {event.owner async for event in engine.events(owner="k2")} == {"k2"}

    lab.do(life())


def test_bad_policies_are_refused_and_leave_nothing(lab):
    for changed, field in (
        ({"restart": ALWAYS, "remove": True}, "restart"),
        ({"restart": Restart(policy="always", max_retries=3)}, "restart.max_retries"),
        ({"timeout": 0.0}, "timeout"),
        ({"idle_timeout": float("nan")}, "idle_timeout"),
        ({"health": HealthCheck()}, "health"),
        ({"health": HealthCheck(http="http://example.org/")}, "health.http"),
    ):
        with pytest.raises(Invalid) as caught:
            lab.do(lab.engine.create(sandbox(**changed)))
        assert caught.value.where == field
    assert not list(lab.engine.boxes)


def test_what_is_answered_is_on_disk(lab):
    def rows() -> dict[str, tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(f"file:{lab.instance.db}?mode=ro", uri=True)) as db:
            return {
                name: (phase, owner) for name, phase, owner in db.execute("SELECT name, phase, owner FROM sandboxes")
            }

    async def life() -> None:
        await lab.engine.create(sandbox(name="made"), owner="k")
        assert rows()["made"] == ("created", "k")
        await lab.engine.start("made")
        assert rows()["made"][0] in ("starting", "running")
        await lab.engine.rename("made", "other")
        assert set(rows()) == {"other"}
        await lab.engine.remove("other", force=True)
        assert rows() == {}

    lab.do(life())


# ---- across engines


@pytest.mark.leak_scope("function")
def test_deadlines_restarts_and_events_outlive_the_engine(joey_home):
    async def first() -> int:
        engine = Engine(Instance.open(joey_home), slots=0)
        await engine.open()
        check = HealthCheck(command=("true",), interval=0.05)
        await engine.run(sandbox(timeout=1.5, name="deadline", health=check), owner="k")
        await engine.run(sh("exit 1", restart=ALWAYS, name="again"))
        await engine.run(sandbox(restart=Restart(policy="unless-stopped"), name="unless"))
        await engine.run(sandbox(restart=ALWAYS, name="always"))
        for name in ("unless", "always"):
            await engine.stop(name, 0)
        await becomes(engine, "again", restarts=2)
        await becomes(engine, "deadline", health="healthy")
        last = [event.id async for event in engine.events()][-1]
        await engine.close()
        return last

    async def second(last: int) -> None:
        engine = Engine(Instance.open(joey_home), slots=0)
        try:
            await engine.open()
            view = engine.find("deadline").view()
            assert view.deadline and view.health == "healthy" and view.owner == "k" and view.state == "running"
            await becomes(engine, "always", state="running")
            assert engine.find("unless").view().state == "exited"
            assert engine.find("again").view().restarts >= 2
            await becomes(engine, "again", restarts=4)
            assert (await engine.wait("deadline")).signal == 9
            ids = [event.id async for event in engine.events(after=last)]
            assert ids and ids == list(range(ids[0], ids[-1] + 1)) and ids[0] > last
        finally:
            await engine.reset()

    asyncio.run(second(asyncio.run(first())))
