"""What is forked from a template has the barriers of any sandbox: their tests, run by the forked child itself."""

from __future__ import annotations

import json
import os

import pytest

from root.forked import Forked, Talk, template
from root.test_security_calls import (  # noqa: F401
    test_no_namespace_can_be_made_or_entered,
    test_ordinary_programs_notice_nothing,
    test_other_abis_are_no_way_round,
    test_refused_families_are_refused,
    test_the_filter_cannot_be_lifted,
)
from root.test_security_identity import (  # noqa: F401
    test_capabilities_of_root_are_exactly_the_default_ones,
    test_every_namespace_is_its_own,
    test_ids_beyond_the_range_do_not_exist,
    test_keyrings_are_out_of_reach,
    test_limits_of_a_process,
    test_root_inside_is_nobody_outside_and_no_ids_are_shared,
)
from root.test_security_neighbours import (  # noqa: F401
    test_cgroups_are_out_of_sight_and_reach,
    test_ipc_objects_are_not_shared,
    test_names_are_its_own,
    test_the_network_has_loopback_alone_and_nobody_elses,
)

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def inside(lab):
    return Forked(lab)


@pytest.fixture
def box(inside):
    box = inside.box()
    yield box
    inside.remove(box)


@pytest.fixture
def pair(inside):
    boxes = inside.box(), inside.box()
    yield boxes
    inside.remove(*boxes)


def test_siblings_and_the_template_are_neither_seen_nor_hit(inside, pair):
    text = """
found['pids'] = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())
found['self'] = [1, os.getpid()]
found['hit'] = [pid for pid in range(2, 40000) if pid != os.getpid() and call('kill', pid, 0) == 'ok']
found['outside'] = [trying(os.readlink, f'/proc/{pid}/exe') for pid in sys.argv[1:]]
found['attach'] = sorted({call('ptrace', 0x4206, int(pid), 0, 0) for pid in (1, *sys.argv[1:])})
found['up'] = [trying(os.getppid), call('kill', os.getppid(), 0)]
"""
    warm = inside.lab.engine.template(inside.name).pid
    found = inside.ask(pair[0], text, *map(str, (os.getpid(), warm, pair[1].pid)))
    assert found["pids"] == found["self"] and found["hit"] == []
    assert set(found["outside"]) == {"ENOENT"} and found["attach"] == ["EPERM"]
    assert found["up"] == [1, "ok"]  # its parent is its own PID 1


def test_nothing_of_the_template_is_left_open(inside, box):
    text = """
found['fds'] = {n: trying(os.readlink, f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')}
found['one'] = sorted(os.listdir('/proc/1/fd'))
found['env'] = dict(os.environ)
found['mounts'] = [line.split()[1] for line in read('/proc/self/mounts', 60000).splitlines()]
"""
    found = inside.ask(box, text)
    targets = [target for target in found["fds"].values() if target not in ("ENOENT",)]
    ours = ("/dev/null", "pipe:[", "socket:[", "/proc/")
    assert len(found["fds"]) <= 10 and all(target.startswith(ours) for target in targets), found["fds"]
    assert sum(target.startswith("socket:[") for target in targets) == 1
    assert found["one"] == ["0", "1", "2"]
    assert "JOEY_CHANNEL_FD" not in found["env"] and set(found["env"]) <= {"PATH", "HOSTNAME", "HOME", "LANG"}
    assert "/opt/joey-runtime" in found["mounts"]


def test_mounts_are_locked_even_for_whom_the_template_is(inside, box):
    """What a hostile warm process could do after setns: it has CAP_SYS_ADMIN in U, but the filter it was born with."""
    text = """
for what, args in (('mount', (b'x', b'/mnt', b'tmpfs', 0, None)), ('umount2', (b'/proc', 2)),
                   ('pivot_root', (b'/', b'/')), ('open_tree', (-100, b'/', 1)), ('fsopen', (b'tmpfs', 0)),
                   ('unshare', (0x20000,)), ('setns', (0, 0)), ('chroot', (b'/tmp',))):
    found[what] = call(what, *args)
"""
    found = inside.ask(box, text)
    assert {name: answer for name, answer in found.items() if name != "chroot"} == dict.fromkeys(
        ("mount", "umount2", "pivot_root", "open_tree", "fsopen", "unshare", "setns"), "EPERM"
    )


HOSTILE = """
import ctypes, errno, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    args = [a if isinstance(a, (bytes, type(None))) else ctypes.c_long(a) for a in args]
    return 'ok' if libc.syscall(ctypes.c_long(number), *args) >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(what, *args):
    try: what(*args)
    except OSError as error: return errno.errorcode[error.errno]
    return 'ok'
seen = {name: call(NUMBERS[name], *args) for name, *args in (
    ('mount', b'x', b'/mnt', b'tmpfs', 0, None), ('umount2', b'/proc', 2), ('unshare', 0x10000000),
    ('unshare', 0x20000), ('clone', 0x10000000 | 17, 0, 0, 0, 0), ('pivot_root', b'/', b'/'), ('bpf', 0, 0, 0),
    ('ptrace', 0x4206, 1, 0, 0), ('fsopen', b'proc', 0), ('open_tree', -100, b'/', 1), ('sethostname', b'x', 1),
    ('setresuid', 65536, 65536, 65536), ('setresgid', 65536, 65536, 65536), ('keyctl', 0, -3, 1))}
seen['clone3'] = call(NUMBERS['clone3'], struct.pack('11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6), 88)
seen['pids'] = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())
seen['me'] = sorted((1, os.getpid()))
seen['hit'] = [pid for pid in range(2, 40000) if pid != os.getpid() and attempt(os.kill, pid, 0) == 'ok']
seen['chown'] = attempt(lambda: (open('/tmp/x', 'w'), os.chown('/tmp/x', 65536, -1)))
def enter(pid, kind):
    try: return call(NUMBERS['setns'], os.open(f'/proc/{pid}/ns/{kind}', 0), 0)
    except OSError as error: return errno.errorcode[error.errno]
seen['setns'] = sorted({enter(pid, kind) for pid in (1, 'self') for kind in ('mnt', 'net', 'user', 'ipc', 'uts')})
seen['network'] = [name for _, name in socket.if_nameindex()]
seen['caps'] = [line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapPrm', 'CapBnd'))]
seen['cgroup'] = os.listdir('/sys/fs/cgroup')
"""


def test_hostile_code_in_a_template_has_no_more_power_than_a_sandbox(lab, inside):
    """It may use setns, and has nothing to use it on."""
    numbers = inside._prelude.partition("\n")[0]

    async def look() -> dict:
        view = await lab.engine.template_create(template("hostile", init=f"{numbers}\n{HOSTILE}"))
        assert view.state == "ready", view.reason
        _, channel = await lab.engine.fork("hostile")
        talk = Talk(channel)
        await talk.begin()
        seen = await talk.run("found = __import__('joey_init').seen")
        channel.close()
        await lab.engine.template_remove("hostile")
        return seen

    seen = lab.do(look())
    assert seen.pop("clone3") == "ENOSYS"
    assert seen.pop("pids") == seen.pop("me") and seen.pop("hit") == [] and seen.pop("cgroup") == []
    assert seen.pop("network") == ["lo"] and seen.pop("caps") == ["0000000000240000"] * 2
    assert seen.pop("chown") == "EPERM" and "ok" not in seen.pop("setns")
    assert set(seen.values()) == {"EPERM"}, json.dumps(seen)
