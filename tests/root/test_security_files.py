"""The file tree from inside: what is mounted stays as it is, nothing beyond it is seen, devices are the few listed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from joey.model.errors import JoeyError
from joey.model.facts import MASKED_PROC, READONLY_PROC
from joey.model.spec import Device, Mount, Process, SandboxSpec, Tmpfs
from root.inside import told

pytestmark = pytest.mark.leak_scope("module")

DEVICES = {"null", "zero", "full", "random", "urandom", "tty"}


@pytest.fixture(scope="module")
def box(inside):
    box = inside.box()
    yield box
    inside.remove(box)


def test_no_mount_can_be_changed(inside, box):
    """Old calls and new ones, each place that matters; also by way of links in /proc."""
    text = """
places = [b'/', b'/usr', b'/proc', b'/proc/sys', b'/proc/keys', b'/sys', b'/dev', b'/dev/shm', b'/dev/pts', b'/tmp',
          b'/proc/self/root/proc', b'/proc/1/root/dev']
answers = set()
for place in places:
    answers.add(call('umount2', place, 2))
    answers.add(call('mount', None, place, None, 0x20 | 0x1000, None))          # remount, bind: writable
    answers.add(call('mount', b'none', place, b'tmpfs', 0, None))
    answers.add(call('mount', place, b'/mnt', None, 0x1000, None))              # bind, without what is mounted below
    answers.add(call('mount', place, b'/mnt', None, 0x2000, None))              # move
    answers.add(call('mount', None, place, None, 1 << 20, None))                # shared
    answers.add(call('open_tree', -100, place, 1))
    answers.add(call('mount_setattr', -100, place, 0, struct.pack('4Q', 0, 1, 0, 0), 32))
    answers.add(call('fspick', -100, place, 0))
    answers.add(call('pivot_root', place, place))
for kind in (b'proc', b'sysfs', b'cgroup', b'cgroup2', b'tmpfs', b'overlay', b'devpts', b'mqueue', b'fuse', b'debugfs'):
    answers.add(call('mount', kind, b'/mnt', kind, 0, None))
    answers.add(call('fsopen', kind, 0))
answers.add(call('move_mount', 0, b'', -100, b'/mnt', 4))
found['answers'] = sorted(answers)
found['setns'] = [call('setns', os.open(f'/proc/self/ns/{n}', os.O_RDONLY), 0) for n in ('mnt', 'user')]
"""
    before = Path(f"/proc/{box.pid}/mountinfo").read_text()
    found = inside.ask(box, text)
    assert found == {"answers": ["EPERM"], "setns": ["EPERM", "EPERM"]}
    assert Path(f"/proc/{box.pid}/mountinfo").read_text() == before


def test_what_is_read_only_stays_so(inside, box):
    text = """
for place in ('/usr/x', '/sys/x', '/dev/x', '/proc/x', '/proc/sys/kernel/x', '/sys/fs/cgroup/x', '/dev/mqueue/x'):
    found[place] = [attempt(os.mkdir, place), attempt(os.mknod, place, 0o644), attempt(os.symlink, 'a', place)]
found['touch'] = [attempt(os.utime, p) for p in ('/usr/bin', '/dev/null', '/sys', '/proc/sys')]
found['chmod'] = [attempt(os.chmod, p, 0o777) for p in ('/usr/bin', '/dev/null', '/sys', '/proc/sys', '/proc')]
found['xattr'] = [attempt(os.setxattr, p, 'user.x', b'') for p in ('/usr/bin', '/dev/null', '/sys', '/proc/sys')]
"""
    for what, answers in inside.ask(box, text).items():
        # /proc itself is not a read-only mount: the kernel has nothing in it that could be made or renamed
        assert set(answers) <= {"EROFS", "EPERM", "EACCES", "ENOENT", "ENOTSUP"}, (what, answers)


def test_climbing_out_of_a_chroot_ends_in_the_own_root(inside, box):
    """The way that needs CAP_SYS_CHROOT, which sandboxes have: keep a directory open, chroot deeper, climb."""
    text = """
