"""Every operation of every plan fails in turn: the error names it, and nothing is left of the attempt."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from joey.engine import launching
from joey.host.launcher import LauncherError
from joey.model.errors import ImageError, JoeyError, ProgramNotFound
from joey.model.resources import Resources
from joey.model.slot import Slot
from joey.model.spec import Device, Mount, Process, Rlimit, SandboxSpec, Tmpfs
from joey.native import binary
from joey.plan import ops, setup
from joey.plan.encode import encode
from joey.plan.ops import Plan, Reg
from machine_state import eventually, held, mounts, nothing_new, rows, settled, until

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]

NOWHERE = "/nowhere/joey-test"
FREE = Reg(191)
MIB = 1 << 20


@pytest.fixture(scope="module")
def slots() -> int:
    return 0  # what a launch makes is then all there is


def fail_at(plan: Plan, index: int) -> Plan:
    """The plan with an operation at `index` that fails wherever it stands: all before it is done, nothing after."""
    if isinstance(plan.ops[index], ops.Exec):  # which nothing may replace
        return Plan((*plan.ops[:index], ops.Exec(NOWHERE, (NOWHERE,), ())), plan.sources)
    return Plan((*plan.ops[:index], ops.Open(FREE, NOWHERE), *plan.ops[index:]), plan.sources)


class Breaker:
    """In place of a compiler of plans: what that makes, broken at `index`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
        self.index = 0
        self.plan = Plan(())
        self._compile = getattr(module, name)
        monkeypatch.setattr(module, name, self)

    def __call__(self, *args: object, **more: object) -> Plan:
        self.plan = self._compile(*args, **more)
        return fail_at(self.plan, self.index)

    def walk(self) -> Iterator[int]:
        """Each index in turn, as long as there are operations."""
        yield 0
        while self.index + 1 < len(self.plan.ops):
            self.index += 1
            yield self.index

    def blame(self, error: JoeyError) -> None:
        """Assert that `error` names the operation that was made to fail."""
        assert isinstance(error.__cause__, LauncherError) and error.__cause__.op == self.index
        if isinstance(self.plan.ops[self.index], ops.Exec):
            assert isinstance(error, ProgramNotFound) and NOWHERE in str(error)
        else:
            assert f"op {self.index} openat2 {NOWHERE} -> r191: No such file" in str(error)


PLAIN = SandboxSpec(image="host", process=Process(argv=("true",)))
LAUNCHES = {
    "default": PLAIN,
    "terminal": SandboxSpec(image="host", process=Process(argv=("true",), tty=True), storage="disk"),
    "init alone": SandboxSpec(image="host", init=True, read_only=True),
    "limited in memory": SandboxSpec(
        image="host", process=Process(argv=("true",)), resources=Resources(memory=64 * MIB, disk=16 * MIB)
    ),
    "limited on disk": SandboxSpec(
        image="host", process=Process(argv=("true",)), storage="disk", resources=Resources(disk=32 * MIB)
    ),
    "everything": SandboxSpec(
        image="host",
        process=Process(
            argv=("true",), stdin=True, user="7:7", cwd="/work/here", umask=0o77,
            rlimits=(Rlimit(name="NOFILE", soft=1024, hard=1024),),
        ),
        init=True,
        hostname="walk",
        mounts=(
            Mount(source="/etc/hostname", target="/made/file", read_only=True, idmap=False),
            Mount(source="/usr/share", target="/made/directory", idmap=False, noexec=True),
        ),
        tmpfs=(Tmpfs(target="/made/tmp"), Tmpfs(target="/made/sized", size=MIB, noexec=True)),
        devices=(Device(path="/dev/full", target="/dev/filled"),),
        sysctls={"net.core.somaxconn": "100", "kernel.shmmax": "65536"},
        shm_size=MIB,
        read_only=True,
        oom_score_adj=100,
        resources=Resources(memory=64 * MIB, cpus=0.5, pids=32, cpuset_cpus="0"),
    ),
}  # fmt: skip


@pytest.fixture
def warm(lab):
    """Launchers are there, layers attached, descriptors of logs and threads open: what is new afterwards is a leak."""
    for box in lab.engine.boxes:
        lab.do(lab.engine.remove(box.id, force=True))
    return lab.do(settled(lab, PLAIN))


@pytest.mark.parametrize("kind", LAUNCHES)
def test_every_operation_of_a_launch(lab, kind, warm, monkeypatch):
    engine, spec = lab.engine, LAUNCHES[kind]
    monkeypatch.setattr(launching.template, "make", lambda *_: None)  # each is compiled, none filled in
    breaker = Breaker(monkeypatch, launching, "launch")

    async def attempt() -> JoeyError:
        engine.machine.launching._shapes.clear()
        with pytest.raises(JoeyError) as failed:
            await engine.run(replace(spec, name="walk"))
        await nothing_new(engine, warm)
        return failed.value

    for _ in breaker.walk():
        breaker.blame(lab.do(attempt()))
    assert breaker.index > 50
    monkeypatch.undo()
    engine.machine.launching._shapes.clear()
    lab.do(engine.run(replace(spec, name="walk")))
    lab.do(engine.remove("walk", force=True))
    lab.do(nothing_new(engine, warm))
    lab.do(engine.store.flush())
    assert rows(engine) == 0


