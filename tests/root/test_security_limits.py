"""Greed: what one sandbox takes leaves its neighbours and the engine their share, and is reported."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from joey.engine.interface import LogQuery
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec, Tmpfs
from root.inside import told

pytestmark = pytest.mark.leak_scope("module")

MIB = 1 << 20
SMALL = Resources(memory=64 * MIB, swap=0, cpus=1.0, pids=64)
PATIENCE = 3.0
"""Seconds a neighbour's launch and a join may take beside a hog; some milliseconds on a quiet machine."""


def available() -> int:
    """MiB the host has left."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) >> 10


def beside(inside, hogs, seconds=1.0, text=None, resources=SMALL, **more):
    """Run `hogs` in a sandbox each; meanwhile others start and are joined. Returns the hogs' results, worst seconds."""
    lab = inside.lab

    async def measure():
        boxes = [
            (
                await lab.engine.run(
                    SandboxSpec(image="host", process=inside.python(hog), resources=resources, **more), attach=True
                )
            )
            for hog in hogs
        ]
        quiet = (await lab.engine.run(SandboxSpec(image="host", process=Process(argv=("sleep", "60"))))).sandbox
        worst, end = 0.0, time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            result = await inside.finish(await inside.start(quiet, Process(argv=("true",))))
            new = await lab.finish(SandboxSpec(image="host", process=Process(argv=("echo", "ok")), remove=True))
            assert (result.exit.code, new.stdout) == (0, b"ok\n")
            worst = max(worst, time.monotonic() - began)
        results = []
        for started in boxes:
            await lab.engine.kill(started.sandbox.id, 9)
            results.append(await inside.finish(started.attachment))
            await lab.engine.remove(started.sandbox.id, force=True)
        await lab.engine.remove(quiet.id, force=True)
        return results, worst

    results, worst = lab.do(measure(), 40)
    assert worst < PATIENCE, worst
    return results


def test_fork_bombs(inside):
    """Two at once, of threads and of processes; the count stops at the sandbox's own limit."""
    forks = "while True:\n    if attempt(os.fork) == 'EAGAIN' and not found: tell(full=True); found['x'] = 1"
    threads = "import _thread\nwhile not found:\n    try: _thread.start_new_thread(time.sleep, (99,))\n"
    threads += "    except RuntimeError: tell(full=True); break\nwhile True: os.getppid()"
    results = beside(inside, [forks, threads], resources=Resources(memory=512 * MIB, swap=0, cpus=1.0, pids=64))
    assert all(b'"full": true' in result.stdout for result in results)


def test_cpu_hogs(inside):
    beside(inside, ["while True: pass"] * 6)


MEMORY = {
    "heap": "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))",
    "files": "n = 0\nwhile True:\n    with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(1 << 20))\n    n += 1",
    "shm": "n = 0\nwhile True:\n    with open(f'/dev/shm/{n}', 'wb') as f: f.write(bytes(1 << 20))\n    n += 1",
    "names": "n = 0\nwhile True:\n    os.close(os.open(f'/dev/shm/{\"x\" * 200}{n}', os.O_CREAT)); n += 1",
    "memfd": "fds = []\nwhile True:\n    fds.append(os.memfd_create('x')); os.write(fds[-1], bytes(1 << 20))",
    "pipes": "fds = []\nwhile True:\n    fds.append(os.pipe()); fcntl.fcntl(fds[-1][1], 1031, 1 << 20)\n"
    "    os.set_blocking(fds[-1][1], False)\n"
    "    attempt(os.write, fds[-1][1], bytes(1 << 20))",
    "page tables": "import mmap\nm = mmap.mmap(-1, 1 << 40, flags=0x4022)\nn = 0\nwhile True: m[n] = 1; n += 1 << 21",
    "attributes": "n = 0\nopen('/dev/shm/a', 'w')\nwhile True:\n"
    "    os.setxattr('/dev/shm/a', f'user.{n}', bytes(60000)); n += 1",
    "messages": "ids = [libc.msgget(0, 0o1600) for _ in range(500)]\nwhile True:\n"
    "    for i in ids: libc.msgsnd(i, struct.pack('q', 1) + bytes(8000), 8000, 0o4000)",
    "sysv": "libc.shmat.restype = ctypes.c_void_p\nwhile True:\n"
    "    ctypes.memset(libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0), 1, 1 << 20)",
}


