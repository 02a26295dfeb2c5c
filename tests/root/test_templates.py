"""Templates of the real engine: what is forked from them, how they end, what stands against a fork."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from joey.engine.interface import Filter
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.errors import Invalid, JoeyError, NotFound, Unenforceable
from joey.model.network import NetworkSpec
from joey.model.resources import Resources
from joey.model.spec import Process, Restart, SandboxSpec
from joey.model.template import TemplateSpec
from machine_state import eventually, until
from root.conftest import Lab
from root.forked import Talk, template
from root.test_recovery import home  # noqa: F401

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(90)]
MIB = 1 << 20


async def born(engine: Engine, name: str, owner: str = "", **more: object) -> tuple[str, Talk]:
    box, channel = await engine.fork(name, owner, **more)
    talk = Talk(channel)
    await talk.begin()
    return box.id, talk


def memory(engine: Engine, box: str) -> int:
    """Bytes its cgroup is charged for."""
    return engine.machine.cgroup.usage(engine.find(box).slot.name).memory_current


STATE = """
import json, os, random, secrets, uuid
found = [random.random(), secrets.token_hex(), str(uuid.uuid4()), os.urandom(4).hex(), json.stamp,
         __import__('numpy.random').random.state, os.environ.get('WHO'), os.getpid()]
