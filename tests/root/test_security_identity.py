"""Who a process of a sandbox is, and what it holds: ids, capabilities, groups, descriptors, keyrings, its share."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from joey.model.capabilities import DEFAULT_CAPABILITIES, mask
from joey.model.slot import IDS_PER_SLOT
from joey.model.spec import Process, SandboxSpec
from root.inside import told

pytestmark = pytest.mark.leak_scope("module")

DEFAULT = mask(DEFAULT_CAPABILITIES)
NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "cgroup", "net")
STATUS = """
status = dict(line.split(':', 1) for line in read('/proc/self/status').splitlines() if ':' in line)
found.update({k: v.split() for k, v in status.items() if k[:3] in ('Cap', 'NoN', 'Sec', 'Gro', 'Uid', 'Gid')})
"""


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def pair(inside):
    boxes = inside.box(), inside.box()
    yield boxes
    inside.remove(*boxes)


def test_root_inside_is_nobody_outside_and_no_ids_are_shared(pair):
    """`/proc/PID` of the host says whose process it is: all four ids lie in a range that is the sandbox's alone."""
    ranges = []
    for box in pair:
        seen = status(box.pid)
        first, outside, count = map(int, Path(f"/proc/{box.pid}/uid_map").read_text().split())
        assert (first, count) == (0, IDS_PER_SLOT) and outside >= 0x3000_0000
        assert seen["Uid"] == [str(outside)] * 4 and seen["Gid"] == [str(outside)] * 4
        assert Path(f"/proc/{box.pid}/gid_map").read_text().split() == ["0", str(outside), str(count)]
        ranges.append(range(outside, outside + count))
    assert ranges[0].stop <= ranges[1].start or ranges[1].stop <= ranges[0].start


def test_every_namespace_is_its_own(pair):
    for kind in NAMESPACES:
        seen = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (os.getpid(), *(box.pid for box in pair))}
        assert len(seen) == 3, kind


def test_capabilities_of_root_are_exactly_the_default_ones(inside, pair):
    """In all sets: an inheritable one that remained would come back through file capabilities (CVE-2022-24769)."""
    for found in (inside.ask(pair[0], STATUS), told(inside.lab.do(inside.lab.finish(main_process(inside))))):
        sets = {name: int(found[f"Cap{name}"][0], 16) for name in ("Prm", "Eff", "Bnd", "Inh", "Amb")}
        assert sets == {"Prm": DEFAULT, "Eff": DEFAULT, "Bnd": DEFAULT, "Inh": 0, "Amb": 0}
        assert (found["NoNewPrivs"], found["Seccomp"]) == (["1"], ["2"])
        assert found["Groups"] == []  # CVE-2022-2995, CVE-2023-25173: none that the engine has


def main_process(inside):
    return SandboxSpec(image="host", process=inside.python(STATUS))


def test_another_user_holds_no_capability(inside, pair):
    """Its bounding set stays: what root may have, a set-id program could get, were it not for no_new_privs."""
    for user, groups in (("1000:1000", []), ("user", []), ("65534", [])):
        found = inside.ask(pair[0], STATUS, user=user)
        assert {int(found[f"Cap{name}"][0], 16) for name in ("Prm", "Eff", "Inh", "Amb")} == {0}
        assert int(found["CapBnd"][0], 16) == DEFAULT and found["Groups"] == groups
        assert "0" not in found["Uid"]


def test_set_id_programs_and_file_capabilities_give_nothing(inside):
    """Neither a copy of id with the set-id bit nor one with every capability in its file, for another user."""
    box = inside.box()
    prepare = """
import shutil
for path in ('/tmp/setid', '/tmp/caps'):
    shutil.copy('/usr/bin/cat', path)
os.chmod('/tmp/setid', 0o6755); os.chmod('/tmp/caps', 0o755)
value = struct.pack('<5I', 0x02000001, 0xffffffff, 0, 0xffffffff, 0)
found['setcap'] = attempt(os.setxattr, '/tmp/caps', 'security.capability', value)
"""
    assert inside.ask(box, prepare)["setcap"] == "ok"
    for path in ("/tmp/setid", "/tmp/caps"):
        text = inside.sh(box, path, "/proc/self/status", user="1000").stdout.decode()
        seen = {name: rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())}
        assert seen["Uid"] == ["1000"] * 4 and int(seen["CapEff"][0], 16) == int(seen["CapPrm"][0], 16) == 0
    inside.remove(box)


