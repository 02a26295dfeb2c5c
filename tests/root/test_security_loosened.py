"""What a request loosens by name goes no further than its name: the host and the neighbours stay out of reach."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from joey.model.errors import JoeyError, Unenforceable
from joey.model.spec import Mount, Process, SandboxSpec

pytestmark = pytest.mark.leak_scope("module")

POWERLESS = (
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_BOOT", "CAP_SYS_TIME", "CAP_MKNOD", "CAP_SYSLOG",
    "CAP_BPF", "CAP_PERFMON", "CAP_AUDIT_WRITE", "CAP_MAC_ADMIN", "CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE",
    "CAP_LINUX_IMMUTABLE",
)  # fmt: skip


@pytest.mark.parametrize("name", POWERLESS)
def test_a_capability_without_effect_is_refused(inside, name):
    """The kernel honours it for the host's root alone; a grant would be a promise that cannot be kept."""
    with pytest.raises(Unenforceable, match="capabilities"):
        inside.box(add=(name,))


@pytest.fixture(scope="module")
def admin(inside):
    """Everything that has an effect at all."""
    names = (
        "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_IPC_OWNER",
        "CAP_SYS_NICE",
    )  # fmt: skip
    box = inside.box(add=names)
    yield box
    inside.remove(box)


def test_an_administrator_inside_cannot_uncover_anything(inside, admin):
    """It may mount what user namespaces may, in a mount namespace of its own; what Joey mounted is locked."""
    text = """
loose = []
for place in (b'/', b'/proc', b'/proc/sys', b'/proc/keys', b'/proc/interrupts', b'/sys', b'/sys/devices/system',
              b'/dev', b'/usr', b'/dev/shm', b'/dev/pts'):
    for what in (('umount2', place, 0), ('umount2', place, 2), ('mount', place, b'/mnt', None, 0x2000, None)):
        if call(*what) == 'ok': loose.append([what[0], place.decode()])
for place in (b'/proc/sys', b'/sys', b'/dev', b'/usr', b'/proc/sysrq-trigger', b'/proc/bus'):
    if call('mount', None, place, None, 0x20 | 0x1000, None) == 'ok': loose.append(['rw', place.decode()])
    if call('mount_setattr', -100, place, 0, struct.pack('4Q', 0, 1, 0, 0), 32) == 'ok':
        loose.append(['setattr', place.decode()])
for place in (b'/', b'/usr', b'/dev/shm'):  # nosuid and nodev
    if call('mount', None, place, None, 0x20 | 0x1000 | 1, None) == 'ok': loose.append(['dev', place.decode()])
found['loose'] = loose
found['partly'] = [call('mount', p, b'/mnt', None, 0x1000, None) for p in (b'/', b'/proc', b'/dev', b'/sys')]
found['clone'] = [call('open_tree', -100, p, 1) for p in (b'/', b'/proc', b'/dev')]
found['overlay'] = call('mount', b'o', b'/mnt', b'overlay', 0, b'lowerdir=/proc:/etc')
for kind in ('proc', 'sysfs', 'cgroup', 'cgroup2', 'ext4', 'debugfs', 'tracefs', 'securityfs', 'bpf', 'devtmpfs'):
    data = b'memory' if kind == 'cgroup' else None
    found[kind] = call('mount', b'x', b'/mnt', kind.encode(), 0, data)
found['core pattern'] = attempt(os.open, '/proc/sys/kernel/core_pattern', os.O_WRONLY)
found['own'] = [attempt(socket.sethostname, 'mine'), call('mount', b't', b'/mnt', b'tmpfs', 0, None)]
"""
    before = Path(f"/proc/{admin.pid}/mountinfo").read_text()
    found = inside.ask(admin, text)
    assert found.pop("loose") == [] and found.pop("own") == ["ok", "ok"]
    refused = {"EPERM", "EINVAL", "EACCES", "ENODEV", "EROFS", "ENOTBLK", "EBUSY"}
    for what, answer in found.items():
        assert set(answer if isinstance(answer, list) else [answer]) <= refused, (what, answer)
    assert len(Path(f"/proc/{admin.pid}/mountinfo").read_text().splitlines()) == len(before.splitlines()) + 1


