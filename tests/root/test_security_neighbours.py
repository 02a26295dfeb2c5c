"""From one sandbox to another and to the host: processes, IPC, names, network, signals, shared kernel objects."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
from pathlib import Path

import pytest

from joey.model.spec import Process, SandboxSpec
from root.inside import told

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def pair(inside):
    boxes = inside.box(), inside.box()
    yield boxes
    inside.remove(*boxes)


def test_only_own_processes_are_seen_and_hit(inside, pair):
    """kill(-1) and signals to every number: the neighbour, the launcher and the host's processes stay."""
    text = """
found['pids'] = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())
found['self'] = os.getpid()
found['kill all'] = trying(lambda: os.kill(-1, 0))
hit = set()
for pid in range(2, 40000):
    if pid == os.getpid(): continue
    if call('kill', pid, 0) == 'ok': hit.add(pid)
found['hit'] = sorted(hit)
found['outside'] = [trying(os.readlink, f'/proc/{pid}/exe') for pid in sys.argv[1:]]
found['attach'] = sorted({call('ptrace', 0x4206, int(pid), 0, 0) for pid in sys.argv[1:]})
found['read'] = sorted({call('process_vm_readv', int(pid), struct.pack('2Q', 0, 8), 1, struct.pack('2Q', 4096, 8), 1, 0)
                        for pid in sys.argv[1:]})
"""
    strangers = [str(pid) for pid in (os.getpid(), pair[1].pid, *inside.lab.engine.machine.fleet.pids)]
    found = inside.ask(pair[0], text, *strangers)
    assert set(found["pids"]) == {1, found["self"]} and found["hit"] == []
    assert set(found["outside"]) == {"ENOENT"} and found["attach"] == found["read"] == ["ESRCH"]


def test_killing_all_that_can_be_seen_harms_nobody_else(inside, pair):
    hostile = inside.box()
    before = inside.lab.engine.machine.fleet.pids
    text = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nfor s in (15, 1, 2, 3, 19, 18, 9): os.kill(-1, s)\n"
    inside.sh(hostile, "python3", "-c", f"import os, signal\n{text}")
    assert inside.sh(pair[1], "echo", "alive").stdout == b"alive\n"
    assert inside.lab.engine.machine.fleet.pids == before
    assert inside.lab.do(inside.lab.engine.inspect(hostile.id)).sandbox.state == "running"  # PID 1 is not hit
    inside.remove(hostile)


IPC = """
libc.shmat.restype = ctypes.c_void_p
key = 0x4a4f4559
found['before'] = [call('shmget', key, 4096, 0), call('semget', key, 1, 0), call('msgget', key, 0)]
found['made'] = [call('shmget', key, 4096, 0o1666), call('semget', key, 1, 0o1666), call('msgget', key, 0o1666)]
found['queue'] = 'ok' if libc.mq_open(b'/joey', os.O_RDWR) >= 0 else 'none'
found['new queue'] = libc.mq_open(b'/joey', os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
found['table'] = read('/proc/sysvipc/shm').count('\\n')
found['files'] = os.listdir('/dev/shm')
open('/dev/shm/joey', 'w').write('x')
"""


def test_ipc_objects_are_not_shared(inside, pair):
    """System V and POSIX objects of the same names, on the host, here and there."""
    made = subprocess.run(["ipcmk", "-M", "4096", "-S", "1", "-Q"], capture_output=True, text=True, check=False)
    ids = [line.rsplit(" ", 1)[1] for line in made.stdout.splitlines()]
    try:
        for box in pair:
            found = inside.ask(box, IPC)
            assert found["before"] == ["ENOENT"] * 3 and found["made"] == ["ok"] * 3
            assert found["queue"] == "none" and found["new queue"] and found["files"] == []
            assert found["table"] == 2  # the heading and one's own
    finally:
        for kind, id in zip("msq", ids, strict=False):
            subprocess.run(["ipcrm", f"-{kind}", id], check=False)


def test_names_are_its_own(inside, pair):
    before = socket.gethostname()
    text = """
found['set'] = [attempt(socket.sethostname, 'x'), call('setdomainname', b'x', 1),
                attempt(os.open, '/proc/sys/kernel/hostname', 1)]
found['name'] = socket.gethostname()
"""
    names = [inside.ask(box, text) for box in pair]
    assert all(set(found["set"]) <= {"EPERM", "EROFS", "EACCES"} for found in names)
    assert len({before, *(found["name"] for found in names)}) == 3 and socket.gethostname() == before