def same(a, b): return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
root, top = os.stat('/'), os.open('/', os.O_RDONLY)
os.makedirs('/tmp/a/b', exist_ok=True)
os.chroot('/tmp/a')
os.fchdir(top)
for _ in range(100): os.chdir('..')
found['cwd'] = same(os.stat('.'), root)
found['openat'] = same(os.stat(os.open('../../../..', os.O_RDONLY, dir_fd=top)), root)
os.chroot('.')
found['root'] = same(os.stat('/'), root)
found['again'] = same(os.stat('/..'), root)
found['names'] = sorted(os.listdir('/'))
"""
    found = inside.ask(box, text)
    names = found.pop("names")
    assert set(found.values()) == {True} and {"usr", "proc", "etc"} < set(names)
    assert not {"l0", "m", "e", "layers", "box", "cgroup"} & set(names)


def test_a_host_process_that_enters_lands_in_the_same_root(inside, box):
    """What lies underneath the sandbox's root is not where setns(2) leads."""
    inside.sh(box, "sh", "-c", "echo here > /marker")
    done = subprocess.run(
        ["nsenter", f"--mount=/proc/{box.pid}/ns/mnt", "cat", "/marker", "/../../marker"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"here\nhere\n"
    assert Path(f"/proc/{box.pid}/root/marker").read_text() == "here\n"


def test_masked_paths_show_nothing_by_any_way(inside, box):
    """A list of Docker's, through every link that leads to the same place (CVE-2023-27561, CVE-2025-31133)."""
    text = """
ways = ('', '/proc/self/root', '/proc/1/root', '/proc/thread-self/root', '/proc/self/cwd',
        f'/proc/self/task/{os.getpid()}/root')
for path in PATHS:
    for way in ways:
        try: seen = os.listdir(way + path) if os.path.isdir(way + path) else read(way + path)
        except OSError as error: seen = name(error.errno)
        if seen not in ('', [], 'ENOENT'): found[way + path] = seen
        if os.path.exists(path):
            answer = attempt(os.open, way + path, os.O_WRONLY | os.O_APPEND)
            if answer not in ('EROFS', 'EISDIR', 'ok'): found[way + path + ' write'] = answer
fd = os.open('/proc', os.O_RDONLY)
found['at'] = [trying(lambda: os.read(os.open('keys', os.O_RDONLY, dir_fd=fd), 9).decode())]
""".replace("PATHS", repr(MASKED_PROC))
    assert inside.ask(box, text) == {"at": [""]}


def test_what_controls_the_kernel_cannot_be_written_or_read(inside, box):
    text = """
writes = '''/proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/drop_caches
/proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_forward /proc/sys/fs/binfmt_misc/register
/proc/sys/user/max_user_namespaces
/proc/irq/0/smp_affinity /proc/bus/pci/devices /proc/mtrr /proc/driver/rtc /proc/acpi/wakeup /proc/scsi/scsi
/proc/self/root/proc/sys/kernel/core_pattern /proc/1/root/proc/sysrq-trigger /sys/kernel/mm/transparent_hugepage/enabled
/sys/kernel/uevent_helper /sys/fs/cgroup/release_agent /proc/self/attr/current /proc/1/oom_score_adj'''.split()
for path in writes:
    answer = attempt(os.open, path, os.O_WRONLY)
    if answer == 'ok': answer = attempt(lambda: os.write(os.open(path, os.O_WRONLY), b'0'))
    if answer == 'ok' and not path.endswith('oom_score_adj'): found[path] = answer
for path in '''/proc/kcore /proc/kmsg /proc/kpagecount /proc/kpageflags /proc/kpagecgroup /proc/vmallocinfo
/proc/slabinfo /proc/pagetypeinfo /proc/1/mem /proc/self/pagemap /dev/mem /dev/kmem /dev/port /dev/kmsg /dev/fuse
/dev/kvm /dev/vda /dev/loop0
/dev/loop-control /dev/net/tun /dev/mapper/control /dev/ttyS0 /dev/tty0 /dev/console /dev/hwrng /dev/uinput'''.split():
    try:
        if read(path, 16) and path not in ('/proc/self/pagemap', '/proc/1/mem'): found[path] = 'read'
    except OSError: pass
symbols = [line for line in read('/proc/kallsyms').splitlines() if not line.startswith('0' * 16)]
found['symbols'] = symbols[:1]
"""
    assert inside.ask(box, text) == {"symbols": []}
    assert set(READONLY_PROC) >= {"/proc/sys", "/proc/sysrq-trigger"}


def test_there_are_no_devices_but_the_listed(inside, box):
    """/dev holds six and no more; nodes cannot be made, not even where mknod works (a whiteout), nor used."""
    text = """
devices = []
for folder, folders, files in os.walk('/dev'):
    devices += [os.path.join(folder, f) for f in files if stat.S_IFMT(os.lstat(os.path.join(folder, f)).st_mode) in
                (stat.S_IFCHR, stat.S_IFBLK)]
found['devices'] = sorted(d.removeprefix('/dev/') for d in devices)
char, block = stat.S_IFCHR | 0o666, stat.S_IFBLK | 0o666
kinds = {'null': (char, 1, 3), 'mem': (char, 1, 1), 'disk': (block, 254, 0), 'loop': (block, 7, 0),
         'whiteout': (char, 0, 0)}
for where in ('/', '/tmp/', '/dev/shm/', '/dev/'):
    found[where] = [attempt(os.mknod, where + kind, mode, os.makedev(a, b)) for kind, (mode, a, b) in kinds.items()]
found['disks'] = [n for n in os.listdir('/sys/block') + os.listdir('/sys/class')]
"""
    found = inside.ask(box, text)
    assert found.pop("devices") == sorted(DEVICES | {"pts/ptmx"}) and found.pop("disks") == []
    for where, answers in found.items():
        assert set(answers[:4]) <= {"EPERM", "EROFS", "EEXIST"}, (where, answers)


def test_device_nodes_of_an_image_or_volume_do_not_open(inside, tmp_path):
    """An unpacked archive may hold any: nodev on the root and on every volume; and set-id bits do not count."""
    os.mknod(tmp_path / "zero", 0o020666, os.makedev(1, 5))
    os.chmod(tmp_path / "zero", 0o666)
    text = "found.update({p: attempt(os.open, p, os.O_RDONLY) for p in ('/v/zero', '/d/zero', '/dev/zero')})"
    mounts = (Mount(source=str(tmp_path), target="/v"), Mount(source=str(tmp_path), target="/d", idmap=False))
    spec = SandboxSpec(image="host", process=inside.python(text), mounts=mounts)
    assert told(inside.lab.do(inside.lab.finish(spec))) == {"/v/zero": "EACCES", "/d/zero": "EACCES", "/dev/zero": "ok"}


def test_a_named_device_opens_no_other(inside, tmp_path):
    """With a device of its own a sandbox has a cgroup list of its own: that one, for what was asked, and the six."""
    os.mknod(tmp_path / "control", 0o020666, os.makedev(10, 237))
    os.chmod(tmp_path / "control", 0o666)
    box = inside.box(devices=(Device(path=str(tmp_path / "control"), target="/dev/control", access="r"),))
    text = """
found['named'] = [attempt(os.open, '/dev/control', os.O_RDONLY), attempt(os.open, '/dev/control', os.O_RDWR)]
found['made'] = attempt(os.mknod, '/dev/x', stat.S_IFCHR | 0o666, os.makedev(1, 1))
found['write'] = attempt(os.mkdir, '/dev/x')
"""
    assert inside.ask(box, text) == {"named": ["ok", "EPERM"], "made": "EROFS", "write": "EROFS"}
    inside.remove(box)


LAUNCHER_FILES = ("/proc/self/fd/%d", "/proc/self/fd/%d/..", "/proc/1/cwd", "/proc/1/root", "/proc/self/task/1/fd/%d")


def evil(inside, box) -> list[str]:
    """Names the attacks below try to make, found in the launchers' own trees, their cgroups, or in a neighbour's files
    (`box`); what a sandbox made of its own root is its own affair.
    """
    lab, seen = inside.lab, []
    neighbour = Path(lab.do(lab.engine.inspect(box.id)).paths["files"]).parent.name
    for pid in lab.engine.machine.fleet.pids:
        done = subprocess.run(
            ["find", f"/proc/{pid}/root/", "-path", "*/root/proc", "-prune", "-o", "-name", "evil*", "-print"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        seen += [path for path in done.stdout.splitlines() if "/box/memory/" not in path or neighbour in path]
    return seen


@pytest.mark.parametrize("kind", ["cwd", "mount", "file", "tmpfs", "device"])
def test_paths_through_descriptors_of_the_launcher_lead_nowhere(inside, box, tmp_path, kind):
    """CVE-2024-21626: a working directory, a mount point … below /proc/self/fd/N, N being any the launcher has."""
    (tmp_path / "f").touch()
    patterns = LAUNCHER_FILES if kind in ("cwd", "mount") else LAUNCHER_FILES[:2]
    for number in range(64, 92):
        for pattern in patterns:
            target = f"{pattern % number if '%' in pattern else pattern}/evil{number}"
            spec = {
                "cwd": {"process": Process(argv=("pwd",), cwd=target)},
                "mount": {"mounts": (Mount(source=str(tmp_path), target=target),)},
                "file": {"mounts": (Mount(source=str(tmp_path / "f"), target=target),)},
                "tmpfs": {"tmpfs": (Tmpfs(target=target),)},
                "device": {"devices": (Device(path="/dev/null", target=f"/dev/fd/{number}/evil"),)},
            }[kind]
            if number > 70 and "%" not in pattern:
                continue
            with pytest.raises(JoeyError):
                inside.lab.do(
                    inside.lab.finish(SandboxSpec(**{"image": "host", "process": Process(argv=("true",)), **spec}))
                )
    assert evil(inside, box) == []


def test_links_in_an_image_do_not_lead_out_either(inside, box, busybox, tmp_path):
    """A root file system made by an attacker: links to the launcher's descriptors and to the host at every place that
    a launch touches.
    """
    (tmp_path / "v").mkdir()
    targets = [f"/proc/self/fd/{n}/.." for n in range(64, 92)] + ["/proc/1/root", "../../../../../../.."]
    for number, target in enumerate(targets):
        (busybox / f"link{number}").symlink_to(target)
    for number, target in enumerate(targets):
        for more in (
            {"process": Process(argv=("true",), cwd=f"/link{number}/evil")},
            {
                "process": Process(argv=("true",)),
                "mounts": (Mount(source=str(tmp_path / "v"), target=f"/link{number}/evil"),),
            },
        ):
            try:
                result = inside.lab.do(inside.lab.finish(SandboxSpec(rootfs=str(busybox), **more)))
            except JoeyError:
                assert "proc" in target  # magic links are refused; the others lead to the sandbox's own root
            else:
                assert result.exit.code == 0 and "proc" not in target
    assert evil(inside, box) == []
    assert not (busybox / "evil").exists()


@pytest.mark.parametrize("place", ["proc", "dev", "sys"])
@pytest.mark.parametrize("what", ["/", "/proc/self/fd/80", "etc", "missing", "FIFO", "FILE"])
def test_an_image_with_something_else_at_a_mount_point_is_refused(inside, busybox, place, what):
    """CVE-2019-19921, CVE-2023-27561: /proc, /dev or /sys is a link, a fifo, a file. No start without masks."""
    (busybox / place).rmdir()
    if what == "FIFO":
        os.mkfifo(busybox / place)
    elif what == "FILE":
        (busybox / place).touch()
    else:
        (busybox / place).symlink_to(what)
    with pytest.raises(JoeyError):
        inside.lab.do(inside.lab.finish(SandboxSpec(rootfs=str(busybox), process=Process(argv=("true",)))))


def test_a_restart_does_not_trust_what_was_written(inside, box):
    """The writable layer of a stopped sandbox is as hostile as any image."""
    attack = """
os.rmdir('/tmp/evil/deep'); os.rmdir('/tmp/evil'); os.symlink('/proc/self/fd/80/../..', '/tmp/evil')
found['proc'] = attempt(os.rmdir, '/proc')
"""
    hostile = inside.box(process=Process(argv=("sleep", "600"), cwd="/tmp/evil/deep"))
    assert inside.ask(hostile, attack, cwd="/")["proc"] == "EBUSY"
    inside.lab.do(inside.lab.engine.kill(hostile.id, 9))
    inside.lab.do(inside.lab.engine.wait(hostile.id))
    with pytest.raises(JoeyError):
        inside.lab.do(inside.lab.engine.start(hostile.id))
    inside.remove(hostile)
    assert evil(inside, box) == []


def test_a_volume_under_attack_gives_no_way_out(inside, box, tmp_path):
    """CVE-2021-30465: a neighbour swaps a directory for a link while others are started with a mount on it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "other").mkdir()
    shared = Mount(source=str(tmp_path), target="/v")
    swapper = """
import itertools
os.makedirs('/v/t', exist_ok=True); print('ready', flush=True)
for n in itertools.count():
    try:
        os.rename('/v/t', '/v/u'); os.symlink(('/proc/self/fd/%d' % (64 + n % 30)) if n % 2 else '/', '/v/t')
        os.unlink('/v/t'); os.rename('/v/u', '/v/t')
    except OSError: pass
"""

    async def fight(hostile):
        attack = await inside.start(hostile, inside.python(swapper))
        await attack.read()
        started = 0
        for number in range(200):
            if number >= 25 and started:  # one that gets through shows that the others failed by the race
                break
            mounts = (shared, Mount(source=str(tmp_path / "other"), target=f"/v/t/evil{number}"))
            spec = SandboxSpec(image="host", process=Process(argv=("cat", "/proc/keys")), mounts=mounts)
            try:
                result = await inside.lab.finish(spec)
                assert result.stdout == b""
                started += 1
            except JoeyError:
                pass
        await attack.signal(9)
        await inside.finish(attack)
        return started

    hostile = inside.box(mounts=(shared,))
    assert inside.lab.do(fight(hostile), 40) > 0
    inside.remove(hostile)
    assert evil(inside, box) == [] and os.listdir(tmp_path / "other") == []


def test_two_sandboxes_share_only_their_volume(inside, tmp_path):
    shared = Mount(source=str(tmp_path), target="/v")
    first, second = inside.box(mounts=(shared,)), inside.box(mounts=(shared,))
    inside.sh(first, "sh", "-c", "echo mine > /v/f; chmod 600 /v/f; echo x > /tmp/f; echo x > /dev/shm/f")
    assert inside.sh(second, "sh", "-c", "cat /v/f; ls /tmp /dev/shm").stdout == b"mine\n/dev/shm:\n\n/tmp:\n"
    assert (tmp_path / "f").stat().st_uid == 0, "an id-mapped volume stores the sandbox's ids as the host's"
    inside.remove(first, second)


def test_a_read_only_volume_and_root_stay_so(inside, tmp_path):
    mounts = (Mount(source=str(tmp_path), target="/v", read_only=True),)
    box = inside.box(mounts=mounts, read_only=True)
    text = """
found['write'] = [attempt(os.mkdir, p + 'x') for p in ('/v/', '/', '/etc/', '/proc/self/root/v/', '/proc/1/root/')]
found['remount'] = [call('mount', None, p, None, 0x1020, None) for p in (b'/v', b'/')]
"""
    assert inside.ask(box, text) == {"write": ["EROFS"] * 5, "remount": ["EPERM"] * 2}
    inside.remove(box)


def test_files_are_opened_by_name_only(inside):
    """The way of shocker.c: open_by_handle_at, with the capability it once needed; and mounts by their numbers."""
    box = inside.box(add=("CAP_DAC_READ_SEARCH",))
    text = """
handle = ctypes.create_string_buffer(128 + 8); struct.pack_into('Ii', handle, 0, 128, 0)
mount_id = ctypes.create_string_buffer(8)
for path in (b'/', b'/usr', b'/dev/shm', b'/etc/passwd'):
    got = call('name_to_handle_at', -100, path, handle, mount_id, 0)
    fd = os.open(path, os.O_RDONLY)
    found.setdefault('open', []).append(call('open_by_handle_at', fd, handle, os.O_RDONLY))
root = ctypes.create_string_buffer(struct.pack('<IiQ', 8, 1, 2).ljust(128, bytes(1)))
found['made up'] = call('open_by_handle_at', os.open('/', os.O_RDONLY), root, os.O_RDONLY)
"""
    found = inside.ask(box, text)
    assert "ok" not in (*found["open"], found["made up"]), found
    inside.remove(box)


def test_mounts_tell_nothing_of_the_host(inside, box):
    """No path of the host, of the instance or of a neighbour stands in what a sandbox can read of its mounts."""
    text = (
        "found.update({p: read(p, 60000) for p in ('/proc/self/mountinfo', '/proc/self/mounts', '/proc/self/cgroup')})"
    )
    shown = json.dumps(inside.ask(box, text))
    for secret in (str(inside.lab.instance.home), inside.lab.instance.name, "/layers/", "/box/", "/cgroup/"):
        assert secret not in shown


@pytest.fixture
def busybox(tmp_path):
    """A root file system with one static program."""
    root = tmp_path / "root"
    for name in ("bin", "proc", "dev", "sys", "etc"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "true", "cat", "ls", "sleep", "id"):
        (root / "bin" / name).symlink_to("busybox")
    return root