"""


def test_siblings_share_what_was_imported_and_no_random_state(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    fake = "import os\nstate = 'as imported'\ndef seed():\n    global state\n    state = os.urandom(8).hex()\n"
    (tmp_path / "numpy" / "random.py").write_text(fake)

    async def siblings() -> None:
        engine = lab.engine
        view = await engine.template_create(
            template("numbers", code=str(tmp_path), modules=("json", "numpy.random"), init="import json; json.stamp=7")
        )
        assert (view.state, view.reason) == ("ready", "") and view.pid and view.memory
        one, two = [await born(engine, "numbers", env={"WHO": name}) for name in ("one", "two")]
        first, second = [await talk.run(STATE) for _, talk in (one, two)]
        assert all(a != b for a, b in zip(first[:4], second[:4], strict=True))
        assert first[4] == second[4] == 7 and len({first[5], second[5], "as imported"}) == 3
        assert (first[6], second[6]) == ("one", "two") and first[7] == second[7]
        listed = {one.id: one for one in await engine.list(Filter(states=("running",)))}
        assert set(listed) == {one[0], two[0]}  # neither the template nor its berths
        assert engine.template("numbers").forks == 2
        for box, talk in (one, two):
            talk.channel.close()
            assert (await engine.find(box).wait()).code == 0
        await engine.template_remove("numbers")

    lab.do(siblings())


def test_its_end_is_the_sandboxs_and_its_memory_its_own(lab: Lab) -> None:
    async def ends() -> None:
        engine = lab.engine
        spec = SandboxSpec(image="host", resources=Resources(memory=64 * MIB))
        await engine.template_create(template("small", spec=spec, berths=3))
        (gone, one), (kept, two), (full, three) = [await born(engine, "small", labels={"a": "b"}) for _ in range(3)]
        before = engine.template("small").memory
        await two.run("import builtins; builtins.kept = bytearray(24 << 20); found = 1")
        assert memory(engine, kept) > 24 * MIB > memory(engine, gone)
        assert engine.template("small").memory < before + 4 * MIB
        with pytest.raises(EOFError):
            await one.run("import os; os._exit(7)")
        assert ((await one.channel.wait()).code, (await one.channel.wait()).oom) == (7, False)
        with pytest.raises(EOFError):
            await three.run("x = bytearray(256 << 20)")
        exit = await three.channel.wait()
        assert (exit.code, exit.oom) == (137, True)
        assert (
            await two.run("import builtins; found = len(builtins.kept)") == 24 * MIB
        )  # its neighbour's end is nothing
        assert engine.template("small").state == "ready"
        await two.channel.kill()
        assert (await two.channel.wait()).code == 137
        for talk in (one, two, three):
            talk.channel.close()
        await engine.template_remove("small")
        for box in (gone, kept, full):
            await eventually(lambda box=box: box not in {one.id for one in engine.boxes})

    lab.do(ends())


def test_nobody_waits_for_a_warm_process_that_has_ended(lab: Lab) -> None:
    """Killed with nothing prepared, noticed or not: what is asked for is started plainly, under its name."""

    async def meanwhile() -> None:
        engine = lab.engine
        view = await engine.template_create(template("gone", berths=0))
        _, talk = await born(engine, "gone")
        assert engine.template("gone").instances == 1
        os.kill(view.pid, signal.SIGKILL)
        box, channel = await engine.fork("gone", name="meanwhile")
        seen = engine.template("gone")
        assert box.name == "meanwhile" and seen.plain + seen.forks == 2
        for one in (talk.channel, channel):
            one.close()
            await one.wait()
        await engine.template_remove("gone")
        await eventually(lambda: not engine.warm.boxes)

    lab.do(meanwhile())


def test_its_warm_process_may_end_and_comes_again(lab: Lab) -> None:
    async def again() -> None:
        engine = lab.engine
        view = await engine.template_create(template("phoenix", berths=1))
        box, talk = await born(engine, "phoenix")
        os.kill(view.pid, signal.SIGKILL)
        await eventually(lambda: engine.template("phoenix").pid not in (0, view.pid))
        assert await talk.run("found = 6 * 7") == 42
        for _ in range(3):  # more than are prepared
            _, other = await born(engine, "phoenix")
            assert await other.run("found = 1") == 1
            other.channel.close()
        assert engine.template("phoenix").state == "ready"
        await engine.template_remove("phoenix")
        assert await talk.run("found = 43") == 43  # what was forked goes on
        with pytest.raises(NotFound):
            await engine.fork("phoenix")
        await eventually(lambda: len(engine.warm.boxes) == 1)  # the template's sandbox, which holds it
        talk.channel.close()
        await engine.find(box).wait()
        await eventually(lambda: not engine.warm.boxes)

    lab.do(again())


UNSAFE = {
    "threads": ("import threading as t, time; t.Thread(target=time.sleep, args=(99,), daemon=True).start()", "threads"),
    "memory": ("import mmap; shared = mmap.mmap(-1, 4096)", "mapped shared"),
}  # fmt: skip


@pytest.mark.parametrize("why", UNSAFE)
def test_what_cannot_be_forked_says_so_and_is_started_plainly(lab: Lab, why: str) -> None:
    init, reason = UNSAFE[why]

    async def plain() -> None:
        engine = lab.engine
        view = await engine.template_create(template("unsafe", init=init))
        assert view.state == "unsafe" and reason in view.reason and view.pid == 0
        box, channel = await engine.fork("unsafe", env={"WHO": "me"})
        assert (await engine.inspect(box.id)).sandbox.state == "running"
        assert engine.template("unsafe").plain == 1
        channel.close()
        await channel.wait()
        await eventually(lambda: box.id not in {one.id for one in engine.boxes})
        await engine.template_remove("unsafe")

    lab.do(plain())


def test_a_template_that_fails_says_why(lab: Lab) -> None:
    async def fails() -> None:
        engine = lab.engine
        for more, reason in (
            ({"modules": ("nosuchmodule",)}, "nosuchmodule"),
            ({"init": "1/0"}, "ZeroDivisionError"),
            ({"init": "import os; os._exit(3)"}, "ended while it was warmed"),
            ({"python": "/nosuch/python"}, "not found"),
        ):
            view = await engine.template_create(template("fails", **more))
            assert view.state == "failed" and reason in view.reason, (more, view.reason)
        view = await engine.template_create(template("fails"))
        assert view.state == "ready"
        await engine.template_remove("fails")

    lab.do(fails())


WRONG = (
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", process=Process(user="1000"))), None),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", network=NetworkSpec(mode="host"))), "spec.network"),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", seccomp="unconfined")), "spec.seccomp"),
    (
        TemplateSpec(name="x", spec=SandboxSpec(image="host", process=Process(no_new_privileges=False))),
        "spec.process.no_new_privileges",
    ),
    (
        TemplateSpec(name="x", spec=SandboxSpec(image="host", process=Process(capabilities=("CAP_SYS_ADMIN",)))),
        "spec.process.capabilities",
    ),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host"), code="/nosuch"), "code"),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", process=Process(argv=("sh",)))), "spec.process.argv"),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", entrypoint=("sh",))), "spec.entrypoint"),
    (TemplateSpec(name="x", spec=SandboxSpec(image="host", restart=Restart(policy="always"))), "spec.restart"),
)


def test_what_cannot_be_kept_is_refused(lab: Lab) -> None:
    async def wrong() -> None:
        for spec, field in WRONG:
            if field is not None:
                with pytest.raises((Invalid, Unenforceable)) as refused:
                    await lab.engine.template_create(spec)
                assert refused.value.where == field
        assert not lab.engine.templates() and not lab.engine.warm.boxes
        for more in ({"name": ".."}, {"modules": ("os; x",)}, {"berths": -1}, {"code": "x"}, {"python": ""}):
            with pytest.raises(Invalid):
                TemplateSpec(**{"name": "x", **more})

    lab.do(wrong())


def test_another_user_inside_holds_nothing(lab: Lab) -> None:
    async def user() -> None:
        engine = lab.engine
        spec = SandboxSpec(image="host", process=Process(user="1000:1000", cwd="/tmp", umask=0o077))
        await engine.template_create(template("user", spec=spec))
        box, talk = await born(engine, "user")
        text = """