def test_cgroups_are_out_of_sight_and_reach(inside, pair):
    """Paths are relative to the sandbox's own; no hierarchy is mounted or can be (CVE-2022-0492, release_agent)."""
    text = """
found['own'] = sorted({line.split(':', 2)[2] for line in read('/proc/self/cgroup').splitlines()
                       if line.split(':')[1] in ('', 'memory', 'cpu', 'pids', 'cpu,cpuacct')})
found['all'] = read('/proc/self/cgroup')
found['mounts'] = [line for line in read('/proc/self/mounts', 60000).splitlines() if 'cgroup' in line.split()[2]]
found['tree'] = os.listdir('/sys/fs/cgroup')
found['mount'] = [call('mount', b'c', b'/mnt', kind, 0, data) for kind, data in
                  ((b'cgroup', b'memory'), (b'cgroup', b'rdma'), (b'cgroup2', None), (b'cgroup', b'none,name=x'))]
"""
    found = inside.ask(pair[0], text)
    assert found["own"] == ["/"] and inside.lab.instance.name not in found["all"].replace("_default", "")
    assert found["mounts"] == found["tree"] == [] and found["mount"] == ["EPERM"] * 4


def test_the_network_has_loopback_alone_and_nobody_elses(inside, pair):
    """Services of the host on 127.0.0.1, its abstract sockets and those of a neighbour are not there."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tcp6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0joey-test-host")
        abstract.listen()
        serve = """
s = socket.socket(socket.AF_UNIX); s.bind('\\0joey-test-neighbour'); s.listen()
t = socket.create_server(('127.0.0.1', 4321))
tell(); time.sleep(60)
"""
        text = f"""
found['host'] = [attempt(socket.create_connection, ('127.0.0.1', {tcp.getsockname()[1]}), 2),
                 attempt(socket.create_connection, ('::1', {tcp6.getsockname()[1]}), 2)]
def unix(name):
    s = socket.socket(socket.AF_UNIX); s.connect(name)
found['abstract'] = [attempt(unix, '\\0joey-test-host'), attempt(unix, '\\0joey-test-neighbour')]
found['neighbour'] = attempt(socket.create_connection, ('127.0.0.1', 4321), 2)
found['interfaces'] = [n for _, n in socket.if_nameindex()]
found['routes'] = read('/proc/net/route').count('\\n') - 1
found['unix'] = [l for l in read('/proc/net/unix', 60000).splitlines()[1:] if 'joey' in l or '/run' in l]
found['out'] = attempt(socket.create_connection, ('192.0.2.1', 80), 2)
packet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
found['device'] = attempt(packet.setsockopt, socket.SOL_SOCKET, 25, b'lo')
found['raw'] = [attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, protocol) for protocol in (1, 255)]
nl = socket.socket(16, 3, 0)
# RTM_NEWADDR 127.0.0.2, RTM_NEWLINK dummy: changes
for kind in (16, 20, 24):
    nl.send(struct.pack('IHHII', 16 + 16, kind, 5 | 0x400, 1, 0) + bytes(16))
    found.setdefault('netlink', []).append(struct.unpack_from('i', nl.recv(9999), 16)[0])
"""

        async def both():
            server = await inside.start(pair[1], inside.python(serve))
            await server.read()
            client = await inside.finish(await inside.start(pair[0], inside.python(text)))
            await server.signal(9)
            await inside.finish(server)
            return told(client)

        found = inside.lab.do(both())
    assert found["host"] == ["ECONNREFUSED"] * 2 and found["abstract"] == ["ECONNREFUSED"] * 2
    assert found["neighbour"] == "ECONNREFUSED" and found["interfaces"] == ["lo"] and found["unix"] == []
    assert found["routes"] == 0 and found["out"] == "ENETUNREACH"
    assert all(answer < 0 for answer in found["netlink"]) and "ok" not in found["raw"]


def test_a_host_network_is_only_for_who_asks_for_it_and_without_power(inside):
    """Named loosening: it is the host's own, so root inside changes nothing in it."""
    box = inside.box(network="host", add=("CAP_NET_ADMIN", "CAP_NET_RAW"))
    text = """
nl = socket.socket(16, 3, 0)
nl.send(struct.pack('IHHII', 16 + 16, 16, 5, 1, 0) + struct.pack('BxHiII', 0, 0, 1, 0, 1))  # lo down
found['down'] = struct.unpack_from('i', nl.recv(9999), 16)[0]
found['raw'] = attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
found['packet'] = attempt(socket.socket, 17, socket.SOCK_RAW, 0)
found['sysctl'] = attempt(os.open, '/proc/sys/net/ipv4/ip_forward', os.O_WRONLY)
"""
    found = inside.ask(box, text)
    assert found.pop("down") < 0 and "ok" not in found.values(), found
    inside.remove(box)


