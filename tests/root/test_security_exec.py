"""Joining a running sandbox while what runs in it attacks whoever joins, and the program that is being replaced."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from joey.model.errors import Conflict, JoeyError
from joey.model.resources import Resources
from joey.model.spec import Process
from root.inside import told

pytestmark = pytest.mark.leak_scope("module")

SPY = r"""
mine = {w: read(f'/proc/self/{w}', 60000) for w in ('mountinfo', 'net/dev', 'net/unix', 'uid_map')}
points = lambda text: sorted(line.split()[4] for line in text.splitlines())
devices = lambda text: sorted(line.split(':')[0] for line in text.splitlines()[2:])
me, looked, launcher = os.getpid(), 0, 0
HOSTS = ('/cgroup', '/proc', '/box', '/layers', 'anon', 'mnt:', 'net:')
tell(); end = time.time() + float(sys.argv[1])
links = ('root', 'cwd', 'exe', 'ns/mnt', 'ns/net', 'ns/user')
while time.time() < end:
    for pid in [int(n) for n in os.listdir('/proc') if n.isdigit() and int(n) > me]:
        looked += 1; early = False
        at = f'/proc/{pid}/'
        try:
            early = 'launcher' in read(at + 'comm')
            launcher += early
            for n in os.listdir(at + 'fd'):
                if int(n) > 2:
                    try:
                        target = os.readlink(at + 'fd/' + n)
                        if target.startswith(HOSTS): found['fd'] = target
                    except OSError: pass
        except OSError: pass
        for what in ('mountinfo', 'net/dev'):
            try:
                seen = read(at + what, 60000)
                what_counts = points if what == 'mountinfo' else devices
                differs = what_counts(seen) != what_counts(mine[what])
                if seen and differs: found[what] = seen[:200]
            except (OSError, IndexError): pass
        for what in links:
            try:
                target = os.readlink(at + what)
                if early and (target != os.readlink('/proc/self/' + what) if what != 'exe' else 'joey' in target):
                    found[what] = target
            except OSError: pass
        for what in ('mem', 'environ', 'maps', 'auxv', 'syscall', 'stack', 'personality'):
            try:
                seen = read(at + what, 400)
                if seen and 'launcher' in read(at + 'comm'): found[what] = seen[:99]
            except OSError: pass
        if early and call('ptrace', 0x4206, pid, 0, 0) == 'ok':
            if 'launcher' in trying(read, at + 'comm'): found['ptrace'] = pid
            os.kill(pid, 9); os.waitpid(pid, 0x40000000)
found['looked'], found['launcher'] = looked, launcher
"""


@pytest.mark.parametrize("add", [(), ("CAP_SYS_PTRACE",)])
def test_who_joins_shows_nothing_of_the_host(inside, add):
    """CVE-2016-9962: a program spins on /proc for the newcomer and looks at its descriptors, memory, root, network."""
    box = inside.box(add=add, resources=Resources(memory=512 << 20, swap=0, cpus=2.0, pids=256))

    async def attack():
        spy = await inside.start(box, inside.python(SPY, "2.5"))
        await spy.read()
        done, end = 0, time.monotonic() + 2.2
        while time.monotonic() < end:
            process = Process(argv=("true",), tty=done % 4 == 3)
            result = await inside.finish(await inside.start(box, process))
            done += result.exit.code in (0, 137)
        return done, told(await inside.finish(spy))

    done, found = inside.lab.do(attack(), 30)
    looked, _ = found.pop("looked"), found.pop("launcher")
    assert done > 5 and looked > 5
    assert {name: what for name, what in found.items() if not isinstance(what, dict)} == {}, found
    inside.remove(box)


def test_stopping_and_killing_newcomers_holds_up_nobody(inside):
    """The launcher waits for no process that others can stop: execs here and launches elsewhere go on."""
    hostile, quiet = inside.box(), inside.box()
    text = """
tell(); me = os.getpid()
while True:
    for n in os.listdir('/proc'):
        if n.isdigit() and int(n) > me:
            try: os.kill(int(n), signal.SIGSTOP)
            except OSError: pass