def test_an_administrator_inside_cannot_climb_out(inside, admin):
    """pivot_root moves the cover over what lies underneath, and the new one is locked in its turn; setns to one's own
    namespace leads to what covers its root; file handles open nothing that is covered.
    """
    text = """
os.makedirs('/tmp/new/old', exist_ok=True)
found['steps'] = [call('mount', b't', b'/tmp/new', b'tmpfs', 0, None)]
os.makedirs('/tmp/new/old')
own = os.open('/proc/self/ns/mnt', os.O_RDONLY)
os.chdir('/tmp/new')
found['steps'].append(call('pivot_root', b'.', b'old'))
os.chdir('/')
found['root'] = sorted(os.listdir('/'))
found['uncover'] = [call('umount2', b'/', 2), call('umount2', b'/', 0),
                    call('mount', b'/', b'/old', None, 0x2000, None)]
found['enter'] = call('setns', own, 0)
found['entered'] = sorted(os.listdir('/'))
for _ in range(30): os.chdir('..')
found['climbed'] = sorted(os.listdir('.'))
fd = os.open('/', os.O_RDONLY)
found['handle'] = call('open_by_handle_at', fd, struct.pack('<IiQ', 8, 1, 2).ljust(64, bytes(1)), 0)
"""
    box = inside.box(add=("CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"))
    found = inside.ask(box, text)
    hidden = {"l0", "m", "e", "layers", "box", "cgroup"}
    for what in ("root", "entered", "climbed"):
        assert not hidden & set(found.get(what, [])), (what, found)
    assert "ok" not in found["uncover"] and found["handle"] != "ok", found
    inside.remove(box)


def test_an_administrator_inside_rules_over_its_own_network_only(inside, admin):
    text = """
nl = socket.socket(16, 3, 0)
nl.send(struct.pack('IHHII', 16 + 16, 16, 5, 1, 0) + struct.pack('BxHiII', 0, 0, 1, 0, 1))
found['lo down'] = struct.unpack_from('i', nl.recv(9999), 16)[0]
found['interfaces'] = [n for _, n in socket.if_nameindex()]
found['raw'] = attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
found['peers'] = [attempt(os.open, f'/proc/{p}/ns/net', os.O_RDONLY) for p in sys.argv[1:]]
"""
    other = inside.box()
    found = inside.ask(admin, text, str(other.pid), "1000000")
    assert found["lo down"] == 0 and found["interfaces"] == ["lo"] and found["raw"] == "ok"
    assert found["peers"] == ["ENOENT"] * 2
    assert "UP" in subprocess.run(["ip", "link", "show", "lo"], capture_output=True, text=True, check=True).stdout
    assert inside.ask(other, UP) == {"up": 1}
    inside.remove(other)


UP = """
any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
found['up'] = struct.unpack_from('H', fcntl.ioctl(any, 0x8913, b'lo'.ljust(40, bytes(1))), 16)[0] & 1
"""


def test_an_administrators_calls_beyond_its_namespaces_fail(inside, admin):
    text = """
found['module'] = [call('init_module', None, 0, b''), call('finit_module', 0, b'', 0), call('delete_module', b'x', 0)]
past = struct.pack('2q', 1, 0)
found['clock'] = [call('settimeofday', past, None), call('clock_settime', 0, past)]
found['kernel'] = [call('kexec_load', 0, 0, None, 0), call('reboot', 0xfee1dead, 672274793, 0, None),
                   call('syslog', 2, b'', 0)]
found['swap'] = [call('swapon', b'/x', 0), call('swapoff', b'/x'), call('acct', None)]
found['bpf'] = [call('bpf', 0, bytes(64), 64), call('perf_event_open', bytes(120), 0, 0, -1, 0), call('userfaultfd', 0)]
found['io_uring'] = [call('io_uring_setup', 8, ctypes.create_string_buffer(120))]
found['device'] = [attempt(os.mknod, '/tmp/x', stat.S_IFCHR | 0o666, os.makedev(1, 1))]
found['limits'] = [attempt(os.nice, -5), call('ioprio_set', 1, 0, 1 << 13)]
libc.syscall(NUMBERS['unshare'], 0x20000)
call('mount', b't', b'/tmp', b'tmpfs', 0, None)
found['tmpfs node'] = [attempt(os.mknod, '/tmp/x', stat.S_IFCHR | 0o666, 259)]
"""
    found = inside.ask(admin, text)
    assert {what: answers for what, answers in found.items() if "ok" in answers} == {}, found