@pytest.mark.parametrize("tty", [False, True])
def test_every_operation_of_an_exec(lab, tty, warm, monkeypatch):
    engine = lab.engine

    async def start() -> dict[str, object]:
        await engine.run(replace(PLAIN, process=Process(argv=("sleep", "1000")), devpts=False, name="host"))
        return held(engine)

    before = lab.do(start())
    breaker = Breaker(monkeypatch, launching, "exec_")

    async def attempt() -> JoeyError:
        with pytest.raises(JoeyError) as failed:
            await engine.exec("host", Process(argv=("true",), tty=tty, stdin=True))
        await nothing_new(engine, before)
        assert len(engine.machine.cgroup.procs(engine.find("host").slot.name)) == 1
        return failed.value

    for _ in breaker.walk():
        breaker.blame(lab.do(attempt()))
    assert breaker.index > 25
    lab.do(engine.remove("host", force=True))
    lab.do(nothing_new(engine, warm))


@pytest.mark.parametrize("revive", [False, True])
def test_every_operation_of_a_slot(lab, revive, warm, monkeypatch):
    engine, pool = lab.engine, lab.engine.machine.pool
    lab.do(engine.create(replace(PLAIN, name="slot")))
    if revive:
        lab.do(engine.start("slot"))
        lab.do(engine.wait("slot"))
        lab.do(eventually(lambda: not engine.find("slot").record.held))
        for shard in engine.machine.fleet.shards:
            lab.do(until(shard.launcher.list, []))
    before = held(engine)
    breaker = Breaker(monkeypatch, setup, "slot")

    async def attempt() -> JoeyError:
        pool._templates.clear()
        with pytest.raises(JoeyError) as failed:
            await engine.start("slot")
        await eventually(lambda: not engine.find("slot").record.held)
        await nothing_new(engine, before)
        assert (await engine.inspect("slot")).sandbox.exit.code == 125
        return failed.value

    for _ in breaker.walk():
        breaker.blame(lab.do(attempt()))
    assert breaker.index > 10
    monkeypatch.undo()
    pool._templates.clear()
    lab.do(engine.start("slot"))
    lab.do(engine.wait("slot"))
    lab.do(engine.remove("slot"))
    lab.do(nothing_new(engine, warm))


def test_every_operation_of_attaching_a_layer(lab, warm, tmp_path, monkeypatch):
    engine = lab.engine
    make_root(tmp_path)
    breaker = Breaker(monkeypatch, setup, "attach")

    async def attempt() -> JoeyError:
        with pytest.raises(ImageError) as failed:
            await engine.run(SandboxSpec(rootfs=str(tmp_path), process=Process(argv=("/true",))))
        await nothing_new(engine, warm)
        return failed.value

    for index in breaker.walk():
        error = lab.do(attempt())
        assert error.__cause__.op == index and str(tmp_path) in str(error)
    assert breaker.index == 2


def test_every_operation_of_clearing(lab, warm):
    """What is not cleared at once is cleared later, from wherever it stopped."""
    engine, pool = lab.engine, lab.engine.machine.pool
    names = tuple(h.name for h in engine.machine.layout.default)

    async def one(index: int) -> int:
        prepared = await pool.take()
        prepared.close()
        plan = setup.clear(names, ("memory", "disk"), prepared.slot.name)
        with pytest.raises(LauncherError) as failed:
            await pool._run(encode(fail_at(plan, index)))
        assert failed.value.op == index
        await pool.clear(prepared.slot, names)
        await nothing_new(engine, warm)
        return len(plan.ops)

    index = 0
    while index < lab.do(one(index)) - 1:
        index += 1
    assert index >= 4


def test_every_operation_of_setting_up_a_launcher(lab, warm, monkeypatch):
    engine = lab.engine
    breaker = Breaker(monkeypatch, setup, "setup")

    async def attempt() -> JoeyError:
        with pytest.raises(JoeyError) as failed:
            await engine.machine.fleet._start(50)
        assert not list(lab.instance.run.glob("launcher-50*"))
        await nothing_new(engine, warm)
        return failed.value

    mine = mounts(os.getpid())
    for _ in breaker.walk():
        breaker.blame(lab.do(attempt()))
    assert breaker.index > 60
    assert mounts(os.getpid()) == mine


@pytest.mark.parametrize("cut", [1, 40, 200, 700])
def test_a_plan_that_does_not_decode(lab, warm, cut):
    """Refused as a whole, before anything is done."""
    engine = lab.engine
    slot = Slot(name="s9999999", base=0x4000_0000, prepared=Resources.default())
    data = encode(setup.slot(engine.machine.layout, slot))
    with pytest.raises(LauncherError) as failed:
        lab.do(engine.machine.pool._run(data[:-cut]))
    assert failed.value.errno == errno.EINVAL
    lab.do(nothing_new(engine, warm))


def make_root(path: Path) -> None:
    """The least root: one static program that does nothing."""
    (path / "true").write_bytes(binary("joey-probe").read_bytes())
    (path / "true").chmod(0o755)