@pytest.mark.parametrize("what", MEMORY)
def test_memory_of_every_kind_is_the_sandboxs_own(inside, what):
    """Killed in its own cgroup and said so; or refused more. The host loses no more than the limit and some change."""
    before = available()

    async def run():
        raised = "resource = __import__('resource'); resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))\n"
        spec = SandboxSpec(image="host", process=inside.python(raised + MEMORY[what]), resources=SMALL)
        started = await inside.lab.engine.run(spec, attach=True)
        lowest, end = before, time.monotonic() + 2
        waiting = asyncio.ensure_future(inside.finish(started.attachment))
        while time.monotonic() < end and not waiting.done():
            await asyncio.sleep(0.05)
            lowest = min(lowest, available())
        usage = None if waiting.done() else (await inside.lab.engine.stats([started.sandbox.id]))[0].usage
        await inside.lab.engine.remove(started.sandbox.id, force=True)
        return lowest, (await waiting).exit, usage

    lowest, exit, usage = inside.lab.do(run(), 30)
    if usage is None:
        assert exit.oom or exit.code == 1, exit  # killed, or told that there is no more
    else:
        assert usage.memory_current <= SMALL.memory, usage
    if "CI" in os.environ:  # elsewhere others use memory at the same time
        assert before - lowest < 64 + 256


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_socket_buffers_are_limited(inside, kind):
    """On cgroup v1 they are not charged by themselves: gigabytes, and then no TCP for anybody on the host."""
    text = """
resource = __import__('resource'); resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
held, sent = [], 0
server = socket.create_server(('127.0.0.1', 0), backlog=1000)
send = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.time() + 4
for _ in range(900):
    if time.time() > end: break
    if sys.argv[1] == 'udp':
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); held.append(s)
        for _ in range(100): send.sendto(bytes(1400), s.getsockname())
    else:
        a = socket.create_connection(server.getsockname()); b, _ = server.accept(); held += [a, b]
        for s in (a, b):
            s.setblocking(False)
            try:
                while True: sent += s.send(bytes(65536))
            except BlockingIOError: pass
memory = {line.split(':')[0]: line for line in read('/proc/net/sockstat').splitlines()}
used = memory[sys.argv[1].upper()]
found['pages'] = int(used.split('mem ')[1].split()[0]) if 'mem' in used else 0
found['sent'] = sent
"""
    spec = SandboxSpec(
        image="host", process=inside.python(text, kind), resources=Resources(memory=256 * MIB, cpus=1.0, pids=64)
    )
    found = told(inside.lab.do(inside.lab.finish(spec)))
    assert found["sent"] < 400 * MIB and found["pages"] * 4096 < 300 * MIB, found


def test_tmpfs_and_shm_stay_within_their_sizes(inside):
    text = """
for place in ('/t', '/dev/shm'):
    try:
        with open(place + '/f', 'wb') as f:
            while True: f.write(bytes(1 << 20)); f.flush()
    except OSError as error: found[place] = [name(error.errno), os.path.getsize(place + '/f') >> 20]
"""
    spec = SandboxSpec(
        image="host", process=inside.python(text), tmpfs=(Tmpfs(target="/t", size=4 * MIB),), shm_size=8 * MIB,
    )  # fmt: skip
    assert told(inside.lab.do(inside.lab.finish(spec))) == {"/t": ["ENOSPC", 4], "/dev/shm": ["ENOSPC", 8]}


def test_a_disk_limit_holds(inside):
    text = """
try:
    with open('/big', 'wb') as f:
        while True: f.write(bytes(1 << 20)); f.flush()
except OSError as error: found['error'] = name(error.errno)
found['size'] = os.path.getsize('/big') >> 20
"""
    limits = Resources(memory=256 * MIB, cpus=1.0, pids=64, disk=16 * MIB)
    found = told(
        inside.lab.do(inside.lab.finish(SandboxSpec(image="host", process=inside.python(text), resources=limits)))
    )
    assert found["error"] in ("ENOSPC", "EDQUOT") and found["size"] <= 16