"""

    async def attack():
        spam = await inside.start(hostile, inside.python(text))
        await spam.read()
        stopped = [asyncio.ensure_future(inside.start(hostile, Process(argv=("true",)))) for _ in range(8)]
        await asyncio.sleep(0.2)
        times = []
        for _ in range(5):
            began = time.monotonic()
            result = await inside.finish(await inside.start(quiet, Process(argv=("echo", "here"))))
            times.append(time.monotonic() - began)
            assert result.stdout == b"here\n"
        await inside.lab.engine.kill(hostile.id, 9)
        await inside.lab.engine.wait(hostile.id)
        for started in await asyncio.gather(*stopped, return_exceptions=True):
            if not isinstance(started, BaseException):
                await inside.finish(started)
            else:
                assert isinstance(started, JoeyError), started
        await inside.finish(spam)
        return times

    times = inside.lab.do(attack(), 40)
    assert sorted(times)[2] < 2, times
    inside.remove(hostile, quiet)


def test_running_the_launchers_own_program_gives_nothing(inside):
    """CVE-2019-5736: a script whose interpreter is /proc/self/exe runs what executes it, and then writes to it."""
    box = inside.box()
    program = Path(f"/proc/{inside.lab.engine.machine.fleet.pids[0]}/exe").resolve()
    before = program.stat()
    inside.sh(box, "sh", "-c", "printf '#!/proc/self/exe\\n' > /tmp/evil; chmod +x /tmp/evil")
    text = """
end = time.time() + 1.5; opened = set(); tell()
while time.time() < end:
    for n in os.listdir('/proc'):
        if n.isdigit() and int(n) > os.getpid():
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                if attempt(os.open, f'/proc/{n}/exe', flags) == 'ok': opened.add(os.readlink(f'/proc/{n}/exe'))
found['opened'] = sorted(p for p in opened if 'joey' in p)
"""

    async def attack():
        spy = await inside.start(box, inside.python(text))
        await spy.read()
        for argv in (("/tmp/evil",), ("/proc/self/exe", "--listen-fd", "0"), ("/tmp/evil", "--help")) * 5:
            try:
                result = await inside.finish(await inside.start(box, Process(argv=argv)))
                assert result.exit.code != 0
            except JoeyError:
                pass
        return told(await inside.finish(spy))

    assert inside.lab.do(attack(), 30)["opened"] == []
    after = program.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    inside.remove(box)


def test_into_a_paused_or_ended_sandbox_nothing_is_started(inside):
    engine = inside.lab.engine
    box = inside.box()
    inside.lab.do(engine.pause(box.id))
    with pytest.raises(Conflict, match="paused"):
        inside.sh(box, "true")
    inside.lab.do(engine.resume(box.id))
    inside.lab.do(engine.kill(box.id, 9))
    inside.lab.do(engine.wait(box.id))
    with pytest.raises(Conflict):
        inside.sh(box, "true")
    inside.remove(box)


def test_a_sandbox_that_ends_while_it_is_joined_is_a_clear_error(inside):
    """Many joins at the moment when PID 1 goes: each starts and is killed, or is refused; none hangs."""

    async def race():
        for _ in range(4):
            box = (await inside.lab.engine.run(inside_spec)).sandbox
            joins = [asyncio.ensure_future(inside.start(box, Process(argv=("sleep", "5")))) for _ in range(6)]
            await inside.lab.engine.kill(box.id, 9)
            for joined in await asyncio.gather(*joins, return_exceptions=True):
                if isinstance(joined, BaseException):
                    assert isinstance(joined, JoeyError), joined
                else:
                    assert (await inside.finish(joined)).exit.code == 137
            await inside.lab.engine.remove(box.id, force=True)

    from joey.model.spec import SandboxSpec

    inside_spec = SandboxSpec(image="host", process=Process(argv=("sleep", "60")))
    inside.lab.do(race(), 30)


def test_a_sandbox_that_is_full_can_still_be_removed(inside):
    """No process, no memory, no CPU left inside: joining may fail, stopping may not."""
    box = inside.box(resources=Resources(memory=64 << 20, swap=0, cpus=0.2, pids=8))
    text = "\n".join(("import os, time", "while 1:", "    try: os.fork()", "    except OSError: pass"))

    async def attack():
        bomb = await inside.start(box, Process(argv=("python3", "-c", text)))
        await asyncio.sleep(0.5)
        for _ in range(3):
            try:
                await asyncio.wait_for(inside.start(box, Process(argv=("true",))), 10)
            except (TimeoutError, JoeyError):
                pass
        await bomb.close()
        began = time.monotonic()
        await inside.lab.engine.remove(box.id, force=True)
        return time.monotonic() - began

    assert inside.lab.do(attack(), 50) < 10


def test_a_terminal_is_shared_with_nobody_else(inside):
    """The names of terminals inside are the sandbox's own, and the master stays with the engine."""
    box = inside.box(tty=True)
    text = "found['pts'] = sorted(os.listdir('/dev/pts')); found['tty'] = os.ttyname(0)"
    assert inside.ask(box, text, tty=True) == {"pts": ["0", "1", "ptmx"], "tty": "/dev/pts/1"}
    other = inside.box()
    assert inside.ask(other, text, tty=True) == {"pts": ["0", "ptmx"], "tty": "/dev/pts/0"}
    inside.remove(box, other)
