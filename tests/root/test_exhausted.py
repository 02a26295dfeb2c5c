"""Something the engine needs runs out or is taken away: a clear error, nothing left, and afterwards it works again."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from joey.engine import machine
from joey.engine.interface import LogQuery
from joey.engine.supervisor import Engine
from joey.host import sys as kernel
from joey.host.instance import Instance
from joey.model.errors import Broken, Busy, Exhausted, HostFailed, JoeyError, LaunchFailed, NotPermitted
from joey.model.spec import Mount, Process, SandboxSpec
from machine_state import descriptors, eventually, nothing_new, rows, settled, until

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]

PLAIN = SandboxSpec(image="host", process=Process(argv=("true",)), remove=True)
SLEEP = SandboxSpec(image="host", process=Process(argv=("sleep", "1000")))


@pytest.fixture(scope="module")
def slots() -> int:
    return 0


@pytest.fixture
def before(lab) -> Iterator[dict[str, object]]:
    """What the engine holds; the same afterwards, and a sandbox can be run."""

    found = lab.do(settled(lab, PLAIN))
    yield found
    lab.do(nothing_new(lab.engine, found))
    assert lab.do(lab.finish(PLAIN)).exit.code == 0


@contextmanager
def open_files(pid: int, more: int) -> Iterator[None]:
    """Let a process open `more` descriptors beyond those below the highest it has."""
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + more, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


async def refused(engine: Engine, spec: SandboxSpec = PLAIN) -> JoeyError:
    with pytest.raises(JoeyError) as failed:
        await engine.run(spec)
    return failed.value


@pytest.mark.parametrize("more", [0, 1, 2, 3, 4])
def test_launchers_may_not_open_more_files(lab, before, more):
    async def run() -> None:
        engine = lab.engine
        pids = [shard.launcher.pid for shard in engine.machine.fleet.shards]
        with open_files(pids[0], more), open_files(pids[1] if len(pids) > 1 else pids[0], more):
            error = await refused(engine)
            assert (
                isinstance(error, Busy) and "descriptors are used up" in str(error) and "RLIMIT_NOFILE" in error.remedy
            )
        await eventually(lambda: not engine.boxes)

    lab.do(run())


def test_the_worker_may_not_open_more_files(lab, before):
    async def run() -> None:
        with open_files((await lab.engine.machine.fleet.worker()).launcher.pid, 0):
            error = await refused(lab.engine)
        assert isinstance(error, Exhausted) and error.remedy, str(error)

    lab.do(run())


@pytest.mark.parametrize("more", range(8))
def test_the_engine_may_not_open_more_files(lab, before, more):
    """Wherever it meets the limit: in a pipe, in an answer's descriptors, in a tree it opens."""

    async def run() -> None:
        engine = lab.engine
        spec = SandboxSpec(
            image="host", process=Process(argv=("true",), stdin=True), remove=True,
            mounts=(Mount(source="/usr/share", target="/m", idmap=False),),
        )  # fmt: skip
        with open_files(os.getpid(), more):
            try:
                started = await engine.run(spec, attach=True)
            except (Busy, HostFailed) as error:
                assert "open files" in str(error) or "descriptors" in str(error), str(error)
            else:
                await started.attachment.wait()
                await started.attachment.close()
        await eventually(lambda: not engine.boxes)
        for shard in engine.machine.fleet.shards:
            await until(shard.launcher.list, [])

    lab.do(run())


def test_no_process_can_be_made(lab, before):
    """The launcher sits in a pids cgroup that is full."""
    hierarchy = lab.engine.machine.layout.of("pids")
    directory = Path(lab.engine.machine.cgroup.directory(hierarchy)) / "_full"
    directory.mkdir()

    async def run() -> None:
        shards = lab.engine.machine.fleet.shards
        (directory / "pids.max").write_text(str(len(shards)))
        for shard in shards:
            (directory / "cgroup.procs").write_text(str(shard.launcher.pid))
        try:
            error = await refused(lab.engine)
            assert isinstance(error, Busy) and "no process can be made" in str(error) and "pid_max" in error.remedy
        finally:
            for shard in shards:
                (directory.parent.parent / "cgroup.procs").write_text(str(shard.launcher.pid))

    try:
        lab.do(run())
    finally:
        directory.rmdir()


def test_a_slots_cgroup_is_removed_under_us(lab, before, monkeypatch):
    engine = lab.engine
    start = engine.machine.launching.start

    async def late(request, prepared, *more):
        os.rmdir(engine.machine.cgroup.path(engine.machine.layout.of("memory"), prepared.slot.name))
        return await start(request, prepared, *more)

    monkeypatch.setattr(engine.machine.launching, "start", late)
    error = lab.do(refused(engine))
    assert "memory" in str(error) or "write 0 >" in str(error), str(error)
    assert "No such file" in str(error)


def test_memory_of_all_sandboxes_is_full(lab, before):
    """Without room for bytes a program cannot write; without room for files nothing can be started."""
    scratch = lab.instance.scratch
    found = os.statvfs(scratch)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize

    def limit(size: int, inodes: int) -> None:
        options = f"remount,size={size},nr_inodes={inodes}"
        subprocess.run(["mount", "-o", options, str(scratch)], check=True)

    try:
        limit(used + 65536, found.f_files)
        filler = fill(scratch)
        result = lab.do(lab.finish(replace(PLAIN, process=Process(argv=("dash", "-c", "echo text > /file")))))
        assert result.exit.code != 0 and b"echo: I/O error" in result.stderr
        lab.do(eventually(lambda: not lab.engine.boxes))
        for free in range(1, 4):
            now = os.statvfs(scratch)
            limit(used + 65536, now.f_files - now.f_ffree + free)
            error = lab.do(refused(lab.engine))
            assert isinstance(error, Exhausted | LaunchFailed) and "No space left" in str(error), str(error)
            assert error.remedy
    finally:
        filler.unlink()
        limit(found.f_blocks * found.f_frsize, found.f_files)