def test_locks_and_leases_on_shared_files_hurt_nobody(inside, pair):
    """What all sandboxes see of the host (/usr, /dev) may be locked, but not leased, sealed or made busy for others."""
    text = """
found['lease'] = trying(lambda: fcntl.fcntl(os.open('/usr/bin/env', os.O_RDONLY), 1024, fcntl.F_RDLCK))
found['write lock'] = trying(lambda: fcntl.lockf(os.open('/usr/bin/env', os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB))
flags = struct.pack('l', 0x10)
found['attributes'] = trying(lambda: fcntl.ioctl(os.open('/usr/bin/env', os.O_RDONLY), 0x40086602, flags))
"""
    found = inside.ask(pair[0], text)
    assert set(found.values()) <= {"EACCES", "EBADF", "EPERM", "EROFS", "ENOTTY"}, found


@pytest.mark.parametrize("fields", [
    {"env": {"A": "b\0PATH=/x"}}, {"env": {"A=B": "c"}}, {"env": {"": "c"}}, {"argv": ("true", "a\0b")},
    {"cwd": "relative"}, {"cwd": "/tmp/../../x"}, {"cwd": "/a\0b"}, {"user": "0\n0"}, {"user": "-1"}, {"user": "65536"},
    {"user": "1:99999999999"},
])  # fmt: skip
def test_texts_that_mean_something_else_are_refused(inside, fields):
    from joey.model.errors import Invalid

    spec = SandboxSpec(image="host", process=Process(**{"argv": ("true",), **fields}))
    with pytest.raises(Invalid) as caught:
        inside.lab.do(inside.lab.finish(spec))
    assert str(caught.value).startswith(next(iter(fields)))


@pytest.mark.parametrize("more", [
    {"hostname": "a\nb"}, {"hostname": "../x"}, {"hostname": "x" * 65}, {"sysctls": {"kernel.core_pattern": "|/x"}},
    {"sysctls": {"net/../kernel/core_pattern": "|/x"}}, {"sysctls": {"net.ipv4.ip_forward": "1\x01R"}},
    {"sysctls": {"vm.drop_caches": "1"}}, {"sysctls": {"kernel.shm/../core_pattern": "x"}}, {"oom_score_adj": 2000},
    {"name": "../../x"}, {"name": "\x1b[2J"}, {"masked_paths": ("/proc/../x",)}, {"readonly_paths": ("relative",)},
])  # fmt: skip
def test_requests_that_reach_for_the_host_are_refused(inside, more):
    from joey.model.errors import JoeyError

    with pytest.raises(JoeyError) as caught:
        inside.lab.do(inside.lab.finish(SandboxSpec(image="host", process=Process(argv=("true",)), **more)))
    assert next(iter(more)) in str(caught.value) and Path("/proc/sys/kernel/core_pattern").read_text()[:2] != "|/x"


def test_odd_bytes_arrive_as_they_are(inside):
    odd = "a\x01R\x1b[31m\tü\x7f' \"$(id)\n"
    spec = SandboxSpec(image="host", process=Process(argv=("printf", "%s", odd), env={"ODD": odd}))
    assert inside.lab.do(inside.lab.finish(spec)).stdout.decode() == odd


def test_the_kernel_is_the_hosts(inside, pair):
    """What is not hidden, so that the threat model may say so: release and processor."""
    assert inside.ask(pair[0], "found['release'] = os.uname().release") == {"release": platform.release()}
