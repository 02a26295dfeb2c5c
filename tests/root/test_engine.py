"""The life of sandboxes, for real: what each request to the engine does to processes, files, cgroups and records."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from joey.engine.interface import Filter, LogQuery
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Conflict, Invalid, NotFound, ProgramNotFound
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec
from machine_state import eventually, until

pytestmark = pytest.mark.leak_scope("module")

FOREVER = ("sleep", "1000")
TRAP = "trap 'echo {0}; exit {1}' {2}; echo ready; while :; do sleep 0.01; done"


def sandbox(*argv: str, tty: bool = False, stdin: bool = False, **more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=argv, tty=tty, stdin=stdin), **more)


@pytest.fixture(autouse=True)
def empty(lab):
    """Whatever a test does, the next one begins without sandboxes."""
    yield
    lab.do(remove_all(lab.engine))


async def remove_all(engine: Engine) -> None:
    ends = await asyncio.gather(*(engine.remove(box.id, force=True) for box in engine.boxes), return_exceptions=True)
    assert all(end is None or isinstance(end, NotFound) for end in ends), ends


async def logged(engine: Engine, ref: str, wanted: bytes) -> bytes:
    """The log of `ref`, as soon as `wanted` is in it."""
    found = b""
    async for entry in engine.logs(ref, LogQuery(follow=True)):
        found += entry.data
        if wanted in found:
            return found
    raise AssertionError(f"{wanted!r} never came: {found!r}")


async def output_of(engine: Engine, ref: str, *argv: str, **more: object) -> tuple[int, bytes, bytes]:
    attached = await engine.exec(ref, Process(argv=argv, **more))
    streams = {1: b"", 2: b""}
    while (piece := await attached.read()) is not None:
        streams[piece[0]] += piece[1]
    exit = await attached.wait()
    await attached.close()
    return exit.code, streams[1], streams[2]


def test_run_gives_output_and_exit(run):
    exit, out, err = run(sandbox("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert (exit.code, exit.signal, out, err) == (3, 0, b"out\n", b"err\n")


def test_input_reaches_the_program_and_ends(run):
    text = os.urandom(200_000)
    result = run(sandbox("sh", "-c", "cat; echo end >&2", stdin=True), text)
    assert (result.exit.code, result.stdout, result.stderr) == (0, text, b"end\n")


def test_one_life_from_create_to_remove(lab):
    async def life() -> None:
        engine = lab.engine
        box = await engine.create(sandbox(*FOREVER, name="life", labels={"a": "b"}))
        assert (box.state, box.pid, box.exit) == ("created", None, None)
        box = await engine.start("life")
        assert box.state == "running"
        await eventually(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "sleep\n")
        with pytest.raises(Conflict, match="cannot start it: it is running"):
            await engine.start("life")
        with pytest.raises(Conflict, match="cannot remove it: it is running"):
            await engine.remove("life")
        waiting = asyncio.create_task(engine.wait("life"))
        box = await engine.stop(box.id, 0)
        assert (box.state, box.exit.code, box.exit.signal) == ("exited", 137, 9)
        assert await waiting == box.exit
        with pytest.raises(Conflict, match="it is not running"):
            await engine.kill("life", 15)
        with pytest.raises(Conflict, match="it is exited"):
            await engine.exec("life", Process(argv=("true",)))
        await engine.remove("life")
        with pytest.raises(NotFound):
            await engine.inspect("life")
        assert not list(lab.instance.logs.glob(f"{box.id}*"))

    lab.do(life())


def test_start_again_keeps_files_and_gives_a_new_slot_of_the_same_name(lab):
    script = "test -e /kept && { cat /kept; exit 5; }; echo here > /kept; ln -s kept /link"

    async def twice() -> None:
        engine = lab.engine
        box = await engine.create(sandbox("sh", "-c", script, name="again"))
        for code in (0, 5):
            await engine.start("again")
            assert (await engine.wait("again")).code == code
        assert await logged(engine, "again", b"here\n") == b"here\n"
        files = Path((await engine.inspect("again")).paths["files"])
        assert (files / "kept").read_text() == "here\n"
        await engine.remove(box.id)
        assert not files.parent.exists()

    lab.do(twice())


def test_names_prefixes_and_filters(lab):
    async def names() -> None:
        engine = lab.engine
        one = await engine.run(sandbox(*FOREVER, name="n-one", labels={"k": "1"}))
        two = await engine.run(sandbox("false", name="n-two", labels={"k": "2"}))
        for ref in (one.sandbox.id, one.sandbox.id[:12], "n-one"):
            assert (await engine.inspect(ref)).sandbox.id == one.sandbox.id
        with pytest.raises(NotFound, match="no sandbox"):
            await engine.inspect(one.sandbox.id[:1])
        with pytest.raises(Conflict, match="'n-one' is taken") as refused:
            await engine.run(sandbox("true", name="n-one"))
        assert refused.value.where == "name" and refused.value.remedy
        with pytest.raises(Invalid, match="not a name"):
            await engine.create(sandbox("true", name="../x"))
        await engine.wait("n-two")
        await engine.rename("n-two", "n-three")
        with pytest.raises(Conflict, match="taken"):
            await engine.rename("n-three", "n-one")
        await engine.run(sandbox("true", name="n-two", remove=True))

        async def found(**filter: object) -> list[str]:
            return [box.name for box in await engine.list(Filter(**filter)) if box.name in ("n-one", "n-three")]

        assert await found() == ["n-one"]
        assert await found(all=True) == ["n-three", "n-one"]
        assert await found(all=True, labels={"k": "2"}) == ["n-three"]
        assert await found(exited=frozenset({1}), all=True) == ["n-three"]
        assert await found(states=frozenset({"exited"})) == ["n-three"]
        assert await found(all=True, ids=(one.sandbox.id[:8],)) == ["n-one"]
        await engine.remove("n-one", force=True)
        await engine.remove("n-three")
        assert two.sandbox.name == "n-two"

    lab.do(names())


def test_attach_before_start_misses_nothing(lab):
    async def attach() -> None:
        engine = lab.engine
        await engine.create(sandbox("sh", "-c", "echo first; read x; echo got $x", stdin=True, name="early"))
        ends = [await engine.attach("early") for _ in range(2)]
        writing = asyncio.create_task(ends[0].write(b"word\n"))
        await engine.start("early")
        await writing
        for end in ends:
            text = b""
            while (piece := await end.read()) is not None:
                text += piece[1]
            assert text == b"first\ngot word\n"
        assert [(await end.wait()).code for end in ends] == [0, 0]
        with pytest.raises(Conflict, match="not running"):
            await engine.attach("early")
        await engine.remove("early")

    lab.do(attach())


def test_exec_has_streams_users_and_ends(lab):
    async def execs() -> None:
        engine = lab.engine
        await engine.run(sandbox(*FOREVER, name="in"))
        assert await output_of(engine, "in", "sh", "-c", "echo a; echo b >&2; exit 9") == (9, b"a\n", b"b\n")
        code, out, _ = await output_of(engine, "in", "sh", "-c", "cat /proc/1/comm; id -u; pwd", user="7", cwd="/tmp")
        assert (code, out) == (0, b"sleep\n7\n/tmp\n")
        attached = await engine.exec("in", Process(argv=("cat",), stdin=True))
        await attached.write(b"x" * 100_000)
        await attached.close_stdin()
        size = 0
        while (piece := await attached.read()) is not None:
            size += len(piece[1])
        assert (size, (await attached.wait()).code) == (100_000, 0)
        await attached.close()
        with pytest.raises(ProgramNotFound, match="'nonesuch': not found in PATH"):
            await engine.exec("in", Process(argv=("nonesuch",)))
        quiet = await engine.exec("in", Process(argv=("sh", "-c", "echo unheard; exit 4")), detach=True)
        assert (await quiet.wait()).code == 4 and await quiet.read() is None
        killed = await engine.exec("in", Process(argv=FOREVER))
        await killed.signal(15)
        assert (await killed.wait()).signal == 15
        await killed.signal(15)
        await killed.close()
        # Its pipes are closed when a client leaves; the program ends with the sandbox at the latest.
        left = await engine.exec("in", Process(argv=("sh", "-c", "while echo x; do :; done")))
        await left.close()
        assert (await left.wait()).code != 0
        await engine.remove("in", force=True)

    lab.do(execs())


def test_terminal(lab):
    async def terminal() -> None:
        engine = lab.engine
        started = await engine.run(sandbox("sh", tty=True, name="tty"), attach=True)
        attached = started.attachment
        await attached.resize(33, 77)
        await attached.write(b"stty size; tty; exit 6\n")
        text = b""
        while (piece := await attached.read()) is not None:
            assert piece[0] == 1
            text += piece[1]
        assert b"33 77\r\n/dev/pts/0\r\n" in text and (await attached.wait()).code == 6
        await engine.remove("tty")
        await engine.run(sandbox(*FOREVER, name="tty", devpts=False))
        for _ in range(2):
            code, out, _ = await output_of(engine, "tty", "tty", tty=True)
            assert code == 0 and out.startswith(b"/dev/pts/")
        await engine.remove("tty", force=True)

    lab.do(terminal())


def test_pause_resume_and_the_end_of_the_paused(lab):
    async def pause() -> None:
        engine = lab.engine
        await engine.run(sandbox("sh", "-c", "while :; do echo x; sleep 0.005; done", name="p"))
        await logged(engine, "p", b"x")
        assert (await engine.pause("p")).state == "paused"

        async def size() -> int:
            return sum([len(entry.data) async for entry in engine.logs("p", LogQuery())])

        before = await size()
        with pytest.raises(Conflict, match="cannot pause it: it is paused"):
            await engine.pause("p")
        with pytest.raises(Conflict, match="it is paused"):
            await engine.exec("p", Process(argv=("true",)))
        await asyncio.sleep(0.05)
        assert await size() - before <= 4  # what was in the pipe
        assert (await engine.resume("p")).state == "running"
        await engine.pause("p")
        stopped = await engine.stop("p", 0.1)
        assert stopped.exit.signal in (15, 9) and stopped.state == "exited"
        await engine.start("p")
        await engine.pause("p")
        await engine.remove("p", force=True)
        await engine.run(sandbox(*FOREVER, name="p"))
        await engine.pause("p")
        await engine.kill("p", 9)
        assert (await engine.wait("p")).signal == 9
        await engine.remove("p")

    lab.do(pause())


@pytest.mark.parametrize("signal, word", [(15, "TERM"), (10, "USR1"), (2, "INT")])
def test_signals_arrive(lab, signal, word):
    async def send() -> None:
        engine = lab.engine
        box = (await engine.run(sandbox("sh", "-c", TRAP.format(word, 40 + signal, word)))).sandbox
        await logged(engine, box.id, b"ready")
        await engine.kill(box.id, signal)
        assert (await engine.wait(box.id)).code == 40 + signal
        await logged(engine, box.id, word.encode())
        await engine.remove(box.id)

    lab.do(send())


def test_stop_sends_the_signal_of_the_spec_then_kills(lab):
    async def stop() -> None:
        engine = lab.engine
        polite = await engine.run(sandbox("sh", "-c", TRAP.format("bye", 7, "USR2"), stop_signal="USR2"))
        await logged(engine, polite.sandbox.id, b"ready")
        assert (await engine.stop(polite.sandbox.id, 10)).exit.code == 7
        deaf = await engine.run(sandbox("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"))
        await logged(engine, deaf.sandbox.id, b"ready")
        began = time.monotonic()
        assert (await engine.stop(deaf.sandbox.id, 0.2)).exit.signal == 9
        assert 0.15 < time.monotonic() - began < 2
        for one in (polite, deaf):
            await engine.remove(one.sandbox.id)

    lab.do(stop())


def test_auto_remove_answers_who_waits_and_leaves_nothing(lab):
    async def remove() -> None:
        engine = lab.engine
        for argv in (("true",), ("sh", "-c", "exit 8")):
            started = await engine.run(sandbox(*argv, remove=True, name="auto"), attach=True)
            exit = await started.attachment.wait()
            await eventually(lambda: not engine.boxes)
            assert exit.code == (0 if argv == ("true",) else 8)
            assert not list(lab.instance.logs.glob(f"{started.sandbox.id}*"))
        box = (await engine.run(sandbox(*FOREVER, remove=True, name="auto"))).sandbox
        waiting = asyncio.create_task(engine.wait(box.id))
        await asyncio.sleep(0)
        await engine.stop("auto", 0)
        assert (await waiting).code == 137
        await eventually(lambda: not engine.boxes)

    lab.do(remove())


def test_out_of_memory_is_told(lab, run):
    hungry = "b = bytearray(200 << 20)"
    exit = run(sandbox("python3", "-c", hungry, resources=replace(Resources.default(), memory=64 << 20))).exit
    assert (exit.code, exit.oom) == (137, True)
    exit = run(sandbox("sh", "-c", "kill -9 $$", init=True)).exit
    assert (exit.code, exit.oom) == (137, False)


def test_logs_since_tail_and_follow(lab):
    async def logs() -> None:
        engine = lab.engine
        box = (await engine.run(sandbox("sh", "-c", "for i in 1 2 3 4; do echo $i; done; echo e >&2"))).sandbox
        everything = b"".join([entry.data async for entry in engine.logs(box.id, LogQuery(follow=True))])
        assert sorted(everything) == sorted(b"1\n2\n3\n4\ne\n")
        await engine.wait(box.id)
        only = [entry async for entry in engine.logs(box.id, LogQuery(stderr=False))]
        assert b"".join(entry.data for entry in only) == b"1\n2\n3\n4\n"
        tail = [entry.data async for entry in engine.logs(box.id, LogQuery(stderr=False, tail=2))]
        assert b"".join(tail) == b"3\n4\n"
        assert not [entry async for entry in engine.logs(box.id, LogQuery(since=time.time() + 9))]
        await engine.remove(box.id)
        with pytest.raises(NotFound):
            [entry async for entry in engine.logs(box.id, LogQuery())]

    lab.do(logs())


def test_stats_and_inspect_of_the_running(lab):
    async def ask() -> None:
        engine = lab.engine
        box = (await engine.run(sandbox(*FOREVER, name="stats"))).sandbox
        (stats,) = await engine.stats(["stats"])
        assert stats.id == box.id and stats.usage.pids_current == 1 and stats.usage.memory_limit == 512 << 20
        detail = await engine.inspect("stats")
        for name, path in detail.paths.items():
            assert name == "log" or Path(path).is_dir(), name
        node = await engine.node()
        assert node.counts["running"] >= 1 and node.instance == lab.instance.name
        assert {usage.kind for usage in await engine.disk_usage()} == {"images", "layers", "logs", "state", "volumes"}
        await engine.stop("stats", 0)
        assert await engine.stats(["stats"]) == []
        await engine.remove("stats")

    lab.do(ask())


# --- races -----------------------------------------------------------------------------------------------------------


def test_two_starts_at_once_one_wins(lab):
    async def race() -> None:
        engine = lab.engine
        for argv in (FOREVER, ("nonesuch",)):
            await engine.create(sandbox(*argv, name="race"))
            ends = await asyncio.gather(*(engine.start("race") for _ in range(3)), return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends[1:]) == ["Conflict", "Conflict"]
            await engine.remove("race", force=True)
            if argv == FOREVER:
                assert ends[0].state == "running"
            else:
                assert isinstance(ends[0], ProgramNotFound)

    lab.do(race())


@pytest.mark.parametrize("turns", range(0, 40, 4))
def test_stop_or_remove_during_start(lab, turns):
    """After so many turns of the loop, so that all the states in between are met."""

    async def race() -> None:
        engine = lab.engine
        for what in ("stop", "remove", "again"):
            await engine.create(sandbox(*FOREVER, name="r"))
            if what == "again":  # a start that waits for the last run to be cleared
                await engine.start("r")
                await engine.stop("r", 0)
            starting = asyncio.create_task(engine.start("r"))
            for _ in range(turns + 1):
                await asyncio.sleep(0)
            if what == "stop":
                assert (await engine.stop("r", 0)).state == "exited"
                assert (await starting).state in ("exited", "running")
            else:
                await engine.remove("r", force=True)
                (end,) = await asyncio.wait_for(asyncio.gather(starting, return_exceptions=True), 1)
                assert isinstance(end, NotFound) or end.state in ("running", "dead")
                continue
            await engine.remove("r")

    lab.do(race())


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_client_that_goes_away_during_run_leaves_nothing(lab, turns):
    async def cancel() -> None:
        engine = lab.engine
        task = asyncio.create_task(engine.run(sandbox(*FOREVER, name="gone"), attach=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            await engine.remove("gone", force=True)
        await eventually(lambda: "gone" not in [box.name for box in engine.boxes])

    lab.do(cancel())


@pytest.mark.parametrize("turns", range(0, 30, 3))
def test_a_client_that_goes_away_during_exec_leaves_no_process(lab, turns):
    async def cancel() -> None:
        engine = lab.engine
        await engine.run(sandbox(*FOREVER, name="host"))
        task = asyncio.create_task(engine.exec("host", Process(argv=FOREVER)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(end, BaseException):
            await end.signal(9)
            await end.close()
        slot = engine.find("host").slot.name
        await eventually(lambda: len(engine.machine.cgroup.procs(slot)) == 1)
        await engine.remove("host", force=True)

    lab.do(cancel())


def test_double_remove(lab):
    async def remove() -> None:
        await lab.engine.run(sandbox(*FOREVER, name="twice"))
        id = lab.engine.find("twice").id
        await asyncio.gather(*(lab.engine.remove(id, force=True) for _ in range(3)))
        with pytest.raises(NotFound):
            await lab.engine.remove(id)
        await lab.engine.run(sandbox("true", name="twice", remove=True))

    lab.do(remove())


def test_exec_racing_with_the_end(lab):
    async def race() -> None:
        engine, ends = lab.engine, []
        for number in range(12):
            box = (await engine.run(sandbox("sleep", f"0.0{number}", remove=True))).sandbox
            asks = (engine.exec(box.id, Process(argv=("sleep", "0.01"), tty=number % 2 == 0)) for _ in range(4))
            await asyncio.sleep(0.004 * (number % 3))
            for end in await asyncio.gather(*asks, return_exceptions=True):
                if isinstance(end, BaseException):
                    ends.append(end)
                else:
                    await end.wait()
                    await end.close()
        wrong = [end for end in ends if not isinstance(end, Conflict | NotFound)]
        assert not wrong, wrong

    lab.do(race())


def test_fifty_execs_at_once(lab):
    async def many() -> None:
        engine = lab.engine
        await engine.run(sandbox(*FOREVER, name="many"))
        ends = await asyncio.gather(*(output_of(engine, "many", "echo", str(i)) for i in range(50)))
        assert ends == [(0, b"%d\n" % i, b"") for i in range(50)]
        await eventually(lambda: sum(shard.children for shard in engine.machine.fleet.shards) == 1)
        await engine.remove("many", force=True)

    lab.do(many())


def test_two_hundred_at_once_leave_nothing(lab):
    async def many() -> None:
        engine = lab.engine
        results = await asyncio.gather(*(lab.finish(sandbox("true", remove=True)) for _ in range(200)))
        assert {result.exit.code for result in results} == {0}
        await eventually(lambda: not (engine.boxes or engine._keys or engine.machine.pool.pending))
        for shard in engine.machine.fleet.shards:
            await until(shard.launcher.list, [])
            assert shard.children == 0

    lab.do(many())


# --- instances -------------------------------------------------------------------------------------------------------


def test_two_instances_side_by_side_know_nothing_of_each_other(lab, joey_home):
    async def beside() -> None:
        other = Engine(Instance.open(joey_home))
        await other.open()
        try:
            one = (await lab.engine.run(sandbox(*FOREVER, name="same"))).sandbox
            two = (await other.run(sandbox(*FOREVER, name="same"))).sandbox
            with pytest.raises(NotFound):
                await other.inspect(one.id)
            mine, others = lab.engine.find("same").slot, other.find("same").slot
            assert mine.base != others.base
            maps = {Path(f"/proc/{box.pid}/uid_map").read_text() for box in (one, two)}
            assert len(maps) == 2
        finally:
            report = await other.reset()
        assert report.removed["sandboxes"] == 1
        assert (await lab.engine.inspect("same")).sandbox.state == "running"
        await lab.engine.remove("same", force=True)

    lab.do(beside())
    assert not os.path.exists(joey_home)


def test_two_resets_at_once_are_one_and_leave_no_launcher(lab, joey_home):
    async def both() -> None:
        other = Engine(Instance.open(joey_home))
        await other.open()
        await other.run(sandbox(*FOREVER))
        first, second = await asyncio.gather(other.reset(), other.reset())
        assert first == second
        assert first.removed["sandboxes"] == 1

    lab.do(both())
    assert not os.path.exists(joey_home)