def test_no_memory_cgroup_below_what_starting_takes(lab, before):
    from joey.model.resources import Resources

    async def run() -> None:
        spec = SandboxSpec(image="host", process=Process(argv=("true",)), resources=Resources(memory=4096), name="tiny")
        error = await refused(lab.engine, spec)
        assert "resources.memory" in str(error) and (error.remedy or error.status == 400), str(error)

    lab.do(run())


# --- the disk --------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(home: Path) -> Iterator[None]:
    """Mount 4 MiB on `home`."""
    home.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "joey-test", str(home)], check=True)
    try:
        yield
    finally:
        kernel.umount2(home, kernel.MNT_DETACH)


def fill(home: Path) -> Path:
    filler = home / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def test_disk_full(joey_home):
    """What runs goes on; a log with a gap says so; records are written as soon as there is room. What is answered only
    once it is on disk is refused, and leaves nothing.
    """

    async def main() -> None:
        engine = Engine(Instance.open(joey_home), slots=2)
        await engine.open()
        box = (await engine.run(SLEEP)).sandbox
        await engine.store.flush()
        filler = fill(joey_home)
        text = "python3 -c 'import sys; [sys.stdout.write(chr(97)*999 + chr(10)) for _ in range(1000)]'"
        many = [
            (await engine.run(SandboxSpec(image="host", process=Process(argv=("sh", "-c", text))), attach=True)).sandbox
            for _ in range(3)
        ]
        ends = [await engine.wait(one.id) for one in many]
        assert [end.code for end in ends] == [0] * 3
        with pytest.raises(Exhausted, match=r"state\.db") as full:
            for _ in range(200):  # each makes the log of the database longer
                await engine.rename(many[0].id, f"n{_}")
        assert full.value.remedy
        assert (await engine.inspect(box.id)).sandbox.state == "running"
        for refused in (engine.create, engine.run):
            with pytest.raises(Exhausted, match=r"state\.db"):
                await refused(SLEEP)
        await until(lambda: gone(engine), True)
        filler.unlink()
        await until(lambda: flushed(engine), True)
        await engine.run(SandboxSpec(image="host", process=Process(argv=("true",)), name="after"))
        await engine.wait("after")
        await engine.store.flush()
        assert rows(engine) == 5
        for shard in engine.machine.fleet.shards:
            await eventually(lambda s=shard: s.children <= 1)
        await engine.reset()

    with small_disk(joey_home):
        asyncio.run(main())


async def gone(engine: Engine) -> bool:
    return len(list(engine.boxes)) == 4


async def flushed(engine: Engine) -> bool:
    try:
        await engine.store.flush()
    except JoeyError:
        return False
    return True


@pytest.mark.parametrize("what", ["read-only", "damaged", "a directory"])
def test_a_database_that_cannot_be_used(joey_home, what):
    """Opening fails naming the file, leaves no descriptor and no launcher, and works once it is put right."""
    instance = Instance.open(joey_home)
    if what != "read-only":
        instance.prepare()
    if what == "damaged":
        instance.db.write_bytes(os.urandom(8192))
    elif what == "a directory":
        instance.db.mkdir()

    async def main() -> None:
        engine = Engine(instance)
        count = descriptors(os.getpid())
        with pytest.raises((Broken, NotPermitted), match=r"state\.db") as failed:
            await engine.open()
        assert failed.value.remedy and descriptors(os.getpid()) == count
        assert not list(instance.run.glob("launcher-*.sock"))
        if instance.db.is_dir():
            instance.db.rmdir()
        else:
            instance.db.unlink()
        await engine.open()
        await engine.reset()

    if what == "read-only":
        with small_disk(joey_home):
            instance.prepare()
            subprocess.run(["mount", "-o", "remount,ro", str(joey_home)], check=True)
            with pytest.raises(JoeyError, match=r"Read-only file system|cannot be written"):
                asyncio.run(Engine(instance).open())
            subprocess.run(["mount", "-o", "remount,rw", str(joey_home)], check=True)
            asyncio.run(Engine(instance).reset())
    else:
        asyncio.run(main())


def test_without_privilege(joey_home, monkeypatch):
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="needs root") as failed:
        asyncio.run(Engine(Instance.open(joey_home)).open())
    assert "sudo" in failed.value.remedy and not os.listdir(joey_home)


def test_output_that_could_not_be_logged_is_counted(joey_home):
    async def main() -> None:
        engine = Engine(Instance.open(joey_home), slots=0)
        await engine.open()
        engine.kept.fast = None
        filler = fill(joey_home)
        script = "echo lost; read x; echo found"
        started = await engine.run(
            SandboxSpec(image="host", process=Process(argv=("sh", "-c", script), stdin=True)), attach=True
        )
        assert await started.attachment.read() == (1, b"lost\n")
        filler.unlink()
        await started.attachment.write(b"\n")
        assert await started.attachment.read() == (1, b"found\n")
        await started.attachment.wait()
        text = b"".join([entry.data async for entry in engine.logs(started.sandbox.id, LogQuery(follow=True))])
        assert text == b"joey: 5 bytes of output could not be logged\nfound\n"
        await engine.reset()

    with small_disk(joey_home):
        asyncio.run(main())