import os
keys = ("CapPrm", "CapEff", "CapInh", "CapAmb")
found = [os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd(), os.umask(0),
         [line.split()[1] for line in open("/proc/self/status") if line.startswith(keys)],
         os.access("/proc/self/mem", os.W_OK)]
"""
        assert await talk.run(text) == [[1000] * 3, [1000] * 3, [], "/tmp", 0o077, ["0" * 16] * 4, True]
        out = await engine.exec(box, Process(argv=("true",)))
        assert (await out.wait()).code == 0
        await out.close()
        talk.channel.close()
        await engine.template_remove("user")

    lab.do(user())


def test_it_is_its_owners_alone_and_names_are_given(lab: Lab) -> None:
    async def owners() -> None:
        engine = lab.engine
        await engine.template_create(template("mine"), owner="alice")
        for call in (engine.template, engine.forks.find):
            with pytest.raises(NotFound):
                call("mine", "bob")
        with pytest.raises(NotFound):
            await engine.fork("mine", "bob")
        assert [view.name for view in engine.templates("alice")] == ["mine"] and not engine.templates("bob")
        box, channel = await engine.fork("mine", "alice", name="worker", main=False, durable=True)
        assert (box.name, box.owner) == ("worker", "alice") and engine.resolve("worker", "alice") == box.id
        with pytest.raises(JoeyError):
            await engine.fork("mine", "alice", name="worker")
        channel.close()  # not its main process: the sandbox stays
        await until(lambda: state(engine, box.id), "running")
        ran = await engine.exec(box.id, Process(argv=("true",)))
        assert (await ran.wait()).code == 0
        await ran.close()
        await engine.remove(box.id, force=True)
        await engine.template_remove("mine", owner="alice")

    lab.do(owners())


async def state(engine: Engine, box: str) -> str:
    return (await engine.inspect(box)).sandbox.state


def test_a_new_engine_has_the_templates_and_nothing_of_what_they_had(home: Path) -> None:  # noqa: F811
    async def first() -> int:
        engine = Engine(Instance.open(home))
        await engine.open()
        view = await engine.template_create(template("lasting"), owner="me")
        _, talk = await born(engine, "lasting", "me")
        await engine.forked("lasting", SandboxSpec(name="stays"), owner="me")
        await engine.close()
        talk.channel.close()
        return view.pid

    async def second(pid: int) -> None:
        engine = Engine(Instance.open(home))
        await engine.open()
        try:
            assert engine.template("lasting", "me").state == "cold"
            await eventually(lambda: len(engine.warm.boxes) == 1 and not os.path.exists(f"/proc/{pid}"))
            ran = await engine.exec("stays", Process(argv=("true",)))  # it lives on in what was the template's
            assert (await ran.wait()).code == 0
            await ran.close()
            await engine.remove("stays", force=True)
            await eventually(lambda: not engine.warm.boxes)
            _, talk = await born(engine, "lasting", "me")
            assert await talk.run("found = 1") == 1
            talk.channel.close()
        finally:
            await engine.reset()

    asyncio.run(second(asyncio.run(first())))