def test_set_id_programs_work_only_where_they_are_asked_for_and_then_only_inside(inside):
    box = inside.box(no_new_privileges=False)
    inside.ask(box, "import shutil; shutil.copy('/usr/bin/cat', '/tmp/s'); os.chmod('/tmp/s', 0o4755)")
    text = inside.sh(box, "/tmp/s", "/proc/self/status", user="1000", no_new_privileges=False).stdout.decode()
    seen = {name: rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())}
    assert seen["Uid"] == ["1000", "0", "0", "0"] and int(seen["CapEff"][0], 16) == DEFAULT
    inside.remove(box)


def test_ids_beyond_the_range_do_not_exist(inside, pair):
    text = """
found['setuid'] = [call('setuid', number) for number in (0, 65536, 0x30000000, 0xfffffffe)]
found['chown'] = trying(lambda: (open('/tmp/x', 'w'), os.chown('/tmp/x', 65536, -1)))
found['uid_map'] = attempt(lambda: os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1'))
"""
    found = inside.ask(pair[0], text)
    assert found["setuid"][1:] == ["EINVAL"] * 3 and found["chown"] == "EINVAL" and found["uid_map"] == "EPERM"


@pytest.mark.parametrize("how", ["main", "init", "exec", "exec-tty", "tty"])
def test_there_is_no_descriptor_but_the_three(inside, pair, how):
    """CVE-2024-21626, CVE-2016-9962: nothing of the launcher's is left over in any way of starting a program."""
    text = """
found['fds'] = sorted(int(n) for n in os.listdir('/proc/self/fd'))  # 3 is this listing
found['links'] = [os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)]
found['cwd'] = os.getcwd()
if '--init' in sys.argv: found['one'] = sorted(os.listdir('/proc/1/fd'))
"""
    if how.startswith("exec"):
        found = inside.ask(pair[0], text, tty=how == "exec-tty")
    else:
        args = ("--init",) if how == "init" else ()
        spec = SandboxSpec(image="host", init=how == "init", process=inside.python(text, *args, tty=how == "tty"))
        found = told(inside.lab.do(inside.lab.finish(spec)))
    assert found["fds"] == [0, 1, 2, 3] and found.get("one", ["0", "1", "2"]) == ["0", "1", "2"]
    links = set(found["links"])
    assert links == {"/dev/pts/0"} if "tty" in how else all(x == "/dev/null" or x.startswith("pipe:[") for x in links)
    assert found["cwd"] == "/"


def test_init_cannot_be_changed_from_inside(inside):
    """/proc/1/exe is the launcher's memfd (CVE-2019-5736): sealed, and without attributes that others would see."""
    box = inside.box(init=True)
    text = """
exe = '/proc/1/exe'
found['open'] = [attempt(os.open, exe, flags) for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)]
found['xattr'] = attempt(os.setxattr, exe, 'user.x', b'1')
found['chmod'] = attempt(os.chmod, exe, 0o777)
fd = os.open(exe, os.O_RDONLY)
found['seals'] = fcntl.fcntl(fd, 1034)
found['truncate'] = attempt(os.truncate, exe, 0)
found['path'] = os.readlink(exe)
"""
    found = inside.ask(box, text)
    assert "ok" not in found["open"] and "ok" not in (found["xattr"], found["chmod"], found["truncate"])
    assert found["seals"] & 0xF == 0xF and found["path"].startswith("/memfd:")
    inside.remove(box)