def test_a_volume_given_as_it_is_shows_its_owners_as_nobody(inside, tmp_path):
    """idmap off: what the host's root owns cannot be changed by root inside, and nothing is made."""
    (tmp_path / "f").write_text("x")
    tmp_path.chmod(0o755)
    box = inside.box(mounts=(Mount(source=str(tmp_path), target="/v", idmap=False),))
    text = """
found['owner'] = os.stat('/v/f').st_uid
found['answers'] = [attempt(os.chmod, '/v/f', 0o777), attempt(os.chown, '/v/f', 0, 0), attempt(os.mkdir, '/v/x'),
                    attempt(os.unlink, '/v/f'), attempt(os.open, '/v/f', os.O_WRONLY)]
"""
    found = inside.ask(box, text)
    assert found["owner"] == 65534 and "ok" not in found["answers"], found
    inside.remove(box)


def test_set_id_files_on_a_volume_do_nothing_inside(inside, tmp_path):
    """A volume is nosuid; that its files are as root's outside is what docs/threat-model.md warns of."""
    tmp_path.chmod(0o755)
    box = inside.box(mounts=(Mount(source=str(tmp_path), target="/v"),), no_new_privileges=False)
    inside.ask(box, "import shutil; shutil.copy('/usr/bin/id', '/v/id'); os.chmod('/v/id', 0o4755)")
    assert inside.sh(box, "/v/id", "-u", user="1000", no_new_privileges=False).stdout == b"1000\n"
    assert (tmp_path / "id").stat().st_mode & 0o4000 and (tmp_path / "id").stat().st_uid == 0
    inside.remove(box)


def test_mounts_made_inside_do_not_appear_on_the_host(inside, tmp_path):
    """Even of a volume that shares its mounts (propagation), by an administrator inside."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "d").mkdir()
    top = str(tmp_path / "v")
    subprocess.run(["mount", "--bind", top, top], check=True)
    subprocess.run(["mount", "--make-shared", top], check=True)
    try:
        box = inside.box(
            add=("CAP_SYS_ADMIN",), mounts=(Mount(source=top, target="/v", propagation="rshared", idmap=False),)
        )
        found = inside.ask(box, "found['mount'] = call('mount', b't', b'/v/d', b'tmpfs', 0, None)")
        assert found["mount"] == "ok"
        assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{top}/d" in line]
        inside.remove(box)
    except JoeyError as error:
        assert "propagation" in str(error) or "mounts" in str(error)
    finally:
        subprocess.run(["umount", "-R", top], check=True)


def test_without_masks_only_what_was_named_shows(inside):
    spec = SandboxSpec(image="host", process=Process(argv=("sleep", "60")), masked_paths=(), readonly_paths=())
    box = inside.lab.do(inside.lab.engine.run(spec)).sandbox
    text = """
found['core pattern'] = attempt(os.open, '/proc/sys/kernel/core_pattern', os.O_WRONLY)
found['sysrq'] = attempt(os.open, '/proc/sysrq-trigger', os.O_WRONLY)
found['forward'] = attempt(os.open, '/proc/sys/net/ipv4/ip_forward', os.O_WRONLY)
"""
    found = inside.ask(box, text)
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOENT"}, found  # by owner: the host's root
    inside.remove(box)