def test_an_out_of_memory_kill_is_reported(inside):
    spec = SandboxSpec(image="host", process=inside.python(MEMORY["heap"]), resources=SMALL)
    exit = inside.lab.do(inside.lab.finish(spec)).exit
    assert (exit.code, exit.signal, exit.oom) == (137, 9, True)


def test_a_flood_of_output_fills_no_disk_and_holds_up_nobody(inside):
    """Megabytes without a newline and single bytes in packets; the log is cut at its size, others go on."""
    lines = "data = b'\\x1b[2J' + b'x' * (1 << 20)\nwhile True: os.write(1, data)"
    packets = "fcntl.fcntl(1, fcntl.F_SETFL, os.O_DIRECT | os.O_WRONLY)\nwhile True: os.write(1, b'x')"
    beside_logs(inside, [lines, packets], 1.5)


def beside_logs(inside, hogs, seconds):
    lab = inside.lab

    async def measure():
        floods = [
            (await lab.engine.run(SandboxSpec(image="host", process=inside.python(hog), resources=SMALL))).sandbox
            for hog in hogs
        ]
        worst, end = 0.0, time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            assert (
                await lab.finish(SandboxSpec(image="host", process=Process(argv=("echo", "ok")), remove=True))
            ).stdout == b"ok\n"
            worst = max(worst, time.monotonic() - began)
        sizes = []
        for box in floods:
            sizes.append(sum(f.stat().st_size for f in lab.instance.logs.glob(f"{box.id}.log*")))
            async for entry in lab.engine.logs(box.id, LogQuery(tail=1)):
                assert entry.data
            await lab.engine.remove(box.id, force=True)
            assert not list(lab.instance.logs.glob(f"{box.id}*"))
        return sizes, worst

    sizes, worst = lab.do(measure(), 40)
    assert max(sizes) <= 21 * MIB and worst < PATIENCE, (sizes, worst)
    return sizes


def test_few_cpus_do_not_hold_up_other_launches(inside):
    """The launcher waits for a new child until it executes; a quota must not make it wait long."""
    tiny = Resources(memory=64 * MIB, swap=0, cpus=0.01, pids=20)

    async def measure():
        spec = SandboxSpec(image="host", process=Process(argv=("true",)), resources=tiny, remove=True)
        slow = [asyncio.ensure_future(inside.lab.engine.run(spec)) for _ in range(10)]
        await asyncio.sleep(0)
        began = time.monotonic()
        for _ in range(5):
            await inside.lab.finish(SandboxSpec(image="host", process=Process(argv=("true",)), remove=True))
        took = time.monotonic() - began
        await asyncio.gather(*slow)
        return took

    assert inside.lab.do(measure(), 30) < PATIENCE


def test_too_little_memory_for_its_arguments_is_an_error(inside):
    """Even where nothing may be killed: the child that runs out of memory shares it with the launcher."""
    from joey.model.errors import JoeyError
    from joey.model.spec import Rlimit

    limits = Resources(
        memory=6 * MIB,
        swap=0,
        cpus=1.0,
        pids=20,
        oom_kill_disable=inside.lab.engine.machine.layout.of("memory").version == 1,
    )
    argv = ("true", *["x" * 120_000] * 30)
    process = Process(argv=argv, rlimits=(Rlimit(name="STACK", soft=None, hard=None),))
    pids = inside.lab.engine.machine.fleet.pids

    async def run():
        try:
            started = await inside.lab.engine.run(SandboxSpec(image="host", process=process, resources=limits))
        except JoeyError as error:
            return str(error)
        await inside.lab.engine.remove(started.sandbox.id, force=True)
        return "started"

    assert inside.lab.do(run(), 15)
    assert inside.lab.engine.machine.fleet.pids == pids
    assert inside.lab.do(inside.lab.finish(SandboxSpec(image="host", process=Process(argv=("true",))))).exit.code == 0