def test_keyrings_are_out_of_reach(inside, pair):
    text = """
for what, args in (('keyctl', (0, -3, 1)), ('keyctl', (1, None)), ('add_key', (b'user', b'k', b'v', 1, -3)),
                   ('request_key', (b'user', b'k', None, -3))):
    found.setdefault(what, set()).add(call(what, *args))
found = {k: sorted(v) for k, v in found.items()}
found['keys'] = read('/proc/keys')
"""
    assert inside.ask(pair[0], text) == {
        "keyctl": ["EPERM"], "add_key": ["EPERM"], "request_key": ["EPERM"], "keys": "",
    }  # fmt: skip


USE_UP = """
found['inotify'] = 0
while libc.inotify_init1(0) >= 0: found['inotify'] += 1
found['queues'] = 0
while libc.mq_open(b'/q%d' % found['queues'], os.O_CREAT | os.O_RDWR, 0o600, None) >= 0: found['queues'] += 1
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
resource = __import__('resource'); resource.setrlimit(resource.RLIMIT_SIGPENDING, (20000, 20000))
found['signals'] = 0
while libc.sigqueue(os.getpid(), 40, ctypes.c_void_p(0)) == 0: found['signals'] += 1
found['terminals'] = 0
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
while attempt(os.open, '/dev/ptmx', os.O_RDWR | os.O_NOCTTY) == 'ok': found['terminals'] += 1
"""


def test_using_up_per_user_limits_leaves_the_neighbours_theirs(inside, pair):
    """The kernel counts inotify instances, message queues, queued signals … per user, and for a user namespace's
    owner too. Were that root, one sandbox could deny them to all others and to the host.
    """

    async def both():
        first = await inside.start(pair[0], inside.python(USE_UP + "tell()\ntime.sleep(30)"))
        began = time.monotonic()
        hog = (await first.read())[1]
        neighbour = await inside.finish(await inside.start(pair[1], inside.python(USE_UP)))
        on_host = os.eventfd(0), inotify()
        assert time.monotonic() - began < 15
        await first.signal(9)
        await inside.finish(first)
        os.close(on_host[0])
        os.close(on_host[1])
        return hog, told(neighbour)

    hog, neighbour = inside.lab.do(both(), 30)
    assert b'"inotify": ' in hog
    assert neighbour["inotify"] >= 100 and neighbour["queues"] >= 5 and neighbour["signals"] >= 19_000
    assert 8 <= neighbour["terminals"] <= 64


def inotify() -> int:
    import ctypes

    fd = ctypes.CDLL(None, use_errno=True).inotify_init1(0o2000000)
    assert fd >= 0, "the host's root has no inotify instance left"
    return fd


def test_limits_of_a_process(inside, pair):
    text = """
resource = __import__('resource')
found['core'] = resource.getrlimit(resource.RLIMIT_CORE)
found['raise'] = call('prlimit64', 0, resource.RLIMIT_CORE, struct.pack('2Q', 1, 1), None)
found['nice'] = attempt(os.nice, -5)
found['fifo'] = call('sched_setscheduler', 0, 1, struct.pack('i', 1))
"""
    assert inside.ask(pair[0], text) == {"core": [0, 0], "raise": "EPERM", "nice": "EPERM", "fifo": "EPERM"}


def test_an_exec_of_less_gets_no_more(inside):
    """exec never has more power than the sandbox's own process, whatever it asks for."""
    few = ("CAP_CHOWN", "CAP_SETUID")
    box = inside.box(process=Process(argv=("sleep", "600"), capabilities=few))
    for asked in (DEFAULT_CAPABILITIES, ("CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_SYS_PTRACE")):
        found = inside.ask(box, STATUS, capabilities=asked, no_new_privileges=False)
        assert int(found["CapBnd"][0], 16) & ~mask(few) == 0 and int(found["CapEff"][0], 16) & ~mask(few) == 0
        assert found["NoNewPrivs"] == ["1"]
    inside.remove(box)
